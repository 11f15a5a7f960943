"""The model directory: weights, architecture, specs and tokeniser together; safetensors and JSON, no code.

Layout, the same inside a checkpoint and a bundle::

    configs/model.json         the architecture by catalogue names, see ModelConfig
    configs/specs.json         pixel, input and report spec
    tokenizer/tokenizer.json   the report tokeniser
    models/model.safetensors   every tensor of the model
    configs/manifest.json      format and SHA-256 of the files above; written last
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int, Int16, Shaped
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from medvl.alignment import AlignmentModel, ModelConfig, ProjectionConfig, TowerConfig, build_from_config
from medvl.config import parse_json
from medvl.encoders.lora import LoraOptions
from medvl.encoders.saving import save_tensors
from medvl.errors import CheckpointError, ConfigError, IntegrityError, nearest
from medvl.sliding import WINDOWS, Whole, mean_answers, whole_volumes
from medvl.specs import InputSpec, PixelSpec, ReportSpec, Spec, VolumeInput, VolumeSpec, fold
from medvl.store import file_sha256, write_atomic
from medvl.tokens import ReportTokeniser

__all__ = ["FORMAT", "LoadedModel", "read_model", "write_model"]

FORMAT = "medvl-model-1"
CONFIG = "configs/model.json"
SPECS = "configs/specs.json"
TOKENIZER = "tokenizer/tokenizer.json"
WEIGHTS = "models/model.safetensors"
MANIFEST = "configs/manifest.json"
FILES = (CONFIG, SPECS, TOKENIZER, WEIGHTS)
_PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib", ".npy", ".npz"}
_SPECS: dict[str, dict[str, type[Spec]]] = {
    "pixels": {"film": PixelSpec, "volume": VolumeSpec},
    "input": {"film": InputSpec, "volume": VolumeInput},
    "report": {"film": ReportSpec},
}
"""The specs of a model by the ``kind`` that they state; those of films state none."""
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "I64": torch.int64, "BOOL": torch.bool}
_PARTS: dict[str, type[BaseModel]] = {"lora": LoraOptions, "projection": ProjectionConfig}
_COUNTS = {"layers", "blocks", "num_hidden_layers", "n_layers", "n_layer"}


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model with everything that decides how a pixel or a word is read.

    Attributes:
        model: in eval mode after :func:`read_model`.
        pixels, input, report: the specs that the model was trained with.
        tokeniser: words to ids.
    """

    model: AlignmentModel
    pixels: PixelSpec | VolumeSpec
    input: InputSpec | VolumeInput
    report: ReportSpec
    tokeniser: ReportTokeniser

    @property
    def config(self) -> ModelConfig:
        """The architecture."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def to(self, device: str | torch.device) -> LoadedModel:
        """Move the weights and return this object."""
        self.model.to(device)
        return self

    @cached_property
    def digest(self) -> str:
        """Hash of specs, tokeniser, architecture and weights; read once, so do not train afterwards."""
        state = hashlib.blake2b(digest_size=16)
        for part in (self.pixels.digest, self.input.digest, self.report.digest, self.tokeniser.digest):
            state.update(part.encode())
        state.update(json.dumps(_architecture(self.config), sort_keys=True).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            state.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return state.hexdigest()

    def image_tensors(
        self, arrays: Sequence[Shaped[np.ndarray, "..."]]
    ) -> tuple[Float[Tensor, "batch channels *spatial"], Bool[Tensor, " batch *spatial"]]:
        """Return the model's input for stored arrays, on its device; of a larger volume, its middle."""
        pairs = [self.input.apply(array) for array in arrays]
        images = torch.from_numpy(np.stack([image for image, _ in pairs]))
        masks = torch.from_numpy(np.stack([mask for _, mask in pairs]))
        return images.to(self.device), masks.to(self.device)

    def wholes(self, volumes: Iterable[Int16[np.ndarray, "_ _ _"]]) -> Iterator[Whole]:
        """Yield what the model says of each stored volume, by windows where it is larger than a tensor.

        Volumes are taken as they are needed and a few windows are encoded at once, so that an iterable that
        reads them keeps one in memory.

        Raises:
            ConfigError: the model is one of films.
        """
        if not isinstance(self.input, VolumeInput):
            raise ConfigError("this model reads films; a volume was given.", hint="Load a model of volumes.")
        return whole_volumes(self.model.encode_image, self.input, volumes, device=self.device)

    def text_tensors(
        self, texts: Sequence[str | Sequence[str]]
    ) -> tuple[Int[Tensor, "batch tokens"], Int[Tensor, "batch tokens"]]:
        """Return the model's input for texts, each one string or a list of sentences, on its device."""
        reports = [[fold(text)] if isinstance(text, str) else [fold(line) for line in text] for text in texts]
        tokens, mask = self.tokeniser.encode(reports)
        return torch.from_numpy(tokens).to(self.device), torch.from_numpy(mask).to(self.device)

    def embed_images(
        self, arrays: Iterable[Shaped[np.ndarray, "..."]], *, batch_size: int | None = None
    ) -> Float32[np.ndarray, "images dim"]:
        """Return one unit vector per stored array.

        Args:
            arrays: as ``pixels.apply`` makes them and the store keeps them; sizes may differ. Each is taken
                when it is needed, so that an iterable that reads them keeps one in memory.
            batch_size: tensors at once, of films or of the windows that volumes need; by default 32 films
                or 4 windows. The result depends on it by rounding alone.

        Raises:
            ConfigError: ``batch_size`` is below 1.
        """
        size = (WINDOWS if isinstance(self.input, VolumeInput) else 32) if batch_size is None else batch_size

        def pooled(images: Tensor, masks: Tensor) -> Tensor:
            return self.model.encode_image(images, masks).pooled

        rows = mean_answers(pooled, self.input, arrays, size=size, device=self.device)
        return self._unit([torch.from_numpy(row)[None] for row in rows])

    @torch.inference_mode()
    def embed_texts(
        self, texts: Sequence[str | Sequence[str]], *, batch_size: int = 64
    ) -> Float32[np.ndarray, "texts dim"]:
        """Return one unit vector per text, each one string or a list of sentences."""
        parts = [self.model.embed_text(*self.text_tensors(chunk)) for chunk in _chunks(texts, batch_size)]
        return self._unit(parts)

    def _unit(self, parts: list[Tensor]) -> Float32[np.ndarray, "rows dim"]:
        if not parts:
            return np.zeros((0, self.model.dim), np.float32)
        return F.normalize(torch.cat(parts).float(), dim=1).cpu().numpy()


def _chunks(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    if size < 1:
        raise ConfigError(f"batch_size is {size}; allowed are 1 or more.")
    return (values[start : start + size] for start in range(0, len(values), size))


def _architecture(config: ModelConfig) -> dict[str, Any]:
    """Return what decides the output: how far a tower was trained does not."""
    return config.model_dump(mode="json", exclude={"image": {"train"}, "text": {"train"}})


def write_model(
    directory: str | Path, loaded: LoadedModel, *, tensors: Mapping[str, Tensor] | None = None
) -> None:
    """Write a model directory; each file appears whole, the manifest last.

    Args:
        directory: made if it is missing; its other files stay.
        loaded: the model in any mode, on any device.
        tensors: the weights, where those of the model are spread over several processes.
    """
    folder = Path(directory)
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)  # an old manifest must not vouch for half of a new model
    specs = {name: getattr(loaded, name).model_dump(mode="json") for name in _SPECS}
    write_atomic(folder / CONFIG, _json(loaded.config.model_dump(mode="json")))
    write_atomic(folder / SPECS, _json(specs))
    loaded.tokeniser.save((folder / TOKENIZER).parent)
    _write_weights(folder / WEIGHTS, loaded.model.state_dict() if tensors is None else tensors)
    hashes = {name: file_sha256(folder / name) for name in FILES}
    write_atomic(folder / MANIFEST, _json({"format": FORMAT, "files": hashes}))


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, sort_keys=True) + "\n").encode()


def _write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write every tensor without a second copy of all of them in memory."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_tensors(tensors, temporary)
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.replace(path)


def read_model(
    directory: str | Path,
    *,
    device: str | torch.device = "cpu",
    error: type[IntegrityError] = CheckpointError,
) -> LoadedModel:
    """Read a model directory, in eval mode; nothing in it can run code.

    Checked, in this order: no pickle anywhere, the manifest and its hashes, sizes, depth and keys of the
    JSON, that names, shapes and types of all tensors are the architecture's, that every value is finite.

    Args:
        directory: what :func:`write_model` wrote; other files beside it are allowed.
        device: where the weights go.
        error: the type that is raised, so that a bundle speaks as a bundle.

    Raises:
        IntegrityError: as ``error``; any of the checks fails.
    """
    folder = Path(directory)
    try:
        _refuse_pickles(folder, error)
        _check_manifest(folder, error)
        config = _parse_config(_values(folder / CONFIG, error), error)
        specs = _parse_specs(_values(folder / SPECS, error), error)
        tokeniser = ReportTokeniser.from_file(folder / TOKENIZER)
        model = _read_weights(folder / WEIGHTS, config, error)
    except (ConfigError, CheckpointError) as problem:
        if isinstance(problem, error):
            raise
        raise error(f"the model directory cannot be used: {problem.message}", hint=problem.hint) from problem
    if tokeniser.vocab_size > len(model.text_encoder.continuation):
        raise error(
            f"the tokeniser has {tokeniser.vocab_size} ids, but the text encoder knows "
            f"{len(model.text_encoder.continuation)}.",
            hint="The tokenizer.json belongs to another model.",
        )
    return LoadedModel(model=model.eval().to(device), tokeniser=tokeniser, **specs)


def _refuse_pickles(folder: Path, error: type[IntegrityError]) -> None:
    for path in folder.rglob("*"):
        if path.suffix.lower() in _PICKLES:
            raise error(
                f"the directory holds a '{path.suffix}' file, which can run code when it is opened.",
                hint="Only safetensors and JSON are read; remove it.",
            )


def _check_manifest(folder: Path, error: type[IntegrityError]) -> None:
    if not (folder / MANIFEST).is_file():
        raise error(
            f"this is no whole model directory: {MANIFEST} is missing.",
            hint="Give a checkpoint or a bundle; writing it may have been interrupted.",
        )
    values = _values(folder / MANIFEST, error)
    if values.get("format") != FORMAT:
        raise error(
            f"the model has format {values.get('format')!r}; this version reads {FORMAT!r}.",
            hint="Export it again with this version.",
        )
    hashes = values.get("files")
    if not isinstance(hashes, dict) or set(hashes) != set(FILES):
        raise error(f"{MANIFEST} must list exactly {', '.join(FILES)}.")
    for name in FILES:
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise error(f"{name} is missing or a link.", hint="Copy the whole directory.")
        if file_sha256(path) != hashes[name]:
            raise error(f"the SHA-256 of {name} is not that of {MANIFEST}.", hint="Copy or export it again.")


def _values(path: Path, error: type[IntegrityError]) -> dict[str, Any]:
    limit = 4 * 2**20
    if path.stat().st_size > limit:
        raise error(f"{path.name} has {path.stat().st_size} bytes; allowed are {limit}.")
    try:
        values = parse_json(path.read_text("utf-8"), what=path.name)
    except UnicodeDecodeError as problem:
        raise error(f"{path.name} is not UTF-8.") from problem
    if not isinstance(values, dict):
        raise error(f"{path.name} is not a JSON object.")
    return values


def _parse_config(values: dict[str, Any], error: type[IntegrityError]) -> ModelConfig:
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as problem:
        first = problem.errors()[0]
        path = tuple(str(part) for part in first["loc"])
        hint = ""
        if first["type"] == "extra_forbidden":
            hint = nearest(path[-1], _fields(path[:-1]))
        raise error(f"model.json: {'.'.join(path)}: {first['msg']}.", hint=hint) from problem


def _fields(path: tuple[str, ...]) -> list[str]:
    schema: type[BaseModel] = ModelConfig
    for key in path:
        schema = _PARTS.get(key, TowerConfig)
    return list(schema.model_fields)


def _parse_specs(values: dict[str, Any], error: type[IntegrityError]) -> dict[str, Any]:
    for key in values:
        if key not in _SPECS:
            raise error(f"specs.json has no key '{key}'.", hint=nearest(key, _SPECS))
    for key in _SPECS:
        if not isinstance(values.get(key), dict):
            raise error(f"specs.json lacks the object '{key}'.")
    return {key: _SPECS[key][_kind(key, values[key], error)].from_json(values[key]) for key in _SPECS}


def _kind(key: str, values: dict[str, Any], error: type[IntegrityError]) -> str:
    kind = values.get("kind", "film")
    if kind not in _SPECS[key]:
        raise error(f"specs.json: {key}.kind is {kind!r}.", hint=nearest(str(kind), _SPECS[key]))
    return str(kind)


def _read_weights(path: Path, config: ModelConfig, error: type[IntegrityError]) -> AlignmentModel:
    try:
        with safe_open(path, "pt") as stream:
            header = {name: stream.get_slice(name) for name in stream.keys()}
            found = {
                name: (tuple(part.get_shape()), _DTYPES.get(part.get_dtype()))
                for name, part in header.items()
            }
            for tower in (config.image, config.text):
                _require_plausible(tower.architecture, limit=len(found), error=error)
            # First without memory: a file of a few bytes may describe a network of many terabytes.
            with torch.device("meta"):
                _require_same(build_from_config(config), found, error)
            model = build_from_config(config)
            state = model.state_dict()
            for name, target in state.items():
                tensor = stream.get_tensor(name)
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    raise error(f"tensor {name} holds NaN or infinity.", hint="Use an earlier checkpoint.")
                target.copy_(tensor)
    except SafetensorError as problem:
        raise error(f"model.safetensors is damaged: {problem}.", hint="Copy or export it again.") from problem
    return model


def _require_plausible(values: Any, *, limit: int, error: type[IntegrityError]) -> None:
    """Refuse more layers than the file has tensors: building them would take for ever."""
    for key, value in values.items():
        counts = value if isinstance(value, list) else [value]
        if key in _COUNTS and any(isinstance(count, int) and count > limit for count in counts):
            raise error(f"model.json: {key} is {value}, but the weights have {limit} tensors.")
        if isinstance(value, dict):
            _require_plausible(value, limit=limit, error=error)


def _require_same(
    model: AlignmentModel,
    found: Mapping[str, tuple[tuple[int, ...], torch.dtype | None]],
    error: type[IntegrityError],
) -> None:
    expected = {name: (tuple(value.shape), value.dtype) for name, value in model.state_dict().items()}
    hint = "The weights and model.json belong to different models."
    for name in expected:
        if name not in found:
            raise error(f"tensor {name} is missing.", hint=hint)
        if found[name] != expected[name]:
            (shape, kind), (wanted, wanted_kind) = found[name], expected[name]
            raise error(
                f"tensor {name} is {shape} {kind}; the architecture has {wanted} {wanted_kind}.", hint=hint
            )
    for name in found:
        if name not in expected:
            raise error(f"tensor {name} is unexpected.", hint=hint)
