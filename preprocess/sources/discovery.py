"""The files below a source folder, in a fixed order, each with its kind by content."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medvl.errors import InputError, UsageError
from medvl.preprocess.reading import kind_of
from medvl.preprocess.reading.nifti import is_nifti
from medvl.preprocess.sources.archives import ARCHIVE_SUFFIXES

__all__ = ["IMAGE_SUFFIXES", "SLIDE_SUFFIXES", "TABLE_SUFFIXES", "Kind", "SourceFile", "discover"]

IMAGE_SUFFIXES = (".dcm", ".dicom", ".ima", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide")
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".pq", ".xlsx")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
_NO_REPORT = frozenset(
    "readme read_me license licence copying notice changelog changes citation version requirements "
    "index contents manifest checksums sha256sums sha1sums md5sums filelist files".split()
)
"""Stems of text files that come with data sets and report on no patient."""

Kind = Literal[
    "dicom", "raster", "nifti", "slide", "damaged",
    "table", "text", "hl7", "dicomdir", "archive",
    "outside", "unreadable", "other",
]  # fmt: skip


@dataclass(frozen=True)
class SourceFile:
    """A file below the source; ``relative`` is its path below it, with ``/``.

    Attributes:
        kind: by content; volumes, slides, tables and archives by suffix. ``damaged`` is a file that should be
            an image and is empty or unreadable, ``outside`` a link that leads out of the source, ``other``
            anything else.
    """

    path: Path
    relative: str
    kind: Kind


def discover(source: Path) -> list[SourceFile]:
    """List the files below a folder in the order of their paths, each with its kind by content.

    Hidden files, record stores, the private folder of clean copies, what lies behind linked folders and the
    companion folders of slides are passed over; a linked file counts only if it leads out of the source, as
    ``outside``, since inside it is found under its own name.

    Raises:
        UsageError: the source is not a folder.
    """
    if not source.is_dir():
        raise UsageError("the source is not a folder.", hint="Give the folder that holds the images.")
    return list(_walk(source, source, source.resolve()))


def _walk(folder: Path, source: Path, root: Path) -> Iterator[SourceFile]:
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        yield SourceFile(folder, folder.relative_to(source).as_posix(), "unreadable")
        return
    names = {entry.name for entry in listed}
    if {"store.json", "index.parquet"} <= names or (folder.name == "private" and "key" in names):
        return
    for entry in listed:
        if entry.name.startswith((".", "~$")) or entry.name == "__MACOSX":
            continue
        path = folder / entry.name
        relative = path.relative_to(source).as_posix()
        if entry.is_symlink():
            if not path.resolve().is_relative_to(root):
                yield SourceFile(path, relative, "outside")
        elif entry.is_dir():
            if f"{entry.name}.mrxs" not in names:  # a MIRAX slide keeps its tiles in a folder of its name
                yield from _walk(path, source, root)
        elif entry.is_file():
            yield SourceFile(path, relative, _kind(path))


def _kind(path: Path) -> Kind:
    name = path.name.lower()
    if (by_name := _kind_by_name(name)) is not None:
        return by_name
    written = name.endswith((".txt", ".hl7"))  # a text may begin like a bitmap: "BM" in "BMI 24"
    try:
        kind = "unknown" if written else kind_of(path)
        head = b"" if kind in ("dicom", "raster", "empty") else _head(path)
    except (InputError, OSError):
        return "unreadable" if written else "damaged"
    if kind == "dicom":
        return "dicomdir" if name.startswith("dicomdir") else "dicom"
    if kind == "raster":
        return "raster"
    image_like = name.endswith(IMAGE_SUFFIXES)
    if kind == "bare dicom":
        return "dicom" if image_like or not path.suffix else "other"
    fallback: Kind = "damaged" if image_like or (kind == "empty" and not path.suffix) else "other"
    return _kind_by_content(path, head) or fallback


def _kind_by_name(name: str) -> Kind | None:
    if name.endswith(TABLE_SUFFIXES):
        return "table"
    if name.endswith(SLIDE_SUFFIXES):
        return "slide"
    if name.endswith(NIFTI_SUFFIXES):
        return "nifti"  # whole or not: its reader names the fault
    return "archive" if name.endswith(ARCHIVE_SUFFIXES) else None


def _kind_by_content(path: Path, head: bytes) -> Kind | None:
    name = path.name.lower()
    if name.endswith(".hl7") or head.removeprefix(b"\xef\xbb\xbf").lstrip(b"\x0b\r\n ").startswith(
        (b"MSH|", b"FHS|", b"BHS|")
    ):
        return "hl7"
    if name.endswith(".txt"):
        return "other" if path.stem.lower() in _NO_REPORT else "text"
    if head and is_nifti(path):
        return "nifti"
    plain = not path.suffix
    return "archive" if plain and (head.startswith(b"PK\3\4") or head[257:262] == b"ustar") else None


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(262)
