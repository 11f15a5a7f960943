"""Films as pictures for a page: grey, or under a heat map."""

from __future__ import annotations

import base64
import io

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image as Pillow

__all__ = ["film_picture", "heat_picture"]

_SIDE_PX = 320


def film_picture(film: UInt8[np.ndarray, "height width"], *, side_px: int = _SIDE_PX) -> str:
    """Return a stored film as a ``data:`` address of a JPEG, its longest side at most ``side_px``."""
    picture = Pillow.fromarray(film)
    picture.thumbnail((side_px, side_px))
    return _jpeg(picture)


def heat_picture(
    film: UInt8[np.ndarray, "height width"],
    heat: Float[np.ndarray, "height width"],
    *,
    side_px: int = _SIDE_PX,
) -> str:
    """Return a film with a map over it: the hotter, the more opaque; where the map is NaN the film is bare.

    The colours span the map of this film alone, so two films' colours do not compare.
    """
    known = ~np.isnan(heat)
    low, high = (float(heat[known].min()), float(heat[known].max())) if known.any() else (0.0, 1.0)
    scaled = np.where(known, (np.nan_to_num(heat) - low) / max(high - low, 1e-12), 0.0)
    colour = matplotlib.colormaps["inferno"](0.25 + 0.7 * scaled)[..., :3] * 255
    alpha = (0.62 * scaled**1.5)[..., None]
    mixed = np.rint((1 - alpha) * film[..., None] + alpha * colour).astype(np.uint8)
    picture = Pillow.fromarray(mixed)
    picture.thumbnail((side_px, side_px))
    return _jpeg(picture)


def _jpeg(picture: Pillow.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=86)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
