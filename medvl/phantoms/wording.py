"""Reports of the phantoms: sentences made from findings, never the other way round.

Each sentence is a :class:`Statement` that remembers what it says, so that hallucination can be
measured later. A report's length is drawn before its content and filled with negations and normal
statements, so that length tells nothing about disease.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np

from medvl.phantoms.truth import FINDINGS, Finding
from medvl.phantoms.vocabulary import (
    COMPARISONS,
    IMPRESSION_NORMAL,
    INDICATIONS,
    LOBES,
    NEGATED,
    NORMAL,
    NORMAL_LUNGS,
    POSITIVE,
    SEVERITY_WORDS,
    SHORT,
    SIZE_WORDS,
    TERMS,
    UNOBSERVABLE,
)

__all__ = ["Statement", "Writing", "boilerplate", "write_report"]

Style = Literal["upper", "title", "inline", "impression_only", "plain"]
STYLES: tuple[Style, ...] = ("upper", "title", "inline", "impression_only", "plain")
_STYLE_CHANCE = (0.30, 0.20, 0.15, 0.20, 0.15)


@dataclass(frozen=True)
class Statement:
    """One sentence and what it says.

    Attributes:
        text: the words.
        kind: ``"finding"``, ``"negation"``, ``"normal"`` or ``"unobservable"``.
        labels: the findings that it states or denies.
        category: of an unobservable sentence: ``"history"``, ``"laboratory"``, …
        section: where it stands: ``"indication"``, ``"comparison"``, ``"findings"``, ``"impression"``
            or ``"body"``.
    """

    text: str
    kind: Literal["finding", "negation", "normal", "unobservable"]
    labels: tuple[str, ...] = ()
    category: str = ""
    section: str = "findings"


@dataclass(frozen=True)
class Writing:
    """A whole report.

    Attributes:
        text: the report with its headings.
        style: how the headings are written.
        statements: every sentence in the order of the text.
    """

    text: str
    style: str
    statements: tuple[Statement, ...]

    def section(self, name: str) -> str:
        """Return the words of one section."""
        return " ".join(item.text for item in self.statements if item.section == name)


def write_report(
    rng: np.random.Generator,
    findings: Sequence[Finding],
    *,
    unobservable: float,
    context: int = 1,
    style: Style | None = None,
) -> Writing:
    """Write the report of one study.

    Args:
        rng: the study's own generator.
        findings: the truth; every one is stated at least once.
        unobservable: chance that the report holds one to three sentences that no image can show.
        context: 1 for an indication and a comparison where the style has headings, 0 for neither.
        style: how headings are written; drawn when None.

    Examples:
        >>> writing = write_report(np.random.default_rng(0), (), unobservable=0.0, style="upper")
        >>> "FINDINGS:" in writing.text
        True
    """
    style = style or STYLES[int(rng.choice(len(STYLES), p=_STYLE_CHANCE))]
    budget = int(rng.integers(24, 50))
    short_budget = int(rng.integers(11, 21))
    extra = _unobservable_lines(rng) if rng.random() < unobservable else []
    parts: list[Statement] = []
    if context and style not in ("impression_only", "plain"):
        parts.append(_context(rng, INDICATIONS, "indication", "history"))
        parts.append(_context(rng, COMPARISONS, "comparison", "prior"))
    if style != "impression_only":
        body = _fill(rng, findings, budget, formal=True)
        keep = extra if style == "plain" else extra[1:]
        extra = [] if style == "plain" else extra[:1]
        body = _shuffled(rng, body + keep)
        section = "body" if style == "plain" else "findings"
        parts += [replace(item, section=section) for item in body]
    if style != "plain":
        summary = _shuffled(rng, _fill(rng, findings, short_budget, formal=False)) + extra
        parts += [replace(item, section="impression") for item in summary]
    numbered = style != "plain" and rng.random() < 0.25
    return Writing(_lay_out(parts, style, numbered=bool(numbered)), style, tuple(parts))


@cache
def boilerplate(seed: int, *, count: int, unobservable: float, context: int) -> tuple[Writing, ...]:
    """Return the normal reports that a set repeats word for word, styles in the usual shares."""
    chances = np.cumsum(_STYLE_CHANCE)
    styles = [STYLES[int(np.searchsorted(chances, (index + 0.5) / count))] for index in range(count)]
    return tuple(
        write_report(
            np.random.default_rng([seed, 5, index]),
            (),
            unobservable=unobservable,
            context=context,
            style=style,
        )
        for index, style in enumerate(styles)
    )


def _words(items: Sequence[Statement]) -> int:
    return sum(len(item.text.split()) for item in items)


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _shuffled(rng: np.random.Generator, items: Sequence[Statement]) -> list[Statement]:
    return [items[int(index)] for index in rng.permutation(len(items))]


def _fill(
    rng: np.random.Generator, findings: Sequence[Finding], budget: int, *, formal: bool
) -> list[Statement]:
    """State every finding, deny absent ones with p = 0.5, then add statements up to the word budget."""
    present = [finding.kind for finding in findings]
    stated = [_positive(rng, finding, formal=formal) for finding in findings]
    absent = [kind for kind in FINDINGS if kind not in present]
    chance = 0.5 if formal else 0.25
    denied = [kind for kind in absent if rng.random() < chance]
    later = [kind for kind in absent if kind not in denied]
    if not formal and not findings:
        stated.append(Statement(_pick(rng, IMPRESSION_NORMAL), "normal"))
    stated += _negations(rng, denied)
    normals = [Statement(text, "normal") for text in NORMAL]
    if not set(present) & {"nodule", "consolidation", "interstitial_edema", "pneumothorax"}:
        normals.append(Statement(_pick(rng, NORMAL_LUNGS), "normal"))
    fillers = _shuffled(rng, normals)
    if not formal:
        fillers = _shuffled(rng, [_negation(rng, kind) for kind in later]) + fillers
    room = budget - _words(stated)
    for item in fillers:
        length = len(item.text.split())
        if length <= room + 2:
            stated.append(item)
            room -= length
    return stated


def _positive(rng: np.random.Generator, finding: Finding, *, formal: bool) -> Statement:
    zone = "mid" if finding.zone == "middle" and rng.random() < 0.5 else finding.zone
    place = f"{finding.side} {zone} zone"
    if (finding.side, finding.zone) in LOBES and rng.random() < 0.25:
        place = LOBES[finding.side, finding.zone]
    severity = _pick(rng, SEVERITY_WORDS[finding.severity])
    words = {
        "size": _pick(rng, SIZE_WORDS[finding.size]),
        "severity": severity,
        "degree": {"slight": "slightly", "minimal": "minimally", "marked": "markedly"}.get(
            severity, severity + "ly"
        ),
        "texture": {"mild": "faint", "moderate": "patchy", "severe": "dense"}[finding.severity],
        "side": finding.side,
        "place": place,
        "mm": str(finding.diameter_mm),
        "plural": "s" if finding.side == "bilateral" else "",
        "angle": "both costophrenic angles"
        if finding.side == "bilateral"
        else f"the {finding.side} CP angle",
    }
    text = _pick(rng, POSITIVE[finding.kind] if formal else SHORT[finding.kind]).format(**words)
    return Statement(text[0].upper() + text[1:], "finding", (finding.kind,))


def _negation(rng: np.random.Generator, kind: str) -> Statement:
    return Statement(_pick(rng, NEGATED[kind]), "negation", (kind,))


def _negations(rng: np.random.Generator, kinds: Sequence[str]) -> list[Statement]:
    """Deny each kind; now and then several in one sentence."""
    joint = [kind for kind in kinds if kind in TERMS]
    if len(joint) < 2 or rng.random() < 0.5:
        return [_negation(rng, kind) for kind in kinds]
    terms = [TERMS[kind] for kind in joint]
    text = f"No {', '.join(terms[:-1])} or {terms[-1]}."
    return [
        Statement(text, "negation", tuple(joint)),
        *(_negation(rng, kind) for kind in kinds if kind not in joint),
    ]


def _unobservable_lines(rng: np.random.Generator) -> list[Statement]:
    categories = sorted(UNOBSERVABLE)
    chosen = rng.permutation(len(categories))[: 1 + int(rng.choice(3, p=(0.6, 0.3, 0.1)))]
    return [
        Statement(
            _pick(rng, UNOBSERVABLE[categories[int(index)]]), "unobservable", (), categories[int(index)]
        )
        for index in chosen
    ]


def _context(rng: np.random.Generator, options: Sequence[str], section: str, category: str) -> Statement:
    return Statement(_pick(rng, options), "unobservable", (), category, section)


def _lay_out(parts: Sequence[Statement], style: Style, *, numbered: bool) -> str:
    names = list(dict.fromkeys(item.section for item in parts))
    blocks = []
    for name in names:
        texts = [item.text for item in parts if item.section == name]
        if name == "impression" and numbered and len(texts) > 1:
            joint = " " if style == "inline" else "\n"
            words = joint.join(f"{number}. {text}" for number, text in enumerate(texts, 1))
        else:
            words = " ".join(texts)
        heading = {"upper": name.upper(), "impression_only": name.upper(), "plain": ""}.get(
            style, name.capitalize()
        )
        gap = "\n" if style == "title" else " "
        blocks.append(f"{heading}:{gap}{words}" if heading else words)
    return {"inline": " ", "title": "\n\n"}.get(style, "\n").join(blocks)
