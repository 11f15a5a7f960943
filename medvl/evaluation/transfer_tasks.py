"""What a transfer learns and measures: Dice of anatomical parts, AUROC of labels."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medvl.data import BatchOrder
from medvl.data.augment import draw
from medvl.data.pictures import Films, Pixels
from medvl.data.views import Look
from medvl.data.volumes import Volumes
from medvl.encoders.image import ImageTower
from medvl.errors import UsageError
from medvl.evaluation.bootstrap import Bootstrap, Number
from medvl.evaluation.classification import auroc, resampled_curves, truth_values
from medvl.evaluation.probe import linear_probe
from medvl.heads.saved import write_head
from medvl.heads.segmentation import Segmenter, dice, part_loss, segment
from medvl.heads.transfer import Classifier, Rows, fit_head, label_loss
from medvl.modeldir import LoadedModel
from medvl.progress import Progress
from medvl.records import Record
from medvl.sliding import mean_answers
from medvl.specs import VolumeInput, VolumeSpec
from medvl.store import Store

__all__ = ["TransferJob", "learn_labels", "learn_parts", "part_numbers"]


@dataclass(frozen=True)
class TransferJob:
    """What both tasks read: the records of both sides, the encoder under its policy, and the schedule."""

    store: Store
    loaded: LoadedModel
    train: tuple[Record, ...]
    test: tuple[Record, ...]
    tower: ImageTower
    steps: int
    batch: int
    lr: float
    seed: int
    resamples: int
    progress: Progress | None

    @property
    def bootstrap(self) -> Bootstrap:
        """The resampled patients of what is measured."""
        return Bootstrap([r.patient_id for r in self.test], resamples=self.resamples, seed=self.seed)

    def batches(self, *, taught: Callable[[Sequence[int], Pixels], Tensor], parts: bool) -> Iterator[Rows]:
        """Yield batches of the training records for ever; crops of volumes lie at random places."""
        input, device = self.loaded.input, self.loaded.device
        pictures: Volumes | Films
        if isinstance(input, VolumeInput):
            pictures = Volumes(self.store, self.train, input=input, place="random", parts=parts)
        else:
            pictures = Films(self.store, self.train, input=input, augment=None, cache_mb=2048)
        order = BatchOrder(len(self.train), size=self.batch, seed=self.seed)
        step = 0
        while True:
            looks = [Look(epoch, row, row) for epoch, row in order.keys(step)]
            pixels = Pixels.empty(len(looks), channels=input.channels, size_px=input.size_px, parts=parts)
            pictures.paint(
                looks,
                pixels,
                stream=lambda look: draw(self.seed, "transfer", look.epoch, self.train[look.image].record_id),
            )
            what = taught([look.image for look in looks], pixels).to(device)
            images, mask = torch.from_numpy(pixels.images), torch.from_numpy(pixels.mask)
            yield images.to(device), mask.to(device), what
            step += 1

    def answers(
        self, records: Sequence[Record], ask: Callable[[Tensor, Tensor], Tensor], *, what: str
    ) -> Float[np.ndarray, "records width"]:
        """Return the answer for each record; of larger volumes, the mean over crops by voxels of the scan."""
        stored = (self.store.pixels(record) for record in records)
        rows = []
        for row in mean_answers(ask, self.loaded.input, stored, size=self.batch, device=self.loaded.device):
            rows.append(row)
            if self.progress is not None:
                self.progress(len(rows), len(records), what)
        return np.stack(rows)


def learn_parts(job: TransferJob, out: Path, left_out: Counter[str]) -> dict[str, Number]:
    """Train a segmenter, write it into ``out`` and return the Dice of each part on whole volumes."""
    input, spec = job.loaded.input, job.loaded.pixels
    assert isinstance(input, VolumeInput) and isinstance(spec, VolumeSpec)  # only volumes have parts
    parts = spec.parts
    net = Segmenter(job.tower, parts=parts, size_px=input.size_px).to(job.loaded.device)

    def taught(rows: Sequence[int], pixels: Pixels) -> Tensor:
        assert pixels.parts is not None
        return torch.from_numpy(pixels.parts)

    batches = job.batches(taught=taught, parts=True)
    fit_head(net, batches, loss=part_loss, steps=job.steps, lr=job.lr, progress=job.progress)
    write_head(out, net, names=parts, loaded=job.loaded)
    scores = []
    for done, record in enumerate(job.test, start=1):
        found = segment(net, job.store.pixels(record), input=input)
        truth = job.store.parts(record)
        assert truth is not None
        scores.append(dice(found, truth, parts=len(parts)))
        if job.progress is not None:
            job.progress(done, len(job.test), "segmenting")
    return part_numbers(np.stack(scores), parts, job.bootstrap)


def part_numbers(
    scores: Float[np.ndarray, "records parts"], parts: Sequence[str], bootstrap: Bootstrap
) -> dict[str, Number]:
    """Return the mean Dice of each part over the records that have it, and the mean over parts.

    Args:
        scores: NaN where a record has no voxel of a part and none was found.
        parts: names of the columns.
        bootstrap: over the patients of the rows; parts share its draws.
    """
    there = ~np.isnan(scores)
    weights = bootstrap.draws[:, bootstrap.codes]
    with np.errstate(invalid="ignore"):
        means = (weights @ np.where(there, scores, 0.0)) / (weights @ there.astype(float))
    numbers = {}
    for column, part in enumerate(parts):
        if there[:, column].any():
            number = bootstrap.number(float(scores[there[:, column], column].mean()), means[:, column])
            rows = int(there[:, column].sum())
            numbers[f"dice/{part}"] = Number(
                number.value, number.low, number.high, rows, number.patients, number.undefined
            )
    columns = there.any(0)
    macro = np.nanmean(means[:, columns], axis=1)
    value = float(np.mean([number.value for number in numbers.values()]))
    return {"dice/macro": bootstrap.number(value, macro), **numbers}


def learn_labels(job: TransferJob, out: Path, left_out: Counter[str]) -> dict[str, Number]:
    """Return the AUROC of each finding that has both classes on both sides; the others are counted.

    A frozen encoder is probed; one that trains goes into ``out`` with its head.

    Raises:
        UsageError: no finding has both classes on both sides.
    """
    findings = sorted({name for record in job.train for name in record.labels})
    learned, measured = (
        truth_values([r.labels for r in records], findings) for records in (job.train, job.test)
    )
    kept = []
    for column, finding in enumerate(findings):
        sides = [truth[:, column] for truth in (learned, measured)]
        if all((side == 0).any() and (side == 1).any() for side in sides):
            kept.append(column)
        else:
            left_out[f"{finding}: one class only"] += 1
    if not kept:
        raise UsageError(
            f"none of {len(findings)} findings is both present and absent on both sides.",
            hint="Prepare more patients, or give a larger share.",
        )
    findings = [findings[column] for column in kept]
    learned, measured = learned[:, kept], measured[:, kept]
    pool = copy.deepcopy(job.loaded.model.image_pool)
    net = Classifier(job.tower, labels=len(findings), pool=pool).to(job.loaded.device)
    ask = _probe if job.tower.policy == "frozen" else _tune
    numbers = ask(job, net, learned, measured, findings, out)
    macro = Number(float(np.mean([number.value for number in numbers.values()])), n=len(numbers))
    return {"auroc/macro": macro, **numbers}


def _probe(
    job: TransferJob, net: Classifier, learned: Any, measured: Any, findings: Sequence[str], out: Path
) -> dict[str, Number]:
    net.eval()
    vectors, others = (
        job.answers(records, net.vectors, what=f"embedding {side}")
        for side, records in (("what is learned", job.train), ("what is measured", job.test))
    )
    numbers = {}
    for column, finding in enumerate(findings):
        here, there = ~np.isnan(learned[:, column]), ~np.isnan(measured[:, column])
        probed = linear_probe(
            vectors[here],
            learned[here, column] > 0,
            [r.patient_id for r, keep in zip(job.train, here, strict=True) if keep],
            test=others[there],
            test_truth=measured[there, column] > 0,
            test_groups=[r.patient_id for r, keep in zip(job.test, there, strict=True) if keep],
            shares=(1.0,),
            resamples=job.resamples,
            seed=job.seed,
        )
        numbers[f"auroc/{finding}"] = probed.numbers[1.0]
    return numbers


def _tune(
    job: TransferJob, net: Classifier, learned: Any, measured: Any, findings: Sequence[str], out: Path
) -> dict[str, Number]:
    truth = torch.from_numpy(learned.astype(np.float32))
    batches = job.batches(taught=lambda rows, _: truth[list(rows)], parts=False)
    fit_head(net, batches, loss=label_loss, steps=job.steps, lr=job.lr, progress=job.progress)
    write_head(out, net, names=tuple(findings), loaded=job.loaded)
    scores = job.answers(job.test, net, what="scoring")
    numbers = {}
    for column, finding in enumerate(findings):
        rows = np.flatnonzero(~np.isnan(measured[:, column]))
        positive, own = measured[rows, column] > 0, scores[rows, column]
        bootstrap = Bootstrap(
            [job.test[row].patient_id for row in rows], resamples=job.resamples, seed=job.seed
        )
        resampled, _ = resampled_curves(positive, own, bootstrap.draws[:, bootstrap.codes])
        numbers[f"auroc/{finding}"] = bootstrap.number(auroc(positive, own), resampled)
    return numbers
