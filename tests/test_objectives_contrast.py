"""CLIP, its targets under false negatives, and the learned scale."""

import itertools
import math
import sys
from pathlib import Path

import pytest
import torch

from medvl.errors import ConfigError
from medvl.objectives.contrast import (
    LogitScale,
    clip_loss,
    cross_entropy,
    false_negative_targets,
)

sys.path.insert(0, str(Path(__file__).parent))
import oracles

MODES = ["none", "mask", "multi", "soft"]
D = torch.float64


def rand(seed, *shape):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def graded(batch, seed=0):
    """A symmetric matrix of positives: two twins, some findings shared."""
    half = torch.rand(batch, batch, dtype=D, generator=torch.Generator().manual_seed(seed))
    positives = ((half + half.T) / 2 > 0.5) * (half + half.T) / 4
    positives.fill_diagonal_(1.0)
    if batch > 2:
        positives[0, 2] = positives[2, 0] = 1.0
    return positives


# --- closed forms ------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_equal_embeddings_give_ln_batch(batch):
    # Every softmax is uniform over B columns: −ln(1/B).
    same = torch.ones(batch, 3, dtype=D)
    assert clip_loss(same, same, torch.eye(batch), scale=14.3).item() == pytest.approx(
        math.log(batch), abs=1e-12
    )


@pytest.mark.parametrize(
    ("batch", "scale", "value"),
    # ln(1 + (B−1)e^−s): METHODS §1.1.
    [(2, 1.0, 0.313262), (4, 1.0, 0.743668), (8, 1.0, 1.274009), (1, 1.0, 0.0), (4, 1 / 0.07, 1.8746e-6)],
)
def test_orthonormal_pairs(batch, scale, value):
    basis = torch.eye(8, dtype=D)[:batch]
    loss = clip_loss(basis, basis, torch.eye(batch), scale=scale).item()
    assert loss == pytest.approx(math.log1p((batch - 1) * math.exp(-scale)), abs=1e-12)
    assert loss == pytest.approx(value, abs=1e-6, rel=1e-4)


def test_orthonormal_pairs_of_the_style_table():
    # B = 5, τ = 0.07: 2.49950e-06.
    basis = torch.eye(5, dtype=D)
    assert clip_loss(basis, basis, basis, scale=1 / 0.07).item() == pytest.approx(2.49950e-6, rel=1e-5)


def test_direction_and_mean():
    # v1 = v2 = e1, t_i = e_i, s = 1. Image → text: both rows have logits (1, 0), targets 0 and 1:
    # mean of ln(1+e^−1) and ln(1+e). Text → image: logits (1, 1) and (0, 0): ln 2 each.
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=D)
    texts = torch.eye(2, dtype=D)
    by_image = (math.log1p(math.exp(-1)) + math.log1p(math.e)) / 2
    loss = clip_loss(images, texts, torch.eye(2), scale=1.0)
    assert loss.item() == pytest.approx((by_image + math.log(2)) / 2, abs=1e-12)


@pytest.mark.parametrize(
    ("mode", "value"), [("none", math.log(6)), ("mask", 0.0), ("multi", math.log(6)), ("soft", math.log(6))]
)
def test_all_cases_equal(mode, value):
    # METHODS §4: constant embeddings, all keys equal.
    same = torch.ones(6, 3, dtype=D, requires_grad=True)
    texts = rand(1, 1, 3).expand(6, 3)
    loss = clip_loss(same, texts, torch.ones(6, 6), scale=20.0, false_negatives=mode)
    assert loss.item() == pytest.approx(value, abs=1e-12)
    loss.backward()
    if mode == "mask":
        assert same.grad.abs().max() == 0


def test_multi_has_the_floor_mean_ln_m():
    # Three twins and one single case, embedded as two orthonormal directions at a huge scale: the
    # three rows reach their floor ln 3, the single one 0.
    vectors = torch.eye(2, dtype=D)[[0, 0, 0, 1]]
    positives = (vectors @ vectors.T).clone()
    loss = clip_loss(vectors, vectors, positives, scale=100.0, false_negatives="multi")
    assert loss.item() == pytest.approx(3 * math.log(3) / 4, abs=1e-12)


def test_two_normals_of_three():
    # The P of METHODS §3.1, B = 3, two texts equal: constant ln 3, floor (2/3) ln 2 = 0.462098.
    positives = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=D)
    same = torch.ones(3, 2, dtype=D)
    best = torch.eye(2, dtype=D)[[0, 0, 1]]
    at = {"scale": 100.0, "false_negatives": "multi"}
    assert clip_loss(same, same, positives, **at).item() == pytest.approx(math.log(3), abs=1e-12)
    assert clip_loss(best, best, positives, **at).item() == pytest.approx(0.462098, abs=1e-6)


def test_targets_of_each_mode():
    positives = torch.tensor([[1.0, 1.0, 0.5], [1.0, 1.0, 0.0], [0.5, 0.0, 1.0]])
    first = {mode: [x[0].tolist() for x in false_negative_targets(positives, mode=mode)] for mode in MODES}
    assert first["none"] == [[False] * 3, [1.0, 0.0, 0.0]]
    assert first["mask"] == [[False, True, False], [1.0, 0.0, 0.0]]
    assert first["multi"] == [[False] * 3, [0.5, 0.5, 0.0]]
    assert first["soft"][1] == pytest.approx([0.4, 0.4, 0.2])


# --- oracle, gradient ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_equals_the_loop(mode, batch):
    images, texts = rand(1, batch, 4).requires_grad_(), rand(2, batch, 4).requires_grad_()
    scale = torch.tensor(7.0, dtype=D, requires_grad=True)
    inputs = (images, texts, scale)
    fast = clip_loss(images, texts, graded(batch), scale=scale, false_negatives=mode)
    slow = oracles.clip_loss(images, texts, graded(batch), scale, mode)
    assert fast.item() == pytest.approx(slow.item(), abs=1e-12)
    for a, b in zip(torch.autograd.grad(fast, inputs), torch.autograd.grad(slow, inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


def test_equals_torch_cross_entropy():
    images, texts = rand(3, 7, 16).float(), rand(4, 7, 16).float()
    logits = 10 * torch.nn.functional.cosine_similarity(images[:, None], texts[None], dim=-1)
    y = torch.arange(7)
    expected = (
        torch.nn.functional.cross_entropy(logits, y) + torch.nn.functional.cross_entropy(logits.T, y)
    ) / 2
    torch.testing.assert_close(clip_loss(images, texts, torch.eye(7), scale=10.0), expected)


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(mode):
    def loss(images, texts, scale):
        return clip_loss(images, texts, graded(4), scale=scale, false_negatives=mode)

    inputs = (rand(5, 4, 3).requires_grad_(), rand(6, 4, 3).requires_grad_())
    assert torch.autograd.gradcheck(loss, (*inputs, torch.tensor(3.0, dtype=D, requires_grad=True)))


# --- invariances --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_invariances(mode):
    images, texts, positives = rand(1, 6, 5), rand(2, 6, 5), graded(6)

    def loss(v, t, p):
        return clip_loss(v, t, p, scale=9.0, false_negatives=mode).item()

    value = loss(images, texts, positives)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    rotation = torch.linalg.qr(rand(3, 5, 5)).Q
    lengths = torch.rand(6, 1, dtype=D) * 50 + 0.01
    assert loss(images * lengths, texts / lengths, positives) == pytest.approx(value, abs=1e-12)  # T1
    assert loss(images[order], texts[order], positives[order][:, order]) == pytest.approx(
        value, abs=1e-12
    )  # T2
    assert loss(images @ rotation, texts @ rotation, positives) == pytest.approx(value, abs=1e-12)  # T3
    assert loss(texts, images, positives.T) == pytest.approx(value, abs=1e-12)  # swapped towers


@pytest.mark.parametrize("mode", MODES)
def test_distinct_cases_are_plain_clip(mode):
    images, texts = rand(1, 6, 5), rand(2, 6, 5)
    plain = clip_loss(images, texts, torch.zeros(6, 6), scale=9.0)
    assert clip_loss(images, texts, torch.eye(6), scale=9.0, false_negatives=mode) == plain


def test_one_sided_positives_reach_their_own_direction():
    # positives[0, 1] alone: text 1 describes image 0, so only image 0's row and text 1's column change.
    images, texts = rand(1, 3, 4), rand(2, 3, 4)
    positives = torch.eye(3, dtype=D)
    positives[0, 1] = 1.0
    fast = clip_loss(images, texts, positives, scale=5.0, false_negatives="soft")
    slow = oracles.clip_loss(images, texts, positives, 5.0, "soft")
    swapped = oracles.clip_loss(images, texts, positives.T, 5.0, "soft")
    assert fast.item() == pytest.approx(slow.item(), abs=1e-12)
    assert abs(fast.item() - swapped.item()) > 1e-3


def test_a_better_match_never_costs():
    logits, targets = rand(1, 5, 5), torch.eye(5, dtype=D)
    none = torch.zeros(5, 5, dtype=torch.bool)
    losses = [cross_entropy(logits + gain * targets, none, targets) for gain in (0.0, 0.5, 1.0, 4.0)]
    assert all((better < worse).all() for worse, better in itertools.pairwise(losses))


# --- precision, edges, the scale ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", MODES)
def test_finite_at_scale_100(dtype, mode):
    images = (rand(1, 6, 4) * 1000).to(dtype).requires_grad_()
    texts = (-images).detach().clone().requires_grad_()
    loss = clip_loss(images, texts, graded(6), scale=100.0, false_negatives=mode)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert images.grad.isfinite().all() and texts.grad.isfinite().all()


def test_a_zero_vector_stays_finite():
    images = torch.zeros(2, 3, requires_grad=True)
    loss = clip_loss(images, torch.zeros(2, 3), torch.eye(2), scale=10.0)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6) and images.grad.isfinite().all()


def test_scale_starts_at_the_temperature_and_is_clamped():
    scale = LogitScale()
    assert scale.log_scale.item() == pytest.approx(math.log(1 / 0.07), abs=1e-6)
    with torch.no_grad():
        scale.log_scale.fill_(9.0)
    scale.clamp_()
    assert scale.log_scale.item() == pytest.approx(4.605170, abs=1e-6)
    assert scale().item() == pytest.approx(100.0, abs=1e-3)


def test_impossible_temperature():
    with pytest.raises(ConfigError, match=r"temperature is 0\.001\. Allowed: 0\.01 or more"):
        LogitScale(temperature=0.001)


# --- blocks ---------------------------------------------------------------------------------------


def gradients(loss, inputs):
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [1, 3, 7, 8])
@pytest.mark.parametrize("scale", [7.0, 100.0])
def test_blocks_are_the_whole(mode, rows, scale):
    # 7 rows in blocks: one by one, a ragged last block, exactly one block, a block larger than the batch.
    # One-sided positives: a block of rows must still know the sums of whole columns.
    inputs = [rand(1, 7, 4).requires_grad_(), rand(2, 7, 4).requires_grad_(), torch.tensor(scale, dtype=D)]
    inputs[2].requires_grad_()
    positives = graded(7)
    positives[0, 1] = 1.0
    positives[4, 2] = 0.25
    at = {"scale": inputs[2], "false_negatives": mode, "image_weight": 0.75}
    whole = gradients(dense_contrast(inputs[0], inputs[1], positives, **at), inputs)
    parts = gradients(clip_loss(inputs[0], inputs[1], positives, block_rows=rows, **at), inputs)
    for a, b in zip(parts, whole, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-9)


def dense_contrast(images, texts, positives, *, scale, false_negatives, image_weight):
    """The same formula over the whole matrix at once, by autograd."""
    logits = scale * torch.nn.functional.normalize(images, dim=1) @ torch.nn.functional.normalize(texts).T
    forward = cross_entropy(logits, *false_negative_targets(positives, mode=false_negatives)).mean()
    backward = cross_entropy(logits.T, *false_negative_targets(positives.T, mode=false_negatives)).mean()
    return image_weight * forward + (1 - image_weight) * backward


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scale", [14.3, 76.0, 100.0])
def test_single_precision_blocks_are_as_exact_as_the_whole(mode, scale):
    # 76 + ln 64 is past the range of one shift-free exponential in single precision, 14.3 is not.
    images, texts = rand(1, 64, 16), rand(2, 64, 16)
    at = {"scale": scale, "false_negatives": mode, "image_weight": 0.5}
    exact_inputs = [images.clone().requires_grad_(), texts.clone().requires_grad_()]
    exact = gradients(dense_contrast(*exact_inputs, graded(64), **at), exact_inputs)
    inputs = [images.float().requires_grad_(), texts.float().requires_grad_()]
    fast = gradients(clip_loss(*inputs, graded(64), block_rows=24, **at), inputs)
    for a, b in zip(fast, exact, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_blocks_ask_positives_for_their_rows_only():
    class Rows:
        def __init__(self, matrix):
            self.matrix, self.asked = matrix, []

        def __len__(self):
            return len(self.matrix)

        def rows(self, start, stop):
            self.asked.append((start, stop))
            return self.matrix[start:stop]

        def columns(self, start, stop):
            return self.matrix[:, start:stop].T

    images, texts = rand(1, 5, 4).requires_grad_(), rand(2, 5, 4)
    lazy = Rows(graded(5))
    loss = clip_loss(images, texts, lazy, scale=9.0, false_negatives="soft", block_rows=2)
    loss.backward()
    # Once for the sums, once more where the gradient computes the block again.
    assert lazy.asked == [(0, 2), (2, 4), (4, 5)] * 2
    assert loss.item() == pytest.approx(
        clip_loss(images, texts, graded(5), scale=9.0, false_negatives="soft").item(), abs=1e-12
    )
    lazy.asked.clear()
    clip_loss(images, texts, lazy, scale=9.0, block_rows=2)
    assert lazy.asked == []


def test_a_second_backward_pass_and_frozen_sides():
    images, texts = rand(1, 6, 4).requires_grad_(), rand(2, 6, 4).requires_grad_()
    loss = clip_loss(images, texts, torch.eye(6), scale=9.0)
    first = torch.autograd.grad(loss, [images, texts], retain_graph=True)
    second = torch.autograd.grad(loss, [images, texts])
    torch.testing.assert_close(first, second, atol=0, rtol=0)
    for rows in (None, 4):
        frozen = clip_loss(images, texts.detach(), torch.eye(6), scale=9.0, block_rows=rows)
        torch.testing.assert_close(torch.autograd.grad(frozen, images)[0], first[0])
        scale = torch.tensor(9.0, dtype=D, requires_grad=True)
        only = clip_loss(images.detach(), texts.detach(), torch.eye(6), scale=scale, block_rows=rows)
        slope = torch.autograd.grad(only, scale)[0].item()
        step = [clip_loss(images, texts, torch.eye(6), scale=9 + h).item() for h in (1e-6, -1e-6)]
        assert slope == pytest.approx((step[0] - step[1]) / 2e-6, rel=1e-6)


def test_backward_inside_autocast_changes_nothing():
    images, texts = rand(1, 40, 8).float().requires_grad_(), rand(2, 40, 8).float()
    plain = torch.autograd.grad(clip_loss(images, texts, torch.eye(40), scale=9.0, block_rows=16), images)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = clip_loss(images, texts, torch.eye(40), scale=9.0, block_rows=16)
        torch.testing.assert_close(torch.autograd.grad(loss, images)[0], plain, atol=0, rtol=0)


def test_impossible_scale():
    with pytest.raises(ConfigError, match=r"the scale of the contrast is 1000\. Allowed: up to 600"):
        clip_loss(rand(1, 3, 4), rand(2, 3, 4), torch.eye(3), scale=1000.0)
