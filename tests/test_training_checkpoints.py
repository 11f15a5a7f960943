"""Training state and checkpoints on disk: what reads back, what is refused, what is kept."""

import math

import pytest
import torch

from medvl.errors import CheckpointError
from medvl.training import checkpoints
from medvl.training.state import read_state, write_state

# --- state --------------------------------------------------------------------------------------


def test_state_reads_back_with_its_types(tmp_path):
    shared = torch.arange(6.0)
    state = {
        "numbers": [1, 2.5, -0.1, math.inf, True, None, "word"],
        "by integer": {0: torch.zeros(0), 7: {"step": torch.tensor(3.0)}},
        "pair": (1, ("a", [])),
        "views": [shared, shared[2:], shared.view(2, 3).T],
        "bits": torch.tensor([1, 255], dtype=torch.uint8),
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
    }
    write_state(tmp_path, state)
    again = read_state(tmp_path)
    assert again["numbers"] == state["numbers"] and again["pair"] == state["pair"]
    assert list(again["by integer"]) == [0, 7] and again["by integer"][7]["step"] == 3.0
    for a, b in zip(again["views"], state["views"], strict=True):
        assert torch.equal(a, b)
    assert again["half"].dtype == torch.bfloat16 and again["bits"].tolist() == [1, 255]


def test_state_holds_no_objects(tmp_path):
    with pytest.raises(CheckpointError, match=r"state\.a\.1 is a Generator"):
        write_state(tmp_path, {"a": [1, torch.Generator()]})
    with pytest.raises(CheckpointError, match=r"state is a dict"):
        write_state(tmp_path, {(1, 2): 3})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "state.json").write_text('{"pickle": "x"}'), "no attribute 'items'"),
        (lambda f: (f / "state.json").write_text('{"tensor": "9"}'), "'9'"),
        (lambda f: (f / "state.json").write_text('{"set": []}'), "unknown kind 'set'"),
        (lambda f: (f / "state.json").write_text("["), "not valid JSON"),
        (lambda f: (f / "state.json").unlink(), "No such file"),
        (lambda f: (f / "state.safetensors").write_bytes(b"\xff" * 40), "eader"),
        (
            lambda f: (f / "state.safetensors").write_bytes((f / "state.safetensors").read_bytes()[:-3]),
            "cannot be read",
        ),
    ],
)
def test_damaged_state_is_a_checkpoint_error(tmp_path, damage, message):
    write_state(tmp_path, {"a": torch.ones(4)})
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        read_state(tmp_path)


def test_state_that_is_not_a_number_is_refused(tmp_path):
    write_state(tmp_path, {"a": torch.tensor([1.0, math.nan])})
    with pytest.raises(CheckpointError, match="tensor 000000 holds NaN or infinity"):
        read_state(tmp_path)


# --- checkpoints --------------------------------------------------------------------------------


def save(run, step, text="x"):
    folder = checkpoints.checkpoint_path(run, step)
    checkpoints.write_checkpoint(folder, lambda f: (f / "a.txt").write_text(text))
    return folder


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    old, new = save(tmp_path, 1), save(tmp_path, 2)
    assert checkpoints.latest(tmp_path) == new
    (new / "a.txt").write_text("y")
    with pytest.raises(CheckpointError, match=r"step-00000002: the SHA-256 of a\.txt"):
        checkpoints.verify(new)
    assert checkpoints.latest(tmp_path) == old
    (old / "b.txt").write_text("added")
    with pytest.raises(CheckpointError, match=r"missing or were added: \['b.txt'\]"):
        checkpoints.verify(old)
    (old / "manifest.json").write_text('{"files": 3}')
    with pytest.raises(CheckpointError, match=r"no readable manifest\.json"):
        checkpoints.verify(old)
    assert checkpoints.latest(tmp_path) is None
    assert save(tmp_path, 2, "again") == checkpoints.latest(tmp_path)  # a damaged one is replaced


def test_best_stays_when_older_ones_go(tmp_path):
    checkpoints.mark_best(save(tmp_path, 1), score=0.5)
    for step in (2, 3, 4):
        save(tmp_path, step)
    checkpoints.prune(tmp_path, keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("step-*")) == [
        "step-00000001",
        "step-00000003",
        "step-00000004",
    ]
    assert checkpoints.best_model(tmp_path).name == "step-00000001"
    (tmp_path / "checkpoints" / "best.json").unlink()
    assert checkpoints.best_model(tmp_path).name == "step-00000004"


def test_a_failed_save_leaves_nothing(tmp_path):
    save(tmp_path, 1)

    def fail(folder):
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        checkpoints.write_checkpoint(checkpoints.checkpoint_path(tmp_path, 2), fail)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["latest.json", "step-00000001"]
    (tmp_path / "checkpoints" / ".step-00000009.tmp").mkdir()  # an orphan of a killed run
    save(tmp_path, 3)
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_no_run_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoints.best_model(tmp_path)
    with pytest.raises(CheckpointError, match="this folder is no run"):
        checkpoints.read_provenance(tmp_path)
    (tmp_path / "provenance.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds a list"):
        checkpoints.read_provenance(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"best\.json cannot be read"):
        checkpoints.best_model(tmp_path)
