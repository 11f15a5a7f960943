"""What every run promises: any objective with any tower full, frozen or adapted; stopped and resumed.

The fast part covers every pair of (objective, image policy), (objective, text policy) and the two policies;
the whole grid is marked slow. That two ranks equal one process is in test_training_gather.
"""

import itertools
import math
import os
import signal

import pytest
import torch
from lossfeatures import NAMES, OPTIONS
from safetensors.torch import load_file
from tinystore import SMALL, write_tiny

from medvl import recipes
from medvl.store import Store
from medvl.training import checkpoints
from medvl.training.logs import read_metrics
from medvl.training.run import train
from medvl.training.setup import set_up

POLICIES = ("full", "frozen", "lora")
LORA = {"image": {"rank": 1, "targets": "all-conv"}, "text": {"rank": 1, "targets": "all-linear"}}
GRID = [(name, image, text) for name in NAMES for image, text in itertools.product(POLICIES, POLICIES)]
# Row i of a Latin square: over three objectives in a row each image policy meets each text policy.
COVER = [
    (name, image, POLICIES[(i + j) % 3]) for i, name in enumerate(NAMES) for j, image in enumerate(POLICIES)
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("contract") / "store", n=24)


@pytest.fixture(autouse=True)
def one_thread():
    """Bit-equal runs need equal threads; more of them only wait for each other at this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recipe_of(name, image, text, *more):
    options = {key: value for key, value in OPTIONS.get(name, {}).items() if key != "findings"}
    towers = [f"{side}.train={policy}" for side, policy in (("image", image), ("text", text))]
    towers += [
        f"{side}.lora={LORA[side]}" for side, policy in (("image", image), ("text", text)) if policy == "lora"
    ]
    return recipes.resolve(
        "multi",
        [
            *SMALL,
            f"objective={{name: {name}, options: {options}, positives: same}}",
            "text.options={layers: 1, width: 16, heads: 2, dropout: 0.1}",
            "text.vocab_size=300",
            "image.options={widths: [4, 8], blocks: [1, 1], stem_px: 3}",
            "input.size_px=[16, 16]",
            "projection.dim=8",
            "data.batch=6",
            "schedule.steps=2",
            "schedule.warmup=0",
            "loop.every_steps=2",
            "loop.log_every=1",
            *towers,
            *more,
        ],
    )


def weights(run):
    return load_file(checkpoints.latest(run) / "models" / "model.safetensors")


def keeps_the_contract(store, folder, name, image, text):
    whole, stopped = folder / "whole", folder / "stopped"
    recipe = recipe_of(name, image, text)
    before = set_up(Store(store), recipe).model.state_dict()
    assert train(store, whole, recipe=recipe).status == "finished"
    after = weights(whole)

    # Frozen tensors, and statistics of towers that do not train as a whole, are what they were.
    assert before.keys() == after.keys()
    for side, policy in (("image", image), ("text", text)):
        own = [key for key in before if key.startswith(f"{side}_encoder.")]
        moved = {key for key in own if not torch.equal(before[key], after[key])}
        adapters = {key for key in own if ".lora_" in key}
        if policy == "frozen":
            assert not moved
        elif policy == "lora":
            assert moved and moved <= adapters
        else:
            assert not adapters and len(moved) > len(own) / 2
    assert any(not torch.equal(before[key], after[key]) for key in before if "_projection" in key)

    # Stopped by a signal after the first step, and called again: the bits of the uninterrupted run.
    def progress(done, total, message):
        if done == 1:
            os.kill(os.getpid(), signal.SIGINT)

    summary = train(store, stopped, recipe=recipe, progress=progress)
    assert (summary.status, summary.step, summary.exit_code) == ("interrupted", 1, 130)
    assert train(store, stopped, recipe=recipe).status == "finished"
    assert (whole / "metrics.csv").read_bytes() == (stopped / "metrics.csv").read_bytes()
    assert [row["step"] for row in read_metrics(whole / "metrics.csv")] == ["1", "2"]
    for file in ("models/model.safetensors", "training/state.safetensors"):
        a, b = (load_file(checkpoints.latest(run) / file) for run in (whole, stopped))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), file


@pytest.mark.parametrize(("name", "image", "text"), COVER)
def test_objective_with_towers(store, tmp_path, name, image, text):
    keeps_the_contract(store, tmp_path, name, image, text)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "image", "text"), [case for case in GRID if case not in COVER])
def test_objective_with_towers_rest_of_the_grid(store, tmp_path, name, image, text):
    keeps_the_contract(store, tmp_path, name, image, text)


def test_the_cover_meets_every_pair():
    assert {(name, image) for name, image, _ in COVER} == set(itertools.product(NAMES, POLICIES))
    assert {(name, text) for name, _, text in COVER} == set(itertools.product(NAMES, POLICIES))
    assert {(image, text) for _, image, text in COVER} == set(itertools.product(POLICIES, POLICIES))


@pytest.mark.parametrize("name", NAMES)
def test_chunks_and_averages_with_every_objective(store, tmp_path, name):
    """The other road: encoded in chunks, checkpointed, averaged, with a learning rate by depth."""
    more = [
        "image.options={widths: [4, 8], blocks: [1, 1], stem_px: 3, norm: group}",
        "image.activation_checkpointing=true",
        "text.freeze_layers=1",
        "data.chunk=2",
        "loop.ema=0.9",
        "optimiser.layer_decay=0.8",
    ]
    recipe = recipe_of(name, "full", "full", *more)
    summary = train(store, tmp_path / "run", recipe=recipe)
    assert summary.status == "finished" and summary.best is not None
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert len(rows) == 2 and all(math.isfinite(float(row["train/loss"])) for row in rows)
