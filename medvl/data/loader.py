"""Batches in an order that is a function of seed and step, so that a loader can start anywhere."""

from __future__ import annotations

import dataclasses
import math
import mmap
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Shaped
from torch.utils.data import DataLoader, Dataset

from medvl.data.augment import draw
from medvl.data.dataset import Draft, Encode, Key, PairDataset
from medvl.errors import ConfigError
from medvl.features import Batch

__all__ = ["BatchOrder", "BatchStream", "in_order"]

_PREFETCH = 2
"""Batches that each worker prepares ahead."""


class BatchOrder:
    """Which rows make up the batch of each step.

    Epoch e is a permutation of all rows drawn from ``(seed, e)``, cut into ``n // size`` batches of ``size``;
    the rest of the rows wait for the next epoch. Step s is batch ``s mod (n // size)`` of epoch
    ``s // (n // size)``.

    Args:
        n: rows of the data set.
        size: rows of a batch over all ranks; cut to n when there are fewer.
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
        """Return epoch and row of each sample of ``step``."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._rows = draw(self.seed, "order", epoch).permutation(self.n)
            self._epoch = epoch
        rows = self._rows[position * self.size : (position + 1) * self.size]
        return [(epoch, int(row)) for row in rows]


class BatchStream:
    """The batches of steps ``start … stop − 1`` of one rank.

    It has no length on purpose: Lightning counts a resumed loader's length from zero and would end early.

    Args:
        dataset: the pairs.
        order: the rows of each step.
        encode: sentences to tokens.
        start, stop: first step, and the one after the last.
        rank, world: this rank reads the rows ``rank · size/world …`` of each batch.
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
        if order.size % world:
            raise ConfigError(
                f"a batch of {order.size} cannot be shared between {world} devices.",
                hint=f"Give a multiple of {world} as data.batch.",
            )
        self.dataset, self.order, self.encode = dataset, order, encode
        self.start, self.stop, self.rank, self.world, self.workers = start, stop, rank, world, workers

    def keys(self, step: int) -> list[Key]:
        """Return epoch and row of this rank's samples of ``step``."""
        share = self.order.size // self.world
        return self.order.keys(step)[self.rank * share : (self.rank + 1) * share]

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the batches."""
        steps = range(self.start, self.stop)
        if not self.workers:
            return (self.dataset.batch(self.keys(step), encode=self.encode) for step in steps)
        return self._from_workers(steps)

    def _from_workers(self, steps: range) -> Iterator[Batch]:
        """Yield batches whose pixels the workers write into memory that all processes share.

        The loader asks for ``prefetch · workers`` batches beyond the one in hand, so with one place more none
        is written to before it was read. Pixels that go through pipes, or new shared memory for each batch,
        would cost a tenth of the time of reading them.
        """
        places = _PREFETCH * self.workers + 2
        share = self.order.size // self.world
        shape, dtype = self.dataset.draft_space(share)
        memory = mmap.mmap(-1, places * math.prod(shape) * np.dtype(dtype).itemsize)
        shared = np.frombuffer(memory, dtype).reshape(places, *shape)
        loader: DataLoader[Draft] = DataLoader(
            _Drafts(self.dataset, self.encode, shared),
            sampler=_Keys(self, steps),  # type: ignore[arg-type]
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=_PREFETCH,
            multiprocessing_context="fork",  # the only start that inherits the memory
        )
        for number, draft in enumerate(loader):
            pixels = shared[number % places]
            if dtype is not np.uint8:  # those of 8 bits are copied when they are normalised
                pixels = pixels.copy()
            yield self.dataset.finish(dataclasses.replace(draft, pixels=pixels))


class _Drafts(Dataset[Draft]):
    """Drafts by the keys of a step: what a worker computes; the pixels stay in the shared memory."""

    def __init__(self, dataset: PairDataset, encode: Encode, shared: Shaped[np.ndarray, "..."]) -> None:
        self._dataset, self._encode, self._shared = dataset, encode, shared

    def __getitem__(self, asked: tuple[int, Sequence[Key]]) -> Draft:
        number, keys = asked
        place = self._shared[number % len(self._shared)]
        draft = self._dataset.draft(keys, encode=self._encode, out=place)
        return dataclasses.replace(draft, pixels=place[:0])


class _Keys:
    """The number and the keys of each step, as a sampler."""

    def __init__(self, stream: BatchStream, steps: range) -> None:
        self._stream, self._steps = stream, steps

    def __iter__(self) -> Iterator[tuple[int, list[Key]]]:
        return ((number, self._stream.keys(step)) for number, step in enumerate(self._steps))


def in_order(dataset: PairDataset, *, encode: Encode, size: int) -> Iterator[Batch]:
    """Yield every pair once, in the order of the records, in batches of up to ``size``."""
    for first in range(0, len(dataset), size):
        keys: list[Key] = [(0, row) for row in range(first, min(first + size, len(dataset)))]
        yield dataset.batch(keys, encode=encode)
