"""Training pieces by closed form: schedule, parameter groups, validation, logs."""

import math

import pytest
import torch

from medvl.features import Batch, ImageFeatures, LossTerms, TextFeatures
from medvl.training.logs import MetricsLog, read_metrics
from medvl.training.optimiser import parameter_groups, warmup_cosine
from medvl.training.validation import recall_at, validate

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
