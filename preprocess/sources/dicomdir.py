"""What a DICOMDIR lists, compared with what was found; nothing is ever opened by its word.

A reference is a list of path components (PS3.10 8.2). It is looked up among the files that were found
below the source, so that a hostile one leads nowhere (CVE-2026-32711).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from medvl.errors import InputError, file_token
from medvl.preprocess.reading.limits import DEFAULT_LIMITS
from medvl.preprocess.reading.part10 import missing, opened, values
from medvl.preprocess.sources.discovery import SourceFile
from medvl.preprocess.sources.rows import Unpaired

__all__ = ["check_dicomdirs", "folder_of", "references"]

_VERSION = re.compile(r";\d+$")  # ISO 9660 writes IM0001;1
_MAX_PARTS = 64


def folder_of(source: Path) -> Path:
    """Return the folder of a source that is a DICOMDIR file, any other source as it is.

    Examples:
        >>> folder_of(Path("no_such_disk")).as_posix()
        'no_such_disk'
    """
    named = source.name.upper().startswith("DICOMDIR")
    return source.parent if named and source.is_file() else source


def references(path: Path) -> list[tuple[str, ...]]:
    """Return the file references of a DICOMDIR as lists of components.

    Raises:
        InputError: the file cannot be read.
    """
    with opened(path, limits=DEFAULT_LIMITS, lenient=True) as part10:
        if "DirectoryRecordSequence" not in part10.dataset:
            raise missing("DirectoryRecordSequence")
        records = values(part10.dataset, "DirectoryRecordSequence")
        found = [values(record, "ReferencedFileID") for record in records]
    return [tuple(str(part) for part in parts) for parts in found if parts]


def check_dicomdirs(files: Sequence[SourceFile]) -> tuple[list[Unpaired], list[str]]:
    """Return the references that lead to no file, and a note for each DICOMDIR.

    Letter case and ISO 9660 versions do not count: media say ``IM0001;1`` and disks ``im0001``.
    """
    known = {_folded(file.relative): file for file in files}
    unpaired: list[Unpaired] = []
    notes: list[str] = []
    for file in files:
        if file.kind == "dicomdir":
            try:
                listed = references(file.path)
            except InputError:
                unpaired.append(Unpaired("dicomdir_damaged", file_token(file.path), path=file.path))
                continue
            lost = list(_lost(file, listed, known))
            unpaired += lost
            notes.append(
                f"a DICOMDIR lists {len(listed)} files; {len(listed) - len(lost)} of them were found"
            )
    return unpaired, notes


def _lost(
    directory: SourceFile, listed: Sequence[tuple[str, ...]], known: dict[str, SourceFile]
) -> Iterator[Unpaired]:
    folder = directory.relative.rpartition("/")[0]
    for parts in listed:
        hostile = any(_is_hostile(part) for part in parts) or len(parts) > _MAX_PARTS
        found = None if hostile else known.get(_folded("/".join((*([folder] if folder else []), *parts))))
        if hostile or (found is not None and found.kind == "outside"):
            yield Unpaired("dicomdir_reference_outside", file_token(directory.path), path=directory.path)
        elif found is None:
            yield Unpaired(
                "dicomdir_reference_missing",
                file_token(parts[-1]),
                path=directory.path.parent.joinpath(*parts),
            )


def _is_hostile(part: str) -> bool:
    return part in ("", ".", "..") or bool(re.search(r"[/\\\x00-\x1f]|^[A-Za-z]:", part)) or len(part) > 255


def _folded(relative: str) -> str:
    return "/".join(_VERSION.sub("", part).casefold() for part in relative.split("/"))
