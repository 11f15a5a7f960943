"""What the stored array of one image or volume is, and what its record says of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int16, Shaped, UInt8

from medvl.errors import BadImage, ConfigError, InputError
from medvl.images import Image, Photometric, Unit
from medvl.preprocess.plan import Irregular, Job
from medvl.preprocess.reading import kind_of, read_image
from medvl.preprocess.reading.burned import Policy, screen
from medvl.preprocess.reading.geometry import Geometry
from medvl.preprocess.reading.nifti import read_nifti
from medvl.preprocess.reading.series import find_series, read_series
from medvl.preprocess.reading.volumes import hu_check
from medvl.preprocess.structures_masks import Mask, read_parts
from medvl.records import Box
from medvl.specs import PixelSpec, VolumeGrid, VolumeSpec

__all__ = ["Shown", "show_film", "show_volume"]

_NIFTI = (".nii", ".nii.gz")
_AIR_HU = -300
"""Lungs are filled with air; a mean above this is no lung, however ill."""
_ENOUGH_VOXELS = 1000


@dataclass(frozen=True)
class Shown:
    """A stored array with the fields of its record that come from the picture.

    Attributes:
        stored: pixels, or voxels in HU.
        about: fields of :class:`medvl.records.Record`.
        volume: whether it is one.
        parts: number of the part of each voxel.
    """

    stored: Shaped[np.ndarray, "..."]
    about: dict[str, Any]
    volume: bool = False
    parts: UInt8[np.ndarray, "x y z"] | None = None


def show_film(job: Job, spec: PixelSpec, *, burned_in: Policy) -> Shown:
    """Read a film and bring it into its stored form.

    Raises:
        InputError: it cannot be read, or holds text and the policy is to drop it.
        MissingDependency: the policy needs a package that is not there.
    """
    image = read_image(Path(job.path))
    stored, regions, share = screen(image, spec.apply(image), spec=spec, policy=burned_in)
    rows, columns = image.array.shape[-2:]
    scale = (stored.shape[0] / rows, stored.shape[1] / columns)
    return Shown(
        stored,
        {
            "source_kind": "dicom" if kind_of(Path(job.path)) == "dicom" else "raster",
            "source_shape": (rows, columns),
            "view": job.view or image.view,
            "laterality": job.laterality or image.laterality,
            "spacing_mm": _stored_spacing(image, scale),
            "spacing_frame": image.spacing_frame,
            "inverted": image.photometric is Photometric.MONOCHROME1,
            "boxes": tuple(
                Box(b.label, b.x0 * scale[1], b.y0 * scale[0], b.x1 * scale[1], b.y1 * scale[0])
                for b in job.boxes
            ),
            "text_regions": regions,
            "text_fraction": share,
            "notes": image.notes,
        },
    )


def _stored_spacing(image: Image, scale: tuple[float, float]) -> tuple[float, ...] | None:
    if image.spacing_mm is None:
        return None
    return tuple(spacing / factor for spacing, factor in zip(image.spacing_mm[-2:], scale, strict=True))


# --- volumes ------------------------------------------------------------------------------------------------


def show_volume(job: Job, spec: VolumeSpec, *, allow_gaps: bool, on_irregular: Irregular) -> Shown:
    """Read a series or a NIfTI, and bring it, its mask and its boxes onto the stored grid.

    A mask that cannot be used costs a note, not the volume.

    Args:
        job: the volume.
        spec: of the stored grid.
        allow_gaps: fill holes of a series; see :func:`medvl.preprocess.reading.series.read_series`.
        on_irregular: what is done with other irregular series.

    Raises:
        IrregularSeries: no regular volume, and not to be mended.
        InputError: it cannot be read, or its values are no Hounsfield units.
    """
    image, geometry, kind = _volume(job, spec.frame, allow_gaps=allow_gaps, on_irregular=on_irregular)
    notes = [*image.notes, *hu_check(image)]
    grid = spec.grid(image)
    stored = spec.apply(image, grid=grid)
    source_shape = image.array.shape[1:]
    del image  # a mask may be as large
    parts, told = (None, []) if job.mask is None else _parts(job.mask, spec, grid, stored)
    boxes, more = _boxes(job.boxes, grid)
    numbers = np.zeros(0, np.uint8) if parts is None else parts.ravel()
    counts = np.bincount(numbers, minlength=len(spec.parts) + 1)
    return Shown(
        stored,
        {
            "source_kind": kind,
            "source_shape": source_shape,
            "spacing_mm": tuple(round(float(e), 6) for e in np.linalg.norm(grid.affine_ras[:3, :3], axis=0)),
            "spacing_frame": "patient",
            "affine_ras": tuple(float(value) for value in grid.affine_ras.ravel()),
            "geometry": geometry.verdict,
            "boxes": boxes,
            "part_voxels": {
                name: int(count) for name, count in zip(spec.parts, counts[1:], strict=False) if count
            },
            "notes": tuple(dict.fromkeys((*notes, *told, *more))),
        },
        volume=True,
        parts=parts,
    )


def _volume(
    job: Job, frame: int | None, *, allow_gaps: bool, on_irregular: Irregular
) -> tuple[Image, Geometry, str]:
    path = Path(job.path)
    if path.name.lower().endswith(_NIFTI) or (job.series is None and kind_of(path) == "unknown"):
        return read_nifti(path, unit=Unit.HU, frame=frame), Geometry("ok"), "nifti"
    series = job.series
    if series is None:  # its slices could not be read: reading them again says why
        found = find_series([path])
        if not found:
            raise InputError("the DICOM object holds no picture.")
        series = found[0]
    image, geometry = read_series(series, allow_gaps=allow_gaps, on_irregular=on_irregular)
    if image.unit is not Unit.HU:
        raise BadImage(
            f"the values of the series are {image.unit.value}, not HU: its rescale is missing or another.",
            hint="Export it with RescaleSlope, RescaleIntercept and Modality CT.",
        )
    return image, geometry, "dicom"


def _parts(
    mask: Mask, spec: VolumeSpec, grid: VolumeGrid, stored: Int16[np.ndarray, "x y z"]
) -> tuple[UInt8[np.ndarray, "x y z"] | None, list[str]]:
    try:
        image, notes = read_parts(mask)
        parts = spec.apply_parts(image, grid)
    except (InputError, ConfigError) as error:
        return None, [f"mask not used: {error}"]
    told = list(notes)
    if mask.shared:
        told.append("the mask was drawn on another series of the same study and frame of reference")
    if not parts.any():
        told.append("the mask and the volume do not meet, or no structure of the mask belongs to a part")
    if "lungs" in spec.parts:
        lungs = stored[parts == spec.parts.index("lungs") + 1]
        if lungs.size >= _ENOUGH_VOXELS and lungs.mean() > _AIR_HU:
            told.append(
                f"the lungs of the mask have a mean of {lungs.mean():.0f} HU, where air is about -1000: does "
                "the mask belong to this volume?"
            )
    return parts, told


def _boxes(boxes: tuple[Box, ...], grid: VolumeGrid) -> tuple[tuple[Box, ...], list[str]]:
    """Move boxes from RAS+ millimetres to stored voxels, whose edges are at whole numbers."""
    kept = []
    for box in boxes:
        pairs = ((box.x0, box.x1), (box.y0, box.y1), (box.z0 or 0.0, box.z1 or 0.0))
        ends = np.array(pairs, np.float64)
        corners = np.array(np.meshgrid(*ends, indexing="ij")).reshape(3, 8)
        placed = _to_voxels(corners, grid.affine_ras)
        low = np.maximum(placed.min(axis=1), 0)
        high = np.minimum(placed.max(axis=1), grid.shape)
        if (high > low).all():
            (x0, y0, z0), (x1, y1, z1) = low.tolist(), high.tolist()
            kept.append(replace(box, x0=x0, y0=y0, z0=z0, x1=x1, y1=y1, z1=z1))
    lost = len(boxes) - len(kept)
    return tuple(kept), [f"{lost} boxes lie outside of the stored volume and were left out"] if lost else []


def _to_voxels(
    points_mm: Float[np.ndarray, "3 points"], affine: Float[np.ndarray, "4 4"]
) -> Float[np.ndarray, "3 points"]:
    """Return continuous coordinates that count from the edge of the first voxel: its centre is at 0.5."""
    inverse = np.linalg.inv(affine)
    return inverse[:3, :3] @ points_mm + inverse[:3, 3:] + 0.5
