"""Keyed pseudonyms: whoever holds the key can name a patient again, nobody else can."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medvl.errors import UsageError
from medvl.preprocess.sources.cells import safe_cell
from medvl.store import write_atomic

__all__ = ["KEY_BYTES", "Pseudonyms", "keep_key", "write_secret_table", "write_sources", "write_unpaired"]

KEY_BYTES = 32


@dataclass(frozen=True)
class Pseudonyms:
    """Ids as keyed BLAKE2b hashes: equal names give equal ids, and the key alone leads back.

    Args:
        key: secret bytes, 16 to 64 of them.

    Raises:
        UsageError: the key is too short or too long.

    Examples:
        >>> ids = Pseudonyms(bytes(32))
        >>> ids.patient("DOE^JOHN")
        '5f349942b9577949f609'
        >>> ids.patient("DOE^JOHN") == ids.study("DOE^JOHN")
        False
    """

    key: bytes

    def __post_init__(self) -> None:
        if not 16 <= len(self.key) <= hashlib.blake2b.MAX_KEY_SIZE:
            raise UsageError(
                f"the pseudonym key has {len(self.key)} bytes; allowed are 16 to 64.",
                hint="Make one with: head -c 32 /dev/urandom",
            )

    def patient(self, name: str) -> str:
        """Return the id of a patient or group."""
        return self._hash("patient", name)

    def study(self, name: str) -> str:
        """Return the id of a study."""
        return self._hash("study", name)

    def record(self, source: str) -> str:
        """Return the id of one image, named by its path below the source folder."""
        return self._hash("record", source)

    def accession(self, number: str) -> str:
        """Return the pseudonym of an accession number, 16 characters as SH allows (PS3.5 6.2)."""
        return self._hash("accession", number)[:16]

    def uid(self, uid: str) -> str:
        """Return the UID that stands for another one, in the form that UUIDs take (PS3.5 B.2).

        Examples:
            >>> Pseudonyms(bytes(32)).uid("1.2.840.113619.2.5")
            '2.25.236157255599926588669431210262301927197'
        """
        return f"2.25.{int.from_bytes(self._digest('uid', uid, size=16), 'big')}"

    def shift_days(self, patient: str) -> int:
        """Return by how many days the dates of a patient move: 1 to 365 back, one number a patient.

        Examples:
            >>> Pseudonyms(bytes(32)).shift_days("DOE^JOHN")
            -58
        """
        return -1 - int.from_bytes(self._digest("shift", patient, size=16), "big") % 365

    def _hash(self, kind: str, name: str) -> str:
        return self._digest(kind, name, size=10).hex()

    def _digest(self, kind: str, name: str, *, size: int) -> bytes:
        data = name.encode("utf-8", "surrogateescape")
        return hashlib.blake2b(data, digest_size=size, key=self.key, person=kind.encode()).digest()


def keep_key(private: Path, *, given: bytes | None = None) -> bytes:
    """Return the key of an output folder; the first call makes it, or takes the given one.

    The file is readable by its owner alone (mode 0600).

    Raises:
        UsageError: another key is given than the one the folder was begun with.
    """
    path = private / "key"
    if path.is_file():
        key = bytes.fromhex(path.read_text("ascii"))
        if given is not None and given != key:
            raise UsageError(
                "the given pseudonym key is not the one that this output folder was begun with.",
                hint="Leave the key out to go on with the kept one, or choose another output folder.",
            )
        return key
    key = given if given is not None else secrets.token_bytes(KEY_BYTES)
    Pseudonyms(key)
    _write_secret(path, key.hex().encode())
    return key


def write_sources(private: Path, rows: Iterable[tuple[str, str, str]]) -> None:
    """Write the table that leads from a record id and a file token back to the source path.

    Args:
        private: the private folder of the store.
        rows: record id, file token and path below the source folder.
    """
    _write_table(private / "sources.csv", ("item", "token", "path"), rows)


def write_unpaired(private: Path, rows: Iterable[tuple[str, str, str, str, str]]) -> None:
    """Write the table of all that was left without a partner.

    Args:
        private: the private folder of the store.
        rows: reason, file token, path below the source folder, line of the report table, what to do.
    """
    _write_table(private / "unpaired.csv", ("reason", "token", "path", "line", "hint"), rows)


def write_pairing(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Write what became of each file and row of a source; the first row names the columns."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(map(safe_cell, row) for row in rows)
    write_secret_table(path, stream.getvalue())


def write_secret_table(path: Path, text: str) -> None:
    """Write a table that leads back to people, readable by its owner alone (mode 0600)."""
    _write_secret(path, text.encode("utf-8", "surrogateescape"))


def _write_table(path: Path, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(map(safe_cell, row) for row in rows)
    _write_secret(path, stream.getvalue().encode("utf-8", "surrogateescape"))


def _write_secret(path: Path, data: bytes) -> None:
    previous = os.umask(0o077)
    try:
        write_atomic(path, data)
    finally:
        os.umask(previous)
