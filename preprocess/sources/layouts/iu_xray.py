"""IU X-ray (Open-i): XML reports that name their images, or the two tables of the Kaggle copy."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from medvl.errors import BadTable, InputError, file_token
from medvl.preprocess.sources.layouts._files import PICTURES, Listing, find_table, peek, read_report
from medvl.preprocess.sources.layouts._listed import listed_states
from medvl.preprocess.sources.layouts._pairs import (
    drop_leaving,
    first_copies,
    join,
    make_pairing,
    of_rows,
    pictures,
    sections_text,
)
from medvl.preprocess.sources.layouts._tables import header, read_columns
from medvl.preprocess.sources.pairing import Pairing, Unpaired
from medvl.records import LabelState

NAME = "iu-xray"
ABOUT = "IU X-ray of Open-i, radiographs with reports; CC BY-NC-ND 4.0, no commercial use"
MODALITY = "cxr"

_FOLDERS = (
    "ecgen-radiology",
    "NLMCXR_reports/ecgen-radiology",
    "reports/ecgen-radiology",
)
_REPORTS, _PROJECTIONS = r"indiana_reports\.csv", r"indiana_projections\.csv"
_SECTIONS = {
    "indication": "INDICATION",
    "comparison": "COMPARISON",
    "findings": "FINDINGS",
    "impression": "IMPRESSION",
}
_KINDS = {
    "atelectasis": ("pulmonary atelectasis", "atelectasis"),
    "cardiomegaly": ("cardiomegaly",),
    "consolidation": ("consolidation",),
    "edema": ("pulmonary edema",),
    "fracture": ("fractures, bone",),
    "pleural_effusion": ("pleural effusion",),
    "pneumonia": ("pneumonia",),
    "pneumothorax": ("pneumothorax",),
}
_NOTES = ("the data set names no patients: each report counts as a patient of its own",)


def recognise(source: Path) -> bool:
    """Look for a folder ``ecgen-radiology`` of numbered XML files, or for ``indiana_reports.csv``."""
    if any(peek(source / folder, r"\d+\.xml", most=1) for folder in _FOLDERS):
        return True
    table = find_table(source, _REPORTS)
    return table is not None and {"uid", "findings", "impression"} <= set(header(table))


def read(source: Path) -> Pairing:
    """Pair by the image names in the XML reports, or in ``indiana_projections.csv``.

    The report is indication, comparison, findings and impression under their headings. Labels are the MeSH
    terms that are CheXpert's findings too.

    Raises:
        BadTable: neither reports nor tables, a damaged table, or no image.
    """
    listing = Listing.of(source)
    images = pictures(listing)
    images["key"] = _image_key(images["name"])
    tables = find_table(source, _REPORTS), find_table(source, _PROJECTIONS)
    if tables[0] is not None and tables[1] is not None:
        rows, unpaired = _from_tables(tables[0], tables[1])
    else:
        rows, unpaired = _from_xml(listing, set(images["key"]))
        if rows.empty and not unpaired:
            raise BadTable(
                "the source has no reports of IU X-ray.",
                hint="Unpack NLMCXR_reports.tgz, or put indiana_reports.csv and _projections.csv there.",
            )
    images, spare = first_copies(images[images["key"].isin(set(rows["key"]))], "key", prefer=PICTURES)
    images, more = join(images, rows, on="key")
    return make_pairing(
        listing,
        images.assign(patient=images["study"]),
        layout=NAME,
        columns={
            "image": "filename" if tables[0] else "parentImage",
            "study": "uid",
            "text": "indication + comparison + findings + impression",
            "labels": "MeSH",
        },
        notes=_NOTES,
        unpaired=(*unpaired, *spare, *more),
    )


def _image_key(names: pd.Series) -> pd.Series:
    """Return what ``CXR2_IM-0652-1001.png`` and ``2_IM-0652-1001.dcm.png`` share."""
    return names.str.replace(r"(?:\.dcm)?\.[A-Za-z]+$", "", regex=True).str.replace(r"^CXR", "", regex=True)


def _from_tables(reports: Path, projections: Path) -> tuple[pd.DataFrame, list[Unpaired]]:
    said = read_columns(
        reports, need=("uid", "findings", "impression"), maybe=("indication", "comparison", "MeSH")
    )
    said["report"] = [sections_text(row, _SECTIONS) for row in said.to_dict("records")]
    said["labels"] = [_states(cell.split(";")) for cell in said["MeSH"]]
    shown = read_columns(projections, need=("uid", "filename"), maybe=("projection",))
    shown, unpaired = drop_leaving(shown.rename(columns={"projection": "view"}), "filename")
    unpaired += of_rows("report_without_image", said.index[~said["uid"].isin(shown["uid"])])
    shown["key"] = _image_key(shown["filename"])
    by_uid = said[["uid", "report", "labels"]].drop_duplicates("uid")
    rows = shown.reset_index().merge(by_uid, on="uid", how="left").set_index("line")
    return rows.assign(study="CXR" + rows["uid"]), unpaired


def _from_xml(listing: Listing, known: set[str]) -> tuple[pd.DataFrame, list[Unpaired]]:
    rows: list[dict[str, Any]] = []
    unpaired = []
    for name in listing.ending((".xml",)):
        if not re.search(r"(?:^|/)ecgen-radiology/\d+\.xml$", name):
            continue
        try:
            study, images, sections, terms = _parse(read_report(listing.source / name), Path(name))
        except InputError:
            unpaired.append(Unpaired("text_unreadable", file_token(name)))
            continue
        keys = list(_image_key(pd.Series(images, dtype=object) + ".png"))
        unpaired += [Unpaired("named_image_missing", file_token(name)) for key in keys if key not in known]
        if not known.intersection(keys):
            unpaired.append(Unpaired("report_without_image", file_token(name)))
        report, labels = sections_text(sections, _SECTIONS), _states(terms)
        rows += [
            {"key": key, "study": study, "report": report, "labels": labels} for key in keys if key in known
        ]
    frame = pd.DataFrame(rows, columns=["key", "study", "report", "labels"])
    frame.index = pd.Index([0] * len(frame), name="line")
    return frame, unpaired


def _parse(text: str, path: Path) -> tuple[str, list[str], dict[str, str], list[str]]:
    """Return study, image ids, sections and MeSH terms of a report.

    Raises:
        InputError: it is not XML, or declares a document type, whose entities could fill the memory.
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text or "\x00" in text:
        raise InputError(f"the report {file_token(path)} declares a document type.")
    try:
        root = ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text))
    except (ElementTree.ParseError, RecursionError, ValueError) as error:
        raise InputError(f"the report {file_token(path)} is not XML.") from error
    number = root.find("uId")
    study = (number.get("id") if number is not None else "") or f"CXR{path.stem}"
    sections = dict.fromkeys(_SECTIONS, "")
    for part in root.iter("AbstractText"):
        name, words = (part.get("Label") or "").lower(), " ".join("".join(part.itertext()).split())
        if name in sections:
            sections[name] = f"{sections[name]} {words}".strip()
    images = [image.get("id") or "" for image in root.iter("parentImage")]
    terms = [(term.text or "") for mesh in root.iter("MeSH") for term in mesh.iter("major")]
    return study, [image for image in images if image], sections, terms


def _states(terms: Iterable[str]) -> dict[str, LabelState]:
    """Return the labels of MeSH terms such as ``Cardiomegaly/borderline``: borderline is uncertain."""
    parts = [[step.strip().lower() for step in term.split("/")] for term in terms if term.strip()]
    states = listed_states([steps[0] for steps in parts], kinds=_KINDS, others=False)
    for name, members in _KINDS.items():
        own = [steps for steps in parts if steps[0] in members]
        if own and all("borderline" in steps for steps in own):
            states[name] = "uncertain"
    return states
