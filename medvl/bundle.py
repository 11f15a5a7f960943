"""The exported directory: weights, specs, tokenizer, ONNX and a model card; written, checked, loaded.

Layout, that of a MONAI bundle with our files beside it::

    configs/metadata.json   what the tensors are: unit, range, shape, channels (MONAI's schema)
    configs/model.json      the architecture, by names of our catalogue
    configs/specs.json      how pixels, inputs and reports are interpreted
    models/model.safetensors, models/image.onnx, models/text.onnx
    tokenizer/              tokenizer.json
    docs/README.md          the model card; docs/metrics.json, the figures it quotes
    docs/provenance.json    which data and which split it was trained on
    bundle.json             SHA-256 of every other file

Loading reads JSON and safetensors and runs no code from the bundle.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medvl.config import parse_json
from medvl.encoders.lora import merge_lora
from medvl.errors import BundleError, ConfigError, UsageError
from medvl.modeldir import LoadedModel, read_model, write_model
from medvl.notice import NOTICE
from medvl.specs import VolumeInput
from medvl.store import file_sha256, write_atomic
from medvl.training.checkpoints import best_model, read_provenance
from medvl.version import VERSION

__all__ = ["FORMAT", "ExportSummary", "export", "load_bundle"]

FORMAT = "medvl-bundle-1"
_MANIFEST = "bundle.json"
_MONAI_SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
)


@dataclass(frozen=True)
class ExportSummary:
    """What an export wrote."""

    path: Path
    digest: str
    megabytes: float
    parity: dict[str, object] | None
    evaluated: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**self.__dict__, "path": str(self.path)}

    def lines(self) -> list[str]:
        """Return the text of the command."""
        onnx = "no ONNX files"
        if self.parity is not None:
            onnx = (
                f"ONNX agrees to {self.parity['image_max_difference']:.1e} (image) and "
                f"{self.parity['text_max_difference']:.1e} (text)"
            )
        card = (
            "with the figures of the last evaluation"
            if self.evaluated
            else "without figures: the run is not evaluated"
        )
        return [
            f"{self.path}: {self.megabytes:.1f} MB, model {self.digest}",
            onnx,
            f"model card: {self.path / 'docs' / 'README.md'}, {card}",
            NOTICE,
        ]


def export(run: Path, bundle: Path, *, onnx: bool = True) -> ExportSummary:
    """Write the best checkpoint of a run as a bundle.

    Adapters are merged into the weights that they adapt. The card quotes figures only from
    ``RUN/evaluation/metrics.json``, whose hash it names; without one it says that there are none.

    Args:
        run: a run directory.
        bundle: the folder to write; it must not exist.
        onnx: write the ONNX graphs too, and compare them with the model.

    Raises:
        UsageError: ``bundle`` exists.
        CheckpointError: the run has no whole checkpoint.
        MissingDependency: ``onnx`` is asked for and its packages are not installed.
    """
    run, bundle = Path(run), Path(bundle)
    if bundle.exists():
        raise UsageError("the bundle's folder exists already.", hint="Name a new folder, or delete that one.")
    loaded = read_model(best_model(run))
    for encoder in (loaded.model.image_encoder, loaded.model.text_encoder):
        if encoder.lora is not None:
            merge_lora(encoder)
    bundle.parent.mkdir(parents=True, exist_ok=True)
    partial = bundle.with_name(f".{bundle.name}.{os.getpid()}.tmp")
    try:
        write_model(partial, loaded)
        parity = None
        if onnx:
            from medvl.onnx_export import export_onnx

            parity = export_onnx(loaded, partial / "models").to_json()
        evaluated = _write_docs(run, partial, loaded, parity)
        _write_json(partial / "configs" / "metadata.json", _metadata(loaded))
        files = {str(path.relative_to(partial)): file_sha256(path) for path in _files(partial)}
        _write_json(partial / _MANIFEST, {"format": FORMAT, "files": files})
        partial.rename(bundle)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    size = sum(path.stat().st_size for path in _files(bundle)) / 1e6
    return ExportSummary(bundle, load_bundle(bundle).digest, size, parity, evaluated)


def load_bundle(path: Path) -> LoadedModel:
    """Check every file of a bundle against its manifest, then load the model.

    Raises:
        BundleError: the folder is no bundle, a file is missing, added, changed or unsafe.
    """
    path = Path(path)
    manifest = path / _MANIFEST
    if not manifest.is_file():
        raise BundleError(
            "this folder is no bundle: bundle.json is missing.", hint="Write one: medvl export RUN BUNDLE"
        )
    try:
        about = parse_json(manifest.read_text("utf-8", "replace"), what="bundle.json")
    except ConfigError as error:
        raise BundleError(error.message, hint="The file was changed or damaged: export again.") from error
    if (
        not isinstance(about, dict)
        or about.get("format") != FORMAT
        or not isinstance(about.get("files"), dict)
    ):
        found = about.get("format") if isinstance(about, dict) else type(about).__name__
        raise BundleError(
            f"bundle.json has format {found!r}; this version reads {FORMAT!r}.", hint="Export again."
        )
    listed: dict[str, str] = about["files"]
    present = {str(file.relative_to(path)) for file in _files(path)} - {_MANIFEST}
    for name in sorted(present ^ set(listed)):
        what = "is not listed in bundle.json" if name in present else "is missing"
        raise BundleError(
            f"the bundle's file {name!r} {what}.", hint="Export again; do not add files to a bundle."
        )
    for name, digest in listed.items():
        got = file_sha256(path / name)
        if got != digest:
            raise BundleError(
                f"the bundle's file {name!r} has SHA-256 {got[:12]}…, the manifest says {digest[:12]}….",
                hint="The file was changed or damaged: copy or export the bundle again.",
            )
    return read_model(path, error=BundleError)


def _files(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    for path in files:
        if path.is_symlink():
            raise BundleError(
                f"the bundle holds a link, {str(path.relative_to(folder))!r}.",
                hint="Bundles hold plain files.",
            )
    return files


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(values, indent=2, sort_keys=True) + "\n").encode())


def _metadata(loaded: LoadedModel) -> dict[str, Any]:
    low = round((0 - max(loaded.input.mean)) / min(loaded.input.std), 4)
    high = round((1 - min(loaded.input.mean)) / min(loaded.input.std), 4)
    if isinstance(loaded.input, VolumeInput):
        channels = {str(k): f"window {c:g} ± {w / 2:g} HU" for k, (c, w) in enumerate(loaded.input.windows)}
        meaning, modality, subject = (
            "CT volume, axes to right, front and top; see specs.json",
            "CT",
            "CT volumes",
        )
    else:
        channels = {str(number): "film" for number in range(loaded.input.channels)}
        meaning = "radiograph, display polarity (dense is bright), letterboxed, see specs.json"
        modality, subject = "CR, DX", "radiographs"
    vector = {
        "type": "embedding",
        "format": "unit vector",
        "num_channels": loaded.model.dim,
        "spatial_shape": [],
        "dtype": "float32",
        "value_range": [-1, 1],
        "is_patch_data": False,
        "channel_def": {},
    }
    return {
        "schema": _MONAI_SCHEMA,
        "version": VERSION,
        "changelog": {VERSION: "exported"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "optional_packages_version": {"transformers": version("transformers")},
        "task": "image and report embedding",
        "description": f"Vision-language alignment of {subject} and reports. {NOTICE}",
        "authors": "the lab that trained it",
        "copyright": "the lab that trained it",
        "intended_use": NOTICE,
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": meaning,
                    "modality": modality,
                    "num_channels": loaded.input.channels,
                    "spatial_shape": list(loaded.input.size_px),
                    "dtype": "float32",
                    "value_range": [low, high],
                    "is_patch_data": getattr(loaded.input, "fit", "") == "crop",
                    "channel_def": channels,
                }
            },
            "outputs": {"pred": vector},
        },
    }


def _write_docs(run: Path, folder: Path, loaded: LoadedModel, parity: dict[str, object] | None) -> bool:
    docs = folder / "docs"
    docs.mkdir(parents=True, exist_ok=True)
    # Whoever evaluates the bundle must split the patients as its training did.
    _write_json(docs / "provenance.json", read_provenance(run))
    metrics, table = run / "evaluation" / "metrics.json", run / "evaluation" / "table.md"
    evaluated = metrics.is_file() and table.is_file()
    if evaluated:
        shutil.copyfile(metrics, docs / "metrics.json")
        figures = (
            f"Figures are in `metrics.json` (SHA-256 `{file_sha256(metrics)}`), with n, interval and seed."
            f"\n\n{table.read_text('utf-8')}"
        )
    else:
        figures = "Not evaluated: there are no figures to quote. Run `medvl evaluate`, then export again."
    (docs / "README.md").write_text(_card(run, loaded, parity, figures), "utf-8")
    return evaluated


def _card(run: Path, loaded: LoadedModel, parity: dict[str, object] | None, figures: str) -> str:
    provenance = read_provenance(run)
    recipe = (run / "recipe.yaml").read_text("utf-8")
    parity_line = "No ONNX files."
    if parity is not None:
        parity_line = (
            f"ONNX Runtime {parity['onnxruntime']} agrees with the weights to "
            f"{parity['image_max_difference']:.1e} (image, n = {parity['images']}) and "
            f"{parity['text_max_difference']:.1e} (text, n = {parity['texts']}) in any axis of a unit vector."
        )
    images = "CT volumes" if isinstance(loaded.input, VolumeInput) else "radiographs"
    return f"""# Model card

**{NOTICE}**

Embeds {images} and report text in one space, for search, zero-shot scores and heat maps.
Scores order cases; they are no probabilities and carry no threshold.

| | |
|---|---|
| model digest | `{loaded.digest}` |
| image tower | {loaded.config.image.name} |
| text tower | {loaded.config.text.name} |
| vector length | {loaded.model.dim} |
| pixel spec | `{loaded.pixels.digest}` |
| input spec | `{loaded.input.digest}` |
| report spec | `{loaded.report.digest}` |
| made with | medvl {VERSION}, torch {version("torch")} |

## Intended use and limits

Research on data like those it was trained on, by people who can judge the result. Not for diagnosis,
triage or any decision about a patient. Images of another device, protocol or population may be embedded
wrongly without any sign of it. Text in a picture can mislead the image tower, and a report's wording the
text tower.

## Data

```json
{json.dumps(provenance, indent=2, sort_keys=True)}
```

## Figures

{figures}

## Files

{parity_line}
Loading reads JSON and safetensors; it runs no code from this folder.

## Recipe

```yaml
{recipe.strip()}
```
"""
