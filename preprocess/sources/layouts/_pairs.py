"""From the images and rows of a public data set to a pairing: joins, second copies, official splits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import pandas as pd

from medvl.errors import BadTable, file_token
from medvl.preprocess.sources.layouts._files import PICTURES, VOLUMES, Listing
from medvl.preprocess.sources.pairing import Item, Pairing, Unpaired

__all__ = [
    "drop_leaving",
    "first_copies",
    "join",
    "look_up",
    "make_pairing",
    "of_files",
    "of_rows",
    "pictures",
    "sections_text",
    "splits",
]

_SPLITS = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}


def splits(words: pd.Series) -> pd.Series:
    """Return the split that each word of a public data set means, "" where it means none.

    Examples:
        >>> splits(pd.Series(["validate", "train", "", "extra"])).tolist()
        ['val', 'train', '', '']
    """
    return look_up(words.str.lower(), _SPLITS)


def look_up(keys: pd.Series, table: Mapping[Any, str]) -> pd.Series:
    """Return what a table says of each key, "" where it says nothing."""
    return pd.Series([table.get(key, "") for key in keys], index=keys.index, dtype=object)


def sections_text(row: Mapping[str, Any], headings: Mapping[str, str]) -> str:
    r"""Return the sections of a report under their headings, one a line; empty ones are left out.

    Examples:
        >>> sections_text({"a": "Clear.", "b": ""}, {"a": "FINDINGS", "b": "IMPRESSION"})
        'FINDINGS: Clear.'
    """
    return "\n".join(f"{heading}: {row[column]}" for column, heading in headings.items() if row[column])


def pictures(listing: Listing, suffixes: Sequence[str] = PICTURES) -> pd.DataFrame:
    """Return the files with these suffixes: the columns ``relative`` and ``name``, without the folders."""
    relative = pd.Series(listing.ending(suffixes), dtype=object)
    return pd.DataFrame({"relative": relative, "name": relative.str.rsplit("/", n=1).str[-1]})


def of_files(reason: str, images: pd.DataFrame) -> list[Unpaired]:
    """Return an entry for each image, with its row where it has one."""
    lines = images["line"] if "line" in images else [0] * len(images)
    return [
        Unpaired(reason, file_token(name), int(line))
        for name, line in zip(images["relative"], lines, strict=True)
    ]


def of_rows(reason: str, lines: Iterable[int]) -> list[Unpaired]:
    """Return an entry for each row."""
    return [Unpaired(reason, line=int(line)) for line in lines]


def drop_leaving(rows: pd.DataFrame, column: str) -> tuple[pd.DataFrame, list[Unpaired]]:
    """Leave out the rows whose file lies outside the folder that its name is relative to."""
    outside = rows[column].str.contains(r"(?:^|[/\\])\.\.(?:[/\\]|$)", regex=True)
    return rows[~outside], of_rows("path_outside_source", rows.index[outside])


def first_copies(
    images: pd.DataFrame, key: str, *, prefer: Sequence[str] = ()
) -> tuple[pd.DataFrame, list[Unpaired]]:
    """Keep one file of each image: of the preferred suffix, then the first path.

    Args:
        images: with the column ``relative``.
        key: the column that says which files are the same image.
        prefer: suffixes, best first.
    """
    suffix = images["relative"].str.lower().str.extract(r"(\.[a-z]+)$", expand=False)
    rank = suffix.map({name: k for k, name in enumerate(prefer)}).fillna(len(prefer))
    images = images.assign(_rank=rank).sort_values([key, "_rank", "relative"], kind="stable")
    again = images[key].duplicated()
    return images[~again].drop(columns="_rank"), of_files("second_copy_of_image", images[again])


def join(
    images: pd.DataFrame, rows: pd.DataFrame, *, on: str, report: str | None = None
) -> tuple[pd.DataFrame, list[Unpaired]]:
    """Give each image the row with its key; its number stands in ``line``, 0 without one.

    An image without a row has "" for what rows say. Rows that no image has are returned with their reasons,
    and so are images whose rows hold different reports; these are left out. Of equal rows the first counts.

    Args:
        images: one image a row, with the column ``on``.
        rows: a table whose index is the line.
        on: the key that both have.
        report: the column of ``rows`` that must not differ.
    """
    rows = rows.reset_index(names="line")
    missing = rows[~rows[on].isin(images[on])]
    said = (missing[report] if report is not None else pd.Series("", index=missing.index)) != ""
    unpaired = of_rows("report_without_image", missing["line"][said])
    unpaired += of_rows("row_without_image", missing["line"][~said])
    if report is not None:
        texts = rows[rows[report] != ""].groupby(on)[report].nunique()
        torn = images[on].isin(set(texts.index[texts > 1]))
        lines = images[on][torn].map(rows.drop_duplicates(on).set_index(on)["line"])
        unpaired += of_files("conflicting_reports", images[torn].assign(line=lines))
        images = images[~torn]
        rows = rows.sort_values(report, key=lambda cells: cells == "", kind="stable")
    rows = rows.drop_duplicates(on)
    joined = images.merge(rows, on=on, how="left", validate="many_to_one", suffixes=("", "_row"))
    joined["line"] = joined["line"].fillna(0).astype(int)
    for column in rows.columns.difference(["line", on]):
        cells = joined[column].astype(object)
        joined[column] = cells.where(cells.notna(), "")
    return joined, unpaired


def make_pairing(
    listing: Listing,
    images: pd.DataFrame,
    *,
    layout: str,
    columns: Mapping[str, str],
    notes: Iterable[str] = (),
    unpaired: Iterable[Unpaired] = (),
    modality: str = "",
    kind: str = "",
    without_reports: str = "image_without_report",
) -> Pairing:
    """Make the items of a data set.

    Args:
        listing: where the images are.
        images: one image a row: ``relative``, ``patient``, ``study``, and if known ``report``, ``view``,
            ``split``, ``labels``, ``study_date``, and ``line`` of the table with the reports.
        layout: its name, for the explanation.
        columns: role to what was read for it.
        notes: what the user should know.
        unpaired: what has no partner, so far.
        modality: of DICOM, "" for raster files.
        kind: of the files; "" to tell it from their suffixes.
        without_reports: the reason for an image without text; "" for a data set that has none.

    Raises:
        BadTable: no image, or a patient in two official splits.
    """
    if images.empty:
        raise BadTable(
            f"the source looks like {layout}, but none of its images is there.",
            hint="Unpack the images below the source, in the folders of the release; "
            "links to folders elsewhere are not followed.",
        )
    entries = _left_out(listing, set(images["relative"]), unpaired)
    images = images.sort_values("relative")
    patients = images["patient"].where(images["patient"] != "", images["study"])
    told, remarks = _official(patients, images.get("split"))
    items = []
    for name, patient, study, report, view, split, labels, date, line in zip(
        images["relative"],
        patients,
        images["study"],
        _column(images, "report", ""),
        _column(images, "view", ""),
        told,
        _column(images, "labels", None),
        _column(images, "study_date", ""),
        _column(images, "line", 0),
        strict=True,
    ):
        report = report if isinstance(report, str) else ""
        items.append(
            Item(
                path=listing.source / name,
                patient=patient,
                study=study,
                report=report,
                method="layout" if report or isinstance(labels, dict) else "none",
                view=view if isinstance(view, str) and view else None,
                split=split or None,
                labels=labels if isinstance(labels, dict) else {},
                modality=modality,
                kind=kind or _kind(name),
                line=int(line),
                study_date=_day(date),
            )
        )
    if without_reports:
        entries += [
            Unpaired(without_reports, file_token(item.path), path=item.path)
            for item in items
            if not item.report
        ]
    explain = tuple(f"{role}: {what} (of {layout})" for role, what in columns.items())
    return Pairing(tuple(items), tuple(entries), dict(columns), explain, (*notes, *remarks))


def _left_out(listing: Listing, known: set[str], entries: Iterable[Unpaired]) -> list[Unpaired]:
    """Give the entries their paths; add links to outside, and images that neither they nor the items tell."""
    entries = list(entries)
    told = {entry.token for entry in entries}
    places = {file_token(name): name for name in listing.files if name not in known}
    strangers = [name for name in listing.ending((*PICTURES, *VOLUMES)) if name not in known]
    links = [(file_token(name), listing.source / name) for name in listing.outside]
    entries += [Unpaired("outside_file", token, path=path) for token, path in links]
    tokens = [token for name in strangers if (token := file_token(name)) not in told]
    entries += [Unpaired("image_without_row", token) for token in tokens]
    return [
        replace(entry, path=listing.source / places[entry.token])
        if entry.path is None and entry.token in places
        else entry
        for entry in entries
    ]


_KINDS = {
    ".dcm": "dicom",
    ".dicom": "dicom",
    ".gz": "nifti",
    ".nii": "nifti",
    ".svs": "slide",
    ".ndpi": "slide",
}


def _kind(name: str) -> str:
    return _KINDS.get(PurePosixPath(name.lower()).suffix, "raster")


def _day(cell: Any) -> str | None:
    """Return a day that is written as ``YYYYMMDD``, as a number or as text."""
    found = re.fullmatch(r"(\d{8})(?:\.0)?", cell) if isinstance(cell, str) else None
    return found[1] if found else None


def _column(images: pd.DataFrame, name: str, default: Any) -> Iterable[Any]:
    return images[name] if name in images else [default] * len(images)


def _official(patients: pd.Series, told: pd.Series | None) -> tuple[list[str], list[str]]:
    """Give each image of a patient the split that the release gives any of them."""
    if told is None:
        return [""] * len(patients), []
    known = pd.DataFrame({"patient": patients, "split": told})[told != ""].drop_duplicates()
    torn = int((known["patient"].value_counts() > 1).sum())
    if torn:
        raise BadTable(
            f"the official split puts {torn} patients into more than one split.",
            hint="The table is not the published one; download it again.",
        )
    mine = look_up(patients, dict(zip(known["patient"], known["split"], strict=True)))
    unknown = patients[mine == ""].nunique()
    notes = (
        [f"{unknown} patients are in no official split: theirs is drawn by the given shares"]
        if unknown and len(known)
        else []
    )
    return list(mine), notes
