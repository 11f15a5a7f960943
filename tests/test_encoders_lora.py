"""Adapters and freezing: equal at the start, alone in training, folded away exactly."""

import copy

import pytest
import torch

from medvl.encoders.image import build_image_encoder
from medvl.encoders.lora import LoraOptions, add_lora, merge_lora
from medvl.encoders.text import build_text_encoder
from medvl.errors import ConfigError
from medvl.tokens import train_tokeniser

TEXTS = [["small left effusion", "no change"], ["normal heart"]]


@pytest.fixture(scope="module")
def tokeniser():
    return train_tokeniser([line for text in TEXTS for line in text], max_tokens=32)


def text_case(tokeniser):
    torch.manual_seed(0)
    encoder = build_text_encoder("bert", {"layers": 2, "width": 32, "dropout": 0.0}, tokeniser)
    tokens, mask = tokeniser.encode(TEXTS)
    return encoder, (torch.from_numpy(tokens), torch.from_numpy(mask)), "all-linear"


def image_case(_tokeniser):
    torch.manual_seed(0)
    encoder = build_image_encoder("resnet", {"widths": [8, 16], "blocks": [1, 1]})
    return encoder, (torch.randn(2, 1, 32, 32), torch.ones(2, 32, 32, dtype=torch.bool)), "all-conv"


def trained(encoder, inputs, steps=3):
    """Take a few steps that move everything which may move."""
    optimiser = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=0.1)
    encoder.train()
    for _ in range(steps):
        optimiser.zero_grad()
        features = encoder(*inputs)
        (features.pooled - 1).square().mean().backward()
        optimiser.step()
    return encoder.eval()


@pytest.mark.parametrize("case", [text_case, image_case])
class TestAdapters:
    def test_bit_equal_at_the_start(self, case, tokeniser):
        encoder, inputs, targets = case(tokeniser)
        before = encoder.eval()(*inputs).pooled
        after = add_lora(encoder, LoraOptions(rank=2, targets=targets)).eval()(*inputs).pooled
        assert torch.equal(before, after)

    def test_only_adapters_train_and_nothing_else_moves(self, case, tokeniser):
        encoder, inputs, targets = case(tokeniser)
        add_lora(encoder, LoraOptions(rank=2, targets=targets))
        trainable = {name for name, value in encoder.named_parameters() if value.requires_grad}
        assert trainable and all(".lora_" in name for name in trainable)
        before = {name: value.clone() for name, value in encoder.state_dict().items()}
        output = encoder.eval()(*inputs).pooled
        trained(encoder, inputs)
        moved = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}
        # Running statistics of batch normalisation are state too: they must stand still.
        assert moved and all(".lora_" in name for name in moved)
        assert not torch.equal(output, encoder(*inputs).pooled)

    def test_merged_equals_unmerged(self, case, tokeniser):
        encoder, inputs, targets = case(tokeniser)
        names = set(encoder.state_dict())
        add_lora(encoder, LoraOptions(rank=2, alpha=8, targets=targets))
        trained(encoder, inputs)
        unmerged = encoder(*inputs)
        merged = merge_lora(copy.deepcopy(encoder)).eval()
        assert set(merged.state_dict()) == names and merged.lora is None
        torch.testing.assert_close(merged(*inputs).pooled, unmerged.pooled, atol=1e-5, rtol=1e-5)

    def test_a_frozen_tower_never_leaves_eval_mode(self, case, tokeniser):
        encoder, inputs, _ = case(tokeniser)
        encoder.set_policy("frozen")
        before = {name: value.clone() for name, value in encoder.state_dict().items()}
        torch.nn.Sequential(encoder).train()
        encoder(*inputs)
        assert not any(module.training for module in encoder.modules())
        assert not any(value.requires_grad for value in encoder.parameters())
        assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
        encoder.set_policy("full").train()
        assert all(module.training for module in encoder.modules())
        assert all(value.requires_grad for value in encoder.parameters())


def test_an_adapter_is_rank_times_both_widths(tokeniser):
    encoder, _, _ = text_case(tokeniser)
    add_lora(encoder, LoraOptions(rank=3, targets=("*.query", "*.value")))
    count = sum(value.numel() for value in encoder.parameters() if value.requires_grad)
    assert count == 2 * 2 * 3 * (32 + 32)  # 2 layers, 2 matrices each, r (d_in + d_out)


def test_the_adapter_is_the_formula(tokeniser):
    encoder, _, _ = text_case(tokeniser)
    add_lora(encoder, LoraOptions(rank=2, alpha=5, targets="*.query"))
    layer = next(
        module for name, module in encoder.named_modules() if name.endswith("0.attention.self.query")
    )
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.nn.init.normal_(b)
    x = torch.randn(4, 32)
    expected = x @ layer.base_layer.weight.T + layer.base_layer.bias + 5 / 2 * (x @ a.T @ b.T)
    torch.testing.assert_close(layer(x), expected)


def test_a_convolution_that_pads_itself_gets_no_adapter():
    pytest.importorskip("efficientnet_lite_pytorch")
    encoder = build_image_encoder("efficientnet_lite0", {"pretrained": False})
    images, mask = torch.randn(1, 3, 32, 32), torch.ones(1, 32, 32, dtype=torch.bool)
    before = encoder.eval()(images, mask).pooled
    add_lora(encoder, LoraOptions(targets="all-conv"))
    assert torch.equal(encoder.eval()(images, mask).pooled, before)
    # 1×1 convolutions: 16 projections, 15 expansions (the first block has none) and the head
    adapted = [name for name, _ in encoder.named_modules() if name.endswith("lora_A")]
    assert len(adapted) == 16 + 15 + 1


def test_refusals(tokeniser):
    encoder, _, _ = text_case(tokeniser)
    with pytest.raises(ConfigError, match="policy of encoder 'bert' is 'lora', but it has no adapters"):
        encoder.set_policy("lora")
    with pytest.raises(ConfigError, match=r"unknown training policy 'frosen'.*Did you mean 'frozen'"):
        encoder.set_policy("frosen")
    with pytest.raises(ConfigError, match="no layer of encoder 'bert' matches the targets 'all-conv'"):
        add_lora(encoder, LoraOptions(targets="all-conv"))
    with pytest.raises(ConfigError, match=r"matches the targets '\*\.qkv'"):
        add_lora(encoder, LoraOptions(targets=("*.qkv",)))
    with pytest.raises(ConfigError, match="encoder 'bert' has no adapters to merge"):
        merge_lora(encoder)
    add_lora(encoder)
    with pytest.raises(ConfigError, match="encoder 'bert' has adapters already"):
        add_lora(encoder)


class TestDora:
    def test_at_the_start_it_changes_nothing_and_merged_it_is_exact(self, tokeniser):
        encoder, inputs, _ = text_case(tokeniser)
        before = encoder.eval()(*inputs).pooled
        names = set(encoder.state_dict())
        add_lora(encoder, LoraOptions(rank=2, alpha=8, dora=True))
        # m = ‖W‖ at first, and dividing by it again rounds
        torch.testing.assert_close(encoder.eval()(*inputs).pooled, before, atol=1e-5, rtol=1e-5)
        trained(encoder, inputs)
        unmerged = encoder(*inputs).pooled
        assert not torch.allclose(unmerged, before, atol=1e-3)
        merged = merge_lora(copy.deepcopy(encoder)).eval()
        assert set(merged.state_dict()) == names
        torch.testing.assert_close(merged(*inputs).pooled, unmerged, atol=1e-5, rtol=1e-5)

    def test_it_is_the_formula(self, tokeniser):
        encoder, _, _ = text_case(tokeniser)
        add_lora(encoder, LoraOptions(rank=2, alpha=5, targets="*.query", dora=True))
        layer = next(m for name, m in encoder.named_modules() if name.endswith("0.attention.self.query"))
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        m = layer.lora_magnitude_vector["default"].weight
        torch.testing.assert_close(m, layer.base_layer.weight.norm(dim=1))
        torch.nn.init.normal_(b)
        torch.nn.init.uniform_(m, 0.5, 2.0)
        x = torch.randn(4, 32)
        v = layer.base_layer.weight + 5 / 2 * b @ a
        expected = x @ (m[:, None] * v / v.norm(dim=1, keepdim=True)).T + layer.base_layer.bias
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)
        # r (d_in + d_out) and one length for each output, in 2 layers
        count = sum(value.numel() for value in encoder.parameters() if value.requires_grad)
        assert count == 2 * (2 * (32 + 32) + 32)
