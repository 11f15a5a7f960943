"""What is evaluated: the model of a run, a checkpoint or a bundle, with what is known of its training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvl.bundle import load_bundle
from medvl.config import read_config
from medvl.errors import UsageError
from medvl.modeldir import LoadedModel, read_model
from medvl.training.checkpoints import best_model, read_provenance
from medvl.training.recipe import Recipe, load_recipe

__all__ = ["Subject", "find_subject"]


@dataclass(frozen=True)
class Subject:
    """A loaded model and its origin.

    Attributes:
        loaded: the model with its specs.
        kind: ``run``, ``checkpoint``, ``bundle`` or ``model``.
        checkpoint: the name of the checkpoint that was read, if any.
        recipe: what it was trained with, where that is beside it.
        provenance: data digest and split seed of the training; empty where unknown.
        results: where results go when nothing else is asked for.
        folder: of the checkpoint that was read; None for a bundle, which keeps the model alone.
    """

    loaded: LoadedModel
    kind: str
    checkpoint: str
    recipe: Recipe | None
    provenance: dict[str, Any]
    results: Path
    folder: Path | None = None

    @property
    def split_seed(self) -> int | None:
        """The seed that split the patients anew for training, or None for the store's own splits."""
        return self.provenance.get("split_seed")

    @property
    def view(self) -> str:
        """Which sentences of a report the model was trained with."""
        return self.recipe.data.view if self.recipe is not None else "retrieval"


def find_subject(path: Path) -> Subject:
    """Load the model of a run (its best checkpoint), of one checkpoint, of a bundle or of a model directory.

    Raises:
        UsageError: the path is none of these.
        IntegrityError: it is damaged.
    """
    path = Path(path)
    if (path / "checkpoints").is_dir():
        checkpoint = best_model(path)
        return _of_run(path, checkpoint, kind="run", results=path / "evaluation")
    # Only a bundle carries metadata.json: one that lost its manifest is refused, not read as a bare model.
    if (path / "bundle.json").is_file() or (path / "configs" / "metadata.json").is_file():
        carried = path / "docs" / "provenance.json"
        provenance = read_config(carried) if carried.is_file() else {}
        return Subject(load_bundle(path), "bundle", "", None, provenance, _beside(path))
    if (path / "configs" / "model.json").is_file():
        run = path.resolve().parent.parent
        if (run / "provenance.json").is_file():
            return _of_run(run, path, kind="checkpoint", results=run / f"evaluation-{path.name}")
        return Subject(read_model(path), "model", "", None, {}, _beside(path))
    raise UsageError(
        "this folder is neither a run, a checkpoint nor a bundle.",
        hint="Give the folder that 'medvl cxr train' or 'medvl export' wrote.",
    )


def _of_run(run: Path, checkpoint: Path, *, kind: str, results: Path) -> Subject:
    recipe = load_recipe(run / "recipe.yaml")
    provenance = read_provenance(run)
    return Subject(read_model(checkpoint), kind, checkpoint.name, recipe, provenance, results, checkpoint)


def _beside(path: Path) -> Path:
    # Not inside: a bundle lists every one of its files, and one more would make it refuse to load.
    return path.resolve().parent / f"{path.resolve().name}-evaluation"
