"""Two processes of the real command: one run directory, the numbers of one process, stopped and resumed."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file
from tinystore import SMALL, write_tiny

from medvl import recipes
from medvl.errors import ConfigError
from medvl.training import checkpoints
from medvl.training.logs import read_metrics
from medvl.training.ranks import other_ranks
from medvl.training.run import train

OVERRIDES = [
    *SMALL,
    "image.options={widths: [8, 16], blocks: [1, 1], stem_px: 3, norm: group}",
    "machine.accelerator=cpu",
    "schedule.steps=4",
    "loop.every_steps=2",
    "loop.log_every=1",
    "loop.ema=0.5",
    "data.chunk=4",
    "optimiser.layer_decay=0.7",
]

STOPPED = textwrap.dedent("""
    import json, os, signal, sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    from medvl import recipes
    from medvl.training.run import train

    def progress(done, total, message):
        if done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    store, run, overrides = json.loads(sys.argv[1])
    summary = train(store, Path(run), recipe=recipes.resolve("multi", overrides), progress=progress)
    print(json.dumps(summary.to_json()))
""")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("ranks") / "store", n=48)


@pytest.mark.slow
def test_two_processes_stop_resume_and_equal_one(store, tmp_path):
    """Replicated until SIGTERM at step 2, spread over the ranks afterwards; averaged weights, in chunks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one, two = tmp_path / "one", tmp_path / "two"
    train(store, one, recipe=recipes.resolve("multi", OVERRIDES))
    torch.set_num_threads(threads)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    script = [sys.executable, "-c", STOPPED]
    task = json.dumps([str(store), str(two), [*OVERRIDES, "machine.devices=2"]])
    stopped = subprocess.run(
        [*script, task], capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert stopped.returncode == 0, stopped.stderr[-3000:]
    summary = json.loads(stopped.stdout.strip().splitlines()[-1])
    assert (summary["status"], summary["step"], summary["signal"]) == ("interrupted", 2, signal.SIGTERM)
    assert not (two / "summary.json").exists()

    settings = [part for value in OVERRIDES for part in ("--set", value)]
    settings += ["--set", "machine.devices=2", "--set", "machine.strategy=fsdp"]
    command = [sys.executable, "-m", "medvl.cli", "cxr", "train", str(store), str(two), "--recipe", "multi"]
    done = subprocess.run(
        [*command, *settings], capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("finished at step 4 of 4") == 1  # the first process alone speaks

    # One row a step, though two processes took it; steps 1 and 2 were not taken again.
    ours, theirs = (read_metrics(run / "metrics.csv") for run in (one, two))
    assert [row["step"] for row in theirs] == ["1", "2", "3", "4"]
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            if a[key]:
                assert float(b[key]) == pytest.approx(float(a[key]), rel=2e-4), (a["step"], key)
    a, b = checkpoints.latest(one), checkpoints.latest(two)
    assert a.name == b.name == "step-00000004"
    assert sorted(p.relative_to(a) for p in a.rglob("*")) == sorted(p.relative_to(b) for p in b.rglob("*"))
    for name in ("models/model.safetensors", "training/state.safetensors"):
        left, right = load_file(a / name), load_file(b / name)
        assert left.keys() == right.keys()
        for key in left:  # Adam divides by the root of tiny second moments, so signs of zeros may differ
            assert left[key].shape == right[key].shape
            torch.testing.assert_close(left[key], right[key], atol=2e-4, rtol=1e-3, msg=f"{name} {key}")
    values = checkpoints.read_provenance(two)
    assert values == checkpoints.read_provenance(one)


def test_a_process_that_cannot_start_is_reported(tmp_path):
    task = {"data": str(tmp_path / "nothing"), "run": str(tmp_path / "run"), "recipe": {}}
    with (
        pytest.raises(ConfigError, match=r"process 1 of 2 could not start: .*store"),
        other_ranks(task, world=2) as (rank, others),
    ):
        assert (rank.number, rank.world, rank.main_address) == (0, 2, "127.0.0.1")
        others.wait_until_ready()


def test_one_device_and_a_launched_rank_start_nothing(monkeypatch):
    with other_ranks({}, world=1) as found:
        assert found == (None, None)
    monkeypatch.setenv("LOCAL_RANK", "1")  # torchrun has started all of them
    with other_ranks({}, world=4) as found:
        assert found == (None, None)
