"""How much a file may ask for before it is refused, and the two checks that need no decoder."""

from __future__ import annotations

import io
import math
import zlib
from dataclasses import dataclass

from medvl.errors import DecompressionLimit, InputError, PixelLimit

__all__ = ["DEFAULT_LIMITS", "Limits", "check_bytes", "check_pixels", "check_voxels", "inflate"]

MIB = 2**20
RATIO_FLOOR_BYTES = 16 * MIB
"""Below this size any ratio is fine: an all-black film of 8 MiB deflates a thousandfold."""
CHUNK_BYTES = MIB


@dataclass(frozen=True)
class Limits:
    """What one file may cost.

    Attributes:
        max_pixels: rows × columns × frames × samples that a header may announce.
        max_voxels: slices × rows × columns of a volume; int16 takes two bytes a voxel, float32 four.
        max_bytes: size of a file, and of what a deflated file inflates to.
        max_ratio: inflated over deflated size, past the first 16 MiB.
        max_depth: sequences inside sequences.
    """

    max_pixels: int = 2**27
    max_voxels: int = 2**28
    max_bytes: int = 2**30
    max_ratio: int = 100
    max_depth: int = 64


DEFAULT_LIMITS = Limits()
"""Room for an 11,000 × 11,000 film or a volume of 1,024 slices of 512 × 512 (512 MiB as int16)."""


def check_bytes(size: int, *, limits: Limits) -> None:
    """Refuse a file that is larger than the limit.

    Raises:
        InputError: ``size`` is above ``limits.max_bytes``.
    """
    if size > limits.max_bytes:
        raise InputError(
            f"the file has {size:,} bytes; the limit is {limits.max_bytes:,}.",
            hint="Raise Limits.max_bytes if you trust the file.",
        )


def check_pixels(rows: int, columns: int, *, frames: int = 1, samples: int = 1, limits: Limits) -> None:
    """Refuse a header that announces more values than the limit, before any memory is taken.

    Raises:
        PixelLimit: ``rows * columns * frames * samples`` is above ``limits.max_pixels``.
    """
    asked = rows * columns * frames * samples
    if asked > limits.max_pixels:
        raise PixelLimit(
            f"the header announces {rows:,} × {columns:,} pixels, {frames:,} frame(s) of {samples} "
            f"sample(s): {asked:,} values; the limit is {limits.max_pixels:,}.",
            hint="Raise Limits.max_pixels if you trust the file.",
        )


def check_voxels(*shape: int, limits: Limits) -> None:
    """Refuse a volume of more voxels than the limit, before any memory is taken.

    Raises:
        PixelLimit: the product of ``shape`` is above ``limits.max_voxels``.
    """
    asked = math.prod(shape)
    if asked > limits.max_voxels:
        raise PixelLimit(
            f"the volume has {' × '.join(f'{size:,}' for size in shape)} voxels, {asked:,} in all; the limit "
            f"is {limits.max_voxels:,}.",
            hint="Raise Limits.max_voxels if the machine has the memory.",
        )


def inflate(stream: io.BufferedIOBase, *, limits: Limits) -> bytearray:
    """Inflate the rest of ``stream`` (raw deflate, PS3.5 A.5) and stop at the limit.

    No more than the limit is ever held: a bomb of half a megabyte costs fifty, not its gigabytes.

    Raises:
        DecompressionLimit: the output passes ``max_bytes``, or ``max_ratio`` times the input.
        InputError: the stream is no deflate stream.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = bytearray()
    deflated = 0
    while not inflater.eof:
        chunk = inflater.unconsumed_tail or stream.read(64 * 1024)
        if not chunk:
            break
        try:
            piece = inflater.decompress(chunk, CHUNK_BYTES)
        except zlib.error as error:
            raise InputError(f"the deflated data set is damaged: {error}.") from error
        deflated += len(chunk) - len(inflater.unconsumed_tail)
        inflated += piece
        allowed = min(limits.max_bytes, max(RATIO_FLOOR_BYTES, limits.max_ratio * deflated))
        if len(inflated) > allowed:
            raise DecompressionLimit(
                f"the deflated data set grows from {deflated:,} to more than {allowed:,} bytes; the limit "
                f"is {limits.max_ratio} times its size and {limits.max_bytes:,} bytes.",
                hint="Raise Limits.max_ratio if you trust the file.",
            )
    return inflated
