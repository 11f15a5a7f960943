"""The normal trunk of a CT phantom: wall, lungs, mediastinum and abdomen in Hounsfield units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from medvl.phantoms.ct_bones import draw_cage, draw_spine, spine_front
from medvl.phantoms.ct_canvas import Canvas, Lattice, Region, Thin, cut, step
from medvl.phantoms.ct_truth import STRUCTURES

__all__ = ["AIR", "FAT", "LUNG", "MUSCLE", "WHOLE", "Trunk", "draw_trunk"]

FAT, MUSCLE, LUNG, AIR = -100.0, 52.0, -858.0, -1000.0
WHOLE: Region = (slice(None), slice(None), slice(None))
_TOP, _WAIST = 112.0, -20.0
_FISSURE = 0.66


@dataclass(frozen=True)
class Trunk:
    """A drawn trunk and what findings need to know of it.

    Attributes:
        inside: depth below the inner wall of the ribs, mm; negative outside.
        above: height above the diaphragm, mm.
        aside: distance from the mediastinum towards either side, mm.
        lung: how much of each voxel is lung, 0…1.
        blood: HU of the aorta, which a contrast medium raises.
        contrast: 1 with a contrast medium, else 0.
        heart: half extents of the heart as drawn.
    """

    inside: Thin
    above: Thin
    aside: Thin
    lung: Float32[np.ndarray, "x y z"]
    blood: float
    contrast: int
    heart: tuple[float, float, float]


def draw_trunk(canvas: Canvas, *, contrast: int, clutter: float, heart_scale: float) -> Trunk:
    """Draw everything that is normal; ``heart_scale`` widens the heart."""
    body, (x, y, z) = canvas.body, canvas.at(WHOLE)
    up = np.clip(z - np.float32(_WAIST), 0, None)
    narrow = np.sqrt(np.clip(1 - (up * np.float32(1 / (_TOP - _WAIST))) ** 2, 0, None))
    radius = np.sqrt(
        ((x - np.float32(body.lean) * z) * np.float32(1 / body.wide)) ** 2
        + ((y + 8 + np.float32(0.0012) * up * up) * np.float32(1 / body.deep)) ** 2
    )
    inside = (narrow - radius) * np.float32(body.deep)
    above = z - _domes(canvas, x, y)
    side = np.abs(x - np.float32(body.lean) * z)
    hill = np.clip(1 - ((y + 15) * np.float32(1 / 85)) ** 2, 0, None)
    aside = side - (11 + 16 * hill * hill)
    _wall(canvas)
    draw_cage(canvas, inside)
    canvas.paint(WHOLE, canvas.soft(inside), FAT + 8)
    canvas.structures[np.broadcast_to((inside > 0) & (above > 0) & (aside < 12), canvas.hu.shape)] = (
        STRUCTURES["mediastinum"]
    )
    _abdomen(canvas, inside, above, contrast)
    lung = _lungs(canvas, inside, above, aside, clutter)
    draw_spine(canvas, lung)
    wide, high = heart_scale, 0.5 + 0.5 * heart_scale
    heart = (body.heart[0] * wide, body.heart[1] * wide, body.heart[2] * high)
    blood = 45.0 + 185.0 * contrast
    _heart(canvas, lung, heart, blood)
    _vessels(canvas, lung, blood)
    _airways(canvas, lung)
    return Trunk(inside, above, aside, lung, blood, contrast, heart)


def _domes(canvas: Canvas, x: Thin, y: Thin) -> Thin:
    """Return the height of the diaphragm at each place."""
    body = canvas.body
    back = y - 15
    sag = np.float32(0.0042) * np.where(back < 0, np.float32(1.5) * back * back, back * back)
    right = body.dome_right - np.float32(0.0052) * (x - 64) ** 2
    left = body.dome_left - np.float32(0.0052) * (x + 66) ** 2
    return np.maximum(right, left).astype(np.float32) - sag


def _wall(canvas: Canvas) -> None:
    """Draw skin, fat and muscle, the breasts and the table below."""
    body, (x, y, _) = canvas.body, canvas.at(WHOLE)
    wide, deep = body.wide + 24 + body.fat, body.deep + 25 + 0.7 * body.fat
    rx, _, rz = canvas.scanner_at(WHOLE)
    back = body.shift[1] - 18 - deep - 7
    bed = canvas.py - np.float32(back) - np.float32(0.0009) * (rx - np.float32(body.shift[0])) ** 2
    width = 185 - np.abs(rx - np.float32(body.shift[0]))
    canvas.paint(WHOLE, canvas.soft(np.minimum(-bed, np.minimum(bed + 26, width)) + 0 * rz), -890)
    canvas.paint(WHOLE, canvas.soft(np.minimum(2.0 - np.abs(bed), width) + 0 * rz), -150)
    if body.female:
        for side in (-1, 1):
            region, hill = canvas.ellipsoid((side * 66, body.deep - 8, 4), (52, 34 + body.fat, 48))
            canvas.paint(region, hill, FAT)
    canvas.paint(WHOLE, canvas.soft(_barrel(x, y, wide, deep)) + 0 * canvas.z, FAT)
    muscle = canvas.soft(_barrel(x, y, wide - body.fat, deep - 0.7 * body.fat)) + 0 * canvas.z
    canvas.paint(WHOLE, muscle, MUSCLE)
    for side in (-1, 1):
        region, pit = canvas.ellipsoid((side * (body.wide + 2), -6, 74), (20, 42, 34))
        canvas.paint(region, pit, FAT)


def _barrel(x: Thin, y: Thin, wide: float, deep: float) -> Thin:
    """Return the depth below the surface of a rounded rectangle about the back's middle."""
    across, along = (x * np.float32(1 / wide)) ** 2, ((y + 18) * np.float32(1 / deep)) ** 2
    return (1 - np.sqrt(across + along - np.float32(0.45) * across * along)) * np.float32(deep)


def _abdomen(canvas: Canvas, inside: Thin, above: Thin, contrast: int) -> None:
    body = canvas.body
    wrapped = canvas.soft(np.minimum(inside - 3, -above - 2))
    sheet = canvas.soft(np.minimum(inside, 2.5 - np.abs(above)))
    canvas.paint(WHOLE, sheet, MUSCLE)
    canvas.structures[(above <= 0) & (canvas.structures == STRUCTURES["mediastinum"])] = 0
    liver, spleen, stomach, kidney, gall, pancreas = body.organs

    def organ(
        centre: tuple[float, float, float], half: tuple[float, float, float], hu: float, name: str | None
    ) -> None:
        region, part = canvas.ellipsoid(centre, half)
        canvas.paint(region, part * wrapped[region], hu, name)

    for points, radius in (
        (((92, 5, -235), (94, 8, -190), (84, 30, -168), (40, 60, -158)), 21),
        (((40, 60, -158), (0, 66, -164), (-45, 62, -156), (-88, 34, -140)), 19),
        (((-88, 34, -140), (-104, -2, -160), (-102, -6, -235)), 19),
        (((30, 30, -205), (-20, 40, -215), (-50, 20, -200), (10, 10, -230)), 22),
    ):
        for region, part in canvas.tube(points, radius):
            canvas.paint(region, part * wrapped[region], 30, "colon")
            gas = Lattice([body.grain, 1], cell_mm=24).at(*canvas.scanner_at(region))
            canvas.paint(region, step(gas - np.float32(0.15), 0.5) * step(part - 0.75, 0.4), -780)
    grow = (74 * liver, 84 * liver, 70 * liver)
    organ((54, 2, -92), grow, 60 + 50 * contrast, "liver")
    organ((-18, 40, -82), (60 * liver, 40 * liver, 30 * liver), 60 + 50 * contrast, "liver")
    organ((-86, -40, -92), (31 * spleen, 46 * spleen, 46 * spleen), 48 + 70 * contrast, "spleen")
    belly, extent = (-54, 26, -94), (40 * stomach, 42 * stomach, 44 * stomach)
    organ(belly, extent, 48 + 30 * contrast, "stomach")
    region, part = canvas.ellipsoid(belly, (extent[0] - 5, extent[1] - 5, extent[2] - 5))
    level = cut(canvas.py, region) - np.float32(32 + body.shift[1])  # gas rises to the front
    canvas.paint(region, part * wrapped[region], 22)
    canvas.paint(region, part * wrapped[region] * step(level, 4), -980)
    for side, name in ((1, "kidney_right"), (-1, "kidney_left")):
        middle = (side * 60.0 - 2, -40.0, -152.0 + 4 * (1 - side))
        region, part = canvas.ellipsoid(
            middle, (27 * kidney, 25 * kidney, 52 * kidney), slant=(-0.12 * side, 0.10)
        )
        canvas.paint(region, part, 34 + 135 * contrast, name)
        region, part = canvas.ellipsoid((middle[0] - side * 15, middle[1] + 7, middle[2]), (12, 9, 24))
        canvas.paint(region, part, FAT + 45)
    organ((50, 52, -132), (15 * gall, 24 * gall, 26 * gall), 8, "gallbladder")
    trail = ((34, 6, -140), (4, 24, -132), (-34, 12, -122), (-66, -14, -112))
    for region, part in canvas.tube(trail, (14 * pancreas, 12 * pancreas, 10 * pancreas, 8 * pancreas)):
        canvas.paint(region, part * wrapped[region], 42 + 45 * contrast, "pancreas")


def _lungs(
    canvas: Canvas, inside: Thin, above: Thin, aside: Thin, clutter: float
) -> Float32[np.ndarray, "x y z"]:
    body, (x, y, z) = canvas.body, canvas.at(WHOLE)
    depth = np.minimum(np.minimum(inside - 3, above - 3), aside)
    lung = canvas.soft(depth)
    fissure = z + 4 + np.float32(_FISSURE) * (y + 8)  # height above the oblique fissure
    middle = (fissure > 0) & (z < 4)
    right = x > np.float32(body.lean) * z
    for name, part in (
        ("lung_upper_lobe_right", right & (fissure > 0) & (z >= 4)),
        ("lung_middle_lobe_right", right & middle),
        ("lung_lower_lobe_right", right & (fissure <= 0)),
        ("lung_upper_lobe_left", ~right & (fissure > 0)),
        ("lung_lower_lobe_left", ~right & (fissure <= 0)),
    ):
        canvas.structures[part & (lung >= 0.5)] = STRUCTURES[name]
    rim = (np.abs(inside - 1.5) < 0.6 * canvas.edge_mm) & (above > -2) & (aside > 0) & (lung < 0.9)
    canvas.structures[rim & right] = STRUCTURES["pleura_right"]
    canvas.structures[rim & ~right] = STRUCTURES["pleura_left"]
    places = canvas.scanner_at(WHOLE)
    hu = LUNG - np.float32(0.35) * (y + 8)  # the lung is denser where it hangs
    hu = hu + 16 * Lattice([body.grain, 2], cell_mm=14).at(*places)
    hu += (70 * step(1.5 - np.abs(fissure), canvas.edge_mm)).astype(np.float32)
    one = Lattice([body.grain, 3], cell_mm=27).at(*places)
    two = Lattice([body.grain, 4], cell_mm=27).at(*places)
    one *= one
    two *= two
    one += two
    np.sqrt(one, out=one)
    far = np.sqrt((np.abs(x) - 34) ** 2 + (y + 12) ** 2 + (z - 4) ** 2)
    branch = step(np.float32(0.24) - far * np.float32(0.0016) - one, 0.16)
    branch *= step(depth - 5, 6)
    hu += branch * np.float32(620 * clutter)
    canvas.paint(WHOLE, lung, np.minimum(hu, 60))
    return lung


def _carve(canvas: Canvas, lung: Float32[np.ndarray, "x y z"], region: Region, part: Thin) -> None:
    """Take a soft structure out of the lung."""
    lung[region] *= 1 - part


def _heart(
    canvas: Canvas, lung: Float32[np.ndarray, "x y z"], heart: tuple[float, float, float], blood: float
) -> None:
    middle, slant, lit = canvas.body.heart_at, (-0.28, -0.12), blood > 100
    coat = (heart[0] + 5, heart[1] + 5, heart[2] + 4)
    region, part = canvas.ellipsoid(middle, coat, slant=slant)
    _carve(canvas, lung, region, part)
    canvas.paint(region, part, FAT + 10, "mediastinum")
    region, part = canvas.ellipsoid(middle, heart, slant=slant)
    muscle = 95.0 if lit else 46.0
    canvas.paint(region, part, muscle, "heart")
    for offset, half, hu in (
        ((-0.36, -0.05, -0.18), (0.40, 0.42, 0.50), blood * 0.9),  # left ventricle
        ((0.12, 0.42, -0.15), (0.52, 0.40, 0.52), blood * 0.75),  # right ventricle
        ((0.58, -0.05, 0.10), (0.34, 0.52, 0.55), blood * 0.8),  # right atrium
        ((0.08, -0.62, 0.38), (0.48, 0.36, 0.42), blood * 0.95),  # left atrium
    ):
        centre = [m + o * h for m, o, h in zip(middle, offset, heart, strict=True)]
        region, part = canvas.ellipsoid(centre, [f * h for f, h in zip(half, heart, strict=True)])
        canvas.paint(region, part, max(hu, 42.0), "heart")


def _vessels(canvas: Canvas, lung: Float32[np.ndarray, "x y z"], blood: float) -> None:
    body, wide = canvas.body, canvas.body.aorta
    heights = (5, -40, -80, -120, -170, -235)
    down = tuple((-23 - 0.11 * min(0, z + 40), spine_front(body, z) + 13, z) for z in heights)
    cava = tuple((18 + 0.02 * (z + 130), spine_front(body, z) + 12, z) for z in (-130, -235))
    rise = ((2, 12, -12), (12, 24, 18), (9, 24, 44), (-6, 4, 60), (-20, -24, 55), (-25, -44, 34))
    girth = [wide - k for k in (0, 0, 0, 1.5, 2.5, 3)] + [wide - 3.5 - 0.6 * k for k in range(len(down))]
    veins, pulmonary, lower = (45 + share * (blood - 45) for share in (0.8, 0.9, 0.3))
    trees: tuple[tuple[str, float, Sequence[tuple[float, float, float]], Sequence[float]], ...] = (
        ("pulmonary_artery", pulmonary, ((-20, 34, -8), (-17, 18, 22)), (13, 13)),
        (
            "pulmonary_artery",
            pulmonary,
            ((-17, 12, 22), (12, -4, 19), (44, -12, 12), (60, -36, -34)),
            (11, 10, 8, 4),
        ),
        ("pulmonary_artery", pulmonary, ((-17, 12, 22), (-42, -16, 20), (-62, -38, -30)), (11, 9, 4)),
        ("pulmonary_artery", pulmonary, ((42, -10, 14), (58, 4, 58)), (7, 3)),
        ("pulmonary_artery", pulmonary, ((-42, -14, 20), (-58, 4, 62)), (7, 3)),
        (
            "superior_vena_cava",
            veins,
            ((30, 26, 98), (25, 16, 72), (24, 10, 40), (24, 8, -8)),
            (7, 9, 9.5, 10),
        ),
        ("superior_vena_cava", veins, ((-40, 24, 98), (-8, 30, 82), (25, 16, 72)), (6, 6.5, 7)),
        ("inferior_vena_cava", lower, ((22, 2, -34), (22, -6, -80), *cava), (11, 12, 11, 10)),
        ("aorta", blood, (*rise, *down), girth),
        ("aorta", blood, ((4, 14, 60), (16, 10, 84), (24, 6, 116)), (6, 6, 5)),
        ("aorta", blood, ((-8, 0, 62), (-13, 4, 116)), (4.5, 4)),
        ("aorta", blood, ((-17, -14, 60), (-24, -10, 90), (-34, -6, 116)), (5.5, 5, 5)),
    )
    for name, hu, points, radii in trees:
        for region, part in canvas.tube(points, radii):
            _carve(canvas, lung, region, part)
            canvas.paint(region, part, hu, name)
    for side in (-1, 1):  # pulmonary veins
        for region, part in canvas.tube(((side * 18 - 8, -14, -14), (side * 54, -26, -24)), (7, 4)):
            _carve(canvas, lung, region, part)
            canvas.paint(region, part, pulmonary, "heart")


def _airways(canvas: Canvas, lung: Float32[np.ndarray, "x y z"]) -> None:
    body = canvas.body
    gullet = [
        (-5.0 - 0.08 * (60 - z), min(spine_front(body, z) + 8, -20.0), z) for z in (116, 80, 40, 0, -40)
    ]
    tail = ((-16.0, -34.0, -62.0), (-30.0, -6.0, -80.0))
    for region, part in canvas.tube([*gullet, *tail], 8):
        _carve(canvas, lung, region, part)
        canvas.paint(region, part, 42, "esophagus")
    pipe = [(-0.5, spine_front(body, z) + 24, z) for z in (118, 90, 60)]
    fork = (2.0, -20.0, 30.0)
    for name, points, radii in (
        ("trachea", [*pipe, fork], (9.0, 9.0, 9.0, 9.0)),
        ("bronchi", [fork, (34.0, -19.0, 12.0), (52.0, -28.0, -14.0)], (7.5, 6.0, 3.5)),
        ("bronchi", [fork, (-42.0, -21.0, 6.0), (-56.0, -30.0, -16.0)], (7.0, 5.5, 3.5)),
        ("bronchi", [(32.0, -19.0, 13.0), (50.0, -14.0, 34.0)], (5.0, 3.0)),
        ("bronchi", [(-40.0, -21.0, 7.0), (-54.0, -12.0, 34.0)], (5.0, 3.0)),
    ):
        for region, part in canvas.tube(points, [r + 2.0 for r in radii]):
            canvas.paint(region, part, 20)
        for region, part in canvas.tube(points, radii):
            canvas.paint(region, part, AIR, name)
            _carve(canvas, lung, region, part)
