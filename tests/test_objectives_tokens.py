"""MGCA's token alignment: weights, masks, both directions."""

import math
import sys
from pathlib import Path

import pytest
import torch

from medvl.objectives.tokens import clipped_weights, token_alignment

sys.path.insert(0, str(Path(__file__).parent))
import oracles

D = torch.float64


def rand(seed, *shape):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def real(*shape):
    return torch.ones(*shape, dtype=torch.bool)


def ragged(seed=0):
    """Three pairs of 1, 5 and 3 words, and of 4, 2 and 6 regions; padding is not zero."""
    words, regions = rand(seed, 3, 5, 4), rand(seed + 1, 3, 6, 4)
    word_mask = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]) > 0
    region_mask = torch.tensor([[1, 1, 0, 1, 1, 0], [0, 0, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]) > 0
    return words, regions, word_mask, region_mask


def attention(seed, mask):
    weights = torch.rand(*mask.shape, dtype=D, generator=torch.Generator().manual_seed(seed))
    return weights / weights.sum(dim=1, keepdim=True)


# --- closed forms ---------------------------------------------------------------------------------


def test_identical_tokens_give_the_published_value():
    # METHODS §2.2: ln 111 + ln 196 = 4.709530 + 5.278115.
    words, regions = torch.ones(2, 111, 4, dtype=D), torch.ones(2, 196, 4, dtype=D)
    loss = token_alignment(words, regions, real(2, 111), real(2, 196))
    assert loss.item() == pytest.approx(9.987645, abs=1e-6)


@pytest.mark.parametrize("context", ["raw", "unit"])
def test_padding_leaves_the_denominators(context):
    # With a correct mask ln N_valid + ln N_p; the public code gives ln 111 (PAD words stay in).
    words, regions = torch.ones(1, 111, 4, dtype=D), torch.ones(1, 196, 4, dtype=D)
    word_mask, region_mask = real(1, 111), real(1, 196)
    word_mask[:, 30:] = False
    region_mask[:, 100:] = False
    loss = token_alignment(words, regions, word_mask, region_mask, patch_context=context)
    assert loss.item() == pytest.approx(math.log(30) + math.log(100), abs=1e-10)


def test_one_word_one_region_cost_nothing():
    loss = token_alignment(rand(1, 2, 1, 3), rand(2, 2, 1, 3), real(2, 1), real(2, 1))
    assert loss.item() == pytest.approx(0.0, abs=1e-12)


def test_mean_over_pairs_not_sum():
    words, regions, word_mask, region_mask = ragged()
    once = token_alignment(words, regions, word_mask, region_mask)
    twice = token_alignment(*(torch.cat([x, x]) for x in (words, regions, word_mask, region_mask)))
    assert twice.item() == pytest.approx(once.item(), abs=1e-12)


# --- weights --------------------------------------------------------------------------------------


def test_weights_are_clipped_to_their_quantiles():
    # Non-zero entries 1…11 have the 10 % quantile 2 and the 90 % quantile 10; zero stays zero; the
    # padded 99 counts in nothing. Sum: 2 + (2 + … + 10) + 10 = 66.
    weights = torch.tensor([[1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0, 99]])
    mask = real(1, 13)
    mask[0, 12] = False
    expected = torch.tensor([[2.0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 0, 0]]) / 66
    torch.testing.assert_close(clipped_weights(weights, mask), expected)


def test_rows_without_weights_are_uniform_and_without_tokens_zero():
    weights = torch.tensor([[0.0, 0.0, 0.7], [0.2, 0.3, 0.5]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert clipped_weights(weights, mask).tolist() == [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]
    assert clipped_weights(torch.rand(2, 0), real(2, 0)).shape == (2, 0)


def test_weights_carry_no_gradient():
    words, regions, word_mask, region_mask = ragged()
    word_weights = attention(1, word_mask).requires_grad_()
    region_weights = attention(2, region_mask).requires_grad_()
    loss = token_alignment(
        words.requires_grad_(), regions, word_mask, region_mask, word_weights, region_weights
    )
    loss.backward()
    assert word_weights.grad is None and region_weights.grad is None and words.grad.abs().sum() > 0


# --- oracle, gradient -----------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", ["uniform", "attention"])
@pytest.mark.parametrize("context", ["raw", "unit"])
def test_equals_the_loop(weighted, context):
    words, regions, word_mask, region_mask = ragged()
    words.requires_grad_()
    regions.requires_grad_()
    omega = (None, None) if weighted == "uniform" else (attention(1, word_mask), attention(2, region_mask))
    fast = token_alignment(
        words, regions, word_mask, region_mask, *omega, temperature=0.3, patch_context=context
    )
    slow = oracles.token_alignment(
        words, regions, word_mask, region_mask, *omega, temperature=0.3, raw_patch_context=context == "raw"
    )
    assert fast.item() == pytest.approx(slow.item(), abs=1e-10)
    inputs = (words, regions)
    for a, b in zip(torch.autograd.grad(fast, inputs), torch.autograd.grad(slow, inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


def test_auto_context_follows_the_encoder():
    words, regions, word_mask, region_mask = ragged()
    weights = attention(2, region_mask)

    def loss(region_weights, context):
        return token_alignment(
            words, regions, word_mask, region_mask, None, region_weights, patch_context=context
        ).item()

    assert loss(weights, "auto") == loss(weights, "raw") != loss(weights, "unit")
    assert loss(None, "auto") == loss(None, "unit") != loss(None, "raw")


def test_gradcheck():
    words, regions, word_mask, region_mask = ragged()

    def loss(w, r):
        return token_alignment(w, r, word_mask, region_mask, temperature=0.5)

    assert torch.autograd.gradcheck(loss, (words.requires_grad_(), regions.requires_grad_()))


# --- invariances ----------------------------------------------------------------------------------


def test_invariances():
    words, regions, word_mask, region_mask = ragged()
    omega = attention(1, word_mask), attention(2, region_mask)

    def loss(w, r, wm, rm, ww, rw):
        return token_alignment(w, r, wm, rm, ww, rw, patch_context="raw").item()

    plain = (words, regions, word_mask, region_mask, *omega)
    same = pytest.approx(loss(*plain), abs=1e-10)
    pairs = torch.tensor([2, 0, 1])
    assert loss(*(x[pairs] for x in plain)) == same  # T2
    rotation = torch.linalg.qr(rand(9, 4, 4)).Q
    assert loss(words @ rotation, regions @ rotation, *plain[2:]) == same  # T3
    lengths = torch.rand(3, 1, 1, dtype=D) + 0.1
    assert loss(words * lengths, regions / lengths, *plain[2:]) == same  # T1
    by_word, by_region = torch.tensor([3, 1, 0, 4, 2]), torch.tensor([5, 0, 3, 1, 4, 2])
    assert (
        loss(
            words[:, by_word],
            regions[:, by_region],
            word_mask[:, by_word],
            region_mask[:, by_region],
            omega[0][:, by_word],
            omega[1][:, by_region],
        )
        == same
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_fifty_padded_words_change_nothing(side):  # T6
    words, regions, word_mask, region_mask = ragged()
    words, word_weights = words.float(), attention(1, word_mask).float()
    regions = regions.float()

    def padded(x, value):
        extra = torch.full((3, 50, *x.shape[2:]), value, dtype=x.dtype)
        return torch.cat([extra, x] if side == "left" else [x, extra], dim=1)

    plain = token_alignment(words, regions, word_mask, region_mask, word_weights)
    more = token_alignment(
        padded(words, 3.0), regions, padded(word_mask, False), region_mask, padded(word_weights, 0.5)
    )
    assert more.item() == pytest.approx(plain.item(), abs=1e-6)


# --- edges, precision -----------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["words", "regions", "both"])
def test_a_pair_without_tokens_contributes_zero(missing):  # T7
    words, regions, word_mask, region_mask = ragged()
    whole = token_alignment(words[1:], regions[1:], word_mask[1:], region_mask[1:])
    if missing != "regions":
        word_mask[0] = False
    if missing != "words":
        region_mask[0] = False
    words.requires_grad_()
    regions.requires_grad_()
    loss = token_alignment(words, regions, word_mask, region_mask)
    assert loss.item() == pytest.approx(whole.item() * 2 / 3, abs=1e-12)
    loss.backward()
    assert words.grad[0].abs().max() == 0 and regions.grad[0].abs().max() == 0
    assert words.grad.isfinite().all() and regions.grad.isfinite().all()


def test_no_words_at_all_is_a_zero_tensor():
    words = torch.zeros(2, 0, 4, requires_grad=True)
    regions = torch.ones(2, 3, 4, requires_grad=True)
    loss = token_alignment(words, regions, real(2, 0), real(2, 3))
    loss.backward()
    assert loss.item() == 0.0 and regions.grad.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_temperature_one_hundredth(dtype):  # T5
    words, regions, word_mask, region_mask = ragged()
    words = (words * 100).to(dtype).requires_grad_()
    regions = (regions * 100).to(dtype).requires_grad_()
    loss = token_alignment(words, regions, word_mask, region_mask, temperature=0.01)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert words.grad.isfinite().all() and regions.grad.isfinite().all()
