"""Films and volumes as pictures for a page: grey, or under a heat map."""

from __future__ import annotations

import base64
import io

import matplotlib
import numpy as np
from jaxtyping import Float, Int16, Shaped, UInt8
from PIL import Image as Pillow

from medvl.planes import Montage, record_montage, windowed
from medvl.records import Record

__all__ = ["case_picture", "film_picture", "heat_picture", "volume_heat_picture", "volume_picture"]

_SIDE_PX = 320


def case_picture(record: Record, stored: Shaped[np.ndarray, "..."], *, side_px: int = _SIDE_PX) -> str:
    """Return a stored film, or three slices of a stored volume, as a ``data:`` address of a JPEG."""
    if stored.ndim == 2:
        return film_picture(stored, side_px=side_px)
    return _jpeg(record_montage(record, stored, side_px=side_px))


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
    picture = Pillow.fromarray(_heat_over(film, heat, ends=_ends(heat)))
    picture.thumbnail((side_px, side_px))
    return _jpeg(picture)


def volume_picture(
    volume: Int16[np.ndarray, "x y z"], montage: Montage, *, window: tuple[float, float]
) -> str:
    """Return three slices of a volume as a ``data:`` address of a JPEG."""
    return _jpeg(montage.grey(volume, window))


def volume_heat_picture(
    volume: Int16[np.ndarray, "x y z"],
    heat: Float[np.ndarray, "x y z"],
    montage: Montage,
    *,
    window: tuple[float, float],
) -> str:
    """Return three slices of a volume with a map over them; the colours span the map of this volume alone."""
    ends = _ends(heat)
    slices = zip(montage.slices(volume), montage.slices(heat), strict=True)
    return _jpeg(montage.draw([_heat_over(windowed(hu, window), part, ends=ends) for hu, part in slices]))


def _heat_over(
    picture: UInt8[np.ndarray, "rows columns"],
    heat: Float[np.ndarray, "rows columns"],
    *,
    ends: tuple[float, float],
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Return a grey picture with a map over it: the hotter, the more opaque; bare where the map is NaN.

    Args:
        picture: grey values.
        heat: the map.
        ends: values of the map that have the first and the last colour.
    """
    known = ~np.isnan(heat)
    scaled = np.where(known, (np.nan_to_num(heat) - ends[0]) / max(ends[1] - ends[0], 1e-12), 0.0)
    colour = matplotlib.colormaps["inferno"](0.25 + 0.7 * scaled)[..., :3] * 255
    alpha = (0.62 * scaled**1.5)[..., None]
    return np.rint((1 - alpha) * picture[..., None] + alpha * colour).astype(np.uint8)


def _ends(heat: Float[np.ndarray, "..."]) -> tuple[float, float]:
    return (float(np.nanmin(heat)), float(np.nanmax(heat))) if (~np.isnan(heat)).any() else (0.0, 1.0)


def _jpeg(picture: Pillow.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=86)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
