"""One stage's optimiser steps: seeded each by itself, kept every so often, stopped by a signal."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from medvl.errors import ConfigError
from medvl.language.decoder import Decoder, dropout
from medvl.language.options import Causal, Contrast, Masked, Supervised
from medvl.language.stages import Task
from medvl.progress import Progress
from medvl.training.checkpoints import checkpoint_path, latest, prune, write_checkpoint
from medvl.training.logs import MetricsLog
from medvl.training.optimiser import parameter_groups, warmup_cosine
from medvl.training.state import read_state, write_state

__all__ = ["StepOrder", "fit", "held_out_loss"]

StageOptions = Causal | Masked | Contrast | Supervised
_SORTED_BATCHES = 8


class StepOrder:
    """Which examples each step sees: every epoch all of them, texts of like length together.

    An epoch is shuffled, each run of 8 batches is sorted by length so that padding stays short, and the
    batches are shuffled again. The last examples that fill no batch wait for the next epoch's order.

    Args:
        lengths: of the examples.
        size: examples a batch; all of them if there are fewer.
        seed: of the order.

    Examples:
        >>> order = StepOrder(np.array([5, 1, 4, 2]), size=2, seed=0)
        >>> sorted([*order.rows(0), *order.rows(1)])
        [0, 1, 2, 3]
    """

    def __init__(self, lengths: Int64[np.ndarray, " examples"], *, size: int, seed: int) -> None:
        self.lengths, self.seed = lengths, seed
        self.size = min(size, len(lengths))
        self.steps_per_epoch = len(lengths) // self.size if self.size else 0
        self._made: tuple[int, list[list[int]]] = (-1, [])

    def rows(self, step: int) -> list[int]:
        """Return the examples of a step, counted from 0 over all epochs."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if self._made[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            drawn = rng.permutation(len(self.lengths))
            block = self.size * _SORTED_BATCHES
            ordered = np.concatenate(
                [
                    part[np.argsort(self.lengths[part], kind="stable")]
                    for part in np.split(drawn, range(block, len(drawn), block))
                ]
            )
            batches = [
                ordered[k * self.size : (k + 1) * self.size].tolist() for k in range(self.steps_per_epoch)
            ]
            self._made = (epoch, [batches[k] for k in rng.permutation(len(batches))])
        return self._made[1][index]


def fit(
    task: Task,
    decoder: Decoder,
    *,
    name: str,
    options: StageOptions,
    modules: dict[str, nn.Module],
    work: Path,
    seed: int,
    every_steps: int,
    log_every: int,
    table: MetricsLog,
    offset: int,
    autocast: Callable[[], AbstractContextManager[object]],
    stopped: Callable[[], bool],
    progress: Progress | None,
) -> tuple[int, int]:
    """Train ``modules`` on a stage; go on from its newest checkpoint.

    What a step computes depends on seed and step alone, so a resumed stage ends as an uninterrupted one.

    Args:
        task: examples and loss.
        decoder: the model, with its adapters if it has some.
        name: of the stage.
        options: of the stage.
        modules: what trains, by name; frozen parameters in them stay.
        work: where checkpoints go; removed by the caller when the stage is done.
        seed: of order, dropout and draws.
        every_steps: steps between two checkpoints.
        log_every: steps between two rows.
        table: the log.
        offset: steps of the stages before.
        autocast: gives the context of a forward pass.
        stopped: says whether to save and stop.
        progress: told about each step.

    Returns:
        The last step taken, and how many there are.

    Raises:
        ConfigError: nothing to train on, or the loss is not finite.
    """
    order = StepOrder(task.lengths, size=options.batch, seed=_seed(seed, name))
    if order.steps_per_epoch == 0:
        raise ConfigError(f"stage '{name}' has no text to train on.", hint="Leave the stage out.")
    total = options.steps or max(1, math.ceil(options.epochs * order.steps_per_epoch))
    warmup = round(options.warmup * total)
    named = _trained(modules)
    groups = parameter_groups(
        {name: list(named.items())}, lr=options.lr, factors={}, weight_decay=options.weight_decay
    )
    optimiser = torch.optim.AdamW(groups)
    start, losses = _resume(work, named, optimiser)
    decoder.tower.train()
    with dropout(decoder.lm, options.dropout):
        for step in range(start, total):
            rng = np.random.default_rng([_seed(seed, name), step])
            torch.manual_seed(int(rng.integers(2**31)))
            for group in optimiser.param_groups:
                group["lr"] = options.lr * warmup_cosine(step, total=total, warmup=warmup, floor=0.0)
            with autocast():
                loss = task.loss(decoder, order.rows(step), rng=rng)
            if not torch.isfinite(loss):
                raise ConfigError(
                    f"the loss of stage '{name}' is {float(loss.detach())} at step {step + 1}.",
                    hint="Lower its lr, or set precision: '32'.",
                )
            optimiser.zero_grad()
            loss.backward()
            if options.clip:
                nn.utils.clip_grad_norm_(list(named.values()), options.clip)
            optimiser.step()
            done = step + 1
            losses.append(float(loss.detach()))
            if done % log_every == 0 or done == total:
                row = {
                    f"{name}/loss": sum(losses) / len(losses),
                    f"{name}/lr": optimiser.param_groups[0]["lr"],
                }
                table.write(offset + done, step // order.steps_per_epoch, row)
                losses.clear()
            if progress is not None:
                progress(done, total, name)
            halt = done < total and stopped()
            if done < total and (halt or done % every_steps == 0):
                _save(work, done, named, optimiser, losses=losses)
            if halt:
                return done, total
    decoder.tower.eval()
    return total, total


@torch.no_grad()
def held_out_loss(
    task: Task,
    decoder: Decoder,
    *,
    batch: int,
    seed: int,
    autocast: Callable[[], AbstractContextManager[object]],
) -> float | None:
    """Return the mean loss over texts that did not train, without dropout; None if there are none."""
    order = StepOrder(task.lengths, size=batch, seed=seed)
    if order.steps_per_epoch == 0:
        return None
    decoder.tower.eval()
    values = []
    for step in range(order.steps_per_epoch):
        with autocast():
            values.append(
                float(task.loss(decoder, order.rows(step), rng=np.random.default_rng([seed, step])))
            )
    return sum(values) / len(values)


def _trained(modules: dict[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Return the parameters that train, each once: a head may be the embedding itself."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for prefix, module in modules.items():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                found.setdefault(id(parameter), (f"{prefix}.{name}", parameter))
    return dict(found.values())


def _seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=4).digest())


def _save(
    work: Path,
    step: int,
    named: dict[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    *,
    losses: list[float],
) -> None:
    def write(folder: Path) -> None:
        weights = {name: value.detach() for name, value in named.items()}
        state = {"step": step, "losses": losses, "weights": weights, "optimiser": optimiser.state_dict()}
        write_state(folder, state)

    write_checkpoint(checkpoint_path(work, step), write)
    prune(work, keep=1)


def _resume(
    work: Path, named: dict[str, nn.Parameter], optimiser: torch.optim.Optimizer
) -> tuple[int, list[float]]:
    """Load the newest checkpoint; return its step and the losses since the last row of the log."""
    folder = latest(work)
    if folder is None:
        return 0, []
    state = read_state(folder)
    saved: dict[str, Tensor] = state["weights"]
    with torch.no_grad():
        for name, value in named.items():
            value.copy_(saved[name])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"]), list(state["losses"])
