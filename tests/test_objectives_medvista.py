"""MedVista3D as we read it: the bank term's closed forms, its loop, and what the three terms sum to."""

import math

import oracles
import pytest
import torch
from lossfeatures import DIM, D, build, features, positives

from medvl.data import positives as batch_positives
from medvl.errors import ConfigError
from medvl.objectives import OBJECTIVES
from medvl.objectives.contrast import clip_loss
from medvl.objectives.medvista import bank_loss


def oracle(images, texts, matrix, scale):
    """METHODS §3.2 in loops, both directions."""
    n = len(images)
    v, t = ([oracles.normalised(list(x)) for x in side] for side in (images, texts))
    total = torch.zeros((), dtype=D)
    for i in range(n):
        for ours, theirs, right in (
            (v[i], t, [float(matrix[i][j]) for j in range(n)]),
            (t[i], v, [float(matrix[j][i]) for j in range(n)]),
        ):
            values = [torch.exp(scale * oracles.dot(ours, other)) for other in theirs]
            among = sum(value for j, value in enumerate(values) if j == i or right[j] > 0)
            total = total - torch.log(among / sum(values))
    return total / (2 * n)


def test_value_and_gradient_equal_the_loop():
    image, text = features(7)
    matrix = (
        torch.rand(7, 7, generator=torch.Generator().manual_seed(3)) < 0.3
    ).double() * 0.4  # not symmetric
    leaves = [x.clone().requires_grad_() for x in (image.pooled, text.pooled)]
    loss, expected = bank_loss(*leaves, matrix, scale=5.0), oracle(*leaves, matrix, 5.0)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-10)
    for ours, theirs in zip(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=0)


def bank_positives(bank, **options):
    keys = torch.arange(len(bank))
    return batch_positives(keys, keys, torch.empty(len(bank), 0), mode="bank", bank=bank, **options)


def test_an_empty_bank_is_exactly_plain_contrast():
    images, texts = torch.randn(9, 5), torch.randn(9, 5)
    plain = clip_loss(images, texts, torch.eye(9), scale=14.0)
    bank = torch.nn.functional.normalize(torch.randn(9, 3), dim=1)
    for given in (bank_positives(bank[:, :0]), bank_positives(bank, least=1.01)):
        assert bank_loss(images, texts, given, scale=14.0).item() == pytest.approx(plain.item(), abs=1e-6)
        soft = clip_loss(images, texts, given, scale=14.0, false_negatives="soft")
        assert soft.item() == pytest.approx(plain.item(), abs=1e-6)


def test_a_bank_of_everybody_leaves_nothing_to_learn():
    # k ≥ B and δ ≤ −1: numerator and denominator are the same sum.
    images = torch.randn(9, 5, dtype=D, requires_grad=True)
    bank = torch.nn.functional.normalize(torch.randn(9, 3), dim=1)
    loss = bank_loss(
        images, torch.randn(9, 5, dtype=D), bank_positives(bank, neighbours=9, least=-1), scale=14.0
    )
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert torch.autograd.grad(loss, images)[0].abs().max() < 1e-12


def test_constant_embeddings_give_the_share_of_right_answers():
    # Each of 6 cases has one twin: softmax 1/6 each, two right ones, −ln(2/6) = ln 3.
    same = torch.ones(6, 4, dtype=D)
    matrix = torch.eye(6) + 0.5 * torch.eye(6)[[1, 0, 3, 2, 5, 4]]
    assert bank_loss(same, same, matrix, scale=20.0).item() == pytest.approx(math.log(3), abs=1e-12)


def test_a_twin_costs_nothing_when_it_wins():
    # Texts 0 and 1 mean the same. Image 0 finds text 1 and not its own: CLIP is dear, the bank is not.
    images, texts = torch.eye(3, dtype=D), torch.eye(3, dtype=D)[[1, 0, 2]]
    twins = torch.eye(3)
    twins[0, 1] = twins[1, 0] = 0.5
    assert bank_loss(images, texts, twins, scale=20.0) < 1e-6
    assert clip_loss(images, texts, twins, scale=20.0) > 10


def test_terms():
    parts, matrix = features(6), positives(6)
    loss = build("medvista")(*parts, matrix)
    organs = build("organs")(*parts, matrix)
    assert set(loss.terms) == {"instance", "organs", "bank"}
    assert loss.terms["instance"] == organs.terms["instance"]
    assert loss.terms["organs"] == organs.terms["organs"]  # the same seed draws the same queries
    soft = build("medvista", bank_targets="soft")(*parts, matrix)
    clip = build("clip", false_negatives="soft")(*parts, matrix)
    assert soft.terms["bank"] == clip.total
    assert soft.terms["bank"] != loss.terms["bank"]


def test_refuses_other_targets():
    with pytest.raises(
        ConfigError, match=r"bank_targets is 'sofft'\. Allowed: any, soft\. Did you mean 'soft'"
    ):
        OBJECTIVES.build("medvista", {"bank_targets": "sofft"}, DIM)
