"""One image from a file of any supported kind; the content decides which, not the extension."""

from __future__ import annotations

from pathlib import Path

from medvl.errors import BadImage, InputError, NotDicom
from medvl.images import Image
from medvl.preprocess.reading.dicom import read_dicom
from medvl.preprocess.reading.limits import DEFAULT_LIMITS, Limits
from medvl.preprocess.reading.raster import FORMATS, read_raster

__all__ = ["kind_of", "read_image"]

SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "raster",
    b"\xff\xd8\xff": "raster",
    b"II*\0": "raster",
    b"MM\0*": "raster",
    b"II+\0": "raster",
    b"MM\0+": "raster",
    b"BM": "raster",
}
FIRST_GROUPS = (b"\x02\0", b"\x08\0", b"\0\x02", b"\0\x08")


def kind_of(path: Path) -> str:
    """Return ``"dicom"``, ``"raster"``, ``"bare dicom"`` (no prefix), ``"empty"`` or ``"unknown"``.

    Raises:
        InputError: the file cannot be opened.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(132)
    except OSError as error:
        raise InputError(f"the file cannot be read: {error.strerror}.") from error
    if head[128:] == b"DICM":  # before the signatures: a DICOM preamble may look like a TIFF
        return "dicom"
    for signature, kind in SIGNATURES.items():
        if head.startswith(signature):
            return kind
    if not head:
        return "empty"
    return "bare dicom" if head.startswith(FIRST_GROUPS) else "unknown"


def read_image(
    path: Path, *, limits: Limits = DEFAULT_LIMITS, lenient: bool = False, frame: int | None = None
) -> Image:
    """Read one image: DICOM, PNG, JPEG, TIFF or BMP.

    Values keep their meaning and their size; :class:`medvl.specs.PixelSpec` interprets them.

    Args:
        path: the file.
        limits: what it may cost.
        lenient: also take DICOM without preamble, prefix or SOP UIDs.
        frame: which frame or page of a file with several, from 0.

    Raises:
        InputError: one of its subclasses, naming the broken rule.

    Examples:
        >>> from pydicom.data import get_testdata_file
        >>> image = read_image(Path(get_testdata_file("CT_small.dcm", download=False)))
        >>> image.unit.value, image.array.shape, int(image.array[0, 64, 64])
        ('HU', (1, 128, 128), 904)
    """
    kind = kind_of(path)
    if kind == "raster":
        return read_raster(path, limits=limits, frame=frame)
    if kind == "empty":
        raise NotDicom("the file is empty (0 bytes).")
    if kind == "unknown" and not lenient:
        raise BadImage(f"the file is neither DICOM nor one of {', '.join(FORMATS)}.")
    return read_dicom(path, limits=limits, lenient=lenient, frame=frame)
