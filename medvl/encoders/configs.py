"""transformers models from plain values: which families and keys are allowed, and strict loading."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from medvl.config import parse_json
from medvl.encoders.textpool import Pooling
from medvl.errors import ConfigError, nearest

__all__ = [
    "FAMILIES",
    "POOLING_FILE",
    "READING_FILE",
    "Dtype",
    "Reading",
    "allowed_keys",
    "attention_path",
    "build_backbone",
    "check_config",
    "configured",
    "load_backbone",
    "load_pooling",
    "model_directory",
    "position_offset",
    "read_config",
    "reading_of",
]

Dtype = Literal["float32", "bfloat16"]
READING_FILE, POOLING_FILE = "adapt.json", "pooling.safetensors"

FAMILIES: dict[str, str] = {
    "bert": "encoder",
    "camembert": "encoder",
    "distilbert": "encoder",
    "electra": "encoder",
    "modernbert": "encoder",
    "roberta": "encoder",
    "xlm-roberta": "encoder",
    "biogpt": "decoder",
    "gemma": "decoder",
    "gemma2": "decoder",
    "gemma3_text": "decoder",
    "gpt2": "decoder",
    "llama": "decoder",
    "mistral": "decoder",
    "phi": "decoder",
    "phi3": "decoder",
    "qwen2": "decoder",
    "qwen3": "decoder",
}
"""Model types that are proven here: padding on either side changes nothing, rebuilding is exact."""

_MAX_CONFIG_BYTES = 2**20
# Fields that name code or only describe a file; none of them changes the arithmetic.
_IGNORED = {
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "gradient_checkpointing",
    "id2label",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    "use_cache",
}
_REFUSED = {
    "auto_map",
    "trust_remote_code",
    "custom_pipelines",
    "quantization_config",
    "_attn_implementation_internal",
    "_attn_implementation",
    "attn_implementation",
    "_experts_implementation_internal",
    "_experts_implementation",
    "experts_implementation",
}
# Parts of a checkpoint that only its pretraining head or an old release used.
_HEAD_KEYS = (
    "cls.",
    "lm_head.",
    "output_projection.",
    "classifier.",
    "head.",
    "decoder.",
    "score.",
    "pooler.",
    "discriminator_predictions.",
)


@cache
def _config_class(family: str) -> Any:
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[family]


@cache
def allowed_keys(family: str) -> frozenset[str]:
    """Return the configuration keys of a family that only change its arithmetic."""
    return frozenset(_config_class(family)().to_dict()) - _IGNORED - _REFUSED


def check_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration whose family and keys are all allowed.

    Raises:
        ConfigError: an unknown family, a key that names code, or a key the family does not have.

    Examples:
        >>> check_config({"model_type": "bert", "auto_map": {}})
        Traceback (most recent call last):
        medvl.errors.ConfigError: the configuration has the key 'auto_map', which names code. Remove it.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ConfigError(f"unknown model_type '{family}'.", hint=nearest(str(family), FAMILIES))
    for key in config:
        if key in _REFUSED:
            raise ConfigError(
                f"the configuration has the key '{key}', which names code.",
                hint="Remove it.",
            )
        if key not in allowed_keys(family):
            raise ConfigError(
                f"model_type '{family}' has no key '{key}'.", hint=nearest(key, allowed_keys(family))
            )
    return dict(config)


def position_offset(config: Mapping[str, Any]) -> int:
    """Return the position number of the first token: RoBERTa's families start after the padding id."""
    if config["model_type"] in ("roberta", "xlm-roberta", "camembert"):
        return int(config.get("pad_token_id", 1)) + 1
    return 0


def configured(config: Mapping[str, Any], *, bidirectional: bool) -> Any:
    """Return the configuration object of allowed values, with attention to both sides or to the past."""
    made = _config_class(config["model_type"])(**{k: v for k, v in config.items() if k != "model_type"})
    made.use_cache = False
    if FAMILIES[config["model_type"]] == "decoder":
        # The route that works in eager and sdpa, with and without padding; a flag on each layer does not.
        made.is_causal = not bidirectional
        if bidirectional and getattr(made, "sliding_window", None):
            # A window that looks back only would cut what lies ahead; one as long as any text cuts nothing.
            made.sliding_window = made.max_position_embeddings
    return made


def attention_path(made: Any, *, eager: bool = False) -> str:
    """Name the attention path: the fused one knows no soft cap of the scores, which Gemma 2 has."""
    return "eager" if eager or getattr(made, "attn_logit_softcapping", None) else "sdpa"


def _headless(model: nn.Module) -> nn.Module:
    """Take off the pooler, which no feature here uses, so that every parameter gets a gradient."""
    if getattr(model, "pooler", None) is not None:
        setattr(model, "pooler", None)  # noqa: B010 - a plain assignment is no module to type checkers
    return model


def build_backbone(config: Mapping[str, Any], *, eager: bool, bidirectional: bool, dtype: str) -> nn.Module:
    """Build a model with random weights from configuration values.

    Args:
        config: values that :func:`check_config` allows.
        eager: take the attention path that can return its weights.
        bidirectional: let the tokens of a decoder see later tokens.
        dtype: ``float32`` or ``bfloat16``.

    Raises:
        ConfigError: see :func:`check_config`; or the values do not fit together.
    """
    from transformers import AutoModel

    checked = check_config(config)
    made = configured(checked, bidirectional=bidirectional)
    try:
        model = AutoModel.from_config(
            made,
            attn_implementation=attention_path(made, eager=eager),
            dtype=getattr(torch, dtype),
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"no '{checked['model_type']}' model has these values: {error}") from error
    return _headless(model)


def load_backbone(
    directory: Path, *, eager: bool, bidirectional: bool, dtype: str
) -> tuple[nn.Module, dict[str, Any]]:
    """Load a model and its allowed configuration from a directory.

    Stray keys of ``config.json`` are left behind; keys that name code are refused.

    Raises:
        ConfigError: see :func:`huggingface <medvl.encoders.text.huggingface>`.
    """
    from safetensors import SafetensorError
    from transformers import AutoModel
    from transformers.utils import logging

    config = read_config(directory)
    made = configured(config, bidirectional=bidirectional)
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # what does not match is raised below, not logged
    logging.disable_progress_bar()
    try:
        model, report = AutoModel.from_pretrained(
            directory,
            config=made,
            attn_implementation=attention_path(made, eager=eager),
            dtype=getattr(torch, dtype),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            "the weights cannot be read; allowed is a whole model.safetensors of this configuration.",
            hint="Convert .bin or .pt weights to safetensors with transformers first.",
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
    model = _headless(model)
    own = set(model.state_dict())
    wrong = [key for key in report["missing_keys"] if key in own]
    wrong += [str(key) for key in report["mismatched_keys"]]
    wrong += [
        key
        for key in report["unexpected_keys"]
        if not key.startswith(_HEAD_KEYS) and ".pooler." not in f".{key}" and not key.endswith("position_ids")
    ]
    if wrong:
        raise ConfigError(
            f"{len(wrong)} tensors do not match the configuration, first '{sorted(wrong)[0]}'.",
            hint="config.json belongs to other weights.",
        )
    return model, config


def read_config(directory: Path) -> dict[str, Any]:
    """Return the allowed configuration of a model directory; stray keys are left behind.

    Raises:
        ConfigError: there is no readable ``config.json``, or see :func:`check_config`.
    """
    path = directory / "config.json"
    if not path.is_file() or path.stat().st_size > _MAX_CONFIG_BYTES:
        raise ConfigError(
            "the model directory has no config.json of at most 1 MiB.",
            hint="Point to a directory that save_pretrained wrote.",
        )
    try:
        values = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError("the config.json of the model directory is not JSON.") from error
    if not isinstance(values, dict):
        raise ConfigError("the config.json of the model directory is not an object.")
    refused = [key for key in values if key in _REFUSED]
    check_config({"model_type": values.get("model_type"), **dict.fromkeys(refused)})
    family = values["model_type"]
    # Through the class and back: old names (rope_theta, …) become today's before stray keys are dropped.
    full = _config_class(family).from_dict(values).to_dict()
    return check_config({key: value for key, value in full.items() if key in allowed_keys(family)})


class Reading(BaseModel):
    """How an adapted model was trained to read: part of ``adapt.json`` of its directory."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)
    pooling: Pooling = "mean"
    bidirectional: bool = True


def reading_of(directory: Path) -> Reading:
    """Return how the model of a directory was trained to read; the defaults where nothing is said.

    Raises:
        ConfigError: ``adapt.json`` is damaged.
    """
    path = directory / READING_FILE
    if not path.is_file():
        return Reading()
    try:
        return Reading.model_validate(parse_json(path.read_text("utf-8", "replace"), what=READING_FILE))
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"{READING_FILE} does not say how the model reads: "
            f"{'.'.join(map(str, first['loc'])) or 'it'} is {first['input']!r}.",
            hint="Restore the file, or remove it and give the options pooling and bidirectional.",
        ) from error


def load_pooling(pooler: nn.Module, directory: Path) -> None:
    """Load the weights of a latent pooling, where the directory has some.

    Raises:
        ConfigError: they are of another width.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = directory / POOLING_FILE
    if not path.is_file():
        return
    try:
        pooler.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        raise ConfigError(
            f"{POOLING_FILE} does not fit the model beside it.", hint="It belongs to other weights."
        ) from error


def model_directory(path: str, *, allow_download: bool) -> Path:
    """Return the local directory of a model given as a path or a hub name.

    Raises:
        ConfigError: there is no such directory, and it is not or may not be downloaded.
    """
    local = Path(path)
    if path and local.is_dir():
        return local
    if not path or local.is_absolute() or path.count("/") > 1:
        raise ConfigError(
            "option 'path' of the text encoder is no directory and no hub name.",
            hint="Give a directory with config.json, model.safetensors and tokenizer.json.",
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                path,
                local_files_only=not allow_download,
                allow_patterns=[
                    "config.json",
                    "tokenizer.json",
                    READING_FILE,
                    "*.safetensors",
                    "*.safetensors.index.json",
                ],
            )
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ConfigError(
            f"the text encoder '{path}' is no local directory and not among the downloaded models.",
            hint="Give a local directory, or set allow_download: true on a machine with a network.",
        ) from error
