"""The choices of an adaptation: one frozen model, read from YAML by name or path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from medvl.config import read_config
from medvl.encoders.lora import LoraOptions
from medvl.encoders.textpool import Pooling
from medvl.errors import ConfigError, nearest

__all__ = [
    "AdaptOptions",
    "Causal",
    "Contrast",
    "Masked",
    "Scratch",
    "StageName",
    "Supervised",
    "load_adapt_options",
]

StageName = Literal["causal", "masked", "contrast", "supervised"]
_FROZEN = ConfigDict(frozen=True, extra="forbid")


class Scratch(BaseModel):
    """A small decoder with random layers and a tokeniser of its own.

    Attributes:
        family: ``qwen3``, ``llama``, ``mistral``, ``gemma``, ``phi3``…: a decoder of
            :data:`medvl.encoders.configs.FAMILIES`.
        layers, width, heads: of the transformer; ``width`` is a multiple of ``heads``.
        hidden: width of the feed-forward layers.
        vocab_size: most ids of the tokeniser, which is trained on the training reports.
        words: common English words that get an id besides. Above 0 every token starts as MiniLM's vector of
            its spelling (``width: 384``); 0 starts from random vectors.
    """

    model_config = _FROZEN
    family: str = "qwen3"
    layers: PositiveInt = 4
    width: PositiveInt = 256
    heads: PositiveInt = 4
    hidden: PositiveInt = 768
    vocab_size: PositiveInt = 6000
    words: int = Field(default=0, ge=0)


class _Stage(BaseModel):
    """What every stage has.

    Attributes:
        steps: optimiser steps; if None, ``epochs`` decides.
        epochs: passes over the training reports.
        batch: texts a step.
        lr, weight_decay: of AdamW.
        warmup: share of the steps over which the rate rises; a cosine falls to zero after it.
        clip: longest gradient; 0 is no limit.
        dropout: share of the numbers of the token vectors that a step drops.
    """

    model_config = _FROZEN
    steps: PositiveInt | None = None
    epochs: PositiveFloat = 1.0
    batch: PositiveInt = 32
    lr: PositiveFloat = 1e-4
    weight_decay: float = Field(default=0.01, ge=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    clip: float = Field(default=1.0, ge=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class Causal(_Stage):
    """Next-token prediction: makes a language model of random weights, or carries one on."""


class Masked(_Stage):
    """Masked next-token prediction with attention to both sides; ``rate`` of the tokens are hidden."""

    rate: float = Field(default=0.2, gt=0, le=1)


class Contrast(_Stage):
    """Unsupervised contrast: the same text twice, with other dropout."""

    batch: PositiveInt = 128
    lr: PositiveFloat = 3e-5
    dropout: float = Field(default=0.3, gt=0, lt=1)
    scale: PositiveFloat = 20.0


class Supervised(_Stage):
    """Contrast of two wordings of a report, with reports of one changed fact as hard negatives.

    Attributes:
        hard: hard negatives of each report in a step.
        window: a report of more sentences is also taught in parts of so many; None teaches it whole alone.
    """

    batch: PositiveInt = 64
    lr: PositiveFloat = 2e-4
    scale: PositiveFloat = 20.0
    hard: int = Field(default=1, ge=0, le=16)
    window: PositiveInt | None = None


class AdaptOptions(BaseModel):
    """Everything that decides what an adaptation computes.

    Attributes:
        model: a directory or hub name of a decoder; or None for ``scratch``.
        allow_download: without it a hub name is only looked up among the files already downloaded.
        scratch: the model to train from random weights where ``model`` is None.
        max_tokens: longest text; the rest of a longer one is cut.
        pooling: ``mean``, ``last`` (the end token), ``weighted``, ``latent`` or ``cls``.
        lora: adapters that train in the model's stead, merged after each stage; None trains all weights.
        stages: which run, in this order; ``causal`` is for a model from random weights.
        seed: of weights, order, dropout and hidden tokens.
        precision: ``32``; ``bf16-mixed``; or ``auto``, which is ``bf16-mixed`` where the processor multiplies
            it fast (a GPU, or a CPU with AMX) and ``32`` elsewhere.
        device: ``cpu``, ``cuda`` or ``auto``.
        every_steps: steps between two checkpoints.
        log_every: steps between two rows of the log.
    """

    model_config = _FROZEN
    model: str | None = None
    allow_download: bool = False
    scratch: Scratch = Scratch()
    max_tokens: PositiveInt = 384
    pooling: Pooling = "mean"
    lora: LoraOptions | None = None
    stages: tuple[StageName, ...] = ("causal", "masked", "contrast", "supervised")
    causal: Causal = Causal()
    masked: Masked = Masked()
    contrast: Contrast = Contrast()
    supervised: Supervised = Supervised()
    seed: int = Field(default=0, ge=0)
    precision: Literal["auto", "32", "bf16-mixed"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    every_steps: PositiveInt = 200
    log_every: PositiveInt = 10


def load_adapt_options(source: str | Path, overrides: Mapping[str, Any] | None = None) -> AdaptOptions:
    """Return the options of a YAML file, or of a named one beside this module.

    Args:
        source: ``small`` or another name of :func:`named_options`, or the path of a ``.yaml`` file.
        overrides: values by dotted key, such as ``{"supervised.epochs": 2}``.

    Raises:
        ConfigError: no such name or file, an unknown key, or a value that does not fit.

    Examples:
        >>> load_adapt_options("small", {"supervised.epochs": 2}).supervised.epochs
        2.0
    """
    named = {path.stem: path for path in Path(__file__).parent.glob("*.yaml")}
    path = Path(source)
    if path.suffix not in (".yaml", ".yml", ".json"):
        if str(source) not in named:
            raise ConfigError(f"unknown adaptation '{source}'.", hint=nearest(str(source), named))
        path = named[str(source)]
    values = read_config(path)
    if not isinstance(values, dict):
        raise ConfigError(f"an adaptation is a mapping, got {type(values).__name__}.")
    for key, value in (overrides or {}).items():
        inner = values
        *above, last = key.split(".")
        for part in above:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"option '{key}': '{part}' holds a value, not options.")
        inner[last] = value
    try:
        return AdaptOptions.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        fields = AdaptOptions.model_fields
        hint = nearest(where, fields) if first["type"] == "extra_forbidden" and "." not in where else ""
        raise ConfigError(f"option {where} is {first['input']!r}: {first['msg']}.", hint=hint) from error
