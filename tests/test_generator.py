"""The local generator, on a tiny random model that the test saves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel

from medvl.encoders.generator import load_generator
from medvl.errors import ConfigError

PROMPTS = ["No effusion.", "A nodule in the left lung.", "No edema.ab", "x"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A GPT-2 of one layer over bytes, random weights, with one special token."""
    folder = tmp_path_factory.mktemp("model")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokeniser = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokeniser.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokeniser.decoder = decoders.ByteLevel()
    tokeniser.add_special_tokens(["<|end|>"])
    tokeniser.save(str(folder / "tokenizer.json"))
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=257, n_positions=128, n_embd=16, n_layer=1, n_head=2, bos_token_id=256, eos_token_id=256
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def greedy(folder: Path, prompt: str, steps: int) -> str:
    """The definition: the likeliest next token, one at a time, on the whole sequence."""
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    tokeniser = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [256, *tokeniser.encode(prompt).ids]
    made: list[int] = []
    with torch.inference_mode():
        for _ in range(steps):
            best = int(model(torch.tensor([ids + made])).logits[0, -1].argmax())
            if best == 256:
                break
            made.append(best)
    return tokeniser.decode(made)


def test_answers_are_those_of_stepwise_greedy_decoding_in_any_company(saved):
    generator = load_generator(saved, max_new_tokens=8, batch=2)
    together = generator(PROMPTS)
    assert together == [greedy(saved, prompt, 8) for prompt in PROMPTS]
    assert together == [generator([prompt])[0] for prompt in PROMPTS]
    assert generator([]) == []


def test_a_special_token_that_a_prompt_spells_is_letters(saved):
    generator = load_generator(saved, max_new_tokens=4)
    assert 256 not in generator._ids("No <|end|> effusion")[1:]
    assert generator(["lone \ud800 surrogate"])[0] == generator(["lone ? surrogate"])[0]


def test_the_digest_follows_weights_and_settings(saved, tmp_path):
    first = load_generator(saved, max_new_tokens=8).digest
    assert first == load_generator(saved, max_new_tokens=8).digest
    assert first != load_generator(saved, max_new_tokens=9).digest
    other = copied(saved, tmp_path)
    weights = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert first != load_generator(other, max_new_tokens=8).digest


def copied(saved: Path, tmp_path: Path) -> Path:
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_a_prompt_without_room_for_an_answer_is_refused(saved):
    with pytest.raises(ConfigError, match=r"prompt of 101 tokens and an answer of 96 .* 128 positions"):
        load_generator(saved)(["x" * 100])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "a 'bert' model writes no text.*gpt2"),
        ({"model_type": "gpt9"}, "unknown model_type 'gpt9'"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "key 'auto_map', which names code"),
        ({"n_embd": 32}, "do not match its config.json|cannot be read"),
    ],
)
def test_a_foreign_configuration_is_refused(saved, tmp_path, change, message):
    folder = copied(saved, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ConfigError, match=message):
        load_generator(folder)


def test_missing_and_damaged_files_are_refused(saved, tmp_path):
    folder = copied(saved, tmp_path)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer\.json is not a tokenizer"):
        load_generator(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"no tokenizer\.json of at most 64 MiB"):
        load_generator(folder)
    folder = copied(saved, tmp_path)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])
    with pytest.raises(ConfigError, match=r"whole model\.safetensors"):
        load_generator(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"whole model\.safetensors"):
        load_generator(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"no config\.json of at most 1 MiB"):
        load_generator(folder)
