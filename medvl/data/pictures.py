"""The pictures of a batch: the room that they are written into, and films as one kind of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8

from medvl.data.augment import Augment
from medvl.data.views import Look
from medvl.records import Record
from medvl.specs import InputSpec
from medvl.store import Store

__all__ = ["Films", "Pictures", "Pixels", "Streams"]

Streams = Callable[[Look], np.random.Generator]
"""The random numbers of one picture: a function of seed, epoch and record."""

_ROOM = 2**20
"""Bytes of the memory that stored arrays are read into again and again; larger ones take their own."""


@dataclass(frozen=True)
class Pixels:
    """Room for the pictures of a batch.

    Attributes:
        images: normalised pixels.
        mask: which of them come from the film or the scan.
        parts: number of the anatomical part that each voxel lies in; None where nobody asks.
    """

    images: Float[np.ndarray, "batch channels *spatial"]
    mask: Bool[np.ndarray, " batch *spatial"]
    parts: UInt8[np.ndarray, " batch *spatial"] | None = None

    @classmethod
    def empty(cls, batch: int, *, channels: int, size_px: Sequence[int], parts: bool) -> Pixels:
        """Return new room for so many pictures.

        Examples:
            >>> Pixels.empty(2, channels=1, size_px=(4, 6), parts=False).images.shape
            (2, 1, 4, 6)
        """
        return cls(
            np.empty((batch, channels, *size_px), np.float32),
            np.empty((batch, *size_px), bool),
            np.empty((batch, *size_px), np.uint8) if parts else None,
        )

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Iterate over the names and arrays that are there."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return ((name, array) for name, array in named if array is not None)


@runtime_checkable
class Pictures(Protocol):
    """Where a data set takes its pictures from: films, or volumes."""

    has_parts: bool
    """Whether :meth:`paint` writes parts."""

    @property
    def cached(self) -> bool:
        """Whether all pictures are in memory."""
        ...

    def paint(self, looks: Sequence[Look], pixels: Pixels, *, stream: Streams) -> None:
        """Write the pictures of some rows of a batch, augmented and normalised."""
        ...


class Films:
    """Letterboxed 8-bit pictures, in memory when they fit into ``cache_mb``, augmented a batch at a time.

    Args:
        store: where the pixels are.
        records: one a picture.
        input: how a stored array becomes the tensor.
        augment: random changes; None for none.
        cache_mb: memory for pictures, in MiB.
    """

    has_parts = False

    def __init__(
        self,
        store: Store,
        records: Sequence[Record],
        *,
        input: InputSpec,
        augment: Augment | None,
        cache_mb: int,
    ) -> None:
        self.store, self.records, self.input, self.augment = store, records, input, augment
        self._canvas: UInt8[np.ndarray, "records rows columns"] | None = None
        self._mask: Bool[np.ndarray, "records rows columns"] | None = None
        if 2 * len(records) * input.size_px[0] * input.size_px[1] <= cache_mb * 2**20:
            canvas = np.empty((len(records), *input.size_px), np.uint8)
            mask = np.empty(canvas.shape, bool)
            room = self._room()
            for row in range(len(canvas)):
                canvas[row] = self._picture(row, mask[row], room)
            self._canvas, self._mask = canvas, mask

    @property
    def cached(self) -> bool:
        """Whether all pictures are in memory."""
        return self._canvas is not None

    def paint(self, looks: Sequence[Look], pixels: Pixels, *, stream: Streams) -> None:
        """Write the pictures of ``looks``, augmented together and normalised, and their masks."""
        images, mask = pixels.images, pixels.mask
        room = self._room()
        if self.augment is None:
            for i, look in enumerate(looks):
                self._normalise(self._picture(look.image, mask[i], room), images[i])
            return
        canvas = np.stack([self._picture(look.image, mask[i], room) for i, look in enumerate(looks)])
        moved, mask[...] = self.augment(canvas, mask, streams=[stream(look) for look in looks])
        for film, image in zip(moved, images, strict=True):
            image[...] = self.input.normalise(film)

    @functools.cached_property
    def _greys(self) -> Float[np.ndarray, "channels 65536"]:
        """What each two neighbouring grey values become, as 8 bytes: one look-up writes two pixels."""
        grey = self.input.normalise(np.arange(256, dtype=np.uint8)[None])[:, 0]
        both = np.arange(2**16, dtype=np.uint16).view(np.uint8).reshape(-1, 2)
        return np.ascontiguousarray(grey[:, both]).view(np.float64)[..., 0]

    def _normalise(
        self, canvas: UInt8[np.ndarray, "rows columns"], image: Float[np.ndarray, "channels rows columns"]
    ) -> None:
        """Write the bits of :meth:`medvl.specs.InputSpec.normalise`; looking them up takes half the time."""
        if canvas.size % 2:
            image[...] = self.input.normalise(canvas)
            return
        pairs = canvas.reshape(-1).view(np.uint16)
        for values, channel in zip(self._greys, image, strict=True):
            out = channel.reshape(-1).view(np.float64)
            np.take(values, pairs, out=out, mode="clip")  # "raise" would buffer the output

    def _room(self) -> UInt8[np.ndarray, " bytes"]:
        """Return memory that stored arrays are read into, one after the other."""
        return np.empty(_ROOM if self._canvas is None else 0, np.uint8)

    def _picture(
        self, row: int, mask: Bool[np.ndarray, "rows columns"], room: UInt8[np.ndarray, " bytes"]
    ) -> UInt8[np.ndarray, "rows columns"]:
        """Return the letterboxed picture of a row and write its mask."""
        if self._canvas is not None and self._mask is not None:
            mask[...] = self._mask[row]
            return self._canvas[row]
        canvas = np.zeros(self.input.size_px, np.uint8)
        mask[...] = False
        stored = self.store.pixels(self.records[row], room=room)
        self.input.letterbox_into(stored, canvas=canvas, mask=mask)
        return canvas
