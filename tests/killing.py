"""Runs of prepare in processes of their own, to be killed; and the hash that tells equal stores."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
from PIL import Image as Pillow
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from medvl.errors import file_token
from medvl.preprocess.pseudonyms import Pseudonyms
from medvl.store import Store

SHARD_RECORDS = 2
BROKEN = 7
"""The image that is cut short."""

RUN = """
import sys
from pathlib import Path
from medvl.errors import MedvlError
from medvl.preprocess.pipeline import prepare
def progress(done, total, message):
    sys.stdout.write(f"{done}\\n")
    sys.stdout.flush()
try:
    prepare(
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        key=bytes(32),
        workers=2,
        shard_records=2,
        scheduler=sys.argv[3] if len(sys.argv) > 3 else None,
        progress=progress,
    )
except KeyboardInterrupt:
    sys.exit(130)
except MedvlError as error:
    sys.stderr.write(f"{error.rule}: {error}")
    sys.exit(error.exit_code)
"""


def tree_hash(out: Path) -> str:
    digest = hashlib.sha256()
    files = (p for p in out.rglob("*") if p.is_file() and "private" not in p.relative_to(out).parts)
    for path in sorted(files):
        digest.update(path.relative_to(out).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def start(
    source: Path,
    out: Path,
    *,
    scheduler: str = "",
    preexec_fn: Callable[[], None] = lambda: None,
    **options,
) -> subprocess.Popen[str]:
    def listening() -> None:  # a job in the background of a shell ignores SIGINT, and its children would
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        preexec_fn()

    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(source), str(out), *([scheduler] if scheduler else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=listening,
        **options,
    )


def write_source(folder: Path, *, images: int) -> Path:
    """Write so many films of half as many patients, one of them cut short, with their reports."""
    folder.mkdir(parents=True)
    for number in range(images):
        dataset = Dataset()
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
        dataset.SOPInstanceUID = f"1.2.826.0.1.{number + 1}"
        dataset.StudyInstanceUID = f"1.2.826.0.2.{number + 1}"
        dataset.AccessionNumber = f"A{number}"
        dataset.PatientID = f"P{number // 2}"
        dataset.Rows, dataset.Columns = 256, 256
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME1"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
        dataset.PixelRepresentation = 0
        pixels = np.random.default_rng(number).integers(0, 4096, (256, 256), dtype=np.uint16)
        dataset.PixelData = pixels.tobytes()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.save_as(folder / f"im{number}.dcm", enforce_file_format=True)
    broken = folder / f"im{BROKEN}.dcm"  # a poison item must be told once, however often the run is killed
    broken.write_bytes(broken.read_bytes()[:-5000])
    with (folder / "reports.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("accession", "report"))
        writer.writerows((f"A{k}", f"FINDINGS: Opacity of {k} mm.") for k in range(images))
    return folder


def kill_often(source: Path, out: Path, whole: tuple[str, float], *, kills: int, seed: int) -> None:
    """Start a run again and again until so many kills have met it at work."""
    expected, seconds = whole
    moment = random.Random(seed)
    met = 0
    while met < kills:
        process = start(source, out)
        began = time.monotonic()
        with process:
            try:
                process.communicate(timeout=moment.uniform(0.2, 1.0) * seconds)
                seconds = 0.9 * (time.monotonic() - began)  # it ended first: strike sooner
            except subprocess.TimeoutExpired:
                workers = psutil.Process(process.pid).children(recursive=True)
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                met += 1
                _, alive = psutil.wait_procs(workers, timeout=20)
                assert not alive  # a worker does not outlive the run that began it
        if (out / "store.json").exists():  # complete, or not there: never a store that is wrong
            assert tree_hash(out) == expected
            shutil.rmtree(out)


def check_whole(source: Path, out: Path, expected: str, *, images: int, scheduler: str = "") -> None:
    """Let a run end, and compare what it leaves with an uninterrupted one."""
    process = start(source, out, scheduler=scheduler)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert tree_hash(out) == expected
    records = Store(out).records
    assert len({record.record_id for record in records}) == len(records) == images - 1
    assert len((out / "failures.jsonl").read_text().splitlines()) == 1
    assert not [path for path in out.rglob("*") if path.name.endswith(".tmp")]


CLUSTER = """
import sys
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        sys.stdout.write(cluster.scheduler_address + chr(10))
        sys.stdout.flush()
        sys.stdin.read()
"""


@contextlib.contextmanager
def dask_cluster(log: Path | None = None, **options) -> Iterator[str]:
    """Run a scheduler with two workers in processes of their own; yield its address."""
    with tempfile.TemporaryDirectory() as folder, (log or Path(folder) / "log").open("w") as errors:
        script = Path(folder) / "cluster.py"
        script.write_text(CLUSTER)
        with subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=folder,
            **options,
        ) as process:
            assert process.stdout is not None and process.stdin is not None
            yield process.stdout.readline().strip()
            process.stdin.close()


CRASH = """
import multiprocessing, os, signal, unicodedata
import PIL.Image
opened = PIL.Image.open
def fragile(stream, *arguments, **options):
    data = stream.read() if hasattr(stream, "read") else open(stream, "rb").read()
    if hasattr(stream, "seek"):
        stream.seek(0)
    if b"NATIVE CRASH" in data:
        os.kill(os.getpid(), signal.SIGSEGV)
    return opened(stream, *arguments, **options)
PIL.Image.open = fragile
normalize = unicodedata.normalize
def surprised(form, text):
    if "UNFORESEEN" in text and multiprocessing.parent_process() is not None:
        raise ZeroDivisionError("CANARYNAME")
    return normalize(form, text)
unicodedata.normalize = surprised
"""
"""A codec that dies of some files and a library that fails on some words, in place as a process starts."""


def write_fragile(folder: Path) -> Path:
    """Write ten pictures: two kill their reader, and the words of one meet a library that fails."""
    source = folder / "source"
    source.mkdir()
    for number in range(10):
        picture = np.random.default_rng(number).integers(0, 256, (20, 30), dtype=np.uint8)
        Pillow.fromarray(picture).save(source / f"{number}.png")
    for number in (3, 4):
        with (source / f"{number}.png").open("ab") as stream:
            stream.write(b"NATIVE CRASH")
    words = {k: f"Case {k}." for k in range(10)} | {7: "UNFORESEEN é."}
    with (source / "images.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("image", "text"), *((f"{k}.png", words[k]) for k in range(10))])
    return source


def fragile_environment(folder: Path) -> dict[str, str]:
    """Return the environment in which these pictures do their harm."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(CRASH)
    return os.environ | {"PYTHONPATH": str(folder / "site")}


def check_fragile(out: Path, errors: str) -> None:
    """Check that three pictures are failures, each with its reason, and the others are records."""
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert sorted((f["token"], f["rule"]) for f in failures) == sorted(
        (file_token(f"{k}.png"), "ReaderCrash") for k in (3, 4, 7)
    )
    assert sum("a crash of its process" in f["message"] for f in failures) == 2
    assert sum("ZeroDivisionError" in f["message"] for f in failures) == 1
    assert "CANARYNAME" not in errors + (out / "failures.jsonl").read_text()
    ids = {r.record_id for r in Store(out).records}
    assert ids == {Pseudonyms(bytes(32)).record(f"{k}.png") for k in (0, 1, 2, 5, 6, 8, 9)}
