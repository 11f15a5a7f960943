"""What MIMIC-CXR and MIMIC-CXR-JPG have in common: folders, report files, tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from medvl.errors import InputError, file_token
from medvl.preprocess.sources.layouts._files import Listing, find_table, peek, read_report
from medvl.preprocess.sources.layouts._pairs import (
    drop_leaving,
    first_copies,
    join,
    look_up,
    make_pairing,
    of_files,
    pictures,
    splits,
)
from medvl.preprocess.sources.layouts._tables import header, label_states, read_columns
from medvl.preprocess.sources.pairing import Pairing, Unpaired

__all__ = ["has_images", "read_mimic"]

_IMAGE = r"(?:^|/)(?P<patient>p\d+)/(?P<study>s\d+)/(?P<dicom_id>[^/]+)\.[A-Za-z]+$"
_REPORT = r"(?:^|/)p\d+/(?P<study>s\d+)\.txt$"
_TABLE = r"mimic-cxr-\d\.\d\.\d-"


def has_images(source: Path, suffix: str) -> bool:
    """Say whether the first studies below ``files`` hold images with this suffix."""
    return bool(peek(source / "files", r"p1\d", r"p\d+", r"s\d+", rf".+\.{suffix}", most=1))


def read_mimic(source: Path, *, layout: str, suffixes: Sequence[str], modality: str) -> Pairing:
    """Read either release; ``suffixes`` are those of its images."""
    listing = Listing.of(source)
    images = pictures(listing, suffixes)
    images = images.join(images["relative"].str.extract(_IMAGE)).dropna(subset="dicom_id")
    images, unpaired = first_copies(images, "dicom_id", prefer=suffixes)
    columns = {"image": "path", "patient": "path", "study": "path", "text": "report file of the study"}
    notes: list[str] = []
    if (table := find_table(source, _TABLE + r"metadata\.csv")) is not None:
        rows = read_columns(table, need=("dicom_id",), maybe=("study_id", "ViewPosition", "StudyDate"))
        columns["view"] = "ViewPosition"
    elif (table := find_table(source, r"cxr-record-list\.csv")) is not None:
        rows = read_columns(table, need=("dicom_id",), maybe=("study_id", "path"))
        rows, more = drop_leaving(rows, "path")
        unpaired += more
        rows = rows.drop(columns="path")
    else:
        rows = pd.DataFrame({"dicom_id": []}, dtype=object)
        notes.append("no metadata table is here: what was expected and is missing cannot be told")
    images, more = join(images, rows, on="dicom_id")
    unpaired += more
    images = images.rename(columns={"ViewPosition": "view", "StudyDate": "study_date"})
    if "study_id" in images:
        stated = "s" + images["study_id"]
        elsewhere = (images["line"] > 0) & (stated != "s") & (stated != images["study"])
        unpaired += of_files("path_contradicts_table", images[elsewhere])
        images = images[~elsewhere]
    if len(rows) and (lone := int((images["line"] == 0).sum())):
        notes.append(f"{lone} images are in no table: their path tells patient and study")
    images, more_notes = _official_split(source, images)
    labels, label_notes = _labels(source, images["study"])
    texts, more = _texts(listing, set(images["study"]))
    if not texts:
        notes.append("no report file is here: unpack mimic-cxr-reports.zip below the source")
    images = images.drop(columns="line").assign(labels=labels, report=look_up(images["study"], texts))
    return make_pairing(
        listing,
        images,
        layout=layout,
        columns=columns | ({"split": "split"} if "split" in images else {}),
        notes=(*notes, *more_notes, *label_notes),
        unpaired=unpaired + more,
        modality=modality,
    )


def _official_split(source: Path, images: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    table = find_table(source, _TABLE + r"split\.csv")
    if table is None:
        return images, ["the table of the official split is not here: splits are drawn by the given shares"]
    rows = read_columns(table, need=("dicom_id", "split")).drop_duplicates("dicom_id")
    told = dict(zip(rows["dicom_id"], splits(rows["split"]), strict=True))
    return images.assign(split=look_up(images["dicom_id"], told)), []


def _labels(source: Path, studies: pd.Series) -> tuple[list[object], list[str]]:
    """Return the labels of each image's study, of the CheXpert labeller or else of NegBio."""
    for labeller in ("chexpert", "negbio"):
        table = find_table(source, _TABLE + labeller + r"\.csv")
        if table is None:
            continue
        findings = [name for name in header(table) if name not in ("subject_id", "study_id")]
        rows = read_columns(table, need=("study_id", *findings)).drop_duplicates("study_id")
        states = dict(zip("s" + rows["study_id"], label_states(rows, findings, path=table), strict=True))
        return [states.get(study) for study in studies], [f"labels are those of the {labeller} labeller"]
    return [None] * len(studies), ["no label table is here"]


def _texts(listing: Listing, studies: set[str]) -> tuple[dict[str, str], list[Unpaired]]:
    names = pd.Series(listing.ending((".txt",)), dtype=object)
    keys = names.str.extract(_REPORT, expand=False)
    texts: dict[str, str] = {}
    unpaired = []
    for name, study in zip(names[keys.notna()], keys[keys.notna()], strict=True):
        if study not in studies:
            unpaired.append(Unpaired("report_without_image", file_token(name)))
        elif not texts.get(study):
            try:
                texts[study] = read_report(listing.source / name)
            except InputError:
                unpaired.append(Unpaired("text_unreadable", file_token(name)))
    return texts, unpaired
