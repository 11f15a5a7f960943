"""Latent attention pooling: the formula, what it does not see, and its way through a directory."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from medvl.encoders.configs import POOLING_FILE, READING_FILE, reading_of
from medvl.encoders.lora import LoraOptions, add_lora
from medvl.encoders.text import build_text_encoder, rebuild_text_encoder
from medvl.encoders.textpool import LatentPool
from medvl.errors import ConfigError
from medvl.tokens import train_tokeniser

REPORTS = [["small left effusion", "no change"], ["effusion"], []]
BERT = {"layers": 1, "width": 32, "heads": 4, "dropout": 0.0}


@pytest.fixture(scope="module")
def tokeniser():
    return train_tokeniser(["small left effusion no change"] * 3, max_tokens=24)


@pytest.fixture
def pool():
    torch.manual_seed(0)
    return LatentPool(16, latents=12, heads=4).eval()


def states(rows=3, tokens=6):
    return torch.randn(rows, tokens, 16, generator=torch.Generator().manual_seed(1))


def test_it_is_the_loop(pool):
    hidden = states()
    real = torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1]], dtype=torch.bool)
    wq, wk, wv = pool.attention.in_proj_weight.detach().chunk(3)
    keys, values = pool.latents.detach() @ wk.T, pool.latents.detach() @ wv.T
    out = pool(hidden, real).detach()
    for row in range(3):
        answers = []
        for token in torch.nonzero(real[row])[:, 0]:
            query = wq @ hidden[row, token]
            heads = []
            for part in range(4):
                cut = slice(4 * part, 4 * part + 4)
                scores = torch.softmax(keys[:, cut] @ query[cut] / math.sqrt(4), 0)
                heads.append(scores @ values[:, cut])
            answers.append(pool.mlp(pool.attention.out_proj(torch.cat(heads))))
        torch.testing.assert_close(out[row], torch.stack(answers).mean(0).detach(), atol=1e-6, rtol=1e-5)


def test_order_and_padding_mean_nothing(pool):
    hidden, real = states(1), torch.ones(1, 6, dtype=torch.bool)
    turned = hidden[:, torch.tensor([3, 0, 5, 1, 2, 4])]
    torch.testing.assert_close(pool(turned, real), pool(hidden, real), atol=1e-6, rtol=1e-5)
    padded = torch.cat([torch.full((1, 2, 16), 1e4), hidden], 1)
    mask = torch.cat([torch.zeros(1, 2, dtype=torch.bool), real], 1)
    torch.testing.assert_close(pool(padded, mask), pool(hidden, real), atol=1e-6, rtol=1e-5)


def test_equal_latents_say_one_thing(pool):
    with torch.no_grad():
        pool.latents.copy_(pool.latents[:1].expand_as(pool.latents))
    out = pool(states(), torch.ones(3, 6, dtype=torch.bool))
    torch.testing.assert_close(out, out[:1].expand_as(out), atol=1e-6, rtol=1e-5)


def test_texts_differ_at_the_start(pool):
    """With biases as large as what the tokens say, all texts would begin at one point."""
    torch.manual_seed(0)
    out = LatentPool(32)(torch.randn(8, 6, 32), torch.ones(8, 6, dtype=torch.bool)).detach()
    out = torch.nn.functional.normalize(out)
    assert float((out @ out.T - torch.eye(8)).max()) < 0.98


def test_a_width_without_eight_heads():
    with pytest.raises(ConfigError, match="has 8 heads, and the states are 20 wide"):
        LatentPool(20)


class TestTower:
    def inputs(self, tokeniser):
        tokens, mask = tokeniser.encode(REPORTS)
        return torch.from_numpy(tokens), torch.from_numpy(mask)

    def test_it_is_part_of_the_tower(self, tokeniser):
        encoder = build_text_encoder("bert", {**BERT, "pooling": "latent"}, tokeniser).eval()
        tokens, mask = self.inputs(tokeniser)
        expected = encoder.pooler(encoder.states(tokens, mask), mask != 0)
        torch.testing.assert_close(encoder(tokens, mask).pooled, expected)
        again = rebuild_text_encoder("bert", encoder.architecture).eval()
        again.load_state_dict(encoder.state_dict())
        assert torch.equal(again(tokens, mask).pooled, encoder(tokens, mask).pooled)

    def test_beside_adapters_it_trains_as_a_whole(self, tokeniser):
        encoder = build_text_encoder("bert", {**BERT, "pooling": "latent"}, tokeniser)
        add_lora(encoder, LoraOptions(rank=2))
        trained = {name for name, value in encoder.named_parameters() if value.requires_grad}
        assert all(name.startswith("pooler.") or ".lora_" in name for name in trained)
        assert {f"pooler.{name}" for name, _ in encoder.pooler.named_parameters()} <= trained
        encoder.set_policy("frozen")
        assert not any(value.requires_grad for value in encoder.parameters())

    def test_a_directory_says_how_it_reads(self, tokeniser, tmp_path):
        encoder = build_text_encoder("bert", {**BERT, "pooling": "latent"}, tokeniser).eval()
        encoder.model.save_pretrained(tmp_path)
        tokeniser.save(tmp_path)
        save_file(encoder.pooler.state_dict(), tmp_path / POOLING_FILE)
        (tmp_path / READING_FILE).write_text('{"pooling": "latent", "more": 1}')
        loaded = build_text_encoder("huggingface", {"path": str(tmp_path)}, tokeniser).eval()
        tokens, mask = self.inputs(tokeniser)
        torch.testing.assert_close(loaded(tokens, mask).pooled, encoder(tokens, mask).pooled)
        plain = build_text_encoder("huggingface", {"path": str(tmp_path), "pooling": "cls"}, tokeniser)
        assert plain.pooling == "cls" and plain.pooler is None

    def test_damage_is_told(self, tokeniser, tmp_path):
        encoder = build_text_encoder("bert", {**BERT, "pooling": "latent"}, tokeniser)
        encoder.model.save_pretrained(tmp_path)
        weights = {key: value[:3].contiguous() for key, value in encoder.pooler.state_dict().items()}
        save_file(weights, tmp_path / POOLING_FILE)
        assert load_file(tmp_path / POOLING_FILE)["latents"].shape == (3, 32)
        with pytest.raises(ConfigError, match=r"pooling.safetensors does not fit the model beside it"):
            build_text_encoder("huggingface", {"path": str(tmp_path), "pooling": "latent"}, tokeniser)
        (tmp_path / READING_FILE).write_text('{"pooling": "max"}')
        with pytest.raises(ConfigError, match=r"adapt.json does not say how the model reads: .*'max'"):
            reading_of(tmp_path)
