"""CT-RATE: chest CT volumes as NIfTI, one report for all reconstructions of a scan, 18 labels."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from medvl.errors import BadTable
from medvl.preprocess.sources.layouts._files import Listing, find_table
from medvl.preprocess.sources.layouts._pairs import (
    join,
    look_up,
    make_pairing,
    of_files,
    pictures,
    sections_text,
)
from medvl.preprocess.sources.layouts._tables import header, label_states, read_columns
from medvl.preprocess.sources.pairing import Pairing

NAME = "ct-rate"
ABOUT = "CT-RATE, chest CT with reports and 18 labels; CC BY-NC-SA 4.0, access on request, no commercial use"
MODALITY = "ct"

_VOLUME = r"(?P<key>(?P<study>(?P<patient>(?P<part>train|valid)_\d+)_[a-z]+)_\d+)\.nii(?:\.gz)?$"
_PARTS = {"train": "train", "valid": "val"}
_SECTIONS = {
    "ClinicalInformation_EN": "CLINICAL INFORMATION",
    "Technique_EN": "TECHNIQUE",
    "Findings_EN": "FINDINGS",
    "Impressions_EN": "IMPRESSION",
}


def recognise(source: Path) -> bool:
    """Look for ``radiology_text_reports/*_reports.csv``, here or in ``dataset``, with Findings_EN."""
    return any({"VolumeName", "Findings_EN"} <= set(header(table)) for table in _tables(source, _REPORTS))


def read(source: Path) -> Pairing:
    """Pair by the name of the volume: ``train_1_a_2`` is reconstruction 2 of scan a of patient train_1.

    A volume of ``train_fixed`` goes before its copy in ``train``. The slope and intercept of the metadata
    table are not applied: what a volume's own header says is all that is ever done to its values.

    Raises:
        BadTable: no report table, a damaged one, or no volume.
    """
    listing = Listing.of(source)
    tables = _tables(source, _REPORTS)
    if not tables:
        raise BadTable("the source has no report table of CT-RATE.", hint="Put it in radiology_text_reports.")
    rows = pd.concat([read_columns(table, need=("VolumeName",), maybe=tuple(_SECTIONS)) for table in tables])
    rows["report"] = [sections_text(row, _SECTIONS) for row in rows[list(_SECTIONS)].to_dict("records")]
    rows["key"] = _stem(rows["VolumeName"])
    images = pictures(listing, (".nii.gz", ".nii"))
    images = images.join(images["relative"].str.extract(r"(?:^|/)" + _VOLUME)).dropna(subset="key")
    images["fixed"] = images["relative"].str.contains(r"(?:^|/)(?:train|valid)_fixed/", regex=True)
    images = images.sort_values(["key", "fixed", "relative"], ascending=[True, False, True])
    again = images["key"].duplicated()
    unpaired = of_files("second_copy_of_image", images[again])
    images = images[~again]
    elsewhere = images["key"].isin(_not_a_chest(listing))
    unpaired += of_files("not_a_chest", images[elsewhere])
    rows = rows.loc[~rows["key"].isin(images["key"][elsewhere]), ["key", "report"]]
    images, more = join(images[~elsewhere], rows, on="key", report="report")
    said = images[images["report"] != ""].drop_duplicates("study")
    of_scan = look_up(images["study"], dict(zip(said["study"], said["report"], strict=True)))
    images["report"] = images["report"].where(images["report"] != "", of_scan)
    labels, notes = _labels(source)
    if raw := int((~images["fixed"]).sum()):
        notes.append(
            f"{raw} volumes do not lie in train_fixed or valid_fixed: the first release stored values before "
            "rescaling, so look whether theirs are Hounsfield units"
        )
    return make_pairing(
        listing,
        images.assign(split=images["part"].map(_PARTS), labels=[labels.get(key) for key in images["key"]]),
        layout=NAME,
        columns={
            "image": "VolumeName",
            "patient": "VolumeName",
            "study": "VolumeName",
            "text": " + ".join(_SECTIONS),
            "split": "VolumeName",
        },
        notes=notes,
        unpaired=unpaired + more,
        modality="CT",
    )


_REPORTS = ("radiology_text_reports", r".*(?:train|valid|validation)_reports\.csv")
_LABELS = ("multi_abnormality_labels", r".*(?:train|valid|validation)_predicted_labels\.csv")


def _tables(source: Path, where: tuple[str, str]) -> list[Path]:
    folder, pattern = where
    found = []
    for part in ("train", "(?:valid|validation)"):
        fitting = pattern.replace("(?:train|valid|validation)", part)
        for root in (source / "dataset" / folder, source / folder):
            table = find_table(root, fitting)
            if table is not None:
                found.append(table)
                break
    return found


def _stem(names: pd.Series) -> pd.Series:
    return names.str.replace(r"\.nii(?:\.gz)?$", "", regex=True)


def _labels(source: Path) -> tuple[dict[str, object], list[str]]:
    labels: dict[str, object] = {}
    for table in _tables(source, _LABELS):
        findings = [name for name in header(table) if name and name != "VolumeName"]
        rows = read_columns(table, need=("VolumeName", *findings))
        labels |= dict(zip(_stem(rows["VolumeName"]), label_states(rows, findings, path=table), strict=True))
    if not labels:
        return {}, ["no label table is here"]
    return labels, ["labels are those that a text classifier predicted from the reports"]


def _not_a_chest(listing: Listing) -> set[str]:
    """Return the volumes that ``no_chest_train.txt`` and ``no_chest_valid.txt`` list."""
    names: set[str] = set()
    for name in listing.files:
        if re.search(r"(?:^|/)no_chest_(?:train|valid)\.txt$", name):
            text = (listing.source / name).read_text("utf-8", "replace")
            names.update(re.findall(r"(?:train|valid)_\d+_[a-z]+_\d+", text))
    return names
