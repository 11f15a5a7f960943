"""A decoder in training: tower, language head and tokeniser, in and out of a directory."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medvl.encoders.causal import build_causal, load_causal, no_bars
from medvl.encoders.configs import POOLING_FILE, READING_FILE, allowed_keys, check_config, load_pooling
from medvl.encoders.saving import save_tensors
from medvl.encoders.text import TextTower, text_tower
from medvl.errors import ConfigError
from medvl.language.options import Scratch
from medvl.language.wordvectors import common_words, word_vectors
from medvl.tokens import ReportTokeniser, train_tokeniser

__all__ = ["Decoder", "dropout", "from_scratch", "load_decoder", "save_decoder"]

_OUTPUTS = tuple(
    f".{name}.weight" for name in ("o_proj", "down_proj", "c_proj", "dense", "fc2", "out_proj")
)  # what a layer adds to a token's state, as the families call it
_MASKS = ("[MASK]", "<mask>", "_", "▁_", "Ġ_")


@dataclass(frozen=True, eq=False)
class Decoder:
    """A causal language model seen as a text encoder.

    Attributes:
        lm: the transformers model; ``tower`` holds its backbone, so both have the same weights.
        tower: reads.
        tokeniser: words to ids.
        bidirectional: whether its tokens see later ones.
    """

    lm: Any
    tower: TextTower
    tokeniser: ReportTokeniser
    bidirectional: bool

    @property
    def head(self) -> nn.Module:
        """The language head: states to logits."""
        head: nn.Module = self.lm.get_output_embeddings()
        return head

    @property
    def mask_id(self) -> int:
        """The id that hides a token: the tokeniser's mask token, else ``_`` as in LLM2Vec.

        Raises:
            ConfigError: the tokeniser has neither.
        """
        found = self.tokeniser.token_id(*_MASKS)
        if found is None:
            raise ConfigError(
                "the tokeniser has no token that can hide another.",
                hint=f"One of these is needed: {', '.join(_MASKS)}. Or leave out the stage 'masked'.",
            )
        return found

    def logits(self, states: Float[Tensor, "places width"]) -> Float[Tensor, "places vocab"]:
        """Return the head's logits in float32, softly capped where the family does so (Gemma 2)."""
        logits = self.head(states.to(next(self.head.parameters()).dtype)).float()
        cap = getattr(self.lm.config, "final_logit_softcapping", None)
        return cap * torch.tanh(logits / cap) if cap else logits


def from_scratch(texts: Iterable[str], *, shape: Scratch, max_tokens: int) -> Decoder:
    """Return a causal decoder with random weights and a tokeniser trained on ``texts``.

    With ``shape.words`` its tokens start as word vectors, and its layers add nothing to them yet: it begins
    as a bag of words that knows which words are alike. Its head then has weights of its own.

    Raises:
        ConfigError: ``width`` is no multiple of ``heads``, or not that of the word vectors; or the family is
            no decoder.
        MissingDependency: word vectors are wanted, and the extra ``starter`` is not installed.
    """
    if shape.width % shape.heads:
        raise ConfigError(f"width is {shape.width}; allowed are multiples of heads, {shape.heads}.")
    words = common_words(shape.words) if shape.words else ()
    tokeniser = train_tokeniser(texts, vocab_size=shape.vocab_size, words=words, max_tokens=max_tokens)
    names = {
        "hidden_size": shape.width,
        "n_embd": shape.width,
        "num_hidden_layers": shape.layers,
        "n_layer": shape.layers,
        "num_attention_heads": shape.heads,
        "n_head": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.width // shape.heads,
        "intermediate_size": shape.hidden,
        "n_inner": shape.hidden,
        "max_position_embeddings": max_tokens,
        "n_positions": max_tokens,
        "sliding_window": max_tokens,
        "layer_types": None,
        "vocab_size": tokeniser.vocab_size,
        # A state that is its token's own vector would, read by the same vectors, say that token again.
        "tie_word_embeddings": not shape.words,
        "pad_token_id": tokeniser.pad_id,
        "bos_token_id": tokeniser.token_id("[CLS]"),
        "eos_token_id": tokeniser.token_id("[SEP]"),
    }
    check_config({"model_type": shape.family})
    known = allowed_keys(shape.family)
    # Only Gemma's layers need a window; for the others none is the plain case.
    if not shape.family.startswith("gemma"):
        del names["sliding_window"]
    if "sliding_window" in known and "sliding_window" not in names:
        names["sliding_window"] = None
    config = {"model_type": shape.family, **{key: value for key, value in names.items() if key in known}}
    if shape.family == "gpt2":
        for alias in ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"):
            config.pop(alias, None)
    lm = build_causal(config)
    if shape.words:
        embedding = lm.get_input_embeddings().weight
        with torch.no_grad():
            embedding.copy_(word_vectors(tokeniser, width=shape.width))
            for name, value in lm.base_model.named_parameters():
                if name.endswith(_OUTPUTS):
                    value.zero_()
    return _decoder(lm, config, tokeniser, pooling="mean", bidirectional=False)


def load_decoder(directory: Path, *, max_tokens: int, pooling: str, bidirectional: bool) -> Decoder:
    """Load a decoder with its head and tokeniser; a latent pooling where the directory has one.

    Raises:
        ConfigError: see :func:`medvl.encoders.causal.load_causal`.
        CheckpointError: there is no tokenizer.json.
    """
    tokeniser = ReportTokeniser.from_directory(directory, max_tokens=max_tokens)
    lm, config = load_causal(directory, bidirectional=bidirectional)
    decoder = _decoder(lm, config, tokeniser, pooling=pooling, bidirectional=bidirectional)
    if decoder.tower.pooler is not None:
        load_pooling(decoder.tower.pooler, directory)
    return decoder


def _decoder(
    lm: Any, config: Mapping[str, Any], tokeniser: ReportTokeniser, *, pooling: str, bidirectional: bool
) -> Decoder:
    architecture = {
        "config": dict(config),
        "pooling": pooling,
        "word_weights": False,
        "bidirectional": bidirectional,
        "dtype": "float32",
    }
    tower = text_tower("huggingface", lm.base_model, architecture, tokeniser)
    return Decoder(lm, tower, tokeniser, bidirectional)


def save_decoder(decoder: Decoder, folder: Path, *, record: Mapping[str, Any]) -> None:
    """Write a directory that the text encoder ``huggingface`` loads.

    Args:
        decoder: without adapters.
        folder: an existing one.
        record: more values for ``adapt.json``.
    """
    with no_bars():
        decoder.lm.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    decoder.tokeniser.save(folder)
    if decoder.tower.pooler is not None:
        weights = {key: value.contiguous() for key, value in decoder.tower.pooler.state_dict().items()}
        save_tensors(weights, folder / POOLING_FILE)
    values = {"pooling": decoder.tower.pooling, "bidirectional": decoder.bidirectional, **record}
    (folder / READING_FILE).write_text(json.dumps(values, indent=1, sort_keys=True), "utf-8")


@contextlib.contextmanager
def dropout(model: nn.Module, probability: float) -> Iterator[None]:
    """Drop this share of the numbers of the token vectors that enter a model while it trains; nothing else.

    The same in every family, and attention keeps its fast kernel, which has no dropout on a CPU. Two passes
    must really differ, or SimCSE compares a vector with itself.
    """
    before: list[tuple[nn.Module, str, float]] = []
    for name, module in model.named_modules():
        if ".lora_" in name:
            continue
        for key in ("p", "attention_dropout", "dropout"):
            value = getattr(module, key, None)
            if isinstance(value, float) and (key != "p" or isinstance(module, nn.Dropout)):
                before.append((module, key, value))
                setattr(module, key, 0.0)
    embedding: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    hook = embedding.register_forward_hook(
        lambda module, _, vectors: nn.functional.dropout(vectors, probability, module.training)
    )
    try:
        yield
    finally:
        hook.remove()
        for module, key, value in before:
            setattr(module, key, value)
