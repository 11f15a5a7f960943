"""Findings on the plane: each changes the grey values in one place and reports the box it changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from medvl.phantoms.chest import (
    Along,
    Chest,
    Down,
    Frame,
    Number,
    Plane,
    bump,
    frontal_chest,
    lateral_chest,
    ramp,
    smooth_field,
)
from medvl.phantoms.truth import Body, Finding
from medvl.records import Box

__all__ = ["draw_chest"]

_ZONE_Y = {"upper": -0.50, "middle": -0.10, "lower": 0.26, "none": 0.0}
_STRENGTH = {"mild": 0.75, "moderate": 1.0, "severe": 1.3}
_HEART = {"mild": 1.26, "moderate": 1.38, "severe": 1.52}
_EDGE = 0.25


def draw_chest(
    body: Body, findings: tuple[Finding, ...], frame: Frame, *, view: str, contrast: float, clutter: float
) -> tuple[Plane, tuple[Finding, ...]]:
    """Draw one view of a body with its findings, before noise and exposure.

    Args:
        body: the patient's geometry.
        findings: what to draw.
        frame: how millimetres fall on pixels.
        view: ``"PA"``, ``"AP"`` or ``"LL"`` (left lateral).
        contrast: how strongly findings show: a factor on their grey change, and on the growth of the heart.
        clutter: strength of ribs and vessels.

    Returns:
        The grey plane, and the findings with their boxes on this image.
    """
    enlarged = next((_HEART[finding.severity] for finding in findings if finding.kind == "cardiomegaly"), 1.0)
    # the heart's enlargement is its contrast: a harder level shows less of it
    enlarged = 1 + (enlarged - 1) * min(1.15, 0.30 + 0.6 * contrast)
    anatomy = lateral_chest if view == "LL" else frontal_chest
    magnified = 1.04 if view == "AP" else 1.0
    chest = anatomy(body, frame, clutter=clutter, heart_scale=enlarged * magnified)
    painter = _Painter(body, frame, chest, contrast, lateral=view == "LL")
    drawn = tuple(
        replace(finding, boxes=tuple(box for side in finding.sides if (box := painter.paint(finding, side))))
        for finding in findings
    )
    return chest.plane, drawn


class _Painter:
    """Draws findings on one chest, side by side."""

    def __init__(self, body: Body, frame: Frame, chest: Chest, contrast: float, *, lateral: bool) -> None:
        self.body, self.frame, self.chest, self.contrast = body, frame, chest, contrast
        self.lateral = lateral

    def paint(self, finding: Finding, side: int) -> Box | None:
        """Draw ``finding`` on one side and return its box, or None where this view cannot show it."""
        if self.lateral and (finding.kind == "pneumothorax" or (side < 0 and finding.side == "bilateral")):
            return None
        rng = np.random.default_rng([finding.grain, side + 1, int(self.lateral)])
        strength = self.contrast * _STRENGTH[finding.severity]
        draw = {
            "nodule": self._nodule,
            "consolidation": self._consolidation,
            "pleural_effusion": self._pleural_effusion,
            "pneumothorax": self._pneumothorax,
            "cardiomegaly": self._cardiomegaly,
            "interstitial_edema": self._interstitial_edema,
        }[finding.kind]
        return draw(finding, side, strength, rng)

    def _place(self, finding: Finding, side: int) -> tuple[float, float]:
        across, down, depth = finding.seat
        y = self.body.lung_y + (_ZONE_Y[finding.zone] + 0.11 * down) * self.body.lung_half_height
        if self.lateral:
            return 8 + 42 * depth, y
        inward = 0.30 * (finding.zone == "upper")  # the lung narrows towards its apex
        x = self.body.lung_x + self.body.lung_half_width * (0.10 + 0.38 * across - inward * (0.4 + across))
        return side * x, y

    def _add(self, rows: slice, columns: slice, change: Plane, label: str) -> Box | None:
        self.chest.plane[rows, columns] += change
        size = np.abs(change)
        shown = size > max(_EDGE * float(size.max(initial=0)), 1e-4)
        down, across = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
        if not len(down):
            return None
        left, top = columns.start, rows.start
        return Box(
            label,
            float(left + across[0]),
            float(top + down[0]),
            float(left + across[-1] + 1),
            float(top + down[-1] + 1),
        )

    def _local(
        self, x: Number, y: Number, half_x: Number, half_y: Number
    ) -> tuple[slice, slice, Along, Down]:
        rows, columns = self.frame.patch(x, y, half_x, half_y)
        grid_x, grid_y = self.frame.grid
        return rows, columns, grid_x[:, columns], grid_y[rows]

    def _nodule(self, finding: Finding, side: int, strength: float, rng: np.random.Generator) -> Box | None:
        x, y = self._place(finding, side)
        radius = finding.diameter_mm / 2
        rows, columns, grid_x, grid_y = self._local(x, y, radius, radius)
        squared = ((grid_x - x) ** 2 + (grid_y - y) ** 2) * (1 / radius**2)
        disc = np.clip(2.2 * (1 - squared), 0, 1)
        return self._add(rows, columns, disc * (0.24 * strength), finding.kind)

    def _consolidation(
        self, finding: Finding, side: int, strength: float, rng: np.random.Generator
    ) -> Box | None:
        x, y = self._place(finding, side)
        extent = {"small": 27.0, "medium": 36.0, "large": 46.0}[finding.size]
        high = extent * float(rng.uniform(0.75, 1.0))
        rows, columns, grid_x, grid_y = self._local(x, y, extent * 1.2, high * 1.2)
        squared = ((grid_x - x) / extent) ** 2 + ((grid_y - y) / high) ** 2
        ragged = squared + 0.35 * smooth_field(rng, squared.shape, 4)
        cloud = ramp(1 - ragged, 1.1) * (1 + 0.22 * smooth_field(rng, squared.shape, 7))
        change = cloud * self.chest.air[rows, columns] * bump_edge(squared) * (0.25 * strength)
        return self._add(rows, columns, change, finding.kind)

    def _pleural_effusion(
        self, finding: Finding, side: int, strength: float, rng: np.random.Generator
    ) -> Box | None:
        body = self.body
        rise = {"small": 54.0, "medium": 74.0, "large": 104.0}[finding.size]
        dome = body.dome_left if side > 0 else body.dome_right
        if self.lateral:
            centre, half = 52.0, 48.0
        else:
            centre, half = side * body.lung_x, body.lung_half_width + 4
        level = dome + 30 - rise
        rows, columns, x, y = self._local(centre, level + 20, half, rise * 0.5 + 40)
        outward = (x - centre) * ((1 if self.lateral else side) / half)
        surface = level + 16 - 26 * np.clip(outward, -1, 1) * np.abs(np.clip(outward, -1, 1))
        fluid = ramp(y - surface, 12) * ramp(1.02 - np.abs(outward), 0.12) * self.chest.air[rows, columns]
        amount = 0.34 * min(1.0, 0.15 + 0.6 * strength)
        return self._add(rows, columns, fluid * amount, finding.kind)

    def _pneumothorax(
        self, finding: Finding, side: int, strength: float, rng: np.random.Generator
    ) -> Box | None:
        body = self.body
        gap = {"small": 0.22, "medium": 0.32, "large": 0.44}[finding.size]
        centre, top = side * body.lung_x, body.lung_y - body.lung_half_height
        high = body.lung_half_height * (0.42 + gap)
        rows, columns, x, y = self._local(centre, top + high / 2, body.lung_half_width + 4, high / 2 + 3)
        across = (side * x - body.lung_x + body.lung_half_width * gap * 0.75) / (
            body.lung_half_width * (1 - 0.4 * gap)
        )
        upward = (y - body.lung_y) / body.lung_half_height
        across = across + 0.22 * np.clip(-upward, 0, None)
        upward = upward - gap * 0.55
        collapsed = 1 - (across * across + upward * upward * (1 + 0.4 * gap))
        fade = ramp(top + high - 8 - y, 30)
        air = self.chest.air[rows, columns] * fade
        free = ramp(-collapsed, 0.08) * air
        edge = bump((collapsed - 0.03) ** 2 * (1 / 0.055**2)) * air
        change = edge * (0.16 * strength) - free * min(0.20, 0.14 * strength)
        return self._add(rows, columns, change, finding.kind)

    def _cardiomegaly(
        self, finding: Finding, side: int, strength: float, rng: np.random.Generator
    ) -> Box | None:
        shown = self.chest.heart > 0.5
        down, across = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
        return Box(finding.kind, float(across[0]), float(down[0]), float(across[-1] + 1), float(down[-1] + 1))

    def _interstitial_edema(
        self, finding: Finding, side: int, strength: float, rng: np.random.Generator
    ) -> Box | None:
        body = self.body
        x = 5.0 if self.lateral else side * (body.lung_x - 6)
        wide, high = (62.0, 66.0) if self.lateral else (50.0, 60.0)
        rows, columns, grid_x, grid_y = self._local(x, 14.0, wide, high)
        squared = ((grid_x - x) * (1 / wide)) ** 2 + ((grid_y - 14.0) * (1 / high)) ** 2
        coarse, fine = (smooth_field(rng, squared.shape, cells) for cells in (9, 20))
        mesh = 0.70 + 0.35 * np.abs(coarse) + 0.45 * np.clip(fine, -1, 1.5)
        change = bump_edge(squared) * mesh * self.chest.air[rows, columns] * (0.10 * strength)
        return self._add(rows, columns, change, finding.kind)


def bump_edge(squared_radius: Plane) -> Plane:
    """A plateau that falls to 0 at the unit circle."""
    return np.clip(1.8 * (1 - squared_radius), 0, 1)
