"""CXR-CLIP: its closed form, its formula in loops, and what may change places."""

import itertools
import math
from dataclasses import replace

import oracles
import pytest
import torch
from lossfeatures import DIM, D, build, features, rows

from medvl.errors import ConfigError
from medvl.objectives.targets import MatrixPositives
from medvl.objectives.views import ViewPositives, of_view


def matrix(seed=0):
    """Positives of 8 rows, different in every cell so that a wrong cell shows; studies 0 and 2 are equal."""
    symmetric = torch.rand(8, 8, generator=torch.Generator().manual_seed(seed), dtype=D) * 0.9
    symmetric = (symmetric + symmetric.T) / 2
    for rows_, columns in itertools.product(((0, 1), (4, 5)), repeat=2):
        for i, j in itertools.product(rows_, columns):
            symmetric[i, j] = 1.0
    return symmetric.fill_diagonal_(1.0)


def test_constant_embeddings_give_two_and_a_half_ln_b():
    # 4 cross terms of ln B, their mean ln B; ln B among the images; half of ln B among the texts.
    image, text = features(12)
    same = torch.ones(12, DIM, dtype=D)
    loss = build("cxrclip")(replace(image, pooled=same), replace(text, pooled=same), torch.eye(12))
    assert loss.total.item() == pytest.approx(2.5 * math.log(6), abs=1e-12)
    assert loss.terms["instance"].item() == pytest.approx(math.log(6), abs=1e-12)


@pytest.mark.parametrize("mode", ["none", "mask", "multi", "soft"])
def test_is_the_formula_in_loops(mode):
    image, text = features(8)
    objective = build("cxrclip", image_weight=0.7, text_weight=0.3, false_negatives=mode)
    scale, positives = objective.scale().item(), matrix()

    def clip(one, other, a, b):
        return oracles.clip_loss(one[a::2], other[b::2], positives[a::2, b::2], scale, mode)

    v, t = image.pooled, text.pooled
    across = sum(clip(v, t, a, b) for a in (0, 1) for b in (0, 1)) / 4
    expected = across + 0.7 * clip(v, v, 0, 1) + 0.3 * clip(t, t, 0, 1)
    assert objective(image, text, positives).total.item() == pytest.approx(expected.item(), abs=1e-9)


@pytest.mark.parametrize("side", ["images", "texts"])
def test_the_views_may_change_places(side):
    image, text = features(8)
    swapped = torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])
    objective, positives = build("cxrclip"), torch.eye(8)
    plain = objective(image, text, positives).total.item()
    other = (rows(image, swapped), text) if side == "images" else (image, rows(text, swapped))
    assert objective(*other, positives).total.item() == pytest.approx(plain, abs=1e-12)


def test_equal_views_are_clip_and_two_contrasts_within():
    # I1 = I2 and T1 = T2: the cross terms are one CLIP, the others contrast a side with itself.
    image, text = features(4)
    twice = torch.arange(4).repeat_interleave(2)
    v, t = image.pooled, text.pooled
    loss = build("cxrclip")(rows(image, twice), rows(text, twice), torch.eye(8))
    scale = build("cxrclip").scale().item()
    for name, (one, other), weight in (
        ("instance", (v, t), 1.0),
        ("image", (v, v), 1.0),
        ("text", (t, t), 0.5),
    ):
        expected = weight * oracles.clip_loss(one, other, torch.eye(4), scale)
        assert loss.terms[name].item() == pytest.approx(expected.item(), abs=1e-9)


def test_positives_of_a_view_are_a_slice():
    whole = matrix()
    whole[0, 3] = 0.25  # not symmetric: rows and columns must not be confused
    for a, b in itertools.product((0, 1), repeat=2):
        part = ViewPositives(MatrixPositives(whole), a, b)
        assert len(part) == 4
        assert torch.equal(part.rows(1, 3), whole[a::2, b::2][1:3])
        assert torch.equal(part.columns(1, 3), whole[a::2, b::2].T[1:3])


def test_an_odd_row_is_refused():
    with pytest.raises(ConfigError, match=r"3 rows cannot be two views of each study\..*views=2"):
        of_view(torch.zeros(3, 2), 0)
