"""Transfer of a trained image encoder: parts of voxels or labels, learned on a share of the patients."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medvl.data.augment import draw
from medvl.errors import UsageError, nearest
from medvl.evaluation.bootstrap import METHOD
from medvl.evaluation.subject import Subject, find_subject
from medvl.evaluation.tables import cell
from medvl.evaluation.transfer_tasks import TransferJob, learn_labels, learn_parts
from medvl.heads.transfer import tower_to_train
from medvl.notice import NOTICE
from medvl.progress import Progress
from medvl.records import Record
from medvl.specs import InputSpec
from medvl.splits import SPLITS, split_of
from medvl.store import Store, write_atomic
from medvl.version import VERSION

__all__ = ["FORMAT", "TASKS", "Transfer", "transfer"]

FORMAT = "medvl-transfer-1"
TASKS = ("parts", "labels")


@dataclass(frozen=True)
class Transfer:
    """The figures of one transfer.

    Attributes:
        metrics: what ``transfer.json`` holds; ``metrics["numbers"]`` maps ``dice/<part>``, ``dice/macro``,
            ``auroc/<finding>`` or ``auroc/macro`` to value, interval and n.
        table: the Markdown table.
        out: the folder with ``transfer.json``, ``table.md`` and, where one was trained, the head.
    """

    metrics: dict[str, Any]
    table: str
    out: Path

    def value(self, key: str) -> float:
        """Return one figure.

        Raises:
            UsageError: there is no such figure.
        """
        if key not in self.metrics["numbers"]:
            raise UsageError(f"there is no figure '{key}'.", hint=nearest(key, self.metrics["numbers"]))
        return float(self.metrics["numbers"][key]["value"])

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**self.metrics, "out": str(self.out)}

    def lines(self) -> list[str]:
        """Return the text of the command."""
        figures = [f"{key:<28} {cell(number)}" for key, number in self.metrics["numbers"].items()]
        return [*figures, f"tables: {self.out / 'table.md'}", NOTICE]


def transfer(
    model: Path,
    data: Path,
    out: Path | None = None,
    *,
    task: str = "parts",
    train: str = "frozen",
    start: str = "model",
    share: float = 1.0,
    split: str = "test",
    steps: int = 300,
    batch: int = 4,
    lr: float = 2e-3,
    seed: int = 0,
    resamples: int = 2000,
    progress: Progress | None = None,
) -> Transfer:
    """Teach the image encoder of a model another task, on a share of the patients, and measure it on others.

    ``parts`` trains a decoder of voxels (:class:`medvl.heads.segmentation.Segmenter`) with Dice and
    cross-entropy on the store's anatomical parts, and measures Dice of whole volumes. ``labels`` measures the
    AUROC of each finding: frozen by a linear probe, else by a linear layer that is trained with the encoder.

    Args:
        model: a run (its best checkpoint is taken), a checkpoint, a bundle or a model directory.
        data: a record store with parts or labels, prepared by the model's own specs.
        out: where results go; default: ``transfer-TASK-TRAIN`` beside the model's evaluation, with
            ``-random`` and ``-share-SHARE`` where those are asked for.
        task: ``parts`` or ``labels``.
        train: how far the encoder trains: ``frozen``, ``lora`` or ``full``.
        start: ``model`` takes the encoder's weights; ``random`` new ones, which tells what they are worth.
        share: of the training patients, above 0 and at most 1; a smaller share is part of a larger one.
        split: what is measured, ``test`` or ``val``.
        steps: of training; a probe needs none.
        batch: records a step.
        lr: of the head; see :func:`medvl.heads.transfer.fit_head` for the encoder's.
        seed: of the share, the order, the crops and new weights.
        resamples: of the patient bootstrap.
        progress: called as work goes on.

    Raises:
        UsageError: a value out of range, nothing to learn or to measure, a patient on both sides.
        DigestMismatch: the store was prepared by other specs than the model's.
    """
    for name, value, allowed in (
        ("task", task, TASKS),
        ("start", start, ("model", "random")),
        ("split", split, [name for name in SPLITS if name != "train"]),
    ):
        if value not in allowed:
            raise UsageError(f"unknown {name} '{value}'.", hint=nearest(value, allowed))
    if not 0 < share <= 1 or steps < 1 or lr <= 0:
        raise UsageError(
            f"share is {share:g}, steps {steps} and lr {lr:g}; allowed are shares above 0 up to 1, at least "
            "one step and an lr above 0."
        )
    subject, store = find_subject(model), Store(data)
    for record in store.records:
        subject.loaded.pixels.require(record.pixel_digest)
    left_out: Counter[str] = Counter()
    learned, measured = _sides(
        store, subject, task=task, split=split, share=share, seed=seed, left_out=left_out
    )
    torch.manual_seed(seed)
    tower = tower_to_train(subject.loaded.model, train, start=start).to(subject.loaded.device)
    job = TransferJob(
        store, subject.loaded, learned, measured, tower, steps, batch, lr, seed, resamples, progress
    )
    name = f"transfer-{task}-{train}" + ("-random" if start == "random" else "")
    name += f"-share-{share:g}" if share < 1 else ""  # so that what is compared stands side by side
    beside = subject.results.name.replace("evaluation", name)
    out = Path(out) if out is not None else subject.results.with_name(beside)
    out.mkdir(parents=True, exist_ok=True)
    numbers = (learn_parts if task == "parts" else learn_labels)(job, out, left_out)
    metrics = {
        "format": FORMAT,
        "notice": NOTICE,
        "medvl": VERSION,
        "model": {"digest": subject.loaded.digest, "image_tower": tower.name, "start": start},
        "task": task,
        "train": train,
        "share": share,
        "split": split,
        "records": {"train": len(learned), split: len(measured)},
        "patients": {"train": _patients(learned), split: _patients(measured)},
        "protocol": {
            "steps": steps, "batch": batch, "lr": lr, "seed": seed, "resamples": resamples,
            "interval": METHOD,
        },
        "left_out": dict(left_out),
        "numbers": {key: number.plain() for key, number in numbers.items()},
    }  # fmt: skip
    table = _markdown(metrics)
    write_atomic(out / "transfer.json", (json.dumps(metrics, indent=1, allow_nan=False) + "\n").encode())
    write_atomic(out / "table.md", table.encode())
    return Transfer(metrics, table, out)


def _patients(records: Sequence[Record]) -> int:
    return len({record.patient_id for record in records})


def _sides(
    store: Store,
    subject: Subject,
    *,
    task: str,
    split: str,
    share: float,
    seed: int,
    left_out: Counter[str],
) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Return what is learned from and what is measured; no patient is on both sides."""
    if task == "parts" and isinstance(subject.loaded.input, InputSpec):
        raise UsageError("the model reads films; only volumes have parts of voxels.", hint="task: labels")
    sides: dict[str, list[Record]] = {"train": [], split: []}
    for record in store.records:
        seeded = subject.split_seed
        side = record.split if seeded is None else split_of(record.patient_id, seed=seeded)
        known = record.parts_size > 0 if task == "parts" else bool(record.labels)
        if side not in sides:
            continue
        if record.geometry.startswith("rejected"):
            left_out[record.geometry] += 1
        elif not known:
            left_out[f"{side} record without {task}"] += 1
        else:
            sides[side].append(record)
    for side, records in sides.items():
        if not records:
            raise UsageError(
                f"the split '{side}' has no record with {task}.",
                hint="Prepare the store with masks of structures, or with a table of labels.",
            )
    shared = {r.patient_id for r in sides["train"]} & {r.patient_id for r in sides[split]}
    if shared:
        raise UsageError(f"{len(shared)} patients are in '{split}' and in 'train'.", hint="Split by patient.")
    names = np.array(sorted({record.patient_id for record in sides["train"]}))
    order = draw(seed, "share").permutation(len(names))
    kept = set(names[order[: math.ceil(share * len(names))]].tolist())
    return tuple(r for r in sides["train"] if r.patient_id in kept), tuple(sides[split])


def _markdown(metrics: dict[str, Any]) -> str:
    name = {"parts": "Dice", "labels": "AUROC"}[metrics["task"]]
    lines = [
        f"# Transfer: {metrics['task']}",
        "",
        f"Encoder {metrics['model']['image_tower']}, {metrics['train']}, weights: "
        f"{metrics['model']['start']}; "
        f"{metrics['records']['train']} records of {metrics['patients']['train']} patients to learn from "
        f"(a share of {metrics['share']:g}), {metrics['records'][metrics['split']]} of "
        f"{metrics['patients'][metrics['split']]} to measure on.",
        "",
        f"| {metrics['task']} | {name} (95 %) | n |",
        "|---|---|---|",
        *[
            f"| {key.partition('/')[2].replace('_', ' ')} | {cell(number)} | {number['n']} |"
            for key, number in metrics["numbers"].items()
        ],
        "",
        *[f"- left out: {count} · {why}" for why, count in metrics["left_out"].items()],
        "",
        NOTICE,
        "",
    ]
    return "\n".join(lines)
