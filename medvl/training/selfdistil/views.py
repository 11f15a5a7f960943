"""Views of films for self-distillation: mild crops, nothing flipped, and blocks of patches to hide."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medvl.data.augment import Augment, draw
from medvl.data.draft import Key
from medvl.data.loader import BatchOrder
from medvl.errors import UsageError
from medvl.records import Record
from medvl.specs import InputSpec
from medvl.splits import SPLITS, split_of
from medvl.store import Store

__all__ = ["Cut", "FilmDataset", "ViewStream", "Views", "block_mask", "crop", "draw_views"]

log = logging.getLogger(__name__)

_ATTEMPTS = 20


@dataclass(frozen=True, eq=False)
class Views:
    """A batch of films, each seen several times.

    Attributes:
        large: views that student and teacher see.
        large_mask: which of their pixels are film.
        small: views that only the student sees; there may be none.
        small_mask: which of their pixels are film.
        hidden: which patches of the large views are hidden from the student.
    """

    large: Float[Tensor, "large batch channels rows columns"]
    large_mask: Bool[Tensor, "large batch rows columns"]
    small: Float[Tensor, "small batch channels fewer_rows fewer_columns"]
    small_mask: Bool[Tensor, "small batch fewer_rows fewer_columns"]
    hidden: Bool[Tensor, "large batch patches"]

    def to(self, device: torch.device) -> Views:
        """Return the views on ``device``."""
        if device.type == "cpu":
            return self
        return Views(**{name: tensor.to(device, non_blocking=True) for name, tensor in vars(self).items()})


@dataclass(frozen=True)
class Cut:
    """How views are cut; see :class:`medvl.training.selfdistil.recipe.Crops`.

    Attributes:
        grid: rows and columns of the encoder's regions at the size of the input.
    """

    input: InputSpec
    grid: tuple[int, int]
    large: int
    large_share: tuple[float, float]
    small: int
    small_share: tuple[float, float]
    small_px: tuple[int, int]
    aspect: float
    hidden_films: float
    hidden: tuple[float, float]
    augment: Augment | None = None


def crop(
    canvas: UInt8[np.ndarray, "batch rows columns"],
    mask: Bool[np.ndarray, "batch rows columns"],
    boxes: Float[np.ndarray, "batch 4"],
    *,
    size_px: tuple[int, int],
) -> tuple[UInt8[np.ndarray, "batch height width"], Bool[np.ndarray, "batch height width"]]:
    """Bring a part of each picture to one size, bilinearly.

    Args:
        canvas: the pictures.
        mask: their film.
        boxes: top, left, height and width of each part, in pixels.
        size_px: height and width of the result.

    Examples:
        >>> canvas = np.arange(16, dtype=np.uint8).reshape(1, 4, 4)
        >>> part, _ = crop(canvas, canvas < 99, np.array([[1.0, 2.0, 2.0, 2.0]]), size_px=(2, 2))
        >>> part.tolist()
        [[[6, 7], [10, 11]]]
    """
    rows, columns = canvas.shape[1:]
    top, left, height, width = torch.from_numpy(boxes).float().T
    theta = torch.zeros(len(boxes), 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = width / columns, (2 * left + width) / columns - 1
    theta[:, 1, 1], theta[:, 1, 2] = height / rows, (2 * top + height) / rows - 1
    grid = F.affine_grid(theta, [len(boxes), 1, *size_px], align_corners=False)
    both = torch.from_numpy(np.stack([canvas, 255 * mask.astype(np.uint8)], axis=1)).float()
    moved = F.grid_sample(both, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved[:, 0].round().clamp(0, 255).to(torch.uint8).numpy(), (moved[:, 1] > 127).numpy()


def draw_box(
    mask: Bool[np.ndarray, "rows columns"],
    stream: np.random.Generator,
    *,
    share: tuple[float, float],
    aspect: float,
) -> Float[np.ndarray, "4"]:
    """Draw top, left, height and width of a part whose centre lies on the film.

    Its area is ``share`` of the canvas, and a side at most the canvas's.
    """
    rows, columns = mask.shape
    area, ratio = stream.uniform(*share), np.exp(stream.uniform(-1, 1) * np.log(aspect))
    height, width = min(1.0, np.sqrt(area * ratio)) * rows, min(1.0, np.sqrt(area / ratio)) * columns
    place = []
    for film, side, whole in ((mask.any(1), height, rows), (mask.any(0), width, columns)):
        seen = np.flatnonzero(film)
        first, last = (float(seen[0]), float(seen[-1] + 1)) if len(seen) else (0.0, float(whole))
        low = min(max(0.0, first - side / 2), whole - side)
        place.append(stream.uniform(low, max(low, min(whole - side, last - side / 2))))
    return np.array([*place, height, width])


def block_mask(
    grid: tuple[int, int], stream: np.random.Generator, *, share: tuple[float, float]
) -> Bool[np.ndarray, " patches"]:
    """Hide blocks until at least a drawn share of the patches is hidden, and never all of them.

    Source: Bao et al. 2022 (BEiT), arXiv 2106.08254, algorithm 1, as iBOT uses it.
    """
    rows, columns = grid
    hidden = np.zeros(grid, bool)
    wanted = min(rows * columns - 1, max(1, round(stream.uniform(*share) * rows * columns)))
    for _ in range(_ATTEMPTS):
        left = wanted - int(hidden.sum())
        if left <= 0:
            break
        area, ratio = stream.uniform(min(2, left), left), np.exp(stream.uniform(-1.2, 1.2))
        height = min(rows, max(1, int(np.sqrt(area * ratio))))
        width = min(columns, max(1, int(area / height)))
        top, side = stream.integers(rows - height + 1), stream.integers(columns - width + 1)
        hidden[top : top + height, side : side + width] = True
    return hidden.ravel()


def draw_views(
    canvas: UInt8[np.ndarray, "batch rows columns"],
    mask: Bool[np.ndarray, "batch rows columns"],
    *,
    cut: Cut,
    keys: Sequence[Sequence[int | str]],
) -> Views:
    """Cut the views of a batch of films; all that is random is a function of each film's key.

    Args:
        canvas: the letterboxed 8-bit pictures.
        mask: which of their pixels are film.
        cut: how.
        keys: one a film.
    """
    wanted = [("large", view, cut.large_share, cut.input.size_px) for view in range(cut.large)]
    wanted += [("small", view, cut.small_share, cut.small_px) for view in range(cut.small)]
    images: dict[str, list[np.ndarray]] = {"large": [], "small": []}
    masks: dict[str, list[np.ndarray]] = {"large": [], "small": []}
    hidden = np.zeros((cut.large, len(canvas), cut.grid[0] * cut.grid[1]), bool)
    for size, view, share, size_px in wanted:
        streams = [draw(*key, size, view) for key in keys]
        boxes = np.stack(
            [
                draw_box(film, stream, share=share, aspect=cut.aspect)
                for film, stream in zip(mask, streams, strict=True)
            ]
        )
        part, inside = crop(canvas, mask, boxes, size_px=size_px)
        if cut.augment is not None:
            moved, inside = cut.augment(part, inside, streams=streams)
            part = moved  # type: ignore[assignment]  # no longer whole grey values
        images[size].append(np.stack([cut.input.normalise(film) for film in part]))
        masks[size].append(inside)
        if size == "large":
            for film, stream in enumerate(streams):
                if stream.random() < cut.hidden_films:
                    hidden[view, film] = block_mask(cut.grid, stream, share=cut.hidden)
    empty = np.zeros((0, len(canvas), cut.input.channels, *cut.small_px), np.float32)
    return Views(
        large=torch.from_numpy(np.stack(images["large"])),
        large_mask=torch.from_numpy(np.stack(masks["large"])),
        small=torch.from_numpy(np.stack(images["small"]) if cut.small else empty),
        small_mask=torch.from_numpy(np.stack(masks["small"]) if cut.small else empty[:, :, 0] > 0),
        hidden=torch.from_numpy(hidden),
    )


class FilmDataset:
    """The films of one split, with or without a report.

    Records whose geometry was rejected are left out and counted in ``skipped``. The letterboxed 8-bit
    pictures are held in memory when they fit into ``cache_mb``. The views of a film are a function of
    ``(seed, epoch, record)``.

    Args:
        store: an open store.
        split: ``"train"``, ``"val"`` or ``"test"``.
        cut: how views are cut.
        seed: of the views.
        split_seed: splits patients anew with :func:`medvl.splits.split_of`; None keeps the store's splits.
        cache_mb: memory for pictures, in MiB.

    Raises:
        UsageError: an unknown split, or no film in the split.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        *,
        cut: Cut,
        seed: int = 0,
        split_seed: int | None = None,
        cache_mb: int = 2048,
    ) -> None:
        if split not in SPLITS:
            raise UsageError(f"unknown split '{split}'.", hint=f"Allowed: {', '.join(SPLITS)}.")
        self.store, self.cut, self.seed = store, cut, seed
        chosen = [
            record
            for record in store.records
            if (record.split if split_seed is None else split_of(record.patient_id, seed=split_seed)) == split
        ]
        self.records: tuple[Record, ...] = tuple(r for r in chosen if not r.geometry.startswith("rejected"))
        self.skipped = dict(Counter(r.geometry for r in chosen if r.geometry.startswith("rejected")))
        if not self.records:
            raise UsageError(
                f"the split '{split}' has no film: {len(chosen)} records, skipped {self.skipped}.",
                hint="Prepare more studies, or give another data.split_seed.",
            )
        if self.skipped:
            log.info("split %s: %d films, skipped %s", split, len(self.records), self.skipped)
        size = cut.input.size_px
        fits = 2 * len(self.records) * size[0] * size[1] <= cache_mb * 2**20
        self._cache = [self._read(row) for row in range(len(self.records))] if fits else None

    def __len__(self) -> int:
        """Return the number of films."""
        return len(self.records)

    def views(self, keys: Sequence[Key]) -> Views:
        """Return the views of the films of ``keys``: epoch and row."""
        pictures = [self._read(row) if self._cache is None else self._cache[row] for _, row in keys]
        return draw_views(
            np.stack([picture for picture, _ in pictures]),
            np.stack([mask for _, mask in pictures]),
            cut=self.cut,
            keys=[(self.seed, "views", epoch, self.records[row].record_id) for epoch, row in keys],
        )

    def _read(self, row: int) -> tuple[UInt8[np.ndarray, "rows columns"], Bool[np.ndarray, "rows columns"]]:
        return self.cut.input.letterbox(self.store.pixels(self.records[row]))


class ViewStream(Dataset[Views]):
    """The views of steps ``start … stop − 1`` of one rank.

    It has no length on purpose: Lightning counts a resumed loader's length from zero and would end early.

    Args:
        films: what is read.
        order: the films of each step.
        start, stop: first step, and the one after the last.
        rank, world: this rank reads the films ``rank · size/world …`` of each batch.
        workers: processes that cut views.

    Raises:
        ConfigError: the batch cannot be shared equally between the ranks.
    """

    def __init__(
        self,
        films: FilmDataset,
        *,
        order: BatchOrder,
        start: int,
        stop: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
    ) -> None:
        order.share(world)  # refused here, not at the first step
        self.films, self.order, self.steps = films, order, range(start, stop)
        self.rank, self.world, self.workers = rank, world, workers

    def __getitem__(self, step: int) -> Views:
        """Return this rank's views of ``step``."""
        return self.films.views(self.order.keys_of_rank(step, rank=self.rank, world=self.world))

    def __iter__(self) -> Iterator[Views]:
        """Iterate over the steps."""
        if not self.workers:
            return (self[step] for step in self.steps)
        return iter(DataLoader(self, sampler=self.steps, batch_size=None, num_workers=self.workers))
