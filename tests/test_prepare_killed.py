"""prepare under SIGKILL, SIGINT and SIGTERM: nothing lost, nothing twice, the same bytes in the end."""

from __future__ import annotations

import csv
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from medvl.store import Store

IMAGES = 40
SHARD_RECORDS = 2

RUN = """
import sys
from pathlib import Path
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
"""


def tree_hash(out: Path) -> str:
    digest = hashlib.sha256()
    files = (p for p in out.rglob("*") if p.is_file() and "private" not in p.relative_to(out).parts)
    for path in sorted(files):
        digest.update(path.relative_to(out).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def start(source: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(source), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
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


def kill_often(source: Path, out: Path, whole: tuple[str, float], *, kills: int, seed: int) -> int:
    """Start and kill a run again and again; return how many kills met it at work."""
    expected, seconds = whole
    moment = random.Random(seed)
    met = 0
    for _ in range(kills):
        process = start(source, out)
        with process:
            try:
                process.communicate(timeout=moment.uniform(0.3, 1.0) * seconds)
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
    return met


def test_five_kills_lose_nothing_and_duplicate_nothing(source, whole, tmp_path):
    assert kill_often(source, tmp_path / "store", whole, kills=5, seed=1) > 0


@pytest.mark.slow
def test_fifty_kills_lose_nothing_and_duplicate_nothing(source, whole, tmp_path):
    assert kill_often(source, tmp_path / "store", whole, kills=50, seed=2) >= 25


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
