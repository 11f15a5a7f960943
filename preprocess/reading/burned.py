"""Text that is burned into a picture: found at two scales, told from side markers, and painted over.

The words are read only to tell a marker from text. They stay inside this file, except through
:func:`read_text`, which a check for leaked names needs; no message or log ever holds one.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Integer, UInt8
from PIL import Image as Pillow

from medvl.errors import BurnedInText, MissingDependency
from medvl.images import Image
from medvl.records import TextRegion
from medvl.specs import PixelSpec

__all__ = [
    "MARKERS",
    "Policy",
    "find_text",
    "find_text_in",
    "mask_native",
    "mask_text",
    "read_text",
    "screen",
    "text_fraction",
]

Policy: TypeAlias = Literal["off", "keep", "mask", "drop"]
"""Do not look; look and record; record and paint over; refuse a film that holds text."""
Picture: TypeAlias = UInt8[np.ndarray, "rows columns"]
Part: TypeAlias = UInt8[np.ndarray, "_ _"]
"""A picture of another size."""
Found: TypeAlias = tuple[TextRegion, str]

MARKERS = frozenset(
    "L R LT RT LEFT RIGHT PA AP LAT LATERAL LL RL AXIAL LORDOTIC OBLIQUE DECUB DECUBITUS SUPINE PRONE ERECT "
    "UPRIGHT SITTING STANDING SEMI SEMIERECT PORTABLE MOBILE BEDSIDE INSP EXP INSPIRATION EXPIRATION".split()
)
"""Words of technologists' markers: they say how the film was taken, and are never painted over.

Upper case, letters only. A line is a marker when each of its words is listed. For another language pass
``markers=MARKERS | {"LI", "RE"}``.
"""

FINE_PX = 2048
"""Longest side at which small letters are looked for."""
COARSE_PX = 736
"""Longest side at which the whole picture is looked at."""
ENLARGED_PX, LARGEST_ENLARGEMENT = 1024, 2.0
"""Small pictures are enlarged up to this side and factor: screen shots have letters of five pixels."""
LEAST_SCORE, LEAST_SHORT_SCORE, SHORT = 0.5, 0.8, 6
"""Mean confidence of the recogniser below which a region is no text; the second for fewer than 6 letters and
digits, because cells, ribs and tripods read as short words."""
STROKE_PX = 9
"""Strokes narrower than this many fine pixels stand out of their surroundings."""
STROKE_GREY, STROKE_NOISE = 18, 2.5
"""Least difference of a stroke from what lies beside it: in grey levels, and in medians of the picture's own
response, which is that of its noise."""
CELL_PX, CELL_STROKES = 32, 20
"""Side of a cell, and stroke pixels in it that make it worth reading."""
TILE_PX, OVERLAP_PX = 1024, 128
"""A larger part is read in overlapping tiles, so that a page of text costs no more memory than a film."""
MOSTLY = 0.65
"""Share of a region inside another that makes it the same one seen twice."""
MARGIN = 0.2
"""Share of its shorter side by which a region is dilated before it is painted over."""
RING_PX = 6
"""Width of the frame around a region whose median is painted."""

_MODELS = dict(Det="PP-OCRv6_det_small", Rec="PP-OCRv6_rec_small", Cls="ch_ppocr_mobile_v2.0_cls_mobile")
_CIRCLED = str.maketrans({"®": "R", "Ⓡ": "R", "Ⓛ": "L", "ⓡ": "R", "ⓛ": "L"})
_WORD = re.compile(r"[^\W_]+")


def find_text(pixels: Picture, *, markers: frozenset[str] = MARKERS) -> tuple[TextRegion, ...]:
    """Find burned-in text and side markers in a display picture.

    The whole picture is read with its longest side reduced to 736 px, for large letters. Where narrow
    strokes crowd, it is read again at up to 2048 px, for small ones. A region counts when the recogniser is
    confident and it holds two different letters or digits, or is a marker: single signs are ribs, rulers
    and film edges more often than text.

    Args:
        pixels: a picture as it is shown, white on black or black on white.
        markers: words that make a region a ``"marker"``.

    Returns:
        Regions in pixels of the given array, top to bottom; the words are forgotten.

    Raises:
        MissingDependency: rapidocr is not installed.

    Examples:
        >>> find_text(np.zeros((64, 64), np.uint8))
        ()
    """
    return tuple(region for region, _ in read_text(pixels, markers=markers))


def read_text(pixels: Picture, *, markers: frozenset[str] = MARKERS) -> tuple[Found, ...]:
    """Return the regions of :func:`find_text` with their words, for a search for leaked names.

    Never write the words to a log, a message or a record.

    Raises:
        MissingDependency: rapidocr is not installed.
    """
    height, width = pixels.shape
    if min(height, width) < 8:
        return ()
    longest = max(height, width)
    scale = min(FINE_PX / longest, LARGEST_ENLARGEMENT, max(1.0, ENLARGED_PX / longest))
    fine = _resized(pixels, scale)
    coarse = _resized(pixels, min(COARSE_PX / longest, scale))
    found: list[Found] = []
    for top, left, crop in _crops(fine):
        found += _read(crop, markers, origin=(top, left), whole=fine.shape, shape=pixels.shape)
    # the fine reading goes first: where both see a region, it knows the words better
    found += _read(coarse, markers, origin=(0, 0), whole=coarse.shape, shape=pixels.shape)
    return tuple(sorted(_distinct(found), key=lambda item: (item[0].y0, item[0].x0)))


def find_text_in(
    image: Image, spec: PixelSpec, *, markers: frozenset[str] = MARKERS
) -> tuple[TextRegion, ...]:
    """Find text on a film as ``spec`` shows it, at the film's own resolution.

    Letters that the stored array is too small to show legibly are found on the film.

    Args:
        image: the film as the reader returns it.
        spec: makes the stored array; its VOI and polarity are used, its size is not.
        markers: words that make a region a ``"marker"``.

    Returns:
        Regions in pixels of ``spec.apply(image)``.

    Raises:
        ConfigError: the image is not one frame with two axes.
        MissingDependency: rapidocr is not installed.
    """
    large = spec.model_copy(update={"longest_px": max(FINE_PX, spec.longest_px)}).apply(image)
    rows, columns = _stored_shape(image, spec)
    down, right = rows / large.shape[0], columns / large.shape[1]
    return tuple(
        dataclasses.replace(r, x0=r.x0 * right, y0=r.y0 * down, x1=r.x1 * right, y1=r.y1 * down)
        for r in find_text(large, markers=markers)
    )


def screen(
    image: Image, stored: Picture, *, spec: PixelSpec, policy: Policy, markers: frozenset[str] = MARKERS
) -> tuple[Picture, tuple[TextRegion, ...], float | None]:
    """Carry out a policy on one film: the array to store, its regions, the share of text.

    Args:
        image: the film as the reader returns it.
        stored: ``spec.apply(image)``.
        spec: made ``stored``.
        policy: ``"off"`` does not look (the share is None), ``"keep"`` records the regions, ``"mask"`` also
            paints the text over, ``"drop"`` refuses a film that holds any. Markers are always kept.
        markers: words that make a region a ``"marker"``.

    Raises:
        BurnedInText: the policy is ``"drop"`` and the film holds text.
        MissingDependency: rapidocr is not installed.
    """
    if policy == "off":
        return stored, (), None
    regions = find_text_in(image, spec, markers=markers)
    share = text_fraction(regions, stored.shape)
    count = sum(region.kind == "text" for region in regions)
    if policy == "drop" and count:
        raise BurnedInText(
            f"the film holds burned-in text in {count} places, {share:.1%} of its area; the policy is drop.",
            hint="Use the policy mask to paint them over, or keep to leave them.",
        )
    if policy == "mask":
        stored = mask_text(stored, regions)
        regions = tuple(dataclasses.replace(r, masked=r.kind == "text") for r in regions)
    return stored, regions, share


def mask_text(pixels: Picture, regions: Sequence[TextRegion]) -> Picture:
    """Return a copy of a picture with its text regions painted over; markers stay.

    A region is dilated by a fifth of its shorter side and takes the median of the frame around it, so
    that it blends in: a black box would itself say "there was text here" more loudly than a patch.
    """
    return _paint(pixels, regions)


def mask_native(
    frame: Integer[np.ndarray, "rows columns"] | Integer[np.ndarray, "rows columns samples"],
    regions: Sequence[TextRegion],
) -> Integer[np.ndarray, "rows columns"] | Integer[np.ndarray, "rows columns samples"]:
    """Return a copy of a decoded frame, of any bit depth, with its text regions painted over.

    The same rule as :func:`mask_text`, sample by sample, in stored values: the paint is a value that
    the frame already holds, whatever rescale, window or polarity comes later.
    """
    return _paint(frame, regions)


def text_fraction(regions: Iterable[TextRegion], shape: tuple[int, ...]) -> float:
    """Return the share of the picture that text covers: area of the union of regions ÷ area.

    Markers do not count; what several regions cover counts once. ``shape`` is that of the picture.

    Examples:
        >>> region = TextRegion(0, 0, 5, 4, "text", 1.0, False)
        >>> text_fraction([region, region], (10, 20))
        0.1
    """
    return float(_cover(regions, shape[:2], margin=0.0).mean())


def _cover(
    regions: Iterable[TextRegion], shape: tuple[int, ...], *, margin: float
) -> Bool[np.ndarray, "rows columns"]:
    covered = np.zeros(shape, bool)
    for region in regions:
        if region.kind == "text":
            covered[_slices(region, margin=margin)] = True
    return covered


def _slices(region: TextRegion, *, margin: float, extra: int = 0) -> tuple[slice, slice]:
    more = margin * min(region.x1 - region.x0, region.y1 - region.y0) + extra

    def whole(low: float, high: float) -> slice:
        return slice(max(0, int(np.floor(low - more))), max(0, int(np.ceil(high + more))))

    return whole(region.y0, region.y1), whole(region.x0, region.x1)


def _paint(frame: np.ndarray, regions: Sequence[TextRegion]) -> np.ndarray:
    painted = frame.copy()
    covered = _cover(regions, frame.shape[:2], margin=MARGIN)
    if not covered.any():
        return painted
    for region in regions:
        if region.kind != "text":
            continue
        frame_around = _slices(region, margin=MARGIN, extra=RING_PX)
        ring = frame[frame_around][~covered[frame_around]]
        if not ring.size:
            ring = frame[~covered]
        # the lower median is a value of the frame; a mean of two might not be
        colour = np.quantile(ring, 0.5, axis=0, method="lower") if ring.size else 0
        painted[_slices(region, margin=MARGIN)] = colour
    return painted


def _resized(pixels: Picture, scale: float) -> Part:
    if scale == 1:
        return pixels
    height, width = (max(1, round(side * scale)) for side in pixels.shape)
    # Pillow widens the filter when it reduces, so thin strokes do not vanish between samples
    return np.asarray(Pillow.fromarray(pixels).resize((width, height), Pillow.Resampling.BILINEAR))


def _stored_shape(image: Image, spec: PixelSpec) -> tuple[int, int]:
    height, width = image.array.shape[-2:]
    scale = min(1.0, spec.longest_px / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _crops(fine: Picture) -> list[tuple[int, int, Part]]:
    """Return the parts of the fine picture where narrow strokes crowd, with their top and left.

    Strokes are what a morphological opening or closing takes away (top-hat and black-hat).
    """
    import cv2

    square = np.ones((STROKE_PX, STROKE_PX), np.uint8)
    bright = cv2.morphologyEx(fine, cv2.MORPH_TOPHAT, square)
    dark = cv2.morphologyEx(fine, cv2.MORPH_BLACKHAT, square)
    strokes = np.maximum(bright, dark)
    noise = float(np.median(strokes[::4, ::4]))
    marks = (strokes > max(STROKE_GREY, STROKE_NOISE * noise)).astype(np.float32)
    rows, columns = (-(-side // CELL_PX) for side in fine.shape)
    padded = np.zeros((rows * CELL_PX, columns * CELL_PX), np.float32)
    padded[: fine.shape[0], : fine.shape[1]] = marks
    counts = padded.reshape(rows, CELL_PX, columns, CELL_PX).sum((1, 3))
    crowded = cv2.dilate((counts >= CELL_STROKES).astype(np.uint8), np.ones((5, 5), np.uint8))
    _, _, boxes, _ = cv2.connectedComponentsWithStats(crowded, connectivity=8)
    crops = []
    for left, top, wide, high in (CELL_PX * boxes[1:, :4]).tolist():
        for y in _starts(top, high):
            for x in _starts(left, wide):
                bottom, right = min(y + TILE_PX, top + high), min(x + TILE_PX, left + wide)
                crops.append((y, x, fine[y:bottom, x:right]))
    return crops


def _starts(first: int, length: int) -> range:
    return range(first, first + max(1, length - OVERLAP_PX), TILE_PX - OVERLAP_PX)


def _read(
    part: Picture,
    markers: frozenset[str],
    *,
    origin: tuple[int, int],
    whole: tuple[int, ...],
    shape: tuple[int, ...],
) -> list[Found]:
    """Read one part and return its regions in pixels of the picture of ``shape``."""
    if min(part.shape) < 8:
        return []
    result = _reader()(np.repeat(part[..., None], 3, 2))
    if result.txts is None or result.boxes is None:
        return []
    down, right = shape[0] / whole[0], shape[1] / whole[1]
    found: list[Found] = []
    for corners, words, score in zip(result.boxes, result.txts, result.scores, strict=True):
        kind = _kind(words, score=float(score), markers=markers)
        if kind is None:
            continue
        (x0, y0), (x1, y1) = np.asarray(corners, float).min(0), np.asarray(corners, float).max(0)
        region = TextRegion(
            x0=max(0.0, float(x0 + origin[1]) * right),
            y0=max(0.0, float(y0 + origin[0]) * down),
            x1=min(float(shape[1]), float(x1 + origin[1] + 1) * right),
            y1=min(float(shape[0]), float(y1 + origin[0] + 1) * down),
            kind=kind,
            score=min(1.0, float(score)),
            masked=False,
        )
        found.append((region, words))
    return found


def _kind(words: str, *, score: float, markers: frozenset[str]) -> Literal["text", "marker"] | None:
    parts = _WORD.findall(words.translate(_CIRCLED).upper())
    signs = sum(map(len, parts))
    if score < (LEAST_SHORT_SCORE if signs < SHORT else LEAST_SCORE):
        return None
    if parts and all(part in markers for part in parts):
        return "marker"
    # one sign over and over is a ruler or a row of windows
    return "text" if len(set("".join(parts))) >= 2 else None


def _distinct(found: list[Found]) -> list[Found]:
    """Drop what lies mostly inside a region that comes earlier in the list."""
    kept: list[Found] = []
    for region, words in found:
        area = (region.x1 - region.x0) * (region.y1 - region.y0)
        if all(_shared(region, other) <= MOSTLY * area for other, _ in kept):
            kept.append((region, words))
    return kept


def _shared(a: TextRegion, b: TextRegion) -> float:
    wide, high = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
    return max(0.0, wide) * max(0.0, high)


@functools.cache
def _reader() -> Any:
    """Load the models once a process: they lie in rapidocr's wheel, and none is ever downloaded."""
    try:
        import onnxruntime  # noqa: F401 - rapidocr imports it late and fails less clearly
        import rapidocr
        from rapidocr import RapidOCR
    except ImportError as error:
        raise MissingDependency(error.name or "rapidocr", extra="ocr") from error
    folder = Path(rapidocr.__file__).parent / "models"
    if not all((folder / f"{name}.onnx").is_file() for name in _MODELS.values()):
        raise MissingDependency("rapidocr 3.10 with its models", extra="ocr")
    reader = RapidOCR(
        params={
            # a given path takes rapidocr past its downloader
            **{f"{part}.model_path": str(folder / f"{name}.onnx") for part, name in _MODELS.items()},
            "Global.log_level": "critical",
            "Global.use_preprocess_img": False,  # its own reduction to 2000 px
            "Global.text_score": 0.0,  # the score is judged here
            "Det.limit_type": "max",
            "Det.limit_side_len": 2 * FINE_PX,  # never resized
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )
    logging.getLogger("RapidOCR").setLevel(logging.CRITICAL + 1)
    return reader
