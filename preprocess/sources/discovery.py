"""The files below a source folder, in a fixed order, each with its kind by content."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medvl.errors import InputError, UsageError
from medvl.preprocess.reading import kind_of

__all__ = ["IMAGE_SUFFIXES", "TABLE_SUFFIXES", "SourceFile", "discover"]

IMAGE_SUFFIXES = (".dcm", ".dicom", ".ima", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")

Kind = Literal["dicom", "raster", "damaged", "table", "outside", "unreadable", "other"]


@dataclass(frozen=True)
class SourceFile:
    """A file below the source; ``relative`` is its path below it, with ``/``.

    Attributes:
        kind: by content: ``damaged`` is a file that should be an image and is empty or unreadable,
            ``outside`` a link that leads out of the source, ``other`` anything else.
    """

    path: Path
    relative: str
    kind: Kind


def discover(source: Path) -> list[SourceFile]:
    """List the files below a folder in the order of their paths, each with its kind by content.

    Hidden files, record stores and what lies behind linked folders are passed over; a linked file counts
    only if it leads out of the source, as ``outside``, since inside it is found under its own name.

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
    if {"store.json", "index.parquet"} <= {entry.name for entry in listed}:
        return
    for entry in listed:
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        path = folder / entry.name
        relative = path.relative_to(source).as_posix()
        if entry.is_symlink():
            if not path.resolve().is_relative_to(root):
                yield SourceFile(path, relative, "outside")
        elif entry.is_dir():
            yield from _walk(path, source, root)
        elif entry.is_file():
            yield SourceFile(path, relative, _kind(path))


def _kind(path: Path) -> Kind:
    if path.suffix.lower() in TABLE_SUFFIXES:
        return "table"
    try:
        kind = kind_of(path)
    except InputError:
        return "damaged"
    if kind == "dicom":
        return "other" if path.name == "DICOMDIR" else "dicom"
    if kind == "raster":
        return "raster"
    image_like = path.suffix.lower() in IMAGE_SUFFIXES
    if kind == "bare dicom":
        return "dicom" if image_like or not path.suffix else "other"
    return "damaged" if image_like or (kind == "empty" and not path.suffix) else "other"
