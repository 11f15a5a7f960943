"""Training pieces by closed form: state, schedule, groups, validation, logs; then whole tiny runs."""

import dataclasses
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from medvl import recipes
from medvl.errors import CheckpointError, ConfigError, UsageError
from medvl.features import Batch, ImageFeatures, LossTerms, TextFeatures
from medvl.modeldir import read_model
from medvl.store import Store
from medvl.training import checkpoints
from medvl.training.logs import MetricsLog, read_metrics
from medvl.training.optimiser import parameter_groups, warmup_cosine
from medvl.training.run import store_digest, train
from medvl.training.state import read_state, write_state
from medvl.training.validation import recall_at, validate

sys.path.insert(0, str(Path(__file__).parent))
from tinystore import SMALL, write_store, write_tiny

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


# --- optimiser ----------------------------------------------------------------------------------


def test_schedule_is_the_closed_form():
    total, warmup, floor = 100, 10, 0.1
    for step in range(101):
        if step < warmup:
            expected = (step + 1) / warmup
        else:
            expected = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / 90))
        assert warmup_cosine(step, total=total, warmup=warmup, floor=floor) == pytest.approx(expected)
    assert warmup_cosine(200, total=total, warmup=warmup, floor=floor) == pytest.approx(floor)
    assert warmup_cosine(0, total=1, warmup=0, floor=0.0) == 1.0


def test_only_matrices_decay_and_frozen_parameters_are_left_out():
    layer, norm = torch.nn.Linear(3, 2), torch.nn.LayerNorm(2)
    layer.bias.requires_grad_(False)
    groups = parameter_groups(
        {"image": layer.named_parameters(), "head": norm.named_parameters()},
        lr=0.1,
        factors={"image": 0.5},
        weight_decay=0.2,
    )
    assert [(g["name"], g["lr"], g["weight_decay"], len(g["params"])) for g in groups] == [
        ("image", 0.05, 0.2, 1),
        ("head", 0.1, 0.0, 2),
    ]


# --- validation ---------------------------------------------------------------------------------


def batch_of(study, report):
    n = len(study)
    empty = torch.zeros(n, 1, dtype=torch.long)
    return Batch(
        images=torch.zeros(n, 1, 2, 2),
        image_mask=torch.ones(n, 2, 2, dtype=torch.bool),
        tokens=empty,
        token_mask=empty,
        study=torch.tensor(study),
        report=torch.tensor(report),
        labels=torch.empty(n, 0),
    )


def features(vectors):
    n = len(vectors)
    mask = torch.ones(n, 1, dtype=torch.bool)
    image = ImageFeatures(vectors, vectors[:, None], (1,), mask)
    return image, TextFeatures(vectors, vectors[:, None], mask, vectors[:, None], mask)


def test_validation_averages_full_batches_and_ranks_the_whole_split():
    vectors = torch.eye(7)
    batches = [batch_of([0, 1, 2], [0, 1, 2]), batch_of([3, 4, 5], [3, 4, 5]), batch_of([6], [6])]
    seen = []

    def loss(image, text, batch):
        seen.append(len(batch.study))
        return LossTerms(torch.tensor(float(batch.study[0])), {"part": torch.tensor(1.0)})

    row = validate(batches, encode=lambda batch: features(vectors[batch.study]), loss=loss)
    # the odd batch of one does not count: it compares nothing; (0 + 3) / 2
    assert seen == [3, 3] and row == {"val/loss": 1.5, "val/part": 1.0, "val/recall@5": 1.0}


def test_recall_counts_twins_and_gives_ties_no_credit():
    similarity = torch.tensor([[0.1, 0.9, 0.5], [0.2, 0.2, 0.2]])
    relevant = torch.tensor([[False, False, True], [True, False, False]])
    # row 0: its item is second; row 1: tied with two others, so third
    assert recall_at(similarity, relevant, k=1) == 0.0
    assert recall_at(similarity, relevant, k=2) == 0.5
    assert recall_at(similarity, relevant, k=3) == 1.0
    assert recall_at(similarity, relevant | (similarity == 0.9), k=1) == 0.5


# --- logs ---------------------------------------------------------------------------------------


def test_the_table_forgets_the_future_of_a_killed_run(tmp_path):
    table = MetricsLog(tmp_path, step=0, tensorboard=False)
    table.write(1, 0, {"train/loss": 0.1})
    table.write(2, 0, {"train/loss": 0.2, "val/loss": 0.3})
    table.write(3, 1, {"train/loss": 0.25})
    whole = (tmp_path / "metrics.csv").read_bytes()
    with (tmp_path / "metrics.csv").open("a") as stream:
        stream.write("4,1,0.")  # torn by a kill
    again = MetricsLog(tmp_path, step=2, tensorboard=False)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.csv")] == ["1", "2"]
    again.write(3, 1, {"train/loss": 0.25})
    assert (tmp_path / "metrics.csv").read_bytes() == whole


# --- runs ---------------------------------------------------------------------------------------


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
