"""What the scanner makes of a CT phantom: the voxels of a scan, texture, noise, streaks, and the kernel."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float32, Int16

from medvl.phantoms.ct_canvas import Canvas, Lattice, step
from medvl.phantoms.ct_truth import CtBody
from medvl.specs.volumes import VolumeGrid

__all__ = ["Kernel", "draw_grid", "scan"]

Kernel = Literal["soft", "lung"]


def draw_grid(rng: np.random.Generator, body: CtBody, *, size_px: int, step: float = 1.1) -> VolumeGrid:
    """Draw the voxels of a scan from the kidneys to the collar bones.

    Args:
        rng: of the field and the ends of the scan.
        body: of the patient; the scan follows its place.
        size_px: pixels of a slice along each side.
        step: distance of slices as a share of the pixel spacing.
    """
    spacing = float(rng.integers(352, 391)) / size_px
    low, high = body.shift[2] - float(rng.uniform(186, 202)), body.shift[2] + float(rng.uniform(106, 116))
    depth = round(spacing * step, 2)
    affine = np.diag([spacing, spacing, depth, 1.0])
    affine[:3, 3] = (-spacing * (size_px - 1) / 2, -spacing * (size_px - 1) / 2 - 12, round(low, 1))
    return VolumeGrid((size_px, size_px, int((high - low) / depth)), affine)


def scan(
    canvas: Canvas, rng: np.random.Generator, *, noise: float, kernel: Kernel
) -> Int16[np.ndarray, "x y z"]:
    """Add tissue texture, noise and streaks of the shoulders, through the kernel; return whole HU."""
    hu = canvas.hu
    texture = Lattice([canvas.body.grain, 9], cell_mm=10).at(*(canvas.px, canvas.py, canvas.pz))
    texture *= np.clip((hu + 400) * np.float32(1 / 200), 0, 1)
    hu += texture * np.float32(9)
    grain: Float32[np.ndarray, "x y z"] = rng.standard_normal(hu.shape, dtype=np.float32)
    loud = (1 + 0.9 * step(canvas.z - 78, 50)) * np.float32(noise)
    if kernel == "soft":
        grain = _blur(grain) * np.float32(1.9)
    else:
        hu += np.float32(0.5) * (hu - _blur(hu))
        loud = loud * np.float32(1.7)
    grain *= loud
    grain += rng.standard_normal((1, *hu.shape[1:]), dtype=np.float32) * (loud * np.float32(0.35))
    hu = hu + grain
    np.clip(hu, -1024, 3071, out=hu)
    return np.rint(hu, out=hu).astype(np.int16)


def _blur(values: Float32[np.ndarray, "x y z"]) -> Float32[np.ndarray, "x y z"]:
    """Average neighbours by 1, 2, 1 along the first two axes."""
    for axis in (0, 1):
        near = np.concatenate([values.take([0], axis), values, values.take([-1], axis)], axis)
        size = values.shape[axis]
        left, middle, right = (
            near[tuple(slice(k, k + size) if a == axis else slice(None) for a in range(3))] for k in range(3)
        )
        values = (left + right) * np.float32(0.25)
        values += middle * np.float32(0.5)
    return values
