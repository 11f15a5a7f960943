"""LLM2CLIP: the adaptor's formula, cached states equal to live ones, and a cache that knows its model."""

import pytest
import torch
import torch.nn.functional as F

from medvl.encoders.configs import build_backbone
from medvl.encoders.llm2clip import Adaptor, StateCache, fill_cache
from medvl.encoders.lora import LoraOptions, add_lora, merge_lora
from medvl.encoders.text import build_text_encoder, rebuild_text_encoder
from medvl.errors import ConfigError, DigestMismatch
from medvl.tokens import train_tokeniser

REPORTS = [["small left effusion", "no change"], ["effusion"], [], ["effusion"], ["no change on the left"]]
CONFIG = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "attention_dropout": 0.5,
}


@pytest.fixture(scope="module")
def tokeniser():
    return train_tokeniser(["small left effusion no change on the"] * 3, max_tokens=24)


@pytest.fixture(scope="module")
def directory(tokeniser, tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("llm")
    config = {**CONFIG, "vocab_size": tokeniser.vocab_size}
    build_backbone(config, eager=False, bidirectional=True, dtype="float32").save_pretrained(path)
    tokeniser.save(path)
    return path


def build(directory, tokeniser, **options):
    torch.manual_seed(1)
    return build_text_encoder("llm2clip", {"path": str(directory), **options}, tokeniser)


def inputs(tokeniser, reports=REPORTS):
    return tuple(torch.from_numpy(part) for part in tokeniser.encode(reports))


def moved(tower):
    """Move the adaptor off its start, where its blocks are the identity."""
    with torch.no_grad():
        for value in tower.adaptor.parameters():
            value += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel()))
    return tower


class TestAdaptor:
    def test_it_starts_as_the_identity(self):
        x = torch.randn(3, 32)
        # LN of a unit vector: nothing else is left while W₂ = 0
        torch.testing.assert_close(Adaptor(32)(x), F.layer_norm(F.normalize(x, dim=1), (32,)))
        torch.testing.assert_close(Adaptor(32)(5 * x), Adaptor(32)(x), atol=1e-5, rtol=1e-4)

    def test_its_size(self):
        # 16 d² matrices at depth 4, expansion 2; per block LN 2d, biases 2d + d; the last LN 2d
        count = sum(value.numel() for value in Adaptor(32).parameters())
        assert count == 16 * 32**2 + 4 * (2 * 32 + 2 * 32 + 32) + 2 * 32
        assert sum(value.numel() for value in Adaptor(8, depth=1, expansion=3).parameters()) == (
            2 * 3 * 8**2 + (16 + 24 + 8) + 16
        )

    def test_it_is_the_formula(self):
        torch.manual_seed(0)
        adaptor = Adaptor(8, depth=2, expansion=3)
        with torch.no_grad():
            for value in adaptor.parameters():
                value += torch.randn_like(value)
        x = torch.randn(8)
        y = x / x.norm()
        for norm, first, _, second in adaptor.blocks:
            z = (y - y.mean()) / (y.var(unbiased=False) + 1e-5).sqrt() * norm.weight + norm.bias
            z = first.weight @ z + first.bias
            z = 0.5 * z * (1 + torch.erf(z / 2**0.5))
            y = y + second.weight @ z + second.bias
        last = (y - y.mean()) / (
            y.var(unbiased=False) + 1e-5
        ).sqrt() * adaptor.norm.weight + adaptor.norm.bias
        torch.testing.assert_close(adaptor(x), last, atol=1e-5, rtol=1e-4)


class TestCache:
    def test_cached_is_live(self, directory, tokeniser):
        cached = moved(build(directory, tokeniser))
        live = moved(build(directory, tokeniser, cache=False))
        tokens, mask = inputs(tokeniser)
        expected = live(tokens, mask)
        for passing in range(2):  # computed, then read
            for mode in (True, False):
                features = cached.train(mode)(tokens, mask)
                for name in ("pooled", "words", "sentences"):
                    torch.testing.assert_close(
                        getattr(features, name), getattr(expected, name), atol=1e-5, rtol=1e-5
                    )
            assert len(cached.cache.states) == 4, passing  # distinct texts
        left = torch.cat([torch.zeros(5, 3, dtype=torch.int64), tokens], 1)
        padded = cached(left, torch.cat([torch.zeros(5, 3, dtype=torch.int64), mask], 1))
        torch.testing.assert_close(padded.pooled, expected.pooled, atol=1e-5, rtol=1e-5)
        assert len(cached.cache.states) == 4  # padding is no part of a text's name

    def test_a_known_text_is_not_read_again(self, directory, tokeniser):
        tower = build(directory, tokeniser)
        before = tower(*inputs(tokeniser)).pooled
        with torch.no_grad():
            for value in tower.model.parameters():
                value.fill_(float("nan"))
        assert torch.equal(tower(*inputs(tokeniser, REPORTS[:3])).pooled, before[:3])
        assert tower(*inputs(tokeniser, [["no effusion"]])).pooled.isnan().all()

    def test_a_step_in_half_precision_keeps_whole_states(self, directory, tokeniser):
        tower, live = build(directory, tokeniser), build(directory, tokeniser, cache=False)
        tokens, mask = inputs(tokeniser)
        with torch.autocast("cpu", torch.bfloat16):
            tower(tokens, mask)
        torch.testing.assert_close(
            tower.states(tokens, mask), live.states(tokens, mask), atol=1e-5, rtol=1e-5
        )

    def test_a_file_of_states(self, directory, tokeniser, tmp_path):
        path = tmp_path / "states.safetensors"
        tower = build(directory, tokeniser)
        said = []
        count = fill_cache(
            tower, REPORTS, path, tokeniser=tokeniser, batch=3, progress=lambda *step: said.append(step)
        )
        assert count == 4 and said[-1] == (4, 4, "reading texts")
        again = build(directory, tokeniser, cache_file=str(path))
        assert set(again.cache.states) == set(tower.cache.states)
        tokens, mask = inputs(tokeniser)
        assert torch.equal(again(tokens, mask).pooled, tower(tokens, mask).pooled)
        assert not list(tmp_path.glob(".*.tmp"))

    def test_states_of_another_reading_are_refused(self, directory, tokeniser, tmp_path):
        path = tmp_path / "states.safetensors"
        fill_cache(build(directory, tokeniser), REPORTS, path, tokeniser=tokeniser)
        longer = type(tokeniser).from_directory(directory, max_tokens=30)
        for options, reader in (
            ({"pooling": "last"}, tokeniser),
            ({"bidirectional": False}, tokeniser),
            ({}, longer),
        ):
            with pytest.raises(
                DigestMismatch, match=r"cached states' digest is [0-9a-f]{32}, but .*Fill it again"
            ):
                build(directory, reader, cache_file=str(path), **options)
        for name in ("none", "damaged"):
            (tmp_path / "damaged").write_bytes(b"x")
            with pytest.raises(ConfigError, match="'cache_file' is no file of hidden states"):
                build(directory, tokeniser, cache_file=str(tmp_path / name))
        with pytest.raises(ConfigError, match=r"keeps no states\. Build it with cache: true"):
            fill_cache(build(directory, tokeniser, cache=False), REPORTS, path, tokeniser=tokeniser)

    def test_loading_other_weights_forgets_the_states(self, directory, tokeniser):
        tower = build(directory, tokeniser)
        tower(*inputs(tokeniser))
        state = {name: value.clone() for name, value in tower.state_dict().items()}
        state["adaptor.norm.weight"] += 1
        tower.load_state_dict(state)
        assert isinstance(tower.cache, StateCache)
        state["model.norm.weight"] += 1
        tower.load_state_dict(state)
        assert tower.cache is None


class TestPolicies:
    def test_the_model_rests_and_the_adaptor_trains(self, directory, tokeniser):
        tower = build(directory, tokeniser)
        assert {name for name, value in tower.named_parameters() if value.requires_grad} == {
            f"adaptor.{name}" for name, _ in tower.adaptor.named_parameters()
        }
        assert not tower.train().model.training and tower.adaptor.training
        tower.set_policy("frozen")
        assert not any(value.requires_grad for value in tower.parameters())

    def test_with_adapters_the_model_is_read_live(self, directory, tokeniser):
        tower = build(directory, tokeniser)
        tokens, mask = inputs(tokeniser)
        before = tower.eval()(tokens, mask).pooled
        add_lora(tower, LoraOptions(rank=2))
        torch.testing.assert_close(tower.eval()(tokens, mask).pooled, before, atol=1e-5, rtol=1e-5)
        tower.train()
        tower(tokens, mask).pooled[:, 0].sum().backward()
        grads = {name for name, value in tower.named_parameters() if value.grad is not None}
        assert any(".lora_B" in name and name.startswith("model.") for name in grads)
        assert any(name.startswith("adaptor.") for name in grads)
        assert not any(".lora_" in name for name in grads if name.startswith("adaptor."))
        with torch.no_grad():
            for name, value in tower.named_parameters():
                if ".lora_B" in name:
                    value += 0.1
        adapted = tower.eval()(tokens, mask).pooled
        assert not torch.allclose(adapted, before, atol=1e-4)
        merged = merge_lora(tower).eval()
        # The merged model is another one: its old states must not be read.
        torch.testing.assert_close(merged(tokens, mask).pooled, adapted, atol=1e-5, rtol=1e-4)

    def test_rebuilt_it_is_the_same(self, directory, tokeniser):
        tower = moved(build(directory, tokeniser, depth=2, expansion=1)).eval()
        again = rebuild_text_encoder("llm2clip", tower.architecture).eval()
        again.load_state_dict(tower.state_dict())
        assert again.cache is None and again.architecture == tower.architecture
        tokens, mask = inputs(tokeniser)
        torch.testing.assert_close(
            again(tokens, mask).pooled, tower(tokens, mask).pooled, atol=1e-5, rtol=1e-5
        )
        with pytest.raises(ConfigError, match="text encoder 'llm2clip': adaptor"):
            rebuild_text_encoder("llm2clip", {**tower.architecture, "adaptor": {"depth": 99, "expansion": 1}})
