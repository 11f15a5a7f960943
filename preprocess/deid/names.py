"""The given names of people found in a text, in any rendering, without eating the words they look like."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence

from medvl.preprocess.deid.dates import Span

__all__ = ["find_names", "name_parts"]

COMMON = frozenset(
    """
    able alma amber ample angel anterior apex april arch arm art artery august aurora autumn back bad ball
    banks base bass bay bean bear bell best bill bird bishop black blade blood bloom blue body bond bone
    bones book border bowel bowl bowman branch bright brook brown buck bush calm camp cane cap card carol
    case cash catch chance chase cherry chest christian church clay clear close coil cold cone cook coral
    cord cough count court crane cross crow crystal cut daisy dark dawn day days deal dean dear deep dense
    derby diamond dim dose drake draw drew drive dry duct dull early east easy edge ember english eve even
    ever fair faith fall far farmer fast fat fern field fields fine finger fish fisher fistula flat fleet
    florence flow focal foot ford forest foster fountain fox frank free french frost full gale gall gap
    garden gates gay gene gentle german glass gold good grace grand grant grave gray green grey gross
    ground grove grow gun guy hail hale hall hand hard hardy harm hart haven hay hazel head heal heard
    heart heath heel held high hill hills hip hold holder holly holmes home hood hook hope horn house
    humble hunter in iris ivory ivy jack jade jay jean joint jolly joy judge july june just keen key
    kidney king knee knight lake lamb land lane large last lasting late laurel law lead leaf lean leap
    left leg lens lesion light lily limb line link lion little liver lobe lock long loop lord love low
    lowe luck lump lung mace major male malone man march margin mark marker marks marsh mask mass master
    max may meadow mean melody mercy merry middle mild miles mill mills min mind miner minor mist moderate
    moles monk moon moor more morning moss mound mount mouth nail neck new newly nice night noble node
    north nose notable oak old olive opal open or orange page pain pale palm paris park part parts patch
    patient pearl penny pepper piece pine pink plain plate pleasant point pole pond pool poor pope porter
    post potter pound power precious present price pride prince prior process proud queen quick quiet rain
    range rash ray read real red reed rest rib rice rich right ring ripley rise river rivers road rob
    robin rock rod root rose rough round royal ruby rush rust sage salt sand savage say scale scar sea
    self senior severe shade shadow shaft sharp shaw shell shepherd short side silver simple single sky
    slight sloan slow small smart smooth snow soft son south spear speed spence spine spring stable
    standing star steady steel stem stent sterling stern still stone storm story straight strange stream
    street strong sue suggest summer sun sutton sweet swift tall tear temple tender tent thick thin thorn
    thumb tip tissue tongue tooth torso tower town trace tract treat tree trial true tube tumor turner
    twin upper valentine van vein victor view vine viola violet virgin vocal wade wait walk walker wall
    walls ward warm wash waste water waters way weak wear weaver web week well wells west wheeler white
    wide wild will wing winter wise wolf wood woods word work worth wound wrist yard year years young zone
    """.split()
)
"""Names that are words of reports too: alone they stay, unless a title or their capital tells."""

_TITLE_BEFORE = re.compile(
    r"(?:\b(?:mr|mrs|ms|miss|dr|drs|prof|professor|doctor|sir|madam|nurse|baby)\b\.?|"
    r"\bpatient(?:'s)?(?: name)?\s*:|\bname\s*(?:is|:)|\bby:?)\s+$",
    re.IGNORECASE,
)
_INITIAL_BEFORE = re.compile(r"(?<!\w)([A-Za-z])\.?[ ](?:[A-Z]\.?[ ])?$")
_INITIAL_AFTER = re.compile(r",?[ ]([A-Z])\b(?:\.(?=\W))?(?:[ ][A-Z]\b(?:\.(?=\W))?)?")
_GAP = re.compile(r"(?:,? |,|-|_|\^|, ?)(?:[A-Za-z]\.?[ ,^_]){0,2}")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def name_parts(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return family and given names of a person name, DICOM or plain, in lower case.

    Examples:
        >>> name_parts("Garcia-Lopez^Maria^^Dr")
        (('garcia', 'lopez'), ('maria',))
        >>> name_parts("John Q. Smith"), name_parts("Smith, John")
        ((('smith',), ('john', 'q')), (('smith',), ('john',)))
    """
    family: list[str] = []
    given: list[str] = []
    for group in name.split("="):  # PS3.5 6.2.1: alphabetic, ideographic, phonetic
        if "^" in group:
            components = [*group.split("^"), "", ""]
            pieces = components[0], f"{components[1]} {components[2]}"
        elif "," in group:
            last, _, first = group.partition(",")
            pieces = last, first
        else:
            first, _, last = group.strip().rpartition(" ")
            pieces = last, first
        family += _WORD.findall(pieces[0].lower())
        given += _WORD.findall(pieces[1].lower())
    return tuple(dict.fromkeys(family)), tuple(part for part in dict.fromkeys(given) if part not in family)


@functools.lru_cache(maxsize=4096)
def _known(
    names: tuple[str, ...],
) -> tuple[dict[str, frozenset[tuple[int, str]]], frozenset[str], frozenset[str]]:
    """Return part to (person, role), the initials of given names, and those of family names."""
    parts: dict[str, set[tuple[int, str]]] = {}
    first: set[str] = set()
    last: set[str] = set()
    for person, name in enumerate(names):
        family, given = name_parts(name)
        first |= {part[0] for part in given}
        last |= {part[0] for part in family}
        for role, words in (("family", family), ("given", given)):
            for word in words:
                if len(word) > 1 or not word.isascii():
                    parts.setdefault(word, set()).add((person, role))
    return {part: frozenset(who) for part, who in parts.items()}, frozenset(first), frozenset(last)


@functools.lru_cache(maxsize=4096)
def _pattern(parts: tuple[str, ...]) -> re.Pattern[str]:
    """Match any of the parts as a word of its own; those without a Latin letter also inside words."""
    words = "|".join(re.escape(part) for part in sorted(parts, key=len, reverse=True))
    return re.compile(rf"(?<![^\W_])(?:{words})(?![^\W_])", re.IGNORECASE)


def find_names(text: str, low: str, names: Sequence[str]) -> Iterator[Span]:
    """Yield where the people of ``names`` are named.

    Args:
        text: the report.
        low: the report in lower case.
        names: DICOM person names (``DOE^JOHN``) or plain ones.
    """
    if not names:
        return
    parts, first, last = _known(tuple(names))
    present = tuple(part for part in parts if part in low)
    if not present:
        return
    capitals = sum(map(str.isupper, text)) > sum(map(str.islower, text))
    hits = list(_pattern(present).finditer(text))
    i = 0
    while i < len(hits):
        group = [hits[i]]
        while (
            i + 1 < len(hits)
            and hits[i + 1].start() - group[-1].end() <= 8
            and _GAP.fullmatch(text, group[-1].end(), hits[i + 1].start())
        ):
            i += 1
            group.append(hits[i])
        i += 1
        yield from _group(text, group, parts, first=first, last=last, capitals=capitals)


def _group(
    text: str,
    group: list[re.Match[str]],
    parts: dict[str, frozenset[tuple[int, str]]],
    *,
    first: frozenset[str],
    last: frozenset[str],
    capitals: bool,
) -> Iterator[Span]:
    """Yield a run of name parts as one name, or each of its words on its own merits."""
    words = {match[0].lower() for match in group}
    people = [{person for person, _ in parts[word]} for word in words if word in parts]
    together = len(words) > 1 and len(people) > 1 and bool(set.intersection(*people))
    plain = all(word in COMMON or len(word) < 3 for word in words)
    if together and (not plain or all(match[0][0].isupper() for match in group)):
        yield Span(group[0].start(), _past_initials(text, group[-1].end(), first), "name", "[name]")
        return
    for match in group:
        roles = {role for _, role in parts.get(match[0].lower(), ())}
        start, end = match.span()
        initial = _INITIAL_BEFORE.search(text, max(0, start - 6), start)
        after = _INITIAL_AFTER.match(text, end)
        if initial and "family" in roles and initial[1].lower() in first and initial[1].isupper():
            yield Span(initial.start(), end, "name", "[name]")
        elif after and after[1].lower() in (first if "family" in roles else last) and match[0][0].isupper():
            yield Span(start, after.end(), "name", "[name]")
        elif _tells(text, match, capitals=capitals):
            yield Span(start, end, "name", "[name]")


def _past_initials(text: str, end: int, first: frozenset[str]) -> int:
    after = _INITIAL_AFTER.match(text, end)
    return after.end() if after and after[1].lower() in first else end


def _tells(text: str, match: re.Match[str], *, capitals: bool) -> bool:
    """Whether a single word is the name and not the word that it looks like."""
    word, start, end = match[0], match.start(), match.end()
    if _TITLE_BEFORE.search(text, max(0, start - 20), start):
        return True
    if word.lower() not in COMMON and len(word) > 3:
        return True
    # "seen by Rose today": a capital inside a sentence, between words that have none
    before, after = text[max(0, start - 2) : start], text[end : end + 2]
    inside = len(before) == 2 and before[1] == " " and (before[0].islower() or before[0] == ",")
    follows = not after or (not after[0].isalnum() and after[0] not in "-/" and not after[1:].isupper())
    return not capitals and word[0].isupper() and word[1:].islower() and inside and follows
