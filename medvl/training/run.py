"""The verb ``train``: a record store and a recipe become a run directory; it resumes by itself."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from medvl.config import parse_json
from medvl.data import BatchStream, in_order, positives
from medvl.errors import CheckpointError, ConfigError, UsageError
from medvl.modeldir import LoadedModel, write_model
from medvl.notice import NOTICE
from medvl.progress import Progress
from medvl.store import Store, write_atomic
from medvl.training import checkpoints
from medvl.training.ranks import join, other_ranks, say_ready
from medvl.training.recipe import Recipe, Whole, read_values
from medvl.training.selfdistil.recipe import is_pretraining
from medvl.training.setup import Setup, set_up

if TYPE_CHECKING:  # Lightning takes seconds to import
    from lightning.fabric.plugins.environments import ClusterEnvironment

    from medvl.training.module import AlignmentModule

__all__ = ["RunSummary", "claim", "finished", "quiet", "store_digest", "take_part", "train"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSummary:
    """How a call of :func:`train` ended.

    Attributes:
        run: the run directory.
        status: ``finished``; ``stopped`` early, for lack of improvement; ``interrupted`` by a signal, after
            saving; or ``complete``: it had finished before this call, and nothing was done.
        step, steps: the last step taken, and how many the recipe asks for.
        best: the best value of the monitored column, or None without a validation split.
        seconds: wall time of this call.
        signal: the number of the signal that interrupted it, or 0.
    """

    run: Path
    status: Literal["finished", "stopped", "interrupted", "complete"]
    step: int
    steps: int
    best: float | None
    seconds: float
    signal: int = 0

    @property
    def exit_code(self) -> int:
        """0, or 128 and the signal's number as shells count: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signal if self.signal else 0

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "run": str(self.run)}

    def lines(self) -> list[str]:
        """Return the text of the command."""
        best = "" if self.best is None else f", best validation value {self.best:.4f}"
        text = [f"{self.run}: {self.status} at step {self.step} of {self.steps}{best}, {self.seconds:.0f} s"]
        if self.status == "interrupted":
            text.append("Run the same command again to go on from here.")
        return [*text, NOTICE]


def train(
    data: Path | str,
    out: Path | str,
    *,
    recipe: Recipe,
    progress: Progress | None = None,
) -> RunSummary:
    """Train a model on a record store.

    ``out`` gets the run directory of :mod:`medvl.training.checkpoints`. Called again with the same arguments
    it continues from the newest whole checkpoint and, on a CPU, ends bit-equal to an uninterrupted run.
    SIGINT and SIGTERM save a checkpoint after the step at hand and return.

    Args:
        data: the record store.
        out: the run directory; absent, empty, or an unfinished run of the same recipe and data.
        recipe: all values; see :class:`medvl.training.recipe.Recipe`.
        progress: told about each logged step.

    Raises:
        ConfigError: the run directory belongs to another recipe, or the loss is not a number.
        UsageError: the store is of another modality, the folder holds something else, or there is nothing to
            train on.
        CheckpointError: the run directory belongs to other data.
        StoreError: the store is damaged.
    """
    started = time.monotonic()
    store, run = Store(data), Path(out)
    if store.manifest.get("modality", recipe.modality) != recipe.modality:
        raise UsageError(
            f"the store holds {store.manifest['modality']}, the recipe is for {recipe.modality}.",
            hint=f"Use 'medvl {store.manifest['modality']} train'.",
        )
    claim(run, recipe, store)
    done = finished(run)
    if done is not None:
        log.info("this run is complete: %d steps", done["step"])
        return RunSummary(
            run, "complete", done["step"], done["steps"], done["best"], time.monotonic() - started
        )
    task = {"data": str(data), "run": str(run), "recipe": recipe.model_dump(mode="json")}
    with other_ranks(task, world=recipe.machine.devices) as (rank, others):
        setup = set_up(store, recipe)
        _write_provenance(run, recipe, store, setup)
        if others is not None:
            others.wait_until_ready()
        step, status, best, received = _fit(setup, store, run, recipe=recipe, progress=progress, rank=rank)
    summary = RunSummary(run, status, step, setup.steps, best, time.monotonic() - started, received)
    if status != "interrupted":
        values = {
            key: value for key, value in asdict(summary).items() if key in ("status", "step", "steps", "best")
        }
        write_atomic(run / "summary.json", json.dumps(values).encode())
    return summary


def store_digest(store: Store) -> str:
    """Return a hash of everything a run reads from a store: pixels, words, labels, patients, splits."""
    columns = [
        "record_id",
        "study_id",
        "patient_id",
        "split",
        "retrieval",
        "generation",
        "labels",
        "pixel_hash",
        "pixel_digest",
        "report_digest",
        "geometry",
    ]
    if any(store.table["parts_size"].to_pylist()):
        columns.append("parts_crc32")
    rows = store.table.select(columns).to_pylist()
    return hashlib.blake2b(json.dumps(rows, sort_keys=True).encode(), digest_size=12).hexdigest()


def claim(run: Path, recipe: Whole, store: Store) -> None:
    """Make the folder a run of this recipe and these data, or refuse."""
    if (run / "recipe.yaml").is_file():
        differences = type(recipe).from_values(read_values(run / "recipe.yaml")).differences(recipe)
        if differences:
            raise ConfigError(
                f"this run was started with another recipe (then / now): {'; '.join(differences)}.",
                hint="Give another output folder, or the recipe.yaml of this one.",
            )
        if (run / "provenance.json").is_file():
            before, now = checkpoints.read_provenance(run)["store"], store_digest(store)
            if before != now:
                raise CheckpointError(
                    f"this run was started with other data: store digest {before} then, {now} now.",
                    hint="Give another output folder, or the store it was started with.",
                )
        return
    if run.exists() and any(run.iterdir()):
        raise UsageError("the output folder holds something else than a run.", hint="Give a new folder.")
    run.mkdir(parents=True, exist_ok=True)
    write_atomic(run / "recipe.yaml", recipe.to_yaml().encode())


def finished(run: Path) -> dict[str, Any] | None:
    """Return what the summary of a run says, or None before its end."""
    path = run / "summary.json"
    if not path.is_file():
        return None
    try:
        values = parse_json(path.read_text("utf-8"), what=path.name)
        return {"step": int(values["step"]), "steps": int(values["steps"]), "best": values["best"]}
    except (ConfigError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"summary.json of the run is damaged: {error}.",
            hint="Remove it and train again; it is made anew.",
        ) from error


def _write_provenance(run: Path, recipe: Recipe, store: Store, setup: Setup) -> None:
    validation = setup.validation
    values = {
        "store": store_digest(store),
        "modality": recipe.modality,
        "split_seed": recipe.data.split_seed,
        "records": {"train": len(setup.train), "val": len(validation) if validation else 0},
        "skipped": {"train": setup.train.skipped, "val": validation.skipped if validation else {}},
        "steps": setup.steps,
        "steps_per_epoch": setup.order.steps_per_epoch,
        "parameters": sum(p.numel() for p in setup.model.parameters()),
        "trained_parameters": sum(p.numel() for p in setup.model.parameters() if p.requires_grad),
        "versions": {
            name: importlib.metadata.version(name) for name in ("medvl", "torch", "lightning", "numpy")
        },
    }
    write_atomic(run / "provenance.json", json.dumps(values, indent=1, sort_keys=True).encode())


def take_part() -> None:
    """Train as one of the other processes of a run, whose first process wrote the task to this one's input.

    It reads data and recipe as the first one does, computes its share of each batch, and writes nothing.
    """
    task, rank = join()
    if is_pretraining(task["recipe"]):
        from medvl.training.selfdistil.run import pretrain_as

        pretrain_as(task, rank)
        return
    store, recipe = Store(task["data"]), Recipe.from_values(task["recipe"])
    setup = set_up(store, recipe)
    say_ready()
    _fit(setup, store, Path(task["run"]), recipe=recipe, progress=None, rank=rank)


def _fit(
    setup: Setup,
    store: Store,
    run: Path,
    *,
    recipe: Recipe,
    progress: Progress | None,
    rank: ClusterEnvironment | None = None,
) -> tuple[int, Literal["finished", "stopped", "interrupted"], float | None, int]:
    with quiet():
        from medvl.training.steps import Between, DirectoryIO, make_trainer

        resume = checkpoints.latest(run)
        start = int(resume.name.removeprefix("step-")) if resume else 0
        module = _module(setup, recipe)
        loaded = LoadedModel(
            model=module.judged,
            pixels=store.pixel_spec,
            input=recipe.input,
            report=store.report_spec,
            tokeniser=setup.tokeniser,
        )
        loop = recipe.loop
        between = Between(
            run,
            table=None,
            validation=_batches(setup, size=recipe.data.batch),
            every_steps=loop.every_steps,
            log_every=loop.log_every,
            monitor="val/recall@5" if loop.monitor == "recall" else "val/loss",
            patience=loop.patience,
            keep=loop.keep,
            progress=progress,
        )
        files = DirectoryIO(
            write_model=lambda folder, tensors: write_model(folder, loaded, tensors=tensors),
            averaged=module.average is not None,
        )
        trainer = make_trainer(
            recipe.machine,
            between,
            files,
            strategy=_strategy(recipe),
            precision=loop.precision,
            steps=setup.steps,
            clip=recipe.optimiser.clip,
            start=start,
            rank=rank,
        )
        stream = BatchStream(
            setup.train,
            order=setup.order,
            encode=setup.tokeniser.encode,
            start=start,
            stop=setup.steps,
            rank=trainer.global_rank,
            world=trainer.world_size,
            workers=recipe.machine.workers,
        )
        try:
            if start < setup.steps:
                trainer.fit(module, stream, ckpt_path=resume, weights_only=False)
        finally:
            if between.table is not None:
                between.table.close()
            if rank is not None and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()  # what this process does next is not shared
    if between.interrupted and trainer.global_step < setup.steps:
        return trainer.global_step, "interrupted", between.best, between.stop.received or signal.SIGTERM
    return trainer.global_step, "stopped" if between.stopped_early else "finished", between.best, 0


def _module(setup: Setup, recipe: Recipe) -> AlignmentModule:
    from medvl.training.module import AlignmentModule, Learning

    aim, optimiser, schedule = recipe.objective, recipe.optimiser, recipe.schedule
    devices, sharded = recipe.machine.devices, recipe.machine.strategy == "fsdp"
    if devices > 1 and torch.cuda.is_available():
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(setup.model.image_encoder)
    names = None
    if setup.names:
        tokens, mask = setup.tokeniser.encode([[name] for name in setup.names])
        names = torch.from_numpy(tokens), torch.from_numpy(mask)
    given: dict[str, Any] = {"mode": aim.positives, "weight": aim.similar_weight}
    if aim.positives == "bank":
        given |= {"neighbours": aim.neighbours, "least": aim.least}
    return AlignmentModule(
        setup.model,
        setup.objective,
        positives=functools.partial(positives, **given),
        learning=Learning(
            lr=optimiser.lr,
            image=optimiser.image,
            text=optimiser.text,
            weight_decay=optimiser.weight_decay,
            betas=optimiser.betas,
            layer_decay=optimiser.layer_decay,
            warmup=round(schedule.warmup * setup.steps),
            floor=schedule.floor,
            ema=recipe.loop.ema,
        ),
        steps=setup.steps,
        steps_per_epoch=setup.order.steps_per_epoch,
        seed=recipe.loop.seed,
        chunk=recipe.data.chunk,
        names=names,
        body_parts=setup.body_parts,
        sharded=sharded and devices > 1,
    )


def _strategy(recipe: Recipe) -> Any:
    if recipe.machine.devices == 1:
        return "auto"
    if recipe.machine.strategy == "fsdp":
        from medvl.training.sharding import ShardedStrategy

        return ShardedStrategy()
    # After chunks the module averages its gradients itself, see AlignmentModule.on_train_start.
    return "ddp" if recipe.data.chunk is not None else "ddp_find_unused_parameters_true"


def _batches(setup: Setup, *, size: int) -> Callable[[], Iterator[Any]] | None:
    if setup.validation is None:
        return None
    return functools.partial(in_order, setup.validation, encode=setup.tokeniser.encode, size=size)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what Lightning says about choices that were made on purpose; each is named."""
    import lightning.pytorch  # sets the level of its logger on import

    loggers = [
        logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", lightning.__name__)
    ]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in (
            r".*module\(s\) in eval mode at the start of training.*",  # a frozen tower is meant to be
            r".*GPU available but not used.*",  # machine.accelerator says so
            r".*treespec, LeafSpec.*",  # Lightning calls what torch deprecates
            r"FSDP2-wrapped module .* returned a view tensor.*",  # nothing changes features in place
        ):
            warnings.filterwarnings("ignore", message=message)
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
