"""One chunk of the plan in one worker: read, reduce, parse, and write one shard and its part.

A chunk is finished when its part file exists; the shard is in place before that. Both take their
names in one step, so a killed worker leaves nothing that could be read by mistake.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gzip
import json
import logging
import multiprocessing
import os
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info

from medvl.errors import InputError, IrregularSeries, MedvlError, StoreError
from medvl.preprocess.plan import Chunk, Task
from medvl.preprocess.reading import kind_of
from medvl.preprocess.samples import make_sample
from medvl.records import Record
from medvl.store import record_row, row_record, write_atomic, write_shard
from medvl.store.shards import Sample

__all__ = ["Failure", "Part", "broken_rule", "prepare_chunk", "read_part", "refused_write", "start_worker"]


@dataclass(frozen=True)
class Failure:
    """One item that gave no record, and the rule that it broke."""

    item: str
    token: str
    rule: str
    message: str


@dataclass(frozen=True)
class Part:
    """What a finished chunk leaves behind for the index."""

    records: tuple[Record, ...]
    failures: tuple[Failure, ...]
    kinds: dict[str, int]
    """File format or transfer syntax to number of files."""


def start_worker(log: Path) -> None:
    """Prepare a worker process: it dies with its parent and prints nothing to the terminal.

    Readers and codecs write header values into warnings and to the standard error, so both go to a
    file in the private folder.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(stream, 2)
    os.close(stream)
    warnings.simplefilter("ignore")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)


def _die_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def prepare_chunk(task: Task, chunk: Chunk, poison: Mapping[int, str]) -> None:
    """Write the shard and the part of one chunk.

    Args:
        task: what all chunks share.
        chunk: the jobs.
        poison: jobs that stopped a worker before, by their place in the chunk, with the reason.

    Raises:
        StoreError: the disk is full or refuses to be written.
    """
    failures: list[Failure] = []
    shard = task.shard(chunk)
    try:
        # A folder of its own: a worker of a killed run may still be ending on the same chunk.
        draft = task.current(chunk).parent / str(os.getpid()) / shard.name
        draft.parent.mkdir(exist_ok=True)
        records = write_shard(draft, _samples(task, chunk, poison, failures))
        if records:
            draft.replace(shard)
        else:
            draft.unlink()
            shard.unlink(missing_ok=True)
        _write_part(task, chunk, Part(tuple(records), tuple(failures), _kinds(chunk)), shard)
        task.current(chunk).unlink(missing_ok=True)
    except OSError as error:
        raise refused_write(error) from error


def refused_write(error: OSError) -> StoreError:
    """Return the typed error of a write that the system refused."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    what = "there is no space left" if full else f"the system says {errno.errorcode.get(error.errno or 0)}"
    return StoreError(
        f"the record store cannot be written: {what}.",
        hint="Mend that and run the same command again; it resumes.",
    )


def _samples(
    task: Task, chunk: Chunk, poison: Mapping[int, str], failures: list[Failure]
) -> Iterator[Sample]:
    current = task.current(chunk)
    for place, job in enumerate(chunk.jobs):
        if place in poison:
            message = f"the reader stopped with {poison[place]}. Open the file with another viewer."
            failures.append(Failure(job.record_id, job.token, "ReaderCrash", message))
            continue
        current.write_text(str(place), "ascii")
        try:
            sample = make_sample(task, job)
        except MedvlError as error:
            failures.append(Failure(job.record_id, job.token, broken_rule(error), str(error)))
            continue
        yield sample
        del sample  # before the next one is made: a volume may be a gigabyte


def broken_rule(error: MedvlError) -> str:
    """Return the rule that an item broke, with the verdict where there is one.

    Examples:
        >>> broken_rule(IrregularSeries("…", verdict="rejected:tilt"))
        'IrregularSeries:tilt'
    """
    reasons = error.verdict.partition("rejected:")[2] if isinstance(error, IrregularSeries) else ""
    return f"{error.rule}:{reasons}" if reasons else error.rule


def _kinds(chunk: Chunk) -> dict[str, int]:
    kinds: Counter[str] = Counter()
    for job in chunk.jobs:
        files = job.files()
        kinds[_kind(files[0])] += len(files)
    return dict(sorted(kinds.items()))


def _kind(path: Path) -> str:
    with contextlib.suppress(InputError, InvalidDicomError, AttributeError, KeyError, ValueError, EOFError):
        if kind_of(path) == "dicom":
            return f"DICOM {read_file_meta_info(path).TransferSyntaxUID.name}"
        if path.name.lower().endswith((".nii", ".nii.gz")):
            return "NIfTI"
        suffix = path.suffix[1:].upper()
        return {"JPG": "JPEG", "TIF": "TIFF", "": "no suffix"}.get(suffix, suffix)
    return "DICOM without transfer syntax"


def _write_part(task: Task, chunk: Chunk, part: Part, shard: Path) -> None:
    values = {
        "plan": task.plan,
        "bytes": shard.stat().st_size if part.records else 0,
        "records": [record_row(record) for record in part.records],
        "failures": [dataclasses.asdict(failure) for failure in part.failures],
        "kinds": part.kinds,
    }
    write_atomic(task.part(chunk), gzip.compress(json.dumps(values).encode(), compresslevel=1, mtime=0))


def read_part(task: Task, chunk: Chunk) -> Part | None:
    """Return the part of a chunk, or None if it is missing, damaged or of another plan."""
    with contextlib.suppress(OSError, EOFError, ValueError, KeyError, TypeError, StoreError):
        values: dict[str, Any] = json.loads(gzip.decompress(task.part(chunk).read_bytes()))
        if values["plan"] != task.plan:
            return None
        if values["bytes"] and task.shard(chunk).stat().st_size != values["bytes"]:
            return None
        return Part(
            tuple(row_record(row) for row in values["records"]),
            tuple(Failure(**failure) for failure in values["failures"]),
            dict(values["kinds"]),
        )
    return None
