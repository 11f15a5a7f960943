"""TCGA pathology reports: one table of report texts, slides in the folders of a GDC download."""

from __future__ import annotations

from pathlib import Path

from medvl.errors import BadTable
from medvl.preprocess.sources.layouts._files import Listing, find_table
from medvl.preprocess.sources.layouts._pairs import first_copies, join, make_pairing, of_rows, pictures
from medvl.preprocess.sources.layouts._tables import header, read_columns
from medvl.preprocess.sources.pairing import Pairing

NAME = "tcga-reports"
ABOUT = "TCGA slides with machine-readable pathology reports; open access, cite TCGA and the reports"
MODALITY = "pathology"

_TABLE = r"tcga_reports\.csv"
_SLIDES = (".svs", ".tif", ".tiff", ".ndpi")
_BARCODE = r"^(?P<patient>TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})"
_SLIDE = r"(?:^|/)(?P<key>(?P<patient>TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})-(?P<sample>\d{2})[A-Z]?-[^/]+)$"


def recognise(source: Path) -> bool:
    """Look for ``TCGA_Reports.csv`` with the columns patient_filename and text."""
    table = find_table(source, _TABLE)
    return table is not None and {"patient_filename", "text"} <= set(header(table))


def read(source: Path) -> Pairing:
    """Pair by the patient's barcode, the first twelve characters: all slides of a patient share the report.

    A slide of normal tissue (sample types 10 to 19) gets no report: the text is of the tumour.

    Raises:
        BadTable: no table, a damaged one, or no slide.
    """
    table = find_table(source, _TABLE)
    if table is None:
        raise BadTable("the source has no TCGA_Reports.csv.", hint="Put it beside the folders of slides.")
    listing = Listing.of(source)
    rows = read_columns(table, need=("patient_filename", "text"))
    rows["patient"] = rows["patient_filename"].str.extract(_BARCODE, expand=False)
    unpaired = of_rows("row_without_barcode", rows.index[rows["patient"].isna()])
    rows = rows.dropna(subset="patient")
    images = pictures(listing, _SLIDES)
    images = images.join(images["relative"].str.extract(_SLIDE)).dropna(subset="key")
    images, spare = first_copies(images, "key", prefer=_SLIDES)
    images, more = join(images, rows, on="patient", report="text")
    normal = images["sample"].str.startswith("1")
    notes = ["a report is of a patient, not of a slide: it may tell of tissue that a slide does not show"]
    if count := int(normal.sum()):
        notes.append(f"{count} slides are of normal tissue: the report, of the tumour, is not given to them")
    return make_pairing(
        listing,
        images.assign(
            report=images["text"].where(~normal, ""),
            line=images["line"].where(~normal, 0),
            study=images["patient"].where(~normal, images["key"]),
        ),
        layout=NAME,
        columns={"image": "file name", "patient": "patient_filename", "study": "patient", "text": "text"},
        notes=notes,
        kind="slide",
        unpaired=unpaired + spare + more,
    )
