"""Files that are either the old one or the whole new one, and their hashes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from medvl.errors import UsageError

__all__ = ["atomic_file", "file_sha256", "new_folder", "write_atomic"]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal, as every manifest lists it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file that is either the old one or the whole new one, whatever happens.

    The bytes go to a temporary file in the same folder, reach the disk, and then take the name.
    """
    with atomic_file(path) as stream:
        stream.write(data)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a stream whose bytes become the file when the block ends well; see :func:`write_atomic`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a draft beside ``out`` that takes its name when the block ends well, and is removed otherwise.

    Raises:
        UsageError: ``out`` is there already and is not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("the output folder is not empty.", hint="Choose a new folder.")
    draft = out.with_name(f".{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)  # of a call that was killed
    draft.mkdir(parents=True)
    try:
        yield draft
        draft.rename(out)  # also onto an empty folder
    except Exception:
        shutil.rmtree(draft, ignore_errors=True)
        raise
