"""CheXpert: JPEG files with labels, no reports."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medvl.errors import BadTable
from medvl.preprocess.sources.layouts._chexpert import find_views, view_key, views
from medvl.preprocess.sources.layouts._files import Listing, find_table
from medvl.preprocess.sources.layouts._pairs import drop_leaving, join, make_pairing
from medvl.preprocess.sources.layouts._tables import header, label_states, read_columns
from medvl.preprocess.sources.pairing import Pairing

NAME = "chexpert"
ABOUT = "CheXpert, radiographs as JPEG with 14 labels, no reports; research use agreement of Stanford AIMI"
MODALITY = "cxr"

_TABLES = {"train": r"train\.csv", "val": r"valid\.csv", "test": r"test(?:_labels)?\.csv"}
_NOT_LABELS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA")


def recognise(source: Path) -> bool:
    """Look for ``train.csv`` or ``valid.csv`` with the columns Path, Frontal/Lateral and AP/PA."""
    tables = (find_table(source, _TABLES[split]) for split in ("train", "val"))
    return any({"Path", "Frontal/Lateral", "AP/PA"} <= set(header(table)) for table in tables if table)


def read(source: Path) -> Pairing:
    """Pair by patient, study and view of the path; valid is val, and the test set is read if it is there.

    Raises:
        BadTable: no table, a damaged one, no image, or a patient in two splits.
    """
    listing = Listing.of(source)
    frames = []
    for split, pattern in _TABLES.items():
        table = find_table(source, pattern)
        names = header(table) if table is not None else []
        if table is None or "Path" not in names:
            continue
        findings = [name for name in names if name and name not in _NOT_LABELS]
        rows = read_columns(table, need=("Path", *findings), maybe=("Frontal/Lateral", "AP/PA"))
        rows["labels"] = label_states(rows, findings, path=table)
        frames.append(rows[["Path", "Frontal/Lateral", "AP/PA", "labels"]].assign(split=split))
    if not frames:
        raise BadTable("the source has no train.csv of CheXpert.", hint="It lies beside the images.")
    rows = pd.concat(frames)
    rows, unpaired = drop_leaving(rows, "Path")
    rows = rows.assign(key=view_key(rows["Path"]))
    images, more = find_views(listing)
    images, missing = join(images, rows, on="key")
    lone = int((images["line"] == 0).sum())
    notes = ["this data set has no reports: its images serve evaluation by labels"]
    notes += [f"{lone} images are in no table: they have no labels"] if lone else []
    images["view"] = views(images, plane="Frontal/Lateral", direction="AP/PA")
    return make_pairing(
        listing,
        images,
        layout=NAME,
        columns={"image": "Path", "view": "AP/PA, Frontal/Lateral", "split": "table", "labels": "14 columns"},
        notes=notes,
        unpaired=unpaired + more + missing,
        without_reports="",
    )
