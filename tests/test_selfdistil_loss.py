"""The losses of self-distillation: closed forms, loops, gradients, precision, nothing to compare."""

import math

import numpy as np
import pytest
import torch

from medvl.training.selfdistil.loss import (
    cross_view_loss,
    hidden_patch_loss,
    koleo_loss,
    teacher_targets,
)


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def test_uniform_targets_or_scores_give_ln_k():
    # -sum_k (1/K) ln(1/K) = ln K, whatever the number of views
    q = torch.full((2, 3, 10), 0.1, dtype=torch.float64)
    assert cross_view_loss(torch.zeros(5, 3, 10, dtype=torch.float64), q).item() == pytest.approx(
        math.log(10)
    )
    film = torch.tensor([0, 1, 1])
    loss = hidden_patch_loss(torch.zeros(3, 10), torch.full((3, 10), 0.1), film, films=2)
    assert loss.item() == pytest.approx(math.log(10), rel=1e-6)


def test_a_sure_student_that_agrees_has_no_loss():
    # one-hot q and scores of 1 at its place: ln(1 + (K - 1) e^(-1/tau))
    hot = torch.eye(6, dtype=torch.float64)[[2, 4]]
    expected = math.log1p(5 * math.exp(-1 / 0.1))
    views = hot.expand(3, 2, 6)
    assert cross_view_loss(views, views[:2]).item() == pytest.approx(expected)
    assert expected < 3e-4 and cross_view_loss(views, views[:2], temperature=0.01).item() < 1e-12
    found = hidden_patch_loss(hot, hot, torch.tensor([0, 1]), films=2)
    assert found.item() == pytest.approx(expected)


def test_views_equal_their_loop():
    student, q = normal(4, 3, 7), normal(2, 3, 7, seed=1).softmax(-1)
    total = 0.0
    for g in range(2):
        for v in range(4):
            if v != g:
                for i in range(3):
                    scores = [student[v, i, k].item() / 0.2 for k in range(7)]
                    top = math.log(sum(math.exp(score) for score in scores))
                    total -= sum(q[g, i, k].item() * (scores[k] - top) for k in range(7)) / 3
    expected = total / (2 * 3)
    assert cross_view_loss(student, q, temperature=0.2).item() == pytest.approx(expected, rel=1e-12)


def test_patches_equal_their_loop_and_every_film_weighs_the_same():
    film = torch.tensor([0, 2, 2, 2, 3])
    student, q = normal(5, 6), normal(5, 6, seed=1).softmax(-1)
    total = 0.0
    for n in range(5):
        rows = [p for p in range(5) if film[p] == n]
        for p in rows:
            log_p = (student[p] / 0.1).log_softmax(0)
            total -= sum(q[p, k].item() * log_p[k].item() for k in range(6)) / len(rows)
    found = hidden_patch_loss(student, q, film, films=5)
    assert found.item() == pytest.approx(total / 5, rel=1e-12)


def test_koleo_equals_its_loop_and_falls_as_the_nearest_move_apart():
    x = normal(6, 4)
    u = x / x.norm(dim=1, keepdim=True)
    gaps = [min((u[i] - u[j]).norm().item() for j in range(6) if j != i) for i in range(6)]
    assert koleo_loss(x).item() == pytest.approx(-sum(math.log(gap) for gap in gaps) / 6, rel=1e-9)
    assert koleo_loss(3 * x).item() == pytest.approx(koleo_loss(x).item())
    # all the same: the least distance, -ln 1e-4, and a finite gradient
    same = torch.ones(3, 4, requires_grad=True)
    loss = koleo_loss(same)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-4), rel=1e-5) and same.grad.isfinite().all()


def test_gradients_are_right():
    student, q = normal(3, 2, 5).requires_grad_(), normal(2, 2, 5, seed=1).softmax(-1)
    assert torch.autograd.gradcheck(lambda z: cross_view_loss(z, q), student)
    patches, film = normal(4, 5).requires_grad_(), torch.tensor([0, 0, 1, 3])
    assert torch.autograd.gradcheck(lambda z: hidden_patch_loss(z, q.flatten(0, 1), film, films=4), patches)
    assert torch.autograd.gradcheck(koleo_loss, normal(5, 3).requires_grad_())


def test_what_is_added_to_a_prototype_changes_no_target():
    scores, shift = normal(6, 5), normal(5, seed=1)
    for more in (shift, 100 * shift):
        same = teacher_targets(scores + more, temperature=0.5)
        torch.testing.assert_close(same, teacher_targets(scores, temperature=0.5))
    moved = teacher_targets(scores + shift, temperature=0.5, centring="moving", centre=shift)
    plain = teacher_targets(scores, temperature=0.5, centring="moving")
    torch.testing.assert_close(moved, plain)
    torch.testing.assert_close(plain, (scores / 0.5).softmax(-1))


def test_balanced_targets_use_every_prototype():
    # All films prefer prototype 0; balanced, each of 4 is used about as often.
    scores = normal(64, 4) * 0.1 + torch.tensor([2.0, 0, 0, 0])
    used = teacher_targets(scores, temperature=0.1).mean(0)
    assert used.max() < 0.35 < 0.99 < teacher_targets(scores, temperature=0.1, centring="moving").mean(0)[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype):
    student, q, film = normal(3, 2, 8).float(), normal(2, 2, 8, seed=1).float(), torch.tensor([0, 0, 1, 1])
    scores = normal(6, 8).float()

    def all_terms():
        targets = teacher_targets(scores, temperature=0.04)
        soft = q.softmax(-1)
        patches = hidden_patch_loss(student[0].repeat(2, 1), soft.flatten(0, 1), film, films=2)
        return [cross_view_loss(student, soft), patches, koleo_loss(scores), targets.sum(0)]

    with torch.autocast("cpu", dtype=dtype):
        inside = all_terms()
    for one, other in zip(inside, all_terms(), strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other)
    assert cross_view_loss(student.to(dtype), q.softmax(-1)).dtype == torch.float32


def test_one_film_and_no_patch_are_values():
    alone = torch.zeros(2, 1, 4, requires_grad=True)
    cross_view_loss(alone, torch.full((2, 1, 4), 0.25)).backward()
    nothing = hidden_patch_loss(
        torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), films=3
    )
    assert nothing.item() == 0.0 and koleo_loss(torch.ones(1, 3)).item() == 0.0
    assert teacher_targets(torch.zeros(0, 4), temperature=0.1).shape == (0, 4)
