"""What happens between steps: log, validate, keep a checkpoint, stop when asked."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any, Literal, cast

import torch
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.fabric.plugins.io import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from medvl.errors import CheckpointError, ConfigError
from medvl.features import Batch, LossTerms
from medvl.progress import Progress
from medvl.training.checkpoints import checkpoint_path, mark_best, prune, verify, write_checkpoint
from medvl.training.logs import MetricsLog
from medvl.training.module import AlignmentModule, to_device
from medvl.training.recipe import Machine
from medvl.training.state import read_state, write_state
from medvl.training.validation import validate

__all__ = ["Between", "DirectoryIO", "StopSignal", "make_trainer"]

MODEL = "model."
AVERAGE = "average."


class DirectoryIO(CheckpointIO):
    """Lightning's checkpoints as directories: the model as a model directory, the rest as plain values.

    Args:
        write_model: fills a model directory with weights: the tensors named ``model.…`` here, or
            ``average.…`` where a run averages its weights.
        averaged: whether it does. The last weights then lie in the state beside, but for equal ones.
    """

    def __init__(
        self, write_model: Callable[[Path, dict[str, Tensor]], None], *, averaged: bool = False
    ) -> None:
        self._write_model, self._kept = write_model, AVERAGE if averaged else MODEL

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint directory, whole or not at all."""
        tensors = checkpoint["state_dict"]
        kept = {name: tensor for name, tensor in tensors.items() if name.startswith(self._kept)}
        rest = {
            name: tensor
            for name, tensor in tensors.items()
            if name not in kept and not _equal(kept.get(self._kept + name.removeprefix(MODEL)), tensor)
        }

        def write(folder: Path) -> None:
            self._write_model(folder, {key.removeprefix(self._kept): value for key, value in kept.items()})
            (folder / "training").mkdir()
            write_state(folder / "training", {**checkpoint, "state_dict": rest})

        write_checkpoint(Path(path), write)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = None,
        weights_only: bool | None = None,  # noqa: FBT001 - Lightning's signature
    ) -> dict[str, Any]:
        """Read a checkpoint directory.

        Raises:
            CheckpointError: a file is missing, damaged or not listed in the manifest.
        """
        folder = Path(path)
        verify(folder)
        checkpoint: dict[str, Any] = read_state(folder / "training")
        weights = _weights(folder)
        kept = {prefix + name: tensor for prefix in (MODEL, self._kept) for name, tensor in weights.items()}
        checkpoint["state_dict"] = {**kept, **checkpoint["state_dict"]}
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Refuse: :func:`medvl.training.checkpoints.prune` decides what goes."""
        raise CheckpointError(
            f"{Path(path).name} is not Lightning's to delete.", hint="Use checkpoints.prune."
        )


def _weights(folder: Path) -> dict[str, Tensor]:
    try:
        return load_file(folder / "models" / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder.name}: the weights cannot be read: {error}.", hint="Remove this checkpoint."
        ) from error


def _equal(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and one.dtype == other.dtype and torch.equal(one, other)


class StopSignal:
    """Remembers SIGINT and SIGTERM instead of dying of them; a second one acts as usual."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Take the signals over; only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._remember)

    def ignore(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self.ignore()


class Between(Callback):
    """Everything a run does between two steps.

    Args:
        run: the run directory.
        table: the metrics table; None on ranks that do not write.
        validation: the batches of the validation split each time it is called; None for no validation.
        every_steps: steps between validations and checkpoints.
        log_every: steps between rows of the log.
        monitor: the column that decides which checkpoint is the best; larger is better for recall.
        patience: validations without improvement before the run stops; 0 for never.
        keep: newest checkpoints that stay.
        progress: told about each logged step.
    """

    def __init__(
        self,
        run: Path,
        *,
        table: MetricsLog | None,
        validation: Callable[[], Iterable[Batch]] | None,
        every_steps: int,
        log_every: int,
        monitor: str,
        patience: int,
        keep: int,
        progress: Progress | None,
    ) -> None:
        self.run, self.validation, self.progress = run, validation, progress
        self.table = table  # not "log": Lightning gives its callbacks a function of that name
        self.every_steps, self.log_every, self.keep = every_steps, log_every, keep
        self.monitor, self.patience = monitor, patience
        self.sign = 1.0 if "recall" in monitor else -1.0
        self.stop = StopSignal()
        self.best: float | None = None
        self.stale = 0
        self.stopped_early = self.interrupted = False

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must know."""
        return {"best": self.best, "stale": self.stale}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the checkpoint left off."""
        self.best, self.stale = state_dict["best"], state_dict["stale"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from Lightning, which would leave without saving."""
        self.stop.listen()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        self.stop.ignore()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log, validate, save and stop, each when it is due."""
        module = cast(AlignmentModule, pl_module)  # or another that tells its steps and its last terms
        step, last = trainer.global_step, trainer.global_step >= module.steps
        row: dict[str, float] = {}
        if step % self.log_every == 0 or last or step == 1:
            row |= self._train_row(trainer, module.last_terms)
            if self.progress is not None and trainer.is_global_zero:
                self.progress(step, module.steps, "training")
        due = step % self.every_steps == 0 or last
        improved = False
        if due and self.validation is not None:
            row |= self._validate(trainer, module)
            improved = self._judge(row[self.monitor])
        if row and self.table is not None:
            self.table.write(step, (step - 1) // module.steps_per_epoch, row)
        self.interrupted = self._interrupted(trainer)
        if due or self.interrupted:
            self._save(trainer, improved=improved)
        self.stopped_early = bool(self.patience) and self.stale >= self.patience and not last
        if self.interrupted or self.stopped_early:
            trainer.should_stop = True

    def _train_row(self, trainer: Trainer, terms: LossTerms | None) -> dict[str, float]:
        assert terms is not None
        values = {"loss": terms.total.detach(), **terms.terms}
        row = {f"train/{name}": float(value) for name, value in values.items()}
        if not math.isfinite(row["train/loss"]):
            raise ConfigError(
                f"the loss is {row['train/loss']} at step {trainer.global_step}.",
                hint="Lower optimiser.lr, lengthen schedule.warmup or set loop.precision to 32.",
            )
        return {**row, "lr": float(trainer.optimizers[0].param_groups[0]["lr"])}

    def _validate(self, trainer: Trainer, module: AlignmentModule) -> dict[str, float]:
        assert self.validation is not None
        batches = (to_device(batch, module.device) for batch in self.validation())
        module.eval()
        with trainer.precision_plugin.forward_context():
            row = validate(batches, encode=module.encode, loss=module.loss)
        module.train()
        return row

    def _judge(self, score: float) -> bool:
        better = self.best is None or self.sign * score > self.sign * self.best
        self.best, self.stale = (score, 0) if better else (self.best, self.stale + 1)
        return better

    def _interrupted(self, trainer: Trainer) -> bool:
        received = self.stop.received is not None
        if trainer.world_size > 1:  # all ranks leave after the same step, or one waits for ever
            return bool(trainer.strategy.reduce_boolean_decision(received, all=False))
        return received

    def _save(self, trainer: Trainer, *, improved: bool) -> None:
        folder = checkpoint_path(self.run, trainer.global_step)
        trainer.save_checkpoint(folder, weights_only=False)
        if trainer.is_global_zero:
            if improved:
                assert self.best is not None
                mark_best(folder, score=self.best)
            prune(self.run, keep=self.keep)


def make_trainer(
    machine: Machine,
    between: Between,
    files: DirectoryIO,
    *,
    strategy: Any,
    precision: Literal["32", "bf16-mixed"],
    steps: int,
    clip: float,
    start: int,
    rank: ClusterEnvironment | None,
) -> Trainer:
    """Return a trainer that leaves everything between two steps to ``between``, and open its table.

    Args:
        machine: where it computes.
        between: its only callback; on the first rank it gets its table.
        files: how checkpoints are written.
        strategy: how devices share the work, as Lightning takes it.
        precision: of the forward pass.
        steps: of the whole run.
        clip: largest gradient norm; 0 for no clipping.
        start: the step that a resumed run begins with.
        rank: the place of this process among several, or None.
    """
    trainer = Trainer(
        accelerator=machine.accelerator,
        devices=machine.devices,
        strategy=strategy,
        precision="32-true" if precision == "32" else precision,
        max_steps=steps,
        max_epochs=-1,
        gradient_clip_val=clip or None,
        callbacks=[between],
        plugins=[files] if rank is None else [files, rank],
        default_root_dir=between.run,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    if trainer.is_global_zero:
        between.table = MetricsLog(between.run, step=start, tensorboard=machine.tensorboard)
    return trainer
