"""Whether slices form one regular volume: the verdict, its numbers, and the order of the slices."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

__all__ = ["MIN_STACK", "REASONS", "Geometry", "judge", "order", "plane_normal"]

SPACING_TOLERANCE = 0.01
"""Intervals may differ from their mean by this share: highdicom's default for a regular volume."""
ROUNDING_MM = 0.05
"""Or each slice may lie this far from its place on the regular grid: exporters that write positions
with one decimal are off by as much, and no voxel is so thin that it would show."""
GAP = 1.1
"""An interval beyond this many times the median is a hole; below, the spacing is uneven."""
TILT_TOLERANCE = 1e-3
"""1 − cosine between the stack and the normal of its slices: highdicom's default, 2.6 degrees. The
affine keeps the shear of smaller tilts, so nothing is lost by taking them."""
DUPLICATE_MM = 0.01
"""Slices nearer than this to one another share a position: no scanner steps by so little."""
DRIFT_PX = 0.5
"""How far a slice may lie beside the straight line of the stack: half a pixel."""
ORIENTATION_TOLERANCE = 1e-2
"""Direction cosines are written with three decimals at least; beyond this they are no directions."""
MIN_STACK = 4
"""Two intervals can differ, so three slices show a hole and four show where; fewer are said to be few."""

REASONS = {
    "localizer": "a localizer, which plans other scans",
    "derived": "a picture derived from a scan, such as a projection, a screen or a dose sheet",
    "no_position": "frames or slices that do not say where they lie",
    "bad_orientation": "direction cosines that are not two perpendicular unit vectors",
    "mixed_orientation": "slices that are not parallel",
    "mixed_spacing": "slices of different pixel spacing",
    "colour": "colour pictures",
    "conflicting_instance": "one SOP Instance UID on different pixels",
    "duplicate_position": "several slices at one position",
    "gap": "missing slices",
    "spacing": "uneven spacing",
    "tilt": "a tilted gantry",
    "drift": "slices beside the line of the stack",
}
"""Each reason of a rejection, in words; later ones are defects that resampling can mend."""


@dataclass(frozen=True)
class Geometry:
    """The verdict on a series, with the numbers that it rests on.

    Attributes:
        verdict: ``"ok"``; ``"resampled"``: interpolated linearly onto a regular grid, on request;
            ``"rejected:<reason>"``, several reasons joined by ``+``, each a key of :data:`REASONS`.
        numbers: ``slices``; with two slices or more ``spacing_min_mm``, ``spacing_median_mm``,
            ``spacing_max_mm``, which is also the largest gap, ``tilt_degrees``, ``duplicates``
            (slices at a position already taken), ``missing`` (slices that the gaps have room for) and
            ``drift_px`` (the farthest that a slice lies beside the line of the stack).
    """

    verdict: str
    numbers: dict[str, float] = field(default_factory=dict)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the series is no regular volume; () when it is one."""
        return tuple(self.verdict.partition("rejected:")[2].split("+")) if self.rejected else ()

    @property
    def rejected(self) -> bool:
        """Whether no volume can be had without resampling, or at all."""
        return self.verdict.startswith("rejected:")

    @classmethod
    def rejection(cls, *reasons: str, **numbers: float) -> Geometry:
        """Return the verdict for some reasons."""
        return cls(f"rejected:{'+'.join(reasons)}", numbers)


def plane_normal(orientation: tuple[float, ...]) -> Float[np.ndarray, "3"] | None:
    """Return row × column of a slice, or None when its cosines are not two perpendicular unit vectors.

    Examples:
        >>> plane_normal((1.0, 0.0, 0.0, 0.0, 1.0, 0.0)).tolist()
        [0.0, 0.0, 1.0]
    """
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(row @ column)) > ORIENTATION_TOLERANCE:
        return None
    normal = np.cross(row, column)
    return normal / np.linalg.norm(normal)


def order(positions: Float[np.ndarray, "slices 3"], normal: Float[np.ndarray, "3"]) -> list[int]:
    """Return the slices along the normal; names, instance numbers and dates have no say."""
    return np.argsort(positions @ normal, kind="stable").tolist()


def judge(
    positions: Float[np.ndarray, "slices 3"],
    orientation: tuple[float, ...],
    *,
    pixel_spacing_mm: tuple[float, float],
) -> Geometry:
    r"""Judge slices that lie in order along their normal.

    With the normal :math:`n` and positions :math:`p_i` the intervals are
    :math:`d_i = n \cdot (p_{i+1} - p_i)`, and the tilt is the angle between :math:`n` and
    :math:`p_{last} - p_0`.

    Args:
        positions: ImagePositionPatient of each slice, mm.
        orientation: ImageOrientationPatient, one for all.
        pixel_spacing_mm: between rows, and between columns.

    Examples:
        >>> place = lambda *z: np.array([[0.0, 0.0, each] for each in z])
        >>> axial, one = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (1.0, 1.0)
        >>> judge(place(0, 1.25, 2.5, 3.75), axial, pixel_spacing_mm=one).verdict
        'ok'
        >>> found = judge(place(0, 1.25, 3.75, 5), axial, pixel_spacing_mm=one)
        >>> found.verdict, found.numbers["spacing_max_mm"], found.numbers["missing"]
        ('rejected:gap', 2.5, 1)
    """
    normal = plane_normal(orientation)
    if normal is None:
        return Geometry.rejection("bad_orientation", slices=len(positions))
    if len(positions) == 1:
        return Geometry("ok", {"slices": 1})
    depths = (positions - positions[0]) @ normal
    every = np.diff(depths)
    duplicates = int((every < DUPLICATE_MM).sum())
    intervals = every[every >= DUPLICATE_MM]
    numbers: dict[str, float] = {"slices": len(positions), "duplicates": duplicates}
    if not len(intervals):
        return Geometry.rejection("duplicate_position", **numbers)
    median = float(np.median(intervals))
    numbers |= {
        "spacing_min_mm": round(float(intervals.min()), 6),
        "spacing_median_mm": round(median, 6),
        "spacing_max_mm": round(float(intervals.max()), 6),
        "missing": int(np.maximum(np.rint(intervals / median) - 1, 0).sum()),
    }
    span = positions[-1] - positions[0]
    cosine = min(1.0, float(span @ normal / np.linalg.norm(span)))
    numbers["tilt_degrees"] = round(float(np.degrees(np.arccos(cosine))), 4)
    numbers["drift_px"] = round(_drift(positions, depths, orientation, pixel_spacing_mm), 4)
    even, hole = _regular(depths, intervals), bool(intervals.max() > GAP * median)
    found = {
        "duplicate_position": duplicates > 0,
        "gap": hole and not even,
        "spacing": not hole and not even,
        "tilt": 1 - cosine > TILT_TOLERANCE,
        "drift": numbers["drift_px"] > DRIFT_PX,
    }
    reasons = [name for name, bad in found.items() if bad]
    return Geometry.rejection(*reasons, **numbers) if reasons else Geometry("ok", numbers)


def _regular(depths: Float[np.ndarray, " slices"], intervals: Float[np.ndarray, " intervals"]) -> bool:
    even = np.abs(intervals - intervals.mean()).max() <= SPACING_TOLERANCE * intervals.mean()
    on_grid = np.abs(depths - np.linspace(depths[0], depths[-1], len(depths))).max() <= ROUNDING_MM + 1e-6
    return bool(even or on_grid)


def _drift(
    positions: Float[np.ndarray, "slices 3"],
    depths: Float[np.ndarray, " slices"],
    orientation: tuple[float, ...],
    pixel_spacing_mm: tuple[float, float],
) -> float:
    """Return how far, in pixels, the farthest slice lies beside the line from the first to the last."""
    shares = depths / depths[-1]
    beside = positions - positions[0] - np.outer(shares, positions[-1] - positions[0])
    columns = np.abs(beside @ np.array(orientation[:3])).max() / pixel_spacing_mm[1]
    rows = np.abs(beside @ np.array(orientation[3:])).max() / pixel_spacing_mm[0]
    return float(max(columns, rows))
