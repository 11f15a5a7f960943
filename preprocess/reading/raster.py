"""A raster image (PNG, JPEG, TIFF, BMP) as display values, upright, with its true bit depth."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Shaped
from PIL import Image as Pillow
from PIL import ImageOps

from medvl.errors import BadImage, MedvlError, MultiFrame, PixelLimit
from medvl.images import Image, Photometric, Unit
from medvl.preprocess.reading.limits import DEFAULT_LIMITS, Limits, check_bytes, check_pixels

__all__ = ["FORMATS", "read_raster"]

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
TIFF_PHOTOMETRIC, WHITE_IS_ZERO = 262, 0
EXIF_ORIENTATION = 0x0112


def read_raster(path: Path, *, limits: Limits = DEFAULT_LIMITS, frame: int | None = None) -> Image:
    """Read a raster image; grey stays grey, colour stays colour, and EXIF's rotation is carried out.

    Args:
        path: a PNG, JPEG, TIFF or BMP file.
        limits: what it may cost.
        frame: which page of a file with several, from 0.

    Raises:
        PixelLimit: the header announces more pixels than the limit.
        MultiFrame: several pages, and none was chosen.
        BadImage: the file is damaged, or of another kind.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow only warns of bombs; the limit decides
        try:
            check_bytes(path.stat().st_size, limits=limits)
            with Pillow.open(io.BytesIO(path.read_bytes()), formats=FORMATS) as picture:
                check_pixels(picture.height, picture.width, samples=len(picture.getbands()), limits=limits)
                _seek(picture, frame)
                return _image(picture)
        except MedvlError:
            raise
        except Pillow.DecompressionBombError as error:
            raise PixelLimit(
                f"the image announces more than {2 * (Pillow.MAX_IMAGE_PIXELS or 0):,} pixels."
            ) from error
        except Exception as error:  # a codec met with hostile bytes raises nearly anything
            raise BadImage(
                f"the image cannot be decoded ({type(error).__name__}): cut short, damaged, or not one of "
                f"{', '.join(FORMATS)}.",
                hint="Export it again.",
            ) from error


def _seek(picture: Pillow.Image, frame: int | None) -> None:
    pages = getattr(picture, "n_frames", 1) if picture.format == "TIFF" else 1
    if frame is None and pages > 1:
        raise MultiFrame(f"the file holds {pages} pages.", hint=f"Choose one with frame=0 … {pages - 1}.")
    if not 0 <= (frame or 0) < pages:
        raise MultiFrame(f"page {frame} was asked for; the file holds pages 0 … {pages - 1}.")
    if frame:
        picture.seek(frame)


def _image(picture: Pillow.Image) -> Image:
    notes: list[str] = []
    tags = getattr(picture, "tag_v2", {})  # Pillow inverts such TIFFs of 8 bits, but not deeper ones
    white_is_zero = tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO
    upright = ImageOps.exif_transpose(picture)
    if picture.getexif().get(EXIF_ORIENTATION, 1) != 1:
        notes.append("turned upright as its EXIF orientation says")
    if upright.mode.startswith("I;16") or upright.mode in ("I", "F"):
        return _deep(upright, notes, inverted=white_is_zero)
    if upright.mode in ("1", "L"):
        return Image(np.asarray(upright.convert("L"))[None], Unit.GREY, bits_stored=8, notes=tuple(notes))
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        if np.asarray(upright.getchannel("A")).min() < 255:
            black = Pillow.new("RGBA", upright.size, (0, 0, 0, 255))
            upright = Pillow.alpha_composite(black, upright)
            notes.append("transparent pixels laid over black")
    colour = np.asarray(upright.convert("RGB"))
    if (colour[..., 0] == colour[..., 1]).all() and (colour[..., 1] == colour[..., 2]).all():
        return Image(np.ascontiguousarray(colour[..., 0])[None], Unit.GREY, bits_stored=8, notes=tuple(notes))
    planes = np.ascontiguousarray(np.moveaxis(colour, -1, 0))
    return Image(planes, Unit.RGB8, Photometric.RGB, bits_stored=8, notes=tuple(notes))


def _deep(picture: Pillow.Image, notes: list[str], *, inverted: bool) -> Image:
    array: Shaped[np.ndarray, "rows columns"] = np.array(picture)
    photometric = Photometric.MONOCHROME1 if inverted else Photometric.MONOCHROME2
    top = float(array.max(initial=0)) if array.dtype.kind != "f" else np.inf
    if top >= 2**16 or float(array.min(initial=0)) < 0:
        notes.append("values beyond 16 bits have no display range; percentiles are taken")
        return Image(
            array[None].astype(np.float32), Unit.MODALITY_LUT, photometric, bits_stored=32, notes=tuple(notes)
        )
    bits = max(8, int(top).bit_length())
    if bits < 16:
        notes.append(f"16-bit file of {bits}-bit values")
    return Image(array[None].astype(np.uint16), Unit.GREY, photometric, bits_stored=bits, notes=tuple(notes))
