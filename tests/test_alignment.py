"""The alignment model: which projection reads which feature, parameter groups, building from values."""

import json
from dataclasses import fields

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from medvl.alignment import (
    AlignmentModel,
    ModelConfig,
    ProjectionConfig,
    TowerRecipe,
    build_from_config,
    build_model,
)
from medvl.encoders.image import build_image_encoder
from medvl.encoders.text import build_text_encoder
from medvl.errors import ConfigError
from medvl.tokens import train_tokeniser

RESNET = TowerRecipe(name="resnet", options={"widths": [8, 16], "blocks": [1, 1]})
BERT = TowerRecipe(name="bert", options={"layers": 1, "width": 32, "dropout": 0.0})


@pytest.fixture(scope="module")
def tokeniser():
    return train_tokeniser(["small left effusion", "no change"], max_tokens=16)


@pytest.fixture
def build(tokeniser):
    def make(**values):
        torch.manual_seed(0)
        return build_model(**{"image": RESNET, "text": BERT, "tokeniser": tokeniser} | values)

    return make


@pytest.fixture
def batch(tokeniser):
    tokens, mask = tokeniser.encode([["small left effusion", "no change"], []])
    images = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    film = torch.ones(2, 16, 16, dtype=torch.bool)
    return images, film, torch.from_numpy(tokens), torch.from_numpy(mask)


@pytest.mark.parametrize("local", [True, False])
def test_each_feature_goes_through_its_projection(build, batch, local):
    model = build(local=local, projection=ProjectionConfig(dim=5)).eval()
    images, film, tokens, mask = batch
    raw_image, raw_text = model.image_encoder(images, film), model.text_encoder(tokens, mask)
    image, text = model(*batch)
    # Without a local term regions and words share the projection of the pooled vectors.
    regions = model.region_projection if local else model.image_projection
    words = model.word_projection if local else model.text_projection
    assert torch.equal(image.pooled, raw_image.pooled @ model.image_projection.weight.T)
    torch.testing.assert_close(image.regions, raw_image.regions @ regions.weight.T)
    assert torch.equal(text.pooled, raw_text.pooled @ model.text_projection.weight.T)
    torch.testing.assert_close(text.words, raw_text.words @ words.weight.T)
    torch.testing.assert_close(text.sentences, raw_text.sentences @ words.weight.T)
    for before, after in ((raw_image, image), (raw_text, text)):
        for field in fields(before):
            if field.name.endswith(("mask", "grid")):
                old, new = getattr(before, field.name), getattr(after, field.name)
                assert old == new if isinstance(old, tuple) else torch.equal(old, new)
    assert torch.equal(model.embed_text(tokens, mask), text.pooled)


def test_without_a_local_term_an_image_is_the_mean_of_its_regions(build, batch):
    model = build(local=False).eval()
    image = model.encode_image(*batch[:2])
    torch.testing.assert_close(image.pooled, image.regions.mean(1), atol=1e-6, rtol=1e-5)


def test_a_model_without_a_local_term_needs_equal_widths(tokeniser):
    pytest.importorskip("efficientnet_lite_pytorch")
    image = build_image_encoder("efficientnet_lite0", {"pretrained": False, "region_stride": 16})
    text = build_text_encoder("bert", {"layers": 1, "width": 32}, tokeniser)
    with pytest.raises(ConfigError, match=r"'efficientnet_lite0' have 112 values and its pooled vector 1280"):
        AlignmentModel(image, text, local=False)


def test_an_mlp_keeps_rows_apart(build, batch):
    model = build(projection=ProjectionConfig(kind="mlp", dim=6, hidden=12)).train()
    kinds = [type(layer) for layer in model.image_projection]
    assert kinds == [nn.Linear, nn.LayerNorm, nn.ReLU, nn.Linear]
    x = torch.randn(3, 16)
    together = model.image_projection(x)
    torch.testing.assert_close(together[1:2], model.image_projection(x[1:2]))
    assert together.shape == (3, 6)


@pytest.mark.parametrize("local", [True, False])
def test_towers_hold_each_trainable_parameter_once(build, local):
    model = build(local=local)
    towers = model.named_towers()
    assert list(towers) == ["image", "text", "projection"]
    names = [name for part in towers.values() for name, _ in part]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert {name.split(".")[0] for name, _ in towers["image"]} == {"image_encoder"}
    assert {name.split(".")[0] for name, _ in towers["text"]} == {"text_encoder"}
    assert len(towers["projection"]) == (4 if local else 2)


def test_frozen_and_adapted_towers(build):
    model = build(
        image=TowerRecipe(**RESNET.model_dump(exclude={"train"}), train="frozen"),
        text=TowerRecipe(name="bert", options=BERT.options, train="lora", lora={"rank": 2}),
    )
    towers = model.train().named_towers()
    assert towers["image"] == [] and towers["text"]
    assert all(".lora_" in name for name, _ in towers["text"])
    assert not model.image_encoder.training and model.text_encoder.training


def test_a_frozen_tower_may_carry_adapters_that_rest(build):
    model = build(text=TowerRecipe(name="bert", options=BERT.options, train="frozen", lora={"rank": 2}))
    assert model.named_towers()["text"] == []


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_values_rebuild_the_model(build, batch, local, kind):
    model = build(
        local=local,
        projection=ProjectionConfig(kind=kind, dim=7, hidden=9),
        text=TowerRecipe(name="bert", options=BERT.options, train="lora", lora={"rank": 2}),
    )
    values = json.loads(model.config.model_dump_json())
    again = build_from_config(ModelConfig.model_validate(values))
    assert again.config == model.config
    again.load_state_dict(model.state_dict(), strict=True)
    for one, other in zip(model.eval()(*batch), again.eval()(*batch), strict=True):
        assert torch.equal(one.pooled, other.pooled)


def test_every_trainable_parameter_gets_a_gradient(build, batch):
    for local in (True, False):
        model = build(local=local)
        image, text = model(*batch)
        total = sum(x.square().sum() for x in (image.pooled, image.regions, text.pooled, text.words))
        total.backward()
        assert [name for name, value in model.named_parameters() if value.grad is None] == []


def test_refusals(build):
    with pytest.raises(ConfigError, match=r"unknown image encoder 'resnet19'.*Did you mean 'resnet18'"):
        build(image=TowerRecipe(name="resnet19"))
    with pytest.raises(ConfigError, match=r"policy of encoder 'bert' is 'lora', but it has no adapters"):
        build(text=TowerRecipe(name="bert", options=BERT.options, train="lora"))
    with pytest.raises(ValidationError, match=r"rank"):
        TowerRecipe(name="bert", lora={"rank": 0})
    with pytest.raises(ValidationError, match=r"Extra inputs are not permitted"):
        ModelConfig.model_validate({**build().config.model_dump(), "locall": True})


def test_the_batch_norm_centres_pooled_vectors_in_training_and_rests_afterwards(build, batch):
    model = build(local=False, projection=ProjectionConfig(dim=5, norm="batch"))
    images, film, *_ = batch
    images = torch.cat([images, images + 1, 2 * images])
    film = torch.cat([film, film, film])
    pooled = model.train().encode_image(images, film).pooled
    # Normalised by the batch: mean 0 and (biased) variance 1 along each axis, up to eps / variance.
    torch.testing.assert_close(pooled.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    assert (pooled.var(0, unbiased=False) < 1 + 1e-5).all()
    for _ in range(200):  # the running statistics (momentum 0.1) reach those of this one batch
        model.encode_image(images, film)
    model.eval()
    alone = torch.cat([model.encode_image(images[i : i + 1], film[i : i + 1]).pooled for i in range(6)])
    together = model.encode_image(images, film)
    torch.testing.assert_close(alone, together.pooled)
    assert not model.image_norm.state_dict().keys() & {"weight", "bias"}
    # A model without a local term reads its regions in the space of the pooled vectors.
    torch.testing.assert_close(together.pooled, together.regions.mean(1), atol=1e-5, rtol=1e-5)
    rebuilt = build_from_config(model.config)
    rebuilt.load_state_dict(model.state_dict())
    torch.testing.assert_close(rebuilt.eval().encode_image(images, film).pooled, together.pooled)
