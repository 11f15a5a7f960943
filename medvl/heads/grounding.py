"""Grounding: where in a film a phrase is, from the similarity of each region to the phrase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates

from medvl.errors import UsageError
from medvl.heads.zeroshot import prompt_vector
from medvl.modeldir import LoadedModel
from medvl.specs import InputSpec

__all__ = [
    "SIGMA",
    "ImageVectors",
    "cell_map",
    "heat_map",
    "image_vectors",
    "phrase_map",
    "phrase_vector",
]

SIGMA = 0.1
"""Standard deviation of the smoothing as a share of the grid's side: hi-ml's 1.5 cells of 15."""


@dataclass(frozen=True)
class ImageVectors:
    """What a model says of some films: one vector a film, and one a region.

    Attributes:
        pooled: for scores of whole films.
        regions: in the space of :func:`phrase_vector`, row-major over ``grid``.
        grid: rows and columns of regions.
        mask: True where a region sees film.
    """

    pooled: Float[np.ndarray, "films dim"]
    regions: Float[np.ndarray, "films regions dim"]
    grid: tuple[int, ...]
    mask: Bool[np.ndarray, "films regions"]


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


@torch.inference_mode()
def phrase_vector(loaded: LoadedModel, sentences: Sequence[str]) -> Float[np.ndarray, " dim"]:
    """Return the unit vector that regions are compared with: the mean of the sentences, each on its own.

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
    return prompt_vector(vectors.float().cpu().numpy())


def phrase_map(
    loaded: LoadedModel, film: UInt8[np.ndarray, "height width"], sentences: Sequence[str]
) -> Float[np.ndarray, "height width"]:
    """Return where on a stored film the sentences are: cosine, smoothed, NaN where the model did not look.

    Args:
        loaded: the model with its specs.
        film: a stored array.
        sentences: what to look for.

    Raises:
        UsageError: there are no sentences.
    """
    found = image_vectors(loaded, [film])
    phrase = phrase_vector(loaded, sentences)
    cells = cell_map(found.regions[0], phrase, grid=found.grid, mask=found.mask[0])
    return heat_map(cells, input=loaded.input, shape=film.shape)


def cell_map(
    regions: Float[np.ndarray, "regions dim"],
    phrase: Float[np.ndarray, " dim"],
    *,
    grid: Sequence[int],
    mask: Bool[np.ndarray, " regions"],
) -> Float[np.ndarray, "rows columns"]:
    r"""Return $\cos(r_c, t)$ for each cell $c$ of the region grid, NaN where a cell sees no film.

    Args:
        regions: $r$, row-major over ``grid``, in the space of the phrase.
        phrase: $t$.
        grid: rows and columns.
        mask: True where a region sees film.

    Raises:
        UsageError: the grid does not hold as many cells as there are regions.
    """
    if len(grid) != 2 or grid[0] * grid[1] != len(regions):
        raise UsageError(f"a grid of {tuple(grid)} does not hold {len(regions)} regions.")
    unit = regions.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    cells = unit @ (phrase.astype(np.float64) / max(float(np.linalg.norm(phrase)), 1e-12))
    return np.where(mask, cells, np.nan).reshape(grid[0], grid[1])


def heat_map(
    cells: Float[np.ndarray, "rows columns"],
    *,
    input: InputSpec,
    shape: tuple[int, int],
    sigma: float = SIGMA,
) -> Float[np.ndarray, "height width"]:
    """Return a map in the geometry of the stored film, NaN where the model did not look.

    Cells are smoothed by a Gaussian that gives cells off the film no weight (else the black bars of the
    letterbox would pull the edge of the film down), then every stored pixel is carried into the tensor,
    where ``input`` placed it, and the map is read there bilinearly.

    Args:
        cells: from :func:`cell_map`.
        input: how the stored array became the tensor.
        shape: height and width of the stored array, in pixels.
        sigma: of the Gaussian, as a share of the grid's side; 0 for none.

    Examples:
        >>> cells = np.array([[0.0, 1.0], [0.0, 1.0]])
        >>> heat_map(cells, input=InputSpec(size_px=(8, 8)), shape=(4, 4), sigma=0.0)[0].tolist()
        [0.0, 0.25, 0.75, 1.0]
    """
    film = (~np.isnan(cells)).astype(np.float64)
    smooth = np.where(film > 0, cells, 0.0)
    if sigma > 0:
        spread = (sigma * cells.shape[0], sigma * cells.shape[1])
        weight = gaussian_filter(film, spread, mode="constant")
        smooth = gaussian_filter(smooth, spread, mode="constant") / np.maximum(weight, 1e-12)
    elif not film.all():  # bilinear reading must not mix in cells off the film
        smooth = _fill(smooth, film)
    scale, top, left = input.placement(shape)
    rows = (np.arange(shape[0]) + 0.5) * scale + top
    columns = (np.arange(shape[1]) + 0.5) * scale + left
    grid = np.meshgrid(
        rows * cells.shape[0] / input.size_px[0] - 0.5,
        columns * cells.shape[1] / input.size_px[1] - 0.5,
        indexing="ij",
    )
    picture = map_coordinates(smooth, grid, order=1, mode="nearest")
    outside = (rows < 0) | (rows > input.size_px[0])
    picture[outside, :] = np.nan
    picture[:, (columns < 0) | (columns > input.size_px[1])] = np.nan
    return picture


def _fill(
    cells: Float[np.ndarray, "rows columns"], film: Float[np.ndarray, "rows columns"]
) -> Float[np.ndarray, "rows columns"]:
    nearest = distance_transform_edt(film == 0, return_distances=False, return_indices=True)
    return cells[tuple(nearest)]
