"""The members of a tar, one after the other, in bounded memory (POSIX 1003.1-2001 pax, ustar, GNU).

``tarfile`` takes a truncated archive for a complete one and reads a header of any declared size into
memory; this reader does neither, and knows no way to write a file.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Iterator
from dataclasses import dataclass

from medvl.errors import BadArchive, DecompressionLimit

__all__ = ["Member", "tar_members"]

_RECORD = 512
_PIECE = 1 << 20
_MAX_HEADER = 1 << 16
_XZ_MEMORY = 1 << 28
_EXTENSIONS = (b"x", b"g", b"X", b"L", b"K", b"V", b"N")
"""Headers that only describe the next entry; of these, the name and the size of ``x`` and ``L`` count."""
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
_KINDS = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"1": "hard link",
    b"2": "symbolic link",
    b"3": "device",
    b"4": "device",
    b"5": "folder",
    b"6": "pipe",
    b"S": "sparse file",
}


@dataclass(frozen=True)
class Member:
    """One entry: its name as stored, what it is, and its bytes, to be read before the next one."""

    name: str
    kind: str
    size: int
    pieces: Iterator[bytes]


class _Xz(io.BufferedIOBase):
    """An xz stream with a cap on the memory that its header may ask for, which ``lzma.open`` lacks."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self.stream = stream
        self.inflater = self._new()

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)

    def read(self, size: int | None = -1) -> bytes:
        while True:
            if self.inflater.eof:
                rest = (self.inflater.unused_data or self.stream.read(_PIECE)).lstrip(b"\0")
                if not rest:
                    return b""
                self.inflater = self._new()
            elif self.inflater.needs_input:
                rest = self.stream.read(_PIECE)
                if not rest:
                    raise EOFError
            else:
                rest = b""
            if piece := self.inflater.decompress(rest, -1 if size is None else size):
                return piece


def _opened(stream: io.BufferedIOBase) -> io.BufferedIOBase:
    head = stream.read(6)
    stream.seek(0)
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=stream)
    if head.startswith(b"BZh"):
        return bz2.BZ2File(stream)
    if head == b"\xfd7zXZ\0":
        return _Xz(stream)
    return stream


def tar_members(stream: io.BufferedIOBase) -> Iterator[Member]:
    """Yield the members of a tar, plain or compressed, in order.

    Raises:
        BadArchive: no tar, damaged, or cut off.
        DecompressionLimit: a header longer than 64 KiB.
    """
    source = _opened(stream)
    extended: dict[str, str] = {}
    header = _header(source, first=True)
    while header:
        kind, size = header[156:157], _number(header[124:136])
        if kind in _EXTENSIONS:
            extended |= _extension(source, kind, size)
        else:
            name = extended.get("path") or _name(header)
            what = _kind(kind, name, extended)
            left = [_whole(extended["size"]) if "size" in extended else size]
            if kind in _WITHOUT_DATA:
                left = [0]
            padding = -left[0] % _RECORD
            yield Member(name, what, left[0], _pieces(source, left))
            for _ in _pieces(source, left):  # whatever the caller did not read
                pass
            _skip(source, padding)
            extended = {}
        header = _header(source, first=False)


def _header(source: io.BufferedIOBase, *, first: bool) -> bytes:
    """Return the next header record, b"" at the end: two zero records, or none at all."""
    header = _read(source, _RECORD)
    if first and (len(header) < _RECORD or not _checksum_holds(header)):
        raise _no_tar()
    if header and len(header) < _RECORD:
        raise _cut()
    if not header.strip(b"\0"):
        return b""
    if not _checksum_holds(header):
        raise _damaged("header checksum")
    return header


def _kind(kind: bytes, name: str, extended: dict[str, str]) -> str:
    if any(key.startswith("GNU.sparse") for key in extended):
        return "sparse file"
    if kind == b"\0" and name.endswith("/"):
        return "folder"  # how tars older than POSIX wrote folders
    return _KINDS.get(kind, "special entry")


def _pieces(source: io.BufferedIOBase, left: list[int]) -> Iterator[bytes]:
    while left[0]:
        piece = source.read(min(left[0], _PIECE))
        if not piece:
            raise _cut()
        left[0] -= len(piece)
        yield piece


def _read(source: io.BufferedIOBase, size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := source.read(size - len(data))):
        data += piece
    return data


def _skip(source: io.BufferedIOBase, padding: int) -> None:
    if len(_read(source, padding)) < padding:
        raise _cut()


def _extension(source: io.BufferedIOBase, kind: bytes, size: int) -> dict[str, str]:
    if size > _MAX_HEADER:
        raise DecompressionLimit(
            f"a header of the archive has {size:,} bytes; the limit is {_MAX_HEADER:,}.",
            hint="Pack it again with plain names.",
        )
    data = _read(source, size)
    if len(data) < size:
        raise _cut()
    _skip(source, -size % _RECORD)
    if kind == b"L":
        return {"path": _text(data.rstrip(b"\0"))}
    return _pax(data) if kind == b"x" else {}


def _pax(data: bytes) -> dict[str, str]:
    """Return the records of a pax header: length, keyword, equals sign, value, newline."""
    found: dict[str, str] = {}
    while data:
        length, _, rest = data.partition(b" ")
        count = _whole(_text(length))
        record = data[len(length) + 1 : count]
        key, equals, value = record.rstrip(b"\n").partition(b"=")
        if not rest or not equals or count <= len(length) + 1 or count > len(data):
            raise _damaged("pax header")
        found[_text(key)] = _text(value)
        data = data[count:]
    return found


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _whole(digits: str) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        raise _damaged("a size that is no number")
    return int(digits)


def _number(field: bytes) -> int:
    """Return a size: octal digits, or GNU's big-endian binary marked by the highest bit."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not all(0x30 <= digit <= 0x37 for digit in digits):
        raise _damaged("a size that is no number")
    return int(digits or b"0", 8)


def _checksum_holds(header: bytes) -> bool:
    try:
        stored = _number(header[148:156])
    except BadArchive:
        return False
    blanked = header[:148] + b" " * 8 + header[156:]
    return stored == sum(blanked) or stored == sum(byte - 256 if byte > 127 else byte for byte in blanked)


def _damaged(what: str) -> BadArchive:
    return BadArchive(f"the archive is damaged ({what}).", hint="Copy or export it again.")


def _cut() -> BadArchive:
    return BadArchive("the archive is cut off.", hint="Copy or export it again.")


def _no_tar() -> BadArchive:
    return BadArchive(
        "the file is neither a zip nor a tar, plain or packed by gzip, bzip2 or xz.",
        hint="Unpack it by hand and give the folder.",
    )
