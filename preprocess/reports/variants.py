"""Reports in other words: paraphrases, abbreviations, styles and parts, kept only where no fact moves."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from medvl.corpus import ReportCase, Wording
from medvl.preprocess.reports.facts import contradicts, degrees, expanded, facts_of, moved
from medvl.preprocess.reports.findings import VOCABULARIES, sentence_states
from medvl.preprocess.reports.rewrite import PROMPT, Generator, rewrite_sentences
from medvl.preprocess.reports.wording import (
    Wordings,
    capital,
    load_wordings,
    plural,
    split_end,
    telegraphic,
    with_article,
)
from medvl.records import LabelState
from medvl.specs.abbreviations import contract

__all__ = ["HELD_OUT", "KINDS", "prompted_variants", "variants"]

KINDS = (
    "paraphrase",
    "expansion",
    "contraction",
    "impression",
    "findings",
    "telegraphic",
    "sentences",
    "headings",
    "capitals",
    "numbering",
    "shuffle",
    "mixed",
)
"""What a rule-made variant can be."""
HELD_OUT = frozenset({"numbering", "headings"})
"""Kinds that only the part ``test`` has, besides its own table of paraphrases."""
_PARTIAL = frozenset({"impression", "findings"})


def variants(
    case: ReportCase, *, seed: int, part: str = "train", refused: Counter[str] | None = None
) -> tuple[Wording, ...]:
    """Return other wordings of a report, at most one of each kind, each with the same facts.

    A wording is kept when the states of all findings (both vocabularies), the numbers with their units, the
    sides, the comparators and the placeholders are those of the report; ``impression`` and ``findings`` are
    kept when nothing in them contradicts it. A kind that changes nothing here is not returned.

    Args:
        case: the report.
        seed: with the report's words it decides every draw.
        part: ``train`` has the rules for training, ``test`` those that are held out: its own table of
            paraphrases, and the kinds of :data:`HELD_OUT`. Abbreviations, styles and parts of the report
            have no second set of rules; they belong to ``train``.
        refused: counts, where given, what the fact check refused, as ``kind: fact``.

    Raises:
        UsageError: an unknown part.

    Examples:
        >>> sentences = ("No pneumothorax.", "A 4 mm nodule in the right upper lobe.")
        >>> case = ReportCase("c", "p", "train", sentences)
        >>> {wording.kind: wording.sentences for wording in variants(case, seed=0)}["contraction"]
        ('No PTX.', 'A 4 mm nodule in the RUL.')
    """
    rules = load_wordings(part)
    kept: list[Wording] = []
    seen = {case.sentences}
    whole = facts_of(case.sentences)
    for kind in KINDS:
        if (kind in HELD_OUT) != (part == "test") and kind not in ("paraphrase", "mixed"):
            continue
        made = _MAKERS[kind](case, rules, _random(case, seed, f"{part}:{kind}"))
        if not made or made in seen:
            continue
        facts = facts_of([_undecorated(sentence) for sentence in made])
        why = contradicts(whole, facts) if kind in _PARTIAL else moved(whole, facts)
        if why:
            if refused is not None:
                refused[f"{kind}: {why}"] += 1
            continue
        seen.add(made)
        kept.append(Wording(kind, made))
    return tuple(kept)


def prompted_variants(
    cases: Iterable[ReportCase],
    generator: Generator,
    *,
    cache: Path,
    prompt: str = PROMPT,
    refused: Counter[str] | None = None,
) -> Iterator[tuple[Wording, ...]]:
    """Yield for each report the wording of a local model, where it changed something and no fact moved.

    Each sentence is proposed and checked as :func:`~medvl.preprocess.reports.rewrite.rewrite_sentences` does
    it, with its cache, and must keep its words of severity, change, number and place up to synonyms; then the
    whole wording passes the fact check of :func:`variants`.

    Args:
        cases: reports.
        generator: the model; see :func:`medvl.encoders.generator.load_generator`.
        cache: of the model's answers, a JSON-lines file.
        prompt: text with ``{sentence}`` once.
        refused: counts, where given, what was refused.

    Raises:
        ConfigError: the prompt does not hold ``{sentence}`` once.
    """
    listed = list(cases)
    answers = rewrite_sentences(
        [case.sentences for case in listed], generator, states=_states, cache=cache, prompt=prompt
    )
    for case, answer in zip(listed, answers, strict=True):
        if refused is not None:
            refused.update(f"sentence: {why}" for why in answer.refused if why)
        said = []
        for before, after in zip(case.sentences, answer.sentences, strict=True):
            same_degree = degrees(before) == degrees(after)
            said.append(after if same_degree else before)
            if refused is not None and not same_degree:
                refused["sentence: degree"] += 1
        why = moved(facts_of(case.sentences), facts_of(said))
        if why and refused is not None:
            refused[f"prompted: {why}"] += 1
        same = tuple(said) == case.sentences
        yield () if same or why else (Wording("prompted", tuple(said)),)


def _states(sentence: str) -> dict[str, LabelState]:
    return {
        f"{vocabulary}.{finding}": state
        for vocabulary in VOCABULARIES
        for finding, state in sentence_states(sentence, vocabulary=vocabulary).items()
    }


def _random(case: ReportCase, seed: int, salt: str) -> random.Random:
    words = f"{seed}:{salt}:" + "\n".join(case.sentences)
    return random.Random(hashlib.blake2b(words.encode("utf-8", "replace"), digest_size=8).digest())


# --- one maker a kind ---------------------------------------------------------------------------------------

Maker = Callable[[ReportCase, Wordings, random.Random], tuple[str, ...]]


def _reworded(sentence: str, rules: Wordings, draw: random.Random, tries: int = 3) -> str:
    """Return a sentence in other words, or as it was where no try keeps its facts."""
    before = facts_of([sentence])
    forms = rules.recast(sentence, draw=draw) if draw.random() < 0.7 else iter(())
    for _ in range(tries):
        said = rules.rephrase(next(forms, sentence), draw=draw)
        if said != sentence and not moved(before, facts_of([said])):
            return said
    return sentence


def _paraphrase(case: ReportCase, rules: Wordings, draw: random.Random) -> tuple[str, ...]:
    return tuple(_reworded(sentence, rules, draw) for sentence in case.sentences)


def _expansion(case: ReportCase, rules: Wordings, draw: random.Random) -> tuple[str, ...]:
    return tuple(expanded(sentence) for sentence in case.sentences)


def _contraction(case: ReportCase, rules: Wordings, draw: random.Random) -> tuple[str, ...]:
    return tuple(contract(sentence) for sentence in case.sentences)


def _impression(case: ReportCase, rules: Wordings, draw: random.Random) -> tuple[str, ...]:
    return case.impression if case.findings else ()


def _findings(case: ReportCase, rules: Wordings, draw: random.Random) -> tuple[str, ...]:
    return case.findings if case.impression else ()


def _each(case: ReportCase, change: Callable[[str], str]) -> tuple[str, ...]:
    """Change each sentence whose facts stay."""
    return tuple(
        made if not moved(facts_of([sentence]), facts_of([made := change(sentence)])) else sentence
        for sentence in case.sentences
    )


def _telegraphic(case: ReportCase, rules: Wordings, draw: random.Random) -> tuple[str, ...]:
    return _each(case, telegraphic)


_BARE_NO = re.compile(r"no (?P<x>[^.;:]+)", re.IGNORECASE)
_HAS_VERB = re.compile(
    r"\b(?:is|are|was|were|be|been|has|have|had|may|can|could|appears?|remains?|shows?|seen|noted|there|seems?"
    r"|demonstrates?|identified|represents?|clear|normal|unremarkable|intact|stable|unchanged|within|consists?"
    r"|suggests?|increased|decreased|improved|without|recommended?|negative|no|\w+ing)\b",
    re.IGNORECASE,
)
_LONGEST_PHRASE = 9


def _whole_sentence(sentence: str) -> str:
    """Return "No effusion." as "There is no effusion.", "Small effusion." as "There is a small effusion."."""
    body, end = split_end(sentence)
    if not body or _HAS_VERB.search(body.removeprefix("No ")) or len(body.split()) > _LONGEST_PHRASE:
        return sentence
    denied = _BARE_NO.fullmatch(body)
    noun = denied["x"] if denied else body[:1].lower() + body[1:] if body[1:2].islower() else body
    if not _states(body) or not end or "[" in body or "?" in body:
        return sentence
    said = f"no {noun}" if denied else with_article(noun)
    return f"There {'are' if plural(noun) else 'is'} {said}{end}"


def _sentences(case: ReportCase, rules: Wordings, draw: random.Random) -> tuple[str, ...]:
    return _each(case, _whole_sentence)


def _headings(case: ReportCase, rules: Wordings, draw: random.Random) -> tuple[str, ...]:
    if not (case.findings and case.impression):
        return ()
    style = draw.choice((str.upper, capital))
    (first, *rest), (concludes, *others) = case.findings, case.impression
    return (
        f"{style('findings')}: {first}",
        *rest,
        f"{style(draw.choice(('impression', 'conclusion')))}: {concludes}",
        *others,
    )


def _capitals(case: ReportCase, rules: Wordings, draw: random.Random) -> tuple[str, ...]:
    return tuple(sentence.upper() for sentence in case.sentences)


def _numbering(case: ReportCase, rules: Wordings, draw: random.Random) -> tuple[str, ...]:
    mark = draw.choice(("{}. ", "{}) ", "- "))
    return tuple(mark.format(n) + sentence for n, sentence in enumerate(case.sentences, 1))


_MARK = re.compile(r"^(?:\d+[.)] |- |(?:findings|impression|conclusion): )", re.IGNORECASE)


def _undecorated(sentence: str) -> str:
    return _MARK.sub("", sentence)


def _shuffle(case: ReportCase, rules: Wordings, draw: random.Random) -> tuple[str, ...]:
    sections = [list(part) for part in (case.findings, case.impression) if part]
    if not sections or sum(map(len, sections)) != len(case.sentences):
        sections = [list(case.sentences)]
    for section in sections:
        draw.shuffle(section)
    draw.shuffle(sections)
    return tuple(sentence for section in sections for sentence in section)


def _mixed(case: ReportCase, rules: Wordings, draw: random.Random) -> tuple[str, ...]:
    """Say the report in other words, another style and another order at once."""
    steps: list[Maker] = [_paraphrase, _shuffle]
    steps.append(draw.choice((_telegraphic, _contraction, _sentences)))
    for step in steps:
        made = step(case, rules, draw)
        case = dataclasses.replace(case, sentences=made, findings=(), impression=())
    return case.sentences


_MAKERS: dict[str, Maker] = {
    "paraphrase": _paraphrase,
    "expansion": _expansion,
    "contraction": _contraction,
    "impression": _impression,
    "findings": _findings,
    "telegraphic": _telegraphic,
    "sentences": _sentences,
    "headings": _headings,
    "capitals": _capitals,
    "numbering": _numbering,
    "shuffle": _shuffle,
    "mixed": _mixed,
}
