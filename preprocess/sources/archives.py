"""A zip or tar becomes a folder of plain files, or nothing: no links, no way out, no bombs.

An archive is unpacked beside its target and renamed when it is whole, so a killed extraction is done
again and a finished one, known by the archive's digest, is left as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import lzma
import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from medvl.errors import BadArchive, DecompressionLimit, MedvlError, StoreError, UsageError
from medvl.preprocess.sources.tar import tar_members
from medvl.progress import Progress

__all__ = ["ARCHIVE_SUFFIXES", "ArchiveLimits", "UnpackSummary", "unpack"]

ARCHIVE_SUFFIXES = (
    *(".zip", ".tar", ".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz"),
    *(".7z", ".rar", ".tar.zst"),
)
"""What counts as an archive by name; the last three can only be named, not unpacked."""


_MARKER = ".unpacked.json"
_BLOCK = 1 << 20
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)  # LZMA may ask for 4 GB
_NO_ROOM = "Free some space, or unpack it by hand and give the folder."


@dataclass(frozen=True)
class ArchiveLimits:
    """What one archive may cost.

    Attributes:
        max_entries: files and folders.
        max_bytes: of all files together, as they are written.
        max_ratio: bytes written over bytes of the archive, past ``ratio_floor``.
        ratio_floor: bytes below which any ratio is fine.
    """

    max_entries: int = 300_000
    max_bytes: int = 2**40
    max_ratio: int = 100
    ratio_floor: int = 2**24


@dataclass(frozen=True)
class UnpackSummary:
    """What an extraction wrote, or found written: files, their bytes, the archive's digest."""

    files: int
    bytes: int
    digest: str
    reused: bool = False


def unpack(
    archive: Path,
    into: Path,
    *,
    limits: ArchiveLimits | None = None,
    progress: Progress | None = None,
) -> UnpackSummary:
    """Write the regular files of a zip or tar (plain, gzip, bzip2, xz) below a folder.

    One entry that does not belong refuses the whole archive, and nothing of it stays. Modes, owners and
    times are not taken over: every file is the user's own, readable by nobody else. Sizes are counted as
    they are written; what an archive declares is not believed.

    Args:
        archive: the file; its content decides what it is.
        into: the folder to make; a finished extraction of the same archive is left as it is.
        limits: what it may cost.
        progress: called with bytes of the archive done, its size, and the step.

    Raises:
        BadArchive: damaged, encrypted, no archive, or with an entry that is a link, a device, a name that
            leads out of the folder or a second file of one name.
        DecompressionLimit: more entries or bytes than allowed.
        UsageError: the folder holds something else.
        StoreError: the files cannot be written.
    """
    limits = limits or ArchiveLimits()
    digest = _digest(archive)
    done = _finished(into)
    if done is not None and done.digest == digest:
        return UnpackSummary(done.files, done.bytes, digest, reused=True)
    if into.exists():
        raise UsageError(
            "the folder to unpack into holds other files than those of this archive.",
            hint="Choose another output folder, or remove that one.",
        )
    partial = into.with_name(f"{into.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True, mode=0o700)
        sink = _Sink(partial, size=archive.stat().st_size, limits=limits, progress=progress)
        with archive.open("rb") as stream:
            _read(stream, sink)
        summary = UnpackSummary(sink.files, sink.bytes, digest)
        (partial / _MARKER).write_text(json.dumps(asdict(summary)), "utf-8")
        partial.replace(into)
    except OSError as error:
        raise StoreError(f"the archive cannot be unpacked: {error.strerror}.", hint=_NO_ROOM) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return summary


def _digest(archive: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with archive.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise BadArchive(f"the archive cannot be read: {error.strerror}.") from error
    return digest.hexdigest()


def _finished(into: Path) -> UnpackSummary | None:
    try:
        kept = json.loads((into / _MARKER).read_text("utf-8"))
        return UnpackSummary(int(kept["files"]), int(kept["bytes"]), str(kept["digest"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


# --- writing ------------------------------------------------------------------------------------------------


class _Sink:
    """The folder under construction; it alone decides on names and counts what is written."""

    def __init__(self, folder: Path, *, size: int, limits: ArchiveLimits, progress: Progress | None) -> None:
        self.folder = folder
        self.root = folder.resolve()
        self.size = size
        self.limits = limits
        self.progress = progress
        self.files = 0
        self.bytes = 0
        self.entries = 0
        self.allowed = min(limits.max_bytes, max(limits.ratio_floor, limits.max_ratio * size))

    def count(self) -> None:
        self.entries += 1
        if self.entries > self.limits.max_entries:
            raise too_many(self.limits.max_entries)

    def write(self, name: str, pieces: Iterator[bytes]) -> None:
        """Write one file from its pieces."""
        parts = safe_parts(name)
        target = self.folder.joinpath(*parts)
        try:
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not target.parent.resolve().is_relative_to(self.root):  # cannot be: nothing here is a link
                raise _leaves()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
            handle = os.open(target, flags, 0o600)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise BadArchive(
                "the archive holds two entries of one name.", hint="Pack it again without the older one."
            ) from error
        with os.fdopen(handle, "wb") as stream:
            for piece in pieces:
                self.bytes += len(piece)
                if self.bytes > self.allowed:
                    raise DecompressionLimit(
                        f"the archive of {self.size:,} bytes grows to more than {self.allowed:,}; the limit "
                        f"is {self.limits.max_ratio} times its size and {self.limits.max_bytes:,} bytes.",
                        hint="If you trust it, unpack it by hand and give the folder.",
                    )
                stream.write(piece)
        self.files += 1

    def tell(self, done: int) -> None:
        if self.progress is not None:
            self.progress(min(done, self.size), self.size, "unpacking")


def safe_parts(name: str) -> tuple[str, ...]:
    """Return the components of an entry's name below the target folder.

    Raises:
        BadArchive: the name is absolute, climbs, is empty, or holds characters that no file name should.
    """
    if re.search(r"[\x00-\x1f\x7f]", name):
        raise BadArchive("a name in the archive holds control characters.", hint="Pack it again.")
    parts = re.split(r"[/\\]", name)
    if ".." in parts or not parts[0] or re.match(r"[A-Za-z]:", parts[0]):
        raise _leaves()
    parts = [part for part in parts if part not in ("", ".")]
    longest = max((len(os.fsencode(part)) for part in parts), default=0)
    if not parts or longest > 255 or len(parts) > 64:
        raise BadArchive(
            f"a name in the archive has {len(parts)} components, the longest of {longest} bytes; allowed are "
            "1 to 64 of at most 255.",
            hint="Pack it again.",
        )
    return tuple(parts)


def _leaves() -> BadArchive:
    return BadArchive(
        "a name in the archive leads out of the folder it is unpacked into.",
        hint="Do not trust this archive; nothing of it was kept.",
    )


def too_many(limit: int) -> DecompressionLimit:
    """Return the error of an archive with too many entries."""
    return DecompressionLimit(
        f"the archive has more than {limit:,} entries.",
        hint="If you trust it, unpack it by hand and give the folder.",
    )


# --- reading ------------------------------------------------------------------------------------------------


def _read(stream: io.BufferedIOBase, sink: _Sink) -> None:
    head = stream.read(6)
    stream.seek(0)
    try:
        if head.startswith(b"PK"):
            _unzip(stream, sink)
        else:
            _untar(stream, sink)
    except MedvlError:
        raise
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, struct.error, ValueError) as error:
        raise _damaged(type(error).__name__) from error
    except (NotImplementedError, RuntimeError) as error:
        raise BadArchive("the zip uses a feature that is not read.", hint="Pack it again.") from error
    except OSError as error:
        if error.errno is None:  # what gzip and bz2 raise for bad data
            raise _damaged(type(error).__name__) from error
        raise


def _damaged(what: str) -> BadArchive:
    return BadArchive(f"the archive is damaged ({what}).", hint="Copy or export it again.")


def _untar(stream: io.BufferedIOBase, sink: _Sink) -> None:
    for member in tar_members(stream):
        sink.count()
        if member.kind == "file":
            sink.write(member.name, member.pieces)
        elif member.kind != "folder":
            raise BadArchive(
                f"the archive holds a {member.kind}; only files and folders are unpacked.",
                hint="Pack it again without links and devices.",
            )
        elif member.name.strip("/") not in ("", "."):
            safe_parts(member.name)
        sink.tell(stream.tell())


def _unzip(stream: io.BufferedIOBase, sink: _Sink) -> None:
    _check_directory(stream, sink.limits.max_entries)
    done = 0
    with zipfile.ZipFile(stream) as archive:
        for info in archive.infolist():
            sink.count()
            name = info.orig_filename
            mode = info.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise BadArchive(
                    "the archive holds a link or a device; only files and folders are unpacked.",
                    hint="Pack it again without them.",
                )
            if info.flag_bits & 0x1:
                raise BadArchive("the zip is encrypted.", hint="Unpack it by hand and give the folder.")
            if name.endswith(("/", "\\")):
                safe_parts(name)
                continue
            if info.compress_type not in _ZIP_METHODS:
                raise BadArchive(
                    f"the zip uses compression method {info.compress_type}; allowed are stored, deflate and "
                    "bzip2.",
                    hint="Unpack it by hand and give the folder.",
                )
            sink.write(name, _zip_pieces(archive, info))
            done += info.compress_size
            sink.tell(done)


def _zip_pieces(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    # zipfile stops at the declared size and compares the checksum: too small a lie ends as BadZipFile
    size = 0
    with archive.open(info) as member:
        while piece := member.read(_BLOCK):
            size += len(piece)
            yield piece
    if size != info.file_size:
        raise _damaged("declared size")


def _check_directory(stream: io.BufferedIOBase, max_entries: int) -> None:
    """Count the entries of the central directory before zipfile makes an object of each (APPNOTE 4.3.12)."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - 65_557))
    tail = stream.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < 22:
        raise _damaged("no end record")
    length = int.from_bytes(tail[at + 12 : at + 16], "little")
    start = size - len(tail) + at
    locator = tail[max(0, at - 20) : at]
    if locator.startswith(b"PK\6\7"):  # zip64: the record that holds the real size lies before its locator
        start -= 20 + 56
        stream.seek(max(0, start))
        length = int.from_bytes(stream.read(56)[40:48], "little")
    if not 0 <= length <= start:
        raise _damaged("directory size")
    stream.seek(start - length)
    end = start
    entries = 0
    while stream.tell() < end:
        header = stream.read(46)
        if len(header) < 46 or not header.startswith(b"PK\1\2"):
            break
        entries += 1
        if entries > max_entries:
            raise too_many(max_entries)
        stream.seek(sum(struct.unpack("<3H", header[28:34])), os.SEEK_CUR)
    with contextlib.suppress(OSError):
        stream.seek(0)
