"""Where a tower starts from: the weights of another run, a bundle, or image-only pre-training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from medvl.config import parse_json
from medvl.encoders.lora import merge_lora
from medvl.errors import CheckpointError, ConfigError
from medvl.modeldir import read_model
from medvl.tokens import ReportTokeniser
from medvl.training.checkpoints import best_model

__all__ = ["Start", "start_of"]


@dataclass(frozen=True, eq=False)
class Start:
    """A tower as another training left it.

    Attributes:
        name: of the encoder, in the catalogue.
        tensors: its weights, adapters merged.
        tokeniser: of a text tower.
    """

    name: str
    tensors: Mapping[str, Tensor]
    tokeniser: ReportTokeniser | None = None


def start_of(folder: Path, *, side: Literal["image", "text"], name: str, inside: str | None = None) -> Start:
    """Read the tower of one side from a folder.

    Args:
        folder: a run directory (its best checkpoint), a model directory or a bundle; for images also a
            folder with ``image.safetensors`` and ``image.json``, which holds ``name`` and ``architecture``.
        side: which tower.
        name: of the encoder that the recipe asks for. One of volumes takes the weights of the same one of
            films, inflated.
        inside: of an encoder that this one applies, to each slice say, and whose weights serve too.

    Raises:
        ConfigError: there is nothing of the kind, or the tower is of another encoder.
        CheckpointError: a file is damaged.
    """
    if side == "image" and (folder / "image.json").is_file():
        found = _pretrained(folder)
    else:
        if (folder / "checkpoints").is_dir():
            folder = best_model(folder)
        if not (folder / "configs" / "manifest.json").is_file():
            raise ConfigError(
                f"{side}.weights names no folder with weights.",
                hint="Give a run, a bundle, or for images a folder with image.safetensors and image.json.",
            )
        loaded = read_model(folder)
        tower = loaded.model.image_encoder if side == "image" else loaded.model.text_encoder
        if tower.lora is not None:
            merge_lora(tower)
        found = Start(tower.name, tower.state_dict(), loaded.tokeniser if side == "text" else None)
    if found.name not in (name, inside):
        raise ConfigError(
            f"{side}.weights holds the encoder '{found.name}', the recipe names '{name}'.",
            hint=f"Set {side}.name to {found.name}, with the options it was trained with.",
        )
    return found


def _pretrained(folder: Path) -> Start:
    hint = "Write it again with the self-distillation that made it."
    try:
        values: Any = parse_json((folder / "image.json").read_text("utf-8"), what="image.json")
        name, tensors = str(values["name"]), load_file(folder / "image.safetensors")
    except (OSError, ConfigError, SafetensorError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"the pre-trained image tower cannot be read: {error}.", hint=hint) from error
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CheckpointError(f"tensor {key} of image.safetensors holds NaN or infinity.", hint=hint)
    return Start(name, tensors)
