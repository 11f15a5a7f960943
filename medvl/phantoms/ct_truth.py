"""The truth of a CT phantom: structures, findings, bodies; voxels and words are both made from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

from medvl.phantoms.truth import Level, Side
from medvl.records import Box

__all__ = [
    "CT_FINDINGS",
    "STRUCTURES",
    "STRUCTURE_PARTS",
    "CtBody",
    "CtFinding",
    "draw_ct_body",
    "draw_ct_findings",
]

Size = Literal["small", "medium", "large"]

CT_FINDINGS = (
    "lung_nodule",
    "lung_opacity",
    "consolidation",
    "emphysema",
    "pleural_effusion",
    "pneumothorax",
    "cardiomegaly",
    "pericardial_effusion",
    "coronary_artery_wall_calcification",
    "arterial_wall_calcification",
    "lymphadenopathy",
    "hiatal_hernia",
    "rib_fracture",
    "sclerotic_bone_lesion",
    "medical_material",
    "liver_lesion",
    "kidney_stone",
    "kidney_cyst",
)
"""The eighteen findings, in the order of every table; those of CT-RATE have its names."""

STRUCTURE_PARTS: Mapping[str, str] = MappingProxyType(
    {
        "lung_upper_lobe_left": "lungs",
        "lung_lower_lobe_left": "lungs",
        "lung_upper_lobe_right": "lungs",
        "lung_middle_lobe_right": "lungs",
        "lung_lower_lobe_right": "lungs",
        "trachea": "airways",
        "bronchi": "airways",
        "pleura_left": "pleura",
        "pleura_right": "pleura",
        "heart": "heart",
        "aorta": "vessels",
        "superior_vena_cava": "vessels",
        "inferior_vena_cava": "vessels",
        "pulmonary_artery": "vessels",
        "mediastinum": "mediastinum",
        "esophagus": "esophagus",
        "liver": "liver",
        "gallbladder": "gallbladder",
        "spleen": "spleen",
        "pancreas": "pancreas",
        "kidney_left": "kidneys",
        "kidney_right": "kidneys",
        "stomach": "bowel",
        "colon": "bowel",
        "vertebrae": "bones",
        "rib_left": "bones",
        "rib_right": "bones",
        "costal_cartilages": "bones",
        "sternum": "bones",
        "scapula_left": "bones",
        "scapula_right": "bones",
        "clavicula_left": "bones",
        "clavicula_right": "bones",
        "device": "devices",
    }
)
"""The part of :data:`medvl.anatomy.PARTS` that each structure belongs to; TotalSegmentator's names where it
has one."""

STRUCTURES: Mapping[str, int] = MappingProxyType(
    {name: number for number, name in enumerate(STRUCTURE_PARTS, 1)}
)
"""The number of each structure in a label map; 0 is none."""

LOBES = ("right upper lobe", "right middle lobe", "right lower lobe", "left upper lobe", "left lower lobe")
_FIXED: Mapping[str, tuple[Side, str]] = {
    "emphysema": ("bilateral", "both upper lobes"),
    "cardiomegaly": ("none", "heart"),
    "pericardial_effusion": ("none", "heart"),
    "coronary_artery_wall_calcification": ("none", "heart"),
    "hiatal_hernia": ("none", "hiatus"),
}
_PLACES: Mapping[str, tuple[tuple[Side, str], ...]] = {
    "arterial_wall_calcification": (("none", "aortic arch"), ("none", "descending aorta")),
    "lymphadenopathy": (
        ("right", "right paratracheal"),
        ("none", "subcarinal"),
        ("right", "right hilar"),
        ("left", "left hilar"),
        ("none", "prevascular"),
    ),
    "sclerotic_bone_lesion": tuple(("none", name) for name in ("T5", "T7", "T9", "T11", "L1")),
    "medical_material": (("right", "central line"), ("right", "port"), ("left", "pacemaker")),
    "liver_lesion": (
        ("none", "right hepatic lobe"),
        ("none", "right hepatic lobe"),
        ("none", "left hepatic lobe"),
    ),
}

_SIZE_MM: Mapping[str, tuple[tuple[int, int], tuple[int, int], tuple[int, int]]] = {
    "lung_nodule": ((11, 14), (15, 22), (23, 30)),
    "lung_opacity": ((34, 44), (45, 60), (61, 78)),
    "consolidation": ((34, 44), (45, 60), (61, 78)),
    "emphysema": ((1, 1), (2, 2), (3, 3)),
    "pleural_effusion": ((12, 18), (19, 32), (33, 50)),
    "pneumothorax": ((14, 20), (21, 32), (33, 48)),
    "cardiomegaly": ((1, 1), (2, 2), (3, 3)),
    "pericardial_effusion": ((8, 10), (11, 15), (16, 22)),
    "coronary_artery_wall_calcification": ((1, 1), (2, 2), (3, 3)),
    "arterial_wall_calcification": ((1, 1), (2, 2), (3, 3)),
    "lymphadenopathy": ((12, 15), (16, 20), (21, 28)),
    "hiatal_hernia": ((30, 38), (39, 50), (51, 64)),
    "rib_fracture": ((18, 20), (21, 24), (25, 28)),
    "sclerotic_bone_lesion": ((10, 13), (14, 18), (19, 24)),
    "medical_material": ((1, 1), (1, 1), (1, 1)),
    "liver_lesion": ((14, 20), (21, 32), (33, 52)),
    "kidney_stone": ((6, 7), (8, 10), (11, 14)),
    "kidney_cyst": ((16, 22), (23, 32), (33, 46)),
}
"""Smallest and largest millimetres of small, medium and large findings; 1 to 3 where it is a degree."""

SIZES: tuple[Size, ...] = ("small", "medium", "large")
_IN_LUNG = {"lung_nodule", "lung_opacity", "consolidation"}
_IN_PLEURA = {"pleural_effusion", "pneumothorax"}
_HOW_MANY = (0.22, 0.28, 0.24, 0.16, 0.10)


@dataclass(frozen=True)
class CtFinding:
    """One finding of a study, and after drawing its place in one volume.

    Attributes:
        kind: one of :data:`CT_FINDINGS`.
        side: the patient's side.
        place: where, in the words of a report: ``"right upper lobe"``, ``"subcarinal"``, ``"T9"`` …
        size: ``"small"``, ``"medium"`` or ``"large"``; of a diffuse finding its degree.
        mm: its diameter or depth in mm, or 1 to 3 for a finding of degrees.
        seat: where inside its place, −1…1 to the right, front and top.
        grain: seed of its texture.
        boxes: its place in RAS mm; two for a bilateral finding; none where it is not drawn.
        voxels: how many voxels it takes in the volume.
        hu: mean HU of those voxels.
    """

    kind: str
    side: Side
    place: str
    size: Size
    mm: int
    seat: tuple[float, float, float] = (0.0, 0.0, 0.0)
    grain: int = 0
    boxes: tuple[Box, ...] = ()
    voxels: int = 0
    hu: float = 0.0

    @property
    def sides(self) -> tuple[int, ...]:
        """Directions along x: +1 for the patient's right, −1 for the left, 0 for none."""
        return {"left": (-1,), "right": (1,), "bilateral": (1, -1), "none": (0,)}[self.side]


@dataclass(frozen=True)
class CtBody:
    """The trunk of one patient: millimetres about the middle of the thorax, x right, y front, z up.

    Attributes:
        wide, deep: half extents of the cavity of the ribs.
        fat: thickness of the fat below the skin.
        dome_right, dome_left: tops of the diaphragm.
        heart: half extents of the heart along its three axes.
        heart_at: its centre.
        spine_bend: how far the spine curves, mm per mm².
        rib_pitch, rib_phase: distance of ribs along the back, and where they begin.
        aorta: radius of the ascending aorta.
        organs: factor on the size of each abdominal organ.
        lean: slope of the spine to the right, mm per mm.
        turn: half-angle tangent of the body's rotation about its long axis.
        shift: where the body's middle lies in the scanner, RAS mm.
        female: 1 or 0.
        grain: seed of vessels and textures.
    """

    wide: float
    deep: float
    fat: float
    dome_right: float
    dome_left: float
    heart: tuple[float, float, float]
    heart_at: tuple[float, float, float]
    spine_bend: float
    rib_pitch: float
    rib_phase: float
    aorta: float
    organs: tuple[float, ...]
    lean: float
    turn: float
    shift: tuple[float, float, float]
    female: int
    grain: int


def draw_ct_body(rng: np.random.Generator, *, female: int) -> CtBody:
    """Draw the geometry of one patient."""
    scale = float(rng.uniform(0.93, 1.05)) * (0.95 if female else 1.0)
    dome = float(rng.uniform(-46, -34))
    return CtBody(
        wide=124 * scale * float(rng.uniform(0.97, 1.03)),
        deep=90 * scale * float(rng.uniform(0.95, 1.06)),
        fat=float(rng.uniform(7, 24)),
        dome_right=dome,
        dome_left=dome - float(rng.uniform(4, 14)),
        heart=(
            50 * scale * float(rng.uniform(0.94, 1.04)),
            40 * scale * float(rng.uniform(0.94, 1.04)),
            42 * scale * float(rng.uniform(0.94, 1.05)),
        ),
        heart_at=(-24 + float(rng.uniform(-4, 4)), 18 + float(rng.uniform(-4, 4)), -30.0),
        spine_bend=float(rng.uniform(0.0016, 0.0024)),
        rib_pitch=float(rng.uniform(22, 26)),
        rib_phase=float(rng.uniform(0, 1)),
        aorta=float(rng.uniform(13.5, 16.5)),
        organs=tuple(float(value) for value in rng.uniform(0.92, 1.08, 6)),
        lean=float(rng.uniform(-0.03, 0.03)),
        turn=float(rng.uniform(-0.04, 0.04)),
        shift=(float(rng.uniform(-12, 12)), float(rng.uniform(-8, 8)), float(rng.uniform(-10, 10))),
        female=female,
        grain=int(rng.integers(2**31)),
    )


def draw_ct_findings(
    rng: np.random.Generator, *, level: Level, only: Sequence[str] = CT_FINDINGS
) -> tuple[CtFinding, ...]:
    """Draw one to five findings of an abnormal study, in the order of :data:`CT_FINDINGS`.

    Args:
        rng: the study's own generator.
        level: gives the chances of the sizes.
        only: the kinds to draw from.

    Examples:
        >>> from medvl.phantoms.truth import LEVELS
        >>> found = draw_ct_findings(np.random.default_rng(0), level=LEVELS["easy"])
        >>> all(finding.kind in CT_FINDINGS for finding in found)
        True
    """
    count = 1 + int(rng.choice(len(_HOW_MANY), p=_HOW_MANY))
    allowed = [kind for kind in CT_FINDINGS if kind in only]
    kinds = sorted(rng.choice(len(allowed), size=min(count, len(allowed)), replace=False).tolist())
    found: list[CtFinding] = []
    for kind in kinds:
        for _attempt in range(8):
            candidate = _one(allowed[kind], rng, level)
            if not any(_collide(candidate, other) for other in found):
                found.append(candidate)
                break
    return tuple(found)


def _one(kind: str, rng: np.random.Generator, level: Level) -> CtFinding:
    size = int(rng.choice(3, p=level.sizes))
    low, high = _SIZE_MM[kind][size]
    mm = int(rng.integers(low, high + 1))
    half: Side = "left" if rng.random() < 0.5 else "right"
    side, place = _seat(kind, half, float(rng.random()))
    seat = tuple(float(value) for value in np.round(rng.uniform(-1, 1, 3), 3))
    grain = int(rng.integers(2**31))
    return CtFinding(kind, side, place, SIZES[size], mm, (seat[0], seat[1], seat[2]), grain)


def _seat(kind: str, half: Side, roll: float) -> tuple[Side, str]:
    """Return side and place of a finding from a coin and a roll of 0 to 1."""
    if kind in _FIXED:
        return _FIXED[kind]
    if kind in _PLACES:
        side, place = _PLACES[kind][int(roll * len(_PLACES[kind]))]
        return side, place
    if kind in _IN_LUNG:
        lobes = [words for words in LOBES if words.startswith(half)]
        return half, lobes[int(roll * len(lobes))]
    if kind == "rib_fracture":
        return half, f"{half} {('4th', '5th', '6th', '7th')[int(roll * 4)]} rib"
    if kind in ("kidney_stone", "kidney_cyst"):
        return half, f"{half} kidney"
    if kind == "pleural_effusion" and roll < 0.25:
        return "bilateral", "bilateral"
    return half, str(half)


def _collide(one: CtFinding, other: CtFinding) -> bool:
    """Say whether two findings would hide each other."""
    kinds = {one.kind, other.kind}
    together = bool(set(one.sides) & set(other.sides))
    if kinds <= _IN_LUNG:
        return one.place == other.place
    if kinds == _IN_PLEURA:
        return together
    if kinds & _IN_PLEURA and kinds & _IN_LUNG:
        lung, pleura = (one, other) if one.kind in _IN_LUNG else (other, one)
        low = "lower" in lung.place
        return together and (low if pleura.kind == "pleural_effusion" else not low)
    return False
