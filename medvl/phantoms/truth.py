"""The truth of a chest phantom: findings, bodies, levels; pixels and words are both made from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from medvl.errors import UsageError, nearest
from medvl.records import Box

__all__ = [
    "FINDINGS",
    "LEVELS",
    "Body",
    "Finding",
    "Level",
    "LevelName",
    "Side",
    "draw_body",
    "draw_findings",
    "find_kinds",
    "find_level",
]

LevelName = Literal["easy", "middle", "hard"]
Side = Literal["left", "right", "bilateral", "none"]
Zone = Literal["upper", "middle", "lower", "none"]
Size = Literal["small", "medium", "large"]
Severity = Literal["mild", "moderate", "severe"]

FINDINGS = (
    "nodule",
    "consolidation",
    "pleural_effusion",
    "pneumothorax",
    "cardiomegaly",
    "interstitial_edema",
)
"""The six findings, in the order of every table."""

SIZES: tuple[Size, ...] = ("small", "medium", "large")
SEVERITIES: tuple[Severity, ...] = ("mild", "moderate", "severe")
ZONES: tuple[Zone, ...] = ("upper", "middle", "lower")
_WEIGHTS = np.array([0.17, 0.19, 0.19, 0.15, 0.15, 0.15])
_HOW_MANY = np.array([0.60, 0.30, 0.10])


@dataclass(frozen=True)
class Level:
    """One frozen difficulty.

    Attributes:
        name: ``"easy"``, ``"middle"`` or ``"hard"``.
        contrast: factor on the grey change of every finding.
        noise: standard deviation of the pixel noise, as a share of the grey scale.
        clutter: strength of ribs, vessels and uneven soft tissue.
        sizes: chances of small, medium and large findings.
        repeats: share of the normal reports that repeat a boiler-plate text word for word.
    """

    name: LevelName
    contrast: float
    noise: float
    clutter: float
    sizes: tuple[float, float, float]
    repeats: float


LEVELS: dict[str, Level] = {
    "easy": Level("easy", 1.60, 0.015, 0.7, (0.2, 0.4, 0.4), 0.40),
    "middle": Level("middle", 1.15, 0.025, 1.0, (0.34, 0.33, 0.33), 0.70),
    "hard": Level("hard", 0.65, 0.040, 1.3, (0.5, 0.3, 0.2), 0.80),
}
"""The three levels. Their numbers are frozen: the hash of a phantom set depends on them."""


def find_level(name: str) -> Level:
    """Return the level called ``name``.

    Raises:
        UsageError: there is no such level; the message names the nearest one.

    Examples:
        >>> find_level("middle").contrast < find_level("easy").contrast
        True
    """
    if name not in LEVELS:
        raise UsageError(f"unknown phantom level '{name}'.", hint=nearest(name, LEVELS))
    return LEVELS[name]


@dataclass(frozen=True)
class Finding:
    """One finding of a study, and after drawing its place on one image.

    Attributes:
        kind: one of :data:`FINDINGS`.
        side: the patient's side; the patient's left is the image's right.
        zone: third of the lung, ``"none"`` where a zone says nothing.
        size: extent.
        severity: how much the grey value changes, or how far the heart is enlarged.
        seat: where inside its zone, −1…1 across, down and front to back.
        grain: seed of its texture.
        boxes: its place in pixels of one image; two for a bilateral finding; none where it is
            not drawn.
    """

    kind: str
    side: Side
    zone: Zone
    size: Size
    severity: Severity
    seat: tuple[float, float, float] = (0.0, 0.0, 0.0)
    grain: int = 0
    boxes: tuple[Box, ...] = ()

    @property
    def sides(self) -> tuple[int, ...]:
        """Image directions: +1 for the patient's left (image right), −1 for the right, 0 for none."""
        return {"left": (1,), "right": (-1,), "bilateral": (-1, 1), "none": (0,)}[self.side]

    @property
    def diameter_mm(self) -> int:
        """Diameter of a nodule."""
        return {"small": 17, "medium": 23, "large": 30}[self.size] + round(self.seat[2])


@dataclass(frozen=True)
class Body:
    """The thorax of one patient in millimetres about its centre, x to the image right, y down."""

    lung_x: float
    lung_y: float
    lung_half_width: float
    lung_half_height: float
    dome_left: float
    dome_right: float
    heart_half_width: float
    heart_half_height: float
    torso_half_width: float
    mediastinum_half_width: float
    rib_pitch: float
    rib_phase: float
    breast: float
    vessel_seed: int


def draw_body(rng: np.random.Generator, *, female: int) -> Body:
    """Draw the geometry of one patient."""
    scale = rng.uniform(0.93, 1.05)
    dome = rng.uniform(66, 84)
    return Body(
        lung_x=66 * scale * rng.uniform(0.97, 1.03),
        lung_y=rng.uniform(4, 14),
        lung_half_width=56 * scale * rng.uniform(0.96, 1.04),
        lung_half_height=138 * rng.uniform(0.94, 1.04),
        dome_left=dome,
        dome_right=dome - rng.uniform(4, 12),
        heart_half_width=55 * scale * rng.uniform(0.93, 1.05),
        heart_half_height=47 * scale * rng.uniform(0.94, 1.06),
        torso_half_width=165 * scale * rng.uniform(0.95, 1.08),
        mediastinum_half_width=rng.uniform(22, 29),
        rib_pitch=rng.uniform(22, 27),
        rib_phase=rng.uniform(0, 1),
        breast=female * rng.uniform(0.3, 1.0),
        vessel_seed=int(rng.integers(2**31)),
    )


def find_kinds(asked: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """Return the findings that a set may have, in the order of ``known``; None asks for all.

    Raises:
        UsageError: there is no such finding, or none was asked for.

    Examples:
        >>> find_kinds(["pneumothorax", "nodule"], FINDINGS)
        ('nodule', 'pneumothorax')
    """
    if asked is None:
        return tuple(known)
    for name in asked:
        if name not in known:
            raise UsageError(f"no phantom has the finding '{name}'.", hint=nearest(name, known))
    if not asked:
        raise UsageError("no finding is allowed.", hint=f"Allowed: {', '.join(known)}.")
    return tuple(name for name in known if name in asked)


def draw_findings(
    rng: np.random.Generator, *, level: Level, only: Sequence[str] = FINDINGS
) -> tuple[Finding, ...]:
    """Draw one to three findings of an abnormal study, of ``only``; no two sit in the same place."""
    count = min(1 + int(rng.choice(3, p=_HOW_MANY)), len(only))
    chances = _WEIGHTS
    if len(only) < len(FINDINGS):
        chances = np.where([name in only for name in FINDINGS], _WEIGHTS, 0.0)
        chances = chances / chances.sum()
    kinds = sorted(rng.choice(len(FINDINGS), size=count, replace=False, p=chances))
    found: list[Finding] = []
    for kind in kinds:
        for _attempt in range(8):
            candidate = _one(FINDINGS[kind], rng, level)
            if not any(_collide(candidate, other) for other in found):
                found.append(candidate)
                break
    return tuple(found)


def _one(kind: str, rng: np.random.Generator, level: Level) -> Finding:
    size = SIZES[int(rng.choice(3, p=level.sizes))]
    severity = SEVERITIES[int(rng.integers(3))]
    zone: Zone = ZONES[int(rng.integers(3))]
    roll = rng.random()
    side: Side = "left" if roll < 0.5 else "right"
    if kind in ("consolidation", "pleural_effusion") and rng.random() < 0.18:
        side = "bilateral"
    if kind == "pleural_effusion":
        zone = "lower"
    elif kind == "pneumothorax":
        zone = "upper"
    elif kind in ("cardiomegaly", "interstitial_edema"):
        # extent and severity are one thing here, and one word says both
        zone, size = "none", SIZES[SEVERITIES.index(severity)]
        side = "none" if kind == "cardiomegaly" else "bilateral"
    seat = tuple(float(value) for value in np.round(rng.uniform(-1, 1, 3), 3))
    return Finding(kind, side, zone, size, severity, (seat[0], seat[1], seat[2]), int(rng.integers(2**31)))


def _collide(one: Finding, other: Finding) -> bool:
    """Say whether two findings would hide each other on the same side."""
    if not set(one.sides) & set(other.sides):
        return False
    kinds = {one.kind, other.kind}
    if kinds == {"pneumothorax", "pleural_effusion"}:
        return True
    return one.zone == other.zone and "cardiomegaly" not in kinds and "interstitial_edema" not in kinds
