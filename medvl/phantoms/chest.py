"""The normal chest of a phantom: a plane of grey values from a patient's geometry, frontal and lateral.

Grey is displayed brightness, 0 black to 1 white, bone and fluid bright. Shapes are polynomials of
float32 values: no transcendental function, so every machine draws the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFilter

from medvl.phantoms.truth import Body

__all__ = [
    "Along",
    "Chest",
    "Down",
    "Frame",
    "Number",
    "Plane",
    "bump",
    "frontal_chest",
    "lateral_chest",
    "ramp",
    "smooth_field",
]

Plane = Float32[np.ndarray, "rows columns"]
Along = Float32[np.ndarray, "1 columns"]
Down = Float32[np.ndarray, "rows 1"]
Number = float | int

_TISSUE, _LUNG_DROP = 0.60, 0.37
_VESSEL_WIDTHS_MM, _VESSEL_INKS = (4.5, 3.2, 2.0, 1.4), (200, 150, 110, 75)


@dataclass(frozen=True)
class Frame:
    """How millimetres of the body fall on the pixels of one image.

    Attributes:
        rows, columns: size of the image.
        spacing_mm: millimetres per pixel, both ways.
        shift_mm: where the body's centre lies, right and down of the image's centre.
    """

    rows: int
    columns: int
    spacing_mm: float
    shift_mm: tuple[float, float] = (0.0, 0.0)

    @cached_property
    def grid(self) -> tuple[Along, Down]:
        """Body coordinates in millimetres: x of each column's centre, y of each row's centre."""
        x = (np.arange(self.columns, dtype=np.float32) - (self.columns - 1) / 2) * self.spacing_mm
        y = (np.arange(self.rows, dtype=np.float32) - (self.rows - 1) / 2) * self.spacing_mm
        return (x - self.shift_mm[0])[None], (y - self.shift_mm[1])[:, None]

    def pixel(self, x_mm: Number, y_mm: Number) -> tuple[float, float]:
        """Column and row, in continuous pixels, of a body point."""
        return (
            (x_mm + self.shift_mm[0]) / self.spacing_mm + self.columns / 2,
            (y_mm + self.shift_mm[1]) / self.spacing_mm + self.rows / 2,
        )

    def patch(self, x_mm: Number, y_mm: Number, half_x_mm: Number, half_y_mm: Number) -> tuple[slice, slice]:
        """Rows and columns that hold a rectangle of the body, clipped to the image."""
        column, row = self.pixel(x_mm, y_mm)
        wide, high = half_x_mm / self.spacing_mm + 2, half_y_mm / self.spacing_mm + 2
        return (
            slice(max(0, int(row - high)), max(0, min(self.rows, int(row + high) + 1))),
            slice(max(0, int(column - wide)), max(0, min(self.columns, int(column + wide) + 1))),
        )


@dataclass(frozen=True)
class Chest:
    """A drawn normal chest and the maps that findings need.

    Attributes:
        plane: the grey values, without noise and exposure.
        air: how much of each pixel is lung, 0…1.
        heart: how much of each pixel is heart, 0…1.
    """

    plane: Plane
    air: Plane
    heart: Plane


def ramp(values: Plane, width: Number) -> Plane:
    """A smooth step from 0 to 1 as ``values`` cross zero, ``width`` wide."""
    step = values * (1 / width)
    step += 0.5
    np.clip(step, 0, 1, out=step)
    smooth = step * -2
    smooth += 3
    smooth *= step
    smooth *= step
    return smooth


def bump(squared_radius: Plane) -> Plane:
    """A smooth hill: ``(1 − r²)²`` inside the unit circle, 0 outside."""
    hill = 1 - squared_radius
    np.clip(hill, 0, None, out=hill)
    hill *= hill
    return hill


def smooth_field(rng: np.random.Generator, shape: tuple[int, ...], cells: int) -> Plane:
    """Noise of mean 0 and roughly unit size that varies over ``1/cells`` of the longer side."""
    longest = max(shape)
    grid = rng.standard_normal(
        (2 + cells * shape[0] // longest, 2 + cells * shape[1] // longest), dtype=np.float32
    )
    return np.asarray(Pillow.fromarray(grid).resize((shape[1], shape[0]), Pillow.Resampling.BICUBIC))


def frontal_chest(body: Body, frame: Frame, *, clutter: float, heart_scale: float) -> Chest:
    """Draw a normal frontal chest; ``heart_scale`` widens the heart."""
    x, y = frame.grid
    side = np.abs(x)
    above = np.clip(-98 - y, 0, None)
    shoulders = np.clip(body.torso_half_width - 0.034 * above * above, 54, None)
    torso = ramp(shoulders - side, 9)
    heart = _heart(
        body, x - (14 + 8 * heart_scale), y - 58, slant=0.30, wide=heart_scale, high=0.5 + 0.5 * heart_scale
    )
    middle = ramp(body.mediastinum_half_width + 0.04 * y - side, 9)
    rows, columns = frame.patch(27, -48, 20, 20)
    knob = ((x[:, columns] - 26) * (1 / 18)) ** 2 + ((y[rows] + 46) * (1 / 21)) ** 2
    np.maximum(middle[rows, columns], 0.85 * ramp(1 - knob, 0.5), out=middle[rows, columns])
    air = _lungs(body, x, y)
    air *= 1 - 0.9 * heart
    middle *= 0.9
    air *= 1 - middle
    bones = _ribs(body, side, y)
    bones *= clutter
    rows, columns = frame.patch(0, -112, 150, 34)
    bones[rows] += _clavicles(side, y[rows])
    bones += ramp(17 - side, 6) * (0.09 + 0.05 * _teeth(y * (1 / 24), 0.24))  # spine
    bones -= (0.12 * ramp(8 - side, 5)) * ramp(-y - 42, 20)  # trachea
    bones += _TISSUE + 0.08 * ramp(y - (body.dome_right + 20), 80)
    plane = np.multiply(bones, torso, out=bones)
    heart_shade = heart * 0.06
    plane += heart_shade
    if body.breast:
        hill = ((side - 78) * (1 / 62)) ** 2 + ((y - 58) * (1 / 55)) ** 2
        plane += bump(hill) * (0.07 * body.breast)
    ink = _vessels(body, frame)
    ink *= 0.22 * clutter
    ink -= _LUNG_DROP
    ink *= air
    plane += ink
    rows, columns = frame.patch(62, body.dome_left + 26, 26, 16)
    bubble = ((x[:, columns] - 62) * (1 / 24)) ** 2 + ((y[rows] - (body.dome_left + 26)) * (1 / 13)) ** 2
    plane[rows, columns] -= bump(bubble) * 0.18
    return Chest(plane, air, heart)


def lateral_chest(body: Body, frame: Frame, *, clutter: float, heart_scale: float) -> Chest:
    """Draw a normal left lateral chest: front of the body at the image's left, spine at its right."""
    x, y = frame.grid
    along = (x - 6 - 0.05 * y) * (1 / (body.lung_half_width * 1.62))
    upward = (y - body.lung_y) * (1 / body.lung_half_height)
    radius = along * along
    radius += upward * np.where(upward < 0, 1.25 * upward, upward)
    arch = body.dome_left - y + 34 * (along + 0.25) ** 2
    air = ramp(arch - 6, 6) * 0.65
    air += ramp(arch + 4, 6) * 0.35
    air *= ramp(1 - radius, 0.14)
    heart = _heart(body, x + 34, y - 52, slant=-0.35, wide=0.80 * heart_scale, high=0.5 + 0.5 * heart_scale)
    air *= 1 - 0.75 * heart
    above = np.clip(-108 - y, 0, None)
    depth = np.clip(body.torso_half_width * 0.76 - 0.020 * above * above, 58, None)
    torso = ramp(depth - np.abs(x - 0.06 * y), 9)
    slanted = (y + 0.45 * x) * (1 / body.rib_pitch) + body.rib_phase
    bones = _teeth(slanted, 0.32)
    bones *= ramp(1.15 - radius, 0.2)
    bones *= 0.035 * clutter
    bones += ramp(17 - np.abs(x - (74 - y * y * 0.0009)), 6) * (0.13 + 0.06 * _teeth(y * (1 / 25), 0.22))
    bones += ramp(5 - np.abs(x + 92 - 0.12 * (y + 40)), 4) * 0.16  # breast bone
    bones -= ramp(7 - np.abs(x - 10 + 0.1 * y), 5) * (0.10 * ramp(-y - 40, 20))  # trachea
    bones += _TISSUE + 0.08 * ramp(y - (body.dome_left + 20), 60)
    plane = np.multiply(bones, torso, out=bones)
    rows, columns = frame.patch(4, -8, 24, 28)
    hilum = ((x[:, columns] - 4) * (1 / 22)) ** 2 + ((y[rows] + 8) * (1 / 26)) ** 2
    plane[rows, columns] += bump(hilum) * 0.14
    ink = _vessels(body, frame, lateral=1)
    ink *= 0.16 * clutter
    ink -= 0.34
    ink *= air
    plane += ink
    return Chest(plane, air, heart)


def _heart(body: Body, x: Along, y: Down, *, slant: float, wide: float, high: float) -> Plane:
    across = x * (1 / (body.heart_half_width * wide))
    down = (y - slant * x) * (1 / (body.heart_half_height * high))
    down *= down
    down += across * across
    return ramp(1 - down, 0.16)


def _lungs(body: Body, x: Along, y: Down) -> Plane:
    across = (np.abs(x) - body.lung_x) * (1 / body.lung_half_width)
    upward = (y - body.lung_y) * (1 / body.lung_half_height)
    inside = across + 0.22 * np.clip(-upward, 0, None)  # the apex leans to the midline
    inside *= -inside
    inside += 1 - upward * upward
    domes = np.where(x > 0, np.float32(body.dome_left), np.float32(body.dome_right))
    floor = domes + 30 * across * across
    air = ramp(inside, 0.16)
    air *= ramp(floor - y, 6)
    np.clip(inside, 0, 1, out=inside)
    inside *= 0.20
    inside += 0.80  # the lung is thickest, and darkest, in its middle
    air *= inside
    return air


def _teeth(phase: Plane, duty: float) -> Plane:
    """Soft periodic bands of period 1 that cover ``duty`` of it, with brighter edges."""
    away = phase - np.floor(phase)
    away -= 0.5
    np.abs(away, out=away)
    np.subtract(duty / 2, away, out=away)
    band = ramp(away, 0.10)
    band -= 0.35 * ramp(away - 0.09, 0.08)
    return band


def _ribs(body: Body, side: Along, y: Down) -> Plane:
    pitch, phase, out = 1 / body.rib_pitch, body.rib_phase, side - 35
    back = _teeth(y * pitch + (phase - (0.0030 * pitch) * out * out), 0.40)
    back *= 0.065 * ramp(side - 16, 8)
    front = _teeth(y * (0.86 * pitch) + (phase * 1.7 + (0.36 * pitch) * side), 0.36)
    front *= 0.030 * ramp(side - 52, 30)
    back += front
    back *= ramp(1 - (side * (1 / 138)) ** 2 - ((y - 4) * (1 / 152)) ** 2, 0.12)
    return back


def _clavicles(side: Along, y: Down) -> Plane:
    out = side - 14
    height = y + (92 + 0.26 * out - 0.0012 * out * out)
    bar = ramp(6 - np.abs(height), 4)
    bar *= (0.11 * ramp(out, 6)) * ramp(132 - side, 12)
    return bar


def _vessels(body: Body, frame: Frame, *, lateral: int = 0) -> Plane:
    """Hilar vessels as tapering broken lines, drawn as a raster and blurred once."""
    rng = np.random.default_rng([body.vessel_seed, lateral])
    trunks = 22
    side = np.where(np.arange(trunks) % 2, 1.0, -1.0)
    start = rng.uniform(-8, 8, (trunks, 2)) + np.stack(
        [side * (2.0 if lateral else 28.0), np.full(trunks, -4.0)], 1
    )
    course = np.stack([side * rng.uniform(0.2, 1.0, trunks), rng.uniform(-1.0, 1.1, trunks)], 1)
    steps = [course * rng.uniform(14, 24, (trunks, 1))]
    for _ in _VESSEL_WIDTHS_MM[1:]:
        steps.append(steps[-1] * 0.9 + rng.uniform(-7, 7, (trunks, 2)))
    joints = np.concatenate([start[None], start + np.cumsum(steps, 0)]) + np.asarray(frame.shift_mm)
    joints = joints * (1 / frame.spacing_mm) + np.array([frame.columns / 2, frame.rows / 2])
    canvas = Pillow.new("L", (frame.columns, frame.rows))
    pen = ImageDraw.Draw(canvas)
    for index, (width_mm, ink) in enumerate(zip(_VESSEL_WIDTHS_MM, _VESSEL_INKS, strict=True)):
        width = max(1, round(width_mm / frame.spacing_mm))
        for ends in np.concatenate([joints[index], joints[index + 1]], 1).tolist():
            pen.line(ends, fill=ink, width=width)
    soft = canvas.filter(ImageFilter.BoxBlur(max(0.5, 1.2 / frame.spacing_mm)))
    return np.asarray(soft, np.float32) * (1 / 255)
