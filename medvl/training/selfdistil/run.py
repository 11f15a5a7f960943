"""Image-only pre-training as one call: a record store in, a run and the teacher's tower out."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from medvl.data.loader import BatchOrder
from medvl.encoders.image import ImageTower, build_image_encoder
from medvl.encoders.saving import save_tensors
from medvl.errors import ConfigError, UsageError
from medvl.progress import Progress
from medvl.specs import VolumeInput
from medvl.store import Store, write_atomic
from medvl.training import checkpoints
from medvl.training.ranks import other_ranks, say_ready
from medvl.training.run import RunSummary, claim, finished, quiet, store_digest
from medvl.training.selfdistil.model import Distiller
from medvl.training.selfdistil.recipe import PretrainRecipe
from medvl.training.selfdistil.views import Cut, FilmDataset, ViewStream
from medvl.training.setup import fitted
from medvl.training.start import start_of

if TYPE_CHECKING:  # Lightning takes seconds to import
    from lightning.fabric.plugins.environments import ClusterEnvironment

__all__ = ["TOWER", "pretrain", "pretrain_as", "write_tower"]

log = logging.getLogger(__name__)

TOWER = "tower"
"""Folder of a run that a recipe of alignment names as ``image.weights``."""


@dataclass(frozen=True)
class _Setup:
    films: FilmDataset
    order: BatchOrder
    steps: int
    model: Distiller


def pretrain(
    data: Path | str, out: Path | str, *, recipe: PretrainRecipe, progress: Progress | None = None
) -> RunSummary:
    """Train an image tower on the films or volumes of a record store, without their reports.

    ``out`` gets a run directory as :func:`medvl.training.run.train` writes it, and at the end ``out/tower``
    with the teacher's ``image.safetensors`` and ``image.json``, which a recipe of alignment takes as
    ``image.weights``. Called again with the same arguments it continues from the newest whole checkpoint
    and, on a CPU, ends bit-equal to an uninterrupted run.

    Args:
        data: the record store; only the split ``train`` is read.
        out: the run directory; absent, empty, or an unfinished run of the same recipe and data.
        recipe: all values.
        progress: told about each logged step.

    Raises:
        ConfigError: the run directory belongs to another recipe, the loss is not a number, or the strategy is
            ``fsdp``.
        UsageError: the store is of another modality, the folder holds something else, or there is no film.
        CheckpointError: the run directory belongs to other data, or the weights to start from are damaged.
        StoreError: the store is damaged.

    Source: Pérez-García et al. 2024 (RAD-DINO), arXiv 2401.10815; Oquab et al. 2023 (DINOv2),
    arXiv 2304.07193.
    """
    started = time.monotonic()
    store, run = Store(data), Path(out)
    if store.manifest.get("modality", recipe.modality) != recipe.modality:
        raise UsageError(
            f"the store holds {store.manifest['modality']}, the recipe is for {recipe.modality}.",
            hint=f"Use 'medvl {store.manifest['modality']} train'.",
        )
    if recipe.machine.strategy == "fsdp":
        raise ConfigError(
            "machine.strategy is fsdp; self-distillation knows auto and ddp.",
            hint="Set machine.strategy to ddp; image.activation_checkpointing saves memory.",
        )
    claim(run, recipe, store)
    done = finished(run)
    if done is not None:
        return RunSummary(run, "complete", done["step"], done["steps"], None, time.monotonic() - started)
    task = {"data": str(data), "run": str(run), "recipe": recipe.model_dump(mode="json")}
    with other_ranks(task, world=recipe.machine.devices) as (rank, others):
        setup = _set_up(store, recipe)
        _write_provenance(run, recipe, store, setup)
        if others is not None:
            others.wait_until_ready()
        step, status, received = _fit(setup, run, recipe=recipe, progress=progress, rank=rank)
    summary = RunSummary(run, status, step, setup.steps, None, time.monotonic() - started, received)
    if status == "finished":
        write_tower(run / TOWER, setup.model.teacher, recipe=recipe, pixels=store.pixel_spec.digest)
        values = {"status": status, "step": step, "steps": setup.steps, "best": None}
        write_atomic(run / "summary.json", json.dumps(values).encode())
    return summary


def pretrain_as(task: dict[str, Any], rank: ClusterEnvironment) -> None:
    """Train as one of the other processes of a run; see :func:`medvl.training.run.take_part`."""
    store, recipe = Store(task["data"]), PretrainRecipe.from_values(task["recipe"])
    setup = _set_up(store, recipe)
    say_ready()
    _fit(setup, Path(task["run"]), recipe=recipe, progress=None, rank=rank)


def write_tower(folder: Path, tower: ImageTower, *, recipe: PretrainRecipe, pixels: str) -> None:
    """Write an image tower so that ``image.weights`` can name the folder.

    Args:
        folder: where to; made if absent.
        tower: whose weights.
        recipe: says how its input was made.
        pixels: digest of the pixel spec of the store.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in tower.state_dict().items()}
    save_tensors(weights, folder / "image.safetensors")
    values = {
        "name": tower.name,
        "architecture": tower.architecture,
        "input": recipe.input.model_dump(mode="json"),
        "pixels": pixels,
    }
    write_atomic(folder / "image.json", json.dumps(values, indent=1).encode())


def _set_up(store: Store, recipe: PretrainRecipe) -> _Setup:
    torch.manual_seed(recipe.loop.seed)
    tower = build_image_encoder(
        recipe.image.name, fitted(recipe.image.name, recipe.image.options, recipe.input)
    )
    if recipe.image.weights is not None:
        start = start_of(
            Path(recipe.image.weights),
            side="image",
            name=recipe.image.name,
            inside=recipe.image.options.get("encoder"),
        )
        tower.load_weights(start.tensors)
    crops, terms = recipe.crops, recipe.objective.options
    cut = Cut(
        input=recipe.input,
        grid=_grid(tower, recipe.input.size_px),
        small_px=recipe.small_px,
        augment=recipe.augment.build(volumes=isinstance(recipe.input, VolumeInput)),
        **crops.model_dump(exclude={"small_px"}),
    )
    films = FilmDataset(
        store,
        "train",
        cut=cut,
        seed=recipe.loop.seed,
        split_seed=recipe.data.split_seed,
        cache_mb=recipe.machine.cache_mb,
    )
    order = BatchOrder(len(films), size=recipe.data.batch, seed=recipe.loop.seed)
    steps = recipe.schedule.steps or max(1, math.ceil(recipe.schedule.epochs * order.steps_per_epoch))
    schedules = {"teacher_temperature", "teacher_warmup", "momentum"}
    model = Distiller(tower, **terms.model_dump(exclude=schedules))
    if recipe.image.activation_checkpointing:
        model.student.checkpoint_activations()
    return _Setup(films, order, steps, model)


@torch.no_grad()
def _grid(tower: ImageTower, size_px: tuple[int, ...]) -> tuple[int, ...]:
    """Return the grid of regions that a tower has at a size."""
    tower.eval()
    seen = tower(torch.zeros(1, tower.channels, *size_px), torch.ones(1, *size_px, dtype=torch.bool))
    tower.train()
    grid: tuple[int, ...] = seen.region_grid
    return grid


def _write_provenance(run: Path, recipe: PretrainRecipe, store: Store, setup: _Setup) -> None:
    values = {
        "store": store_digest(store),
        "modality": recipe.modality,
        "split_seed": recipe.data.split_seed,
        "records": {"train": len(setup.films)},
        "skipped": {"train": setup.films.skipped},
        "steps": setup.steps,
        "steps_per_epoch": setup.order.steps_per_epoch,
        "parameters": sum(p.numel() for p in setup.model.student.parameters()),
        "versions": {
            name: importlib.metadata.version(name) for name in ("medvl", "torch", "lightning", "numpy")
        },
    }
    write_atomic(run / "provenance.json", json.dumps(values, indent=1, sort_keys=True).encode())


def _write_model(folder: Path, tensors: dict[str, Tensor]) -> None:
    (folder / "models").mkdir(parents=True)
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_tensors(whole, folder / "models" / "model.safetensors")


def _fit(
    setup: _Setup,
    run: Path,
    *,
    recipe: PretrainRecipe,
    progress: Progress | None,
    rank: ClusterEnvironment | None = None,
) -> tuple[int, Literal["finished", "interrupted"], int]:
    with quiet():
        from medvl.training.selfdistil.module import DistilModule
        from medvl.training.steps import Between, DirectoryIO, make_trainer

        resume = checkpoints.latest(run)
        start = int(resume.name.removeprefix("step-")) if resume else 0
        loop, terms, optimiser = recipe.loop, recipe.objective.options, recipe.optimiser
        module = DistilModule(
            setup.model,
            lr=optimiser.lr,
            weight_decay=optimiser.weight_decay,
            betas=optimiser.betas,
            warmup=round(recipe.schedule.warmup * setup.steps),
            floor=recipe.schedule.floor,
            temperature=terms.teacher_temperature,
            temperature_warmup=round(terms.teacher_warmup * setup.steps),
            momentum=terms.momentum,
            steps=setup.steps,
            steps_per_epoch=setup.order.steps_per_epoch,
            seed=loop.seed,
        )
        between = Between(
            run,
            table=None,
            validation=None,  # without labels or words nothing says which checkpoint is the best
            every_steps=loop.every_steps,
            log_every=loop.log_every,
            monitor="loss",
            patience=0,
            keep=loop.keep,
            progress=progress,
        )
        files = DirectoryIO(write_model=_write_model)
        trainer = make_trainer(
            recipe.machine,
            between,
            files,
            strategy="auto" if recipe.machine.devices == 1 else "ddp_find_unused_parameters_true",
            precision=loop.precision,
            steps=setup.steps,
            clip=optimiser.clip,
            start=start,
            rank=rank,
        )
        stream = ViewStream(
            setup.films,
            order=setup.order,
            start=start,
            stop=setup.steps,
            rank=trainer.global_rank,
            world=trainer.world_size,
            workers=recipe.machine.workers,
        )
        try:
            if resume is None or start < setup.steps:
                trainer.fit(module, stream, ckpt_path=resume, weights_only=False)
            else:  # the end was saved, but not yet the tower
                module.load_state_dict(files.load_checkpoint(resume)["state_dict"])
        finally:
            if between.table is not None:
                between.table.close()
            if rank is not None and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()  # what this process does next is not shared
    step = max(start, trainer.global_step)
    if between.interrupted and step < setup.steps:
        return step, "interrupted", between.stop.received or signal.SIGTERM
    return step, "finished", 0
