"""Small chest films in memory with their reports: pixels and words of one truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from medvl.phantoms.chest import Frame
from medvl.phantoms.lesions import draw_chest
from medvl.phantoms.truth import FINDINGS, LEVELS, Finding, draw_body, draw_findings

__all__ = ["NEGATED", "TERMS", "Films", "draw_films", "prompts", "statement"]

TERMS = {
    "nodule": ("nodule", "rounded opacity"),
    "consolidation": ("consolidation", "airspace disease"),
    "pleural_effusion": ("pleural effusion", "pleural fluid"),
    "pneumothorax": ("pneumothorax", "free pleural air"),
    "cardiomegaly": ("cardiomegaly", "enlarged heart"),
    "interstitial_edema": ("interstitial edema", "vascular congestion"),
}
"""Two names of each finding; a report uses either."""

NEGATED = {finding: tuple(f"no {term}" for term in terms) for finding, terms in TERMS.items()}
_NORMAL = ("lungs are clear", "heart size is normal", "no acute abnormality", "bones are intact")
_LEVEL = LEVELS["easy"]
_FIELD_MM = 352.0


@dataclass(frozen=True)
class Films:
    """Films with the truth that drew them and the sentences that say it.

    Attributes:
        images: displayed brightness about 0, of roughly unit size.
        findings: what is on each film, with its boxes in pixels.
        reports: the sentences of each report.
        labels: 1 where a film shows a finding of :data:`medvl.phantoms.truth.FINDINGS`, else 0.
        key: equal where two films show the same set of findings.
    """

    images: Float32[np.ndarray, "films 1 height width"]
    findings: tuple[tuple[Finding, ...], ...]
    reports: tuple[tuple[str, ...], ...]
    labels: Float32[np.ndarray, "films labels"]
    key: Int64[np.ndarray, " films"]

    def __len__(self) -> int:
        """Return the number of films."""
        return len(self.reports)


def draw_films(
    n: int, *, seed: Sequence[int], size_px: int = 64, normal: float = 0.5, single: bool = False
) -> Films:
    """Draw ``n`` films, each of another body, and write their reports.

    Args:
        n: how many.
        seed: of bodies, findings, noise and words; equal seeds give equal films.
        size_px: height and width; the field is 352 mm wide whatever the size.
        normal: share of films without a finding.
        single: keep one finding of each film.

    Examples:
        >>> films = draw_films(3, seed=[0], size_px=16, normal=0.0, single=True)
        >>> films.images.shape, films.labels.sum(axis=1).tolist()
        ((3, 1, 16, 16), [1.0, 1.0, 1.0])
    """
    rng = np.random.default_rng(seed)
    frame = Frame(size_px, size_px, _FIELD_MM / size_px)
    images = np.empty((n, 1, size_px, size_px), np.float32)
    found: list[tuple[Finding, ...]] = []
    for row in range(n):
        body = draw_body(rng, female=int(rng.integers(2)))
        findings = () if rng.random() < normal else draw_findings(rng, level=_LEVEL)
        if single and findings:
            findings = (findings[int(rng.integers(len(findings)))],)
        plane, drawn = draw_chest(
            body, findings, frame, view="PA", contrast=_LEVEL.contrast, clutter=_LEVEL.clutter
        )
        noise = rng.standard_normal(plane.shape, dtype=np.float32)
        exposure = rng.uniform(0.92, 1.08)
        images[row, 0] = (exposure * plane + _LEVEL.noise * noise - 0.5) * 4
        found.append(drawn)
    labels = np.array(
        [[float(any(f.kind == name for f in findings)) for name in FINDINGS] for findings in found],
        np.float32,
    )
    return Films(
        images,
        tuple(found),
        tuple(_report(rng, findings) for findings in found),
        labels,
        (labels @ (2 ** np.arange(len(FINDINGS)))).astype(np.int64),
    )


def statement(finding: Finding, term: str) -> str:
    """Say a finding: its size, its name, its side and its zone, as far as they mean something.

    Examples:
        >>> statement(Finding("nodule", "left", "upper", "small", "mild"), "nodule")
        'small nodule in left upper zone'
        >>> statement(Finding("cardiomegaly", "none", "none", "small", "mild"), "enlarged heart")
        'mild enlarged heart'
    """
    if finding.zone == "none":
        return f"{finding.severity} {term}"
    return f"{finding.size} {term} in {finding.side} {finding.zone} zone"


def prompts(finding: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the sentences that say that a finding is there, anywhere, and those that deny it."""
    sides, zones = ("left", "right"), ("upper", "middle", "lower")
    if finding in ("cardiomegaly", "interstitial_edema"):
        places = [Finding(finding, "none", "none", "medium", "moderate")]
    else:
        zones = {"pleural_effusion": ("lower",), "pneumothorax": ("upper",)}.get(finding, zones)  # type: ignore[assignment]
        places = [Finding(finding, side, zone, "medium", "moderate") for side in sides for zone in zones]  # type: ignore[arg-type]
    said = tuple(statement(place, term) for place in places for term in TERMS[finding])
    return said, NEGATED[finding]


def _report(rng: np.random.Generator, findings: Sequence[Finding]) -> tuple[str, ...]:
    """Say what is there, deny some of what is not, add a boiler-plate sentence; in any order."""
    present = {finding.kind for finding in findings}
    said = [statement(finding, TERMS[finding.kind][int(rng.integers(2))]) for finding in findings]
    for name in FINDINGS:
        if name not in present and rng.random() < 0.35:
            said.append(NEGATED[name][int(rng.integers(2))])
    allowed = _NORMAL if not findings else _NORMAL[3:]
    said.append(allowed[int(rng.integers(len(allowed)))])
    return tuple(said[i] for i in rng.permutation(len(said)))
