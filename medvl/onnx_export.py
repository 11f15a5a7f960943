"""Both towers as ONNX graphs, and how far their answers are from the model's."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from medvl.alignment import AlignmentModel
from medvl.errors import BundleError, MissingDependency
from medvl.modeldir import LoadedModel
from medvl.specs import VolumeInput

__all__ = ["PARITY_LIMIT", "Parity", "export_onnx"]

PARITY_LIMIT = 1e-4
"""Largest difference allowed in any axis of a unit vector."""

_BATCHES = (1, 3)


@dataclass(frozen=True)
class Parity:
    """Agreement of ONNX Runtime with the model on random inputs, over unit vectors."""

    images: int
    texts: int
    image_max_difference: float
    text_max_difference: float
    onnxruntime: str

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        return asdict(self)


class _ImageTower(nn.Module):
    def __init__(self, model: AlignmentModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        images: Float[Tensor, "batch channels *spatial"],
        image_mask: Bool[Tensor, " batch *spatial"],
    ) -> Float[Tensor, "batch dim"]:
        return nn.functional.normalize(self.model.encode_image(images, image_mask).pooled, dim=-1)


class _TextTower(nn.Module):
    def __init__(self, model: AlignmentModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Int[Tensor, "batch tokens"], token_mask: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch dim"]:
        return nn.functional.normalize(self.model.embed_text(tokens, token_mask), dim=-1)


def export_onnx(loaded: LoadedModel, folder: Path) -> Parity:
    """Write ``image.onnx`` and ``text.onnx`` and compare them with the model.

    ``image.onnx`` takes ``images`` (float32, batch x channels x the axes of a film or a volume, normalised by
    the input spec; of a large volume one window) and ``image_mask`` (bool); ``text.onnx`` takes ``tokens``
    and ``token_mask`` (int64). Both return unit vectors. The batch is free, and so is the number of tokens.

    Args:
        loaded: the model.
        folder: an existing folder.

    Raises:
        MissingDependency: onnx, onnxscript or onnxruntime is not installed.
        BundleError: a graph differs from the model by more than ``PARITY_LIMIT``.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx needs it and fails late without it
    except ImportError as error:
        raise MissingDependency(error.name or "onnxruntime", extra="onnx") from error
    model = loaded.model.eval()
    batch, length = torch.export.Dim("batch"), torch.export.Dim("tokens", max=loaded.tokeniser.max_tokens)
    image, text = _ImageTower(model).eval(), _TextTower(model).eval()
    images, texts = _random_images(loaded, 2), _random_texts(loaded, 2)
    _write(
        image,
        images,
        ({0: batch}, {0: batch}),
        ("images", "image_mask"),
        "image_vector",
        folder / "image.onnx",
    )
    shapes = {0: batch, 1: length}
    _write(text, texts, (shapes, shapes), ("tokens", "token_mask"), "text_vector", folder / "text.onnx")
    differences = {"image": 0.0, "text": 0.0}
    for name, tower, draw, keys in (
        ("image", image, _random_images, ("images", "image_mask")),
        ("text", text, _random_texts, ("tokens", "token_mask")),
    ):
        session = onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for size in _BATCHES:
            inputs = draw(loaded, size)
            answer = session.run(None, {key: value.numpy() for key, value in zip(keys, inputs, strict=True)})[
                0
            ]
            with torch.no_grad():
                expected = tower(*inputs).numpy()
            differences[name] = max(differences[name], float(np.abs(answer - expected).max()))
    for name, difference in differences.items():
        if not difference <= PARITY_LIMIT:
            raise BundleError(
                f"{name}.onnx differs from the model by {difference:.2e}; allowed is {PARITY_LIMIT:.0e}.",
                hint="Export without ONNX (--no-onnx) and report the encoder.",
            )
    return Parity(
        sum(_BATCHES), sum(_BATCHES), differences["image"], differences["text"], onnxruntime.__version__
    )


def _random_images(
    loaded: LoadedModel, n: int
) -> tuple[Float[Tensor, "batch channels *spatial"], Bool[Tensor, " batch *spatial"]]:
    draw = np.random.default_rng(n)
    stored: list[np.ndarray]
    if isinstance(loaded.input, VolumeInput):
        x, y, z = loaded.input.size_px
        stored = [draw.integers(-1000, 1000, (x - i, y, z), dtype=np.int16) for i in range(n)]
    else:
        stored = [draw.integers(0, 256, (64 + 8 * i, 64), dtype=np.uint8) for i in range(n)]
    pixels, masks = zip(*(loaded.input.apply(array) for array in stored), strict=True)
    return torch.from_numpy(np.stack(pixels)), torch.from_numpy(np.stack(masks))


def _random_texts(
    loaded: LoadedModel, n: int
) -> tuple[Int[Tensor, "batch tokens"], Int[Tensor, "batch tokens"]]:
    reports = [["No acute finding."] * (i + 1) + ["Small left pleural effusion."] for i in range(n)]
    tokens, mask = loaded.tokeniser.encode(reports)
    return torch.from_numpy(tokens), torch.from_numpy(mask)


def _write(
    tower: nn.Module,
    inputs: tuple[Tensor, ...],
    shapes: tuple[dict[int, torch.export.Dim], ...],
    names: tuple[str, ...],
    output: str,
    path: Path,
) -> None:
    with _quiet():
        program = torch.onnx.export(
            tower, inputs, dynamo=True, dynamic_shapes=shapes, input_names=list(names), output_names=[output],
            verbose=False,
        )  # fmt: skip
        if program is None:
            raise BundleError("the exporter returned no graph.", hint="Export without ONNX (--no-onnx).")
        program.save(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says of torchvision, which is left out on purpose, and of its internals."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s).*The axis name.*will not be used")
            warnings.filterwarnings(
                "ignore", message=".*isinstance.treespec, LeafSpec.*", category=FutureWarning
            )
            yield
    finally:
        logger.setLevel(level)
