"""ConVIRT: its closed forms, and which way its weight leans."""

import math

import pytest
import torch
from lossfeatures import DIM, D, build, features, positives

from medvl.errors import ConfigError
from medvl.objectives import OBJECTIVES


def loss_of(images, texts, **options):
    image, text = features(len(images))
    image, text = (
        type(part)(**{**vars(part), "pooled": pooled}) for part, pooled in ((image, images), (text, texts))
    )
    return build("convirt", **options)(image, text, torch.eye(len(images))).total.item()


def test_constant_embeddings_give_ln_b():
    same = torch.ones(6, DIM, dtype=D)
    assert loss_of(same, same) == pytest.approx(math.log(6), abs=1e-12)


def test_lambda_weighs_the_search_of_an_image_for_its_text():
    # Images e1, e1; texts e1, e2; scale 10. Row 0 and 1 are (10, 0): their losses ln(1 + e^-10) and
    # 10 + ln(1 + e^-10), mean 5.0000454. Each column is constant: ln 2. Of these λ and 1 − λ.
    images = torch.eye(DIM, dtype=D)[[0, 0]]
    texts = torch.eye(DIM, dtype=D)[[0, 1]]
    assert loss_of(images, texts) == pytest.approx(3.923321, abs=1e-6)
    assert loss_of(images, texts, image_weight=0.25) == pytest.approx(1.769872, abs=1e-6)


def test_half_is_clip_at_a_fixed_temperature():
    parts = features(6)
    clip = build("clip", temperature=0.1)
    half = build("convirt", image_weight=0.5)
    assert half(*parts, positives(6)).total.item() == pytest.approx(clip(*parts, positives(6)).total.item())


def test_refuses_a_weight_above_one():
    with pytest.raises(ConfigError, match=r"image_weight is 1\.5\. Allowed: 0 to 1"):
        OBJECTIVES.build("convirt", {"image_weight": 1.5}, DIM)
