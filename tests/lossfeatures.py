"""Objectives under test and random features for them, with ragged masks and soft positives."""

from dataclasses import replace

import torch

from medvl.features import ImageFeatures, TextFeatures
from medvl.objectives import OBJECTIVES

DIM = 8
D = torch.float64
OPTIONS = {
    "mgca": {"prototypes": 12},
    "multi": {"prototypes": 12},
    # The negatives of "n" are drawn by place in the batch: T2 holds on average only.
    "symile": {"negatives": "n_squared"},
    "villa": {"findings": ["oedema", "effusion", "nodule", "fracture"]},
}
NAMES = list(OBJECTIVES)
OWN_ATTENTION = "learned matrices attend to the regions and project what they see; they do not rotate along"
EXEMPT = {
    "gloria": {"T1": "words attend to regions by raw products"},
    "medclip": {
        "identity": "its soft targets come from the findings, not from the positives",
        "pairs": "a case with like findings is as right an answer as its own",
    },
    "medvista": {"T3": OWN_ATTENTION},
    "organs": {"T3": OWN_ATTENTION},
    "symile": {
        "T3": "a sum of products of three coordinates depends on the axes",
        "pairs": "it brings tuples together, of which no two parts need to be alike",
    },
    "villa": {"T3": "the heads are learned functions of the axes"},
}
"""Tests of the conventions (T1 …) that an objective's own formula excludes, each with the reason; ``pairs``
is that free embeddings of an image and its text become alike, ``identity`` that a diagonal of positives is
the plain formula."""
SOFT = [
    *((name, "none") for name in NAMES),
    *((name, mode) for name in NAMES for mode in ("mask", "multi", "soft")),
]


def build(name, **options):
    torch.manual_seed(0)
    objective = OBJECTIVES.build(name, OPTIONS.get(name, {}) | options, DIM).double()
    objective.on_epoch(1)
    return objective


def even(name, batch):
    """The number of rows of ``batch`` studies."""
    return batch * OBJECTIVES.factory(name).views


def features(batch, *, seed=0, words=7, sentences=3, regions=9, dtype=D, weights=False):
    """Random features with ragged masks; every row has a word, a sentence and a region."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=generator, dtype=D).to(dtype)

    def mask(length):
        return (torch.rand(batch, length, generator=generator) < 0.7).index_fill(1, torch.tensor([0]), True)

    image = ImageFeatures(rand(batch, DIM), rand(batch, regions, DIM), (regions,), mask(regions))
    text = TextFeatures(
        rand(batch, DIM),
        rand(batch, words, DIM),
        mask(words),
        rand(batch, sentences, DIM),
        mask(sentences),
        sentence_keys=torch.randint(1, 6, (batch, sentences), generator=generator),
        sentence_parts=torch.randint(0, 4, (batch, sentences), generator=generator),
        attributes=rand(4, DIM),
        findings=torch.tensor([0.0, 1.0, float("nan")])[torch.randint(0, 3, (batch, 4), generator=generator)],
    )
    if weights:
        image = replace(image, region_weights=rand(batch, regions).softmax(dim=1))
        text = replace(text, word_weights=rand(batch, words).softmax(dim=1))
    return image, text


def positives(batch):
    """Two rows of one study, one partly similar case."""
    matrix = torch.eye(batch)
    if batch > 2:
        matrix[0, 1] = matrix[1, 0] = 1.0
        matrix[0, 2] = matrix[2, 0] = 0.5
    return matrix


CARRIES = ("pooled", "regions", "words", "sentences", "attributes")


def tensors(*parts):
    """The tensors of features that carry a gradient."""
    return [
        getattr(part, name) for part in parts for name in CARRIES if getattr(part, name, None) is not None
    ]


def change(parts, function):
    return tuple(
        replace(
            part,
            **{
                name: function(getattr(part, name))
                for name in CARRIES
                if getattr(part, name, None) is not None
            },
        )
        for part in parts
    )


def rows(part, index):
    return replace(
        part,
        **{
            name: value[index]
            for name, value in vars(part).items()
            if isinstance(value, torch.Tensor) and name != "attributes"
        },
    )
