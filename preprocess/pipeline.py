"""A source of studies and reports becomes a record store: pair, plan, prepare in chunks, assemble.

The plan is sorted and depends on the source and the options alone; each chunk of it becomes one
shard; the index, the quality page and, last, the manifest are written when all chunks are done.
Killed at any moment, the same call goes on where it stopped and ends with the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Any

from medvl.errors import StoreError, UsageError
from medvl.preprocess.assembly import Prepared, PrepareSummary, assemble
from medvl.preprocess.chunks import read_part, refused_write
from medvl.preprocess.lock import hold
from medvl.preprocess.plan import Chunk, Irregular, Task
from medvl.preprocess.planning import (
    VOLUMETRIC,
    Tables,
    digest_of,
    header_map,
    open_source,
    pair_source,
    plan_chunks,
    plan_jobs,
    volume_source,
)
from medvl.preprocess.pool import Engine, ProcessPool, run_chunks
from medvl.preprocess.pseudonyms import Pseudonyms, keep_key
from medvl.preprocess.reading.burned import Policy
from medvl.preprocess.sources.pairing import Pairing
from medvl.progress import Progress
from medvl.specs import PixelSpec, ReportSpec, VolumeSpec
from medvl.splits import split_of
from medvl.store import write_atomic

__all__ = ["PrepareSummary", "Tables", "prepare", "preview"]


_OURS = {"private", "shards", "store.json", "index.parquet", "failures.jsonl", "quality.html"}


def prepare(
    source: str | Path,
    out: str | Path,
    *,
    modality: str = "cxr",
    tables: Tables | None = None,
    pixels: PixelSpec | VolumeSpec | None = None,
    report: ReportSpec | None = None,
    burned_in: Policy = "off",
    masks: Path | None = None,
    structures: Path | None = None,
    allow_gaps: bool = False,
    on_irregular: Irregular = "reject",
    clean_text: bool = True,
    split: Sequence[float] = (0.8, 0.1, 0.1),
    split_seed: int = 0,
    key: bytes | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    shard_records: int | None = None,
    retry_failed: bool = False,
    progress: Progress | None = None,
) -> PrepareSummary:
    """Write the record store of a folder of studies and their reports.

    Nothing is written outside ``out``. The call can be killed and repeated; each image becomes one
    record or one line of ``failures.jsonl``. The bytes of the store do not depend on ``workers``.

    Args:
        source: a tree of DICOM files or a folder of images, with their reports; or an archive of one.
        out: the store; a half-written one is resumed, a finished one is left as it is.
        modality: ``"ct"`` takes volumes, DICOM series and NIfTI; kept in every record.
        tables: the layout of the source and its tables, where they are not to be found or guessed.
        pixels: how an image becomes the stored array, a volume spec for CT.
        report: which sentences each text view keeps.
        burned_in: what is done about text in the pictures: a :data:`~medvl.preprocess.reading.burned.Policy`.
        masks: of volumes: the folder of masks of anatomical structures, NIfTI by series UID, study UID or
            file name; without it they are looked for in the source, as DICOM segmentations are.
        structures: of volumes: a file that maps names of structures to parts, over the table of
            :mod:`medvl.preprocess.structures`.
        allow_gaps: of volumes: fill missing slices by linear interpolation instead of refusing the series.
        on_irregular: of volumes: ``"resample"`` brings tilted and unevenly spaced series onto a regular grid
            instead of refusing them.
        clean_text: take names and identifiers out of the reports and move their dates.
        split: shares of train, val and test, drawn by patient where the table gives no split.
        split_seed: another seed gives another split.
        key: pseudonym key; made, or taken from ``out/private/key``, if None.
        workers: processes of this machine; all cores if None.
        scheduler: address of a Dask scheduler whose workers do the chunks instead; the bytes are the same.
        shard_records: most records in a shard; 64 films or 8 volumes if None.
        retry_failed: do the chunks again in which an image failed.
        progress: called with images done, images in all, and the step.

    Raises:
        UsageError: the folder belongs to another run, other options or another process.
        BadTable: the report table cannot be read or matched.
        StoreError: the store cannot be written.
    """
    source, out, tables = Path(source), Path(out), tables or Tables()
    report = report or ReportSpec()
    pixels = pixels or (VolumeSpec() if modality in VOLUMETRIC else PixelSpec())
    volumes = volume_source(pixels, modality, masks=masks, structures=structures)
    shard_records = shard_records if shard_records is not None else (64 if volumes is None else 8)
    if shard_records < 1 or (workers is not None and workers < 1):
        raise UsageError(
            f"shard_records is {shard_records} and workers is {workers}; allowed are whole numbers from 1."
        )
    split_of("", seed=split_seed, fractions=split)
    _check_folders(source, out)
    private = out / "private"
    with _sigterm_exits(), _silent_readers():
        try:
            folder = open_source(source, into=private / "source")
            with header_map(volumes, workers, progress=progress) as map_headers:
                paired, layout = pair_source(
                    folder, tables, modality=modality, volumes=volumes, map_headers=map_headers
                )
            for made in (private / "parts", private / "work", out / "shards"):
                made.mkdir(parents=True, exist_ok=True)
            private.chmod(0o700)
            with hold(private / "lock"):
                _sweep(out)
                ids = Pseudonyms(keep_key(private, given=key))
                jobs = plan_jobs(folder, paired, ids=ids, split=split, seed=split_seed)
                options = {
                    "modality": modality,
                    "pixel spec": pixels.digest,
                    "report spec": report.digest,
                    "text in pictures": burned_in,
                    "clean text": clean_text,
                    "layout": layout,
                    "split": [float(share) for share in split],
                    "split seed": split_seed,
                    "records per shard": shard_records,
                    "source": f"{len(jobs)} images with digest {digest_of(jobs)}",
                }
                if volumes is not None:
                    options |= {"allow gaps": allow_gaps, "irregular series": on_irregular}
                task = Task(
                    out,
                    modality,
                    pixels,
                    report,
                    _agree(private / "plan.json", options),
                    burned_in=burned_in,
                    clean_text=clean_text,
                    label_text=not any(job.labels for job in jobs),
                    allow_gaps=allow_gaps,
                    on_irregular=on_irregular,
                )
                chunks = plan_chunks(jobs, most=shard_records)
                if retry_failed:
                    _forget_failures(task, chunks)
                return _run(
                    task,
                    chunks,
                    paired=paired,
                    source=folder,
                    options=options,
                    engine=_engine(workers, scheduler, folders=(folder, out)),
                    progress=progress,
                )
        except OSError as error:
            raise refused_write(error) from error


def preview(
    source: str | Path,
    out: str | Path,
    *,
    modality: str = "cxr",
    tables: Tables | None = None,
    masks: Path | None = None,
    structures: Path | None = None,
    workers: int | None = None,
) -> Pairing:
    """Say what :func:`prepare` would pair, and why not the rest; nothing is written.

    Only an archive is unpacked, into ``out``, where ``prepare`` looks for it.

    Raises:
        UsageError, BadTable, BadArchive: as :func:`prepare`.
    """
    _check_folders(Path(source), Path(out))
    pixels = VolumeSpec() if modality in VOLUMETRIC else PixelSpec()
    volumes = volume_source(pixels, modality, masks=masks, structures=structures)
    with _silent_readers():
        folder = open_source(Path(source), into=Path(out) / "private" / "source")
        with header_map(volumes, workers, progress=None) as map_headers:
            return pair_source(
                folder, tables or Tables(), modality=modality, volumes=volumes, map_headers=map_headers
            )[0]


def _run(
    task: Task,
    chunks: Sequence[Chunk],
    *,
    paired: Pairing,
    source: Path,
    options: Mapping[str, Any],
    engine: AbstractContextManager[Engine],
    progress: Progress | None,
) -> PrepareSummary:
    todo = [chunk for chunk in chunks if read_part(task, chunk) is None]
    total = sum(len(chunk.jobs) for chunk in chunks)
    before = count = total - sum(len(chunk.jobs) for chunk in todo)

    def done(chunk: Chunk) -> None:
        nonlocal count
        count += len(chunk.jobs)
        if progress is not None:
            progress(count, total, "preparing images")

    finished = task.out / "store.json"
    complete = finished.is_file() and not todo
    if not complete:
        finished.unlink(missing_ok=True)
        with engine as working:
            run_chunks(todo, task=task, engine=working, done=done)
    prepared = Prepared.of(
        task,
        [job for chunk in chunks for job in chunk.jobs],
        [part for chunk in chunks if (part := read_part(task, chunk)) is not None],
        paired=paired,
        options=options,
    )
    summary = prepared.summary(resumed=before)
    if not complete:
        assemble(prepared, summary, source=source)
    return summary


def _engine(
    workers: int | None, scheduler: str | None, *, folders: tuple[Path, ...]
) -> AbstractContextManager[Engine]:
    if scheduler is None:
        return contextlib.nullcontext(ProcessPool(workers or len(os.sched_getaffinity(0))))
    from medvl.preprocess.cluster import connected

    return connected(scheduler, folders=folders)


def _check_folders(source: Path, out: Path) -> None:
    inside, outside = out.resolve(), source.resolve()
    if inside == outside or outside in inside.parents or inside in outside.parents:
        raise UsageError(
            "the output folder and the source lie inside each other.", hint="Choose another output folder."
        )
    if out.exists() and not out.is_dir():
        raise UsageError("the output is a file, not a folder.", hint="Choose another output folder.")
    changed = _changed(out / "store.json")
    if changed:
        raise UsageError(
            f"this store was {changed} after it was prepared; preparing it again would undo that.",
            hint="Prepare into a new folder with --key OUT/private/key, then: medvl data append OUT NEW",
        )
    foreign = [name for name in _names(out) if name not in _OURS and not name.endswith(".tmp")]
    if foreign:
        raise UsageError(
            f"the output folder holds {len(foreign)} files that are not of a record store.",
            hint="Choose an empty or a new folder.",
        )


def _changed(manifest: Path) -> str:
    """Return what has been done to a finished store besides preparing it."""
    try:
        values = json.loads(manifest.read_text("utf-8")) if manifest.is_file() else {}
    except (ValueError, OSError):
        return ""  # reading the store says what is wrong
    marks = {"appended": "appended to", "selected_from": "selected from another", "rewritten": "rewritten"}
    return next((words for key, words in marks.items() if key in values), "")


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


@contextlib.contextmanager
def _sigterm_exits() -> Iterator[None]:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that workers are stopped and the lock is freed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _silent_readers() -> Iterator[None]:
    """Keep warnings and pydicom's log quiet: both quote header values and file names."""
    log = logging.getLogger("pydicom")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _sweep(out: Path) -> None:
    """Remove what a killed run may have left half-written."""
    for folder in (out, out / "private", out / "private" / "parts"):
        for path in folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)
    shutil.rmtree(out / "private" / "work", ignore_errors=True)
    (out / "private" / "work").mkdir(exist_ok=True)


def _agree(path: Path, options: Mapping[str, Any]) -> str:
    """Keep the options of the first run; refuse a run that differs. Return their digest.

    Raises:
        UsageError: naming what differs.
        StoreError: the kept options cannot be read.
    """
    if path.is_file():
        try:
            kept = dict(json.loads(path.read_text("utf-8")))
        except (ValueError, TypeError, RecursionError) as error:
            raise StoreError(
                "private/plan.json of the output folder is damaged.", hint="Choose a new folder."
            ) from error
        differing = [
            f"{name} was {kept.get(name)} and is {value}"
            for name, value in options.items()
            if kept.get(name) != value
        ]
        if differing:
            raise UsageError(
                f"this output folder was begun with other input or options: {'; '.join(differing)}.",
                hint="Repeat the first call to finish it, or choose a new folder.",
            )
    canonical = json.dumps(dict(options), sort_keys=True).encode()
    if not path.is_file():
        write_atomic(path, canonical)
    return hashlib.blake2b(canonical, digest_size=12).hexdigest()


def _forget_failures(task: Task, chunks: Sequence[Chunk]) -> None:
    for chunk in chunks:
        part = read_part(task, chunk)
        if part is not None and part.failures:
            task.part(chunk).unlink()
