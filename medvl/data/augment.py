"""Small random changes of a film or a volume that a radiologist would call the same picture.

No flip is offered: it would move the heart and the words "left" and "right" would lie.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor

__all__ = ["Augment", "Motion", "VolumeAugment", "draw"]


def draw(*key: int | str) -> np.random.Generator:
    """Return a random stream that is a function of ``key`` alone, on any machine and in any process.

    Examples:
        >>> int(draw(0, 3, "r1").integers(1000)) == int(draw(0, 3, "r1").integers(1000))
        True
    """
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


@dataclass(frozen=True)
class Augment:
    """Rotation, shift, zoom, brightness, contrast and noise, each uniform in ± its size.

    A pixel x of the output shows the input at ``A x + b``; its value v becomes
    ``(1 + c)·(v − m) + m + 255·(d + σ ε)`` with m the mean of the film, ε standard normal, clipped to 0…255.
    What turns in from outside the picture is black and leaves the mask.

    Args:
        rotate_deg: largest angle in degrees.
        shift: largest shift, as a share of height and width.
        zoom: largest change of scale, as a share.
        brightness: largest d.
        contrast: largest c.
        noise: largest σ, itself drawn from 0 to this.

    Examples:
        >>> film = np.full((1, 8, 8), 100, np.uint8)
        >>> still = Augment(rotate_deg=0, shift=0, zoom=0, brightness=0, contrast=0, noise=0)
        >>> moved, mask = still(film, np.ones((1, 8, 8), bool), streams=[draw(0)])
        >>> bool((moved == film).all() and mask.all())
        True
    """

    rotate_deg: float = 7.0
    shift: float = 0.05
    zoom: float = 0.1
    brightness: float = 0.1
    contrast: float = 0.2
    noise: float = 0.02

    def __call__(
        self,
        canvas: UInt8[np.ndarray, "batch rows columns"],
        mask: Bool[np.ndarray, "batch rows columns"],
        *,
        streams: Sequence[np.random.Generator],
    ) -> tuple[Float[np.ndarray, "batch rows columns"], Bool[np.ndarray, "batch rows columns"]]:
        """Return changed copies of ``canvas`` (0…255) and ``mask``; row i draws from ``streams[i]`` alone."""
        dice = np.stack([stream.uniform(-1, 1, 7) for stream in streams]).astype(np.float32)
        pixels = torch.from_numpy(canvas).float()
        inside = torch.from_numpy(mask)
        if self.rotate_deg or self.shift or self.zoom:
            pixels, inside = self._move(pixels, inside, torch.from_numpy(dice[:, :4]))
        film = inside.float()
        mean = ((pixels * film).sum((1, 2)) / film.sum((1, 2)).clamp_min(1))[:, None, None]
        gain, lift, grain = torch.from_numpy(dice[:, 4:]).T[:, :, None, None]
        pixels = (1 + self.contrast * gain) * (pixels - mean) + mean + 255 * self.brightness * lift
        if self.noise:
            shape = canvas.shape[1:]
            rough = np.stack([stream.standard_normal(shape, dtype=np.float32) for stream in streams])
            pixels = pixels + 255 * self.noise * (0.5 + 0.5 * grain) * torch.from_numpy(rough)
        return (pixels.clamp(0, 255) * inside).numpy(), inside.numpy()

    def _move(
        self,
        pixels: Float[Tensor, "batch rows columns"],
        inside: Bool[Tensor, "batch rows columns"],
        dice: Shaped[Tensor, "batch 4"],
    ) -> tuple[Float[Tensor, "batch rows columns"], Bool[Tensor, "batch rows columns"]]:
        rows, columns = pixels.shape[1:]
        angle = torch.deg2rad(self.rotate_deg * dice[:, 0])
        scale = 1 / (1 + self.zoom * dice[:, 1])
        cos, sin = scale * angle.cos(), scale * angle.sin()
        aspect = columns / rows  # grid_sample counts each axis from -1 to 1: keep the rotation rigid
        theta = torch.stack(
            [cos, -sin / aspect, 2 * self.shift * dice[:, 2], sin * aspect, cos, 2 * self.shift * dice[:, 3]],
            1,
        ).reshape(-1, 2, 3)
        grid = F.affine_grid(theta, [len(pixels), 1, rows, columns], align_corners=False)
        both = torch.stack([pixels, inside.float()], 1)
        moved = F.grid_sample(both, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return moved[:, 0], moved[:, 1] > 0.5


@dataclass(frozen=True)
class Motion:
    """Where a tensor of a volume looks: coordinate p of the tensor shows ``matrix @ (p − c) + c + shift``.

    Attributes:
        matrix: of rotation and zoom; z mixes with no other axis.
        shift: in voxels.
        still: whether nothing moves.
    """

    matrix: Float[np.ndarray, "3 3"]
    shift: Float[np.ndarray, "3"]
    still: bool


@dataclass(frozen=True)
class VolumeAugment:
    """Rotation about z, shift, zoom, and the gain, offset and noise of a scanner, each uniform in ± its size.

    Values change in HU, before any window: ``v`` becomes ``(1 + g)·v + o + σ ε`` with ε standard normal.

    Args:
        rotate_deg: largest angle about the long axis of the body, in degrees.
        shift: largest shift, as a share of each axis of the tensor.
        zoom: largest change of scale, as a share.
        gain: largest g.
        offset_hu: largest o.
        noise_hu: largest σ, itself drawn from 0 to this.

    Examples:
        >>> still = VolumeAugment(rotate_deg=0, shift=0, zoom=0, gain=0, offset_hu=10, noise_hu=0)
        >>> still.motion((8, 8, 8), draw(0)).still
        True
    """

    rotate_deg: float = 5.0
    shift: float = 0.05
    zoom: float = 0.1
    gain: float = 0.02
    offset_hu: float = 20.0
    noise_hu: float = 20.0

    def motion(self, size_px: Sequence[int], stream: np.random.Generator) -> Motion:
        """Draw how a tensor of ``size_px`` voxels moves over the volume."""
        angle, scale, *shift = stream.uniform(-1, 1, 5)
        turn, factor = np.deg2rad(self.rotate_deg * angle), 1 / (1 + self.zoom * scale)
        matrix = factor * np.array(
            [[np.cos(turn), -np.sin(turn), 0.0], [np.sin(turn), np.cos(turn), 0.0], [0.0, 0.0, 1.0]]
        )
        still = not (self.rotate_deg or self.shift or self.zoom)
        return Motion(matrix, self.shift * np.array(shift) * np.asarray(size_px), still)

    def values(
        self, hu: Float[np.ndarray, "x y z"], stream: np.random.Generator
    ) -> Float[np.ndarray, "x y z"]:
        """Return the values as another scan would have them, in place where it can."""
        gain, offset, grain = stream.uniform(-1, 1, 3)
        if self.gain:
            hu *= np.float32(1 + self.gain * gain)
        if self.offset_hu:
            hu += np.float32(self.offset_hu * offset)
        if self.noise_hu:
            noise = stream.standard_normal(hu.shape, dtype=np.float32)
            noise *= np.float32(self.noise_hu * (0.5 + 0.5 * grain))
            hu += noise
        return hu
