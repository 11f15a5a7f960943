"""prepare under kills, signals, crashing codecs, a full disk: nothing lost, nothing twice, same bytes."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
from killing import (
    SHARD_RECORDS,
    check_fragile,
    check_whole,
    dask_cluster,
    fragile_environment,
    kill_often,
    start,
    tree_hash,
    write_fragile,
    write_source,
)

from medvl.errors import StoreError
from medvl.store import Store

IMAGES = 40


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("killed") / "source", images=IMAGES)


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


def test_kills_lose_nothing_and_duplicate_nothing(source, whole, tmp_path):
    kill_often(source, tmp_path / "store", whole, kills=3, seed=1)
    check_whole(source, tmp_path / "store", whole[0], images=IMAGES)


@pytest.mark.slow
def test_a_hundred_kills_and_two_engines_in_turn(tmp_path):
    source, out = write_source(tmp_path / "source", images=300), tmp_path / "store"
    began = time.monotonic()
    with start(source, tmp_path / "whole") as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    whole = (tree_hash(tmp_path / "whole"), time.monotonic() - began)
    kill_often(source, out, whole, kills=100, seed=2)
    with dask_cluster() as scheduler:
        with start(source, out, scheduler=scheduler) as process:
            assert process.stdout is not None and process.stdout.readline()
            process.kill()
        check_whole(source, out, whole[0], images=300)
        shutil.rmtree(out)
        kill_often(source, out, whole, kills=2, seed=3)
        check_whole(source, out, whole[0], images=300, scheduler=scheduler)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_soon_and_cleanly(source, whole, tmp_path, number, status):
    for attempt in range(5):  # on a busy machine a run may end before the signal is sent
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        process = start(source, tmp_path / "store")
        assert process.stdout is not None and process.stdout.readline()  # the first chunk is done
        workers = psutil.Process(process.pid).children(recursive=True)
        began = time.monotonic()
        os.killpg(process.pid, number)  # the whole group, as a terminal does
        _, errors = process.communicate(timeout=60)
        seconds = time.monotonic() - began
        if process.returncode or attempt == 4:
            break
    assert (process.returncode, errors) == (status, "")
    assert seconds < 2
    assert not psutil.wait_procs(workers, timeout=5)[1]
    process = start(source, tmp_path / "store")
    assert process.stdout is not None
    first, _ = process.stdout.readline(), process.communicate(timeout=300)
    assert int(first) > SHARD_RECORDS  # goes on where it stopped
    assert tree_hash(tmp_path / "store") == whole[0]


def test_a_file_that_kills_its_reader_costs_one_record(tmp_path):
    source, out = write_fragile(tmp_path), tmp_path / "store"
    process = start(source, out, env=fragile_environment(tmp_path))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    check_fragile(out, errors)


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
