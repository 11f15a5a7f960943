"""What is asked of any volume: its canonical axes, and whether its values can be Hounsfield units."""

from __future__ import annotations

import numpy as np
from jaxtyping import Shaped

from medvl.images import Image, Unit
from medvl.specs.orientation import canonical

__all__ = ["canonical", "hu_check"]

SAMPLE = 64
"""Voxels along each axis that the check looks at, at most twice as many."""
AIR_HU, AIR_TOLERANCE = -1000, 60
SOFT_HU = (0, 80)
BODY_HU = (-200, 300)
"""Fat to contrast: where nearly all of a body lies."""
LEAST = 0.02
"""Least share of the sample that air, or the body, must have before it is judged."""
LEAST_SOFT = 0.1
"""Least share of the body that is soft tissue; in fat patients it is a quarter."""


def hu_check(image: Image) -> tuple[str, ...]:
    """Say in notes what speaks against the values being Hounsfield units; () when nothing does.

    Air is about −1000 HU and soft tissue 0 to 80 HU by the definition of the scale. An intercept
    applied twice puts air near −2000, one that was forgotten puts it near 0.

    Examples:
        >>> air_and_tissue = np.repeat(np.array([-1000, 40], np.int16), 500).reshape(1, 10, 10, 10)
        >>> hu_check(Image(air_and_tissue, Unit.HU)), len(hu_check(Image(air_and_tissue - 1024, Unit.HU)))
        ((), 1)
    """
    if image.unit is not Unit.HU:
        return ()
    steps = tuple(slice(None, None, max(1, size // SAMPLE)) for size in image.array.shape[1:])
    values = image.array[0][steps].ravel()
    values = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not values.size:
        return ("no voxel is finite",)
    notes = [note for note in (_air(values), _soft(values)) if note]
    return tuple(notes)


def _air(values: Shaped[np.ndarray, " values"]) -> str:
    share = float((np.abs(values.astype(np.float32) - AIR_HU) <= AIR_TOLERANCE).mean())
    if share >= LEAST:
        return ""
    return (
        f"only {share:.1%} of the voxels lie near {AIR_HU} HU, where air is, and the lowest is "
        f"{values.min():.0f}: was the rescale left out, or applied twice?"
    )


def _soft(values: Shaped[np.ndarray, " values"]) -> str:
    body = values[(values >= BODY_HU[0]) & (values <= BODY_HU[1])]
    if body.size < LEAST * values.size:
        return (
            f"only {body.size / values.size:.1%} of the voxels lie between {BODY_HU[0]} and {BODY_HU[1]} HU"
        )
    soft = float(((body >= SOFT_HU[0]) & (body <= SOFT_HU[1])).mean())
    if soft < LEAST_SOFT:
        return (
            f"only {soft:.1%} of the body lies between {SOFT_HU[0]} and {SOFT_HU[1]} HU, as soft tissue does"
        )
    return ""
