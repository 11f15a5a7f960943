"""GLoRIA: closed forms, the loop, and what public code gets wrong."""

import math
import sys
from pathlib import Path

import pytest
import torch

from medvl.errors import ConfigError
from medvl.features import ImageFeatures, TextFeatures
from medvl.objectives import OBJECTIVES, gloria
from medvl.objectives.gloria import gloria_local_loss, gloria_scores

sys.path.insert(0, str(Path(__file__).parent))
import oracles

MODES = ["none", "mask", "multi", "soft"]
D = torch.float64


def rand(seed, *shape):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def real(*shape):
    return torch.ones(*shape, dtype=torch.bool)


def ragged():
    """Texts of 1, 4 and 2 words, images of 5, 3 and 4 visible regions; padding is not zero."""
    word_mask = torch.tensor([[0, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]]) > 0
    region_mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1], [1, 1, 1, 1, 0]]) > 0
    return rand(1, 3, 4, 6), word_mask, rand(2, 3, 5, 6), region_mask


def loop_scores(words, word_mask, regions, region_mask, aggregate="sum"):
    """METHODS §2.1, word by word and region by region."""
    scores = []
    for c in range(len(words)):
        row = []
        w = [list(words[c][j]) for j in range(len(words[c])) if word_mask[c][j]]
        for b in range(len(regions)):
            r = [list(regions[b][k]) for k in range(len(regions[b])) if region_mask[b][k]]
            a = [oracles.softmax([oracles.dot(region, word) for word in w]) for region in r]
            total = torch.zeros((), dtype=D)
            for j in range(len(w)):
                alpha = oracles.softmax([4.0 * a[k][j] for k in range(len(r))])
                context = [sum(alpha[k] * r[k][d] for k in range(len(r))) for d in range(len(w[j]))]
                cosine = oracles.dot(oracles.normalised(w[j]), oracles.normalised(context))
                total = total + torch.exp(5.0 * cosine)
            row.append(torch.log(total / (len(w) if aggregate == "mean" else 1)))
        scores.append(row)
    return scores


# --- closed forms ---------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregate", ["sum", "mean"])
def test_all_equal_gives_two_ln_batch(aggregate):
    words, regions = torch.ones(4, 3, 2, dtype=D), torch.ones(4, 9, 2, dtype=D)
    loss = gloria_local_loss(words, real(4, 3), regions, real(4, 9), torch.eye(4), aggregate=aggregate)
    assert loss.item() == pytest.approx(2 * math.log(4), abs=1e-12)


@pytest.mark.parametrize(("aggregate", "value"), [("sum", 5 + math.log(3)), ("mean", 5.0)])
def test_equal_words_on_equal_regions(aggregate, value):
    words, regions = torch.ones(1, 3, 2, dtype=D), torch.ones(1, 9, 2, dtype=D)
    score = gloria_scores(words, real(1, 3), regions, real(1, 9), aggregate=aggregate)
    assert score.item() == pytest.approx(value, abs=1e-12)


def test_both_directions_are_summed_and_weighed():
    # Global part: all equal 2 ln B, twice; local part 2 ln B, three times.
    objective = OBJECTIVES.build("gloria", {"global_weight": 2.0, "local_weight": 3.0}, 2)
    one = torch.ones(4, 3, 2)
    image = ImageFeatures(one[:, 0], one, (3,), real(4, 3))
    text = TextFeatures(one[:, 0], one, real(4, 3), one, real(4, 3))
    loss = objective(image, text, torch.eye(4))
    expected = {"global": 4 * math.log(4), "local": 6 * math.log(4)}
    assert {name: term.item() for name, term in loss.terms.items()} == pytest.approx(expected, rel=1e-6)


# --- oracle, gradient -----------------------------------------------------------------------------


@pytest.mark.parametrize("aggregate", ["sum", "mean"])
@pytest.mark.parametrize("kept", [0, 40, 1 << 25])
def test_equals_the_loop_in_value_and_gradient(aggregate, kept, monkeypatch):
    # Everything computed again; the first image kept (7 words × 5 regions), the others not; all kept.
    monkeypatch.setattr(gloria, "KEPT_ENTRIES", kept)
    words, word_mask, regions, region_mask = ragged()
    inputs = [words.requires_grad_(), regions.requires_grad_()]
    fast = gloria_scores(words, word_mask, regions, region_mask, aggregate=aggregate)
    slow = torch.stack(
        [torch.stack(row) for row in loop_scores(words, word_mask, regions, region_mask, aggregate)]
    )
    torch.testing.assert_close(fast, slow, atol=1e-11, rtol=0)
    upstream = rand(5, 3, 3)
    for a, b in zip(
        torch.autograd.grad((fast * upstream).sum(), inputs),
        torch.autograd.grad((slow * upstream).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_loss_equals_the_loop(mode):
    words, word_mask, regions, region_mask = ragged()
    positives = torch.tensor([[1.0, 1.0, 0.5], [1.0, 1.0, 0.0], [0.25, 0.0, 1.0]], dtype=D)
    loss = gloria_local_loss(words, word_mask, regions, region_mask, positives, false_negatives=mode).item()
    z = loop_scores(words, word_mask, regions, region_mask)
    total = 0.0
    for i in range(3):
        by_image = oracles.targets_of([positives[i][j] for j in range(3)], i, mode)
        by_text = oracles.targets_of([positives[j][i] for j in range(3)], i, mode)
        total += oracles.row_cross_entropy([10 * z[j][i] for j in range(3)], by_image).item()
        total += oracles.row_cross_entropy([10 * z[i][j] for j in range(3)], by_text).item()
    assert loss == pytest.approx(total / 3, abs=1e-10)


@pytest.mark.parametrize("kept", [0, 1 << 25])
def test_gradcheck(kept, monkeypatch):
    monkeypatch.setattr(gloria, "KEPT_ENTRIES", kept)
    words, word_mask, regions, region_mask = ragged()

    def loss(w, r):
        return gloria_local_loss(w, word_mask, r, region_mask, torch.eye(3))

    assert torch.autograd.gradcheck(loss, (words.requires_grad_(), regions.requires_grad_()))


# --- invariances ----------------------------------------------------------------------------------


def test_order_and_rotation_change_nothing_but_length_does():
    words, word_mask, regions, region_mask = ragged()

    def loss(w, wm, r, rm):
        return gloria_local_loss(w, wm, r, rm, torch.eye(3)).item()

    same = pytest.approx(loss(words, word_mask, regions, region_mask), abs=1e-10)
    by_word, by_region = torch.tensor([3, 1, 0, 2]), torch.tensor([4, 2, 0, 1, 3])
    assert loss(words[:, by_word], word_mask[:, by_word], regions, region_mask) == same
    assert loss(words, word_mask, regions[:, by_region], region_mask[:, by_region]) == same
    rotation = torch.linalg.qr(rand(9, 6, 6)).Q
    assert loss(words @ rotation, word_mask, regions @ rotation, region_mask) == same  # T3
    # T1 does not hold: attention uses raw products.
    assert abs(loss(3 * words, word_mask, regions, region_mask) - same.expected) > 1e-3


# --- what public code gets wrong ------------------------------------------------------------------


def test_a_text_said_twice_gains_ten_ln_two_unless_averaged():
    # METHODS §2.1 (a). One region: its attention is 1 whatever the words, so that a word said twice keeps
    # its cosine and only the sum over words changes.
    words, regions = rand(1, 2, 3, 4), rand(2, 2, 1, 4)
    twice = torch.cat([words, words], dim=1)
    for aggregate, gain in (("sum", 10 * math.log(2)), ("mean", 0.0)):
        once = gloria_scores(words, real(2, 3), regions, real(2, 1), aggregate=aggregate)
        more = gloria_scores(twice, real(2, 6), regions, real(2, 1), aggregate=aggregate)
        torch.testing.assert_close(10 * (more - once), torch.full_like(once, gain), atol=1e-10, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_words_are_where_the_mask_says(side):
    # METHODS §2.1 (b): slices 0:len and 1:len+1 of the same text are not the same words.
    words, word_mask, regions, region_mask = ragged()

    def pad(x, value):
        extra = torch.full((3, 50, *x.shape[2:]), value, dtype=x.dtype)
        return torch.cat([extra, x] if side == "left" else [x, extra], dim=1)

    plain = gloria_scores(words, word_mask, regions, region_mask)
    padded = gloria_scores(pad(words, 3.0), pad(word_mask, False), regions, region_mask)
    torch.testing.assert_close(padded, plain, atol=1e-12, rtol=0)


@pytest.mark.parametrize("aggregate", ["sum", "mean"])
def test_training_and_inference_score_alike(aggregate):
    # METHODS §2.1 (c): the loss is the contrast of the very scores that inference ranks by, also where
    # there are more images than texts.
    words, word_mask, regions, region_mask = ragged()
    logits = 10 * gloria_scores(words, word_mask, regions, region_mask, aggregate=aggregate)
    own = torch.arange(3)
    expected = torch.nn.functional.cross_entropy(logits, own) + torch.nn.functional.cross_entropy(
        logits.T, own
    )
    loss = gloria_local_loss(words, word_mask, regions, region_mask, torch.eye(3), aggregate=aggregate)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    one = gloria_scores(words[1:2], word_mask[1:2], regions, region_mask, aggregate=aggregate)
    torch.testing.assert_close(10 * one, logits[1:2])


def test_what_is_kept_for_the_gradient_is_bounded(monkeypatch):
    # METHODS §2.1 (d): public code keeps B² · L · P entries several times over.
    monkeypatch.setattr(gloria, "KEPT_ENTRIES", 0)
    words, regions = rand(1, 8, 20, 4).requires_grad_(), rand(2, 8, 50, 4)
    sizes = []

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        gloria_scores(words, real(8, 20), regions, real(8, 50))
    # Inputs (640 and 1,600), image × word matrices (1,280); never 8 · 160 · 50 = 64,000.
    assert 0 < max(sizes) <= 1600


# --- edges, precision -----------------------------------------------------------------------------


def test_a_text_without_words_takes_no_part():
    words, word_mask, regions, region_mask = ragged()
    rest = gloria_local_loss(words[1:], word_mask[1:], regions[1:], region_mask[1:], torch.eye(2)).item()
    word_mask[0] = False
    words.requires_grad_()
    loss = gloria_local_loss(words, word_mask, regions, region_mask, torch.eye(3))
    assert loss.item() == pytest.approx(rest, abs=1e-12)
    assert torch.autograd.grad(loss, words)[0][0].abs().max() == 0
    scores = gloria_scores(words, word_mask, regions, region_mask)
    assert (scores[0] == -math.inf).all() and scores[1:].isfinite().all()


def test_no_words_at_all_is_a_zero_with_a_gradient():
    words = torch.ones(2, 3, 4, requires_grad=True)
    loss = gloria_local_loss(words, ~real(2, 3), torch.ones(2, 5, 4), real(2, 5), torch.eye(2))
    loss.backward()
    assert loss.item() == 0.0 and words.grad.abs().max() == 0


def test_an_image_without_visible_regions_counts_them_all():
    words, word_mask, regions, region_mask = ragged()
    region_mask[1] = False
    hidden = gloria_scores(words, word_mask, regions, region_mask)
    region_mask[1] = True
    torch.testing.assert_close(hidden, gloria_scores(words, word_mask, regions, region_mask))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_long_vectors_stay_finite(dtype):
    # Raw products of some 1e5: their exponential exists in no format without a shift.
    words, word_mask, regions, region_mask = ragged()
    words = (words * 100).to(dtype).requires_grad_()
    loss = gloria_local_loss(words, word_mask, (regions * 100).to(dtype), region_mask, torch.eye(3))
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and words.grad.isfinite().all()


def test_zero_vectors_stay_finite():
    regions = torch.zeros(2, 5, 4, requires_grad=True)
    loss = gloria_local_loss(torch.zeros(2, 3, 4), real(2, 3), regions, real(2, 5), torch.eye(2))
    loss.backward()
    assert loss.item() == pytest.approx(2 * math.log(2), abs=1e-6) and regions.grad.isfinite().all()


def test_unknown_aggregate():
    with pytest.raises(ConfigError, match=r"aggregate is 'max'\. Allowed: mean, sum"):
        OBJECTIVES.build("gloria", {"aggregate": "max"}, 4)
