"""Tiny modules and batches for tests of the training step: every objective, every kind of feature."""

from __future__ import annotations

import functools

import torch

from medvl.alignment import ProjectionConfig, TowerRecipe, build_model
from medvl.data import positives
from medvl.features import Batch
from medvl.objectives import OBJECTIVES
from medvl.tokens import train_tokeniser
from medvl.training.module import AlignmentModule, Learning

try:
    from lossfeatures import OPTIONS
except ImportError:  # in a child process, which knows the folder of the tests by another name
    from tests.lossfeatures import OPTIONS

DIM = 8
REPORTS = (
    ["no change"],
    ["small left effusion", "heart"],
    ["heart", "no change", "left effusion small"],
    ["no change"],
    ["left effusion", "no change", "small heart left"],
    ["effusion"],
    ["small heart", "effusion left"],
    ["heart left small effusion"],
)
FINDINGS = ("effusion", "cardiomegaly", "nodule", "edema")


@functools.cache
def tokeniser():
    return train_tokeniser(["small left effusion no change heart", *FINDINGS] * 9, max_tokens=24)


def module(
    name,
    *,
    chunk=None,
    image=None,
    text=None,
    projection=None,
    seed=0,
    learning=None,
    sharded=False,
    mode="similar",
    **options,
):
    """Return a training module of two tiny towers; the same weights each time."""
    words = tokeniser()
    torch.manual_seed(seed)
    picture = {"widths": [8, 16], "blocks": [1, 1], "stem_px": 3, "norm": "group"}
    report = {"layers": 1, "width": 16, "heads": 2, "dropout": 0.0}
    objective = OBJECTIVES.build(name, OPTIONS.get(name, {}) | options, DIM)
    objective.on_epoch(5)
    model = build_model(
        image=TowerRecipe(**{"name": "resnet", "options": picture} | (image or {})),
        text=TowerRecipe(**{"name": "bert", "options": report} | (text or {})),
        tokeniser=words,
        projection=projection or ProjectionConfig(dim=DIM),
        local=objective.needs_local,
    )
    names = tuple(map(torch.from_numpy, words.encode([[name] for name in FINDINGS])))
    return AlignmentModule(
        model,
        objective,
        positives=functools.partial(positives, mode=mode, weight=0.5),
        learning=learning or Learning(lr=1e-2),
        steps=10,
        steps_per_epoch=100,
        chunk=chunk,
        names=names if objective.needs_attributes else None,
        sharded=sharded,
    )


def batch(rows=slice(None), *, views=1):
    """Return 8 rows, of 4 studies with two views each or of 8 studies; or some of them."""
    generator = torch.Generator().manual_seed(1)
    tokens, mask = map(torch.from_numpy, tokeniser().encode(REPORTS))
    study = torch.arange(8) // 2 if views == 2 else torch.tensor([0, 1, 2, 3, 4, 4, 6, 7])
    states = torch.tensor([0.0, 1.0, 1.0, float("nan")])
    values = {
        "images": torch.randn(8, 1, 16, 16, generator=generator),
        "image_mask": torch.ones(8, 16, 16, dtype=torch.bool),
        "tokens": tokens,
        "token_mask": mask,
        "study": study,
        "report": torch.tensor([0, 1, 2, 0, 4, 5, 6, 7]),
        "labels": states[torch.randint(0, 4, (8, len(FINDINGS)), generator=generator)],
        "image_present": torch.tensor([True] * 5 + [False] + [True] * 2) if views == 2 else None,
        "sentence_parts": torch.randint(0, 4, (8, 3), generator=generator),
    }
    return Batch(**{key: None if value is None else value[rows] for key, value in values.items()})


def gradients(part):
    return {n: p.grad.clone() for n, p in part.named_parameters() if p.grad is not None}
