"""MedCLIP: its closed forms, a loop over the formula, and what its labels mean."""

import math
from dataclasses import replace

import oracles
import pytest
import torch
from lossfeatures import DIM, D, build, features, positives

from medvl.errors import ConfigError
from medvl.objectives import OBJECTIVES
from medvl.objectives.medclip import label_vectors, medclip_loss

NAN = float("nan")


def oracle(images, texts, labels, scale, encoding):
    """METHODS §1.5 in loops."""
    n = len(images)
    codes = {"signed": {1.0: 1, 0.0: -1}, "present": {1.0: 1, 0.0: 0}}[encoding]
    vectors = [[0 if math.isnan(x) else codes[x] for x in row] for row in labels.tolist()]
    v, t = ([oracles.normalised(list(x)) for x in side] for side in (images, texts))
    total = torch.zeros((), dtype=D)
    for i in range(n):
        products = [float(sum(a * b for a, b in zip(vectors[i], other, strict=True))) for other in vectors]
        weights = [math.exp(x) / sum(math.exp(y) for y in products) for x in products]
        over_texts = [scale * oracles.dot(v[i], t[j]) for j in range(n)]
        over_images = [scale * oracles.dot(v[j], t[i]) for j in range(n)]
        for j in range(n):
            total = total - weights[j] * oracles.log_softmax_at(over_texts, j)
            total = total - weights[j] * oracles.log_softmax_at(over_images, j)
    return total / (2 * n)


@pytest.mark.parametrize("encoding", ["signed", "present"])
def test_value_and_gradient_equal_the_loop(encoding):
    image, text = features(6)
    leaves = [x.clone().requires_grad_() for x in (image.pooled, text.pooled)]
    vectors = label_vectors(text.findings, encoding=encoding)
    loss = medclip_loss(*leaves, vectors, scale=7.0)
    expected = oracle(*leaves, text.findings, 7.0, encoding)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-10)
    for ours, theirs in zip(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=0)


def test_identical_labels_share_the_target_equally():
    # Targets 1/8; constant embeddings make softmax 1/8 too: ln 8,
    # which is also the floor, the entropy of the target.
    constant = torch.ones(8, 4, dtype=D)
    alike = torch.ones(8, 3, dtype=D)
    assert medclip_loss(constant, constant, alike, scale=10.0).item() == pytest.approx(math.log(8), abs=1e-12)
    other = torch.randn(8, 4, dtype=D)
    assert medclip_loss(other, constant, alike, scale=10.0) >= math.log(8) - 1e-12


@pytest.mark.parametrize(
    ("encoding", "labels"),
    [("present", [[1.0, 0.0], [0.0, 1.0]]), ("signed", [[1.0, NAN], [NAN, 1.0]])],
)
def test_two_cases_with_one_finding_each(encoding, labels):
    # l = (1, 0) and (0, 1): l_1·l_1 = 1, l_1·l_2 = 0, target (e, 1)/(e + 1) = (0.7311, 0.2689). Its entropy
    # 0.5822 is the floor; orthonormal pairs at s = 1 have just that softmax, at s = 100 they are too sure.
    vectors = label_vectors(torch.tensor(labels, dtype=D), encoding=encoding)
    pairs = torch.eye(2, dtype=D)
    p = math.e / (1 + math.e)
    floor = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert floor == pytest.approx(0.5822, abs=5e-5)
    assert medclip_loss(pairs, pairs, vectors, scale=1.0).item() == pytest.approx(floor, abs=1e-12)
    assert medclip_loss(pairs, pairs, vectors, scale=100.0).item() > floor + 1
    logits = torch.tensor([1.0], dtype=D, requires_grad=True)
    (slope,) = torch.autograd.grad(medclip_loss(pairs, pairs, vectors, scale=logits[0]), [logits])
    assert slope.item() == pytest.approx(0.0, abs=1e-12)  # the floor is a minimum


def test_signed_absences_bring_cases_together_and_present_ones_do_not():
    # l_1 = (1, −1, −1), l_2 = (−1, −1, −1): product 1 of 3 against 3; with ``present`` (1,0,0)·(0,0,0) = 0.
    labels = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=D)
    signed, present = (label_vectors(labels, encoding=encoding) for encoding in ("signed", "present"))
    assert (signed @ signed.T).tolist() == [[3.0, 1.0], [1.0, 3.0]]
    assert (present @ present.T).tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_the_raw_dot_product_sharpens_with_shared_findings():
    # The public docstring promises products in [−1, 1]; the published loss has none, and neither has this.
    pairs = torch.eye(2, dtype=D)
    few, many = torch.eye(2, dtype=D), torch.eye(2, dtype=D).repeat(1, 6)
    assert medclip_loss(pairs, pairs, few, scale=100.0) > medclip_loss(pairs, pairs, many, scale=100.0)


def test_without_soft_it_is_clip():
    parts = features(6)
    for mode in ("none", "mask", "multi"):
        ours = build("medclip", false_negatives=mode)(*parts, positives(6)).total
        assert ours == build("clip", false_negatives=mode)(*parts, positives(6)).total


def test_labels_that_cannot_be_meant():
    image, text = features(3)
    objective = build("medclip")
    chexpert = torch.tensor([[1.0, -1.0], [0.0, 1.0], [NAN, 0.0]], dtype=D)
    with pytest.raises(ConfigError, match=r"a label is -1\. Allowed: 1 present, 0 absent, NaN unknown"):
        objective(image, replace(text, findings=chexpert, attributes=None), torch.eye(3))
    for nothing in (None, torch.empty(3, 0, dtype=D)):
        with pytest.raises(ConfigError, match=r"no case has a labelled finding.*choose the objective clip"):
            objective(image, replace(text, findings=nothing, attributes=None), torch.eye(3))
    with pytest.raises(ConfigError, match=r"encoding is 'sign'\. Allowed: present, signed.*'signed'"):
        OBJECTIVES.build("medclip", {"encoding": "sign"}, DIM)
