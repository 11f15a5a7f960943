"""GradCache: chunks give the loss and every gradient of one pass, and hold one chunk's activations."""

from dataclasses import fields, replace

import lossfeatures
import pytest
import torch
from lossfeatures import DIM, NAMES, build
from tinymodules import batch, gradients, module
from torch import nn

from medvl.alignment import ProjectionConfig
from medvl.data import positives
from medvl.data.dataset import integer_key
from medvl.errors import ConfigError
from medvl.features import Batch, ImageFeatures, TextFeatures
from medvl.objectives import OBJECTIVES
from medvl.training.chunks import encode_in_chunks

ROWS, REGIONS, WIDTH = 16, 9, 5


class Toy(nn.Module):
    """An encoder in double precision with dropout; reports of few words have few columns, as real ones do."""

    def __init__(self, dropout):
        super().__init__()
        torch.manual_seed(3)
        self.image = nn.ModuleList([nn.Linear(WIDTH, DIM), nn.Linear(WIDTH, DIM)])
        self.text = nn.ModuleList([nn.Linear(WIDTH, DIM), nn.Linear(WIDTH, DIM), nn.Linear(WIDTH, DIM)])
        self.weights = nn.Linear(WIDTH, 1)
        self.drop = nn.Dropout(dropout)
        self.double()

    def forward(self, part):
        cells = self.drop(part.images.flatten(1).unflatten(1, (REGIONS, WIDTH)))
        seen = torch.ones(len(cells), REGIONS, dtype=torch.bool)
        image = ImageFeatures(
            self.image[0](cells.mean(1)),
            torch.tanh(self.image[1](cells)),
            (REGIONS,),
            seen,
            region_weights=self.weights(cells)[..., 0].softmax(1),  # with a gradient, as an own pooler has
            present=part.image_present,
        )
        words = int(part.token_mask.sum(1).max())
        said = part.token_mask[:, :words] > 0
        states = nn.functional.one_hot(part.tokens[:, :words] % WIDTH, WIDTH).double()
        states = self.drop(states * said[..., None])
        sentences = states[:, : max(1, words // 2)]
        text = TextFeatures(
            self.text[0](states.sum(1)),
            torch.tanh(self.text[1](states)),
            said,
            torch.tanh(self.text[2](sentences)),
            said[:, : sentences.shape[1]],
            sentence_keys=part.tokens[:, : sentences.shape[1]],
            sentence_parts=part.sentence_parts[:, : sentences.shape[1]],
            findings=part.labels,
        )
        return image, text


def toy_batch(views):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 9, (ROWS,), generator=generator)
    study = torch.arange(ROWS) // views
    return Batch(
        images=torch.randn(ROWS, 1, REGIONS, WIDTH, generator=generator, dtype=torch.float64),
        image_mask=torch.ones(ROWS, REGIONS, WIDTH, dtype=torch.bool),
        tokens=torch.randint(1, 50, (ROWS, 8), generator=generator),
        token_mask=(torch.arange(8) < lengths[:, None]).long(),
        study=study,
        report=torch.arange(ROWS) % 13,
        labels=torch.tensor([0.0, 1.0, torch.nan])[torch.randint(0, 3, (ROWS, 4), generator=generator)],
        image_present=torch.rand(ROWS, generator=generator) < 0.8 if views == 2 else None,
        sentence_parts=torch.randint(0, 4, (ROWS, 8), generator=generator),
    )


def cut(part, first, last):
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    return Batch(**{name: None if value is None else value[first:last] for name, value in values.items()})


def glue(pieces):
    """Rows of all pieces, shorter second axes filled with zeros; written apart from the product's own."""
    whole = {}
    for field in fields(pieces[0]):
        values = [getattr(piece, field.name) for piece in pieces]
        if not isinstance(values[0], torch.Tensor):
            continue
        if values[0].ndim > 1:
            size = (ROWS, max(value.shape[1] for value in values), *values[0].shape[2:])
            whole[field.name] = values[0].new_zeros(size)
            row = 0
            for value in values:
                whole[field.name][row : row + len(value), : value.shape[1]] = value
                row += len(value)
        else:
            whole[field.name] = torch.cat(values)
    return replace(pieces[0], **whole)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("chunk", [2, 5])
@pytest.mark.parametrize("name", NAMES)
def test_chunks_are_one_pass_for_every_objective(name, chunk, dropout):
    """8 chunks, and 4 of which the last is smaller; with dropout, a single pass with the chunks' seeds."""
    views = OBJECTIVES.factory(name).views
    whole, attributes = toy_batch(views), lossfeatures.features(2)[1].attributes
    found = {}
    for way in ("one pass", "chunks"):
        toy, objective = Toy(dropout), build(name)
        if way == "chunks":
            image, text = encode_in_chunks(toy, whole, chunk=chunk, seed="7")
        else:
            pieces = []
            for k, first in enumerate(range(0, ROWS, chunk)):
                torch.manual_seed(integer_key(f"7:{k}"))
                pieces.append(toy(cut(whole, first, first + chunk)))
            image, text = (glue([piece[side] for piece in pieces]) for side in (0, 1))
        names = attributes.clone().requires_grad_()
        given = positives(whole.study, whole.report, whole.labels)
        torch.manual_seed(0)
        terms = objective(image, replace(text, attributes=names), given)
        terms.total.backward()
        encoder = {n: p.grad for n, p in toy.named_parameters() if p.grad is not None}
        own = {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}
        found[way] = terms.total.detach(), encoder | own | {"names": names.grad}
    (one, plain), (two, cached) = found["one pass"], found["chunks"]
    assert abs(float(one - two)) < 1e-12 * max(1.0, abs(float(one)))
    assert plain.keys() == cached.keys()
    assert max(float(gradient.abs().max()) for gradient in plain.values() if gradient is not None) > 1e-5
    for key, gradient in plain.items():
        if gradient is None:
            assert cached[key] is None
        else:
            scale = max(1.0, float(gradient.abs().max()))
            assert float((gradient - cached[key]).abs().max()) < 1e-12 * scale, key


@pytest.mark.parametrize("name", NAMES)
def test_real_towers_in_chunks(name):
    """Group norm, transformer, projections with the norm of the batch, whose statistics move once."""
    found = {}
    views = OBJECTIVES.factory(name).views
    for chunk in (None, 3):
        net = module(name, chunk=chunk, projection=ProjectionConfig(dim=DIM, norm="batch")).train()
        rows = batch(views=views)
        image, text = net.encode(rows)
        total = net.loss(image, text, rows).total
        total.backward()
        found[chunk] = total.detach(), gradients(net), {n: b.clone() for n, b in net.named_buffers()}
    (one, plain, before), (two, cached, after) = found[None], found[3]
    torch.testing.assert_close(two, one, atol=1e-6, rtol=1e-6)
    assert plain.keys() == cached.keys()
    largest = max(float(gradient.abs().max()) for gradient in plain.values())
    worst = max(float((plain[key] - cached[key]).abs().max()) for key in plain)
    # Single precision, and the norm divides by the small spread of vectors that are nearly alike.
    assert worst < 5e-6 * max(1.0, largest)
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, msg=key)
    assert int(after["model.image_norm.num_batches_tracked"]) == 1


def test_chunks_under_autocast_keep_every_gradient():
    """Casts that are cached where no gradient is needed must not be used where one is."""
    found = {}
    for chunk in (None, 3):
        net = module("multi", chunk=chunk).train()
        rows = batch()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            image, text = net.encode(rows)
            total = net.loss(image, text, rows).total
        total.backward()
        found[chunk] = gradients(net)
    assert found[None].keys() == found[3].keys()
    for key, gradient in found[None].items():
        # bfloat16 has 8 bits: each sum of 8 rows rounds otherwise
        scale = float(gradient.abs().max())
        assert float((gradient - found[3][key]).abs().max()) <= 0.05 * scale + 1e-4, key


def test_without_a_gradient_chunks_only_encode():
    rows = batch()
    with torch.no_grad():
        one = module("multi").train().encode(rows)
        two = module("multi", chunk=3).train().encode(rows)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a.pooled, b.pooled)
        assert not b.pooled.requires_grad


def test_batch_norm_of_an_encoder_is_refused_unless_it_rests():
    towers = {"name": "resnet", "options": {"widths": [8, 16], "blocks": [1, 1], "norm": "batch"}}
    with pytest.raises(ConfigError, match=r"the image encoder has batch norm.*norm to group"):
        module("clip", chunk=2, image=towers)
    module("clip", chunk=2, image={**towers, "train": "frozen"})
    module("clip", chunk=2, image={**towers, "train": "lora", "lora": {"rank": 1, "targets": "all-conv"}})
    module("clip", image=towers)
