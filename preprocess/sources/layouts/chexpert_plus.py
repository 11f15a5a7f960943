"""CheXpert Plus: one table with reports, images as JPEG, PNG or DICOM, labels as JSON lines."""

from __future__ import annotations

from pathlib import Path

from medvl.errors import BadTable
from medvl.preprocess.sources.labels import CHEXPERT, finding_name
from medvl.preprocess.sources.layouts._chexpert import find_views, view_key, views
from medvl.preprocess.sources.layouts._files import Listing, find_table
from medvl.preprocess.sources.layouts._pairs import drop_leaving, join, make_pairing, sections_text, splits
from medvl.preprocess.sources.layouts._tables import header, read_columns, read_json_lines
from medvl.preprocess.sources.pairing import Pairing
from medvl.records import LabelState

NAME = "chexpert-plus"
ABOUT = "CheXpert Plus, radiographs with reports; research use agreement of Stanford AIMI"
MODALITY = "cxr"

_TABLE = r"df_chexpert_plus_\d+\.csv"
_SECTIONS = {
    "section_clinical_history": "CLINICAL HISTORY",
    "section_history": "HISTORY",
    "section_comparison": "COMPARISON",
    "section_technique": "TECHNIQUE",
    "section_findings": "FINDINGS",
    "section_impression": "IMPRESSION",
}
_LABELLED = ("impression", "report", "findings")


def recognise(source: Path) -> bool:
    """Look for ``df_chexpert_plus_*.csv`` with the column path_to_image."""
    table = find_table(source, _TABLE)
    return table is not None and "path_to_image" in header(table)


def read(source: Path) -> Pairing:
    """Pair by patient, study and view of the path; valid is val.

    The report is the column ``report``, or the sections under their headings where it is blank. Labels are
    those of the impressions, else of the whole reports, else of the findings.

    Raises:
        BadTable: no table, a damaged one, no image, or a patient in two splits.
    """
    table = find_table(source, _TABLE)
    if table is None:
        raise BadTable("the source has no df_chexpert_plus_240401.csv.", hint="It lies beside the images.")
    listing = Listing.of(source)
    rows = read_columns(
        table,
        need=("path_to_image",),
        maybe=("frontal_lateral", "ap_pa", "deid_patient_id", "split", "report", *_SECTIONS),
    )
    rows, unpaired = drop_leaving(rows, "path_to_image")
    blank = rows["report"] == ""
    if blank.any():
        rows.loc[blank, "report"] = [
            sections_text(row, _SECTIONS) for row in rows.loc[blank, list(_SECTIONS)].to_dict("records")
        ]
    rows = rows.drop(columns=list(_SECTIONS)).assign(
        key=view_key(rows["path_to_image"]), split=splits(rows["split"])
    )
    images, more = find_views(listing)
    unpaired += more
    images, more = join(images, rows, on="key", report="report")
    images["view"] = views(images, plane="frontal_lateral", direction="ap_pa")
    images["patient"] = images["deid_patient_id"].where(images["deid_patient_id"] != "", images["patient"])
    labels, notes = _labels(listing)
    images["labels"] = [labels.get(key) for key in images["key"]]
    return make_pairing(
        listing,
        images,
        layout=NAME,
        columns={
            "image": "path_to_image",
            "patient": "deid_patient_id",
            "study": "path_to_image",
            "text": "report, or the sections",
            "view": "ap_pa, frontal_lateral",
            "split": "split",
        },
        notes=notes,
        unpaired=unpaired + more,
    )


def _labels(listing: Listing) -> tuple[dict[str, dict[str, LabelState]], list[str]]:
    for part in _LABELLED:
        name = next((n for n in listing.files if n.rsplit("/", 1)[-1] == f"{part}_fixed.json"), None)
        if name is not None:
            path = listing.source / name
            return _read_labels(path), [f"labels are those that CheXbert gave the text of the {part}"]
    return {}, ["no label file is here: unpack chexbert_labels.zip below the source"]


def _read_labels(path: Path) -> dict[str, dict[str, LabelState]]:
    shared: dict[tuple[tuple[str, LabelState], ...], dict[str, LabelState]] = {}
    found = {}
    for line, record in read_json_lines(path):
        states: dict[str, LabelState] = {}
        for name, value in record.items():
            if name == "path_to_image":
                continue
            try:
                state = CHEXPERT.state("" if value is None else str(value))
            except KeyError:
                raise BadTable(
                    f"line {line} of the label file has a value of {len(str(value))} characters in '{name}'.",
                    hint="Allowed are 1, 0, -1 and null.",
                ) from None
            if state is not None:
                states[finding_name(name)] = state
        key = _key(str(record.get("path_to_image", "")))
        found[key] = shared.setdefault(tuple(states.items()), states)
    return found


def _key(path: str) -> str:
    return "/".join(path.replace("\\", "/").rsplit(".", 1)[0].split("/")[-3:])
