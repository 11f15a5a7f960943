"""Decoders with their language head: from a directory of safetensors, or with random weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from medvl.encoders.configs import FAMILIES, attention_path, check_config, configured, read_config
from medvl.errors import ConfigError, nearest

__all__ = ["DECODERS", "build_causal", "decoder_config", "load_causal", "no_bars"]

DECODERS = tuple(family for family, kind in FAMILIES.items() if kind == "decoder")


def load_causal(
    directory: Path, *, bidirectional: bool = False, what: str = "model"
) -> tuple[Any, dict[str, Any]]:
    """Return a causal language model and its allowed configuration; no code of the directory is run.

    Args:
        directory: with ``config.json`` of a decoder family and safetensors.
        bidirectional: let tokens see later ones too.
        what: how a message calls it.

    Raises:
        ConfigError: a file is missing or damaged, or the family is not a known decoder.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    config = decoder_config(directory)
    made = configured(config, bidirectional=bidirectional)
    try:
        with no_bars():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                directory,
                config=made,
                attn_implementation=attention_path(made),
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            f"the {what}'s weights cannot be read; allowed is a whole model.safetensors.",
            hint="Convert .bin or .pt weights to safetensors with transformers first.",
        ) from error
    model, report = loaded
    wrong = sorted(str(key) for kind in report.values() for key in kind)
    if wrong:
        raise ConfigError(
            f"{len(wrong)} tensors of the {what} do not match its config.json, first '{wrong[0]}'.",
            hint="config.json belongs to other weights, or they have no language head.",
        )
    return model, config


def decoder_config(directory: Path) -> dict[str, Any]:
    """Return the allowed configuration of a directory with a decoder.

    Raises:
        ConfigError: see :func:`~medvl.encoders.configs.read_config`; or the family is not a known decoder.
    """
    config = read_config(directory)
    _require_decoder(config)
    return config


def build_causal(config: Mapping[str, Any], *, bidirectional: bool = False) -> Any:
    """Return a causal language model with random weights.

    Raises:
        ConfigError: see :func:`~medvl.encoders.configs.check_config`; no decoder, or values that do not fit.
    """
    from transformers import AutoModelForCausalLM

    checked = check_config(config)
    _require_decoder(checked)
    made = configured(checked, bidirectional=bidirectional)
    try:
        return AutoModelForCausalLM.from_config(made, attn_implementation=attention_path(made))
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"no '{checked['model_type']}' model has these values: {error}") from error


def _require_decoder(config: Mapping[str, Any]) -> None:
    if config["model_type"] not in DECODERS:
        raise ConfigError(
            f"a '{config['model_type']}' model writes no text.", hint=nearest(config["model_type"], DECODERS)
        )


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Keep transformers from drawing bars and from logging what is checked anyway."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
