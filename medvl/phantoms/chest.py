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

__all__ = ["Chest", "Frame", "Plane", "bump", "frontal_chest", "lateral_chest", "ramp", "smooth_field"]

Plane = Float32[np.ndarray, "rows columns"]

_TISSUE, _LUNG_DROP = 0.60, 0.37


@dataclass(frozen=True)
class Frame:
    """How millimetres of the body fall on the pixels of one image.

    Attributes:
        rows, columns: size of the image.
        spacing_mm: millimetres per pixel, both ways.
        shift_mm: where the body's centre lies, right and down of the image's centre.
        tilt: rotation in radians, small.
    """

    rows: int
    columns: int
    spacing_mm: float
    shift_mm: tuple[float, float] = (0.0, 0.0)
    tilt: float = 0.0

    @cached_property
    def grid(self) -> tuple[Plane, Plane]:
        """Body coordinates x and y of each pixel's centre, in millimetres."""
        step, tilt = self.spacing_mm, self.tilt
        across = (np.arange(self.columns, dtype=np.float32) - ((self.columns - 1) / 2)) * step
        down = (np.arange(self.rows, dtype=np.float32) - ((self.rows - 1) / 2)) * step
        across, down = across[None] - (self.shift_mm[0]), down[:, None] - (self.shift_mm[1])
        return across + tilt * down, down - tilt * across

    def pixel(self, x_mm: float, y_mm: float) -> tuple[float, float]:
        """Column and row, in continuous pixels, of a body point."""
        across = x_mm - self.tilt * y_mm + self.shift_mm[0]
        down = y_mm + self.tilt * x_mm + self.shift_mm[1]
        return across / self.spacing_mm + self.columns / 2, down / self.spacing_mm + self.rows / 2

    def patch(self, x_mm: float, y_mm: float, half_x_mm: float, half_y_mm: float) -> tuple[slice, slice]:
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


def ramp(values: Plane, width: float) -> Plane:
    """A smooth step from 0 to 1 as ``values`` cross zero, ``width`` wide."""
    step = values * (1 / width)
    step += 0.5
    np.clip(step, 0, 1, out=step)
    return step * step * (3 - 2 * step)


def bump(squared_radius: Plane) -> Plane:
    """A smooth hill: ``(1 − r²)²`` inside the unit circle, 0 outside."""
    hill = np.clip(1 - squared_radius, 0, None)
    return hill * hill


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
    lung = _lungs(body, x, y)
    torso = ramp(_torso_edge(body, y) - side, 8)
    width = heart_scale
    tilted = y - 58 - 0.30 * (x - 18)
    heart_x = (x - (14 + 8 * heart_scale)) / (body.heart_half_width * width)
    heart_y = tilted / (body.heart_half_height * (1 + (width - 1) * 0.5))
    heart = ramp(1 - (heart_x * heart_x + heart_y * heart_y), 0.16)
    knob = (x - 27) ** 2 + (y + 48) ** 2
    middle = ramp(body.mediastinum_half_width + 0.04 * y - side, 9)
    np.maximum(middle, ramp(1 - knob * (1 / 17**2), 0.35), out=middle)
    air = lung * (1 - 0.9 * heart) * (1 - 0.9 * middle)
    plane = torso * _TISSUE
    plane += torso * ramp(y - (body.dome_right + 20), 80) * 0.08
    plane -= air * _LUNG_DROP
    plane += heart * 0.06
    plane += _spine(x, y) * torso
    plane -= ramp(8 - side, 5) * ramp(-y - 42, 20) * torso * 0.12  # trachea
    if body.breast:
        chest_x = (side - 78) * (1 / 62)
        chest_y = (y - 58) * (1 / 55)
        plane += bump(chest_x * chest_x + chest_y * chest_y) * (0.07 * body.breast)
    bones = _ribs(body, side, y)
    bones *= clutter
    plane += bones * torso
    plane += _clavicles(side, y) * torso
    plane += _vessels(body, frame) * air * (0.22 * clutter)
    _stomach_bubble(body, frame, plane)
    return Chest(plane, air, heart)


def lateral_chest(body: Body, frame: Frame, *, clutter: float, heart_scale: float) -> Chest:
    """Draw a normal left lateral chest: front of the body at the image's left, spine at its right."""
    x, y = frame.grid
    depth = body.lung_half_width * 1.62
    along = (x - 6 - 0.05 * y) / depth
    upward = (y - body.lung_y) / body.lung_half_height
    radius = along * along + upward * upward * (1 + 0.25 * (upward < 0))
    arch = body.dome_left + 34 * (along + 0.25) ** 2
    lower = ramp(arch - 6 - y, 6) * 0.65 + ramp(arch + 4 - y, 6) * 0.35
    lung = ramp(1 - radius, 0.14) * lower
    torso = ramp((body.torso_half_width * 0.76) - np.abs(x - 0.06 * y), 8)
    torso *= ramp(y + 195 + 0.35 * x, 30)
    heart_x = (x + 34) / (body.heart_half_width * 0.80 * heart_scale)
    heart_y = (y - 52 + 0.35 * (x + 34)) / (body.heart_half_height * (0.5 + 0.5 * heart_scale))
    heart = ramp(1 - (heart_x * heart_x + heart_y * heart_y), 0.2)
    air = lung * (1 - 0.75 * heart)
    plane = torso * _TISSUE
    plane += torso * ramp(y - (body.dome_left + 20), 60) * 0.08
    plane -= air * 0.34
    axis = 74 - y * y * 0.0009
    plane += ramp(17 - np.abs(x - axis), 6) * (0.13 + 0.06 * _teeth(y * (1 / 25), 0.22))
    plane += ramp(5 - np.abs(x + 92 - 0.12 * (y + 40)), 4) * 0.16 * torso
    slanted = (y + 0.45 * x) / body.rib_pitch + body.rib_phase
    plane += _teeth(slanted, 0.32) * torso * ramp(1.15 - radius, 0.2) * (0.035 * clutter)
    hilum = ((x - 4) / 22) ** 2 + ((y + 8) / 26) ** 2
    plane += bump(hilum.astype(np.float32)) * 0.16
    plane += _vessels(body, frame, lateral=1) * air * (0.16 * clutter)
    plane -= ramp(7 - np.abs(x - 10 + 0.1 * y), 5) * ramp(-y - 40, 20) * torso * 0.10
    return Chest(plane, air, heart)


def _lungs(body: Body, x: Plane, y: Plane) -> Plane:
    left = x > 0
    centred = np.abs(x) - body.lung_x
    across = centred * (1 / body.lung_half_width)
    upward = (y - body.lung_y) * (1 / body.lung_half_height)
    lean = across + 0.22 * np.clip(-upward, 0, None)  # the apex leans to the midline
    radius = lean * lean + upward * upward
    dome = np.where(left, body.dome_left, body.dome_right)
    floor = dome + 30 * across * across
    thick = 0.80 + 0.20 * np.clip(1 - radius, 0, 1)
    return ramp(1 - radius, 0.16) * ramp(floor - y, 6) * thick


def _torso_edge(body: Body, y: Plane) -> Plane:
    above = np.clip(-104 - y, 0, None)
    return np.clip(body.torso_half_width - 2.0 * above, 52, None)


def _teeth(phase: Plane, duty: float) -> Plane:
    """Soft periodic bands of period 1 that cover ``duty`` of it, with brighter edges."""
    away = np.abs(phase - np.floor(phase) - 0.5)
    band = ramp((duty / 2) - away, 0.10)
    return band - 0.35 * ramp((duty / 2 - 0.09) - away, 0.08)


def _spine(x: Plane, y: Plane) -> Plane:
    column = ramp(17 - np.abs(x), 6)
    return column * (0.09 + 0.05 * _teeth(y * (1 / 24), 0.24))


def _ribs(body: Body, side: Plane, y: Plane) -> Plane:
    cage = ramp(1 - (side * (1 / 138)) ** 2 - ((y - 4) * (1 / 152)) ** 2, 0.12)
    pitch, phase = (1 / body.rib_pitch), body.rib_phase
    out = side - 35
    back = _teeth((y - 0.0030 * out * out) * pitch + phase, 0.40) * ramp(side - 16, 8)
    front = _teeth((y + 0.42 * side) * (pitch * 0.86) + phase * 1.7, 0.36)
    front *= ramp(side - 52, 30)
    return (back * 0.065 + front * 0.030) * cage


def _clavicles(side: Plane, y: Plane) -> Plane:
    out = side - 14
    centre = (-92) - 0.26 * out + 0.0012 * out * out
    body = ramp(6 - np.abs(y - centre), 4) * ramp(side - 14, 6)
    return body * ramp(132 - side, 12) * 0.11


def _vessels(body: Body, frame: Frame, *, lateral: int = 0) -> Plane:
    """Hilar vessels as tapering broken lines, drawn as a raster and blurred once."""
    rng = np.random.default_rng([body.vessel_seed, lateral])
    canvas = Pillow.new("L", (frame.columns, frame.rows))
    pen = ImageDraw.Draw(canvas)
    for side in (-1.0, 1.0):
        for _ in range(11):
            point = np.array([side * (2.0 if lateral else 28.0), -4.0]) + rng.uniform(-8, 8, 2)
            step = np.array([side * rng.uniform(0.2, 1.0), rng.uniform(-1.0, 1.1)]) * rng.uniform(14, 24)
            for width_mm, ink in ((4.5, 200), (3.2, 150), (2.0, 110), (1.4, 75)):
                following = point + step
                ends = [*frame.pixel(*point), *frame.pixel(*following)]
                pen.line(ends, fill=ink, width=max(1, round(width_mm / frame.spacing_mm)))
                point, step = following, step * 0.9 + rng.uniform(-7, 7, 2)
    soft = canvas.filter(ImageFilter.BoxBlur(max(0.5, 1.2 / frame.spacing_mm)))
    return np.asarray(soft, np.float32) * (1 / 255)


def _stomach_bubble(body: Body, frame: Frame, plane: Plane) -> None:
    rows, columns = frame.patch(62, body.dome_left + 26, 26, 16)
    x, y = (axis[rows, columns] for axis in frame.grid)
    squared = ((x - 62) * (1 / 24)) ** 2 + ((y - (body.dome_left + 26)) * (1 / 13)) ** 2
    plane[rows, columns] -= bump(squared) * 0.18
