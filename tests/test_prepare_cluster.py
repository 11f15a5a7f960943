"""prepare on a Dask cluster: the same bytes as on one machine, and its own ways to go wrong."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from killing import (
    check_fragile,
    check_whole,
    dask_cluster,
    fragile_environment,
    start,
    tree_hash,
    write_fragile,
    write_source,
)

from medvl.errors import UsageError, file_token
from medvl.preprocess.cluster import connected
from medvl.preprocess.pipeline import prepare

IMAGES = 24


@pytest.fixture(scope="module")
def cluster():
    with dask_cluster() as address:
        yield address


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("cluster") / "source", images=IMAGES)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("whole") / "store"
    prepare(source, out, key=bytes(32), shard_records=2, workers=1)
    return tree_hash(out)


def test_a_cluster_writes_the_same_bytes(source, whole, cluster, tmp_path):
    check_whole(source, tmp_path / "store", whole, images=IMAGES, scheduler=cluster)


@pytest.mark.slow
def test_each_engine_finishes_what_the_other_began(source, whole, cluster, tmp_path):
    for first, then in ((cluster, ""), ("", cluster)):
        out = tmp_path / ("a" if first else "b")
        with start(source, out, scheduler=first) as process:
            assert process.stdout is not None and process.stdout.readline()  # one chunk is done
            os.kill(process.pid, signal.SIGKILL)
        assert not (out / "store.json").exists()
        check_whole(source, out, whole, images=IMAGES, scheduler=then)


def test_a_scheduler_that_is_not_there_is_named(source, tmp_path, monkeypatch):
    monkeypatch.setattr("medvl.preprocess.cluster._SECONDS", 1)
    with pytest.raises(UsageError, match=r"'tcp://127.0.0.1:9' does not answer within 1 s.*dask scheduler"):
        prepare(source, tmp_path / "store", scheduler="tcp://127.0.0.1:9")
    with pytest.raises(UsageError, match=r"the scheduler 'nonsense:\?' does not answer"):
        prepare(source, tmp_path / "other", scheduler="nonsense:?")


def test_a_folder_that_the_workers_lack_is_refused(cluster, tmp_path):
    with (
        pytest.raises(UsageError, match=r"2 of 2 workers do not find the source or the output folder"),
        connected(cluster, folders=(tmp_path / "nowhere",)),
    ):
        pass


def test_a_cluster_with_another_version_is_refused(cluster, monkeypatch):
    monkeypatch.setattr("medvl.preprocess.cluster.VERSION", "0.0.0-here")
    with (
        pytest.raises(UsageError, match=r"the workers run medvl [\w.]+; this is medvl 0.0.0-here"),
        connected(cluster, folders=()),
    ):
        pass


def test_failures_are_told_as_on_one_machine(source, cluster, tmp_path):
    summary = prepare(source, tmp_path / "store", scheduler=cluster, key=bytes(32))
    assert (summary.records, summary.failed) == (IMAGES - 1, 1)
    lines = (tmp_path / "store" / "failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["token"] for line in lines] == [file_token("im7.dcm")]


@pytest.mark.slow
def test_a_file_that_kills_a_worker_of_the_cluster_costs_one_record(tmp_path):
    source, out, log = write_fragile(tmp_path), tmp_path / "store", tmp_path / "log"
    environment = fragile_environment(tmp_path)
    with dask_cluster(log, env=environment) as scheduler:
        process = start(source, out, scheduler=scheduler)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    check_fragile(out, errors)
    told = log.read_text()
    assert told  # the cluster speaks of its dead workers, not of what they read
    assert "CANARYNAME" not in told and "UNFORESEEN" not in told and "Case 1" not in told
