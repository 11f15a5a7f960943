"""Pixel bytes to stored values: one named decoder per transfer syntax, its fall-backs, and its walls."""

from __future__ import annotations

import io
import math
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Shaped
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from medvl.errors import BadElement, DecodeError, TruncatedPixels
from medvl.preprocess.reading.codestreams import Codestream, fragments
from medvl.preprocess.reading.part10 import UNDEFINED, Part10

__all__ = ["DECODERS", "NATIVE", "PixelLayout", "decode", "plugins", "read_native"]

DECODERS: dict[str, tuple[str, ...]] = {
    "1.2.840.10008.1.2.5": ("pylibjpeg", "pydicom"),  # RLE
    "1.2.840.10008.1.2.4.50": ("pillow", "gdcm", "pylibjpeg"),  # JPEG baseline
    "1.2.840.10008.1.2.4.51": ("pylibjpeg", "gdcm", "pillow"),  # JPEG extended
    "1.2.840.10008.1.2.4.57": ("gdcm", "pylibjpeg"),  # JPEG lossless
    "1.2.840.10008.1.2.4.70": ("gdcm", "pylibjpeg"),  # JPEG lossless, first-order
    "1.2.840.10008.1.2.4.80": ("pyjpegls", "gdcm", "pylibjpeg"),  # JPEG-LS lossless
    "1.2.840.10008.1.2.4.81": ("pyjpegls", "gdcm", "pylibjpeg"),  # JPEG-LS near-lossless
    "1.2.840.10008.1.2.4.90": ("pylibjpeg", "gdcm", "pillow"),  # JPEG 2000 lossless
    "1.2.840.10008.1.2.4.91": ("pylibjpeg", "gdcm", "pillow"),  # JPEG 2000
    "1.2.840.10008.1.2.4.201": ("pylibjpeg",),  # HTJ2K lossless
    "1.2.840.10008.1.2.4.202": ("pylibjpeg",),  # HTJ2K lossless, RPCL
    "1.2.840.10008.1.2.4.203": ("pylibjpeg",),  # HTJ2K
}
"""Transfer syntax to plug-ins of pydicom, the fastest exact one first; pydicom's own choice is
slower for JPEG-LS (1.7 times), JPEG 2000 (1.1), and for baseline JPEG (4.3 on grey films)."""

NATIVE = {
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
}
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
STRIP_BYTES = 2**18
CODEC_WORDS = 160
"""How many bytes of a codec's own complaint go into the message."""
_STDERR = threading.Lock()


@dataclass(frozen=True)
class PixelLayout:
    """How the header says the pixel bytes are to be read (PS3.3 C.7.6.3)."""

    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: int
    """PixelRepresentation: 0 unsigned, 1 two's complement."""
    planar: int

    def check(self) -> None:
        """Refuse bit counts that contradict one another.

        Raises:
            BadElement: naming the element.
        """
        if self.bits_allocated not in (1, 8, 16, 32, 64):
            raise BadElement(f"BitsAllocated is {self.bits_allocated}; allowed: 1, 8, 16, 32, 64.")
        if not 1 <= self.bits_stored <= self.bits_allocated:
            raise BadElement(
                f"BitsStored is {self.bits_stored}; it must lie between 1 and BitsAllocated, "
                f"which is {self.bits_allocated}."
            )
        if not self.bits_stored - 1 <= self.high_bit < self.bits_allocated:
            raise BadElement(
                f"HighBit is {self.high_bit}; with BitsStored {self.bits_stored} it must be "
                f"{self.bits_stored - 1}."
            )
        if self.signed not in (0, 1):
            raise BadElement(f"PixelRepresentation is {self.signed}; allowed: 0, 1.")
        if self.samples not in (1, 3):
            raise BadElement(f"SamplesPerPixel is {self.samples}; allowed: 1, 3.")
        if not self.rows or not self.columns or not self.frames:
            raise BadElement(
                f"the header announces {self.rows} rows, {self.columns} columns and {self.frames} frames; "
                "each must be at least 1."
            )

    @property
    def frame_bytes(self) -> int:
        """Bytes of one native frame; a fraction of a byte only for 1-bit pixels."""
        values = self.rows * self.columns * self.samples
        if self.photometric == "YBR_FULL_422":  # two bytes a pixel instead of three
            values = values * 2 // 3
        return math.ceil(values * self.bits_allocated / 8)

    @property
    def total_bytes(self) -> int:
        """Bytes of all native frames."""
        if self.bits_allocated == 1:
            return math.ceil(self.rows * self.columns * self.samples * self.frames / 8)
        return self.frame_bytes * self.frames


def plugins(transfer_syntax: str) -> tuple[str, ...]:
    """Return the plug-ins for a transfer syntax that are installed, in the order in which they are tried."""
    if transfer_syntax not in DECODERS:
        return ()
    available = get_decoder(UID(transfer_syntax)).available_plugins
    return tuple(name for name in DECODERS[transfer_syntax] if name in available)


def decode(part10: Part10, layout: PixelLayout, *, frame: int) -> tuple[Shaped[np.ndarray, "..."], str]:
    """Decode one frame of an open file.

    Returns:
        Stored values, rows × columns (× 3), unused bits cleared and the sign extended, with the
        photometric interpretation that they have now: YBR has become RGB.

    Raises:
        TruncatedPixels: fewer bytes than the header promises.
        DecodeError: no installed decoder can read them.
    """
    if part10.pixel_length == UNDEFINED:
        return _encapsulated(part10, layout, frame=frame)
    if part10.transfer_syntax not in NATIVE:
        raise DecodeError(
            f"the transfer syntax is {UID(part10.transfer_syntax).name}, but the pixel data have a defined "
            f"length of {part10.pixel_length:,} bytes and no fragments."
        )
    got = min(part10.pixel_length, part10.pixel_bytes_left)
    if got < layout.total_bytes:
        raise TruncatedPixels(
            f"the pixel data hold {got:,} bytes; the header promises {layout.total_bytes:,}.",
            hint="Export the file again; nothing is filled in.",
        )
    if layout.samples == 1 and layout.bits_allocated > 1 and not _swapped_bytes(part10, layout):
        return _native(part10, layout, frame=frame), layout.photometric
    part10.stream.seek(part10.pixel_start)
    payload = part10.stream.read(layout.total_bytes + layout.total_bytes % 2)
    options = _options(layout) | {"pixel_vr": part10.pixel_vr or "OW"}
    return _run(part10.transfer_syntax, payload, options, frame=frame, plugin="")


def _swapped_bytes(part10: Part10, layout: PixelLayout) -> bool:
    return not part10.little_endian and layout.bits_allocated == 8  # OW holds them pairwise swapped


def _native(part10: Part10, layout: PixelLayout, *, frame: int) -> Shaped[np.ndarray, "rows columns"]:
    kind = "ui"[layout.signed] if part10.pixel_keyword == "PixelData" else "f"
    start = part10.pixel_start + frame * layout.frame_bytes
    return read_native(part10.stream, layout, start=start, kind=kind, little_endian=part10.little_endian)


def read_native(
    stream: io.BufferedIOBase, layout: PixelLayout, *, start: int, kind: str, little_endian: bool
) -> Shaped[np.ndarray, "rows columns"]:
    """Read one native frame of one sample a pixel; the caller knows that its bytes are there.

    Args:
        stream: of the file.
        layout: of the frame.
        start: its first byte.
        kind: ``"i"``, ``"u"`` or ``"f"``.
        little_endian: of its bytes.
    """
    order = "<" if little_endian else ">"
    pixels = np.empty((layout.rows, layout.columns), f"{order}{kind}{layout.bits_allocated // 8}")
    stream.seek(start)
    rows = max(1, STRIP_BYTES // pixels[0].nbytes)
    for top in range(0, layout.rows, rows):  # unused bits are cleared while the strip is in the cache
        strip = pixels[top : top + rows]
        stream.readinto(strip.data.cast("B"))
        if little_endian and kind != "f":
            _clear_unused_bits(strip, layout)
    if not little_endian:
        pixels = pixels.astype(pixels.dtype.newbyteorder("="))
        if kind != "f":
            _clear_unused_bits(pixels, layout)
    return pixels


def _clear_unused_bits(pixels: Shaped[np.ndarray, "rows columns"], layout: PixelLayout) -> None:
    unused = layout.bits_allocated - layout.bits_stored  # PS3.5 8.1.1: their content means nothing
    above = layout.bits_allocated - 1 - layout.high_bit
    if unused and layout.signed:
        np.left_shift(pixels, above, out=pixels)
        np.right_shift(pixels, unused, out=pixels)  # arithmetic: extends the sign
    elif unused:
        if unused != above:
            np.right_shift(pixels, unused - above, out=pixels)
        np.bitwise_and(pixels, pixels.dtype.type(2**layout.bits_stored - 1), out=pixels)


def _options(layout: PixelLayout) -> dict[str, Any]:
    return {
        "rows": layout.rows,
        "columns": layout.columns,
        "number_of_frames": layout.frames,
        "samples_per_pixel": layout.samples,
        "photometric_interpretation": layout.photometric,
        "bits_allocated": layout.bits_allocated,
        "bits_stored": layout.bits_stored,
        "pixel_representation": layout.signed,
        "planar_configuration": layout.planar,
        "pixel_keyword": "PixelData",
    }


def _run(
    syntax: str, payload: bytes, options: dict[str, Any], *, frame: int, plugin: str
) -> tuple[Shaped[np.ndarray, "..."], str]:
    pixels, about = get_decoder(UID(syntax)).as_array(payload, index=frame, decoding_plugin=plugin, **options)
    return pixels, str(about["photometric_interpretation"])


def _encapsulated(
    part10: Part10, layout: PixelLayout, *, frame: int
) -> tuple[Shaped[np.ndarray, "..."], str]:
    part10.stream.seek(part10.pixel_start)
    payload = part10.stream.read()
    starts, end = fragments(payload)
    if not starts:
        raise TruncatedPixels(
            f"the pixel data hold 0 fragments; the header promises {layout.frames} frame(s).",
            hint="Export the file again; nothing is filled in.",
        )
    streams = [found for start in starts if (found := Codestream.read(payload, start)) is not None]
    for stream in streams:
        if stream.rows * stream.columns > layout.rows * layout.columns:
            raise DecodeError(
                f"a codestream holds {stream.rows:,} × {stream.columns:,} pixels; the header announces "
                f"{layout.rows:,} × {layout.columns:,}."
            )
    syntax = part10.transfer_syntax
    if syntax in NATIVE and streams:
        syntax = streams[0].transfer_syntax
        part10.notes.append(f"encapsulated under a native transfer syntax, read as {UID(syntax).name}")
    names = _named(syntax, streams)
    refusals: list[str] = []
    for name in names:
        try:
            return _attempt(syntax, payload[:end], layout, frame=frame, plugin=name)
        except DecodeError as error:
            refusals.append(error.message)
            if name == names[-1]:
                raise DecodeError(
                    f"no decoder could read the pixel data ({UID(syntax).name}); {'; '.join(refusals)}.",
                    hint="Export the file again.",
                ) from error
    raise AssertionError("unreachable: the last plug-in returns or raises")


def _named(syntax: str, streams: list[Codestream]) -> tuple[str, ...]:
    names = plugins(syntax)
    if syntax == JPEG_EXTENDED and streams and streams[0].bits > 8 and "pylibjpeg" not in names:
        raise DecodeError(
            f"the pixel data are {streams[0].bits}-bit JPEG ({syntax}), which no default decoder reads.",
            hint="Install the opt-in package pylibjpeg-libjpeg (its licence is GPL-3.0).",
        )
    if not names:
        raise DecodeError(
            f"no decoder is installed for the transfer syntax {UID(syntax).name} ({syntax}).",
            hint="Run 'medvl doctor' to see what is missing.",
        )
    return names


def _attempt(
    syntax: str, payload: bytes, layout: PixelLayout, *, frame: int, plugin: str
) -> tuple[Shaped[np.ndarray, "..."], str]:
    with _captured_stderr() as said:
        try:
            return _run(syntax, payload, _options(layout), frame=frame, plugin=plugin)
        except Exception as error:  # a codec met with hostile bytes raises nearly anything
            said.seek(0)
            words = said.read(CODEC_WORDS).decode("ascii", "replace").split()
            detail = f" ({' '.join(words)})" if words else ""
            raise DecodeError(f"{plugin}: {type(error).__name__}{detail}") from error


@contextmanager
def _captured_stderr() -> Iterator[BinaryIO]:
    """Keep what a native codec writes to file descriptor 2, where no Python handler sees it."""
    with _STDERR, tempfile.TemporaryFile() as catcher:
        try:
            kept = os.dup(2)
        except OSError:  # a daemon may have closed it
            yield catcher
            return
        os.dup2(catcher.fileno(), 2)
        try:
            yield catcher
        finally:
            os.dup2(kept, 2)
            os.close(kept)
