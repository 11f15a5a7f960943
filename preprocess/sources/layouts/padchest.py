"""PadChest: 16-bit PNG files and one table with Spanish reports and lists of labels."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medvl.errors import BadTable
from medvl.preprocess.sources.layouts._files import Listing, find_table
from medvl.preprocess.sources.layouts._listed import listed_states
from medvl.preprocess.sources.layouts._pairs import drop_leaving, join, make_pairing, of_files, pictures
from medvl.preprocess.sources.layouts._tables import header, read_columns
from medvl.preprocess.sources.pairing import Pairing, Unpaired
from medvl.records import LabelState

NAME = "padchest"
ABOUT = "PadChest, radiographs as 16-bit PNG with Spanish reports; research use agreement of BIMCV"
MODALITY = "cxr"

_TABLE = r"(?:padchest_|sj_)?chest_x_ray_images_labels.*\.csv"
_KINDS = {
    "atelectasis": (
        "atelectasis",
        "laminar atelectasis",
        "lobar atelectasis",
        "round atelectasis",
        "segmental atelectasis",
        "total atelectasis",
    ),
    "cardiomegaly": ("cardiomegaly",),
    "consolidation": ("consolidation",),
    "edema": ("pulmonary edema",),
    "fracture": (
        "fracture",
        "clavicle fracture",
        "humeral fracture",
        "rib fracture",
        "vertebral fracture",
    ),
    "pleural_effusion": ("pleural effusion", "loculated pleural effusion", "hydropneumothorax"),
    "pneumonia": ("pneumonia", "atypical pneumonia"),
    "pneumothorax": ("pneumothorax", "hydropneumothorax"),
}
_SAYS_NOTHING = ("unchanged", "suboptimal study")


def recognise(source: Path) -> bool:
    """Look for ``PADCHEST_chest_x_ray_images_labels*.csv`` with the columns ImageID and Labels."""
    table = find_table(source, _TABLE)
    return table is not None and {"ImageID", "Labels"} <= set(header(table))


def read(source: Path) -> Pairing:
    """Pair by ImageID, in the folder ImageDir or anywhere below the source.

    A report with the label "exclude" gives no labels; an image whose projection is EXCLUDE is left out.

    Raises:
        BadTable: no table, a damaged one, or no image.
    """
    table = find_table(source, _TABLE)
    if table is None:
        raise BadTable("the source has no table of PadChest.", hint="It begins with PADCHEST_.")
    listing = Listing.of(source)
    rows = read_columns(
        table,
        need=("ImageID", "PatientID", "StudyID", "Report", "Labels"),
        maybe=("ImageDir", "StudyDate_DICOM", "Projection", "PhotometricInterpretation_DICOM"),
    )
    rows, unpaired = drop_leaving(rows, "ImageID")
    rows = rows.rename(columns={"ImageID": "key"})
    images, more = _find(listing, rows)
    unpaired += more
    images, more = join(images, rows, on="key", report="Report")
    unpaired += more
    lone = images["line"] == 0
    unpaired += of_files("image_without_row", images[lone])
    images = images[~lone]
    excluded = images["Projection"].str.upper() == "EXCLUDE"
    unpaired += of_files("excluded_by_the_data_set", images[excluded])
    images = images[~excluded].rename(
        columns={
            "PatientID": "patient",
            "StudyID": "study",
            "Report": "report",
            "Projection": "view",
            "StudyDate_DICOM": "study_date",
        }
    )
    images["study"] = images["study"].where(images["study"] != "", images["key"])
    states = {cell: _states(cell) for cell in images["Labels"].unique()}
    return make_pairing(
        listing,
        images.assign(labels=[states[cell] for cell in images["Labels"]]),
        layout=NAME,
        columns={
            "image": "ImageID",
            "patient": "PatientID",
            "study": "StudyID",
            "text": "Report",
            "view": "Projection",
            "labels": "Labels",
        },
        notes=_notes(images),
        unpaired=unpaired,
    )


def _find(listing: Listing, rows: pd.DataFrame) -> tuple[pd.DataFrame, list[Unpaired]]:
    images = pictures(listing).rename(columns={"name": "key"})
    folder = rows["ImageDir"].str.replace(r"\.0$", "", regex=True)
    told = set((folder + "/" + rows["key"])[folder != ""])
    tail = images["relative"].str.split("/").str[-2:].str.join("/")
    images = images.assign(_told=~tail.isin(told)).sort_values(["_told", "relative"])
    again = images["key"].duplicated()
    return images[~again].drop(columns="_told"), of_files("second_copy_of_image", images[again])


def _states(cell: str) -> dict[str, LabelState]:
    terms = [" ".join(part.strip(" '\"").lower().split()) for part in cell.strip("[] ").split(",")]
    if "exclude" in terms:
        return {}
    return listed_states([term for term in terms if term not in _SAYS_NOTHING], kinds=_KINDS)


def _notes(images: pd.DataFrame) -> list[str]:
    cells = images["Labels"].str.lower()
    notes = ["the reports are in Spanish: read them with --report parser=es-1"]
    for word, what in (
        ("exclude", "are marked exclude and have no labels"),
        ("suboptimal study", "are marked as a suboptimal study"),
        ("unchanged", "are said to be unchanged, which is no finding"),
    ):
        if count := int(cells.str.contains(word, regex=False).sum()):
            notes.append(f"{count} images {what}")
    if count := int((images["PhotometricInterpretation_DICOM"] == "MONOCHROME1").sum()):
        notes.append(
            f"{count} images were MONOCHROME1 before they became PNG, which states no polarity: "
            "look at them on the quality page"
        )
    return notes
