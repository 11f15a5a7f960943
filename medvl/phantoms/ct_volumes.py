"""CT phantoms in memory, for studies of methods: volumes, parts, boxes and sentences of one truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int16, Int64, UInt8

from medvl.anatomy import PARTS
from medvl.errors import UsageError
from medvl.phantoms.ct_lesions import draw_ct
from medvl.phantoms.ct_truth import (
    CT_FINDINGS,
    STRUCTURE_PARTS,
    CtFinding,
    draw_ct_body,
    draw_ct_findings,
)
from medvl.phantoms.ct_wording import CtStatement, write_ct_report
from medvl.phantoms.truth import find_kinds, find_level
from medvl.records import Box
from medvl.specs.volumes import VolumeGrid

__all__ = ["CtVolumes", "draw_volumes", "part_numbers"]

_FIELD_MM, _HEIGHT_MM = 370.0, 310.0


@dataclass(frozen=True)
class CtVolumes:
    """Volumes with the truth that drew them and the sentences that say it.

    Attributes:
        hu: the values; axes to the right, front and top.
        parts: the number of each voxel's part in ``PARTS["ct"]``, 0 for none.
        lesions: k where finding k − 1 of a volume is.
        affines: voxel index to RAS mm.
        findings: what is in each volume, with its boxes in RAS mm.
        boxes: the same boxes in voxels.
        statements: the sentences of each report, with what they say and of which organ.
        labels: 1 where a volume shows a finding of :data:`medvl.phantoms.ct_truth.CT_FINDINGS`, else 0.
        key: equal where two volumes show the same set of findings.
    """

    hu: Int16[np.ndarray, "volumes x y z"]
    parts: UInt8[np.ndarray, "volumes x y z"]
    lesions: UInt8[np.ndarray, "volumes x y z"]
    affines: Float64[np.ndarray, "volumes 4 4"]
    findings: tuple[tuple[CtFinding, ...], ...]
    boxes: tuple[tuple[Box, ...], ...]
    statements: tuple[tuple[CtStatement, ...], ...]
    labels: Float32[np.ndarray, "volumes labels"]
    key: Int64[np.ndarray, " volumes"]

    def __len__(self) -> int:
        """Return the number of volumes."""
        return len(self.findings)

    @property
    def sentences(self) -> tuple[tuple[str, ...], ...]:
        """The sentences of each report."""
        return tuple(tuple(item.said.text for item in report) for report in self.statements)


def part_numbers() -> UInt8[np.ndarray, " structures"]:
    """Return the number in ``PARTS["ct"]`` of each structure's part, by structure number; 0 is none."""
    names = PARTS["ct"]
    return np.array([0, *(names.index(part) + 1 for part in STRUCTURE_PARTS.values())], np.uint8)


def draw_volumes(
    n: int,
    *,
    seed: Sequence[int],
    size_px: int = 48,
    level: str = "easy",
    normal: float = 0.3,
    unobservable: float = 0.0,
    only: Sequence[str] = CT_FINDINGS,
) -> CtVolumes:
    """Draw ``n`` volumes, each of another body, and write their reports.

    The field is 370 mm wide and 310 mm high whatever the size; there are about 0.84 times as many slices as
    pixels along a side, a multiple of eight.

    Args:
        n: how many.
        seed: of bodies, findings, noise and words; equal seeds give equal volumes.
        size_px: voxels along x and y.
        level: ``"easy"``, ``"middle"`` or ``"hard"``.
        normal: share of volumes without a finding.
        unobservable: chance that a report holds sentences that no image can show.
        only: the findings that there may be; others are left out.

    Raises:
        UsageError: a size below 16, or a finding that there is not.

    Examples:
        >>> volumes = draw_volumes(2, seed=[0], size_px=24, normal=0.0, only=("pleural_effusion",))
        >>> volumes.hu.shape, int(volumes.parts.max()) <= len(PARTS["ct"])
        ((2, 24, 24, 24), True)
    """
    if size_px < 16:
        raise UsageError(f"size_px is {size_px}, but 16 or more can be drawn.", hint="Try size_px=48.")
    only = find_kinds(only, CT_FINDINGS)
    shown, table = find_level(level), part_numbers()
    rng = np.random.default_rng(list(seed))
    slices = max(16, 8 * round(0.84 * size_px / 8))
    spacing, depth = _FIELD_MM / size_px, _HEIGHT_MM / slices
    shape = (size_px, size_px, slices)
    hu, parts = np.empty((n, *shape), np.int16), np.empty((n, *shape), np.uint8)
    lesions, affines = np.empty((n, *shape), np.uint8), np.empty((n, 4, 4))
    found: list[tuple[CtFinding, ...]] = []
    reports: list[tuple[CtStatement, ...]] = []
    for row in range(n):
        body = draw_ct_body(rng, female=int(rng.integers(2)))
        findings = () if rng.random() < normal else draw_ct_findings(rng, level=shown, only=only)
        contrast = int(rng.random() < 0.4)
        affine = np.diag([spacing, spacing, depth, 1.0])
        affine[:3, 3] = (-spacing * (size_px - 1) / 2, -spacing * (size_px - 1) / 2 - 12, body.shift[2] - 197)
        drawn = draw_ct(body, findings, VolumeGrid(shape, affine), level=shown, rng=rng, contrast=contrast)
        writing = write_ct_report(
            rng,
            drawn.findings,
            contrast=contrast,
            unobservable=unobservable,
            style="plain",
        )
        hu[row], parts[row], lesions[row] = drawn.hu, table[drawn.structures], drawn.lesions
        affines[row] = affine
        found.append(drawn.findings)
        reports.append(writing.statements)
    labels = np.array(
        [[float(any(f.kind == name for f in findings)) for name in CT_FINDINGS] for findings in found],
        np.float32,
    ).reshape(n, len(CT_FINDINGS))
    boxes = tuple(
        tuple(_in_voxels(box, affine) for finding in findings for box in finding.boxes)
        for findings, affine in zip(found, affines, strict=True)
    )
    key = (labels @ (2 ** np.arange(len(CT_FINDINGS)))).astype(np.int64)
    return CtVolumes(hu, parts, lesions, affines, tuple(found), boxes, tuple(reports), labels, key)


def _in_voxels(box: Box, affine: Float64[np.ndarray, "4 4"]) -> Box:
    """Return a box of RAS mm in voxels of a straight volume, edges at the faces of voxels."""
    ends = []
    for axis, edges in enumerate(((box.x0, box.x1), (box.y0, box.y1), (box.z0 or 0.0, box.z1 or 0.0))):
        ends.append([round((edge - affine[axis, 3]) / affine[axis, axis] + 0.5, 3) for edge in edges])
    return Box(box.label, ends[0][0], ends[1][0], ends[0][1], ends[1][1], ends[2][0], ends[2][1])
