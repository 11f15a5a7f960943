"""Whole tiny training runs: each objective, what a run belongs to, when it stops, what it learns."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from tinystore import SMALL, write_store, write_tiny

from medvl import recipes
from medvl.errors import CheckpointError, ConfigError, UsageError
from medvl.modeldir import read_model
from medvl.store import Store
from medvl.training import checkpoints
from medvl.training.logs import read_metrics
from medvl.training.run import store_digest, train


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("training") / "store")


def small(name="multi", *more):
    return recipes.resolve(
        name, [*SMALL, "schedule.steps=6", "loop.every_steps=4", "loop.log_every=2", *more]
    )


@pytest.mark.parametrize("name", ["clip", "mgca", "multi"])
def test_each_objective_trains_and_its_model_reads_back(name, store, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    calls = []
    summary = train(store, tmp_path / "run", recipe=small(name), progress=lambda *call: calls.append(call))
    assert (summary.status, summary.step, summary.steps, summary.exit_code) == ("finished", 6, 6, 0)
    assert calls[-1] == (6, 6, "training")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # nothing else in the working directory
    assert "".join(capfd.readouterr()) == ""
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [row["step"] for row in rows] == ["1", "2", "4", "6"]
    assert float(rows[0]["train/loss"]) > 0 and rows[2]["val/recall@5"]
    loaded = read_model(checkpoints.best_model(tmp_path / "run"))
    assert loaded.input.size_px == (32, 32) and loaded.model.local == (name != "clip")
    again = train(store, tmp_path / "run", recipe=small(name))
    assert (again.status, again.step, again.best) == ("complete", 6, summary.best)


def test_a_run_belongs_to_its_recipe_and_data(store, tmp_path):
    run = tmp_path / "run"
    train(store, run, recipe=small("clip", "schedule.steps=2"))
    with pytest.raises(ConfigError, match=r"another recipe \(then / now\): optimiser.lr: .* / 0.5"):
        train(store, run, recipe=small("clip", "schedule.steps=2", "optimiser.lr=0.5"))
    other = write_tiny(tmp_path / "other", seed=1, n=47)
    with pytest.raises(CheckpointError, match=r"started with other data: store digest [0-9a-f]{24} then"):
        train(other, run, recipe=small("clip", "schedule.steps=2"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="holds something else than a run"):
        train(store, tmp_path / "full", recipe=small())
    values = json.loads((store / "store.json").read_text())
    (other / "store.json").write_text(json.dumps(values | {"modality": "ct"}))
    with pytest.raises(UsageError, match="the store holds ct, the recipe is for cxr"):
        train(other, tmp_path / "new", recipe=small())


def test_provenance_says_what_was_read(store, tmp_path):
    train(store, tmp_path / "run", recipe=small("clip", "schedule.steps=1", "data.split_seed=5"))
    values = checkpoints.read_provenance(tmp_path / "run")
    assert values["store"] == store_digest(Store(store)) and values["split_seed"] == 5
    assert values["records"]["train"] + values["records"]["val"] <= 48
    assert values["versions"]["torch"] == torch.__version__


def test_a_loss_that_is_no_number_stops_the_run(store, tmp_path):
    with pytest.raises(ConfigError, match=r"the loss is (nan|inf) at step"):
        train(
            store,
            tmp_path / "run",
            recipe=small("clip", "optimiser.lr=1e38", "schedule.warmup=0", "loop.log_every=1"),
        )


def test_patience_stops_a_run_that_does_not_improve(store, tmp_path):
    recipe = small("clip", "optimiser.lr=1e-30", "loop.every_steps=1", "loop.patience=2", "schedule.steps=9")
    summary = train(store, tmp_path / "run", recipe=recipe)
    # with hardly any learning rate only the running statistics move; whenever it stops, it is before step 9
    assert summary.status in ("stopped", "finished")
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    losses = [float(row["val/loss"]) for row in rows]
    best = int(np.argmin(losses))
    assert summary.step == min(9, best + 3) and summary.best == min(losses)
    assert checkpoints.best_model(tmp_path / "run").name == f"step-{best + 1:08d}"


def test_bfloat16_trains_and_computes_the_loss_in_single_precision(store, tmp_path):
    summary = train(store, tmp_path / "run", recipe=small("multi", "loop.precision=bf16-mixed"))
    assert summary.status == "finished" and math.isfinite(summary.best)


def test_tensorboard_files_are_written(store, tmp_path):
    train(store, tmp_path / "run", recipe=small("clip", "machine.tensorboard=true", "schedule.steps=2"))
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_no_validation_split_is_no_obstacle(tmp_path, caplog):
    store = write_tiny(tmp_path / "store", n=16)
    recipe = small("clip", "data.split_seed=0", "schedule.steps=2")
    summary = train(store, tmp_path / "run", recipe=recipe)
    assert summary.status == "finished"


@pytest.mark.parametrize("shuffled", [False, True])
def test_separable_pairs_are_learnt_and_shuffled_ones_are_not(tmp_path, shuffled):
    """Three kinds of picture, three reports: each finds its own words, unless pairs are shuffled."""
    store = write_tiny(tmp_path / "store", n=90, own_words=False)
    if shuffled:
        samples = list(Store(store))
        order = np.random.default_rng(0).permutation(len(samples))
        texts = ("report", "retrieval", "generation", "text_hash")
        samples = [
            (dataclasses.replace(r, **{t: getattr(samples[j][0], t) for t in texts}), pixels)
            for (r, pixels), j in zip(samples, order, strict=True)
        ]
        (tmp_path / "shuffled" / "shards").mkdir(parents=True)
        write_store(tmp_path / "shuffled", samples)
        store = tmp_path / "shuffled"
    recipe = small(
        "clip",
        "objective.options={false_negatives: multi}",
        "objective.positives=same",
        "schedule.steps=40",
        "optimiser.lr=3e-3",
        "loop.every_steps=40",
        "data.batch=24",
    )
    train(store, tmp_path / "run", recipe=recipe)
    loaded = read_model(checkpoints.best_model(tmp_path / "run"))
    opened = Store(store)
    records = [record for record in opened.records if record.split != "train"]
    images = np.stack([loaded.input.apply(opened.pixels(record))[0] for record in records])
    masks = np.stack([loaded.input.apply(opened.pixels(record))[1] for record in records])
    kinds = sorted({record.retrieval for record in opened.records})
    tokens, token_mask = loaded.tokeniser.encode(kinds)
    with torch.no_grad():
        image = loaded.model.encode_image(torch.from_numpy(images), torch.from_numpy(masks)).pooled
        text = loaded.model.encode_text(torch.from_numpy(tokens), torch.from_numpy(token_mask)).pooled
    found = torch.nn.functional.normalize(image) @ torch.nn.functional.normalize(text).T
    truth = [kinds.index(record.retrieval) for record in records]
    recall = float((found.argmax(1) == torch.tensor(truth)).float().mean())
    if shuffled:  # chance is 1/3; three standard errors of a binomial
        assert abs(recall - 1 / 3) < 3 * math.sqrt(2 / 9 / len(records))
    else:
        assert recall == 1.0


@pytest.mark.weights
def test_the_starter_trains_adapters_alone(store, tmp_path):
    recipe = recipes.resolve(
        "starter", ["schedule.steps=2", "input.size_px=[64,64]", "data.batch=8", "machine.tensorboard=false"]
    )
    train(store, tmp_path / "run", recipe=recipe)
    values = checkpoints.read_provenance(tmp_path / "run")
    assert values["trained_parameters"] < 0.1 * values["parameters"]
    assert read_model(checkpoints.best_model(tmp_path / "run")).model.config.text.train == "lora"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator here")
def test_a_run_on_an_accelerator(store, tmp_path):
    summary = train(
        store, tmp_path / "run", recipe=small("multi", "machine.accelerator=gpu", "loop.precision=bf16-mixed")
    )
    assert summary.status == "finished"
