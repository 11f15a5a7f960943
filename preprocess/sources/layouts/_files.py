"""The files below the folder of a public data set, listed once by name: no image is opened."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medvl.errors import InputError, UsageError, file_token
from medvl.preprocess.reports.parsing import MAX_CHARACTERS

__all__ = ["PICTURES", "VOLUMES", "Listing", "find_table", "peek", "read_report"]

PICTURES = (".dcm", ".dicom", ".png", ".jpg", ".jpeg", ".tif", ".tiff")
"""Suffixes of single images, the one that keeps most of the signal first."""

VOLUMES = (".nii.gz", ".nii", ".svs", ".ndpi")
"""Suffixes of volumes and slides."""

_MOST_BYTES = 4 * MAX_CHARACTERS


@dataclass(frozen=True)
class Listing:
    """All files below ``source``.

    Attributes:
        files: paths below the source with ``/``, in order.
        outside: links that lead out of the source; nothing behind them is used.
    """

    source: Path
    files: tuple[str, ...]
    outside: tuple[str, ...] = ()

    @classmethod
    def of(cls, source: Path) -> Listing:
        """List a folder; hidden files, record stores and what lies behind linked folders are passed over.

        Raises:
            UsageError: the source is not a folder.
        """
        if not source.is_dir():
            raise UsageError("the source is not a folder.", hint="Give the folder that holds the data set.")
        root, files, outside, todo = source.resolve(), [], [], [""]
        while todo:
            folder = todo.pop()
            try:
                with os.scandir(source / folder) as entries:
                    found = [entry for entry in entries if entry.name[0] != "." and entry.name != "__MACOSX"]
            except OSError:
                continue
            if {"store.json", "index.parquet"} <= {entry.name for entry in found}:
                continue
            for entry in found:
                relative = f"{folder}{entry.name}"
                if entry.is_symlink():
                    if not Path(entry.path).resolve().is_relative_to(root):
                        outside.append(relative)
                elif entry.is_dir():
                    todo.append(f"{relative}/")
                elif entry.is_file():
                    files.append(relative)
        return cls(source, tuple(sorted(files)), tuple(sorted(outside)))

    def ending(self, suffixes: Sequence[str]) -> list[str]:
        """Return the files with one of the suffixes, in any case."""
        ends = tuple(suffixes)
        return [name for name in self.files if name.lower().endswith(ends)]


def find_table(folder: Path, pattern: str) -> Path | None:
    r"""Return the first file whose whole name fits a regular expression; ``.gz`` may follow.

    Examples:
        >>> find_table(Path("no_such_folder"), r"train\.csv") is None
        True
    """
    fits = re.compile(rf"(?:{pattern})(?:\.gz)?", re.IGNORECASE)
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in entries if fits.fullmatch(entry.name) and entry.is_file()]
    except OSError:
        return None
    return folder / min(found) if found else None


def peek(folder: Path, *levels: str, most: int = 20) -> list[str]:
    """Return the names of a few files some levels below a folder, having looked at a few folders only.

    Args:
        folder: where to begin.
        levels: a regular expression of the whole name at each level; the last one is of files.
        most: how many to return.
    """
    return list(itertools.islice(_peek(folder, levels), most))


def _peek(folder: Path, levels: Sequence[str]) -> Iterator[str]:
    fits = re.compile(levels[0], re.IGNORECASE)
    try:
        with os.scandir(folder) as entries:
            found = sorted(
                (entry for entry in itertools.islice(entries, 1000) if fits.fullmatch(entry.name)),
                key=lambda entry: entry.name,
            )
    except OSError:
        return
    if len(levels) == 1:
        yield from (entry.name for entry in found if entry.is_file(follow_symlinks=False))
        return
    for entry in found[:20]:
        if entry.is_dir(follow_symlinks=False):
            yield from _peek(Path(entry.path), levels[1:])


def read_report(path: Path) -> str:
    """Read a report from a text file in UTF-8 or Windows-1252.

    Raises:
        InputError: it cannot be read, or is larger than any report.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"the report {file_token(path)} cannot be read.") from error
    if len(data) > _MOST_BYTES:
        raise InputError(f"the report {file_token(path)} has more than {_MOST_BYTES:,} bytes.")
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace").strip()
