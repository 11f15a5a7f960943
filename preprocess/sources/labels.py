"""Labels and boxes of images or studies, from tables."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medvl.errors import BadTable, file_token
from medvl.preprocess.sources.columns import Columns, Overrides, guess_columns, header_words, plain
from medvl.preprocess.sources.tables import read_table
from medvl.records import Box, LabelState

__all__ = ["CHEXPERT", "LabelEncoding", "finding_name", "read_boxes", "read_labels", "row_labels"]


@dataclass(frozen=True)
class LabelEncoding:
    """What the cells of a numeric label column mean; a blank cell is unknown, and is not listed."""

    present: frozenset[str] = frozenset({"1", "1.0", "true", "yes", "present", "positive"})
    absent: frozenset[str] = frozenset({"0", "0.0", "false", "no", "absent", "negative"})
    uncertain: frozenset[str] = frozenset({"-1", "-1.0", "uncertain", "possible"})
    unknown: frozenset[str] = frozenset({"", "nan", "na", "n/a", "none", "unknown", "todo", "?"})

    def state(self, cell: str) -> LabelState | None:
        """Return the state of a cell, or None when nothing is known.

        Raises:
            KeyError: the encoding does not have the cell.
        """
        states: tuple[LabelState, ...] = ("present", "absent", "uncertain")
        for state in states:
            if cell.lower() in getattr(self, state):
                return state
        if cell.lower() in self.unknown:
            return None
        raise KeyError


CHEXPERT = LabelEncoding()
"""CheXpert (Irvin et al. 2019): 1 present, 0 absent, −1 uncertain, blank not mentioned; or their words."""


def finding_name(label: str) -> str:
    """Return the name of a finding as records hold it.

    Examples:
        >>> finding_name("Pleural Effusion"), finding_name("COVID-19")
        ('pleural_effusion', 'covid_19')
    """
    return re.sub(r"[^\w]+", "_", label.strip().lower()).strip("_")


def row_labels(
    frame: pd.DataFrame, columns: Columns, *, encoding: LabelEncoding = CHEXPERT
) -> list[dict[str, LabelState]]:
    """Return the labels of each row.

    Numeric columns follow ``encoding``. One categorical column is exclusive: a row with a value has its
    classes present (several split by comma, semicolon or bar; ``A/B`` is a path whose every step is
    present) and each other class of the column absent; a row without a value, or with "unknown", has no
    label at all.

    Raises:
        BadTable: a cell that the encoding does not have.
    """
    if not columns.labels:
        return [{} for _ in range(len(frame))]
    if len(columns.labels) == 1 and not _is_numeric(frame[columns.labels[0]], encoding):
        return _categories(list(frame[columns.labels[0]]), encoding)
    rows: list[dict[str, LabelState]] = [{} for _ in range(len(frame))]
    for column in columns.labels:
        name = finding_name(column)
        for row, line, cell in zip(rows, frame.index, frame[column], strict=True):
            try:
                state = encoding.state(cell)
            except KeyError:
                raise BadTable(
                    f"line {line} of column '{column}' is no label: a cell of {len(cell)} characters.",
                    hint="Allowed are 1, 0, -1 and blank, or their words; name label columns with columns=.",
                ) from None
            if state is not None:
                row[name] = state
    return rows


def _is_numeric(cells: pd.Series, encoding: LabelEncoding) -> bool:
    known = encoding.present | encoding.absent | encoding.uncertain | encoding.unknown
    return set(cells.str.lower()) <= known


def _categories(cells: list[str], encoding: LabelEncoding) -> list[dict[str, LabelState]]:
    present = [
        {
            finding_name(step)
            for part in re.split(r"[,;|]", cell.strip("[]"))
            for step in part.replace("'", "").split("/")
            if step.strip().lower() not in encoding.unknown
        }
        for cell in cells
    ]
    classes = sorted(set().union(*present))
    return [
        {name: "present" if name in row else "absent" for name in classes} if row else {} for row in present
    ]


def _keys(frame: pd.DataFrame, columns: Columns, path: Path) -> pd.Series:
    """Return what each row is of: the first of its keys, the nearest to one image first."""
    named = [getattr(columns, role) for role in ("sop_uid", "image", "study_uid", "accession", "study")]
    named = [column for column in named if column]
    if not named:
        raise BadTable(
            f"the table {file_token(path)} has no column that names an image or a study.",
            hint="Name it, for example --column accession=ORDER_NO.",
        )
    keys = frame[named[0]]
    for column in named[1:]:
        keys = keys.where(keys != "", frame[column])
    return keys


def read_labels(
    path: str | Path,
    *,
    columns: Overrides | None = None,
    encoding: LabelEncoding = CHEXPERT,
) -> dict[str, dict[str, LabelState]]:
    """Read a label table: image or study key → finding → state; a finding that is not listed is unknown.

    Raises:
        BadTable: no key column, no label column, a cell that is no label, or two rows that disagree.
    """
    path = Path(path)
    frame = read_table(path)
    guess = guess_columns(frame, columns=columns)
    keys = _keys(frame, guess, path)
    if not guess.labels:
        raise BadTable(
            f"the table {file_token(path)} has no label column.",
            hint="Name them, for example --column labels=edema+nodule.",
        )
    found: dict[str, dict[str, LabelState]] = {}
    for line, name, states in zip(
        frame.index, keys, row_labels(frame, guess, encoding=encoding), strict=True
    ):
        if found.setdefault(name, states) != states:
            raise BadTable(
                f"line {line} of {file_token(path)} contradicts an earlier row of its key.", hint="Keep one."
            )
    found.pop("", None)
    return found


_CORNERS = (
    ("x0", "y0", "x1", "y1"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x1", "y1", "x2", "y2"),
    ("left", "top", "right", "bottom"),
)
_MILLIMETRES = ("x0mm", "y0mm", "z0mm", "x1mm", "y1mm", "z1mm")
_SIZES = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height"))


def read_boxes(path: str | Path, *, millimetres: bool = False) -> dict[str, tuple[Box, ...]]:
    """Read a box table: key of an image or study → boxes, end exclusive.

    Columns: a key, a label, and corners. Of a film these are four corners, or a corner and a size, in pixels
    of the source image. Of a volume they are ``x0_mm``, ``y0_mm``, ``z0_mm``, ``x1_mm``, ``y1_mm``,
    ``z1_mm``: millimetres to the patient's right, front and top. Rows without coordinates say "no box" and
    are passed over.

    Args:
        path: of the table.
        millimetres: whether the boxes are those of volumes.

    Raises:
        BadTable: a column is missing, or a coordinate is no number or makes an empty box.
    """
    path = Path(path)
    frame = read_table(path)
    keys = _keys(frame, guess_columns(frame), path)
    by_plain = {plain(str(name)): str(name) for name in frame.columns}
    label = next(
        (
            by_plain[n]
            for n in (*header_words()["categories"], "structure", "classname", "name")
            if n in by_plain
        ),
        None,
    )
    known = (_MILLIMETRES,) if millimetres else (*_CORNERS, *_SIZES)
    chosen = next((names for names in known if all(name in by_plain for name in names)), None)
    if label is None or chosen is None:
        allowed = (
            "x0_mm, y0_mm, z0_mm, x1_mm, y1_mm, z1_mm"
            if millimetres
            else "x0, y0, x1, y1 or x, y, width, height"
        )
        raise BadTable(
            f"the table {file_token(path)} lacks {'a label column' if label is None else 'coordinates'}.",
            hint=f"Allowed are a label and {allowed}.",
        )
    found: dict[str, list[Box]] = {}
    for line, key, row in zip(frame.index, keys, frame.to_dict("records"), strict=True):
        cells = [row[by_plain[name]] for name in chosen]
        if any(cells):
            found.setdefault(str(key), []).append(
                _box(finding_name(row[label]), cells, line, sized=chosen in _SIZES)
            )
    return {name: tuple(boxes) for name, boxes in found.items()}


def _box(label: str, cells: list[str], line: int, *, sized: bool) -> Box:
    try:
        values = [float(cell) for cell in cells]
    except ValueError as error:
        unit = "millimetres" if len(cells) == len(_MILLIMETRES) else "pixels"
        raise BadTable(
            f"line {line} has a coordinate that is no number.", hint=f"Coordinates are {unit}."
        ) from error
    axes = len(values) // 2
    low, high = values[:axes], values[axes:]
    if sized:
        high = [start + size for start, size in zip(low, high, strict=True)]
    if not (math.isfinite(sum(values)) and all(b > a for a, b in zip(low, high, strict=True))):
        told = " to ".join(f"({', '.join(map(str, corner))})" for corner in (low, high))
        below = " and ".join(f"{axis}0 < {axis}1" for axis in "xyz"[:axes])
        raise BadTable(f"line {line} has an empty box: {told}.", hint=f"Need {below}.")
    depth = {"z0": low[2], "z1": high[2]} if axes > 2 else {}
    return Box(label, low[0], low[1], high[0], high[1], **depth)
