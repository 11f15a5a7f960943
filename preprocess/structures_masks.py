"""Masks of anatomical structures: which belong to which volume, and the part of the body at each voxel.

A mask is a NIfTI label map, a folder of one binary NIfTI a structure, or a DICOM segmentation. Where
structures overlap, the smaller one has the voxel: a vessel in a lung stays a vessel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped

from medvl.errors import BadAffine, BadImage
from medvl.images import Image, Unit
from medvl.preprocess.reading.nifti import read_nifti
from medvl.preprocess.structures import side_of
from medvl.preprocess.structures_seg import frames_of, read_segmentation

__all__ = ["Mask", "Structure", "read_parts"]

_LARGEST_NUMBER = 2**15 - 1
_SAMPLE = 48
"""Voxels along each axis that the check of sides looks at, at most twice as many."""


@dataclass(frozen=True)
class Structure:
    """One structure of a mask.

    Attributes:
        name: as the mask or its table has it.
        part: number of its part, 0 for none.
        number: its value in a label map, or the number of its segment.
        file: of its own, in a folder of binary maps.
    """

    name: str
    part: int
    number: int = 0
    file: Path | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Mask:
    """Where the mask of a volume lies and what its structures are.

    Attributes:
        path: of the file or folder.
        kind: of the mask.
        structures: what it outlines.
        shared: it was drawn on another series of the study.
    """

    path: Path = field(repr=False)
    kind: Literal["labels", "folder", "segmentation"]
    structures: tuple[Structure, ...]
    shared: bool = False

    def files(self) -> tuple[Path, ...]:
        """Return the files that hold its voxels."""
        own = tuple(structure.file for structure in self.structures if structure.file)
        return own if self.kind == "folder" else (self.path,)


def read_parts(mask: Mask) -> tuple[Image, tuple[str, ...]]:
    """Read a mask as a volume of part numbers on its own grid, and say what is odd about it.

    Raises:
        BadImage: values that are no numbers of structures, or binary maps of different shapes.
        BadAffine: a mask that does not say how it lies.
        InputError: a file cannot be read.
    """
    read = {"labels": _labels, "folder": _folder, "segmentation": _segmentation}[mask.kind]
    owners, affine, notes = read(mask)
    notes += _side_notes(owners, affine, mask.structures)
    table = np.array([0, *(structure.part for structure in mask.structures)], np.uint8)
    spacing = tuple(float(edge) for edge in np.linalg.norm(affine[:3, :3], axis=0))
    image = Image(
        _looked_up(table, owners)[None],
        Unit.GREY,
        affine_ras=affine,
        spacing_mm=spacing,
        spacing_frame="patient",
    )
    return image, tuple(notes)


_Read = tuple[Integer[np.ndarray, "x y z"], Float[np.ndarray, "4 4"], list[str]]
"""Which structure has each voxel, counted from 1, 0 for none; the affine to RAS+ mm; notes."""


def _nifti(path: Path) -> Image:
    image = read_nifti(path)
    if image.affine_ras is None:
        raise BadAffine("a mask does not say how it lies: neither sform nor qform is set.")
    return image


def _labels(mask: Mask) -> _Read:
    image = _nifti(mask.path)
    assert image.affine_ras is not None
    owners, notes = _owners(image.array[0], mask.structures)
    return owners, image.affine_ras, notes


def _owners(
    values: Shaped[np.ndarray, "x y z"], structures: Sequence[Structure]
) -> tuple[Integer[np.ndarray, "x y z"], list[str]]:
    """Turn the numbers of a label map into places in the list of structures."""
    lowest, highest = float(values.min()), float(values.max())
    whole = values.dtype.kind in "iu" or bool((values == np.rint(values)).all())
    if not (whole and lowest >= 0 and highest <= _LARGEST_NUMBER):
        raise BadImage(
            f"a label map holds values from {lowest:g} to {highest:g}{'' if whole else ', not all whole'}.",
            hint=f"Allowed are whole numbers from 0 to {_LARGEST_NUMBER:,}, one a structure.",
        )
    numbers = values if values.dtype.kind in "iu" else values.astype(np.int16)
    table = np.zeros(int(highest) + 1, np.int16)
    for place, structure in enumerate(structures, start=1):
        if 0 < structure.number < len(table):
            table[structure.number] = place
    present = np.zeros(len(table), bool)
    for plane in np.moveaxis(numbers, -1, 0):
        present[plane] = True
    named = {0, *(structure.number for structure in structures)}
    foreign = sorted(set(np.flatnonzero(present).tolist()) - named)
    told = ", ".join(map(str, foreign[:8])) + (" …" if len(foreign) > 8 else "")
    return _looked_up(table, numbers), [f"numbers of the mask without a name: {told}"] if foreign else []


def _looked_up(
    table: Shaped[np.ndarray, " numbers"], volume: Integer[np.ndarray, "x y z"]
) -> Shaped[np.ndarray, "x y z"]:
    """Return ``table[volume]`` plane by plane: the indices of a whole would take eight bytes a voxel."""
    result = np.empty_like(volume, table.dtype)
    for plane in range(volume.shape[-1]):
        result[..., plane] = table[volume[..., plane]]
    return result


def _folder(mask: Mask) -> _Read:
    owners: Integer[np.ndarray, "x y z"] | None = None
    affine = np.eye(4)
    sizes = np.zeros(len(mask.structures) + 1, np.int64)
    for place, structure in enumerate(mask.structures, start=1):
        if structure.file is None:
            continue
        image = _nifti(structure.file)
        assert image.affine_ras is not None
        if owners is None:
            owners, affine = np.zeros(image.array.shape[1:], np.int16), image.affine_ras
        if owners.shape != image.array.shape[1:] or not np.allclose(affine, image.affine_ras, atol=1e-3):
            raise BadImage(
                f"the binary maps of a folder lie on different grids: {owners.shape} and "
                f"{image.array.shape[1:]} voxels.",
                hint="Export them again from one segmentation.",
            )
        where = image.array[0] > 0.5
        sizes[place] = int(where.sum())
        where &= _looked_up(_free(sizes, place), owners)
        owners[where] = place
    if owners is None:
        raise BadImage("a folder of masks holds no file.")
    return owners, affine, []


def _free(sizes: Integer[np.ndarray, " places"], place: int) -> Bool[np.ndarray, " places"]:
    """Return from whom a structure takes the voxel: from nobody, and from a larger one."""
    larger = sizes > sizes[place]
    larger[0] = True
    return larger


def _segmentation(mask: Mask) -> _Read:
    grid = read_segmentation(mask.path)
    places = {structure.number: place for place, structure in enumerate(mask.structures, start=1)}
    owners = np.zeros(grid.shape, np.int16)
    counts: Counter[int] = Counter()
    for segment, plane, voxels in frames_of(mask.path, grid):
        if segment == 0:
            owners[plane] = voxels
        counts[segment] += int(voxels.sum())
    if set(counts) == {0}:  # a label map has no overlaps
        owners, notes = _owners(owners, mask.structures)
        return owners, grid.affine_ras, notes
    sizes = np.array([0, *(counts[structure.number] for structure in mask.structures)], np.int64)
    foreign = 0
    for segment, plane, voxels in frames_of(mask.path, grid):
        place = places.get(segment)
        if place is None:
            foreign += 1
            continue
        owners[plane][voxels & _free(sizes, place)[owners[plane]]] = place
    notes = [f"{foreign} frames of the mask belong to segments that it does not describe"] if foreign else []
    return owners, grid.affine_ras, notes


def _side_notes(
    owners: Integer[np.ndarray, "x y z"],
    affine: Float[np.ndarray, "4 4"],
    structures: Sequence[Structure],
) -> list[str]:
    """Compare where the left and the right one of each pair lie: x grows towards the patient's right."""
    steps = [max(1, size // _SAMPLE) for size in owners.shape]
    sample = owners[tuple(slice(None, None, step) for step in steps)]
    found = np.nonzero(sample)
    labels = sample[found]
    across = sum(affine[0, axis] * steps[axis] * found[axis] for axis in range(3))
    counts = np.bincount(labels, minlength=len(structures) + 1)
    sums = np.bincount(labels, weights=across, minlength=len(structures) + 1)
    middles: dict[str, dict[str, float]] = {}
    for place, structure in enumerate(structures, start=1):
        sided = side_of(structure.name)
        if sided is not None and counts[place]:
            middles.setdefault(sided[1], {})[sided[0]] = float(sums[place] / counts[place])
    pairs = [pair for pair in middles.values() if len(pair) == 2]
    crossed = sum(pair["left"] > pair["right"] for pair in pairs)
    if 2 * crossed <= len(pairs):
        return []
    return [
        f"sides: of {len(pairs)} paired structures of the mask, the left one lies to the patient's right of "
        f"its partner in {crossed}: do names and affine of the mask agree?"
    ]
