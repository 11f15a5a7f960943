"""Batches in an order that is a function of seed and step, so that a loader can start anywhere."""

from __future__ import annotations

import math
import mmap
import weakref
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import DataLoader, Dataset

from medvl.data.augment import draw
from medvl.data.dataset import PairDataset
from medvl.data.draft import Draft, Encode, Key
from medvl.data.pictures import Pixels
from medvl.errors import ConfigError
from medvl.features import Batch

__all__ = ["BatchOrder", "BatchStream", "in_order"]

_PREFETCH = 2
"""Batches that each worker prepares ahead."""

_LENT = 4
"""Places of the shared memory beyond those: two batches in the hands of the caller, since Lightning fetches
one ahead of its step, the one that is handed out, and one for the next request."""


class BatchOrder:
    """Which items make up the batch of each step.

    Epoch e is a permutation of all items drawn from ``(seed, e)``, cut into ``n // size`` batches of
    ``size``; the rest of the items wait for the next epoch. Step s is batch ``s mod (n // size)`` of epoch
    ``s // (n // size)``.

    Args:
        n: items of the data set: records, or studies with two views.
        size: items of a batch over all ranks; cut to n when there are fewer.
        seed: of the order.

    Raises:
        ConfigError: a size below 2: an alignment loss compares pairs.

    Examples:
        >>> order = BatchOrder(5, size=2, seed=0)
        >>> order.steps_per_epoch, [epoch for epoch, _ in order.keys(3)]
        (2, [1, 1])
    """

    def __init__(self, n: int, *, size: int, seed: int) -> None:
        if min(n, size) < 2:
            raise ConfigError(
                f"a batch of {size} out of {n} records is too small.", hint="At least 2 of each are needed."
            )
        self.n, self.size, self.seed = n, min(n, size), seed
        self.steps_per_epoch = n // self.size
        self._epoch, self._rows = -1, np.empty(0, np.int64)

    def keys(self, step: int) -> list[Key]:
        """Return epoch and item of each sample of ``step``."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._rows = draw(self.seed, "order", epoch).permutation(self.n)
            self._epoch = epoch
        rows = self._rows[position * self.size : (position + 1) * self.size]
        return [(epoch, int(row)) for row in rows]

    def share(self, world: int) -> int:
        """Return how many items of each batch a rank reads.

        Raises:
            ConfigError: the batch cannot be shared equally between the ranks.
        """
        if self.size % world:
            raise ConfigError(
                f"a batch of {self.size} cannot be shared between {world} devices.",
                hint=f"Give a multiple of {world} as data.batch.",
            )
        return self.size // world

    def keys_of_rank(self, step: int, *, rank: int, world: int) -> list[Key]:
        """Return epoch and item of the samples of ``step`` that one rank reads."""
        share = self.share(world)
        return self.keys(step)[rank * share : (rank + 1) * share]


class BatchStream:
    """The batches of steps ``start … stop − 1`` of one rank.

    It has no length on purpose: Lightning counts a resumed loader's length from zero and would end early.

    Args:
        dataset: the pairs.
        order: the rows of each step.
        encode: sentences to tokens.
        start, stop: first step, and the one after the last.
        rank, world: this rank reads the items ``rank · size/world …`` of each batch, both views of each.
        workers: processes that prepare batches; of no use when the data set is in memory.

    Raises:
        ConfigError: the batch cannot be shared equally between the ranks.
    """

    def __init__(
        self,
        dataset: PairDataset,
        *,
        order: BatchOrder,
        encode: Encode,
        start: int,
        stop: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
    ) -> None:
        order.share(world)  # refused here, not at the first step
        self.dataset, self.order, self.encode = dataset, order, encode
        self.start, self.stop, self.rank, self.world, self.workers = start, stop, rank, world, workers

    def keys(self, step: int) -> list[Key]:
        """Return epoch and item of this rank's samples of ``step``."""
        return self.order.keys_of_rank(step, rank=self.rank, world=self.world)

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the batches."""
        steps = range(self.start, self.stop)
        if not self.workers:
            return (self.dataset.batch(self.keys(step), encode=self.encode) for step in steps)
        return self._from_workers(steps)

    def _from_workers(self, steps: range) -> Iterator[Batch]:
        """Yield batches whose pictures the workers write into memory that all processes share.

        A batch is lent to the caller with its place in that memory, and the place is written to again when
        nothing refers to the batch any more. A caller that keeps batches gets copies. Pictures that go
        through pipes, or new shared memory for each batch, would cost a tenth of the time of reading them.
        """
        pictures = self.dataset.views * self.order.share(self.world)
        places = _Places(self.dataset, pictures, _PREFETCH * self.workers + _LENT)
        loader: DataLoader[tuple[int, Draft]] = DataLoader(
            _Drafts(self.dataset, self.encode, places),
            sampler=_Keys(self, steps, places),  # type: ignore[arg-type]
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=_PREFETCH,
            multiprocessing_context="fork",  # the only start that inherits the memory
        )
        for place, draft in loader:
            pixels = places.lend(place)
            batch = draft.finish(pixels)
            del pixels
            yield batch
            del batch  # or it would be held while the next one is awaited


class _Places:
    """Shared memory for the pictures of some batches, and which place of it is free.

    Args:
        dataset: says how large a picture is.
        size: pictures of a batch.
        number: places; the loader asks for one before it hands out the next batch.
    """

    def __init__(self, dataset: PairDataset, size: int, number: int) -> None:
        like = dataset.space(0)
        self._arrays = {name: _shared((number, size, *a.shape[1:]), a.dtype) for name, a in like.arrays()}
        self._asked: set[int] = set()
        self._lent: list[tuple[weakref.ref[np.ndarray], ...]] = [()] * number

    def _free(self) -> Iterator[int]:
        return (
            place
            for place, views in enumerate(self._lent)
            if place not in self._asked and not any(view() is not None for view in views)
        )

    def take(self) -> int:
        """Return a free place, from now on a worker's."""
        place = next(self._free())
        self._asked.add(place)
        return place

    def at(self, place: int) -> Pixels:
        """Return the memory of a place."""
        return Pixels(**{name: array[place] for name, array in self._arrays.items()})

    def lend(self, place: int) -> Pixels:
        """Return what a worker wrote; a copy of it if no other place is free for the next batch."""
        pixels = self.at(place)
        if any(True for _ in self._free()):
            self._lent[place] = tuple(weakref.ref(array) for _, array in pixels.arrays())
        else:
            pixels = Pixels(**{name: array.copy() for name, array in pixels.arrays()})
        self._asked.remove(place)
        return pixels


def _shared(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an array in memory that forked processes share."""
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    return np.frombuffer(memory, dtype).reshape(shape)


class _Drafts(Dataset[tuple[int, Draft]]):
    """Drafts by the keys of a step: what a worker computes; the pictures stay in the shared memory."""

    def __init__(self, dataset: PairDataset, encode: Encode, places: _Places) -> None:
        self._dataset, self._encode, self._places = dataset, encode, places

    def __getitem__(self, asked: tuple[int, Sequence[Key]]) -> tuple[int, Draft]:
        place, keys = asked
        self._dataset.paint(keys, self._places.at(place))
        return place, self._dataset.draft(keys, encode=self._encode)


class _Keys:
    """A place and the keys of each step, as a sampler; the loader draws from it in the main process."""

    def __init__(self, stream: BatchStream, steps: range, places: _Places) -> None:
        self._stream, self._steps, self._places = stream, steps, places

    def __iter__(self) -> Iterator[tuple[int, list[Key]]]:
        return ((self._places.take(), self._stream.keys(step)) for step in self._steps)


def in_order(dataset: PairDataset, *, encode: Encode, size: int) -> Iterator[Batch]:
    """Yield every pair once, in the order of the records, in batches of up to ``size``."""
    for first in range(0, len(dataset), size):
        keys: list[Key] = [(0, row) for row in range(first, min(first + size, len(dataset)))]
        yield dataset.batch(keys, encode=encode)
