"""Crash safety: a killed run resumed is the uninterrupted one, to the last bit."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medvl import recipes
from medvl.training import checkpoints
from medvl.training.run import train

sys.path.insert(0, str(Path(__file__).parent))
from tinystore import SMALL, write_tiny

# Dropout, augmentation and shuffled sentences are on; 33 pairs make 2 steps of 12 an epoch.
OVERRIDES = [*SMALL, "schedule.steps=9", "loop.every_steps=2", "loop.log_every=1", "loop.keep=2"]

# Runs scenarios in children of one process that has everything imported, so that a kill costs no import.
FORKING = textwrap.dedent("""
    import json, os, signal, sys, time
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    import lightning.pytorch
    from medvl import recipes
    from medvl.training.run import train
    import medvl.training.steps

    store, overrides, scenarios = json.loads(sys.argv[1])
    for run, name, at, number in scenarios:
        child = os.fork()
        if not child:
            def progress(done, total, message):
                if done == at:
                    os.kill(os.getpid(), number)
            summary = train(store, Path(run), recipe=recipes.resolve(name, overrides), progress=progress)
            os._exit(summary.exit_code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
""")


def run_scenarios(store, overrides, scenarios):
    argument = json.dumps([str(store), overrides, [[str(run), *rest] for run, *rest in scenarios]])
    done = subprocess.run(
        [sys.executable, "-c", FORKING, argument], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stderr == "" and done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


def assert_same_end(one, two):
    a, b = checkpoints.latest(one), checkpoints.latest(two)
    assert a is not None and b is not None and a.name == b.name == "step-00000009"
    for name in ("models/model.safetensors", "training/state.safetensors"):
        left, right = load_file(a / name), load_file(b / name)
        assert left.keys() == right.keys()
        for key in left:
            assert torch.equal(left[key], right[key]), (name, key)
    assert (a / "training" / "state.json").read_bytes() == (b / "training" / "state.json").read_bytes()
    assert (one / "metrics.csv").read_bytes() == (two / "metrics.csv").read_bytes()
    assert checkpoints.best_model(one).name == checkpoints.best_model(two).name


@pytest.fixture(autouse=True)
def one_thread():
    """Sums are rounded by their order: bit-equal runs need equal threads, and the children have one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("resume") / "store", n=48)


def test_a_killed_run_resumes_to_the_same_bits(store, tmp_path):
    """SIGKILL mid-epoch (step 3), at an epoch's end (step 4), before any save (step 1); then SIGTERM."""
    whole = tmp_path / "whole"
    train(store, whole, recipe=recipes.resolve("multi", OVERRIDES))
    kills = [(tmp_path / f"killed{at}", "multi", at, 9) for at in (1, 3, 4, 8)]
    stops = [(tmp_path / "term", "multi", 5, 15), (tmp_path / "int", "multi", 5, 2)]
    codes = run_scenarios(store, OVERRIDES, kills + stops)
    # a process that died of a signal, and one that saved and left as shells count it
    assert codes == [-9, -9, -9, -9, 143, 130]
    for run, *_ in kills + stops:
        if run.name in ("term", "int"):
            assert checkpoints.latest(run).name == "step-00000005"
        summary = train(store, run, recipe=recipes.resolve("multi", OVERRIDES))
        assert summary.status == "finished"
        assert_same_end(whole, run)


def test_a_run_goes_on_from_the_last_whole_checkpoint(store, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(store, whole, recipe=recipes.resolve("clip", OVERRIDES))
    run_scenarios(store, OVERRIDES, [(broken, "clip", 7, 9)])
    newest = checkpoints.latest(broken)
    assert newest.name == "step-00000006"
    weights = newest / "models" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert checkpoints.latest(broken).name == "step-00000004"
    train(store, broken, recipe=recipes.resolve("clip", OVERRIDES))
    assert_same_end(whole, broken)


KILLER = textwrap.dedent("""
    import os, random, signal, sys, time
    from pathlib import Path
    from medvl.training.checkpoints import checkpoint_path, latest, prune, verify, write_checkpoint

    run, times, megabytes = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    payload = os.urandom(int(megabytes * 2**20))
    dice = random.Random(0)
    before = 0
    for _ in range(times):
        child = os.fork()
        if not child:
            step = before
            while True:
                step += 1
                write_checkpoint(checkpoint_path(run, step), lambda f: (f / "weights").write_bytes(payload))
                prune(run, keep=2)
        time.sleep(dice.uniform(0.0, 0.2))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        newest = latest(run)
        if newest is not None:
            verify(newest)
            step = int(newest.name[5:])
            assert step >= before, (step, before)
            before = step
        assert len(list((run / "checkpoints").glob(".*"))) <= 2, "more than one orphan"
    print(before)
""")


def kill_during_saves(run, times, megabytes):
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(run), str(times), str(megabytes)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_five_kills_during_saves_lose_nothing(tmp_path):
    kill_during_saves(tmp_path, 5, 2)


@pytest.mark.slow
def test_fifty_kills_during_saves_lose_nothing(tmp_path):
    kill_during_saves(tmp_path, 50, 20)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    """RLIMIT_FSIZE stands for a full disk: the write fails, what was there before stays whole."""
    script = textwrap.dedent("""
        import resource, signal, sys
        from pathlib import Path
        from medvl.training.checkpoints import checkpoint_path, latest, write_checkpoint
        run = Path(sys.argv[1])
        write_checkpoint(checkpoint_path(run, 1), lambda f: (f / "weights").write_bytes(b"x" * 1000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
        try:
            write_checkpoint(checkpoint_path(run, 2), lambda f: (f / "weights").write_bytes(b"x" * 2**20))
        except OSError as error:
            print(error.strerror, latest(run).name, len(list((run / "checkpoints").iterdir())))
    """)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split("\n")[0] == "File too large step-00000001 2", done.stderr
