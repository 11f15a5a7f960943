"""Volumes whose values say where they lie, on grids of any orientation; the letters on their pictures."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont
from scipy.spatial.transform import Rotation

from medvl.images import Image, Unit

TURNS = st.tuples(st.permutations(range(3)), st.tuples(*[st.sampled_from([-1, 1])] * 3))


def image(array, affine, unit=Unit.HU):
    spacing = tuple(float(edge) for edge in np.linalg.norm(affine[:3, :3], axis=0))
    return Image(array[None], unit, affine_ras=affine, spacing_mm=spacing)


def turned_affine(turn, spacing, *, tilt=(0.0, 0.0, 0.0), origin=(11.0, -7.0, 30.0)):
    """Return an affine whose axes are permuted, flipped, then rotated by a few degrees."""
    order, signs = turn
    affine = np.eye(4)
    axes = np.zeros((3, 3))
    for column, (row, sign) in enumerate(zip(order, signs, strict=True)):
        axes[row, column] = sign * spacing[column]
    affine[:3, :3] = Rotation.from_euler("xyz", tilt, degrees=True).as_matrix() @ axes
    affine[:3, 3] = origin
    return affine


def ramp(shape, affine, slope=(1.3, -0.7, 2.1), level=100.0):
    """Return HU that rise linearly in space, so that a value says where its voxel lies."""
    places = (
        np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]
    )
    return (places @ slope + level).astype(np.float32)


def world(grid):
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    return index @ grid.affine_ras[:3, :3].T + grid.affine_ras[:3, 3]


def letter_in(patch: np.ndarray, size: int) -> str:
    """Read the white letter of a patch: the one of six whose drawing differs least from it."""

    def framed(drawn: np.ndarray) -> np.ndarray:
        rows, columns = np.nonzero(drawn)
        cut = drawn[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        return np.asarray(Pillow.fromarray((cut * 255).astype(np.uint8)).resize((16, 24))) / 255.0

    def template(letter: str) -> np.ndarray:
        canvas = Pillow.new("L", (40, 40))
        ImageDraw.Draw(canvas).text((8, 4), letter, fill=255, font=ImageFont.load_default(size=size))
        return framed(np.asarray(canvas) > 150)

    seen = framed(patch > 225)
    return min("LRAPSI", key=lambda letter: np.abs(seen - template(letter)).mean())


def letters_around(picture: np.ndarray, place: tuple[int, int, int, int], size: int) -> str:
    """Return the letters at the left, right, top and bottom of a place: left, top, width, height."""
    left, top, width, height = place
    panel = picture[top : top + height, left : left + width]
    x, y, half = width // 2, height // 2, size // 2 + 3
    edge = size + 2
    beside, above = slice(y - half, y + half), slice(x - half, x + half)
    patches = panel[beside, :edge], panel[beside, -edge:], panel[:edge, above], panel[-edge:, above]
    return "".join(letter_in(patch, size) for patch in patches)
