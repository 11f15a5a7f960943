"""Masked next-token prediction and SimCSE: closed forms, loops, gradients, and what must carry no loss."""

import math

import pytest
import torch

from medvl.errors import ConfigError
from medvl.language.contrast import simcse_loss
from medvl.language.masked import (
    IGNORED,
    hide_tokens,
    next_token_loss,
    next_token_targets,
    states_before,
)

# Two texts, one padded on the right and one on the left: start, words, end.
TOKENS = torch.tensor([[2, 11, 12, 13, 14, 3, 0, 0], [0, 0, 0, 2, 15, 16, 17, 3]])
MASK = torch.tensor([[-1, 1, 1, 2, 2, -1, 0, 0], [0, 0, 0, -1, 1, 1, 1, -1]])
FRAMELESS = MASK.clamp(min=0)
FRAMELESS[0, :2] = torch.tensor([0, 1])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class TestMasked:
    @pytest.mark.parametrize("mask", [MASK, FRAMELESS])
    def test_what_is_hidden_is_a_word_and_never_the_first_token(self, mask):
        ever = torch.zeros_like(TOKENS, dtype=torch.bool)
        for seed in range(60):
            seen, targets = hide_tokens(TOKENS, mask, rate=0.5, mask_id=9, generator=generator(seed))
            hidden = seen != TOKENS
            assert torch.equal(hidden, targets != IGNORED)
            assert (seen[hidden] == 9).all() and torch.equal(targets[hidden], TOKENS[hidden])
            ever |= hidden
        allowed = mask > 0
        for row in range(2):
            allowed[row, int((mask[row] != 0).int().argmax())] = False
        assert torch.equal(ever, allowed)  # each of these in some draw, and nothing else in any

    def test_the_share_of_hidden_tokens(self):
        mask = torch.ones(100, 101, dtype=torch.int64)
        _, targets = hide_tokens(mask * 5, mask, rate=0.2, mask_id=9, generator=generator())
        # 10,000 places that may be hidden at 0.2: standard error sqrt(0.16 / 10,000) = 0.004
        assert abs(float((targets != IGNORED).float().sum() / 10_000) - 0.2) < 0.016

    def test_the_state_before_tells_the_token(self):
        _, targets = hide_tokens(TOKENS, MASK, rate=1.0, mask_id=9, generator=generator())
        states = torch.arange(16.0).reshape(2, 8, 1)  # the state at row r, place i is 8 r + i
        before, told = states_before(states, targets)
        expected = [(8 * r + i - 1, int(TOKENS[r, i])) for r in range(2) for i in range(8) if MASK[r, i] > 0]
        assert list(zip(before[:, 0].tolist(), told.tolist(), strict=True)) == expected

    def test_no_state_of_padding_is_ever_read(self):
        for mask in (MASK, FRAMELESS):
            numbers = mask.clone()[..., None].float()
            for targets in (
                next_token_targets(TOKENS, mask),
                hide_tokens(TOKENS, mask, rate=1.0, mask_id=9, generator=generator())[1],
            ):
                assert (states_before(numbers, targets)[0] != 0).all()

    def test_a_causal_model_tells_all_but_the_first(self):
        targets = next_token_targets(TOKENS, MASK)
        assert targets.tolist() == [
            [IGNORED, 11, 12, 13, 14, 3, IGNORED, IGNORED],
            [IGNORED] * 4 + [15, 16, 17, 3],
        ]

    def test_uniform_logits_give_the_log_of_the_vocabulary(self):
        loss = next_token_loss(torch.zeros(7, 1979), torch.arange(7))
        assert math.isclose(float(loss), math.log(1979), rel_tol=1e-6)

    def test_the_loss_is_the_loop(self):
        logits = torch.randn(5, 6, dtype=torch.float64, generator=generator())
        targets = torch.tensor([0, 5, 2, 2, 1])
        expected = -sum(
            float(z[y]) - math.log(sum(math.exp(v) for v in z.tolist()))
            for z, y in zip(logits, targets, strict=True)
        )
        assert math.isclose(float(next_token_loss(logits, targets)), expected / 5, rel_tol=1e-6)

    def test_no_place_is_zero_and_still_a_loss(self):
        logits = torch.zeros(0, 6, requires_grad=True)
        loss = next_token_loss(logits, torch.zeros(0, dtype=torch.int64))
        loss.backward()
        assert float(loss.detach()) == 0.0

    def test_a_share_that_is_none(self):
        with pytest.raises(ConfigError, match=r"hidden tokens is 1.5\. Allowed are values in \(0, 1\]"):
            hide_tokens(TOKENS, MASK, rate=1.5, mask_id=9, generator=generator())


def loop(queries, documents, scale, same):
    total = 0.0
    for i, q in enumerate(queries):
        scores = {}
        for j, d in enumerate(documents):
            if j != i and same is not None and bool(same[i, j]):
                continue
            scores[j] = scale * float(q @ d) / (float(q.norm()) * float(d.norm()))
        total -= scores[i] - math.log(sum(math.exp(value) for value in scores.values()))
    return total / len(queries)


class TestSimCSE:
    def features(self, rows, seed):
        return torch.randn(rows, 5, dtype=torch.float64, generator=generator(seed))

    def test_closed_forms(self):
        equal = torch.ones(4, 3)
        assert math.isclose(float(simcse_loss(equal, equal)), math.log(4), rel_tol=1e-6)
        twice = torch.ones(8, 3)  # one hard negative each
        assert math.isclose(float(simcse_loss(equal, twice)), math.log(8), rel_tol=1e-6)
        eye = torch.eye(4, dtype=torch.float64)
        assert math.isclose(float(simcse_loss(eye, eye)), math.log1p(3 * math.exp(-20)), rel_tol=1e-6)

    @pytest.mark.parametrize("negatives", [0, 3, 8])
    @pytest.mark.parametrize("masked", [False, True])
    def test_it_is_the_loop(self, negatives, masked):
        q, d = self.features(4, 1), self.features(4 + negatives, 2)
        same = torch.rand(4, 4 + negatives, generator=generator(3)) < 0.3 if masked else None
        assert math.isclose(
            float(simcse_loss(q, d, scale=7.0, same=same)), loop(q, d, 7.0, same), rel_tol=1e-9
        )

    def test_gradients(self):
        q, d = self.features(3, 1).requires_grad_(), self.features(5, 2).requires_grad_()
        same = torch.tensor([[1, 1, 0, 0, 1], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0]], dtype=torch.bool)
        assert torch.autograd.gradcheck(lambda a, b: simcse_loss(a, b, scale=3.0, same=same), (q, d))

    def test_one_direction(self):
        q, d = self.features(4, 1), self.features(4, 2)
        assert not math.isclose(float(simcse_loss(q, d)), float(simcse_loss(d, q)), rel_tol=1e-3)

    def test_an_equal_text_neither_repels_nor_is_repelled(self):
        """A batch with a text given twice costs each copy what the batch without the other would."""
        base = self.features(3, 1)
        q, d = torch.cat([base, base[:1]]), torch.cat([base, base[:1]]) + 0.1
        same = torch.zeros(4, 4, dtype=torch.bool)
        same[0, 3] = same[3, 0] = True
        rest = torch.tensor([0, 1, 2])
        alone = simcse_loss(q[rest], d[rest])
        copies = simcse_loss(q, d, same=same)
        # rows 0 and 3 are the row 0 of the smaller batch; rows 1 and 2 see the copy as one more negative
        row = [float(simcse_loss(q[[i]], d[[i, *(j for j in rest.tolist() if j != i)]])) for i in range(3)]
        assert math.isclose(float(alone), sum(row) / 3, rel_tol=1e-9)
        more = [float(simcse_loss(q[[i]], d[[i, *(j for j in range(4) if j != i)]])) for i in (1, 2)]
        assert math.isclose(float(copies), (2 * row[0] + sum(more)) / 4, rel_tol=1e-9)

    def test_sizes_and_scales_at_the_edge(self):
        one = torch.randn(1, 5)
        assert float(simcse_loss(one, one)) == 0.0
        opposite = simcse_loss(
            torch.eye(2, dtype=torch.bfloat16), -torch.eye(2, dtype=torch.bfloat16), scale=100.0
        )
        # own −100, other 0: ln(1 + e^100) = 100
        assert opposite.dtype == torch.float32 and math.isclose(float(opposite), 100.0, rel_tol=1e-6)

    def test_too_few_documents(self):
        with pytest.raises(ConfigError, match="there are 2 documents for 3 queries"):
            simcse_loss(torch.ones(3, 2), torch.ones(2, 2))
