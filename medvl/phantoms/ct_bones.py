"""The bones of a CT phantom: ribs and cartilage, breast bone, shoulder, spine."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from medvl.phantoms.ct_canvas import Canvas, Region, Thin
from medvl.phantoms.ct_truth import STRUCTURES, CtBody

__all__ = ["DISC_PITCH", "draw_cage", "draw_spine", "rib_at", "spine_at", "spine_front"]

DISC_PITCH = 25.0
_WHOLE: Region = (slice(None), slice(None), slice(None))
_RIB_SLOPE, _RIB_DEPTH, _VERTEBRA = 0.42, 6.0, (17.0, 15.0)
_BONE, _MARROW, _CARTILAGE = 480.0, 190.0, 110.0


def spine_at(body: CtBody, z: Thin | float) -> tuple[Thin | float, Thin | float]:
    """Return x and y of the middle of the vertebral body at a height."""
    return body.lean * z, body.spine_bend * (z + 20) * (z + 20) - 76


def spine_front(body: CtBody, z: float) -> float:
    """Return y of the front of the vertebral body at a height."""
    return float(spine_at(body, z)[1]) + _VERTEBRA[1]


def rib_at(body: CtBody, number: int, y: float) -> float:
    """Return the height of the middle of rib ``number`` (1 to 12) at a place from back to front."""
    return 100 - _RIB_SLOPE * (y + 95) + (0.5 + 1 - number - body.rib_phase * 0.5) * body.rib_pitch


def draw_cage(canvas: Canvas, inside: Thin) -> None:
    """Draw the ribs, their cartilages, the breast bone, shoulder blades and collar bones."""
    body, (x, y, z) = canvas.body, canvas.at(_WHOLE)
    phase = (z + np.float32(_RIB_SLOPE) * (y + 95) - 100) * np.float32(1 / body.rib_pitch) + np.float32(
        body.rib_phase * 0.5
    )
    band = (np.float32(0.23) - np.abs(phase - np.floor(phase) - np.float32(0.5))) * np.float32(body.rib_pitch)
    low = np.clip(-phase - 6.5, 0, None)
    band = np.minimum(band, 88 - 8 * low * low - y)  # the lower ribs end early
    band = np.minimum(band, np.where((phase > -12) & (phase < 1), np.float32(9), np.float32(-9)))
    shell = 4.5 - np.abs(inside + np.float32(_RIB_DEPTH))
    part = canvas.soft(np.minimum(band, shell))
    front = y > 46 - np.float32(0.3) * np.abs(x)
    core = np.where(front, np.float32(_CARTILAGE), np.float32(_BONE) - 60 * np.clip(shell, 0, 4))
    canvas.paint(_WHOLE, part, core.astype(np.float32))
    solid = part >= 0.5
    canvas.structures[solid & front] = STRUCTURES["costal_cartilages"]
    canvas.structures[solid & ~front & (x > 0)] = STRUCTURES["rib_right"]
    canvas.structures[solid & ~front & (x <= 0)] = STRUCTURES["rib_left"]
    plate = np.minimum(
        np.minimum(6.5 - np.abs(inside + 7), 17 - np.abs(x)), np.minimum(62 - np.abs(z - 12), y - 20)
    )
    canvas.paint(_WHOLE, canvas.soft(plate), 210, "sternum")
    blade = np.minimum(3.8 - np.abs(inside + 20), np.minimum(34 - np.abs(y + 58), 42 - np.abs(z - 60)))
    blade = np.minimum(blade, np.abs(x) - 62)
    blade = canvas.soft(blade)
    canvas.paint(_WHOLE, blade, 330)
    canvas.structures[(blade >= 0.5) & (x > 0)] = STRUCTURES["scapula_right"]
    canvas.structures[(blade >= 0.5) & (x <= 0)] = STRUCTURES["scapula_left"]
    for side, name in ((1, "clavicula_right"), (-1, "clavicula_left")):
        for region, bar in canvas.tube(((side * 16, 58, 76), (side * 66, 46, 96), (side * 126, 6, 106)), 6.5):
            canvas.paint(region, bar, 380, name)


def draw_spine(canvas: Canvas, lung: Float32[np.ndarray, "x y z"]) -> None:
    """Draw vertebral bodies with discs, the canal with its arch and spines, and the muscles beside."""
    body = canvas.body
    region = canvas.near((0, -55, -50), (62, 78, 240))
    x, y, z = canvas.at(region)
    at_x, at_y = spine_at(body, z)
    across, along = x - np.float32(1) * at_x, y - np.float32(1) * at_y
    psoas = canvas.soft(np.minimum(16 - np.sqrt((np.abs(across) - 33) ** 2 + (along - 2) ** 2), -145 - z))
    canvas.paint(region, psoas, 54)
    radius = np.sqrt(
        (across * np.float32(1 / _VERTEBRA[0])) ** 2 + (along * np.float32(1 / _VERTEBRA[1])) ** 2
    )
    depth = (1 - radius) * np.float32(15)
    column = canvas.soft(depth)
    ticks = z * np.float32(1 / DISC_PITCH)
    disc = canvas.soft(3.0 - np.abs(ticks - np.floor(ticks) - np.float32(0.5)) * np.float32(DISC_PITCH))
    bone = _MARROW + (_BONE - _MARROW) * canvas.soft(3.0 - depth)
    lung[region] *= 1 - column
    canvas.paint(region, column, (bone + disc * (85 - bone)).astype(np.float32), "vertebrae")
    canal = np.sqrt(across * across + (along + 25) ** 2)
    arch = np.minimum(4.5 - np.abs(canal - 13), -10 - along)
    blade = np.minimum(np.minimum(4 - np.abs(across), 50 - np.abs(along + 44)), -36 - along)
    wings = np.minimum(np.minimum(4.5 - np.abs(along + 26), 36 - np.abs(across)), np.abs(across) - 11)
    teeth = 8 - np.abs(ticks - np.floor(ticks)) * np.float32(DISC_PITCH) % np.float32(DISC_PITCH)
    back = canvas.soft(
        np.maximum(arch, np.minimum(np.maximum(np.minimum(blade, along + 66), wings), teeth + 2))
    )
    lung[region] *= 1 - back
    canvas.paint(region, back, 390, "vertebrae")
    canvas.paint(region, canvas.soft(9 - canal), 28)
