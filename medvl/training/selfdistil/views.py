"""Views for self-distillation: mild crops of films and volumes, nothing flipped, and blocks to hide."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int16, Shaped
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medvl.data.augment import Augment, VolumeAugment, draw
from medvl.data.draft import Key
from medvl.data.loader import BatchOrder
from medvl.errors import UsageError
from medvl.records import Record
from medvl.specs import InputSpec, VolumeInput
from medvl.splits import SPLITS, split_of
from medvl.store import Store

__all__ = ["Cut", "FilmDataset", "ViewStream", "Views", "block_mask", "crop", "draw_views"]

log = logging.getLogger(__name__)

_ATTEMPTS = 20


@dataclass(frozen=True, eq=False)
class Views:
    """A batch of films or volumes, each seen several times.

    Attributes:
        large: views that student and teacher see.
        large_mask: which of their pixels are film.
        small: views that only the student sees; there may be none.
        small_mask: which of their pixels are film.
        hidden: which patches of the large views are hidden from the student.
    """

    large: Float[Tensor, "large batch channels *spatial"]
    large_mask: Bool[Tensor, "large batch *spatial"]
    small: Float[Tensor, "small batch channels *fewer"]
    small_mask: Bool[Tensor, "small batch *fewer"]
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
        grid: the encoder's regions along each axis at the size of the input.
        augment: of films as it is; of volumes its change of values alone, for the crops move them.
    """

    input: InputSpec | VolumeInput
    grid: tuple[int, ...]
    large: int
    large_share: tuple[float, float]
    small: int
    small_share: tuple[float, float]
    small_px: tuple[int, ...]
    aspect: float
    hidden_films: float
    hidden: tuple[float, float]
    augment: Augment | VolumeAugment | None = None


def crop(
    canvas: Shaped[np.ndarray, " batch *spatial"],
    mask: Bool[np.ndarray, " batch *spatial"],
    boxes: Float[np.ndarray, "batch ends"],
    *,
    size_px: tuple[int, ...],
) -> tuple[Shaped[np.ndarray, " batch *size"], Bool[np.ndarray, " batch *size"]]:
    """Bring a part of each picture to one size, linearly along each axis.

    Args:
        canvas: films in grey values or volumes in HU.
        mask: their film or scan.
        boxes: where each part begins along each axis, then its sides, in pixels.
        size_px: of the result along each axis.

    Examples:
        >>> canvas = np.arange(16, dtype=np.uint8).reshape(1, 4, 4)
        >>> part, _ = crop(canvas, canvas < 99, np.array([[1.0, 2.0, 2.0, 2.0]]), size_px=(2, 2))
        >>> part.tolist()
        [[[6, 7], [10, 11]]]
    """
    axes = len(size_px)
    begins, sides = torch.from_numpy(boxes).float().T.split(axes)
    theta = torch.zeros(len(boxes), axes, axes + 1)
    for axis, (whole, begin, side) in enumerate(zip(canvas.shape[1:], begins, sides, strict=True)):
        row = axes - 1 - axis  # grid_sample counts the axes from the last
        theta[:, row, row], theta[:, row, axes] = side / whole, (2 * begin + side) / whole - 1
    grid = F.affine_grid(theta, [len(boxes), 1, *size_px], align_corners=False)
    values = canvas.astype(np.float32)
    both = torch.from_numpy(np.stack([values, 255 * mask.astype(np.float32)], axis=1))
    moved = F.grid_sample(both, grid, mode="bilinear", padding_mode="border", align_corners=False)
    ends = np.iinfo(canvas.dtype)
    return (
        moved[:, 0].round().clamp(ends.min, ends.max).numpy().astype(canvas.dtype),
        (moved[:, 1] > 127).numpy(),
    )


def draw_box(
    mask: Bool[np.ndarray, "*spatial"],
    stream: np.random.Generator,
    *,
    share: tuple[float, float],
    aspect: float,
) -> Float[np.ndarray, " ends"]:
    """Draw where a part begins along each axis, then its sides; its centre lies on the film or in the scan.

    Its area or volume is ``share`` of the canvas, and a side at most the canvas's.
    """
    axes = mask.ndim
    size = stream.uniform(*share)
    stretch = [*np.exp(stream.uniform(-1, 1, axes - 1) * np.log(aspect)), 1.0]
    product = np.prod(stretch)
    sides = [
        min(1.0, (size * each**axes / product) ** (1 / axes)) * whole
        for each, whole in zip(stretch, mask.shape, strict=True)
    ]
    place = []
    for axis, (side, whole) in enumerate(zip(sides, mask.shape, strict=True)):
        seen = np.flatnonzero(mask.any(tuple(other for other in range(axes) if other != axis)))
        first, last = (float(seen[0]), float(seen[-1] + 1)) if len(seen) else (0.0, float(whole))
        low = min(max(0.0, first - side / 2), whole - side)
        place.append(stream.uniform(low, max(low, min(whole - side, last - side / 2))))
    return np.array([*place, *sides])


def block_mask(
    grid: tuple[int, ...], stream: np.random.Generator, *, share: tuple[float, float]
) -> Bool[np.ndarray, " patches"]:
    """Hide blocks until at least a drawn share of the patches is hidden, and never all of them.

    Source: Bao et al. 2022 (BEiT), arXiv 2106.08254, algorithm 1, as iBOT uses it; here along any axes.
    """
    hidden = np.zeros(grid, bool)
    wanted = min(hidden.size - 1, max(1, round(stream.uniform(*share) * hidden.size)))
    for _ in range(_ATTEMPTS):
        left = wanted - int(hidden.sum())
        if left <= 0:
            break
        rest = stream.uniform(min(2, left), left)
        block = []
        for axis, stretch in enumerate(np.exp(stream.uniform(-1.2, 1.2, len(grid) - 1))):
            block.append(min(grid[axis], max(1, int((rest * stretch) ** (1 / (len(grid) - axis))))))
            rest /= block[-1]
        block.append(min(grid[-1], max(1, int(rest))))
        begin = [int(stream.integers(cells - side + 1)) for cells, side in zip(grid, block, strict=True)]
        hidden[tuple(slice(at, at + side) for at, side in zip(begin, block, strict=True))] = True
    return hidden.ravel()


def draw_views(
    canvas: Shaped[np.ndarray, " batch *spatial"],
    mask: Bool[np.ndarray, " batch *spatial"],
    *,
    cut: Cut,
    keys: Sequence[Sequence[int | str]],
) -> Views:
    """Cut the views of a batch of films or volumes; all that is random is a function of each one's key.

    Args:
        canvas: the letterboxed 8-bit pictures, or volumes in HU.
        mask: which of their pixels are film or scan.
        cut: how.
        keys: one a film.
    """
    wanted: list[tuple[str, int, tuple[float, float], tuple[int, ...]]] = [
        ("large", view, cut.large_share, cut.input.size_px) for view in range(cut.large)
    ]
    wanted += [("small", view, cut.small_share, cut.small_px) for view in range(cut.small)]
    images: dict[str, list[np.ndarray]] = {"large": [], "small": []}
    masks: dict[str, list[np.ndarray]] = {"large": [], "small": []}
    hidden = np.zeros((cut.large, len(canvas), math.prod(cut.grid)), bool)
    for size, view, share, size_px in wanted:
        streams = [draw(*key, size, view) for key in keys]
        boxes = np.stack(
            [
                draw_box(film, stream, share=share, aspect=cut.aspect)
                for film, stream in zip(mask, streams, strict=True)
            ]
        )
        part, inside = crop(canvas, mask, boxes, size_px=size_px)
        shown, inside = _shown(part, inside, cut=cut, streams=streams)
        images[size].append(shown)
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


def _shown(
    part: Shaped[np.ndarray, " batch *spatial"],
    inside: Bool[np.ndarray, " batch *spatial"],
    *,
    cut: Cut,
    streams: Sequence[np.random.Generator],
) -> tuple[Float[np.ndarray, "batch channels *spatial"], Bool[np.ndarray, " batch *spatial"]]:
    """Return parts as the tensors that an encoder sees, augmented, and their masks."""
    if isinstance(cut.input, InputSpec):
        films: np.ndarray = part
        if isinstance(cut.augment, Augment):
            films, inside = cut.augment(part, inside, streams=streams)
        return np.stack([cut.input.normalise(film) for film in films]), inside
    hu = part.astype(np.float32)
    if isinstance(cut.augment, VolumeAugment):
        hu = np.stack([cut.augment.values(one, stream) for one, stream in zip(hu, streams, strict=True)])
    hu[~inside] = nothing_hu(cut.input)
    return np.stack([cut.input.window(one) for one in hu]), inside


def nothing_hu(input: VolumeInput) -> int:
    """Return a value that is below every window: what is not in the scan shows as the lowest."""
    return math.floor(min(centre - width / 2 for centre, width in input.windows)) - 1


def volume_canvas(
    store: Store, record: Record, *, input: VolumeInput, stream: np.random.Generator
) -> tuple[Int16[np.ndarray, "x y z"], Bool[np.ndarray, "x y z"]]:
    """Return the part of a volume that views are cut from, in HU, and which of its voxels are in the scan.

    A cropping input takes a random place and reads no more of the store than that; a resizing one the whole.
    """
    free = np.maximum(0, np.subtract(record.shape, input.size_px))
    start = np.floor(stream.uniform(size=3) * (free + 1)).astype(int).tolist()
    first, last = input.span(record.shape, start=start)
    part = input.fitted(store.patch(record, first, last))
    canvas, mask = np.full(input.size_px, nothing_hu(input), np.int16), np.zeros(input.size_px, bool)
    inside = tuple(
        slice((size - take) // 2, (size - take) // 2 + take)
        for size, take in zip(input.size_px, part.shape, strict=True)
    )
    canvas[inside], mask[inside] = part, True
    return canvas, mask


class FilmDataset:
    """The films or volumes of one split, with or without a report.

    Records whose geometry was rejected are left out and counted in ``skipped``. The letterboxed 8-bit
    pictures are held in memory when they fit into ``cache_mb``; volumes are read by patch. The views of a
    film are a function of ``(seed, epoch, record)``.

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
        fits = 2 * len(self.records) * math.prod(cut.input.size_px) <= cache_mb * 2**20
        held = fits and isinstance(cut.input, InputSpec)
        self._cache = [self._read((0, row)) for row in range(len(self.records))] if held else None

    def __len__(self) -> int:
        """Return the number of films."""
        return len(self.records)

    def views(self, keys: Sequence[Key]) -> Views:
        """Return the views of the films of ``keys``: epoch and row."""
        pictures = [self._read(key) if self._cache is None else self._cache[key[1]] for key in keys]
        return draw_views(
            np.stack([picture for picture, _ in pictures]),
            np.stack([mask for _, mask in pictures]),
            cut=self.cut,
            keys=[(self.seed, "views", epoch, self.records[row].record_id) for epoch, row in keys],
        )

    def _read(self, key: Key) -> tuple[Shaped[np.ndarray, "*spatial"], Bool[np.ndarray, "*spatial"]]:
        epoch, record = key[0], self.records[key[1]]
        if isinstance(self.cut.input, InputSpec):
            return self.cut.input.letterbox(self.store.pixels(record))
        stream = draw(self.seed, "place", epoch, record.record_id)
        return volume_canvas(self.store, record, input=self.cut.input, stream=stream)


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
