"""Reports of the CT phantoms, organ by organ: sentences made from findings, never the other way round.

Each sentence is a :class:`medvl.phantoms.wording.Statement` that remembers what it says. The number of
words is drawn before their content and filled with normal organs and denials, so that length tells
nothing about disease.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from medvl.phantoms.ct_truth import CtFinding
from medvl.phantoms.ct_words import (
    CT_COMPARISONS,
    CT_IMPRESSION_NORMAL,
    CT_INDICATIONS,
    CT_NEGATED,
    CT_NORMAL,
    CT_POSITIVE,
    CT_SHORT,
    CT_TECHNIQUES,
    CT_UNOBSERVABLE,
    HEADINGS,
    MATERIAL_WORDS,
    ORGANS,
)
from medvl.phantoms.vocabulary import SEVERITY_WORDS, SIZE_WORDS
from medvl.phantoms.wording import Statement

__all__ = ["CtStatement", "CtWriting", "state_finding", "write_ct_report"]

CtStyle = Literal["organs", "free", "plain"]
CT_STYLES: tuple[CtStyle, ...] = ("organs", "free", "plain")
_STYLE_CHANCE = (0.45, 0.40, 0.15)
_ORGAN_OF = {kind: organ for organ, kinds in ORGANS.items() for kind in kinds}
_SEVERITY = {"small": "mild", "medium": "moderate", "large": "severe"}


@dataclass(frozen=True)
class CtStatement:
    """One sentence with the organ that it speaks of; "" for none.

    Attributes:
        said: the sentence and what it says.
        organ: a key of :data:`medvl.phantoms.ct_words.ORGANS`.
    """

    said: Statement
    organ: str = ""


@dataclass(frozen=True)
class CtWriting:
    """A whole report.

    Attributes:
        text: the report with its headings.
        style: ``"organs"`` (a paragraph an organ), ``"free"`` (findings and impression) or ``"plain"``.
        statements: every sentence in the order of the text.
    """

    text: str
    style: CtStyle
    statements: tuple[CtStatement, ...]

    def of_organ(self, organ: str) -> str:
        """Return what the findings say of one organ."""
        return " ".join(
            item.said.text
            for item in self.statements
            if item.organ == organ and item.said.section != "impression"
        )


def write_ct_report(
    rng: np.random.Generator,
    findings: Sequence[CtFinding],
    *,
    contrast: int = 0,
    unobservable: float,
    context: int = 1,
    style: CtStyle | None = None,
) -> CtWriting:
    """Write the report of one study.

    Args:
        rng: the study's own generator.
        findings: the truth; every one is stated at least once.
        contrast: 1 with a contrast medium, which the technique tells.
        unobservable: chance that the report holds one or two sentences that no image can show.
        context: 1 for indication, technique and comparison, each of which may still be missing; 0 for none.
        style: how it is laid out; drawn when None.

    Examples:
        >>> writing = write_ct_report(np.random.default_rng(0), (), unobservable=0.0, context=0)
        >>> all(item.said.kind in ("normal", "negation") for item in writing.statements)
        True
    """
    style = style or CT_STYLES[int(rng.choice(len(CT_STYLES), p=_STYLE_CHANCE))]
    budget, short_budget = int(rng.integers(38, 66)), int(rng.integers(16, 33))
    extra = _unobservable_lines(rng) if rng.random() < unobservable else []
    parts: list[CtStatement] = []
    if context and style != "plain":
        for options, section, category in (
            (CT_INDICATIONS, "indication", "history"),
            (CT_TECHNIQUES[contrast], "technique", "technique"),
            (CT_COMPARISONS, "comparison", "prior"),
        ):
            if rng.random() < 0.7:
                parts.append(
                    CtStatement(Statement(_pick(rng, options), "unobservable", (), category, section))
                )
    body = _body(rng, findings, budget)
    if style == "free" and rng.random() < 0.5:
        organs = list(dict.fromkeys(item.organ for item in body))
        rank = dict(zip(organs, rng.permutation(len(organs)).tolist(), strict=True))
        body.sort(key=lambda item: rank[item.organ])
    section = "body" if style == "plain" else "findings"
    parts += [_moved(item, section) for item in body]
    parts += [CtStatement(item) for item in _in_section(extra, section)]
    if style != "plain":
        parts += [_moved(item, "impression") for item in _impression(rng, findings, short_budget)]
    return CtWriting(_lay_out(rng, parts, style), style, tuple(parts))


def state_finding(rng: np.random.Generator, finding: CtFinding, *, formal: bool = True) -> str:
    """Return one sentence that states a finding: its place, side and size as far as they mean something.

    Examples:
        >>> nodule = CtFinding("lung_nodule", "left", "left upper lobe", "medium", 18)
        >>> "left upper lobe" in state_finding(np.random.default_rng(0), nodule)
        True
    """
    severity = _pick(rng, SEVERITY_WORDS[_SEVERITY[finding.size]])
    if finding.kind == "medical_material":
        options: Sequence[str] = MATERIAL_WORDS[finding.place]
    else:
        options = (CT_POSITIVE if formal else CT_SHORT)[finding.kind]
    text = _pick(rng, options).format(
        mm=finding.mm,
        cm=f"{finding.mm / 10:.1f}",
        place=finding.place,
        side=finding.side,
        size=_pick(rng, SIZE_WORDS[finding.size]),
        severity=severity,
        degree={"slight": "slightly", "minimal": "minimally", "marked": "markedly"}.get(
            severity, severity + "ly"
        ),
        plural="s" if finding.side == "bilateral" else "",
    )
    return text[0].upper() + text[1:]


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _moved(item: CtStatement, section: str) -> CtStatement:
    return CtStatement(_in_section([item.said], section)[0], item.organ)


def _in_section(items: Sequence[Statement], section: str) -> list[Statement]:
    return [Statement(item.text, item.kind, item.labels, item.category, section) for item in items]


def _body(rng: np.random.Generator, findings: Sequence[CtFinding], budget: int) -> list[CtStatement]:
    """State every finding; fill up with denials and normal organs, as many words as were drawn."""
    present = {finding.kind for finding in findings}
    stated = [
        CtStatement(
            Statement(state_finding(rng, finding), "finding", (finding.kind,)), _ORGAN_OF[finding.kind]
        )
        for finding in findings
    ]
    ill = {item.organ for item in stated}
    fillers: list[CtStatement] = []
    for organ, kinds in ORGANS.items():
        denied = [kind for kind in kinds if kind not in present and rng.random() < 0.45]
        said = [
            CtStatement(Statement(_pick(rng, CT_NEGATED[kind]), "negation", (kind,)), organ)
            for kind in denied
        ]
        if organ not in ill and rng.random() < 0.75:
            said.insert(0, CtStatement(Statement(_pick(rng, CT_NORMAL[organ]), "normal"), organ))
        fillers += said
    shuffled = [fillers[index] for index in rng.permutation(len(fillers)).tolist()]
    items = stated + _fitting(shuffled, budget - _words(stated))
    order = {organ: rank for rank, organ in enumerate(ORGANS)}
    return sorted(items, key=lambda item: order[item.organ])


def _impression(rng: np.random.Generator, findings: Sequence[CtFinding], budget: int) -> list[CtStatement]:
    if not findings:
        items = [CtStatement(Statement(_pick(rng, CT_IMPRESSION_NORMAL), "normal"))]
    else:
        items = [
            CtStatement(
                Statement(state_finding(rng, finding, formal=False), "finding", (finding.kind,)),
                _ORGAN_OF[finding.kind],
            )
            for finding in findings
        ]
    present = {finding.kind for finding in findings}
    absent = [kind for kind in CT_NEGATED if kind not in present]
    denials = [
        CtStatement(Statement(_pick(rng, CT_NEGATED[kind]), "negation", (kind,)), _ORGAN_OF[kind])
        for kind in (absent[index] for index in rng.permutation(len(absent)).tolist())
    ]
    return items + _fitting(denials, budget - _words(items))


def _words(items: Sequence[CtStatement]) -> int:
    return sum(len(item.said.text.split()) for item in items)


def _fitting(items: Sequence[CtStatement], room: int) -> list[CtStatement]:
    """Return the statements that fill so many words, in their order."""
    kept = []
    for item in items:
        length = _words([item])
        if length <= room + 2:
            kept.append(item)
            room -= length
    return kept


def _unobservable_lines(rng: np.random.Generator) -> list[Statement]:
    categories = sorted(CT_UNOBSERVABLE)
    chosen = rng.permutation(len(categories))[: 1 + int(rng.random() < 0.4)].tolist()
    return [
        Statement(_pick(rng, CT_UNOBSERVABLE[categories[index]]), "unobservable", (), categories[index])
        for index in chosen
    ]


def _lay_out(rng: np.random.Generator, parts: Sequence[CtStatement], style: CtStyle) -> str:
    blocks: list[str] = []
    upper = rng.random() < 0.5
    for section in dict.fromkeys(item.said.section for item in parts):
        items = [item for item in parts if item.said.section == section]
        if style == "organs" and section == "findings":
            lines = []
            for organ in dict.fromkeys(item.organ for item in items):
                words = " ".join(item.said.text for item in items if item.organ == organ)
                lines.append(f"{_pick(rng, HEADINGS[organ])}: {words}" if organ else words)
            words = "\n".join(lines)
        else:
            words = " ".join(item.said.text for item in items)
        heading = "" if section == "body" else section.upper() if upper else section.capitalize()
        gap = "\n" if style == "organs" and section == "findings" else " "
        blocks.append(f"{heading}:{gap}{words}" if heading else words)
    return "\n".join(blocks)
