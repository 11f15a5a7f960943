"""The verbs of the command as plain functions; each loads its room when it is called."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvl.errors import UsageError, nearest
from medvl.notice import NOTICE
from medvl.progress import Progress

if TYPE_CHECKING:
    from medvl.bundle import ExportSummary
    from medvl.evaluation.run import Evaluation
    from medvl.evaluation.transfer import Transfer
    from medvl.images import Image
    from medvl.model import Model
    from medvl.modeldir import LoadedModel
    from medvl.phantoms.cxr import PhantomSummary
    from medvl.preprocess.assembly import PrepareSummary
    from medvl.retrieval.index import IndexSummary
    from medvl.retrieval.lance import LanceIndex
    from medvl.retrieval.results import Results
    from medvl.training.recipe import Recipe
    from medvl.training.run import RunSummary
    from medvl.training.selfdistil.recipe import PretrainRecipe

__all__ = [
    "MODALITIES",
    "erase",
    "evaluate",
    "export",
    "index",
    "list_recipes",
    "load",
    "phantom",
    "prepare",
    "resolve_recipe",
    "search",
    "train",
    "transfer",
]

MODALITIES = {"cxr": "chest X-ray", "ct": "CT"}
"""The modalities and their names in words."""


@dataclass(frozen=True)
class Listing:
    """Names with what they are for."""

    entries: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return dict(self.entries)

    def lines(self) -> list[str]:
        """Return one line a name."""
        width = max(map(len, self.entries), default=0)
        return [f"{name:<{width}}  {about}" for name, about in self.entries.items()]


@dataclass(frozen=True)
class ErasureSummary:
    """How many rows were erased from an index."""

    erased: int
    left: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**self.__dict__}

    def lines(self) -> list[str]:
        """Return the text of the command."""
        return [f"{self.erased} records erased for good; the index holds {self.left}", NOTICE]


def _modality(name: str) -> str:
    if name not in MODALITIES:
        raise UsageError(f"unknown modality '{name}'.", hint=nearest(name, MODALITIES))
    return name


def phantom(
    out: str | Path,
    *,
    modality: str = "cxr",
    n: int = 200,
    seed: int = 0,
    level: str = "middle",
    size_px: int | None = None,
    unobservable: float = 0.3,
    findings: Sequence[str] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> PhantomSummary:
    """Write ``n`` synthetic studies with known truth.

    See :func:`medvl.phantoms.cxr.write_phantoms` and :func:`medvl.phantoms.ct.write_ct_phantoms`, whose
    ``size_px`` is taken where it is None.
    """
    from medvl.phantoms import write_ct_phantoms, write_phantoms

    write: Callable[..., PhantomSummary] = (
        write_ct_phantoms if _modality(modality) == "ct" else write_phantoms
    )
    size = {} if size_px is None else {"size_px": size_px}
    return write(
        Path(out), n=n, seed=seed, level=level, unobservable=unobservable, findings=findings, workers=workers,
        progress=progress, **size,
    )  # fmt: skip


def prepare(
    source: str | Path,
    out: str | Path,
    *,
    modality: str = "cxr",
    pixels: Mapping[str, Any] | None = None,
    report: Mapping[str, Any] | None = None,
    layout: str = "auto",
    table: Path | None = None,
    columns: Mapping[str, str] | None = None,
    labels: Path | None = None,
    boxes: Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> PrepareSummary:
    """Turn studies and reports into a record store.

    Args:
        source: a tree of DICOM files or a folder of images, with their reports; or an archive of one.
        out: the store; a half-written one is resumed.
        modality: ``"cxr"`` or ``"ct"``.
        pixels: values of :class:`medvl.specs.PixelSpec`, for example ``{"longest_px": 256}``, or for CT of
            :class:`medvl.specs.VolumeSpec`, for example ``{"spacing_mm": (2, 2, 2)}``.
        report: values of :class:`medvl.specs.ReportSpec`, for example ``{"parser": "de-1"}``.
        layout: a public layout by name, ``"auto"`` to look for one, ``"none"`` for none.
        table: report table; found in the source if None.
        columns: role to column name, where the guess is wrong.
        labels: label table; found in the source if None.
        boxes: box table; found in the source if None.
        progress: called as images are done.
        options: of :func:`medvl.preprocess.pipeline.prepare`: ``burned_in``, ``clean_text``, ``split``,
            ``split_seed``, ``key``, ``workers``, ``scheduler``, ``retry_failed``.
    """
    from medvl.preprocess.pipeline import Tables
    from medvl.preprocess.pipeline import prepare as run
    from medvl.specs import PixelSpec, ReportSpec, VolumeSpec

    spec = VolumeSpec if _modality(modality) == "ct" else PixelSpec
    return run(
        Path(source),
        Path(out),
        modality=modality,
        tables=Tables(layout, table, columns, labels, boxes),
        pixels=spec.from_json(dict(pixels or {})),
        report=ReportSpec.from_json(dict(report or {})),
        progress=progress,
        **options,
    )


def resolve_recipe(
    recipe: str | Path, *, modality: str = "cxr", overrides: Sequence[str] = ()
) -> Recipe | PretrainRecipe:
    """Return a recipe by name or file, with ``section.key=value`` overrides applied."""
    from medvl.recipes import resolve

    return resolve(recipe, overrides, modality=_modality(modality))


def list_recipes() -> Listing:
    """Return every recipe with what it is for."""
    from medvl import recipes

    return Listing(
        {
            f"{modality} {name}": recipes.resolve(name, modality=modality).about
            for modality in MODALITIES
            for name in recipes.names(modality)
        }
    )


def train(
    data: str | Path,
    out: str | Path,
    *,
    modality: str = "cxr",
    recipe: str | Path | Recipe | PretrainRecipe | None = None,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> RunSummary:
    """Train a model on a record store; called again, an interrupted run goes on.

    Args:
        data: the record store.
        out: the run directory.
        modality: where a recipe's name is looked up.
        recipe: a name, a YAML file, or a recipe; None is the modality's default. One of pre-training
            (``dino``) reads the images alone and leaves an image tower.
        overrides: ``section.key=value`` strings.
        progress: called with each logged step.
    """
    if recipe is None:
        from medvl.recipes import default

        recipe = default(_modality(modality))
    if isinstance(recipe, str | Path):
        chosen = resolve_recipe(recipe, modality=modality, overrides=overrides)
    else:
        chosen = recipe.with_overrides(overrides)
    from medvl.training.selfdistil.recipe import PretrainRecipe

    if isinstance(chosen, PretrainRecipe):
        from medvl.training.selfdistil.run import pretrain

        return pretrain(data, out, recipe=chosen, progress=progress)
    from medvl.training.run import train as run

    return run(data, out, recipe=chosen, progress=progress)


def evaluate(
    model: str | Path,
    data: str | Path,
    *,
    out: str | Path | None = None,
    prompts: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Evaluation:
    """Evaluate a run or a bundle: retrieval, zero-shot, grounding; a table, figures and JSON.

    Args:
        model: a run, a checkpoint or a bundle.
        data: the record store.
        out: folder of the results; ``RUN/evaluation``, or beside a bundle, by default.
        prompts: YAML file; default: those of the store's modality.
        progress: called as the steps go by.
        options: of :func:`medvl.evaluation.run.evaluate`: ``split``, ``uncertain``, ``baselines``,
            ``resamples``, ``seed``.
    """
    from medvl.evaluation.run import evaluate as run

    return run(
        Path(model), Path(data), Path(out) if out is not None else None,
        prompts=Path(prompts) if prompts is not None else None, progress=progress, **options,
    )  # fmt: skip


def transfer(model: str | Path, data: str | Path, out: str | Path | None = None, **options: Any) -> Transfer:
    """Teach a model's image encoder to outline parts or to tell findings; a table and JSON.

    Args:
        model: a run, a checkpoint or a bundle.
        data: a record store with parts or labels.
        out: folder of the results; see :func:`medvl.evaluation.transfer.transfer` if None.
        options: of that function: ``task``, ``train``, ``start``, ``share``, ``steps``, …
    """
    from medvl.evaluation.transfer import transfer as run

    return run(Path(model), Path(data), Path(out) if out is not None else None, **options)


def _prompts_file(modality: str) -> Path:
    import medvl.recipes

    return Path(medvl.recipes.__file__).parent / _modality(modality) / "prompts.yaml"


def export(run: str | Path, bundle: str | Path, *, onnx: bool = True) -> ExportSummary:
    """Write the best checkpoint of a run as a bundle; see :func:`medvl.bundle.export`."""
    from medvl.bundle import export as write

    return write(Path(run), Path(bundle), onnx=onnx)


def load(path: str | Path, *, modality: str | None = None) -> Model:
    """Load a bundle, or the best checkpoint of a run, as a model that answers.

    Args:
        path: a bundle or a run.
        modality: whose prompts name its findings; None is CT for a model of volumes, else chest X-ray.
    """
    from medvl.heads.zeroshot import read_prompts
    from medvl.model import Model
    from medvl.specs import VolumeSpec

    loaded = _loaded(Path(path))
    known = "ct" if isinstance(loaded.pixels, VolumeSpec) else "cxr"
    return Model(loaded, prompts=read_prompts(_prompts_file(modality or known)))


def _loaded(path: Path) -> LoadedModel:
    from medvl.bundle import load_bundle
    from medvl.modeldir import read_model
    from medvl.training.checkpoints import best_model

    if (path / "checkpoints").is_dir():
        return read_model(best_model(path))
    return load_bundle(path)


def index(
    bundle: str | Path, data: str | Path, index: str | Path, *, progress: Progress | None = None
) -> IndexSummary:
    """Embed a store and write an index, or add to one; see :func:`medvl.retrieval.index.build_index`."""
    from medvl.retrieval.index import build_index
    from medvl.store import Store

    about = {"bundle": _beside(Path(bundle), index)}
    return build_index(_loaded(Path(bundle)), Store(data), index, about=about, progress=progress)


def _beside(bundle: Path, index: str | Path) -> str:
    """Return the bundle's path as seen from the index, so that both can move together."""
    if "://" in str(index):
        return str(bundle)
    return os.path.relpath(bundle.resolve(), Path(index).resolve())


def _bundle_of(opened: LanceIndex, index: str | Path) -> Path:
    kept = str(opened.about.get("bundle", ""))
    path = Path(kept) if "://" in str(index) else Path(index) / kept
    if not kept or not path.is_dir():
        raise UsageError(
            "the bundle that made this index is not where it was.", hint="Name it: --bundle BUNDLE"
        )
    return path


def search(
    index: str | Path,
    *,
    text: str | None = None,
    image: str | Path | Image | None = None,
    where: str | None = None,
    k: int = 10,
    exclude_patient: str | None = None,
    bundle: str | Path | None = None,
    html: str | Path | None = None,
) -> Results:
    """Find cases by text, by image, or by both; see :meth:`medvl.model.Model.search`.

    Args:
        index: the index.
        text: a sentence or a report.
        image: a DICOM file or a picture.
        where: an SQL filter over the index's columns.
        k: hits at most.
        exclude_patient: a patient to leave out.
        bundle: the model; default: the one that made the index, if it has not moved.
        html: also write a page with pictures there.
    """
    from medvl.retrieval.lance import LanceIndex

    opened = LanceIndex(index)
    model = load(bundle if bundle is not None else _bundle_of(opened, index))
    excluded = [exclude_patient] if exclude_patient else []
    results = model.search(opened, text=text, image=image, where=where, k=k, exclude_patients=excluded)
    if html is not None:
        Path(html).write_text(results.to_html(), "utf-8")
    return results


def erase(index: str | Path, *, patients: Sequence[str] = (), records: Sequence[str] = ()) -> ErasureSummary:
    """Erase patients or records from an index for good; see :meth:`LanceIndex.erase`."""
    from medvl.retrieval.lance import LanceIndex
    from medvl.retrieval.vectors import quoted

    opened = LanceIndex(index)
    clauses = [
        f"{column} IN ({', '.join(map(quoted, values))})"
        for column, values in (("patient_id", patients), ("record_id", records))
        if values
    ]
    if not clauses:
        raise UsageError("nothing to erase: 0 patients and 0 records are named.")
    erased = opened.erase(" OR ".join(clauses))
    return ErasureSummary(erased, opened.count())
