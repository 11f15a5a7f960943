"""SigLIP: closed forms, false negatives, the loop, blocks, precision."""

import math

import pytest
import torch

from medvl.errors import ConfigError
from medvl.objectives import OBJECTIVES
from medvl.objectives.siglip import siglip_loss

MODES = ["none", "mask", "multi", "soft"]
D = torch.float64


def rand(seed, *shape):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def graded(batch):
    """Twins 0 and 1, a half-right pair (0, 2), a pair right in one direction only."""
    positives = torch.eye(batch, dtype=D)
    if batch > 3:
        positives[0, 1] = positives[1, 0] = 1.0
        positives[0, 2] = positives[2, 0] = 0.5
        positives[3, 1] = 1.0
    return positives


def softplus(x):
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def loop(images, texts, positives, scale, bias, mode):
    """METHODS §1.2 and §4, pair by pair: z = ±1 and its weight."""
    total = torch.zeros((), dtype=D)
    for i in range(len(images)):
        for j in range(len(texts)):
            cosine = (images[i] * texts[j]).sum() / images[i].norm() / texts[j].norm()
            logit = scale * cosine + bias
            p = 1.0 if i == j else float(positives[i, j])
            right = {"none": float(i == j), "mask": float(i == j), "multi": float(p == 1.0), "soft": p}[mode]
            if mode == "mask" and p == 1.0 and i != j:
                continue
            for z, weight in ((1, right), (-1, 1 - right)):
                total = total - weight * torch.log(torch.sigmoid(z * logit))
    return total / len(images)


# s = 10, β = −10; METHODS §1.2.
@pytest.mark.parametrize(("batch", "value"), [(2, 0.693193), (4, 0.693283)])
def test_orthonormal_pairs(batch, value):
    basis = torch.eye(8, dtype=D)[:batch]
    loss = siglip_loss(basis, basis, torch.eye(batch), scale=10.0, bias=-10.0).item()
    assert loss == pytest.approx(math.log(2) + (batch - 1) * softplus(-10), abs=1e-12)
    assert loss == pytest.approx(value, abs=1e-6)


def test_all_equal_and_all_orthogonal():
    same = torch.ones(4, 3, dtype=D)
    assert siglip_loss(same, same, torch.eye(4), scale=10.0, bias=-10.0).item() == pytest.approx(
        4 * math.log(2)
    )
    across = torch.eye(8, dtype=D)
    loss = siglip_loss(across[:4], across[4:], torch.eye(4), scale=10.0, bias=-10.0).item()
    assert loss == pytest.approx(10.000182, abs=1e-6)


@pytest.mark.parametrize(
    # All cases equal, logits 0: the diagonal alone stays under mask; z = +1 everywhere else.
    ("mode", "value"),
    [("none", 4 * math.log(2)), ("mask", math.log(2)), ("multi", 4 * math.log(2)), ("soft", 4 * math.log(2))],
)
def test_all_cases_equal(mode, value):
    same = torch.ones(4, 3, dtype=D)
    loss = siglip_loss(same, same, torch.ones(4, 4), scale=10.0, bias=-10.0, false_negatives=mode)
    assert loss.item() == pytest.approx(value, abs=1e-12)


def test_an_equal_report_is_drawn_near_not_away():
    # The remote block of another rank may hold an equivalent report: its slope must change sign.
    images, texts = torch.eye(2, dtype=D), torch.eye(2, dtype=D).requires_grad_()
    twins = torch.ones(2, 2)
    slopes = {}
    for mode in ("none", "multi"):
        loss = siglip_loss(images, texts, twins, scale=10.0, bias=0.0, false_negatives=mode)
        slopes[mode] = torch.autograd.grad(loss, texts)[0][1, 0].item()
    # (1/2)·10·(σ(0) − z): away from the other's image, or towards it.
    assert slopes == pytest.approx({"none": 2.5, "multi": -2.5})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [None, 1, 2, 4, 100])
def test_equals_the_loop_in_value_and_gradient(mode, rows):
    inputs = [
        *(rand(seed, 5, 4).requires_grad_() for seed in (1, 2)),
        *(torch.tensor(x, dtype=D, requires_grad=True) for x in (7.0, -3.0)),
    ]
    images, texts, scale, bias = inputs
    fast = siglip_loss(
        images, texts, graded(5), scale=scale, bias=bias, false_negatives=mode, block_rows=rows
    )
    slow = loop(images, texts, graded(5), scale, bias, mode)
    assert fast.item() == pytest.approx(slow.item(), abs=1e-12)
    for a, b in zip(torch.autograd.grad(fast, inputs), torch.autograd.grad(slow, inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(mode):
    def loss(images, texts, scale, bias):
        return siglip_loss(
            images, texts, graded(4), scale=scale, bias=bias, false_negatives=mode, block_rows=3
        )

    numbers = (torch.tensor(x, dtype=D, requires_grad=True) for x in (3.0, -1.0))
    assert torch.autograd.gradcheck(
        loss, (rand(5, 4, 3).requires_grad_(), rand(6, 4, 3).requires_grad_(), *numbers)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_scale_100(dtype):
    images = (rand(1, 6, 4) * 1000).to(dtype).requires_grad_()
    loss = siglip_loss(images, (-images).detach(), torch.eye(6), scale=100.0, bias=-10.0)
    loss.backward()
    # Opposite partners: about sp(110) each, and the slope is finite.
    assert loss.dtype == torch.float32 and loss.item() > 100 and images.grad.isfinite().all()


def test_nothing_is_kept_without_a_gradient():
    images = rand(1, 6, 4).requires_grad_()
    with torch.no_grad():
        loss = siglip_loss(images, rand(2, 6, 4), torch.eye(6), scale=10.0, bias=-10.0)
    assert not loss.requires_grad
    expected = loop(images, rand(2, 6, 4), torch.eye(6), 10.0, -10.0, "none").item()
    assert loss.item() == pytest.approx(expected)


def test_scale_and_bias_start_where_the_paper_says():
    objective = OBJECTIVES.build("siglip", {}, 4)
    assert objective.scale().item() == pytest.approx(10.0, rel=1e-6) and objective.bias.item() == -10.0


def test_refuses_a_negative_negative_bias():
    with pytest.raises(ConfigError, match=r"negative_bias is -2\.5\. Allowed: 0 or more"):
        OBJECTIVES.build("siglip", {"negative_bias": -2.5}, 4)
