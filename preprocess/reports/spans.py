"""Where the sections and the sentences of a report begin and end."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from medvl.preprocess.reports.rules import Rules
from medvl.records import Section

__all__ = ["find_sections", "sentence_spans"]

_NAME = re.compile(r"[A-Za-zÀ-ÖØ-öø-ÿ][A-Za-zÀ-ÖØ-öø-ÿ /&'-]*$")
_LEAD = " \t*#_-\u2022\ufeff\u200b"


def find_sections(text: str, rules: Rules) -> Iterator[Section]:
    """Yield the bodies between headings; together with the headings they partition the text."""
    name, start = "body", 0
    for head_start, head_end, heading in _headings(text, rules):
        if name != "body" or text[start:head_start].strip():
            yield Section(name, start, head_start)
        name, start = heading, head_end
    yield Section(name, start, len(text))


def _headings(text: str, rules: Rules) -> list[tuple[int, int, str]]:
    found: dict[int, tuple[int, int, str]] = {}
    for match in rules.lines.finditer(text):
        group = "alone" if match["alone"] else "capitals"
        start, end = match.span(group)
        found[start] = (start, end, rules.headings[match[group].lower()])
    colon = text.find(":")
    while colon >= 0:
        heading = _heading_before(text, colon, rules)
        if heading:
            found[heading[0]] = heading
        colon = text.find(":", colon + 1)
    ordered: list[tuple[int, int, str]] = []
    for start, end, name in sorted(found.values()):
        free = ordered[-1][1] if ordered else 0
        if end > free:  # two headings may share the asterisks between them
            ordered.append((max(start, free), end, name))
    return ordered


def _heading_before(text: str, colon: int, rules: Rules) -> tuple[int, int, str] | None:
    """Return the heading that a colon ends, if the words before it are one."""
    low = max(0, colon - 48)
    chunk = text[low:colon].rstrip(" \t*")
    match = _NAME.search(chunk)
    if match is None:
        return None
    words = [(m.start() + match.start() + low, m[0]) for m in re.finditer(r"[^ ]+", match[0])]
    stop = low + len(chunk)
    for place, _ in words:  # the longest known name that ends at the colon
        phrase = text[place:stop]
        name = rules.headings.get(" ".join(phrase.lower().split()))
        if name and _opens(text, place, phrase, strict=phrase.lower() in rules.strict):
            return *_with_marks(text, place, colon + 1), name
    place = words[0][0]
    if len(words) == 1 and len(words[0][1]) >= 6 and _opens(text, place, words[0][1], strict=False):
        name = _misspelt(words[0][1].lower(), tuple(rules.main.items()))
        if name:
            return *_with_marks(text, place, colon + 1), name
    return None


def _with_marks(text: str, start: int, end: int) -> tuple[int, int]:
    """Take bullets and the asterisks of bold print into the heading."""
    first = start
    while first and text[first - 1] in _LEAD:
        first -= 1
    if first and text[first - 1] not in "\r\n":
        first = start
        while first and text[first - 1] in "*#_":
            first -= 1
    while end < len(text) and text[end] == "*":
        end += 1
    return first, end


def _opens(text: str, place: int, phrase: str, *, strict: bool) -> bool:
    """Say whether a heading may stand here: at a line's start; in capitals; or after a sentence's end."""
    before = text[:place].rstrip(_LEAD) if place < 64 else text[place - 64 : place].rstrip(_LEAD)
    if not before or before[-1] in "\r\n":
        return True
    if not text[place - 1].isspace() and text[place - 1] not in '."*':
        return False
    return phrase.isupper() or (not strict and before[-1] in '.;!?:")]')


@functools.lru_cache(maxsize=4096)
def _misspelt(word: str, main: tuple[tuple[str, str], ...]) -> str | None:
    """Return the section whose main heading is within two edits (one for short names) of ``word``."""
    for heading, name in main:
        if abs(len(heading) - len(word)) <= 2 and _edits(word, heading) <= (2 if len(heading) >= 8 else 1):
            return name
    return None


def _edits(a: str, b: str) -> int:
    """Count insertions, deletions, substitutions and swaps of neighbours between two words."""
    two: list[int] = []
    one = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(one[j] + 1, row[j - 1] + 1, one[j - 1] + (x != y)))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                row[j] = min(row[j], two[j - 2] + 1)
        two, one = one, row
    return one[-1]


# --- sentences --------------------------------------------------------------------------------------

_END = re.compile(
    r"(?P<stop>[.!?\u2026]+[\"'\u201d\u2019)\]]{0,2})(?=\s|$)"  # a stop before white space
    r"|(?P<tight>(?<=[a-zß-öø-ÿ0-9)%])\.)(?=[A-ZÀ-ÖØ-Þ][a-zß-öø-ÿ])"  # "at T4.No effusion"
    r"|(?P<blank>\n[ \t\r]*\n\s*)"
    r"|(?P<item>\n[ \t]*(?=[-*\u2022\u00b7\u2013]\s|\(?\d{1,2}[.)]\s*[A-Za-z(]))"
    r"|(?P<line>\n)(?=[ \t]*[A-ZÀ-ÖØ-Þ])"
    r"|(?P<quote>(?<=\s)\"(?=\s+[A-Z]))"  # a stray quotation mark used as a bullet
)
_MARKER = re.compile(
    r"\s*(?:[-*\u2022\u00b7\u2013](?=\s)|\"(?=\s)|\(?(?P<number>\d{1,2})(?:[.)](?=\s|[A-Za-z(])))\s*"
)
_LAST_WORD = re.compile(r"[\w.'-]*$")


def sentence_spans(text: str, section: Section, rules: Rules, wrap: int) -> Iterator[tuple[int, int]]:
    """Yield the sentences of a section; only white space and list markers lie between them."""
    start, item = section.start, 0
    while start < section.end:
        start, item = _skip_markers(text, start, section.end, item)
        end = _sentence_end(text, start, section.end, rules, wrap, item)
        first, last = start, end
        while first < last and text[first].isspace():
            first += 1
        while last > first and text[last - 1].isspace():
            last -= 1
        if first < last:
            yield first, last
        start = max(end, start + 1)


def _skip_markers(text: str, start: int, end: int, item: int) -> tuple[int, int]:
    """Step over a bullet, or over the number that a list would have next."""
    match = _MARKER.match(text, start, end)
    if match is None or match.end() >= end:
        return start, item
    if match["number"] is None:
        return match.end(), item
    number = int(match["number"])
    return (match.end(), number) if number in (1, item + 1) else (start, item)


def _sentence_end(text: str, start: int, end: int, rules: Rules, wrap: int, item: int) -> int:
    for match in _END.finditer(text, start, end):
        if match.lastgroup == "quote":
            if match.start() > start:
                return match.start()
        elif match.lastgroup == "line":
            if _ended_on_purpose(text, match.start(), wrap):
                return match.end()
        elif match.lastgroup in ("blank", "item") or _is_stop(text, start, match, end, rules, item):
            return match.end()
    return end


def _ended_on_purpose(text: str, newline: int, wrap: int) -> bool:
    """Say whether the next line's first word would still have fitted on the line that ends here."""
    line = newline - text.rfind("\n", 0, newline) - 1
    word = re.compile(r"\s*(\S{1,40})").match(text, newline)
    return line + 1 + (len(word[1]) if word else 0) <= wrap and text[newline - 1 : newline] not in (
        ",",
        "-",
        "/",
    )


def _is_stop(text: str, start: int, match: re.Match[str], end: int, rules: Rules, item: int) -> bool:
    """Say whether a mark ends the sentence, rather than a number, an abbreviation or an initial."""
    mark = match[0]
    word = _LAST_WORD.search(text, max(start, match.start() - 24), match.start())
    last = word[0] if word else ""
    following = text[match.end() : min(end, match.end() + 24)].lstrip()
    nearby = following[:1]
    if nearby == ")" or (mark[-1] in ")]" and nearby.islower()):  # "(lymph node ?) is"
        return False
    if text[start : match.start()].strip().isdigit():  # a number that no list has next
        return False
    if mark == "?" and nearby.isdigit() and text[match.start() - 1].isspace():
        return False  # a sign that an export could not write: "0.9 ? 3.3"
    if not following or mark[0] in "!?":
        return True
    if mark.count(".") > 1 or "\u2026" in mark:
        return nearby.isupper() or nearby.isdigit()
    if last.lower().strip(".") in rules.abbreviations and _abbreviates(last.lower(), following, rules):
        return False
    if rules.ordinals and last.isdigit() and (nearby.islower() or _first_word(following) in rules.ordinals):
        return False
    if last.isdigit() and nearby.isdigit():
        marker = _MARKER.match(following)
        return bool(marker and marker["number"] and int(marker["number"]) == item + 1)
    return not (len(last) == 1 and last.isupper() and _initial(text, start, match.start() - 1, nearby))


def _abbreviates(word: str, following: str, rules: Rules) -> bool:
    """``no.`` abbreviates only before a number; a side or a unit only before a small letter."""
    if word in rules.numbered:
        return following[:1].isdigit()
    if rules.starters:
        return _first_word(following) not in rules.starters
    return word in rules.titles or not following[:1].isupper()


def _first_word(text: str) -> str:
    match = re.match(r"\w+", text)
    return match[0].lower() if match else ""


def _initial(text: str, start: int, place: int, nearby: str) -> bool:
    """Say whether the single capital at ``place`` is an initial: after a title or a name, before a name."""
    before = text[max(start, place - 24) : place].split()
    return bool(before) and before[-1][0].isupper() and nearby.isupper()
