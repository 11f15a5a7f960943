"""A volume to draw on: body coordinates of every voxel, soft-edged shapes, painting by coverage.

Shapes are polynomials and square roots of float32 values: no transcendental function, so every machine
draws the same bits. Coordinates keep one axis each as long as the volume lies straight, so that most
arithmetic runs on thin arrays.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Float64, Shaped, UInt8

from medvl.phantoms.ct_truth import STRUCTURES, CtBody
from medvl.specs.volumes import VolumeGrid

__all__ = ["Canvas", "Lattice", "Region", "step"]

Region = tuple[slice, slice, slice]
Thin = Float32[np.ndarray, "_ _ _"]
"""An array that broadcasts to the volume."""


def step(values: Thin, width: float) -> Thin:
    """A smooth step from 0 to 1 as ``values`` cross zero, ``width`` wide."""
    rise = values * np.float32(1 / width)
    rise += np.float32(0.5)
    np.clip(rise, 0, 1, out=rise)
    smooth = rise * np.float32(-2)
    smooth += np.float32(3)
    smooth *= rise
    smooth *= rise
    return smooth


class Lattice:
    """Smooth noise of mean 0 and roughly unit size in a box of the scanner's space.

    Args:
        seed: of the values on the lattice.
        cell_mm: distance of its points.
        reach_mm: half extent of the box; beyond it the noise repeats its rim.
    """

    def __init__(self, seed: Sequence[int], *, cell_mm: float, reach_mm: float = 260.0) -> None:
        self.cell_mm, self.reach_mm = cell_mm, reach_mm
        count = int(2 * reach_mm / cell_mm) + 2
        self.values = np.random.default_rng(list(seed)).standard_normal((count,) * 3, dtype=np.float32)

    def at(self, x: Thin, y: Thin, z: Thin) -> Thin:
        """Return the noise at some places, linear between its points."""
        places = [self._place(each) for each in (x, y, z)]
        varies = [tuple(axis for axis in range(3) if each.shape[axis] > 1) for each in (x, y, z)]
        if all(len(axes) <= 1 for axes in varies) and len({*varies} - {()}) == sum(map(bool, varies)):
            return self._straight(places, varies)
        total: Thin | None = None
        for corner in range(8):
            picked: list[Shaped[np.ndarray, "_ _ _"]] = []
            share: Thin | None = None
            for axis, (low, part) in enumerate(places):
                far = corner >> axis & 1
                picked.append(low + far)
                weight = part if far else 1 - part
                share = weight if share is None else share * weight
            value = self.values[tuple(picked)] * share
            total = value if total is None else total + value
        assert total is not None
        return total

    def _place(self, along: Thin) -> tuple[Shaped[np.ndarray, "_ _ _"], Thin]:
        cells = (along + np.float32(self.reach_mm)) * np.float32(1 / self.cell_mm)
        np.clip(cells, 0, len(self.values) - 1.001, out=cells)
        low = np.floor(cells)
        return low.astype(np.intp), cells - low

    def _straight(
        self, places: Sequence[tuple[Shaped[np.ndarray, "_ _ _"], Thin]], varies: Sequence[tuple[int, ...]]
    ) -> Thin:
        """Interpolate axis by axis, where each coordinate runs along an axis of its own."""
        out = self.values
        for axis, (low, part) in enumerate(places):
            index, share = low.ravel(), part.ravel().reshape([-1 if a == axis else 1 for a in range(3)])
            near = out.take(index, axis)
            near += (out.take(index + 1, axis) - near) * share
            out = near
        free = iter(sorted({0, 1, 2} - {axis for axes in varies for axis in axes}))
        order = [axes[0] if axes else next(free) for axes in varies]
        return np.ascontiguousarray(out.transpose(np.argsort(order)))


class Canvas:
    """A volume in the making.

    Attributes:
        grid: its voxels in RAS mm.
        x, y, z: body coordinates of the voxels, mm; axes of one voxel where they do not vary.
        px, py, pz: scanner coordinates, RAS mm.
        hu: the values so far.
        structures: the number of each voxel's structure.
        edge_mm: how wide an edge is drawn: the mean spacing.
    """

    def __init__(self, grid: VolumeGrid, body: CtBody) -> None:
        self.grid, self.body = grid, body
        affine = np.asarray(grid.affine_ras, np.float64)
        square = 1 + body.turn * body.turn
        cosine, sine = (1 - body.turn * body.turn) / square, 2 * body.turn / square
        self._to_body = np.array([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])
        shift = np.array(body.shift)
        turned = _product(self._to_body, affine[:3, :3])
        start = _product(self._to_body, (affine[:3, 3] - shift)[:, None])[:, 0]
        self.x, self.y, self.z = (_line(grid.shape, turned[row], start[row]) for row in range(3))
        self.px, self.py, self.pz = (_line(grid.shape, affine[row, :3], affine[row, 3]) for row in range(3))
        self._from_body = np.linalg.inv(turned)
        self._start = start
        self.spacing_mm = np.sqrt((affine[:3, :3] ** 2).sum(0))
        self.edge_mm = float(self.spacing_mm.mean())
        self.hu = np.full(grid.shape, -1000, np.float32)
        self.structures: UInt8[np.ndarray, "x y z"] = np.zeros(grid.shape, np.uint8)

    def near(self, centre: Sequence[float], half: Sequence[float]) -> Region:
        """Return the voxels that hold a box of the body, with a rim of two."""
        corners = np.array(
            [
                [centre[axis] + sign[axis] * half[axis] for axis in range(3)]
                for sign in np.ndindex(2, 2, 2)
                for sign in [tuple(2 * s - 1 for s in sign)]
            ]
        )
        voxels = (corners - self._start) @ self._from_body.T
        low = np.floor(voxels.min(0)).astype(int) - 2
        high = np.ceil(voxels.max(0)).astype(int) + 3
        return tuple(  # type: ignore[return-value]
            slice(max(0, int(a)), max(0, min(int(b), size)))
            for a, b, size in zip(low, high, self.grid.shape, strict=True)
        )

    def at(self, region: Region) -> tuple[Thin, Thin, Thin]:
        """Return body coordinates of a region."""
        return cut(self.x, region), cut(self.y, region), cut(self.z, region)

    def scanner_at(self, region: Region) -> tuple[Thin, Thin, Thin]:
        """Return scanner coordinates of a region."""
        return cut(self.px, region), cut(self.py, region), cut(self.pz, region)

    def soft(self, depth_mm: Thin) -> Thin:
        """Return the coverage of a shape from the depth below its surface."""
        return step(depth_mm, 1.2 * self.edge_mm)

    def ellipsoid(
        self, centre: Sequence[float], half: Sequence[float], *, slant: Sequence[float] = (0.0, 0.0)
    ) -> tuple[Region, Thin]:
        """Return region and coverage of an ellipsoid whose middle moves by ``slant`` (x, y) per mm of z."""
        reach = (
            half[0] + abs(slant[0]) * half[2] + self.edge_mm,
            half[1] + abs(slant[1]) * half[2] + self.edge_mm,
            half[2] + self.edge_mm,
        )
        region = self.near(centre, reach)
        x, y, z = self.at(region)
        up = z - np.float32(centre[2])
        across = x - np.float32(centre[0])
        along = y - np.float32(centre[1])
        if slant[0]:
            across = across - up * np.float32(slant[0])
        if slant[1]:
            along = along - up * np.float32(slant[1])
        squares = [
            (part * np.float32(1 / size)) ** 2 for part, size in zip((across, along, up), half, strict=True)
        ]
        radius = np.sqrt(squares[0] + squares[1] + squares[2])
        return region, self.soft((1 - radius) * np.float32(min(half) * 0.6 + sum(half) * 0.4 / 3))

    def tube(
        self, points: Sequence[Sequence[float]], radius: float | Sequence[float]
    ) -> list[tuple[Region, Thin]]:
        """Return regions and coverages of a chain of capsules through ``points``."""
        radii = [radius] * len(points) if isinstance(radius, int | float) else list(radius)
        pieces = []
        for (a, ra), (b, rb) in zip(
            zip(points, radii, strict=True), zip(points[1:], radii[1:], strict=False), strict=False
        ):
            middle = [(u + v) / 2 for u, v in zip(a, b, strict=True)]
            widest = max(ra, rb) + self.edge_mm
            half = [abs(u - v) / 2 + widest for u, v in zip(a, b, strict=True)]
            region = self.near(middle, half)
            if any(part.start >= part.stop for part in region):
                continue
            coordinates = self.at(region)
            course = [v - u for u, v in zip(a, b, strict=True)]
            length = sum(c * c for c in course) or 1.0
            offset = [each - np.float32(u) for each, u in zip(coordinates, a, strict=True)]
            share = offset[0] * np.float32(course[0] / length)
            for axis in (1, 2):
                share = share + offset[axis] * np.float32(course[axis] / length)
            np.clip(share, 0, 1, out=share)
            away = sum((off - share * np.float32(c)) ** 2 for off, c in zip(offset, course, strict=True))
            wide = np.float32(ra) + share * np.float32(rb - ra)
            pieces.append((region, self.soft(wide - np.sqrt(away))))
        return pieces

    def paint(self, region: Region, coverage: Thin, hu: float | Thin, structure: str | None = None) -> None:
        """Mix ``hu`` in by its coverage; voxels that are half covered take the structure."""
        view = self.hu[region]
        view += coverage * (hu - view)
        if structure is not None:
            self.structures[region][np.broadcast_to(coverage >= 0.5, view.shape)] = STRUCTURES[structure]


def cut(values: Thin, region: Region) -> Thin:
    """Return a region of an array that broadcasts to the volume."""
    return values[
        tuple(part if size > 1 else slice(None) for part, size in zip(region, values.shape, strict=True))
    ]


def _product(
    one: Float64[np.ndarray, "a b"], other: Float64[np.ndarray, "b c"]
) -> Float64[np.ndarray, "a c"]:
    """Multiply small matrices in a fixed order, whatever the machine's linear algebra does."""
    return np.array(
        [
            [
                sum(float(one[row, k] * other[k, column]) for k in range(one.shape[1]))
                for column in range(other.shape[1])
            ]
            for row in range(one.shape[0])
        ]
    )


def _line(shape: tuple[int, int, int], slopes: Float64[np.ndarray, "3"], start: float) -> Thin:
    """Return ``start + slopes · voxel`` as float32, thin along axes whose slope is 0."""
    total = np.full((1, 1, 1), start)
    for axis, slope in enumerate(slopes):
        if slope:
            ticks = np.arange(shape[axis]) * float(slope)
            total = total + ticks.reshape([-1 if a == axis else 1 for a in range(3)])
    return total.astype(np.float32)
