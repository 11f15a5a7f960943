"""Sinkhorn assignment and prototype alignment."""

import math
import sys
from pathlib import Path

import pytest
import torch

from medvl.objectives.contrast import unit
from medvl.objectives.prototypes import Prototypes, prototype_alignment, sinkhorn

sys.path.insert(0, str(Path(__file__).parent))
import oracles

D = torch.float64


def rand(seed, *shape):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def test_equal_scores_give_a_uniform_assignment_and_ln_500():
    # METHODS §2.2: Q = 1/K and L = ln 500 = 6.214608.
    images = torch.ones(7, 4, dtype=D)
    prototypes = unit(torch.ones(500, 4, dtype=D))
    torch.testing.assert_close(sinkhorn(images @ prototypes.T), torch.full((7, 500), 1 / 500, dtype=D))
    assert prototype_alignment(images, images, prototypes).item() == pytest.approx(6.214608, abs=1e-6)


def test_sinkhorn_equals_the_formula_to_the_letter():
    scores = rand(1, 6, 4) / 3
    expected = torch.tensor(oracles.sinkhorn(scores, 0.05, 3), dtype=D)
    torch.testing.assert_close(sinkhorn(scores), expected, atol=1e-12, rtol=0)


def test_sinkhorn_marginals():
    # Rows sum to 1 exactly; the mean use of a prototype nears 1/K, and reaches it with iterations.
    vectors, prototypes = unit(rand(1, 144, 128)), unit(rand(2, 500, 128))
    for iterations, tolerance in ((3, 4e-3), (30, 1e-14)):
        q = sinkhorn(vectors @ prototypes.T, iterations=iterations)
        torch.testing.assert_close(q.sum(dim=1), torch.ones(144, dtype=D), atol=1e-14, rtol=0)
        assert (q.mean(dim=0) * 500 - 1).abs().mean() < tolerance


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_no_overflow_above_half(dtype):
    # exp(z/0.05) passes 65,504 for z > 0.5545: half precision would give inf / inf.
    scores = torch.tensor([[1.0, -1.0, 0.6], [0.9, -1.0, 0.7]], dtype=dtype)
    q = sinkhorn(scores)
    assert q.dtype == torch.float32 and q.isfinite().all()
    torch.testing.assert_close(q.sum(dim=1), torch.ones(2))


def test_a_prototype_without_mass_is_no_nan():
    # exp(−60/0.05) underflows even in double precision; a row sum of 0 would divide to NaN.
    scores = torch.tensor([[0.5, -60.0], [0.4, -60.0]], dtype=D)
    q = sinkhorn(scores)
    assert q.isfinite().all() and q.sum(dim=1).tolist() == pytest.approx([1.0, 1.0])


def test_alignment_equals_the_loop():
    inputs = [rand(1, 5, 4), rand(2, 5, 4), unit(rand(3, 6, 4)).clone()]
    inputs = [x.requires_grad_() for x in inputs]
    fast = prototype_alignment(*inputs)
    slow = oracles.prototype_alignment(*inputs, temperature=0.2, epsilon=0.05, iterations=3)
    assert fast.item() == pytest.approx(slow.item(), abs=1e-12)
    for a, b in zip(torch.autograd.grad(fast, inputs), torch.autograd.grad(slow, inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


def test_gradcheck_of_the_predictions():
    # The assignments are constants: with equal scores on one side they are 1/K, and the loss of the
    # other side is a smooth function of its own predictions only.
    texts, prototypes = torch.ones(3, 4, dtype=D), unit(torch.eye(4, dtype=D))

    def by_image(images):
        log_p = (unit(images) @ prototypes.T / 0.2).log_softmax(dim=-1)
        return -log_p.mean() / 2

    images = rand(1, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(by_image, (images,))
    (expected,) = torch.autograd.grad(by_image(images), images)
    (got,) = torch.autograd.grad(prototype_alignment(images, texts, prototypes), images)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


def test_invariances():
    images, texts, prototypes = rand(1, 6, 5), rand(2, 6, 5), unit(rand(3, 7, 5))
    same = pytest.approx(prototype_alignment(images, texts, prototypes).item(), abs=1e-12)
    rows, columns = torch.tensor([3, 0, 5, 1, 4, 2]), torch.tensor([6, 2, 0, 4, 1, 5, 3])
    rotation = torch.linalg.qr(rand(4, 5, 5)).Q
    assert prototype_alignment(images * 7, texts / 3, prototypes).item() == same  # T1
    assert prototype_alignment(images[rows], texts[rows], prototypes).item() == same  # T2
    # T3: the prototypes rotate too.
    assert prototype_alignment(images @ rotation, texts @ rotation, prototypes @ rotation).item() == same
    assert prototype_alignment(images, texts, prototypes[columns]).item() == same
    assert prototype_alignment(texts, images, prototypes).item() == same


def test_agreement_costs_less_than_disagreement():
    prototypes = torch.eye(4, dtype=D)
    agree = prototype_alignment(prototypes, prototypes, prototypes)
    disagree = prototype_alignment(prototypes, prototypes.roll(1, dims=0), prototypes)
    # Q is nearly one-hot: the difference is 1/τ = 5 nats a prediction, both ways, halved.
    assert disagree.item() - agree.item() == pytest.approx(5.0, abs=1e-6)


def test_one_pair():
    # Sinkhorn of a single sample is uniform: every prototype must be used equally.
    loss = prototype_alignment(rand(1, 1, 4), rand(2, 1, 4), unit(rand(3, 5, 4)))
    assert loss.isfinite() and loss.item() >= math.log(5)


def test_prototypes_are_frozen_then_free():
    prototypes = Prototypes(count=3, dim=2, frozen_epochs=1)
    for epoch, moves in ((0, False), (1, True), (5, True)):
        prototypes.on_epoch(epoch)
        prototypes.weight.grad = None
        prototypes().sum().backward()
        assert (prototypes.weight.grad.abs().sum() > 0) == moves


def test_frozen_state_travels_with_the_weights():
    trained, resumed = Prototypes(count=3, dim=2), Prototypes(count=3, dim=2)
    trained.on_epoch(4)
    resumed.load_state_dict(trained.state_dict())
    assert resumed.epoch.item() == 4 and resumed().requires_grad


def test_clamp_brings_prototypes_back_to_length_one():
    prototypes = Prototypes(count=5, dim=3)
    with torch.no_grad():
        prototypes.weight.mul_(torch.arange(1.0, 6.0)[:, None])
    prototypes.clamp_()
    torch.testing.assert_close(prototypes.weight.norm(dim=1), torch.ones(5))
