"""Findings in a CT phantom: each changes the voxels of one place and reports the box it changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int16, UInt8

from medvl.phantoms.ct_anatomy import AIR, WHOLE, Trunk, draw_trunk
from medvl.phantoms.ct_bones import DISC_PITCH, rib_at, spine_at
from medvl.phantoms.ct_canvas import Canvas, Lattice, Region, Thin, cut, step
from medvl.phantoms.ct_scan import Kernel, scan
from medvl.phantoms.ct_truth import STRUCTURES, CtBody, CtFinding
from medvl.phantoms.truth import Level
from medvl.records import Box
from medvl.specs.volumes import VolumeGrid

__all__ = ["CtDrawing", "draw_ct"]

_HEART = (0.17, 0.27, 0.40)
_LOBE = {  # x as a share of the half width, y, z, and how far a lesion may sit from there
    "right upper lobe": (0.56, -6, 48, 22, 14),
    "right middle lobe": (0.56, 42, -12, 8, 6),
    "right lower lobe": (0.56, -54, -14, 10, 14),
    "left upper lobe": (-0.58, 0, 44, 22, 14),
    "left lower lobe": (-0.58, -56, -14, 10, 14),
}
_LOBE_NAMES = {
    "right upper lobe": "lung_upper_lobe_right",
    "right middle lobe": "lung_middle_lobe_right",
    "right lower lobe": "lung_lower_lobe_right",
    "left upper lobe": "lung_upper_lobe_left",
    "left lower lobe": "lung_lower_lobe_left",
}
_NODES = {
    "right paratracheal": (19.0, -8.0, 50.0),
    "subcarinal": (0.0, -24.0, 14.0),
    "right hilar": (48.0, -6.0, 2.0),
    "left hilar": (-50.0, -8.0, 8.0),
    "prevascular": (-10.0, 46.0, 38.0),
}
_VERTEBRAE = {"T5": 75.0, "T7": 25.0, "T9": -25.0, "T11": -75.0, "L1": -125.0}
_CORONARY = ((-0.30, 0.90, 0.30), (-0.46, 0.87, 0.10), (-0.62, 0.76, -0.18), (0.72, 0.62, 0.28))
_RIM = ((0.9, 0.4), (-0.9, 0.45), (-0.2, -1.0), (0.5, 0.85), (-0.75, -0.65), (0.95, -0.3), (0.1, 1.0))
_ARCH = ((10, 24, 36), (-6, 4, 60), (-14, -12, 58), (-20, -24, 55), (-25, -44, 34))
_BESIDE_HEART = [
    STRUCTURES[name]
    for name in (
        *("heart", "aorta", "pulmonary_artery", "superior_vena_cava", "inferior_vena_cava"),
        *("bronchi", "trachea", "vertebrae", "sternum"),
    )
]
_LUNGS = [number for name, number in STRUCTURES.items() if name.startswith("lung_")]
_PLEURA = [number for name, number in STRUCTURES.items() if name.startswith("pleura_")]


@dataclass(frozen=True)
class CtDrawing:
    """A drawn volume.

    Attributes:
        hu: the values, with noise.
        structures: the number of each voxel's structure; see :data:`medvl.phantoms.ct_truth.STRUCTURES`.
        lesions: k where finding k − 1 is, 0 elsewhere; the later finding wins.
        findings: the findings with their boxes in RAS mm.
        grid: where the voxels lie.
    """

    hu: Int16[np.ndarray, "x y z"]
    structures: UInt8[np.ndarray, "x y z"]
    lesions: UInt8[np.ndarray, "x y z"]
    findings: tuple[CtFinding, ...]
    grid: VolumeGrid


def draw_ct(
    body: CtBody,
    findings: Sequence[CtFinding],
    grid: VolumeGrid,
    *,
    level: Level,
    rng: np.random.Generator,
    contrast: int = 0,
    kernel: Kernel = "soft",
) -> CtDrawing:
    """Draw one volume of a body with its findings.

    Args:
        body: the patient's geometry.
        findings: what to draw.
        grid: the voxels; any spacing, orientation and extent.
        level: the difficulty: contrast of findings, noise, and clutter of vessels.
        rng: of the noise alone.
        contrast: 1 with a contrast medium, 0 without.
        kernel: ``"soft"`` smooths the noise, ``"lung"`` sharpens picture and noise.

    Examples:
        >>> from medvl.phantoms.ct_truth import draw_ct_body
        >>> from medvl.phantoms.truth import LEVELS
        >>> affine = np.diag([12.0, 12.0, 12.0, 1.0])
        >>> affine[:3, 3] = -186.0
        >>> rng = np.random.default_rng(0)
        >>> body = draw_ct_body(rng, female=0)
        >>> drawn = draw_ct(body, (), VolumeGrid((32, 32, 28), affine), level=LEVELS["easy"], rng=rng)
        >>> drawn.hu.shape, int(drawn.hu.min()) >= -1024
        ((32, 32, 28), True)
    """
    degree = next((finding.mm for finding in findings if finding.kind == "cardiomegaly"), 0)
    grown = _HEART[degree - 1] * min(1.15, 0.30 + 0.6 * level.contrast) if degree else 0.0
    canvas = Canvas(grid, body)
    trunk = draw_trunk(canvas, contrast=contrast, clutter=level.clutter, heart_scale=1 + grown)
    painter = _Painter(canvas, trunk, level.contrast)
    drawn = tuple(painter.paint(finding, number) for number, finding in enumerate(findings, 1))
    hu = scan(canvas, rng, noise=level.noise * 800, kernel=kernel)
    return CtDrawing(hu, canvas.structures, painter.lesions, drawn, grid)


class _Painter:
    """Draws findings into one trunk, side by side."""

    def __init__(self, canvas: Canvas, trunk: Trunk, contrast: float) -> None:
        self.canvas, self.trunk, self.body = canvas, trunk, canvas.body
        self.strength = contrast
        self.lesions: UInt8[np.ndarray, "x y z"] = np.zeros(canvas.hu.shape, np.uint8)
        self.number = 0

    def paint(self, finding: CtFinding, number: int) -> CtFinding:
        """Draw a finding on each of its sides; return it with boxes, voxels and HU."""
        self.number = number
        draw: Callable[[CtFinding, int], None] = getattr(self, f"_{finding.kind}")
        boxes, voxels, total = [], 0, 0.0
        for side in finding.sides:
            before = self.lesions == number
            draw(finding, side)
            mine = (self.lesions == number) & ~before
            if mine.any():
                boxes.append(_box(mine, self.canvas.grid, finding.kind))
                voxels += int(mine.sum())
                total += float(self.canvas.hu[mine].sum(dtype=np.float64))
        return replace(finding, boxes=tuple(boxes), voxels=voxels, hu=round(total / max(1, voxels), 1))

    def _put(
        self, region: Region, part: Thin, hu: float | Thin, structure: str | None = None, *, carve: int = 0
    ) -> None:
        """Paint and mark a piece; a piece too small to fill half a voxel marks its fullest ones."""
        self.canvas.paint(region, part, hu, structure)
        if carve:
            self.trunk.lung[region] *= 1 - part
        self._mark(region, part)

    def _mark(self, region: Region, part: Thin) -> None:
        whole = np.broadcast_to(part, self.lesions[region].shape)
        if whole.size:
            self.lesions[region][whole >= min(0.5, max(0.15, 0.7 * float(whole.max())))] = self.number

    def _is(self, region: Region, numbers: Sequence[int]) -> Bool[np.ndarray, "x y z"]:
        return np.isin(self.canvas.structures[region], numbers)

    def _in_lobe(self, finding: CtFinding) -> tuple[float, float, float]:
        x, y, z, wander, rise = _LOBE[finding.place]
        seat = finding.seat
        return (x * self.body.wide + 9 * seat[0], y + wander * seat[1], z + rise * seat[2])

    def _lung_nodule(self, finding: CtFinding, side: int) -> None:
        half = finding.mm / 2
        region, part = self.canvas.ellipsoid(self._in_lobe(finding), (half, half, half))
        self._put(region, part * min(1.0, 0.35 + 0.55 * self.strength), 45)

    def _patch(self, finding: CtFinding) -> tuple[Region, Thin]:
        """Return a cloud inside its lobe, about as wide as its millimetres say."""
        wide = finding.mm / 2 * 1.15
        region, part = self.canvas.ellipsoid(self._in_lobe(finding), (wide, wide, wide * 0.85))
        grain = Lattice([finding.grain], cell_mm=11).at(*self.canvas.scanner_at(region))
        lobe = self.canvas.structures[region] == STRUCTURES[_LOBE_NAMES[finding.place]]
        cloud = step(part * np.float32(1.7) + np.float32(0.35) * grain - np.float32(0.75), 0.7)
        return region, cloud * self.trunk.lung[region] * lobe

    def _lung_opacity(self, finding: CtFinding, side: int) -> None:
        region, cloud = self._patch(finding)
        self._put(region, cloud, self.canvas.hu[region] + (-330 - self.canvas.hu[region]) * np.float32(
            min(0.9, 0.35 + 0.3 * self.strength)
        ))  # fmt: skip

    def _consolidation(self, finding: CtFinding, side: int) -> None:
        region, cloud = self._patch(finding)
        pipes = Lattice([finding.grain, 1], cell_mm=13).at(*self.canvas.scanner_at(region))
        open_pipes = step(np.float32(0.12) - np.abs(pipes), 0.12) * np.float32(0.6)
        self._put(
            region, cloud * min(1.0, 0.45 + 0.45 * self.strength), (35 - 800 * open_pipes).astype(np.float32)
        )

    def _emphysema(self, finding: CtFinding, side: int) -> None:
        places = self.canvas.scanner_at(WHOLE)
        grain = Lattice([finding.grain], cell_mm=15).at(*places)
        holes = step(grain - np.float32(0.62 - 0.28 * finding.mm), 0.25)
        upper = step(self.canvas.z - np.float32(22 - 14 * finding.mm), 12) * (self.canvas.x * side > 0)
        holes = holes * upper * self.trunk.lung * (self.trunk.inside > 5)
        self._put(
            WHOLE,
            holes,
            self.canvas.hu + (-996 - self.canvas.hu) * np.float32(min(1.0, 0.75 * self.strength + 0.2)),
        )

    def _pleural_effusion(self, finding: CtFinding, side: int) -> None:
        top = -8 - 0.95 * self.body.deep + finding.mm - 0.22 * np.clip(self.canvas.z + 50, 0, None)
        self._layer(side, top - self.canvas.y, 10.0)

    def _pneumothorax(self, finding: CtFinding, side: int) -> None:
        sheet = self.canvas.y - np.float32(-8 + 0.95 * self.body.deep - finding.mm)
        sheet = np.minimum(sheet + 0.12 * np.clip(self.canvas.z, -40, 60), self.canvas.z + 35)
        line = self.canvas.soft(2.0 - np.abs(sheet + 2)) * (self.canvas.x * side > 0) * self.trunk.lung
        self.canvas.paint(WHOLE, line, -350)
        self._layer(side, sheet, AIR)

    def _layer(self, side: int, depth: Thin, hu: float) -> None:
        """Fill the pleural space of one side where ``depth`` is positive."""
        chest = np.minimum(np.minimum(self.trunk.inside, self.trunk.above), self.trunk.aside + 4)
        room = self._is(WHOLE, [*_LUNGS, *_PLEURA]) & (self.canvas.x * side > 0)
        part = self.canvas.soft(np.minimum(chest, depth)) * room
        self._put(WHOLE, part, hu, "pleura_right" if side > 0 else "pleura_left", carve=1)

    def _cardiomegaly(self, finding: CtFinding, side: int) -> None:
        self._mark(WHOLE, (self.canvas.structures == STRUCTURES["heart"]).astype(np.float32))

    def _pericardial_effusion(self, finding: CtFinding, side: int) -> None:
        heart, slant = self.trunk.heart, (-0.28, -0.12)
        outer = [extent + finding.mm for extent in heart]
        region, part = self.canvas.ellipsoid(self.body.heart_at, outer, slant=slant)
        free = ~self._is(region, _BESIDE_HEART)
        room = free & (cut(self.trunk.above, region) > 0) & (cut(self.trunk.inside, region) > 0)
        self._put(region, part * room, 12, "heart", carve=1)

    def _coronary_artery_wall_calcification(self, finding: CtFinding, side: int) -> None:
        heart, middle = self.trunk.heart, self.body.heart_at
        half = max(2.4 + 0.7 * finding.mm, 0.55 * self.canvas.edge_mm)
        for course in _CORONARY[: 1 + finding.mm]:
            up = course[2] * heart[2]
            centre = (
                middle[0] + course[0] * heart[0] - 0.28 * up,
                middle[1] + course[1] * heart[1] - 0.12 * up,
                middle[2] + up,
            )
            region, part = self.canvas.ellipsoid(centre, (half, half, half * 1.4))
            self._put(region, part, 45 + min(1100.0, 750 * self.strength), "heart", carve=1)

    def _arterial_wall_calcification(self, finding: CtFinding, side: int) -> None:
        half = max(2.6, 0.55 * self.canvas.edge_mm)
        for index in range(2 + 2 * finding.mm):
            turn = _RIM[(index + finding.grain) % len(_RIM)]
            if finding.place == "aortic arch":
                at = _ARCH[1 + index % 3]
                centre = (
                    at[0] + turn[0] * (self.body.aorta - 2),
                    at[1] + turn[1] * (self.body.aorta - 3),
                    at[2] + 4 * turn[1],
                )
            else:
                z = -8.0 - 11 * index
                centre = (-23 + turn[0] * (self.body.aorta - 4), float(spine_at(self.body, z)[1]) + 28
                          + turn[1] * (self.body.aorta - 4), z)  # fmt: skip
            region, part = self.canvas.ellipsoid(centre, (half, half, half * 1.6))
            self._put(region, part, 45 + min(1100.0, 750 * self.strength), "aorta", carve=1)

    def _lymphadenopathy(self, finding: CtFinding, side: int) -> None:
        half = finding.mm / 2
        for offset in ((0, 0, 0), (3, 5, half * 1.5)):
            centre = [a + b for a, b in zip(_NODES[finding.place], offset, strict=True)]
            region, part = self.canvas.ellipsoid(centre, (half * 1.2, half, half * 1.1))
            free = ~self._is(
                region, [STRUCTURES[n] for n in ("trachea", "bronchi", "aorta", "pulmonary_artery", "heart")]
            )
            part = part * (free | (self.canvas.hu[region] < 0)) * min(1.0, 0.55 + 0.4 * self.strength)
            self._put(region, part, 50 + 12 * self.trunk.contrast, "mediastinum", carve=1)

    def _hiatal_hernia(self, finding: CtFinding, side: int) -> None:
        half, middle = finding.mm / 2, (-14.0, -40.0, -50.0)
        region, part = self.canvas.ellipsoid(middle, (half, half * 0.9, half))
        part = part * ~self._is(region, [STRUCTURES[name] for name in ("vertebrae", "aorta", "heart")])
        self._put(region, part, 42 + 20 * self.trunk.contrast, "esophagus", carve=1)
        region, inner = self.canvas.ellipsoid(middle, (half - 4, half * 0.9 - 4, half - 4))
        inner = inner * self._is(region, [STRUCTURES["esophagus"]])
        self.canvas.paint(region, inner, 18)
        gas = step(cut(self.canvas.py, region) - np.float32(middle[1] + self.body.shift[1] + 0.15 * half), 4)
        self.canvas.paint(region, inner * gas, -960)

    def _rib_fracture(self, finding: CtFinding, side: int) -> None:
        body, y = self.body, -22 + 24 * finding.seat[1]
        z = rib_at(body, int(finding.place.split()[1][0]), y)
        narrow = max(0.05, 1 - (max(0.0, z + 20) / 132) ** 2) ** 0.5
        x = (
            side * body.wide * max(0.05, narrow**2 - ((y + 8) / body.deep) ** 2) ** 0.5
            + side * 5
            + body.lean * z
        )
        half = finding.mm / 2
        region, part = self.canvas.ellipsoid((x, y, z), (half * 0.6, half, half * 0.7))
        part = part * ~self._is(region, _LUNGS)
        self._put(region, part * min(1.0, 0.5 + 0.4 * self.strength), 420)
        region, slit = self.canvas.ellipsoid((x, y, z), (half * 0.8, 2.2, half * 0.9))
        self.canvas.paint(region, slit * ~self._is(region, _LUNGS), 20)

    def _sclerotic_bone_lesion(self, finding: CtFinding, side: int) -> None:
        z = _VERTEBRAE[finding.place] + 2 * finding.seat[2]
        x, y = spine_at(self.body, z)
        half = min(finding.mm, DISC_PITCH - 3) / 2
        centre = (float(x) + 3 * finding.seat[0], float(y) + 2 * finding.seat[1], z)
        region, part = self.canvas.ellipsoid(centre, (finding.mm / 2, finding.mm / 2.2, half))
        part = part * self._is(region, [STRUCTURES["vertebrae"]])
        self._put(region, part, 300 + 480 * self.strength)

    def _medical_material(self, finding: CtFinding, side: int) -> None:
        front = -18 + 0.88 * (self.body.deep + 25)
        vein = ((25, 15, 68), (24, 9, 36), (24, 8, 8 + 8 * finding.seat[2]))
        course: tuple[tuple[float, float, float], ...] = ((66, 44, 98), (36, 32, 92), *vein)
        if finding.place == "port":
            course = ((66, front - 4, 60), *course)
            region, part = self.canvas.ellipsoid((66, front - 2, 56), (14, 9, 14))
            self._put(region, part, 2400, "device")
        elif finding.place == "pacemaker":
            course = (
                (-70, front - 4, 60),
                (-58, 46, 84),
                (-20, 32, 88),
                *vein[:2],
                (12, 22, -20),
                (-6, 34, -44),
            )
            region, part = self.canvas.ellipsoid((-70, front - 2, 56), (26, 9, 24))
            self._put(region, part, 3000, "device")
        for region, part in self.canvas.tube(course, max(2.2, 0.36 * self.canvas.edge_mm)):
            self._put(region, part, 1500, "device", carve=1)

    def _liver_lesion(self, finding: CtFinding, side: int) -> None:
        seat, half = finding.seat, finding.mm / 2
        centre = (64 + 16 * seat[0], 4 + 24 * seat[1], -92 + 16 * seat[2])
        if finding.place == "left hepatic lobe":
            centre = (4 + 8 * seat[0], 42 + 4 * seat[1], -84 + 4 * seat[2])
        region, part = self.canvas.ellipsoid(centre, (half, half, half * 0.95))
        part = part * self._is(region, [STRUCTURES["liver"]])
        self._put(
            region, part, 60 + 50 * self.trunk.contrast - (42 + 12 * self.trunk.contrast) * self.strength
        )

    def _kidney(self, side: int) -> tuple[float, float, float]:
        return (side * 60.0 - 2, -40.0, -152.0 + 4 * (1 - side))

    def _kidney_stone(self, finding: CtFinding, side: int) -> None:
        x, y, z = self._kidney(side)
        half = max(finding.mm / 2, 0.5 * self.canvas.edge_mm)
        region, part = self.canvas.ellipsoid(
            (x - side * 8, y + 3, z + 16 * finding.seat[2]), (half, half, half)
        )
        self._put(region, part, 100 + min(1100.0, 620 * self.strength))

    def _kidney_cyst(self, finding: CtFinding, side: int) -> None:
        x, y, z = self._kidney(side)
        half = finding.mm / 2
        centre = (x + side * (14 + 0.2 * half), y + 8 * finding.seat[1], z + 26 * finding.seat[2])
        region, part = self.canvas.ellipsoid(centre, (half, half, half))
        part = (
            part
            * (cut(self.trunk.inside, region) > 2)
            * ~self._is(region, [STRUCTURES["liver"], STRUCTURES["spleen"]])
        )
        self._put(
            region,
            part * min(1.0, 0.55 + 0.4 * self.strength),
            5,
            f"kidney_{'right' if side > 0 else 'left'}",
        )


def _box(mine: Bool[np.ndarray, "x y z"], grid: VolumeGrid, label: str) -> Box:
    """Return the box of some voxels along the axes of the patient, in RAS mm."""
    held = [np.flatnonzero(mine.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    edges = [(float(index[0]) - 0.5, float(index[-1]) + 0.5) for index in held]
    low, high = [], []
    for row in range(3):
        slopes = [float(value) for value in grid.affine_ras[row, :3]]
        start = float(grid.affine_ras[row, 3])
        low.append(
            start + sum(min(slope * a, slope * b) for slope, (a, b) in zip(slopes, edges, strict=True))
        )
        high.append(
            start + sum(max(slope * a, slope * b) for slope, (a, b) in zip(slopes, edges, strict=True))
        )
    ends = [round(value, 2) for value in (*low, *high)]
    return Box(label, ends[0], ends[1], ends[3], ends[4], ends[2], ends[5])
