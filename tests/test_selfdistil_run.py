"""Self-distillation as a run: films without reports, stop and resume, two processes, the tower it leaves."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tinystore import write_store, write_tiny

from medvl import recipes
from medvl.encoders.image import rebuild_image_encoder
from medvl.errors import ConfigError, UsageError
from medvl.store import Store
from medvl.training import checkpoints
from medvl.training.logs import read_metrics
from medvl.training.selfdistil.recipe import PretrainRecipe
from medvl.training.selfdistil.run import pretrain
from medvl.training.start import start_of

TINY = [
    "input.size_px=[32,32]",
    "data.batch=8",
    "image.options={widths: [8, 16], blocks: [1, 1], stem_px: 3, norm: group}",
    "objective.options={prototypes: 16, hidden: 16, bottleneck: 8}",
    "crops.small=1",
    "schedule.steps=4",
    "loop.every_steps=2",
    "loop.log_every=1",
    "machine.tensorboard=false",
    "machine.accelerator=cpu",
]


def tiny(*more):
    return recipes.resolve("dino", [*TINY, *more])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store in which no record has a word."""
    folder = tmp_path_factory.mktemp("films")
    told = Store(write_tiny(folder / "told", n=32))
    (folder / "untold" / "shards").mkdir(parents=True)
    silent = {"report": "", "retrieval": (), "generation": ()}
    write_store(folder / "untold", [(replace(r, **silent), told.pixels(r)) for r in told.records])
    return folder / "untold"


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    summary = pretrain(store, run, recipe=tiny())
    assert (summary.status, summary.step, summary.exit_code) == ("finished", 4, 0)
    return run


def test_films_without_a_report_train_and_leave_a_tower(store, whole):
    rows = read_metrics(whole / "metrics.csv")
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert {"train/loss", "train/views", "train/patches", "train/koleo", "train/spread"} <= set(rows[0])
    provenance = checkpoints.read_provenance(whole)
    assert provenance["records"]["train"] == sum(r.split == "train" for r in Store(store).records) > 16
    values = json.loads((whole / "tower" / "image.json").read_text())
    assert values["name"] == "resnet" and values["input"]["size_px"] == [32, 32]
    assert values["pixels"] == Store(store).pixel_spec.digest
    found = start_of(whole / "tower", side="image", name="resnet")
    tower = rebuild_image_encoder(found.name, values["architecture"]).load_weights(found.tensors)
    kept = load_file(checkpoints.latest(whole) / "models" / "model.safetensors")
    for name, tensor in tower.state_dict().items():
        assert torch.equal(tensor, kept[f"teacher.{name}"])
        if tensor.ndim > 1:
            assert not torch.equal(tensor, kept[f"student.{name}"])


def test_a_finished_run_is_left_alone_and_another_recipe_refused(store, whole):
    assert pretrain(store, whole, recipe=tiny()).status == "complete"
    with pytest.raises(ConfigError, match=r"another recipe .*optimiser.lr: 0.002 / 0.1"):
        pretrain(store, whole, recipe=tiny("optimiser.lr=0.1"))


def test_a_stopped_run_ends_like_an_uninterrupted_one(store, whole, tmp_path):
    def stop(done, total, message):
        if done == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    run = tmp_path / "run"
    first = pretrain(store, run, recipe=tiny(), progress=stop)
    assert (first.status, first.step, first.exit_code) == ("interrupted", 3, 143)
    assert not (run / "tower").exists()
    assert pretrain(store, run, recipe=tiny()).status == "finished"
    assert (run / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    ours, theirs = (load_file(r / "tower" / "image.safetensors") for r in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    # A kill between the last checkpoint and the tower: the next call writes it.
    (run / "summary.json").unlink()
    (run / "tower" / "image.safetensors").unlink()
    assert pretrain(store, run, recipe=tiny()).status == "finished"
    ours = load_file(run / "tower" / "image.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_transformer_with_a_moving_centre_starts_from_an_earlier_tower(store, tmp_path):
    vit = [
        "image.name=vit",
        "image.options={patch_px: 8, width: 16, hidden: 16, layers: 1, heads: 2}",
        "objective.options.centring=moving",
        "schedule.steps=2",
    ]
    pretrain(store, tmp_path / "first", recipe=tiny(*vit))
    again = tiny(*vit, f"image.weights={tmp_path / 'first' / 'tower'}", "optimiser.lr=1e-9")
    pretrain(store, tmp_path / "again", recipe=again)
    ours, theirs = (load_file(tmp_path / r / "tower" / "image.safetensors") for r in ("again", "first"))
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=0)
    kept = load_file(checkpoints.latest(tmp_path / "first") / "models" / "model.safetensors")
    assert kept["centre"].shape == (2, 16) and kept["centre"].abs().min() > 0


def test_refusals(store, tmp_path):
    with pytest.raises(ConfigError, match=r"machine.strategy is fsdp"):
        pretrain(store, tmp_path / "a", recipe=tiny("machine.strategy=fsdp"))
    with pytest.raises(UsageError, match=r"the store holds cxr, the recipe is for ct"):
        pretrain(store, tmp_path / "a", recipe=tiny("modality=ct"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("crops.large_share=[0.9,0.5]", r"large_share is \(0.9, 0.5\); allowed is 0 < least"),
        ("crops.hidden=[0,0.5]", r"hidden is \(0.0, 0.5\)"),
        ("crops.smal=2", r"unknown key 'crops.smal'.*Did you mean 'small'"),
        ("objective.options.prototype=9", r"'objective.options.prototype'.*'prototypes'"),
        ("image.options.width=[8]", r"unknown key 'image.options.width' of image encoder 'resnet'"),
        ("objective.name=clip", r"recipe: objective.name is 'clip'"),
        ("text={name: bert}", r"unknown key 'text'"),
    ],
)
def test_a_recipe_says_what_is_wrong_with_it(override, message):
    with pytest.raises(ConfigError, match=message):
        tiny(override)


def test_one_view_is_refused():
    with pytest.raises(ConfigError, match="one view of a film has nothing to agree with"):
        tiny("crops={large: 1, small: 0}")


def test_the_recipe_is_known_by_its_objective():
    recipe = recipes.resolve("dino")
    assert isinstance(recipe, PretrainRecipe) and recipe.small_px == (32, 32)
    assert recipe.image.options == recipes.resolve("multi").image.options  # a tower of the same shape
    assert recipe.input == recipes.resolve("multi").input


PROCESS = textwrap.dedent("""
    import json, sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    from medvl import recipes
    from medvl.training.selfdistil.run import pretrain

    store, run, overrides = json.loads(sys.argv[1])
    summary = pretrain(store, Path(run), recipe=recipes.resolve("dino", overrides))
    print(json.dumps(summary.to_json()))
""")


@pytest.mark.slow
def test_two_processes_equal_one(store, whole, tmp_path):
    task = json.dumps([str(store), str(tmp_path / "two"), [*TINY, "machine.devices=2"]])
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, task],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = (read_metrics(run / "metrics.csv") for run in (tmp_path / "two", whole))
    assert float(ours[0]["train/koleo"]) == pytest.approx(float(theirs[0]["train/koleo"]), rel=1e-5)
    a, b = (load_file(run / "tower" / "image.safetensors") for run in (tmp_path / "two", whole))
    for name in b:
        torch.testing.assert_close(a[name], b[name], atol=2e-4, rtol=1e-3)
