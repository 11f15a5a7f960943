"""Attention pooling: against a loop over heads and regions, blind to what is masked and to order."""

import math

import pytest
import torch

from medvl.alignment import ProjectionConfig, TowerRecipe, build_from_config, build_model
from medvl.encoders.pooling import AttentionPool
from medvl.encoders.text import build_text_encoder, rebuild_text_encoder
from medvl.errors import ConfigError
from medvl.tokens import train_tokeniser


def oracle(pool, regions, mask):
    """One image at a time, one head at a time."""
    answers = []
    width = regions.shape[-1]
    part = width // pool.heads
    for image, seen in zip(regions, mask, strict=True):
        both = pool.keys_values(pool.before(image))
        heads = []
        for h in range(pool.heads):
            own = slice(h * part, (h + 1) * part)
            keys, values = both[:, :width][:, own], both[:, width:][:, own]
            valid = [p for p in range(len(image)) if seen[p]] or list(range(len(image)))
            weights = torch.stack([pool.query[own] @ keys[p] / math.sqrt(part) for p in valid]).softmax(0)
            heads.append(sum(w * values[p] for w, p in zip(weights, valid, strict=True)))
        answers.append(pool.after(pool.out(torch.cat(heads))))
    return torch.stack(answers)


def test_equals_the_loop_and_ignores_masked_regions():
    torch.manual_seed(0)
    pool = AttentionPool(8, heads=2).double()
    regions = torch.randn(3, 5, 8, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()
    found = pool(regions, mask)
    torch.testing.assert_close(found, oracle(pool, regions, mask))
    changed = regions.clone()
    changed[0, 2] = 1e3
    assert torch.equal(pool(changed, mask)[0], found[0])
    order = torch.tensor([4, 2, 0, 3, 1])
    torch.testing.assert_close(pool(regions[:, order], mask[:, order]), found)


def test_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match="the regions are 10 wide; 4 heads do not divide"):
        AttentionPool(10, heads=4)


def test_a_model_with_an_attention_pool_rebuilds_and_learns():
    torch.manual_seed(0)
    model = build_model(
        image=TowerRecipe(name="resnet", options={"widths": [8, 16], "blocks": [1, 1]}),
        text=TowerRecipe(name="bert", options={"layers": 1, "width": 16, "heads": 2}),
        tokeniser=train_tokeniser(["no effusion"]),
        projection=ProjectionConfig(dim=8, image_pool="attention"),
    )
    again = build_from_config(model.config)
    again.load_state_dict(model.state_dict())
    images, mask = torch.randn(2, 1, 32, 32), torch.ones(2, 32, 32, dtype=torch.bool)
    first, second = model.eval().encode_image(images, mask), again.eval().encode_image(images, mask)
    assert torch.equal(first.pooled, second.pooled)
    model.train().encode_image(images, mask).pooled.square().sum().backward()
    assert all(p.grad is not None for p in model.image_pool.parameters())
    assert any(name.startswith("image_pool.") for name, _ in model.named_towers()["projection"])


def test_a_causal_report_tower_reads_from_left_to_right():
    tokeniser = train_tokeniser(["small left effusion no change heart"] * 9)
    tokens, mask = map(
        torch.from_numpy, tokeniser.encode([["small left effusion"], ["small left heart"]])
    )  # the third word differs
    for causal in (False, True):
        torch.manual_seed(0)
        options = {"layers": 2, "width": 32, "heads": 2, "causal": causal, "pooling": "last", "dropout": 0.0}
        tower = build_text_encoder("bert", options, tokeniser).eval()
        read = tower(tokens, mask)
        moved = (read.words[0, :2] - read.words[1, :2]).abs().max().item()
        assert (moved == 0.0) == causal
        assert not torch.allclose(read.pooled[0], read.pooled[1])  # the end token saw the third word
        again = rebuild_text_encoder("bert", tower.architecture).eval()
        again.load_state_dict(tower.state_dict())
        assert torch.equal(again(tokens, mask).pooled, read.pooled)
