"""A local causal language model that answers prompts: greedily, offline, running no code of its files."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from medvl.encoders.causal import load_causal
from medvl.errors import ConfigError

__all__ = ["LocalGenerator", "load_generator"]

_MAX_TOKENISER_BYTES = 2**26


class LocalGenerator:
    """Answers of a causal language model to prompts, the likeliest token at each step.

    Prompts of equal length are read together, so no padding touches an answer. Special tokens that a
    prompt spells are read as ordinary letters.

    Args:
        model: a transformers model with ``generate``.
        tokeniser: its fast tokeniser.
        digest: hash of weights, tokeniser and settings.
        max_new_tokens: of an answer.
        batch: prompts that are read together at most.
    """

    def __init__(
        self, model: Any, tokeniser: Tokenizer, *, digest: str, max_new_tokens: int = 96, batch: int = 16
    ) -> None:
        self.model, self.tokeniser, self.digest = model.eval(), tokeniser, digest
        self.max_new_tokens, self.batch = max_new_tokens, batch

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[str]) -> list[str]:
        """Return one answer for each prompt, in order.

        Raises:
            ConfigError: a prompt leaves no room for an answer in the model's positions.
        """
        by_length: defaultdict[int, list[tuple[int, list[int]]]] = defaultdict(list)
        for number, prompt in enumerate(prompts):
            ids = self._ids(prompt)
            by_length[len(ids)].append((number, ids))
        answers = [""] * len(prompts)
        for _, group in sorted(by_length.items()):
            for first in range(0, len(group), self.batch):
                part = group[first : first + self.batch]
                for (number, _), answer in zip(part, self._answers([ids for _, ids in part]), strict=True):
                    answers[number] = answer
        return answers

    def _ids(self, prompt: str) -> list[int]:
        words = prompt.encode("utf-8", "replace").decode()  # a lone surrogate has no bytes
        ids = self.tokeniser.encode(words, add_special_tokens=False).ids
        start = self.model.config.bos_token_id
        ids = ids if start is None else [start, *ids]
        room = getattr(self.model.config, "max_position_embeddings", None)
        if room and len(ids) + self.max_new_tokens > room:
            raise ConfigError(
                f"a prompt of {len(ids)} tokens and an answer of {self.max_new_tokens} are more than the "
                f"{room} positions of the model.",
                hint="Use a shorter prompt, or a model with more positions.",
            )
        return ids

    def _answers(self, prompts: list[list[int]]) -> list[str]:
        tokens = torch.tensor(prompts, device=self.model.device)
        torch.manual_seed(0)  # greedy decoding draws nothing; a model with noise of its own would
        made = self.model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            num_beams=1,
            use_cache=True,
            max_new_tokens=self.max_new_tokens,
        )
        return self.tokeniser.decode_batch(made[:, tokens.shape[1] :].tolist(), skip_special_tokens=True)


def load_generator(
    directory: Path, *, max_new_tokens: int = 96, batch: int = 16, device: str = "cpu"
) -> LocalGenerator:
    """Load a causal language model from a directory that ``save_pretrained`` wrote.

    Needed are ``config.json`` of a decoder family of :data:`~medvl.encoders.configs.FAMILIES`, safetensors
    weights and ``tokenizer.json``. Nothing is downloaded, and no code of the directory is run.

    Raises:
        ConfigError: a file is missing or damaged, or the family is not a known decoder.
    """
    model, _ = load_causal(directory, what="generator")
    tokeniser = _tokeniser(directory / "tokenizer.json")
    digest = _digest(directory, f"{max_new_tokens}")
    return LocalGenerator(
        model.to(device), tokeniser, digest=digest, max_new_tokens=max_new_tokens, batch=batch
    )


def _tokeniser(path: Path) -> Tokenizer:
    if not path.is_file() or path.stat().st_size > _MAX_TOKENISER_BYTES:
        raise ConfigError(
            "the generator's directory has no tokenizer.json of at most 64 MiB.",
            hint="Slow tokenizers must be converted to a tokenizer.json first.",
        )
    try:
        tokeniser = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises nothing narrower
        raise ConfigError("the generator's tokenizer.json is not a tokenizer.") from error
    tokeniser.no_padding()
    tokeniser.no_truncation()
    tokeniser.encode_special_tokens = True  # a special token that a report spells is only letters
    return tokeniser


def _digest(directory: Path, settings: str) -> str:
    state = hashlib.blake2b(settings.encode(), digest_size=16)
    names = ["config.json", "tokenizer.json", *sorted(path.name for path in directory.glob("*.safetensors"))]
    for name in names:
        state.update(f"{name}:{(directory / name).stat().st_size}:".encode())
        with (directory / name).open("rb") as stream:
            while block := stream.read(2**20):
                state.update(block)
    return state.hexdigest()
