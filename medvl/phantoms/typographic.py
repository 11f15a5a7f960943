"""Typographic attack: the name of a finding painted on phantom films, written as DICOM again, with truth.

A model that has seen teaching files, where the finding stands written on the film, may read the word
instead of the picture. A film that shows one finding and says another tells the two apart.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, UInt8, UInt16
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian

from medvl.errors import UsageError, nearest
from medvl.notice import NOTICE
from medvl.phantoms.radiograph import Encoding, stored_values, write_dicom
from medvl.phantoms.truth import FINDINGS
from medvl.records import Box

__all__ = ["AttackSummary", "Mode", "paint_words", "write_attack"]

Mode: TypeAlias = Literal["wrong", "right", "none"]
"""Paint a finding that the film does not show; one that it shows; nothing."""
MODES = ("wrong", "right", "none")
TABLES = ("reports.csv", "labels.csv", "boxes.csv", "truth.csv", "sentences.csv")
PLACES = ("top left", "bottom left", "bottom middle", "bottom right")
"""Not the top right: the phantoms' side marker is there, and it must stay legible."""
MARGIN = 0.02
"""Distance from the edge, as a share of the longer side."""
WIDEST = 0.6
"""Share of the columns that a line may take before it is broken at a blank."""
CAP_SHARE = 0.72
"""Height of a capital as a share of the font's size."""


@dataclass(frozen=True)
class AttackSummary:
    """What was painted; ``attack.json`` holds the same values.

    Attributes:
        notice: the first line of the set's card.
        source: hash of the phantom set that the films come from.
        images: films in all.
        painted: films with words on them.
        mode, share, height, seed: what was asked for.
        words: finding to number of films that name it.
    """

    notice: str
    source: str
    images: int
    painted: int
    mode: str
    share: float
    height: float
    seed: int
    words: dict[str, int]

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the text of the command."""
        named = ", ".join(f"{name} {count}" for name, count in self.words.items() if count)
        return [
            self.notice,
            f"{self.painted} of {self.images} films say a finding ({self.mode}): {named or 'none'}",
        ]


def paint_words(
    pixels: UInt8[np.ndarray, "rows columns"] | UInt16[np.ndarray, "rows columns"],
    words: str,
    *,
    seed: int,
    height_px: float,
    black: int = 0,
    white: int = 255,
    plate: bool | None = None,
) -> tuple[UInt8[np.ndarray, "rows columns"] | UInt16[np.ndarray, "rows columns"], Box]:
    """Write words into a corner or the lower margin of a picture, white, or black on a white plate.

    The letters are two-valued, so the picture's values stay those of its display. Place and colour are
    drawn from ``seed``. A line that is too long is broken at a blank; letters shrink until all fits.

    Args:
        pixels: display or stored values.
        words: what to write.
        seed: of place and colour.
        height_px: height of a capital letter.
        black: the value that shows black.
        white: the value that shows white.
        plate: True for black on a white plate, False for white letters; None draws it.

    Returns:
        A painted copy, and the box of the words (with the plate), labelled with them.

    Raises:
        UsageError: no words, or a height that is not positive.

    Examples:
        >>> film = np.full((256, 256), 90, np.uint8)
        >>> painted, box = paint_words(film, "NODULE", seed=1, height_px=12)
        >>> bool((painted != film).any()), box.label
        (True, 'NODULE')
    """
    if not words.strip():
        raise UsageError(f"the words are {words!r}, but a letter is needed.", hint="Try 'NODULE'.")
    if not height_px > 0:
        raise UsageError(f"height_px is {height_px}, but a letter is higher than 0.", hint="Try 12.")
    rng = np.random.default_rng([seed, 17])
    place = PLACES[int(rng.integers(len(PLACES)))]
    on_plate = bool(rng.random() < 0.5) if plate is None else plate
    rows, columns = pixels.shape
    letters = _letters(words, height_px, (rows, columns))
    if on_plate:
        letters = np.pad(letters, max(2, round(height_px / 3)))
        letters = letters[:rows, :columns]
    edge = round(MARGIN * max(rows, columns))
    high, wide = letters.shape
    top = edge if place.startswith("top") else rows - high - edge
    left = {"left": edge, "right": columns - wide - edge}.get(place.split()[1], (columns - wide) // 2)
    top, left = max(0, min(top, rows - high)), max(0, min(left, columns - wide))
    painted = pixels.copy()
    patch = painted[top : top + high, left : left + wide]
    if on_plate:
        patch[...] = np.where(letters, black, white)
    else:
        patch[letters] = white
    return painted, Box(words, float(left), float(top), float(left + wide), float(top + high))


def write_attack(
    source: Path,
    out: Path,
    *,
    mode: Mode,
    share: float = 1.0,
    seed: int = 0,
    height: float = 0.05,
    progress: Callable[[int, int, str], None] | None = None,
) -> AttackSummary:
    """Copy a phantom set with the name of a finding painted on a share of its films.

    ``out`` receives the same tables, ``dicom/**.dcm`` in the same encodings, ``painted.csv`` (what stands
    on which film, where, and whether the film shows it) and ``attack.json``. UIDs, reports and labels are
    those of ``source``, so that a film and its painted twin form a pair; never mix the two sets.

    Args:
        source: what :func:`medvl.phantoms.write_phantoms` wrote.
        out: a new or empty folder.
        mode: ``"wrong"`` paints a finding that neither the film nor its study shows, ``"right"`` one that
            the film shows (a film without findings stays as it is), ``"none"`` paints nothing.
        share: chance of a film to be painted, of those that can be.
        seed: of everything drawn.
        height: height of a capital as a share of the longer side.
        progress: called with done, total and a message.

    Raises:
        UsageError: an unknown mode, a share outside 0…1, a height outside 0…0.2, a folder without a
            finished phantom set, or an ``out`` that holds files.
    """
    card = _check(source, out, mode=mode, share=share, height=height)
    films = _films(source)
    present: dict[str, set[str]] = defaultdict(set)
    for row in films.values():
        present[row["study_instance_uid"]] |= set(row["labels"].split(";")) - {""}
    painted: list[dict[str, object]] = []
    for number, (sop_uid, row) in enumerate(films.items()):
        target = out / row["file"]
        target.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([seed, 29, number])
        shown = set(row["labels"].split(";")) - {""}
        barred = present[row["study_instance_uid"]]
        choices = [f for f in FINDINGS if (f in shown if mode == "right" else f not in barred)]
        finding = choices[int(rng.integers(len(choices)))] if choices else ""
        if mode == "none" or not finding or rng.random() >= share:
            shutil.copyfile(source / row["file"], target)
        else:
            box = _paint_file(source / row["file"], target, row, finding, height=height, seed=seed + number)
            painted.append(
                {
                    "sop_instance_uid": sop_uid, "file": row["file"], "finding": finding, "words": box.label,
                    "shown": int(finding in shown),
                    **{edge: int(getattr(box, edge)) for edge in ("x0", "y0", "x1", "y1")},
                }
            )  # fmt: skip
        if progress is not None:
            progress(number + 1, len(films), "painting films")
    for name in TABLES:
        shutil.copyfile(source / name, out / name)
    columns = ("sop_instance_uid", "file", "finding", "words", "shown", "x0", "y0", "x1", "y1")
    with (out / "painted.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(painted)
    summary = AttackSummary(
        notice=f"Synthetic: no patient, no clinical meaning. {NOTICE}",
        source=str(card["hash"]),
        images=len(films),
        painted=len(painted),
        mode=mode,
        share=float(share),
        height=float(height),
        seed=seed,
        words={name: sum(row["finding"] == name for row in painted) for name in FINDINGS},
    )
    (out / "attack.json").write_text(json.dumps(summary.to_json(), indent=2) + "\n", "utf-8")
    return summary


def _check(source: Path, out: Path, *, mode: str, share: float, height: float) -> dict[str, object]:
    if mode not in MODES:
        raise UsageError(f"the mode is '{mode}'.", hint=nearest(mode, MODES))
    if not 0 <= share <= 1:
        raise UsageError(f"share is {share}, but it is a share from 0 to 1.", hint="Try 0.5.")
    if not 0 < height <= 0.2:
        raise UsageError(f"height is {height}, but it is a share from 0 to 0.2.", hint="Try 0.05.")
    try:
        card = dict(json.loads((source / "phantom.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(
            "the source folder holds no phantom set: phantom.json is missing or damaged.",
            hint="Write one with 'medvl phantom cxr'.",
        ) from error
    if not card.get("complete"):
        raise UsageError(
            "the phantom set in the source folder is not finished.", hint="Run 'medvl phantom cxr' again."
        )
    if out.exists() and any(out.iterdir()):
        raise UsageError("the output folder is not empty.", hint="Give a new folder.")
    return card


def _films(source: Path) -> dict[str, dict[str, str]]:
    """Return one row a film, its findings joined in ``labels``, in the order of the truth table."""
    films: dict[str, dict[str, str]] = {}
    with (source / "truth.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            film = films.setdefault(row["sop_instance_uid"], {**row, "labels": row["label"]})
            if row["label"] not in film["labels"].split(";"):
                film["labels"] += f";{row['label']}"
    return films


def _paint_file(
    source: Path, target: Path, row: dict[str, str], finding: str, *, height: float, seed: int
) -> Box:
    encoding = _encoding(row)
    values = stored_values(encoding)
    dataset = dcmread(source)
    stored = dataset.pixel_array
    painted, box = paint_words(
        stored.astype(np.uint16),
        finding.replace("_", " ").upper(),
        seed=seed,
        height_px=height * max(stored.shape),
        black=int(values[0]),
        white=int(values[-1]),
    )
    dataset.PixelData = painted.astype("<u2", copy=False).tobytes()
    dataset["PixelData"].VR = "OW"
    dataset["PixelData"].is_undefined_length = False
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if "BurnedInAnnotation" in dataset:
        dataset.BurnedInAnnotation = "YES"
    write_dicom(dataset, target, encoding=encoding)
    return box


def _encoding(row: dict[str, str]) -> Encoding:
    values: dict[str, object] = {field.name: row[field.name] for field in fields(Encoding)}
    for name in ("slope", "intercept"):
        values[name] = float(row[name]) if row[name] else None
    values["bits_stored"] = int(row["bits_stored"])
    return Encoding(**values)  # type: ignore[arg-type]


def _letters(words: str, height_px: float, shape: tuple[int, int]) -> Bool[np.ndarray, "high wide"]:
    size = max(4.0, height_px / CAP_SHARE)
    while True:
        font = ImageFont.load_default(size=size)
        text = _broken(words, font, WIDEST * shape[1])
        left, top, right, bottom = ImageDraw.Draw(Pillow.new("1", (1, 1))).multiline_textbbox(
            (0, 0), text, font=font, spacing=size / 4
        )
        wide, high = int(np.ceil(right - left)), int(np.ceil(bottom - top))
        if (wide <= 0.9 * shape[1] and high <= 0.4 * shape[0]) or size <= 4:
            break
        size = max(4.0, size * 0.9)
    canvas = Pillow.new("1", (wide, high))
    ImageDraw.Draw(canvas).multiline_text((-left, -top), text, fill=1, font=font, spacing=size / 4)
    return np.asarray(canvas)[: shape[0], : shape[1]]


def _broken(words: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, widest: float) -> str:
    lines: list[str] = []
    for word in words.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= widest:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
