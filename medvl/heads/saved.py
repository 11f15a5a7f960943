"""A trained head in a folder: its tensors, what it belongs to, and its encoder if it is not the model's."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from medvl.config import parse_json
from medvl.encoders.lora import merge_lora
from medvl.encoders.regions import ImageTower
from medvl.encoders.saving import save_tensors
from medvl.errors import CheckpointError, ConfigError, DigestMismatch
from medvl.heads.segmentation import Segmenter
from medvl.heads.transfer import Classifier, tower_to_train
from medvl.modeldir import LoadedModel
from medvl.store import write_atomic

__all__ = ["FORMAT", "read_head", "write_head"]

FORMAT = "medvl-head-1"
HEAD, ABOUT = "head.safetensors", "head.json"
IMAGE, IMAGE_ABOUT = "image.safetensors", "image.json"
_HINT = "Write it again with the transfer that made it."


def write_head(
    folder: Path, net: Segmenter | Classifier, *, names: tuple[str, ...], loaded: LoadedModel
) -> None:
    """Write a head into a folder; ``head.json`` comes last.

    An encoder with other weights than the model's goes into ``image.safetensors`` and ``image.json``, from
    which another run can start (``image.weights``); the model's own stays there.

    Args:
        folder: made if it is missing.
        net: the head on its encoder.
        names: of its parts or labels.
        loaded: the model that the encoder came from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (ABOUT, IMAGE, IMAGE_ABOUT):
        (folder / name).unlink(missing_ok=True)
    tower = copy.deepcopy(net.encoder)
    if tower.lora is not None:
        merge_lora(tower)
    image = _plain(tower.state_dict())
    model = _plain(tower_to_train(loaded.model, "frozen").state_dict())
    # A frozen encoder may be another one, too: that of random weights.
    other = any(not torch.equal(value, model[name]) for name, value in image.items())
    if other:
        save_tensors(image, folder / IMAGE)
        about = {"name": tower.name, "architecture": tower.architecture}
        write_atomic(folder / IMAGE_ABOUT, (json.dumps(about, indent=1) + "\n").encode())
    own = {name: value for name, value in net.state_dict().items() if not name.startswith("encoder.")}
    save_tensors(_plain(own), folder / HEAD)
    values: dict[str, Any] = {
        "format": FORMAT,
        "kind": "parts" if isinstance(net, Segmenter) else "labels",
        "names": list(names),
        "width": net.width if isinstance(net, Segmenter) else None,
        "own_encoder": other,
        "model_digest": loaded.digest,
    }
    write_atomic(folder / ABOUT, (json.dumps(values, indent=1) + "\n").encode())


def read_head(folder: Path, loaded: LoadedModel) -> Segmenter | Classifier:
    """Return a head on the encoder of its model, in eval mode; nothing in the folder can run code.

    Args:
        folder: what :func:`write_head` wrote.
        loaded: the model that the head was trained on.

    Raises:
        CheckpointError: a file is missing or damaged.
        DigestMismatch: the head belongs to another model.
    """
    try:
        about: Any = parse_json((folder / ABOUT).read_text("utf-8"), what=ABOUT)
        if about["format"] != FORMAT:
            raise CheckpointError(f"the head has format {about['format']!r}; this version reads {FORMAT!r}.")
        names, other = [str(name) for name in about["names"]], bool(about["own_encoder"])
        kind, width, digest = str(about["kind"]), about["width"], str(about["model_digest"])
        tensors = load_file(folder / HEAD)
        image = load_file(folder / IMAGE) if other else {}
    except (OSError, ConfigError, SafetensorError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"the head cannot be read: {error}.", hint=_HINT) from error
    if digest != loaded.digest:
        raise DigestMismatch("model", got=digest, expected=loaded.digest, hint="Give the head's own model.")
    for name, tensor in (tensors | image).items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CheckpointError(f"tensor {name} of the head holds NaN or infinity.", hint=_HINT)
    tower: ImageTower = tower_to_train(loaded.model, "frozen")
    if other:
        tower.load_weights(image)
    net: Segmenter | Classifier
    if kind == "parts":
        net = Segmenter(tower, parts=names, size_px=loaded.input.size_px, width=int(width))
    else:
        net = Classifier(tower, labels=len(names), pool=copy.deepcopy(loaded.model.image_pool))
    own = {name: value for name, value in net.state_dict().items() if not name.startswith("encoder.")}
    wrong = sorted(
        name
        for name in own.keys() | tensors.keys()
        if name not in own or name not in tensors or own[name].shape != tensors[name].shape
    )
    if wrong:
        raise CheckpointError(f"the head does not fit its encoder: first tensor {wrong[0]}.", hint=_HINT)
    net.load_state_dict(tensors, strict=False)  # the encoder has its own already
    return net.eval().to(loaded.device)


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}
