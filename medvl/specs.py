"""The frozen specs: the one place where a pixel or a word is interpreted, and its digest.

``PixelSpec`` turns what a reader returns into the stored array, ``InputSpec`` the stored array into
the model's tensor, ``ReportSpec`` a parsed report into the two text views. A store, a checkpoint
and a bundle carry them as JSON; a query whose digest differs is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from typing import Any, ClassVar, Literal, Self

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from PIL import Image as Pillow
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medvl.errors import ConfigError, DigestMismatch, nearest
from medvl.images import Image, Photometric, Unit, VoiLut, Window
from medvl.records import Box, Report, Sentence

__all__ = ["PLACEHOLDER", "InputSpec", "PixelSpec", "ReportSpec", "Spec", "fold", "text_hash"]


PLACEHOLDER = re.compile(r"_{2,}|(?<![A-Za-z])X{3,}(?![A-Za-z])|\[\*\*[^\]\n]{0,60}\*\*\]")
"""What de-identified reports hold in place of a word: ``___`` (MIMIC), ``XXXX`` (IU X-ray), ``[**…**]``."""

_INVISIBLE = frozenset({"Cc", "Cf", "Cs"})  # control, format (zero width, direction), lone surrogate


def fold(text: str) -> str:
    r"""Return ``text`` in Unicode NFC, invisible characters gone, white space folded to single blanks.

    Examples:
        >>> fold("no\u200b  effu\x00sion\n")
        'no effusion'
    """
    if not (text.isascii() and text.isprintable()):
        text = "".join(c for c in text if c.isspace() or unicodedata.category(c) not in _INVISIBLE)
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.split())


def text_hash(text: str) -> str:
    """Return a hash that two reports share when they say the same words ("" for no words)."""
    words = fold(text).casefold()
    return hashlib.blake2b(words.encode("utf-8", "replace"), digest_size=12).hexdigest() if words else ""


class Spec(BaseModel):
    """A frozen value with a digest; two specs have one digest exactly when they are equal."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    what: ClassVar[str] = "spec"

    @property
    def digest(self) -> str:
        """Hash of the canonical JSON of all fields."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(f"{self.what}:{canonical}".encode(), digest_size=8).hexdigest()

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Build a spec from JSON values.

        Raises:
            ConfigError: an unknown key, or a value out of range.
        """
        for key in values:
            if key not in cls.model_fields:
                raise ConfigError(f"{cls.what} has no key '{key}'.", hint=nearest(key, cls.model_fields))
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"{cls.what}: {where} is {first['input']!r}: {first['msg']}.") from error

    def require(self, digest: str) -> None:
        """Refuse data made by another spec.

        Raises:
            DigestMismatch: ``digest`` is not this spec's.
        """
        if digest != self.digest:
            raise DigestMismatch(self.what, got=digest, expected=self.digest)


class PixelSpec(Spec):
    """How a radiograph becomes the stored array: modality values → VOI → polarity → size → 8 bits.

    The order is that of PS3.4 N.2: the reader has applied the modality LUT; here the VOI LUT or
    window is applied, then MONOCHROME1 is inverted, once, then the picture is reduced with its
    aspect ratio kept and rounded to 8 bits. Nothing is ever enlarged.

    Args:
        voi: ``"header"`` uses the header's VOI LUT, else its first window, else the percentiles;
            ``"percentile"`` always uses the percentiles. Raster files in grey or colour are display
            values already: their full range is kept.
        percentiles: the share of pixels, in percent, below black and below white.
        longest_px: longest side of the stored array.

    Examples:
        >>> import numpy as np
        >>> film = Image(np.array([[[0, 50, 100]]], np.int16), Unit.MODALITY_LUT,
        ...              Photometric.MONOCHROME1, windows=(Window(50.5, 101.0),))
        >>> PixelSpec().apply(film).tolist()
        [[255, 128, 0]]
    """

    what: ClassVar[str] = "pixel spec"
    voi: Literal["header", "percentile"] = "header"
    percentiles: tuple[float, float] = (0.5, 99.5)
    longest_px: int = Field(default=512, ge=16, le=8192)

    def apply(self, image: Image) -> UInt8[np.ndarray, "height width"]:
        """Return the stored array: display polarity (white is dense), 8 bits, aspect ratio kept."""
        if image.array.ndim != 3:
            raise ConfigError(
                f"a radiograph has 1 channel and 2 axes, got an array of shape {image.array.shape}.",
                hint="Choose one frame of a multi-frame file.",
            )
        grey = _luminance(image.array)
        white = 255.0
        if image.unit in (Unit.GREY, Unit.RGB8):
            full = 255.0 if image.unit is Unit.RGB8 else float(2**image.bits_stored - 1)
            shown = np.clip(grey.astype(np.float32) * np.float32(white / full), 0, white)
        elif self.voi == "header" and image.voi_lut is not None:
            shown = _voi_lut(grey, image.voi_lut, white)
        elif self.voi == "header" and image.windows:
            shown = _window(grey, image.windows[0], white)
        else:
            low, high = np.percentile(grey[:: max(1, grey.shape[0] // 512)], self.percentiles)
            span = max(float(high - low), 1e-6)
            shown = np.clip((grey.astype(np.float32) - low) * (white / span), 0, white)
        if image.photometric is Photometric.MONOCHROME1:
            np.subtract(white, shown, out=shown)  # PS3.3 C.7.6.3.1.2, after VOI
        height, width = shown.shape
        scale = min(1.0, self.longest_px / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        if size != (width, height):
            picture = Pillow.fromarray(shown.astype(np.float32, copy=False))
            shown = np.asarray(picture.resize(size, Pillow.Resampling.BILINEAR, reducing_gap=2.0))
        return np.rint(shown).astype(np.uint8)


class InputSpec(Spec):
    """How the stored array becomes the model's tensor: letterbox, scale to 0…1, normalise.

    Args:
        size_px: height and width of the tensor.
        channels: 1, or 3 equal channels for encoders pretrained on colour.
        mean, std: subtracted and divided after scaling to 0…1, one value for all channels or one each.
    """

    what: ClassVar[str] = "input spec"
    size_px: tuple[int, int] = (224, 224)
    channels: Literal[1, 3] = 1
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)

    def placement(self, shape: tuple[int, ...]) -> tuple[float, int, int]:
        """Return scale, top and left of a stored array of ``shape`` inside the tensor."""
        height, width = shape[-2:]
        scale = min(self.size_px[0] / height, self.size_px[1] / width)
        rows, columns = self._fitted(height, width, scale)
        return scale, (self.size_px[0] - rows) // 2, (self.size_px[1] - columns) // 2

    def _fitted(self, height: int, width: int, scale: float) -> tuple[int, int]:
        return (
            min(self.size_px[0], max(1, round(height * scale))),
            min(self.size_px[1], max(1, round(width * scale))),
        )

    def letterbox(
        self, stored: UInt8[np.ndarray, "height width"]
    ) -> tuple[UInt8[np.ndarray, "rows columns"], Bool[np.ndarray, "rows columns"]]:
        """Return the resized picture on a black canvas, and the mask of its own pixels."""
        scale, top, left = self.placement(stored.shape)
        rows, columns = self._fitted(*stored.shape, scale)
        canvas = np.zeros(self.size_px, np.uint8)
        mask = np.zeros(self.size_px, bool)
        picture = Pillow.fromarray(stored).resize((columns, rows), Pillow.Resampling.BILINEAR)
        canvas[top : top + rows, left : left + columns] = picture
        mask[top : top + rows, left : left + columns] = True
        return canvas, mask

    def normalise(
        self, canvas: Shaped[np.ndarray, "rows columns"]
    ) -> Float[np.ndarray, "channels rows columns"]:
        """Return the canvas as normalised float32 channels."""
        mean = np.asarray(self.mean, np.float32).reshape(-1, 1, 1)
        std = np.asarray(self.std, np.float32).reshape(-1, 1, 1)
        scaled = (canvas.astype(np.float32)[None] / np.float32(255) - mean) / std
        return np.ascontiguousarray(np.broadcast_to(scaled, (self.channels, *canvas.shape)))

    def apply(
        self, stored: UInt8[np.ndarray, "height width"]
    ) -> tuple[Float[np.ndarray, "channels rows columns"], Bool[np.ndarray, "rows columns"]]:
        """Return the model's tensor and the mask of pixels that come from the film."""
        canvas, mask = self.letterbox(stored)
        return self.normalise(canvas), mask

    def place_box(self, box: Box, shape: tuple[int, ...]) -> Box:
        """Move a box from pixels of the stored array to pixels of the tensor."""
        scale, top, left = self.placement(shape)
        return Box(
            box.label, box.x0 * scale + left, box.y0 * scale + top, box.x1 * scale + left, box.y1 * scale + top
        )


class ReportSpec(Spec):
    """Which sentences of a parsed report each text view keeps.

    Args:
        parser: name and version of the rules that found the sections, sentences and tags.
        retrieval_drop, generation_drop: sentences with any of these tags are left out of the view.
        retrieval_sections, generation_sections: sections that the view reads, in the order of the
            text; empty means all of them.
        placeholder: what stands in a view for ``___``, ``XXXX`` and the like.
    """

    what: ClassVar[str] = "report spec"
    parser: str = "en-1"
    retrieval_sections: tuple[str, ...] = ()
    retrieval_drop: tuple[str, ...] = ("identity", "communication", "comparison", "empty")
    generation_sections: tuple[str, ...] = ("findings", "impression", "addendum", "body")
    generation_drop: tuple[str, ...] = (
        "identity",
        "communication",
        "comparison",
        "empty",
        "prior",
        "recommendation",
        "technique",
        "history",
        "placeholder",
    )
    placeholder: str = "[redacted]"

    def reason(self, sentence: Sentence, view: Literal["retrieval", "generation"]) -> str | None:
        """Say why ``view`` leaves a sentence out; None when it is kept."""
        sections = self.retrieval_sections if view == "retrieval" else self.generation_sections
        drop = self.retrieval_drop if view == "retrieval" else self.generation_drop
        if sections and sentence.section not in sections:
            return f"section {sentence.section}"
        return "+".join(tag for tag in sentence.tags if tag in drop) or None

    def kept(self, report: Report, view: Literal["retrieval", "generation"]) -> tuple[Sentence, ...]:
        """Return the sentences of ``view``; :meth:`reason` says why the others are out."""
        return tuple(s for s in report.sentences if self.reason(s, view) is None)

    def render(self, report: Report, view: Literal["retrieval", "generation"]) -> tuple[str, ...]:
        """Return the words of each kept sentence: NFC, nothing invisible, placeholders made uniform."""
        shown = (fold(report.text[s.start : s.end]) for s in self.kept(report, view))
        return tuple(PLACEHOLDER.sub(lambda _: self.placeholder, words) for words in shown)


def _luminance(array: Shaped[np.ndarray, "channels height width"]) -> Shaped[np.ndarray, "height width"]:
    if array.shape[0] == 1:
        return array[0]
    red, green, blue = array[:3].astype(np.float32)
    return 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601, as JPEG and Pillow


def _window(
    grey: Shaped[np.ndarray, "height width"], window: Window, white: float
) -> Float[np.ndarray, "height width"]:
    values = grey.astype(np.float32)
    center, width = np.float32(window.center), np.float32(max(window.width, 1.0))
    if window.function == "SIGMOID":  # PS3.3 C.11.2.1.3.1
        return (white / (1 + np.exp(-4 * (values - center) / width))).astype(np.float32)
    if window.function == "LINEAR_EXACT":  # PS3.3 C.11.2.1.3.2
        values -= center - width / 2
        values *= np.float32(white) / width
        return np.clip(values, 0, white, out=values)
    if width <= 1:  # PS3.3 C.11.2.1.2.1 with w = 1 is a threshold at c − 0.5
        return np.where(values > center - 0.5, np.float32(white), np.float32(0))
    values -= center - np.float32(0.5) - (width - 1) / 2  # PS3.3 C.11.2.1.2.1
    values *= np.float32(white) / (width - 1)
    return np.clip(values, 0, white, out=values)


def _voi_lut(
    grey: Shaped[np.ndarray, "height width"], lut: VoiLut, white: float
) -> Float[np.ndarray, "height width"]:
    entries = lut.entries.astype(np.float32) * np.float32(white / (2**lut.bits - 1))
    index = np.clip(np.rint(grey - lut.first_value), 0, len(entries) - 1).astype(np.int32)
    return entries[index]
