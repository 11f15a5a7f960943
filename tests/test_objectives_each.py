"""What each objective adds to the common contract: closed forms, weights, prototypes, learning."""

import math
from dataclasses import replace

import pytest
import torch
from lossfeatures import DIM, build, change, features, positives

from medvl.features import ImageFeatures, TextFeatures
from medvl.objectives import OBJECTIVES, Clip, Mgca, Multi


def constant(batch, *, words=111, regions=196):
    one = torch.ones
    image = ImageFeatures(one(batch, DIM), one(batch, regions, DIM), (14, 14), one(batch, regions) > 0)
    text = TextFeatures(
        one(batch, DIM), one(batch, words, DIM), one(batch, words) > 0, one(batch, 4, DIM), one(batch, 4) > 0
    )
    return change((image, text), lambda x: x.double())


def test_clip_of_constants():
    assert Clip(DIM).double()(*constant(8), torch.eye(8)).total.item() == pytest.approx(2.079442, abs=1e-6)


def test_mgca_of_constants():
    # METHODS §2.2: ITA 2 ln B (a sum, not a mean), CTA ln 111 + ln 196, CPA ln 500 where all
    # prototypes see the same: here all are one vector.
    objective = Mgca(DIM).double()
    with torch.no_grad():
        objective.prototypes.weight.copy_(torch.full((500, DIM), DIM**-0.5))
    terms = objective(*constant(8), torch.eye(8)).terms
    assert terms["instance"].item() == pytest.approx(2 * math.log(8), abs=1e-6)
    assert terms["token"].item() == pytest.approx(9.987645, abs=1e-6)
    assert terms["prototype"].item() == pytest.approx(6.214608, abs=1e-6)


def test_mgca_defaults_are_the_published_ones():
    assert OBJECTIVES.options("mgca") == {
        "instance_weight": 1.0,
        "token_weight": 1.0,
        "prototype_weight": 1.0,
        "instance_temperature": 0.07,
        "token_temperature": 0.1,
        "prototype_temperature": 0.2,
        "prototypes": 500,
        "epsilon": 0.05,
        "iterations": 3,
        "frozen_epochs": 1,
        "patch_context": "auto",
        "false_negatives": "none",
    }


def test_multi_of_constants():
    # ln B for the instances, ln B for the sentences, λ₃ ln K for the prototypes.
    objective = Multi(DIM, prototypes=12, prototype_weight=0.5).double()
    with torch.no_grad():
        objective.prototypes.weight.copy_(torch.full((12, DIM), DIM**-0.5))
    terms = objective(*constant(8), torch.eye(8)).terms
    assert terms["instance"].item() == pytest.approx(math.log(8), abs=1e-6)
    assert terms["sentence"].item() == pytest.approx(math.log(8), abs=1e-6)
    assert terms["prototype"].item() == pytest.approx(0.5 * math.log(12), abs=1e-6)


@pytest.mark.parametrize("name", ["mgca", "multi"])
def test_weights_scale_the_terms(name):
    parts, matrix = features(5), positives(5)
    plain = build(name)(*parts, matrix).terms
    for term in plain:
        other = build(name, **{f"{term}_weight": 0.0})(*parts, matrix)
        assert other.terms[term].item() == 0.0
        expected = sum(value.item() for key, value in plain.items() if key != term)
        assert other.total.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["mgca", "multi"])
def test_prototypes_stand_still_in_epoch_0(name):
    objective = build(name)
    objective.on_epoch(0)
    objective(*features(5), positives(5)).total.backward()
    assert not objective.prototypes.weight.grad.any()
    before = objective.prototypes.weight.detach().clone()
    torch.optim.AdamW(objective.parameters(), lr=0.1, weight_decay=0.1).step()
    objective.clamp_()
    # Weight decay shortens all prototypes alike; the clamp takes it back.
    torch.testing.assert_close(objective.prototypes.weight, before)


def test_multi_learns_where():
    # Each image has 9 regions: one shows one of 6 findings, 8 are background shared by all images. A
    # linear map of the regions and one vector a finding learn, from sentences alone, which region it is.
    generator = torch.Generator().manual_seed(0)
    signatures = torch.randn(6, 16, generator=generator)
    finding = torch.arange(24) % 6
    place = torch.randint(0, 9, (24,), generator=generator)
    pixels = 0.5 * torch.randn(24, 9, 16, generator=generator) + torch.randn(16, generator=generator)
    pixels[torch.arange(24), place] += 2 * signatures[finding]
    matrix = 0.5 * (finding[:, None] == finding).float()
    matrix.fill_diagonal_(1.0)
    projection = torch.nn.Linear(16, DIM)
    words = torch.nn.Embedding(6, DIM)
    objective = build("multi", instance_weight=0.0, prototype_weight=0.0).float()
    parameters = [*projection.parameters(), *words.parameters(), *objective.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=0.03)

    def step():
        image, text = features(24, words=1, sentences=1, dtype=torch.float32)
        image = replace(image, regions=projection(pixels), region_mask=torch.ones(24, 9) > 0)
        text = replace(text, sentences=words(finding)[:, None], sentence_mask=torch.ones(24, 1) > 0)
        return image, text

    for _ in range(150):
        image, text = step()
        optimiser.zero_grad()
        objective(image, replace(text, sentence_keys=None), matrix).total.backward()
        optimiser.step()
        objective.clamp_()
    image, text = step()
    regions = torch.nn.functional.normalize(image.regions, dim=2)
    pointed = torch.einsum("brd,bd->br", regions, text.sentences[:, 0]).argmax(dim=1)
    assert (pointed == place).float().mean() > 0.9  # chance is 1/9
