"""prepare under kills, signals, crashing codecs, a full disk: nothing lost, nothing twice, same bytes."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image as Pillow
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from medvl.errors import StoreError, file_token
from medvl.preprocess.pseudonyms import Pseudonyms
from medvl.store import Store

IMAGES = 40
SHARD_RECORDS = 2

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
        Path(sys.argv[1]), Path(sys.argv[2]), key=bytes(32), workers=2, shard_records=2, progress=progress
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


def start(source: Path, out: Path, **options) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(source), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("killed") / "source"
    folder.mkdir()
    for number in range(IMAGES):
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
    broken = folder / "im7.dcm"  # a poison item must be told once, however often the run is killed
    broken.write_bytes(broken.read_bytes()[:-5000])
    with (folder / "reports.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("accession", "report"))
        writer.writerows((f"A{k}", f"FINDINGS: Opacity of {k} mm.") for k in range(IMAGES))
    return folder


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory) -> tuple[str, float]:
    """The tree hash of an uninterrupted run, and the seconds it took."""
    out = tmp_path_factory.mktemp("whole") / "store"
    began = time.monotonic()
    process = start(source, out)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert len(Store(out)) == IMAGES - 1
    return tree_hash(out), time.monotonic() - began


def kill_often(source: Path, out: Path, whole: tuple[str, float], *, kills: int, seed: int) -> None:
    """Start a run again and again until so many kills have met it at work, then let it end."""
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
    process = start(source, out)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert tree_hash(out) == expected
    records = Store(out).records
    assert len({record.record_id for record in records}) == len(records) == IMAGES - 1
    assert len((out / "failures.jsonl").read_text().splitlines()) == 1
    assert not [path for path in out.rglob("*") if path.name.endswith(".tmp")]


def test_five_kills_lose_nothing_and_duplicate_nothing(source, whole, tmp_path):
    kill_often(source, tmp_path / "store", whole, kills=5, seed=1)


@pytest.mark.slow
def test_fifty_kills_lose_nothing_and_duplicate_nothing(source, whole, tmp_path):
    kill_often(source, tmp_path / "store", whole, kills=50, seed=2)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_soon_and_cleanly(source, whole, tmp_path, number, status):
    process = start(source, tmp_path / "store")
    assert process.stdout is not None and process.stdout.readline()  # the first chunk is done
    workers = psutil.Process(process.pid).children(recursive=True)
    began = time.monotonic()
    os.killpg(process.pid, number)  # the whole group, as a terminal does
    _, errors = process.communicate(timeout=60)
    seconds = time.monotonic() - began
    assert (process.returncode, errors) == (status, "")
    assert seconds < 2
    assert not psutil.wait_procs(workers, timeout=5)[1]
    process = start(source, tmp_path / "store")
    assert process.stdout is not None
    first, _ = process.stdout.readline(), process.communicate(timeout=300)
    assert int(first) > SHARD_RECORDS  # goes on where it stopped
    assert tree_hash(tmp_path / "store") == whole[0]


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


def test_a_file_that_kills_its_reader_costs_one_record(tmp_path):
    source, out = tmp_path / "source", tmp_path / "store"
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
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CRASH)
    process = start(source, out, env=os.environ | {"PYTHONPATH": str(tmp_path / "site")})
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert sorted((f["token"], f["rule"]) for f in failures) == sorted(
        (file_token(f"{k}.png"), "ReaderCrash") for k in (3, 4, 7)
    )
    assert sum("a crash of its process" in f["message"] for f in failures) == 2
    assert sum("ZeroDivisionError" in f["message"] for f in failures) == 1
    assert "CANARYNAME" not in errors + (out / "failures.jsonl").read_text()
    ids = {r.record_id for r in Store(out).records}
    assert ids == {Pseudonyms(bytes(32)).record(f"{k}.png") for k in (0, 1, 2, 5, 6, 8, 9)}


def test_a_full_disk_is_said_and_the_run_goes_on_afterwards(source, whole, tmp_path):
    def small_files() -> None:  # a limit of 60 kB a file stands for the full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    process = start(source, tmp_path / "s", preexec_fn=small_files)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == StoreError.exit_code
    assert errors == (
        "StoreError: the record store cannot be written: there is no space left. "
        "Mend that and run the same command again; it resumes."
    )
    assert not (tmp_path / "s" / "store.json").exists()
    process = start(source, tmp_path / "s")
    process.communicate(timeout=300)
    assert process.returncode == 0
    assert tree_hash(tmp_path / "s") == whole[0]
