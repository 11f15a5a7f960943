"""Grounding: where in a film or a volume a phrase is, from the similarity of each region to the phrase."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int16, Shaped, UInt8
from scipy.ndimage import distance_transform_edt, gaussian_filter

from medvl.errors import UsageError
from medvl.heads.zeroshot import prompt_vector
from medvl.modeldir import LoadedModel
from medvl.sliding import Lattice
from medvl.specs import InputSpec, VolumeInput

__all__ = [
    "SIGMA",
    "ImageVectors",
    "cell_map",
    "heat_map",
    "image_vectors",
    "phrase_map",
    "phrase_vector",
    "volume_vectors",
]

SIGMA = 0.1
"""Standard deviation of the smoothing as a share of the grid's side: hi-ml's 1.5 cells of 15."""
_SLAB = 2**20
"""Places of a map that are made at a time."""


@dataclass(frozen=True)
class ImageVectors:
    """What a model says of some films, or of one volume: one vector a picture, and one a region.

    Attributes:
        pooled: for scores of whole pictures.
        regions: in the space of :func:`phrase_vector`, row-major over ``grid``.
        grid: regions along each axis.
        mask: True where a region sees film.
        lattice: where the grid of a volume lies; None for films, whose own shape decides.
    """

    pooled: Float[np.ndarray, "films dim"]
    regions: Float[np.ndarray, "films regions dim"]
    grid: tuple[int, ...]
    mask: Bool[np.ndarray, "films regions"]
    lattice: Lattice | None = None


@torch.inference_mode()
def image_vectors(loaded: LoadedModel, films: Sequence[UInt8[np.ndarray, "_ _"]]) -> ImageVectors:
    """Return pooled and region vectors of stored films, in one pass.

    Args:
        loaded: the model with its specs.
        films: stored arrays; they may differ in shape.

    Raises:
        UsageError: there are no films.
    """
    if not films:
        raise UsageError("there are 0 films to embed; at least 1 is needed.")
    features = loaded.model.encode_image(*loaded.image_tensors(films))
    return ImageVectors(
        features.pooled.float().cpu().numpy(),
        features.regions.float().cpu().numpy(),
        tuple(features.region_grid),
        features.region_mask.cpu().numpy(),
    )


def volume_vectors(
    loaded: LoadedModel, volumes: Iterable[Int16[np.ndarray, "_ _ _"]]
) -> Iterator[ImageVectors]:
    """Yield pooled and region vectors of each stored volume, by sliding windows where it is large.

    Args:
        loaded: the model with its specs.
        volumes: stored arrays, each taken when it is needed; they may differ in shape.

    Raises:
        ConfigError: the model is one of films.
    """
    return (
        ImageVectors(each.pooled[None], each.regions[None], each.grid, each.mask[None], each.lattice)
        for each in loaded.wholes(volumes)
    )


@torch.inference_mode()
def phrase_vector(
    loaded: LoadedModel, sentences: Sequence[str], *, against: Sequence[str] = ()
) -> Float[np.ndarray, " dim"]:
    r"""Return the unit vector that regions are compared with: the mean of the sentences, each on its own.

    With sentences ``against`` it is the direction from them, $t^+ - t^-$ at length 1: a map then shows what
    the zero-shot score of the two is made of. A model that contrasts sentences within an organ alone, as
    :mod:`medvl.objectives.organs` does, has learned this difference, and not whether a sentence of one organ
    is nearer to a place than one of another organ.

    A model with a local term has a space of regions and sentences, and is asked there; without one, the
    regions took the projection of the whole film and are compared with the whole text, as a class
    activation map is.

    Raises:
        UsageError: there are no sentences.
    """
    if not sentences:
        raise UsageError("there are 0 sentences to look for; at least 1 is needed.")
    features = loaded.model.encode_text(*loaded.text_tensors([[sentence] for sentence in sentences]))
    vectors = features.sentences[:, 0] if loaded.model.local else features.pooled
    towards = prompt_vector(vectors.float().cpu().numpy())
    if not against:
        return towards
    direction = towards - phrase_vector(loaded, against)
    return direction / max(float(np.linalg.norm(direction)), 1e-12)


def phrase_map(
    loaded: LoadedModel,
    stored: Shaped[np.ndarray, "..."],
    sentences: Sequence[str],
    *,
    against: Sequence[str] = (),
) -> Float[np.ndarray, "..."]:
    """Return where on a stored film or volume the sentences are: cosine, smoothed, NaN where nobody looked.

    Args:
        loaded: the model with its specs.
        stored: a stored array.
        sentences: what to look for.
        against: what to look away from, see :func:`phrase_vector`.

    Raises:
        UsageError: there are no sentences.
    """
    volumes = isinstance(loaded.input, VolumeInput)
    found = next(volume_vectors(loaded, [stored])) if volumes else image_vectors(loaded, [stored])
    phrase = phrase_vector(loaded, sentences, against=against)
    cells = cell_map(found.regions[0], phrase, grid=found.grid, mask=found.mask[0])
    return heat_map(cells, input=found.lattice or loaded.input, shape=stored.shape)


def cell_map(
    regions: Float[np.ndarray, "regions dim"],
    phrase: Float[np.ndarray, " dim"],
    *,
    grid: Sequence[int],
    mask: Bool[np.ndarray, " regions"],
) -> Float[np.ndarray, " *grid"]:
    r"""Return $\cos(r_c, t)$ for each cell $c$ of the region grid, NaN where a cell sees no film.

    Args:
        regions: $r$, row-major over ``grid``, in the space of the phrase.
        phrase: $t$.
        grid: regions along each of two or three axes.
        mask: True where a region sees film.

    Raises:
        UsageError: the grid does not hold as many cells as there are regions.
    """
    if len(grid) not in (2, 3) or math.prod(grid) != len(regions):
        raise UsageError(f"a grid of {tuple(grid)} does not hold {len(regions)} regions.")
    unit = regions.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    cells = unit @ (phrase.astype(np.float64) / max(float(np.linalg.norm(phrase)), 1e-12))
    return np.where(mask, cells, np.nan).reshape(tuple(grid))


def heat_map(
    cells: Float[np.ndarray, " *grid"],
    *,
    input: InputSpec | VolumeInput | Lattice,
    shape: tuple[int, ...],
    sigma: float = SIGMA,
) -> Float[np.ndarray, " *stored"]:
    """Return a map in the geometry of the stored film or volume, NaN where the model did not look.

    Cells are smoothed by a Gaussian that gives cells off the film no weight (else the black bars of the
    letterbox would pull the edge of the film down), then every stored pixel is carried into the tensor,
    where ``input`` placed it, and the map is read there linearly.

    Args:
        cells: from :func:`cell_map`.
        input: how the stored array became the tensor, or where the grid lies.
        shape: of the stored array.
        sigma: of the Gaussian, as a share of the grid's side; 0 for none.

    Examples:
        >>> cells = np.array([[0.0, 1.0], [0.0, 1.0]])
        >>> heat_map(cells, input=InputSpec(size_px=(8, 8)), shape=(4, 4), sigma=0.0)[0].tolist()
        [0.0, 0.25, 0.75, 1.0]
    """
    film = (~np.isnan(cells)).astype(np.float64)
    smooth = np.where(film > 0, cells, 0.0)
    if sigma > 0:
        spread = tuple(sigma * side for side in cells.shape)
        weight = gaussian_filter(film, spread, mode="constant")
        smooth = gaussian_filter(smooth, spread, mode="constant") / np.maximum(weight, 1e-12)
    elif not film.all():  # reading between cells must not mix in cells off the film
        smooth = _fill(smooth, film)
    lattice = input if isinstance(input, Lattice) else Lattice.of(input, shape)
    axes = zip(shape, lattice.scale, lattice.offset, strict=True)
    places = [(np.arange(side) + 0.5) * scale + offset for side, scale, offset in axes]
    # A map reads each axis alone, so it is a product with one matrix an axis; a slab at a time in float64.
    shares = [
        _linear(at * n / size - 0.5, n)
        for at, n, size in zip(places, cells.shape, lattice.size_px, strict=True)
    ]
    step = max(1, _SLAB // math.prod(shape[1:]))
    picture = np.empty(shape, np.float64 if len(shape) == 2 else np.float32)
    for first in range(0, shape[0], step):
        slab = smooth
        for share in (shares[0][first : first + step], *shares[1:]):
            slab = np.tensordot(slab, share, (0, 1))  # the first axis goes, and comes back as the last
        picture[first : first + step] = slab
    for axis, (at, size) in enumerate(zip(places, lattice.size_px, strict=True)):
        picture[(slice(None),) * axis + ((at < 0) | (at > size),)] = np.nan
    return picture


def _linear(at: Float[np.ndarray, " places"], cells: int) -> Float[np.ndarray, "places cells"]:
    """Return the share of each cell at places between cell centres; beyond the ends, that of the nearest."""
    return np.clip(1 - np.abs(np.clip(at, 0, cells - 1)[:, None] - np.arange(cells)), 0, None)


def _fill(
    cells: Float[np.ndarray, " *grid"], film: Float[np.ndarray, " *grid"]
) -> Float[np.ndarray, " *grid"]:
    nearest = distance_transform_edt(film == 0, return_distances=False, return_indices=True)
    return cells[tuple(nearest)]
