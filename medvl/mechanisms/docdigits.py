"""DocDigits: pictures of several digits with captions that do not say which attribute belongs to which."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int, UInt8
from sklearn.datasets import load_digits

from medvl.errors import ConfigError, nearest

__all__ = ["ATTRIBUTES", "CELL", "CELLS", "KINDS", "SLICES", "DocDigits", "docdigits", "sentence"]

CELL = 28
SIDE = 3
CELLS = SIDE * SIDE

KINDS: dict[str, tuple[str, ...]] = {
    "digit": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "colour": ("red", "green", "blue", "yellow", "violet"),
    "shape": ("circle", "square"),
    "size": ("small", "medium", "large"),
}
"""The four kinds of attributes with their values."""

ATTRIBUTES: tuple[tuple[str, str], ...] = tuple(
    (kind, value) for kind, values in KINDS.items() for value in values
)
"""All 20 attributes, kind by kind; an attribute's number is its place here."""

SLICES: tuple[tuple[int, int], ...] = ((0, 10), (10, 15), (15, 17), (17, 20))
"""First and one past the last attribute of each kind."""

COLOURS = np.array([[255, 40, 40], [40, 230, 40], [70, 90, 255], [240, 220, 30], [220, 60, 230]], np.int64)
WHITE = np.array([255, 255, 255], np.int64)
MARKER_PX = (5, 8, 11)
GLYPH_PX = 14
GLYPH_AT, MARKER_AT = 1, 16
MARKED = 0.55
"""Share of cells with a marker, which has a shape and a size."""
PARTS = {"train": slice(0, 1197), "val": slice(1197, 1497), "test": slice(1497, 1797)}


@dataclass(frozen=True)
class DocDigits:
    """Pictures with their captions and the truth that the captions do not tell.

    Attributes:
        images: 84 × 84 pixels, three rows of three cells; a cell is empty or holds one digit.
        regions: True where a cell, row by row, has an attribute.
        captions: the distinct attributes of each picture in random order.
    """

    images: UInt8[np.ndarray, "samples side side 3"]
    regions: Bool[np.ndarray, "samples cells attributes"]
    captions: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.images)

    @property
    def complexity(self) -> float:
        """Mean number of pairs of a cell and an attribute in a picture."""
        return float(self.regions.sum() / len(self))

    @property
    def present(self) -> Bool[np.ndarray, "samples attributes"]:
        """True where some cell has the attribute: what a caption says."""
        return self.regions.any(axis=1)  # type: ignore[return-value]

    @property
    def cells(self) -> UInt8[np.ndarray, "samples cells cell cell 3"]:
        """The cells of each picture, row by row."""
        grid = self.images.reshape(len(self), SIDE, CELL, SIDE, CELL, 3)
        return grid.transpose(0, 1, 3, 2, 4, 5).reshape(len(self), CELLS, CELL, CELL, 3)

    @property
    def digest(self) -> str:
        """SHA-256 over pixels, truth and captions."""
        captions = ";".join(",".join(map(str, caption)) for caption in self.captions)
        parts = (self.images.tobytes(), np.packbits(self.regions).tobytes(), captions.encode())
        return hashlib.sha256(b"".join(parts)).hexdigest()


def sentence(attribute: int) -> str:
    """Return what a caption says of an attribute.

    Examples:
        >>> sentence(3), sentence(10), sentence(19)
        ('digit three', 'colour red', 'size large')
    """
    return " ".join(ATTRIBUTES[attribute])


def docdigits(
    *,
    complexity: int,
    pairs: int | None = None,
    samples: int | None = None,
    part: Literal["train", "val", "test"] = "train",
    seed: int = 0,
) -> DocDigits:
    """Draw pictures until a budget is spent.

    A cell holds a digit in one of five colours and, in 55 % of cells, a marker beside it with a shape and a
    size: 2 or 4 attributes. Cells are added to a picture until the next would exceed ``complexity``, or all
    nine are full. Under a budget of ``pairs`` a higher complexity means fewer pictures; under one of
    ``samples`` it means more pairs. The three parts show different drawings of the digits.

    Args:
        complexity: most pairs of a cell and an attribute in a picture, 4 to 36.
        pairs: budget of such pairs over all pictures.
        samples: number of pictures.
        part: whose digits to draw.
        seed: of everything random.

    Raises:
        ConfigError: a complexity out of range, an unknown part, or not exactly one budget.

    Examples:
        >>> few, many = docdigits(complexity=4, pairs=400), docdigits(complexity=30, pairs=400)
        >>> bool(few.regions.sum() <= 400), len(few) > 5 * len(many)
        (True, True)

    Source: Varma et al. 2023, arXiv 2308.11194, DocMNIST, with the digits of scikit-learn.
    """
    if not 4 <= complexity <= 4 * CELLS:
        raise ConfigError(f"complexity is {complexity}.", hint=f"Allowed: 4 to {4 * CELLS}.")
    if (pairs is None) == (samples is None):
        raise ConfigError(f"pairs is {pairs} and samples is {samples}.", hint="Give exactly one of them.")
    if part not in PARTS:
        raise ConfigError(f"part is '{part}'.", hint=nearest(part, PARTS))
    rng = np.random.default_rng([seed, complexity, list(PARTS).index(part)])
    glyphs, digits = _glyphs()
    drawings = np.arange(len(digits))[PARTS[part]]
    images, truths, captions, spent = [], [], [], 0  # type: ignore[var-annotated]
    while samples is None or len(images) < samples:
        contents = _contents(rng, complexity)
        spent += sum(map(len, contents))
        if pairs is not None and spent > pairs:
            break
        # Grey noise, so that an empty cell is not always the same picture.
        image = rng.integers(0, 40, (SIDE * CELL, SIDE * CELL, 1)).repeat(3, axis=2)
        truth = np.zeros((CELLS, len(ATTRIBUTES)), bool)
        places = rng.permutation(CELLS)[: len(contents)]
        for place, (digit, colour, *marker) in zip(places, contents, strict=True):
            row, column = divmod(int(place), SIDE)
            cell = image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
            glyph = glyphs[rng.choice(drawings[digits[drawings] == digit])]
            _stamp(cell, glyph[..., None] * COLOURS[colour] // 255, GLYPH_AT)
            if marker:
                shape, size = marker
                _stamp(cell, _marker(shape, MARKER_PX[size])[..., None] * WHITE, MARKER_AT)
            for (start, _), value in zip(SLICES, (digit, colour, *marker), strict=False):
                truth[place, start + value] = True
        images.append(image.astype(np.uint8))
        truths.append(truth)
        captions.append(tuple(int(a) for a in rng.permutation(np.flatnonzero(truth.any(axis=0)))))
    shape_of_none = (0, SIDE * CELL, SIDE * CELL, 3)
    return DocDigits(
        np.stack(images) if images else np.zeros(shape_of_none, np.uint8),
        np.stack(truths) if truths else np.zeros((0, CELLS, len(ATTRIBUTES)), bool),
        tuple(captions),
    )


def _contents(rng: np.random.Generator, complexity: int) -> list[tuple[int, ...]]:
    """Draw digit, colour and, where there is a marker, shape and size of each cell."""
    contents: list[tuple[int, ...]] = []
    while len(contents) < CELLS:
        content = (int(rng.integers(10)), int(rng.integers(5)))
        if rng.random() < MARKED:
            content += (int(rng.integers(2)), int(rng.integers(3)))  # type: ignore[assignment]
        if sum(map(len, contents)) + len(content) > complexity:
            break
        contents.append(content)
    return contents


def _stamp(
    cell: Int[np.ndarray, "height width 3"], picture: Int[np.ndarray, "rows columns 3"], corner: int
) -> None:
    """Draw ``picture`` into ``cell`` where it is brighter, its top left at row and column ``corner``."""
    window = cell[corner : corner + len(picture), corner : corner + picture.shape[1]]
    np.maximum(window, picture, out=window)


@functools.cache
def _marker(shape: int, side_px: int) -> Int[np.ndarray, "side side"]:
    """Return a filled disc or square of 0 and 1."""
    # Twice the distance of a pixel's centre from the middle is a whole number: no rounding anywhere.
    twice = 2 * np.arange(side_px) - (side_px - 1)
    disc = twice[:, None] ** 2 + twice**2 <= side_px**2
    return (disc if shape == 0 else np.ones_like(disc)).astype(np.int64)


@functools.cache
def _glyphs() -> tuple[Int[np.ndarray, "drawings side side"], Int[np.ndarray, " drawings"]]:
    """Return the digits of scikit-learn in a frozen random order, enlarged to 14 × 14, 0 to 255.

    Interpolation in whole numbers gives the same bytes on every machine.
    """
    data = load_digits()
    order = np.random.default_rng(20231001).permutation(len(data.target))
    # Sample at the centres of the new pixels, in 28ths of an old one.
    centre = (2 * np.arange(GLYPH_PX) + 1) * 8 - 14
    weights = np.maximum(0, 28 - np.abs(np.clip(centre, 0, 7 * 28)[:, None] - 28 * np.arange(8)))
    small = data.images[order].astype(np.int64)
    large = (weights @ small @ weights.T) * 255 // (16 * 28 * 28)
    return large, data.target[order].astype(np.int64)
