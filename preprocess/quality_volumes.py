"""What the quality page shows of volumes: verdicts, extents, parts, and three planes of some of them."""

from __future__ import annotations

import base64
import io
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from PIL import Image as Pillow
from scipy import ndimage

from medvl.planes import draw_letters, orientation_letters
from medvl.preprocess.chunks import Failure
from medvl.records import Box, Record
from medvl.specs import VolumeSpec
from medvl.store.shards import read_pixels, read_volume

__all__ = ["group_of", "outlined_planes", "volume_facts"]

_WIDTH_PX, _GAP_PX = 900, 6
_LETTER_SIDE_PX = 400
"""Letters are those of a picture of this side: a panel is about as large."""
_LOWEST_HU, _HIGHEST_HU = -1000, 400
"""Shown from black to white: lungs and soft tissue both have their greys."""
_COLOURS = (
    (88, 179, 122), (102, 194, 255), (255, 217, 102), (240, 96, 96), (244, 132, 180), (190, 150, 255),
    (255, 160, 90), (170, 220, 90), (240, 240, 200), (90, 230, 220),
)  # fmt: skip
_NUMBER = re.compile(r"-?\d[\d,.]*")
_VERDICTS = re.compile(r"(?:IrregularSeries|GapInSeries):(.+)")


def group_of(record: Record) -> str:
    """Return under which heading a volume is shown."""
    return f"volumes read from {record.source_kind}, geometry {record.geometry}"


def volume_facts(
    records: Sequence[Record],
    failures: Sequence[Failure],
    spec: VolumeSpec,
    *,
    bars: Callable[..., list[dict[str, Any]]],
    histogram: Callable[..., dict[str, Any] | None],
) -> dict[str, Any]:
    """Return the tables and histograms of a store of volumes.

    Args:
        records: all records.
        failures: the items that gave none; those that their geometry excluded count among the verdicts.
        spec: of the stored volumes.
        bars: makes a table of counts.
        histogram: makes a histogram of numbers.
    """

    def count(values: Iterable[str], most: int = 12) -> list[dict[str, Any]]:
        return bars(Counter(values), most=most)

    verdicts = Counter(record.geometry for record in records)
    verdicts.update(
        f"rejected:{found[1]}" for failure in failures if (found := _VERDICTS.fullmatch(failure.rule))
    )
    per_study = Counter(Counter(record.study_id for record in records).values())
    return {
        "tables": [
            ("Verdict on the geometry", bars(verdicts)),
            ("Read from", count(record.source_kind for record in records)),
            ("Volumes of a study", bars({f"{many}": studies for many, studies in per_study.items()})),
            ("Source voxels", count((_times(record.source_shape) for record in records), 8)),
            ("Stored voxels, right × front × top", count((_times(record.shape) for record in records), 8)),
            ("Stored spacing", count((_millimetres(record) for record in records), 8)),
        ],
        "extents": [
            (name, histogram([_extent(record, axis) for record in records if record.spacing_mm]))
            for axis, name in enumerate(("from left to right", "from back to front", "from foot to head"))
        ],
        "parts": _parts(records, spec),
        "notes": count((_NUMBER.sub("…", note) for record in records for note in record.notes), 20),
    }


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def _millimetres(record: Record) -> str:
    return " × ".join(f"{edge:.2f}" for edge in record.spacing_mm or ()) + " mm"


def _extent(record: Record, axis: int) -> float:
    return record.shape[axis] * (record.spacing_mm or (1.0, 1.0, 1.0))[axis]


def _parts(records: Sequence[Record], spec: VolumeSpec) -> list[dict[str, Any]]:
    """Return for each part how many volumes hold it, and how many millilitres half of them have at most."""
    volumes: dict[str, list[float]] = defaultdict(list)
    outlined = [record for record in records if record.parts_size]
    for record in outlined:
        millilitres = math.prod(record.spacing_mm or (1.0,)) / 1000
        for part, voxels in record.part_voxels.items():
            volumes[part].append(voxels * millilitres)
    if not outlined:
        return []
    return [
        {
            "name": part,
            "count": len(volumes[part]),
            "share": 100 * len(volumes[part]) / len(outlined),
            "ml": float(np.median(volumes[part])) if volumes[part] else 0.0,
            "colour": "#{:02x}{:02x}{:02x}".format(*_colour(number)),
        }
        for number, part in enumerate(spec.parts, start=1)
    ]


def _colour(number: int) -> tuple[int, int, int]:
    return _COLOURS[(number - 1) % len(_COLOURS)]


def outlined_planes(record: Record, shards: Path) -> dict[str, Any]:
    """Return an axial, a coronal and a sagittal plane side by side, in millimetres, parts outlined.

    The planes go through the middle of the first box, else through the middle of the volume. The patient's
    right is on the left of the picture, the front is on top or on the left, the head on top; letters say so.

    Args:
        record: of a volume.
        shards: the folder of the store's shards.

    Returns:
        The picture as a data URL, its size, and the boxes that the planes cut, in its pixels.
    """
    hu = read_pixels(shards, record)
    parts = read_volume(shards, record, parts=True) if record.parts_size else None
    spacing = record.spacing_mm or (1.0, 1.0, 1.0)
    middle = _middle(record)
    extent = [size * edge for size, edge in zip(record.shape, spacing, strict=True)]
    scale = (_WIDTH_PX - 2 * _GAP_PX) / (2 * extent[0] + extent[1])
    panels, boxes, letters, left = [], [], [], 0
    # (across, up) of the axial, coronal and sagittal plane; x and y run from right to left of the picture
    for across, up in ((0, 1), (0, 2), (1, 2)):
        through = 3 - across - up
        size = max(1, round(extent[across] * scale)), max(1, round(extent[up] * scale))
        plane = _turned(np.take(hu, middle[through], axis=through))
        outline = None if parts is None else _turned(np.take(parts, middle[through], axis=through))
        panels.append((left, _panel(plane, outline, size)))
        if record.affine_ras:
            said = orientation_letters(record.affine_ras, columns=across, rows=up)
            letters.append(((left, 0, *size), said))
        boxes += [
            _rectangle(box, across, up, left=left, size=size, shape=record.shape)
            for box in record.boxes
            if _ends(box)[through][0] < middle[through] + 1 and _ends(box)[through][1] > middle[through]
        ]
        left += size[0] + _GAP_PX
    height = max(panel.shape[0] for _, panel in panels)
    canvas = np.zeros((height, left - _GAP_PX, 3), np.uint8)
    for start, panel in panels:
        canvas[: panel.shape[0], start : start + panel.shape[1]] = panel
    picture = Pillow.fromarray(canvas)
    for place, said in letters:
        draw_letters(picture, place, said, side_px=_LETTER_SIDE_PX)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=82)
    return {
        "src": "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode(),
        "width": canvas.shape[1],
        "height": height,
        "boxes": boxes,
    }


def _middle(record: Record) -> list[int]:
    if not record.boxes:
        return [size // 2 for size in record.shape]
    ends = _ends(record.boxes[0])
    return [min(size - 1, int(sum(pair) / 2)) for pair, size in zip(ends, record.shape, strict=True)]


def _ends(box: Box) -> tuple[tuple[float, float], ...]:
    return (box.x0, box.x1), (box.y0, box.y1), (box.z0 or 0.0, box.z1 or 0.0)


def _turned(plane: Shaped[np.ndarray, "across up"]) -> Shaped[np.ndarray, "rows columns"]:
    """Let rows run down from the top or front, and columns from the right or front."""
    return plane[::-1, ::-1].T


def _panel(
    hu: Shaped[np.ndarray, "rows columns"],
    parts: UInt8[np.ndarray, "rows columns"] | None,
    size: tuple[int, int],
) -> UInt8[np.ndarray, "height width 3"]:
    shown: Float[np.ndarray, "rows columns"] = (hu.astype(np.float32) - _LOWEST_HU) / (
        _HIGHEST_HU - _LOWEST_HU
    )
    grey = Pillow.fromarray((np.clip(shown, 0, 1) * 255).astype(np.uint8))
    picture = np.repeat(np.asarray(grey.resize(size, Pillow.Resampling.BILINEAR))[..., None], 3, axis=-1)
    if parts is None:
        return picture
    numbers = np.asarray(Pillow.fromarray(parts).resize(size, Pillow.Resampling.NEAREST))
    for number in np.unique(numbers[numbers > 0]):
        inside: Bool[np.ndarray, "rows columns"] = numbers == number
        picture[inside & ~ndimage.binary_erosion(inside)] = _colour(int(number))
    return picture


def _rectangle(
    box: Box, across: int, up: int, *, left: int, size: tuple[int, int], shape: tuple[int, ...]
) -> dict[str, Any]:
    """Return a box in pixels of its panel, whose axes run the other way."""
    low, high = (box.x0, box.y0, box.z0 or 0.0), (box.x1, box.y1, box.z1 or 0.0)
    across_px, up_px = size[0] / shape[across], size[1] / shape[up]
    return {
        "label": box.label,
        "x": left + (shape[across] - high[across]) * across_px,
        "y": (shape[up] - high[up]) * up_px,
        "width": (high[across] - low[across]) * across_px,
        "height": (high[up] - low[up]) * up_px,
    }
