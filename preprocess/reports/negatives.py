"""Reports with one clinical error each: fluent, near in words, other in meaning, checked that they are."""

from __future__ import annotations

import functools
import hashlib
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from medvl.corpus import ReportCase, Wording
from medvl.preprocess.reports.facts import Facts, facts_of
from medvl.preprocess.reports.wording import (
    PARTS,
    articles,
    capital,
    fill,
    load_wordings,
    split_end,
    with_article,
)

__all__ = ["ERRORS", "HELD_OUT_ERRORS", "hard_negatives"]

ERRORS = (
    "negation",
    "side",
    "severity",
    "location",
    "measurement",
    "unit",
    "change",
    "count",
    "finding",
    "certainty",
    "insertion",
)
"""What an error can be."""
HELD_OUT_ERRORS = frozenset({"unit", "finding", "certainty"})
"""Errors that only the part ``test`` has."""


def hard_negatives(case: ReportCase, *, seed: int, part: str = "train") -> tuple[Wording, ...]:
    """Return a report with one error, at most once for each kind of error that fits it.

    What an error must do is checked: ``negation``, ``finding``, ``certainty`` and ``insertion`` move the
    state of a finding in the report as a whole; ``side`` moves sides and nothing else, ``measurement`` and
    ``unit`` a number with its unit; ``severity``, ``location``, ``change`` and ``count`` put a word for its
    opposite in a sentence that claims something. An error that cannot be made here is not returned.

    Args:
        case: the report.
        seed: with the report's words it decides every draw.
        part: ``train`` has the errors for training, ``test`` those of :data:`HELD_OUT_ERRORS`.

    Raises:
        UsageError: an unknown part.

    Examples:
        >>> case = ReportCase("c", "p", "train", ("There is a small left effusion.",))
        >>> {wording.kind: wording.sentences[0] for wording in hard_negatives(case, seed=0)}["side"]
        'There is a small right effusion.'
    """
    load_wordings(part)
    whole = facts_of(case.sentences)
    made = []
    for kind in ERRORS:
        if (kind in HELD_OUT_ERRORS) != (part == "test"):
            continue
        words = f"{seed}:{kind}:" + "\n".join(case.sentences)
        draw = random.Random(hashlib.blake2b(words.encode("utf-8", "replace"), digest_size=8).digest())
        for sentences in _candidates(case.sentences, kind, draw):
            if _wrong(kind, whole, facts_of(sentences)):
                made.append(Wording(kind, sentences))
                break
    return tuple(made)


def _candidates(sentences: tuple[str, ...], kind: str, draw: random.Random) -> Iterator[tuple[str, ...]]:
    """Yield the report with one error, at places in random order."""
    if kind == "insertion":
        for sentence in draw.sample(_table()["insertion"], len(_table()["insertion"])):
            place = draw.randint(0, len(sentences))
            yield (*sentences[:place], sentence, *sentences[place:])
        return
    places = draw.sample(range(len(sentences)), len(sentences))
    # what is there matters more than what is not: sentences that claim something come first
    for place in sorted(places, key=lambda place: not _claims(sentences[place])):
        body, end = split_end(sentences[place])
        for said in _MAKERS[kind](body, draw):
            if capital(said) + end not in sentences:
                yield (*sentences[:place], capital(said) + end, *sentences[place + 1 :])


def _claims(sentence: str) -> bool:
    return any(state != "absent" for state in facts_of([sentence]).states.values())


def _wrong(kind: str, before: Facts, after: Facts) -> bool:
    """Say whether an error moved what it must, and nothing that it must not."""
    names = before.states.keys() | after.states.keys()
    moves = [(before.states.get(name), after.states.get(name)) for name in names]
    moves = [pair for pair in moves if pair[0] != pair[1]]
    numbers, sides = before.numbers != after.numbers, before.sides != after.sides
    if kind == "negation":
        return not numbers and any(None not in pair and "absent" in pair for pair in moves)
    if kind in ("finding", "insertion"):
        return bool(moves) and not numbers
    if kind == "certainty":
        return not (numbers or sides) and any("uncertain" in pair and "absent" not in pair for pair in moves)
    if kind == "side":
        return sides and not (moves or numbers)
    if kind in ("measurement", "unit"):
        return numbers and not sides
    return not (numbers or sides)


@functools.cache
def _table() -> dict[str, Any]:
    path = Path(__file__).with_name("errors_en.yaml")
    return dict(yaml.load(path.read_text("utf-8"), Loader=yaml.BaseLoader))  # strings alone: "no" is a word


@functools.cache
def _rules(kind: str) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(find, re.IGNORECASE), put) for find, put in _table()[kind])


def _rewritten(kind: str, body: str) -> Iterator[str]:
    """Yield a sentence after the expressions that fit it, one at a time."""
    for find, put in _rules(kind):
        match = find.search(body)
        if match:
            said = match.expand(put.replace("{a} ", ""))
            if put.startswith("possible"):
                said = "possible " + body[:1].lower() + body[1:]
            if "{a} " in put:  # such a form opens with its noun
                noun = match["x"]
                said = with_article(noun[:1].lower() + noun[1:]) + said[len(noun) :]
            yield articles(body[: match.start()] + said + body[match.end() :])


def _negation(body: str, draw: random.Random) -> Iterator[str]:
    for part in PARTS:
        rules = load_wordings(part)
        denied = rules.noun(body, meaning="absent")
        if denied:
            yield _claimed(denied, draw)
            return
        claimed = rules.noun(body, meaning="present")
        if claimed and (" is " in body or " are " in body or "there" in body.lower()):
            yield fill("there {is} no {x}", claimed)
            return
    yield from _rewritten("negation", body)


def _claimed(denied: str, draw: random.Random) -> str:
    """Claim what was denied; of several things one."""
    things = [thing for thing in re.split(r",\s*(?:or\s+|nor\s+)?|\s+or\s+|\s+nor\s+", denied) if thing]
    if len(things) == 1:
        return fill("there {is} {a} {x}", denied)
    chosen = things.pop(draw.randrange(len(things)))
    others = " or ".join([", ".join(things[:-1]), things[-1]]) if len(things) > 1 else things[0]
    return f"{fill('there {is} {a} {x}', chosen)} but no {others}"


def _swap(kind: str, *, both_ways: bool) -> Callable[[str, random.Random], Iterator[str]]:
    """Put a word for its opposite: in the whole sentence for sides, else once."""

    def made(body: str, draw: random.Random) -> Iterator[str]:
        exception = _table().get(f"{kind}_except")
        if exception and re.search(exception, body, re.IGNORECASE):
            return
        opposite, finder = _opposites(kind, both_ways=both_ways)
        found = list(finder.finditer(body))
        if not found:
            return
        if kind == "side":
            if len({match[0].lower()[:4] for match in found}) == 1:
                yield finder.sub(lambda match: _as(match[0], opposite[match[0].lower()]), body)
            return
        for match in draw.sample(found, len(found)):
            said = _as(match[0], opposite[match[0].lower()])
            if said.lower() in body.lower():
                continue
            yield articles(body[: match.start()] + said + body[match.end() :])

    return made


@functools.cache
def _opposites(kind: str, *, both_ways: bool) -> tuple[dict[str, str], re.Pattern[str]]:
    opposite: dict[str, str] = {}
    for one, other in _table()[kind]:
        opposite.setdefault(one, other)
        if both_ways:
            opposite.setdefault(other, one)
    longest = sorted(map(re.escape, opposite), key=len, reverse=True)
    return opposite, re.compile(rf"(?<![\w-])(?:{'|'.join(longest)})(?![\w-])", re.IGNORECASE)


def _as(model: str, word: str) -> str:
    if model.isupper():
        return word.upper()
    return capital(word) if model[:1].isupper() else word


_SIZE = re.compile(
    r"(?<![\d.,/-])(?P<values>\d+(?:[.,]\d+)?(?:\s*[x×]\s*\d+(?:[.,]\d+)?){0,2})(?P<gap>[\s-]*)(?P<unit>mm|cm)\b"
)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)?")
_FACTORS = (0.5, 2.0, 3.0)
_LARGEST_SWAPPED = 10.0


def _measurement(body: str, draw: random.Random) -> Iterator[str]:
    found = list(_SIZE.finditer(body))
    for match in draw.sample(found, len(found)):
        factor = draw.choice(_FACTORS)
        values = _NUMBER.sub(functools.partial(_scaled, factor=factor), match["values"])
        yield body[: match.start()] + values + match["gap"] + match["unit"] + body[match.end() :]


def _scaled(found: re.Match[str], *, factor: float) -> str:
    """Return a number times a factor, as exact as it was written."""
    number = found[0]
    places = len(re.split(r"[.,]", number)[1]) if re.search(r"[.,]", number) else 0
    value = float(number.replace(",", ".")) * factor
    if round(value, places) <= 0 or (places == 0 and value != int(value)):
        value = float(number.replace(",", ".")) * 2
    return f"{value:.{places}f}".replace(".", "," if "," in number else ".")


def _unit(body: str, draw: random.Random) -> Iterator[str]:
    found = [m for m in _SIZE.finditer(body) if _largest(m["values"]) <= _LARGEST_SWAPPED]
    for match in draw.sample(found, len(found)):
        unit = "cm" if match["unit"] == "mm" else "mm"
        yield body[: match.start("unit")] + unit + body[match.end("unit") :]


def _largest(values: str) -> float:
    return max(float(number.replace(",", ".")) for number in _NUMBER.findall(values))


def _many(noun: str) -> str:
    if noun.endswith("is"):
        return noun[:-2] + "es"
    if noun.endswith(("a",)) and noun == "bulla":
        return "bullae"
    if noun.endswith("y"):
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith("s") else "s")


@functools.cache
def _counted() -> tuple[re.Pattern[str], re.Pattern[str], dict[str, str]]:
    one = {_many(noun): noun for noun in _table()["count"]}
    kind = r"(?P<kind>(?:(?!of\b|in\b|and\b|no\b|is\b|the\b)[\w-]+ ){0,3}?)"
    return (
        re.compile(rf"\b(?:an?|single|solitary) {kind}(?P<noun>{'|'.join(one.values())})\b", re.IGNORECASE),
        re.compile(
            rf"\b(?:multiple|several|numerous|many|a few|few) {kind}(?P<noun>{'|'.join(one)})\b",
            re.IGNORECASE,
        ),
        one,
    )


_SINGULAR = {"are": "is", "were": "was", "have": "has"}
_PLURAL = {one: many for many, one in _SINGULAR.items()}


def _count(body: str, draw: random.Random) -> Iterator[str]:
    if re.search(_table()["count_except"], body, re.IGNORECASE):
        return
    single, several, one = _counted()
    if match := single.search(body):
        noun = _many(match["noun"].lower())
        yield _agree(body, match, f"multiple {match['kind']}{noun}", _PLURAL)
    elif match := several.search(body):
        noun = one[match["noun"].lower()]
        yield _agree(body, match, f"a single {match['kind']}{noun}", _SINGULAR)


def _agree(body: str, match: re.Match[str], said: str, verbs: dict[str, str]) -> str:
    """Put a phrase in, and let "there is" before it or the first verb after it agree."""
    find = re.compile(rf"\b(?:{'|'.join(verbs)})\b")
    before, after = body[: match.start()], body[match.end() :]
    if re.search(r"\bthere \w+ $", before, re.IGNORECASE):
        before = find.sub(lambda verb: verbs[verb[0]], before)
    else:
        after = find.sub(lambda verb: verbs[verb[0]], after, count=1)
    return before + said + after


def _certainty(body: str, draw: random.Random) -> Iterator[str]:
    yield from _rewritten("certainty", body)


_MAKERS: dict[str, Callable[[str, random.Random], Iterator[str]]] = {
    "negation": _negation,
    "side": _swap("side", both_ways=True),
    "severity": _swap("severity", both_ways=True),
    "location": _swap("location", both_ways=True),
    "measurement": _measurement,
    "unit": _unit,
    "change": _swap("change", both_ways=False),
    "count": _count,
    "finding": _swap("finding", both_ways=False),
    "certainty": _certainty,
}
