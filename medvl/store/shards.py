"""Tar shards: written whole, byte for byte a function of their records, read by offset."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import re
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Shaped, UInt8

from medvl.errors import StoreError
from medvl.records import Record
from medvl.store.files import write_atomic
from medvl.store.payload import PACKED, decode, pack
from medvl.store.schema import AGAIN

__all__ = ["Sample", "read_payload", "read_pixels", "write_payloads", "write_shard"]

Sample: TypeAlias = (
    tuple[Record, Shaped[np.ndarray, "..."]] | tuple[Record, Shaped[np.ndarray, "..."], bytes, str]
)
"""A record and its array; or both, the codestream of the source and its kind."""

_PLACE = ("shard", "offset", "size", "crc32")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ID = re.compile(r"[A-Za-z0-9]+")
_SHARD = re.compile(r"[A-Za-z0-9_-]+\.tar")


def write_shard(path: Path, samples: Iterable[Sample]) -> list[Record]:
    """Write one shard atomically and return its records with payload and place filled in.

    A sample may carry the codestream of its source (see :func:`medvl.store.original_payload`); it is stored
    instead of the packed array if it decodes to exactly the array and is smaller.

    Raises:
        StoreError: see :func:`write_payloads`.
    """
    return write_payloads(path, (_coded(*sample) for sample in samples))


def _coded(
    record: Record, array: Shaped[np.ndarray, "..."], original: bytes = b"", kind: str = PACKED
) -> tuple[Record, bytes]:
    packed = pack(array)
    if kind != PACKED and len(original) < len(packed) and _same(original, kind, array):
        return dataclasses.replace(record, payload=kind), original
    return dataclasses.replace(record, payload=PACKED), packed


def _same(original: bytes, kind: str, array: Shaped[np.ndarray, "..."]) -> bool:
    try:
        return bool((decode(original, kind, shape=array.shape, dtype=str(array.dtype)) == array).all())
    except StoreError:
        return False


def write_payloads(path: Path, samples: Iterable[tuple[Record, bytes]]) -> list[Record]:
    """Write one shard of payloads that are coded already, as ``record.payload`` says.

    The bytes depend on the samples alone: members have no time, owner or mode of their own. A lone
    surrogate, which no file can hold, becomes U+FFFD in its place, so every span still fits.

    Raises:
        StoreError: an id is not letters and digits, or a number of a record is not finite.
    """
    stream = io.BytesIO()
    placed: list[Record] = []
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for given, payload in samples:
            record = _writable(given)
            offset = _add(tar, f"{record.record_id}.{record.payload}", payload)
            _add(tar, f"{record.record_id}.txt", "\n".join(record.retrieval).encode())
            about = {k: v for k, v in dataclasses.asdict(record).items() if k not in _PLACE}
            _add(tar, f"{record.record_id}.json", json.dumps(about, sort_keys=True).encode())
            placed.append(
                dataclasses.replace(
                    record, shard=path.name, offset=offset, size=len(payload), crc32=zlib.crc32(payload)
                )
            )
    write_atomic(path, stream.getvalue())
    return placed


def _writable(record: Record) -> Record:
    if not _ID.fullmatch(record.record_id):  # WebDataset cuts a key at its first dot
        raise StoreError(f"the record id {record.record_id!r} is not made of letters and digits alone.")
    numbers = [*(record.spacing_mm or ()), *(v for b in record.boxes for v in (b.x0, b.y0, b.x1, b.y1))]
    if not all(math.isfinite(value) for value in numbers):
        raise StoreError(
            f"record {record.record_id} has a spacing or a box that is not finite: {numbers}.",
            hint="Correct the header or the box table.",
        )

    def plain(lines: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_SURROGATE.sub("\ufffd", line) for line in lines)

    return dataclasses.replace(
        record,
        report=_SURROGATE.sub("\ufffd", record.report),
        changes=tuple(
            dataclasses.replace(change, shown=_SURROGATE.sub("\ufffd", change.shown))
            for change in record.changes
        ),
        retrieval=plain(record.retrieval),
        generation=plain(record.generation),
        rewritten=plain(record.rewritten),
    )


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = 0o644
    offset = tar.fileobj.tell() + tarfile.BLOCKSIZE  # type: ignore[union-attr]  # USTAR: one header block
    tar.addfile(member, io.BytesIO(data))
    return offset


def read_payload(shards: Path, record: Record) -> bytes:
    """Read the bytes of one payload from a folder of shards by their offset.

    Raises:
        StoreError: the shard is missing, the payload is cut short, or its checksum differs.
    """
    if not _SHARD.fullmatch(record.shard):
        raise StoreError(f"{record.shard!r} is not the name of a shard.", hint=AGAIN)
    try:
        shard = os.open(f"{shards}/{record.shard}", os.O_RDONLY)  # joining paths takes longer
    except FileNotFoundError as error:
        raise StoreError(f"shard {record.shard} is missing.", hint=AGAIN) from error
    try:
        payload = os.pread(shard, record.size, record.offset)
    finally:
        os.close(shard)
    if len(payload) != record.size or zlib.crc32(payload) != record.crc32:
        raise StoreError(
            f"record {record.record_id} in shard {record.shard} is damaged: {len(payload)} of "
            f"{record.size} bytes, checksum {zlib.crc32(payload)} instead of {record.crc32}.",
            hint=AGAIN,
        )
    return payload


def read_pixels(
    shards: Path, record: Record, *, room: UInt8[np.ndarray, " bytes"] | None = None
) -> Shaped[np.ndarray, "..."]:
    """Read one stored array from a folder of shards by its offset, into ``room`` if it is large enough.

    Raises:
        StoreError: see :func:`read_payload`; or the payload is not what the record promises.
    """
    payload = read_payload(shards, record)
    return decode(payload, record.payload, shape=record.shape, dtype=record.dtype, room=room)
