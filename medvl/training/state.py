"""A tree of plain values and tensors as JSON plus safetensors, and back; no pickle anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from medvl.config import parse_json
from medvl.encoders.saving import save_tensors
from medvl.errors import CheckpointError, ConfigError

__all__ = ["read_state", "write_state"]


def write_state(folder: Path, state: Any) -> None:
    """Write ``state`` as ``state.json`` and ``state.safetensors`` in ``folder``.

    Args:
        folder: an existing folder.
        state: dicts (keys words or integers), lists, tuples, words, numbers, booleans, None and tensors.

    Raises:
        CheckpointError: a value of any other type; nothing is ever pickled.
    """
    tensors: dict[str, Tensor] = {}
    tree = _encode(state, tensors, "state")
    save_tensors(tensors, folder / "state.safetensors")
    (folder / "state.json").write_text(json.dumps(tree), "utf-8")


def read_state(folder: Path) -> Any:
    """Return what :func:`write_state` wrote.

    Raises:
        CheckpointError: a file is missing or damaged, or a tensor holds NaN or infinity.
    """
    try:
        tensors = load_file(folder / "state.safetensors")
        tree = parse_json((folder / "state.json").read_text("utf-8"), what="state.json")
        return _decode(tree, tensors)
    except (OSError, SafetensorError, ConfigError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the training state cannot be read: {error}.",
            hint="Remove this checkpoint; the one before it is used.",
        ) from error


def _encode(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    if isinstance(value, Tensor):
        name = f"{len(tensors):06d}"
        # safetensors refuses tensors that share memory
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value} if not isinstance(value, float) else {"float": value.hex()}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_encode(item, tensors, f"{where}.{i}") for i, item in enumerate(value)]}
    if isinstance(value, dict) and all(type(key) in (int, str) for key in value):
        return {"dict": [[key, _encode(item, tensors, f"{where}.{key}")] for key, item in value.items()]}
    raise CheckpointError(
        f"{where} is a {type(value).__name__}, which a checkpoint cannot hold.",
        hint="Allowed: dict, list, tuple, str, int, float, bool, None and tensors.",
    )


def _decode(tree: Any, tensors: dict[str, Tensor]) -> Any:
    ((kind, value),) = tree.items()
    if kind == "tensor":
        tensor = tensors[value]
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"tensor {value} holds NaN or infinity")
        return tensor
    if kind == "value":
        return value
    if kind == "float":
        return float.fromhex(value)
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in value}
    items = [_decode(item, tensors) for item in value]
    if kind == "list":
        return items
    if kind == "tuple":
        return tuple(items)
    raise ValueError(f"unknown kind {kind!r}")
