"""What all objectives share: what they need, and how their parts are kept in range."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

__all__ = ["AlignmentObjective"]


class AlignmentObjective(nn.Module):
    """A :class:`medvl.features.Objective` whose parts look after their own parameters.

    Attributes:
        needs_local: whether it trains the region and sentence projections.
        needs_parts: whether it reads ``sentence_parts``.
        needs_attributes: whether it reads ``attributes``.
        views: images and texts of each study that it compares.
    """

    needs_local: ClassVar[bool] = False
    needs_parts: ClassVar[bool] = False
    needs_attributes: ClassVar[bool] = False
    views: ClassVar[int] = 1

    def clamp_(self) -> None:
        """Bring the parameters back into their range; call it after each optimiser step."""
        for part in self.children():
            if hasattr(part, "clamp_"):
                part.clamp_()  # type: ignore[operator]

    def on_epoch(self, epoch: int) -> None:
        """Say which epoch begins, for parts that treat the first ones otherwise."""
        for part in self.children():
            if hasattr(part, "on_epoch"):
                part.on_epoch(epoch)  # type: ignore[operator]
