"""One chunk of the plan in one worker: read, reduce, parse, and write one shard and its part.

A chunk is finished when its part file exists; the shard is in place before that. Both take their
names in one step, so a killed worker leaves nothing that could be read by mistake.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gzip
import hashlib
import json
import logging
import multiprocessing
import os
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info

from medvl.errors import InputError, MedvlError, StoreError
from medvl.images import Image, Photometric
from medvl.preprocess.reading import kind_of, read_image
from medvl.preprocess.reports import hygiene_notes, mask_identity, parse_report
from medvl.records import Box, LabelState, Record
from medvl.specs import PixelSpec, ReportSpec, text_hash
from medvl.store import record_row, row_record, write_atomic, write_shard

__all__ = ["Chunk", "Failure", "Job", "Part", "Task", "prepare_chunk", "read_part", "start_worker"]


@dataclass(frozen=True, repr=False)
class Job:
    """One image of the plan with all that a record needs and the pixels do not tell.

    It has no ``repr``: an engine may log the arguments of a task that fails.
    """

    record_id: str
    study_id: str
    patient_id: str
    split: str
    path: str
    token: str
    report: str
    view: str | None = None
    laterality: str | None = None
    labels: dict[str, LabelState] = field(default_factory=dict)
    boxes: tuple[Box, ...] = ()
    """In pixels of the source."""


@dataclass(frozen=True, repr=False)
class Chunk:
    """The jobs of one shard."""

    number: int
    jobs: tuple[Job, ...]

    @property
    def name(self) -> str:
        """The stem of the shard's file name."""
        return f"{self.number:06d}"


@dataclass(frozen=True, repr=False)
class Task:
    """What all chunks of a run share."""

    out: Path
    modality: str
    pixels: PixelSpec
    report: ReportSpec
    plan: str
    """Digest of the plan; a part of another plan is not taken over."""

    def shard(self, chunk: Chunk) -> Path:
        """Return where the shard of a chunk lies."""
        return self.out / "shards" / f"{chunk.name}.tar"

    def part(self, chunk: Chunk) -> Path:
        """Return where the part of a chunk lies."""
        return self.out / "private" / "parts" / f"{chunk.name}.json.gz"

    def current(self, chunk: Chunk) -> Path:
        """Return the file that names the job which a worker is busy with."""
        return self.out / "private" / "work" / f"{chunk.name}.current"


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
) -> Iterator[tuple[Record, UInt8[np.ndarray, "height width"]]]:
    current = task.current(chunk)
    for place, job in enumerate(chunk.jobs):
        if place in poison:
            message = f"the reader stopped with {poison[place]}. Open the file with another viewer."
            failures.append(Failure(job.record_id, job.token, "ReaderCrash", message))
            continue
        current.write_text(str(place), "ascii")
        try:
            sample = _sample(task, job)
        except MedvlError as error:
            failures.append(Failure(job.record_id, job.token, error.rule, str(error)))
            continue
        yield sample


def _sample(task: Task, job: Job) -> tuple[Record, UInt8[np.ndarray, "height width"]]:
    image = read_image(Path(job.path))
    stored = task.pixels.apply(image)
    report = mask_identity(parse_report(job.report, parser=task.report.parser))
    rows, columns = image.array.shape[-2:]
    scale = (stored.shape[0] / rows, stored.shape[1] / columns)
    record = Record(
        record_id=job.record_id,
        study_id=job.study_id,
        patient_id=job.patient_id,
        modality=task.modality,
        split=job.split,
        source_kind="dicom" if kind_of(Path(job.path)) == "dicom" else "raster",
        report=report.text,
        retrieval=task.report.render(report, "retrieval"),
        generation=task.report.render(report, "generation"),
        text_hash=text_hash(report.text),
        pixel_hash=_pixel_hash(stored),
        pixel_digest=task.pixels.digest,
        report_digest=task.report.digest,
        shape=stored.shape,
        dtype=str(stored.dtype),
        source_shape=(rows, columns),
        view=job.view or image.view,
        laterality=job.laterality or image.laterality,
        spacing_mm=_stored_spacing(image, scale),
        spacing_frame=image.spacing_frame,
        inverted=image.photometric is Photometric.MONOCHROME1,
        sections=report.sections,
        sentences=report.sentences,
        labels=dict(job.labels),
        boxes=tuple(
            Box(b.label, b.x0 * scale[1], b.y0 * scale[0], b.x1 * scale[1], b.y1 * scale[0])
            for b in job.boxes
        ),
        notes=(*image.notes, *hygiene_notes(job.report)),
    )
    return record, stored


def _kinds(chunk: Chunk) -> dict[str, int]:
    return dict(sorted(Counter(_kind(Path(job.path)) for job in chunk.jobs).items()))


def _kind(path: Path) -> str:
    with contextlib.suppress(InputError, InvalidDicomError, AttributeError, KeyError, ValueError, EOFError):
        if kind_of(path) == "dicom":
            return f"DICOM {read_file_meta_info(path).TransferSyntaxUID.name}"
        suffix = path.suffix[1:].upper()
        return {"JPG": "JPEG", "TIF": "TIFF", "": "no suffix"}.get(suffix, suffix)
    return "DICOM without transfer syntax"


def _stored_spacing(image: Image, scale: tuple[float, float]) -> tuple[float, ...] | None:
    if image.spacing_mm is None:
        return None
    return tuple(spacing / factor for spacing, factor in zip(image.spacing_mm[-2:], scale, strict=True))


def _pixel_hash(stored: UInt8[np.ndarray, "height width"]) -> str:
    digest = hashlib.blake2b(str(stored.shape).encode(), digest_size=12)
    digest.update(np.ascontiguousarray(stored).data)
    return digest.hexdigest()


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
