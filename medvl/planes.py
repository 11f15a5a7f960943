"""A volume as a picture: axial, coronal and sagittal slices as a radiologist hangs them, in millimetres."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int16, Shaped, UInt8
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from medvl.anatomy import FINDING_PARTS
from medvl.records import IS_PRESENT, Box, Record

__all__ = [
    "WINDOWS",
    "Montage",
    "draw_letters",
    "orientation_letters",
    "record_montage",
    "window_of",
    "windowed",
]

WINDOWS = {"lung": (-600.0, 1500.0), "soft": (40.0, 400.0), "bone": (400.0, 1800.0)}
"""Centre and width in HU."""
_OF_PART = {"lungs": "lung", "airways": "lung", "bones": "bone"}
_GAP_MM = 4.0
_LEAST_PX = 1
_ENDS = (("L", "R"), ("P", "A"), ("I", "S"))
"""Where each axis of RAS+ begins and ends."""
_OBLIQUE = 0.38
"""Sine of 22.5 degrees: an axis turned further than that has two letters."""
_LETTERS_ON_SIDE, _LEAST_LETTER_PX = 22, 10


@dataclass(frozen=True)
class _Plane:
    """One slice on the picture: which axes of the volume its columns and rows are, and its place in px."""

    through: int
    columns: int
    rows: int
    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Montage:
    """Three slices through one place of a volume: axial above coronal, sagittal beside the coronal one.

    Every axis runs against its index, which grows to the patient's right, front and top: so the patient's
    right lies on the left of axial and coronal slices, the front at the top of axial and at the left of
    sagittal ones, and the head at the top.

    Args:
        shape: of the stored volume.
        spacing_mm: of its voxels.
        at: the place, in voxels from the edge of the first one; the middle if None.
        side_px: longest side of the picture.
        affine_ras: voxel index to RAS+ mm, row by row; without it the slices have no letters.

    Examples:
        >>> montage = Montage((10, 10, 10), (1.0, 1.0, 1.0), side_px=240)
        >>> montage.size_px, montage.mark((5.0, 5.0, 5.0))[0]
        ((240, 240), (20.833333333333332, 20.833333333333332))
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    at: tuple[float, ...] | None = None
    side_px: int = 320
    affine_ras: tuple[float, ...] = ()

    @property
    def _size_mm(self) -> tuple[float, float]:
        x, y, z = self._edges_mm
        return x + _GAP_MM + y, y + _GAP_MM + z

    @property
    def _edges_mm(self) -> tuple[float, float, float]:
        x, y, z = (side * edge for side, edge in zip(self.shape, self.spacing_mm, strict=True))
        return x, y, z

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height of the picture."""
        width, height = (max(_LEAST_PX, round(side * self._scale)) for side in self._size_mm)
        return width, height

    @property
    def _scale(self) -> float:
        return self.side_px / max(self._size_mm)

    @functools.cached_property
    def _planes(self) -> tuple[_Plane, ...]:
        px = [max(_LEAST_PX, round(edge * self._scale)) for edge in self._edges_mm]
        width, height = self.size_px
        right, below = max(0, width - px[1]), max(0, height - px[2])
        return (
            _Plane(2, 0, 1, 0, 0, px[0], px[1]),
            _Plane(1, 0, 2, 0, below, px[0], px[2]),
            _Plane(0, 1, 2, right, below, px[1], px[2]),
        )

    @functools.cached_property
    def _place(self) -> tuple[float, ...]:
        middle = tuple(side / 2 for side in self.shape)
        return tuple(
            min(max(at, 0.0), side - 1e-6) for at, side in zip(self.at or middle, self.shape, strict=True)
        )

    def slices(self, volume: Shaped[np.ndarray, "x y z"]) -> list[Shaped[np.ndarray, "_ _"]]:
        """Return the axial, the coronal and the sagittal slice, rows first, as they are hung."""
        found = []
        for plane in self._planes:
            # The axis that is left first becomes the columns, so the slice is turned.
            taken = np.take(volume, int(self._place[plane.through]), axis=plane.through)
            found.append(np.ascontiguousarray(taken.T[::-1, ::-1]))
        return found

    def draw(self, slices: Sequence[UInt8[np.ndarray, "_ _ *colour"]]) -> Pillow.Image:
        """Return the picture of three slices of grey or colour."""
        pictures = [Pillow.fromarray(each) for each in slices]
        canvas = Pillow.new(pictures[0].mode, self.size_px)
        for plane, picture in zip(self._planes, pictures, strict=True):
            sized = picture.resize((plane.width, plane.height), Pillow.Resampling.BILINEAR)
            canvas.paste(sized, (plane.left, plane.top))
            if self.affine_ras:
                place = (plane.left, plane.top, plane.width, plane.height)
                letters = orientation_letters(self.affine_ras, columns=plane.columns, rows=plane.rows)
                draw_letters(canvas, place, letters, side_px=self.side_px)
        return canvas

    def grey(self, volume: Int16[np.ndarray, "x y z"], window: tuple[float, float]) -> Pillow.Image:
        """Return the slices of a volume in a window of HU."""
        return self.draw([windowed(each, window) for each in self.slices(volume)])

    def mark(self, place: Sequence[float]) -> list[tuple[float, float]]:
        """Return where a place of the volume lies on each slice, in percent of the picture."""
        return [
            (
                100 * (plane.left + self._along(plane.columns, place, plane.width)) / self.size_px[0],
                100 * (plane.top + self._along(plane.rows, place, plane.height)) / self.size_px[1],
            )
            for plane in self._planes
        ]

    def _along(self, axis: int, place: Sequence[float], length: int) -> float:
        return (1 - place[axis] / self.shape[axis]) * length

    def boxes(self, box: Box) -> list[dict[str, float]]:
        """Return left, top, width and height, in percent, of a box on each slice that cuts it."""
        low = (box.x0, box.y0, box.z0 or 0.0)
        high = (box.x1, box.y1, box.z1 if box.z1 is not None else float(self.shape[2]))
        begins, ends = self.mark(high), self.mark(low)
        return [
            {"left": x0, "top": y0, "width": x1 - x0, "height": y1 - y0}
            for plane, (x0, y0), (x1, y1) in zip(self._planes, begins, ends, strict=True)
            # The slice that is shown is a voxel thick.
            if low[plane.through] < int(self._place[plane.through]) + 1
            and high[plane.through] > int(self._place[plane.through])
        ]


def orientation_letters(affine_ras: Sequence[float], *, columns: int, rows: int) -> tuple[str, str, str, str]:
    """Return the letters at the left, right, top and bottom of a slice whose axes run against their index.

    R and L are the patient's right and left, A and P front and back, S and I head and feet. An axis that is
    turned by more than 22.5 degrees has a letter for each direction that it leans to, the nearest first
    (PS3.3 C.7.6.1.1.1, with S and I for its H and F).

    Args:
        affine_ras: voxel index to RAS+ mm, 16 numbers row by row.
        columns: the axis of the volume along which the columns of the slice lie.
        rows: the axis along which its rows lie.

    Examples:
        >>> axial = np.diag([1.5, 1.5, 3.0, 1.0]).ravel().tolist()
        >>> orientation_letters(axial, columns=0, rows=1), orientation_letters(axial, columns=1, rows=2)
        (('R', 'L', 'A', 'P'), ('A', 'P', 'S', 'I'))
    """
    return (*_ends_of(affine_ras, columns), *_ends_of(affine_ras, rows))


def _ends_of(affine_ras: Sequence[float], axis: int) -> tuple[str, str]:
    """Return where the index of an axis grows to, and where it comes from."""
    direction = np.reshape(affine_ras, (4, 4))[:3, axis]
    direction = direction / np.linalg.norm(direction)
    leaning = [
        each for each in np.argsort(-np.abs(direction), kind="stable") if abs(direction[each]) > _OBLIQUE
    ]
    to = "".join(_ENDS[each][int(direction[each] > 0)] for each in leaning)
    back = "".join(_ENDS[each][int(direction[each] < 0)] for each in leaning)
    return to, back


def draw_letters(
    canvas: Pillow.Image,
    place: tuple[int, int, int, int],
    letters: tuple[str, str, str, str],
    *,
    side_px: int,
) -> None:
    """Write letters at the middle of the left, right, upper and lower edge of a place of a picture.

    Args:
        canvas: the picture, which is changed.
        place: left, top, width and height, in px.
        letters: as :func:`orientation_letters` gives them.
        side_px: of the whole picture, which decides the size of the letters.
    """
    left, top, width, height = place
    size = max(_LEAST_LETTER_PX, round(side_px / _LETTERS_ON_SIDE))
    if min(width, height) < 4 * size:  # they would hide what they are about
        return
    font, pen = ImageFont.load_default(size=size), ImageDraw.Draw(canvas)
    spots = (
        (left + 2, top + height / 2, "lm"),
        (left + width - 2, top + height / 2, "rm"),
        (left + width / 2, top + 1, "ma"),
        (left + width / 2, top + height - 1, "md"),
    )
    for (x, y, anchor), letter in zip(spots, letters, strict=True):
        pen.text((x, y), letter, fill="white", font=font, anchor=anchor, stroke_width=1, stroke_fill="black")


def windowed(hu: Shaped[np.ndarray, "..."], window: tuple[float, float]) -> UInt8[np.ndarray, "..."]:
    """Return HU as grey: black at the lower end of a window of centre and width, white at the upper.

    Examples:
        >>> windowed(np.array([-2000, 40, 3000], np.int16), (40.0, 400.0)).tolist()
        [0, 128, 255]
    """
    centre, width = window
    share = (hu.astype(np.float32) - np.float32(centre - width / 2)) / np.float32(width)
    return np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)


def window_of(findings: Sequence[str]) -> tuple[float, float]:
    """Return the window in which the first of some findings shows: of lung, of bone, or of soft tissue.

    Examples:
        >>> window_of(["lung_nodule"]), window_of([])
        ((-600.0, 1500.0), (40.0, 400.0))
    """
    parts = FINDING_PARTS["ct"]
    return WINDOWS[_OF_PART.get(parts.get(findings[0], ""), "soft")] if findings else WINDOWS["soft"]


def record_montage(record: Record, volume: Int16[np.ndarray, "x y z"], *, side_px: int) -> Pillow.Image:
    """Return the picture of a stored volume: through its first box, or its middle, in a window that fits."""
    present = sorted(name for name, state in record.labels.items() if IS_PRESENT.get(state))
    at = None
    box = record.boxes[0] if record.boxes else None
    if box is not None and box.z0 is not None and box.z1 is not None:
        at = ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2, (box.z0 + box.z1) / 2)
        present = [box.label]
    spacing = record.spacing_mm or (1.0, 1.0, 1.0)
    montage = Montage(volume.shape, spacing, at=at, side_px=side_px, affine_ras=record.affine_ras)
    return montage.grey(volume, window_of(present))
