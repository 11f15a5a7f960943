"""A NIfTI volume read safely: the header against the size of the file first, then the voxels, once scaled."""

from __future__ import annotations

import gzip
import io
import logging
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from jaxtyping import Float, Shaped

from medvl.errors import (
    BadAffine,
    BadImage,
    DecompressionLimit,
    InputError,
    MedvlError,
    MultiFrame,
    TruncatedPixels,
)
from medvl.images import Image, Unit
from medvl.preprocess.reading.limits import (
    DEFAULT_LIMITS,
    RATIO_FLOOR_BYTES,
    Limits,
    check_bytes,
    check_voxels,
)

GzipFile: Any
inflate_error: Any
try:  # inflates two and a half times as fast as the standard library
    from isal import igzip, isal_zlib

    GzipFile, inflate_error = igzip.IGzipFile, isal_zlib.error
except ImportError:  # no wheel for this machine
    GzipFile, inflate_error = gzip.GzipFile, zlib.error

__all__ = ["is_nifti", "read_nifti"]

GZIP = b"\x1f\x8b"
SIZES = {348: (nibabel.Nifti1Header, b"n+1", 352), 540: (nibabel.Nifti2Header, b"n+2", 544)}
KINDS = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
"""Datatype codes that hold one real number a voxel."""
MM = {1: 1000.0, 2: 1.0, 3: 0.001}
"""Millimetres of a spatial unit code."""
CHUNK_VALUES = 2**18
"""Values that are scaled and converted at once, while they are in the cache."""
SINGULAR = 1e-6
"""Least volume of a voxel over the product of its edges; flatter ones have no inverse worth the name."""
CONFLICT_VOXELS = 0.5
"""qform and sform differ when they place a corner of the volume this many voxels apart."""


def is_nifti(path: Path) -> bool:
    """Say whether a file begins as NIfTI-1 or NIfTI-2, plain or gzipped; the name has no say.

    Raises:
        InputError: the file cannot be opened.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(4096)
    except OSError as error:
        raise InputError(f"the file cannot be read: {error.strerror}.") from error
    if head.startswith(GZIP):
        try:
            head = zlib.decompressobj(31).decompress(head, 544)
        except zlib.error:
            return False
    return _byte_order(head) is not None


def read_nifti(
    path: Path, *, limits: Limits = DEFAULT_LIMITS, frame: int | None = None, unit: Unit = Unit.MODALITY_LUT
) -> Image:
    """Read one volume; axes stay as stored, and the affine says where they point.

    Value = scl_slope · stored + scl_inter, once, unless the slope is 0 or not a number (NIfTI-1,
    "data scaling"). The result is int16 where the stored type and the scaling surely fit, else float32.
    sform goes before qform; where they differ a note says by how much.

    Args:
        path: a ``.nii`` or ``.nii.gz`` file.
        limits: what it may cost.
        frame: which volume of a file with four axes, from 0; a file with three axes has one, which is taken.
        unit: what a value means; the format cannot say. For CT, :attr:`medvl.images.Unit.HU`.

    Raises:
        BadImage: no NIfTI, or a header that contradicts itself.
        TruncatedPixels: fewer bytes than the header promises.
        DecompressionLimit: the voxels are too many times larger than the file.
        PixelLimit: more voxels than ``limits.max_voxels``.
        BadAffine: the affine is singular or not finite.
        MultiFrame: four axes, and ``frame`` is not given or does not exist.
    """
    with _opened(path) as (stream, size, packed):
        check_bytes(size, limits=limits)
        header = _Header.read(stream)
        chosen, notes = _frame(header.shape, frame), list[str]()
        volume = header.shape[:3]
        check_voxels(*volume, limits=limits)
        end = header.offset + math.prod(header.shape) * header.kind.itemsize
        _check_size(end, size, packed=packed, limits=limits)
        affine = _affine(header, notes)
        skip = header.offset + chosen * math.prod(volume) * header.kind.itemsize - header.bytes_read
        values = _voxels(stream, header, skip=skip, notes=notes)
        stream.read(1)  # at the end of a gzip stream its checksum is compared
    spacing = np.linalg.norm(affine[:3, :3], axis=0) if affine is not None else np.abs(header.pixdim)
    return Image(
        values.reshape(volume, order="F")[None],
        unit,
        affine_ras=affine,
        spacing_mm=tuple(float(edge) for edge in spacing),
        spacing_frame="patient",
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Header:
    """What of a header is needed, checked."""

    shape: tuple[int, ...]
    kind: np.dtype
    offset: int
    slope: float
    inter: float
    pixdim: tuple[float, ...]
    bytes_read: int
    nifti: nibabel.Nifti1Header

    @classmethod
    def read(cls, stream: io.BufferedIOBase) -> _Header:
        head = stream.read(348)
        order = _byte_order(head)
        if order is None:
            raise BadImage("the file is no NIfTI: its first 4 bytes are neither 348 nor 540.")
        size = struct.unpack(f"{order}i", head[:4])[0]
        head += stream.read(size - 348)
        kind, magic, least = SIZES[size]
        if len(head) < size:
            raise BadImage(f"the header ends after {len(head)} of its {size} bytes.")
        nifti = kind(head, endianness=order, check=False)
        if not nifti["magic"].item().startswith(magic):
            raise BadImage(
                f"the magic is {nifti['magic'].item()!r}; allowed: {magic!r}.",
                hint="A header with a separate .img file is to be converted to one .nii file.",
            )
        axes = int(nifti["dim"][0])
        if not 1 <= axes <= 7:
            raise BadImage(f"dim[0] is {axes}; allowed: 1 to 7.")
        shape = tuple(int(count) for count in nifti["dim"][1 : axes + 1])
        if min(shape) < 1:
            raise BadImage(f"the axes are {' × '.join(map(str, shape))}; each must be at least 1.")
        code = int(nifti["datatype"])
        if code not in KINDS:
            raise BadImage(
                f"the datatype code is {code}; allowed: {', '.join(map(str, KINDS))}: one number a voxel."
            )
        offset = float(nifti["vox_offset"])
        if not (math.isfinite(offset) and offset >= least):
            raise BadImage(f"vox_offset is {offset:g}; it must be at least {least}.")
        slope, inter = float(nifti["scl_slope"]), float(nifti["scl_inter"])
        if math.isnan(slope) or slope == 0:
            slope, inter = 1.0, 0.0
        if not (math.isfinite(slope) and math.isfinite(inter)):
            raise BadImage(f"scl_slope is {slope:g} and scl_inter {inter:g}; both must be finite.")
        edges = tuple(float(edge) for edge in nifti["pixdim"][1:4])
        shape = (*shape, 1, 1)[: max(3, axes)]
        dtype = np.dtype(f"{order}{KINDS[code]}")
        return cls(shape, dtype, int(offset), slope, inter, edges, size, nifti)


def _byte_order(head: bytes) -> str | None:
    if len(head) < 4:
        return None
    return next((order for order in "<>" if struct.unpack(f"{order}i", head[:4])[0] in SIZES), None)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[io.BufferedIOBase, int, bool]]:
    """Yield the stream of the plain bytes, the size of the file, and whether it is gzipped."""
    log = logging.getLogger("nibabel.global")
    kept, log.disabled = log.disabled, True  # it would print repairs of headers
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == GZIP
            raw.seek(0)
            stream = GzipFile(fileobj=raw) if packed else raw
            yield stream, os.fstat(raw.fileno()).st_size, packed
    except MedvlError:
        raise
    except EOFError as error:
        raise TruncatedPixels(
            "the gzip stream ends before its last block.", hint="Copy the file again."
        ) from error
    except (gzip.BadGzipFile, inflate_error) as error:
        raise BadImage("the gzip stream is damaged.", hint="Copy the file again.") from error
    except OSError as error:
        raise InputError(f"the file cannot be read: {error.strerror}.") from error
    finally:
        log.disabled = kept


def _frame(shape: tuple[int, ...], frame: int | None) -> int:
    if len(shape) == 3:
        return 0
    frames = math.prod(shape[3:])
    if frame is None and frames > 1:
        raise MultiFrame(
            f"the file holds {frames} volumes.",
            hint=f"Choose one with frame=0 … {frames - 1}; for medvl ct prepare that is --frame.",
        )
    if not 0 <= (frame or 0) < frames:
        raise MultiFrame(f"volume {frame} was asked for; the file holds volumes 0 … {frames - 1}.")
    return frame or 0


def _check_size(end: int, size: int, *, packed: bool, limits: Limits) -> None:
    """Refuse, before any memory is taken, a header that promises more than the file can hold."""
    if not packed and end > size:
        raise TruncatedPixels(
            f"the file has {size:,} bytes; its header promises {end:,}.",
            hint="Export the file again; nothing is filled in.",
        )
    allowed = max(RATIO_FLOOR_BYTES, limits.max_ratio * size)
    if packed and end > allowed:
        raise DecompressionLimit(
            f"a file of {size:,} bytes promises {end:,} when unpacked; the limit is {limits.max_ratio} times "
            f"its size, {allowed:,} bytes.",
            hint="Raise Limits.max_ratio if you trust the file.",
        )


def _affine(header: _Header, notes: list[str]) -> Float[np.ndarray, "4 4"] | None:
    nifti = header.nifti
    sform = nifti.get_sform() if int(nifti["sform_code"]) > 0 else None
    try:
        qform = nifti.get_qform() if int(nifti["qform_code"]) > 0 else None
    except ValueError as error:  # a quaternion longer than 1
        if sform is None:
            raise BadAffine(f"the qform is no rotation ({error}), and there is no sform.") from error
        qform = None
        notes.append("the qform is no rotation, sform is followed")
    affine = sform if sform is not None else qform
    if affine is None:
        if not all(math.isfinite(edge) and edge != 0 for edge in header.pixdim):
            raise BadAffine(f"pixdim is {header.pixdim}; it must be finite and not 0.")
        notes.append("neither sform nor qform is set: the orientation is unknown")
        return None
    _check_affine(affine)
    if sform is not None and qform is not None and np.isfinite(qform).all():
        corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], float)
        corners[:, :3] *= np.array(header.shape[:3]) - 1
        apart = np.linalg.norm(corners @ (sform - qform).T, axis=1).max()
        if apart > CONFLICT_VOXELS * np.linalg.norm(affine[:3, :3], axis=0).min():
            notes.append(f"qform and sform place a corner {apart:.1f} mm apart, sform is followed")
    unit = int(nifti["xyzt_units"]) & 7
    if unit not in MM:
        notes.append("the unit of length is not stated, taken as mm")
    return np.diag([*[MM.get(unit, 1.0)] * 3, 1.0]) @ affine


def _check_affine(affine: Float[np.ndarray, "4 4"]) -> None:
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all():
        raise BadAffine("the affine holds a value that is not finite.", hint="Export the volume again.")
    if edges.min() == 0 or abs(np.linalg.det(affine[:3, :3] / edges)) < SINGULAR:
        told = ", ".join(f"{edge:g}" for edge in edges)
        raise BadAffine(
            f"the affine is singular: voxel edges {told} mm span no volume.",
            hint="Export the volume again.",
        )


def _voxels(
    stream: io.BufferedIOBase, header: _Header, *, skip: int, notes: list[str]
) -> Shaped[np.ndarray, " voxels"]:
    """Read, swap, scale and convert chunk by chunk; nothing but the result is ever whole."""
    while skip > 0:
        passed = np.empty(min(skip, CHUNK_VALUES), np.uint8)
        _fill(stream, passed, before=0, of=skip)
        skip -= len(passed)
    count = math.prod(header.shape[:3])
    values = np.empty(count, _result_type(header))
    scaled = header.slope != 1 or header.inter != 0
    room = np.empty(min(count, CHUNK_VALUES), header.kind)
    edge = header.kind.itemsize
    odd = 0
    for start in range(0, count, CHUNK_VALUES):
        part = values[start : start + CHUNK_VALUES]
        if part.dtype == header.kind and not scaled:
            _fill(stream, part, before=start * edge, of=count * edge)
        else:
            chunk = room[: len(part)]
            _fill(stream, chunk, before=start * edge, of=count * edge)
            part[:] = chunk.astype(np.float64) * header.slope + header.inter if scaled else chunk
        if part.dtype.kind == "f":
            odd += len(part) - int(np.isfinite(part).sum())
    if odd:
        notes.append(f"{odd:,} voxels are not finite")
    return values


def _result_type(header: _Header) -> type[np.int16] | type[np.float32]:
    if header.kind.kind == "f" or not (header.slope.is_integer() and header.inter.is_integer()):
        return np.float32
    stored = np.iinfo(header.kind)
    ends = [edge * header.slope + header.inter for edge in (int(stored.min), int(stored.max))]
    return np.int16 if -(2**15) <= min(ends) and max(ends) < 2**15 else np.float32


def _fill(stream: io.BufferedIOBase, room: Shaped[np.ndarray, " values"], *, before: int, of: int) -> None:
    """Read into all of ``room``; ``before`` of all ``of`` bytes have been read."""
    view, done = room.data.cast("B"), 0
    while done < len(view):
        read = stream.readinto(view[done:])
        if not read:
            raise TruncatedPixels(
                f"the voxels end after {before + done:,} of {of:,} bytes.",
                hint="Export the file again; nothing is filled in.",
            )
        done += read
