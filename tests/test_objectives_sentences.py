"""Sentence–region contrast: scores, blocks, keys, targets."""

import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medvl.objectives.sentences import (
    said_by,
    sentence_keys,
    sentence_region_loss,
    sentence_region_scores,
)

sys.path.insert(0, str(Path(__file__).parent))
import oracles

D = torch.float64
MODES = ["none", "mask", "multi", "soft"]


def rand(seed, *shape):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def real(*shape):
    return torch.ones(*shape, dtype=torch.bool)


def ragged():
    """Four reports of 2, 1, 3 and 0 sentences, four images of 5, 2, 3 and 1 regions."""
    sentence_mask = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 1, 1], [0, 0, 0]]) > 0
    region_mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 0, 1, 0], [1, 1, 1, 0, 0], [0, 0, 0, 0, 1]]) > 0
    positives = torch.eye(4, dtype=D)
    # Image 0 is well told by text 1, image 1 less so by text 0: which way round must matter.
    positives[0, 1], positives[1, 0] = 0.7, 0.4
    positives[0, 2] = positives[2, 0] = 1.0
    # Report 2 says report 0's first sentence; the padded column of report 1 must not count.
    keys = torch.tensor([[11, 12, 0], [12, 13, 0], [14, 11, 15], [11, 0, 0]])
    return rand(1, 4, 3, 6), rand(2, 4, 5, 6), sentence_mask, region_mask, positives, keys


# --- closed forms -----------------------------------------------------------------------------------


def test_identical_features_give_ln_batch():
    loss = sentence_region_loss(
        torch.ones(5, 3, 2, dtype=D),
        torch.ones(5, 9, 2, dtype=D),
        real(5, 3),
        real(5, 9),
        torch.eye(5, dtype=D),
        scale=50.0,
    )
    assert loss.item() == pytest.approx(math.log(5), abs=1e-12)


def test_own_region_among_orthogonal_ones():
    # Image b has one region e_b and one region f, orthogonal to every sentence; sentence b is e_b. The
    # own score is x = 1/(1 + e^{−1/τ}), every other 0; so L = ln(1 + (B−1)·e^{−s·x}).
    batch, scale, temperature = 4, 3.0, 0.5
    basis = torch.eye(5, dtype=D)
    regions = torch.stack([basis[:4], basis[4:].expand(4, 5)], dim=1)
    loss = sentence_region_loss(
        basis[:4, None],
        regions,
        real(4, 1),
        real(4, 2),
        torch.eye(4, dtype=D),
        scale=scale,
        temperature=temperature,
    )
    score = 1 / (1 + math.exp(-1 / temperature))
    assert loss.item() == pytest.approx(math.log1p((batch - 1) * math.exp(-scale * score)), abs=1e-12)


@pytest.mark.parametrize(
    ("mode", "value"), [("none", math.log(4)), ("mask", 0.0), ("multi", math.log(4)), ("soft", math.log(4))]
)
def test_boilerplate_that_every_report_says(mode, value):
    # One sentence, said by all: no image is a negative. With "mask" nothing is left to tell apart.
    sentences = torch.ones(4, 1, 2, dtype=D, requires_grad=True)
    regions = torch.ones(4, 3, 2, dtype=D)
    keys = torch.full((4, 1), 99)
    loss = sentence_region_loss(
        sentences,
        regions,
        real(4, 1),
        real(4, 3),
        torch.eye(4, dtype=D),
        keys,
        scale=9.0,
        false_negatives=mode,
        shared_sentences="positive",
    )
    assert loss.item() == pytest.approx(value, abs=1e-12)


def test_an_image_that_says_the_same_is_no_negative():
    # Sentence and region are e1 in images 0 and 1 (both reports say it), others elsewhere.
    basis = torch.eye(3, dtype=D)
    features = basis[[0, 0, 1, 2]][:, None]
    keys = torch.tensor([[7], [7], [8], [9]])
    at = {"scale": 100.0, "false_negatives": "soft"}
    plain = (features, features, real(4, 1), real(4, 1), torch.eye(4, dtype=D))
    # Masked, the other image is gone and the loss 0; as a positive or a negative each of the two
    # sentences costs ln 2, but as a positive that is the floor and there is no gradient.
    masked = sentence_region_loss(*plain, keys, shared_sentences="mask", **at)
    assert masked.item() == pytest.approx(0.0, abs=1e-12)
    for shared in ("positive", "ignore"):
        loss = sentence_region_loss(*plain, keys, shared_sentences=shared, **at)
        assert loss.item() == pytest.approx(math.log(2) / 2, abs=1e-12)


# --- oracle, gradient, blocks -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shared", ["ignore", "mask", "positive", "no keys"])
def test_equals_the_loop(mode, shared):
    sentences, regions, sentence_mask, region_mask, positives, keys = ragged()
    keys, shared = (None, "positive") if shared == "no keys" else (keys, shared)
    scale = torch.tensor(6.0, dtype=D, requires_grad=True)
    inputs = (sentences.requires_grad_(), regions.requires_grad_(), scale)
    rest = (sentence_mask, region_mask, positives, keys)
    fast = sentence_region_loss(
        *inputs[:2],
        *rest,
        scale=scale,
        temperature=0.3,
        false_negatives=mode,
        shared_sentences=shared,
        block_entries=40,
    )
    slow = oracles.sentence_region_loss(
        *inputs[:2], *rest, scale=scale, temperature=0.3, mode=mode, shared=shared
    )
    assert fast.item() == pytest.approx(slow.item(), abs=1e-12)
    for a, b in zip(torch.autograd.grad(fast, inputs), torch.autograd.grad(slow, inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


@pytest.mark.parametrize("block_entries", [1, 20, 60, 140, 10_000])
def test_blocks_change_nothing(block_entries):
    # 7 sentences × 4 images × 5 regions: one row, one row, three rows with a ragged last block, all.
    regions, region_mask = ragged()[1].requires_grad_(), ragged()[3]
    sentences = rand(5, 7, 6).requires_grad_()

    def run(entries):
        scores = sentence_region_scores(sentences, regions, region_mask, block_entries=entries)
        return scores, *torch.autograd.grad((scores * rand(6, 7, 4)).sum(), (sentences, regions))

    for a, b in zip(run(block_entries), run(None), strict=True):
        torch.testing.assert_close(a, b, atol=1e-13, rtol=0)


def test_single_precision_is_exact_to_1e_5():
    sentences, regions = rand(1, 16, 32), rand(2, 4, 16, 32)
    mask = real(4, 16)
    single = [x.float().requires_grad_() for x in (sentences, regions)]
    double = [x.requires_grad_() for x in (sentences, regions)]
    results = []
    for s, r in (single, double):
        scores = sentence_region_scores(s, r, mask)
        results.append((scores, *torch.autograd.grad(scores.square().sum(), (s, r))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-5, rtol=0)


def test_gradcheck():
    sentences, regions, sentence_mask, region_mask, positives, keys = ragged()

    def loss(s, r, scale):
        return sentence_region_loss(
            s, r, sentence_mask, region_mask, positives, keys, scale=scale, temperature=0.5, block_entries=40
        )

    scale = torch.tensor(3.0, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (sentences.requires_grad_(), regions.requires_grad_(), scale))


# --- invariances --------------------------------------------------------------------------------------


def run(sentences, regions, sentence_mask, region_mask, positives, keys):
    return sentence_region_loss(
        sentences,
        regions,
        sentence_mask,
        region_mask,
        positives,
        keys,
        scale=8.0,
        shared_sentences="positive",
    ).item()


def test_invariances():
    plain = ragged()
    sentences, regions, sentence_mask, region_mask, positives, keys = plain
    same = pytest.approx(run(*plain), abs=1e-12)
    lengths = torch.rand(4, 1, 1, dtype=D) + 0.1
    assert run(sentences * lengths, regions / lengths, *plain[2:]) == same  # T1
    order = torch.tensor([2, 0, 3, 1])
    by_case = (sentences, regions, sentence_mask, region_mask)
    assert run(*(x[order] for x in by_case), positives[order][:, order], keys[order]) == same  # T2
    rotation = torch.linalg.qr(rand(9, 6, 6)).Q
    assert run(sentences @ rotation, regions @ rotation, *plain[2:]) == same  # T3
    # Sentences told in another order, regions read in another order.
    s, p = torch.tensor([2, 0, 1]), torch.tensor([4, 2, 0, 1, 3])
    assert (
        run(sentences[:, s], regions[:, p], sentence_mask[:, s], region_mask[:, p], positives, keys[:, s])
        == same
    )


def test_padding_changes_nothing():  # T6
    sentences, regions, sentence_mask, region_mask, positives, keys = ragged()
    junk = torch.full((4, 50, 6), 2.0, dtype=D)
    none = torch.zeros(4, 50, dtype=torch.bool)
    key = torch.full((4, 50), 11)
    same = pytest.approx(run(*ragged()), abs=1e-12)
    for first, last in (((junk, none, key), ()), ((), (junk, none, key))):

        def pad(x, place, first=first, last=last):
            return torch.cat([*(first[place : place + 1]), x, *(last[place : place + 1])], 1)

        assert (
            run(pad(sentences, 0), regions, pad(sentence_mask, 1), region_mask, positives, pad(keys, 2))
            == same
        )
        assert run(sentences, pad(regions, 0), sentence_mask, pad(region_mask, 1), positives, keys) == same


@pytest.mark.parametrize("mode", MODES)
def test_distinct_cases_are_the_plain_contrast(mode):
    sentences, regions, sentence_mask, region_mask, _, _ = ragged()
    keys = torch.arange(12).view(4, 3)
    parts = (sentences, regions, sentence_mask, region_mask)
    plain = sentence_region_loss(*parts, torch.zeros(4, 4, dtype=D), scale=8.0, false_negatives="none")
    for shared in ("ignore", "mask", "positive"):
        loss = sentence_region_loss(
            *parts, torch.eye(4, dtype=D), keys, scale=8.0, false_negatives=mode, shared_sentences=shared
        )
        assert loss == plain


# --- edges, precision ---------------------------------------------------------------------------------


def test_no_sentence_at_all_is_a_zero_tensor():  # T7
    regions = torch.ones(3, 4, 2, requires_grad=True)
    for sentences in (torch.ones(3, 2, 2, requires_grad=True), torch.ones(3, 0, 2, requires_grad=True)):
        mask = torch.zeros(sentences.shape[:2], dtype=torch.bool)
        loss = sentence_region_loss(sentences, regions, mask, real(3, 4), torch.eye(3), scale=5.0)
        loss.backward()
        assert loss.item() == 0.0 and sentences.grad.abs().sum() == 0 and regions.grad.abs().sum() == 0


def test_an_image_without_regions_stays_finite():
    sentences, regions, sentence_mask, region_mask, positives, keys = ragged()
    region_mask[1] = False
    loss = sentence_region_loss(
        sentences, regions.requires_grad_(), sentence_mask, region_mask, positives, keys, scale=5.0
    )
    loss.backward()
    assert loss.isfinite() and regions.grad.isfinite().all()


def test_one_case_costs_nothing():
    loss = sentence_region_loss(
        rand(1, 1, 3, 4), rand(2, 1, 5, 4), real(1, 3), real(1, 5), torch.eye(1, dtype=D), scale=9.0
    )
    assert loss.item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", MODES)
def test_finite_at_scale_100(dtype, mode):  # T5
    sentences, regions, sentence_mask, region_mask, positives, keys = ragged()
    sentences = (sentences * 100).to(dtype).requires_grad_()
    regions = (regions * 100).to(dtype).requires_grad_()
    loss = sentence_region_loss(
        sentences,
        regions,
        sentence_mask,
        region_mask,
        positives,
        keys,
        scale=100.0,
        temperature=0.01,
        false_negatives=mode,
    )
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert sentences.grad.isfinite().all() and regions.grad.isfinite().all()


# --- keys ---------------------------------------------------------------------------------------------


def test_who_says_a_sentence():
    _, _, sentence_mask, _, _, keys = ragged()
    # Rows: report 0 sentences 0, 1; report 1 sentence 1; report 2 sentences 0, 1, 2. Columns: reports.
    # Key 11 is said by reports 0 and 2; key 12 by report 0 only, since report 1's is padding.
    expected = [[1, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 1, 0], [0, 0, 1, 0]]
    assert said_by(sentence_mask, keys).long().tolist() == expected


reports = st.lists(
    st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=4), max_size=4), min_size=1, max_size=4
)


@settings(max_examples=60, deadline=None)
@given(reports=reports, special=st.booleans(), padding=st.integers(0, 3))
def test_keys_are_equal_exactly_where_the_words_are(reports, special, padding):
    rows = []
    for report in reports:
        row = [(9, -1)] if special else []
        row += [(token, k) for k, sentence in enumerate(report, 1) for token in sentence]
        rows.append(row)
    length = max(len(row) for row in rows) + padding
    rows = [row + [(0, 0)] * (length - len(row)) for row in rows]
    table = torch.tensor(rows, dtype=torch.long).view(len(rows), length, 2)
    keys = sentence_keys(table[..., 0], table[..., 1], sentences=4)
    said = [
        (sentence, keys[r, k].item()) for r, report in enumerate(reports) for k, sentence in enumerate(report)
    ]
    for words, key in said:
        for other_words, other_key in said:
            assert (words == other_words) == (key == other_key)


def test_a_missing_sentence_has_the_key_zero():
    keys = sentence_keys(torch.tensor([[5, 6]]), torch.tensor([[1, 1]]), sentences=3)
    assert keys[0, 0] != 0 and keys[0, 1:].tolist() == [0, 0]
