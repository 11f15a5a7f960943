"""DICOM files put together to volumes: grouped and ordered by what the headers say, never by names."""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Shaped

from medvl.errors import GapInSeries, InputError, IrregularSeries
from medvl.images import Image, Photometric, Unit
from medvl.preprocess.reading import grey
from medvl.preprocess.reading.decoders import decode
from medvl.preprocess.reading.dicom import layout_of
from medvl.preprocess.reading.geometry import MIN_STACK, REASONS, Geometry, judge, order, plane_normal
from medvl.preprocess.reading.limits import DEFAULT_LIMITS, Limits, check_voxels
from medvl.preprocess.reading.part10 import Part10, opened
from medvl.preprocess.reading.places import LPS_TO_RAS, sources_of
from medvl.preprocess.reading.regular import regularised
from medvl.preprocess.reading.slices import Slice, slices_of

__all__ = ["Series", "find_series", "read_series"]

PARALLEL = 1e-3
"""Largest difference between the cosines of parallel slices: 0.06 degrees, half a pixel at the rim of 512."""
SAME_PIXEL = 1e-3
"""Largest relative difference between pixel spacings of one stack: half a pixel at the rim of 512."""
LOWEST_HU = -1024
"""No matter is below −1000 HU; what lies lower pads the picture or comes of it through a lossy codec."""
MENDABLE = ("spacing", "tilt", "drift")
"""What ``on_irregular="resample"`` may mend; ``allow_gaps`` mends ``gap``; nothing mends the others."""


@dataclass(frozen=True)
class Series:
    """Slices that belong together, in order, and the verdict on their geometry."""

    slices: tuple[Slice, ...]
    geometry: Geometry
    notes: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, each once, in the order of the slices."""
        return tuple(dict.fromkeys(piece.path for piece in self.slices))


def find_series(
    found: Iterable[Path | Slice],
    *,
    limits: Limits = DEFAULT_LIMITS,
    lenient: bool = False,
    on_error: Callable[[Path, InputError], None] | None = None,
) -> list[Series]:
    """Group slices into series, order each by position, and judge its geometry.

    A series is one (StudyInstanceUID, SeriesInstanceUID, rows, columns, orientation); slices whose
    orientation has fewer than four of its kind beside a larger stack stay together and are judged as
    what they are. AcquisitionNumber parts acquisitions that repeat one region and joins those that
    continue one another, as scanners number both.

    Args:
        found: files, or what :func:`slices_of` made of them, so that a pool of processes may read them.
        limits: what a file may cost.
        lenient: also take data sets without preamble, prefix or SOP UIDs.
        on_error: told of a file that cannot be read, which is then left out; without it the error is
            raised.

    Raises:
        InputError: a file cannot be read, and ``on_error`` is not given.
    """
    groups: dict[tuple[object, ...], list[Slice]] = defaultdict(list)
    for each in found:
        try:
            pieces = slices_of(each, limits=limits, lenient=lenient) if isinstance(each, Path) else (each,)
        except InputError as error:
            if on_error is None or not isinstance(each, Path):
                raise
            on_error(each, error)
            continue
        for piece in pieces:
            groups[piece.study_uid, piece.series_uid, piece.rows, piece.columns].append(piece)
    return [
        _judged(stack)
        for key in sorted(groups, key=str)
        for bundle in _by_orientation(sorted(groups[key], key=_stable))
        for stack in _by_acquisition(bundle)
    ]


def _stable(piece: Slice) -> tuple[str, str, int]:
    return piece.sop_uid, piece.path.as_posix(), piece.frame


def _by_orientation(pieces: list[Slice]) -> Iterator[list[Slice]]:
    bundles: list[list[Slice]] = []
    for piece in pieces:
        near = (b for b in bundles if _parallel(b[0], piece))
        bundle = next(near, None)
        if bundle is None:
            bundles.append([piece])
        else:
            bundle.append(piece)
    if len(bundles) == 1:
        yield bundles[0]
        return
    yield from (bundle for bundle in bundles if len(bundle) >= MIN_STACK)
    rest = [piece for bundle in bundles if len(bundle) < MIN_STACK for piece in bundle]
    if rest:
        yield rest


def _parallel(one: Slice, other: Slice) -> bool:
    if one.orientation is None or other.orientation is None or one.localizer != other.localizer:
        return one.orientation is other.orientation and one.localizer == other.localizer
    return max(abs(a - b) for a, b in zip(one.orientation, other.orientation, strict=True)) <= PARALLEL


def _by_acquisition(pieces: list[Slice]) -> Iterator[list[Slice]]:
    """Part acquisitions whose ranges along the normal overlap; those side by side are one stack."""
    numbered: dict[float | None, list[Slice]] = defaultdict(list)
    for piece in pieces:
        numbered[piece.acquisition].append(piece)
    normal = plane_normal(pieces[0].orientation or (0.0,) * 6)
    if len(numbered) == 1 or normal is None or any(piece.position is None for piece in pieces):
        yield pieces
        return
    stacks: list[tuple[float, float, list[Slice]]] = []
    for stack in numbered.values():
        depths = [float(np.array(piece.position) @ normal) for piece in stack]
        stacks.append((min(depths), max(depths), stack))
    stacks.sort(key=lambda each: each[:2])
    overlap = any(low <= end for (_, end, _), (low, _, _) in itertools.pairwise(stacks))
    yield from (stack for _, _, stack in stacks) if overlap else iter([pieces])


def _judged(pieces: list[Slice]) -> Series:
    kept, notes, conflict = _without_copies(pieces)
    geometry = _refusal(kept)
    if conflict:
        geometry = Geometry.rejection("conflicting_instance", slices=len(kept))
    if geometry is None:
        positions, orientation, spacing = _places(kept)
        normal = plane_normal(orientation)
        if normal is not None:
            kept = [kept[index] for index in order(positions, normal)]
            positions = _places(kept)[0]
        geometry = judge(positions, orientation, pixel_spacing_mm=spacing)
    if 1 < len(kept) < MIN_STACK:
        notes.append(f"few slices: {len(kept)}")
    return Series(tuple(kept), geometry, tuple(notes))


def _refusal(pieces: list[Slice]) -> Geometry | None:
    """Return the verdict on slices that cannot be put in one line, whatever their distances."""
    first = pieces[0]
    size = len(pieces) if len(pieces) > 1 else first.frames
    if any(piece.localizer for piece in pieces):
        return Geometry.rejection("localizer", slices=size)
    if any(None in (piece.position, piece.orientation, piece.spacing_mm) for piece in pieces):
        return Geometry.rejection("no_position", slices=size)
    if any(piece.colour for piece in pieces):
        return Geometry.rejection("colour", slices=size)
    if not all(_parallel(first, piece) for piece in pieces):
        return Geometry.rejection("mixed_orientation", slices=size)
    spacings = np.array([piece.spacing_mm for piece in pieces])
    if np.ptp(spacings, axis=0).max() > SAME_PIXEL * spacings.min():
        return Geometry.rejection("mixed_spacing", slices=size)
    return None


def _places(
    pieces: list[Slice] | tuple[Slice, ...],
) -> tuple[Float[np.ndarray, "slices 3"], tuple[float, ...], tuple[float, float]]:
    positions = np.array([piece.position for piece in pieces], np.float64)
    rows_mm, columns_mm = pieces[0].spacing_mm or (1.0, 1.0)
    return positions, pieces[0].orientation or (), (rows_mm, columns_mm)


def _without_copies(pieces: list[Slice]) -> tuple[list[Slice], list[str], bool]:
    """Drop copies of an instance; say whether one UID stands on different pixels."""
    kept: dict[tuple[object, ...], Slice] = {}
    dropped, conflict = 0, False
    hashes: dict[Path, bytes] = {}
    for piece in pieces:
        key = (piece.sop_uid or piece.path, piece.frame)
        if key not in kept:
            kept[key] = piece
            continue
        dropped += 1
        for path in (kept[key].path, piece.path):
            if path not in hashes:
                hashes[path] = _pixel_hash(path)
        conflict |= hashes[kept[key].path] != hashes[piece.path]
    notes = [f"{dropped} copies of instances left out"] if dropped else []
    return list(kept.values()), notes, conflict


def _pixel_hash(path: Path) -> bytes:
    with opened(path, limits=DEFAULT_LIMITS, lenient=True) as part10:
        part10.stream.seek(part10.pixel_start)
        return hashlib.blake2b(part10.stream.read()).digest()


def read_series(
    series: Series,
    *,
    limits: Limits = DEFAULT_LIMITS,
    lenient: bool = False,
    allow_gaps: bool = False,
    on_irregular: Literal["reject", "resample"] = "reject",
) -> tuple[Image, Geometry]:
    """Read the pixels of a series into one volume: slice, row, column, in the values of its modality.

    Each slice has its own modality LUT or rescale. A regular stack is never interpolated; its affine
    comes from the positions, and SliceThickness and SpacingBetweenSlices are not believed. Below
    −1024 HU lies only padding, which a lossy codec smears, so it is raised to −1024, never masked.

    Args:
        series: from :func:`find_series`.
        limits: what a file, and the volume, may cost.
        lenient: also take data sets without preamble, prefix or SOP UIDs.
        allow_gaps: fill holes by linear interpolation; the verdict is then ``resampled``.
        on_irregular: ``"resample"`` interpolates uneven spacing, gantry tilt and slices beside the line
            linearly onto a regular grid; the verdict is then ``resampled``.

    Raises:
        GapInSeries: slices are missing, and ``allow_gaps`` is off.
        IrregularSeries: the series is no regular volume for another reason.
        PixelLimit: the volume passes ``limits.max_voxels``.
        InputError: a file cannot be read.
    """
    mended = (("gap",) if allow_gaps else ()) + (MENDABLE if on_irregular == "resample" else ())
    geometry = series.geometry
    _refuse(geometry, [reason for reason in geometry.reasons if reason not in mended])
    first = series.slices[0]
    check_voxels(len(series.slices), first.rows, first.columns, limits=limits)
    volume, about, notes = _volume(series, limits=limits, lenient=lenient)
    positions, orientation, spacing = _places(series.slices)
    step, note = _step(series, positions, orientation)
    notes = [*series.notes, *notes, *note]
    if about["unit"] is Unit.HU:
        low = 0 if volume.min() >= LOWEST_HU else int((volume < LOWEST_HU).sum())
        if low:
            np.maximum(volume, volume.dtype.type(LOWEST_HU), out=volume)
            notes.append(f"{low:,} voxels below {LOWEST_HU} HU raised to it")
    start = positions[0]
    if geometry.rejected:
        reasons = geometry.reasons
        spacing_mm = geometry.numbers["spacing_median_mm"]
        fill = LOWEST_HU if about["unit"] is Unit.HU else float(volume.min())
        volume, start = regularised(
            volume,
            positions,
            orientation,
            pixel_spacing_mm=spacing,
            spacing_mm=spacing_mm,
            fill=fill,
            limits=limits,
        )
        step = _normal(orientation) * spacing_mm
        geometry = Geometry("resampled", geometry.numbers)
        notes.append(f"interpolated linearly onto a regular grid: {', '.join(REASONS[r] for r in reasons)}")
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = np.array(orientation[3:]) * spacing[0]
    affine[:3, 2] = np.array(orientation[:3]) * spacing[1]
    affine[:3, 3] = start
    image = Image(
        volume[None],
        affine_ras=LPS_TO_RAS @ affine,
        spacing_mm=(float(np.linalg.norm(step)), *spacing),
        spacing_frame="patient",
        notes=tuple(dict.fromkeys(notes)),
        **about,
    )
    return image, geometry


def _refuse(geometry: Geometry, reasons: list[str]) -> None:
    if not reasons:
        return
    told = "; ".join(f"{key} {value:g}" for key, value in geometry.numbers.items())
    message = f"the series is no regular volume: {', '.join(REASONS[r] for r in reasons)} ({told})."
    if reasons == ["gap"]:
        raise GapInSeries(
            message,
            verdict=geometry.verdict,
            hint="Export it again with every slice, or fill holes with allow_gaps.",
        )
    hint = "Mend it with on_irregular='resample'." if set(reasons) <= {*MENDABLE, "gap"} else ""
    raise IrregularSeries(message, verdict=geometry.verdict, hint=hint)


def _step(
    series: Series, positions: Float[np.ndarray, "slices 3"], orientation: tuple[float, ...]
) -> tuple[Float[np.ndarray, "3"], list[str]]:
    """Return the vector from one slice to the next, and what is to be said of it."""
    if len(positions) > 1:
        return (positions[-1] - positions[0]) / (len(positions) - 1), []
    thickness = series.slices[0].thickness_mm
    normal = _normal(orientation)
    if thickness:
        return normal * thickness, [f"one slice: its thickness, {thickness:g} mm, stands for the spacing"]
    return normal, ["one slice: the spacing between slices is unknown, 1 mm stands for it"]


def _normal(orientation: tuple[float, ...]) -> Float[np.ndarray, "3"]:
    normal = np.cross(orientation[:3], orientation[3:])
    return normal / np.linalg.norm(normal)


def _volume(
    series: Series, *, limits: Limits, lenient: bool
) -> tuple[Shaped[np.ndarray, "slices rows columns"], dict[str, Any], list[str]]:
    """Decode every slice into its place, file by file; the type is the smallest that holds them all."""
    first = series.slices[0]
    volume = np.empty((len(series.slices), first.rows, first.columns), np.int16)
    about: dict[str, Any] = {}
    notes: list[str] = []
    by_file: dict[Path, list[int]] = defaultdict(list)
    for index, piece in enumerate(series.slices):
        by_file[piece.path].append(index)
    for path, indices in by_file.items():
        plain = series.slices[indices[0]].plain if about else None  # the first says the rest for all
        values = plain.read(path) if plain is not None else None
        if plain is not None and values is not None:
            volume = _placed(volume, indices[0], values)
            _check_unit(plain.unit, about)
            continue
        with opened(path, limits=limits, lenient=lenient) as part10:
            for index in indices:
                values, said = _plane(part10, series.slices[index].frame, limits=limits, lenient=lenient)
                volume = _placed(volume, index, values)
                about = {**said, **about}
                _check_unit(said["unit"], about)
            notes += part10.remarks
    return volume, about, notes


def _placed(
    volume: Shaped[np.ndarray, "slices rows columns"], index: int, values: Shaped[np.ndarray, "rows columns"]
) -> Shaped[np.ndarray, "slices rows columns"]:
    wider = np.promote_types(volume.dtype, values.dtype)
    if wider != volume.dtype:
        volume = volume.astype(np.float32 if wider.kind == "f" else wider)
    volume[index] = values
    return volume


def _check_unit(unit: Unit, about: dict[str, Any]) -> None:
    if unit is not about["unit"]:
        raise InputError(
            f"slices are in different units: {about['unit']} and {unit}.", hint="Export the series again."
        )


def _plane(
    part10: Part10, frame: int, *, limits: Limits, lenient: bool
) -> tuple[Shaped[np.ndarray, "rows columns"], dict[str, Any]]:
    layout = layout_of(part10, limits=limits, lenient=lenient)
    pixels, photometric = decode(part10, layout, frame=frame)
    sources, little = sources_of(part10.dataset, frame), part10.little_endian
    values = grey.modality_values(pixels, sources, little_endian=little, bits=layout.bits_stored)
    unsaid: list[str] = []  # the notes on windows are for pictures
    return values, {
        "unit": grey.unit(sources),
        "photometric": Photometric(photometric),
        "windows": grey.windows(sources, unsaid),
        "voi_lut": grey.voi_lut(sources, little_endian=little),
        "bits_stored": layout.bits_stored,
    }
