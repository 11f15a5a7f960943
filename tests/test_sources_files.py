"""DICOMDIR, volumes, slides and archives in a source; workbooks and long cells."""

from __future__ import annotations

import datetime
import gzip
import shutil
import sys
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image as Pillow
from pydicom.dataset import Dataset
from sourcecases import film, found, png, reasons, saved, text

from medvl.errors import BadTable, MissingDependency
from medvl.preprocess.sources.cells import safe_cell
from medvl.preprocess.sources.dicomdir import folder_of, references
from medvl.preprocess.sources.discovery import discover
from medvl.preprocess.sources.pairing import pair
from medvl.preprocess.sources.tables import TOO_LONG, read_table

DISK = Path(pydicom.__file__).parent / "data" / "test_files" / "dicomdirtests"


# --- DICOMDIR -----------------------------------------------------------------------------------------------


def test_a_dicomdir_lists_its_files_and_those_that_it_does_not_list_are_found_too(tmp_path):
    shutil.copytree(DISK / "77654033", tmp_path / "77654033")
    shutil.copy(DISK / "DICOMDIR", tmp_path / "DICOMDIR")
    film(tmp_path / "extra.dcm")
    text(tmp_path / "labels.csv", "image,edema\nextra.dcm,1\n")
    listed = references(tmp_path / "DICOMDIR")
    assert (
        len(listed) == 31 and ("77654033", "CR1", "6154") in listed
    )  # pydicom's README of the set: 31 files
    for source in (tmp_path, tmp_path / "DICOMDIR"):
        pairing = pair(source)
        assert reasons(pairing)["dicomdir_reference_missing"] == 24  # the two other patients of the set
        assert len(pairing.items) == 7 + 1
        assert "a DICOMDIR lists 31 files; 7 of them were found" in pairing.notes
    assert folder_of(tmp_path / "DICOMDIR") == tmp_path and folder_of(tmp_path) == tmp_path


def test_letter_case_and_versions_of_a_medium_do_not_count(tmp_path):
    directory(tmp_path / "disk" / "DICOMDIR", ["IMAGES", "IM0001;1"], ["IMAGES", "IM0002"])
    film(tmp_path / "disk" / "images" / "im0001")
    text(tmp_path / "labels.csv", "image,edema\nim0001,1\n")
    assert reasons(pair(tmp_path))["dicomdir_reference_missing"] == 1


def directory(path: Path, *listed: list[str]) -> Path:
    dataset = Dataset()
    dataset.DirectoryRecordSequence = []
    for parts in listed:
        record = Dataset()
        record.DirectoryRecordType = "IMAGE"
        record.add_new("ReferencedFileID", "LO", parts)
        dataset.DirectoryRecordSequence.append(record)
    return saved(path, dataset)


@pytest.mark.parametrize(
    "parts",
    [
        ["..", "secret"],
        ["a", "..", "..", "secret"],
        ["/etc/passwd"],
        ["C:", "secret"],
        ["."],
    ],
)
def test_a_dicomdir_leads_nowhere_outside(tmp_path, parts):
    film(tmp_path / "secret")
    directory(tmp_path / "source" / "DICOMDIR", parts)
    text(tmp_path / "source" / "labels.csv", "image,edema\nsecret,1\n")
    pairing = pair(tmp_path / "source")
    assert not pairing.items
    assert reasons(pairing) == {"dicomdir_reference_outside": 1, "labels_without_image": 1}


def test_a_link_that_a_dicomdir_lists_is_not_followed_and_a_damaged_one_is_listed(tmp_path):
    secret = film(tmp_path / "secret")
    directory(tmp_path / "source" / "DICOMDIR", ["LINK"])
    (tmp_path / "source" / "LINK").symlink_to(secret)
    text(tmp_path / "source" / "labels.csv", "image,edema\nx,1\n")
    assert reasons(pair(tmp_path / "source")) == {
        "outside_file": 1,
        "dicomdir_reference_outside": 1,
        "labels_without_image": 1,
    }
    (tmp_path / "source" / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + b"\xff" * 40)
    assert reasons(pair(tmp_path / "source"))["dicomdir_damaged"] == 1


# --- other kinds of images ----------------------------------------------------------------------------------


def test_volumes_slides_and_archives_are_known_and_listed_where_they_are_not_read(tmp_path):
    volume = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4))
    nibabel.save(volume, tmp_path / "a.nii.gz")
    nibabel.save(nibabel.Nifti2Image(np.zeros((2, 2, 2), np.int16), np.eye(4)), tmp_path / "b.nii")
    shutil.copy(tmp_path / "b.nii", tmp_path / "volume")  # known by its content
    shutil.copy(tmp_path / "a.nii.gz", tmp_path / "packed")
    text(tmp_path / "broken.nii", "no volume")
    (tmp_path / "cut.nii.gz").write_bytes(gzip.compress(b"x" * 900)[:20])
    text(tmp_path / "slide.svs", "not looked into")
    text(tmp_path / "m.mrxs", "the slide")
    text(tmp_path / "m" / "Data0001.dat", "its tiles")
    text(tmp_path / "more.tar.gz", "x")
    png(tmp_path / "p.png")
    assert {file.relative: file.kind for file in discover(tmp_path)} == {
        "a.nii.gz": "nifti",
        "b.nii": "nifti",
        "volume": "nifti",
        "packed": "nifti",
        "broken.nii": "nifti",
        "cut.nii.gz": "nifti",
        "slide.svs": "slide",
        "m.mrxs": "slide",
        "more.tar.gz": "archive",
        "p.png": "raster",
    }
    text(tmp_path / "reports.csv", "volume_name,report\na.nii.gz,A volume.\nb,Another.\nslide,A slide.\n")
    assert reasons(pair(tmp_path)) == {
        "not_a_radiograph": 8, "archive_file": 1, "image_without_report": 1, "report_without_image": 3,
    }  # fmt: skip
    pairing = pair(tmp_path, kinds=frozenset({"nifti"}))
    assert found(pairing) == {
        "a.nii.gz": ("file", "A volume."),
        "b.nii": ("file", "Another."),
        "broken.nii": ("none", ""),
        "packed": ("none", ""),
        "volume": ("none", ""),
        "cut.nii.gz": ("none", ""),
    }
    assert {item.kind for item in pairing.items} == {"nifti"}
    slides = pair(tmp_path, kinds=frozenset({"slide"}))
    assert found(slides)["slide.svs"] == ("file", "A slide.")


def test_a_tiff_is_a_slide_where_only_slides_are_read(tmp_path):
    Pillow.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.tiff")
    text(tmp_path / "reports.csv", "slide,report\na,A slide.\n")
    assert pair(tmp_path, kinds=frozenset({"slide"})).items[0].kind == "slide"
    assert pair(tmp_path).items[0].kind == "raster"


# --- tables -------------------------------------------------------------------------------------------------


def test_a_long_cell_costs_its_row_alone(tmp_path):
    png(tmp_path / "a.png")
    png(tmp_path / "b.png")
    long, longest = "x " * 75_000 + "y", "x " * 100_001  # above the csv module's limit, above the parser's
    text(tmp_path / "images.csv", f"image,text\na.png,{long}\nb.png,{longest}\n")
    frame = read_table(tmp_path / "images.csv")
    assert len(frame) == 1 and frame.attrs[TOO_LONG] == [3]
    pairing = pair(tmp_path)
    assert len(pairing.items[0].report) == 150_001
    assert reasons(pairing) == {"report_too_long": 1, "image_without_report": 1}


def test_a_workbook_is_read_as_strings(tmp_path):
    book = pytest.importorskip("openpyxl").Workbook()
    sheet = book.create_sheet("Export")
    sheet.append(["Accession", "Date", "Report", "Score", None])
    sheet.append([12345, datetime.date(2024, 1, 31), " Clear lungs. ", 0.5, None])
    sheet.append([None] * 5)
    sheet.append(["007", datetime.datetime(2024, 1, 31, 9, 30), "=1+1", True, None])
    book.save(tmp_path / "t.xlsx")  # the first sheet is empty
    frame = read_table(tmp_path / "t.xlsx")
    assert list(frame.index) == [2, 4]
    assert frame.to_dict("list") == {
        "Accession": ["12345", "007"],
        "Date": ["2024-01-31", "2024-01-31 09:30:00"],
        "Report": ["Clear lungs.", ""],  # a formula that was never calculated has no value
        "Score": ["0.5", "True"],
    }


def test_a_workbook_that_unfolds_too_far_or_is_empty_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/sharedStrings.xml", b"0" * 2**22)
    data = bytearray((tmp_path / "bomb.xlsx").read_bytes())
    at = data.index(b"PK\1\2") + 24
    data[at : at + 4] = (2**31).to_bytes(4, "little")
    (tmp_path / "bomb.xlsx").write_bytes(data)
    with pytest.raises(BadTable, match=r"unfolds to 2,147,483,648 bytes; the limit is 1,073,741,824"):
        read_table(tmp_path / "bomb.xlsx")
    book = pytest.importorskip("openpyxl").Workbook()
    book.active.append(["a", "b"])
    book.save(tmp_path / "empty.xlsx")
    with pytest.raises(BadTable, match=r"table file-\w+ has no rows"):
        read_table(tmp_path / "empty.xlsx")


def test_a_cell_in_the_far_corner_of_a_workbook_costs_no_memory(tmp_path):
    book = pytest.importorskip("openpyxl").Workbook()
    book.active.append(["accession", "report"])
    book.active.append(["1", "Clear lungs."])
    book.active["XFD50000"] = "far"
    book.save(tmp_path / "t.xlsx")
    frame = read_table(tmp_path / "t.xlsx")  # 16,384 columns and 50,000 rows, had it been believed
    assert frame.to_dict("list") == {"accession": ["1"], "report": ["Clear lungs."]}


def test_a_workbook_without_its_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with zipfile.ZipFile(tmp_path / "t.xlsx", "w") as archive:
        archive.writestr("xl/workbook.xml", "")
    with pytest.raises(MissingDependency, match=r"package openpyxl.*medvl\[excel\]"):
        read_table(tmp_path / "t.xlsx")


def test_broken_workbooks_are_refused(tmp_path):
    pytest.importorskip("openpyxl")
    for name, content in {"[Content_Types].xml": "<broken", "xl/workbook.xml": ""}.items():
        with zipfile.ZipFile(tmp_path / "t.xlsx", "w") as archive:
            archive.writestr(name, content)
        with pytest.raises(BadTable, match=r"table file-\w+ is not a readable workbook"):
            read_table(tmp_path / "t.xlsx")


@pytest.mark.parametrize(
    "cell", ["=HYPERLINK(1)", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", " =1", "=", "- no"]
)
def test_cells_that_a_spreadsheet_would_run_are_quoted(cell):
    assert safe_cell(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", ["", "-1", "+4.2", "-1e-5", "5%", "Clear lungs.", "'=1", "1-2", "a=b"])
def test_other_cells_are_left_alone(cell):
    assert safe_cell(cell) == cell


@pytest.mark.parametrize("value", ["../../../../etc/cron.d/x", "a\nb", "x" * 4096, "CON", "-rf", "=1+1"])
def test_hostile_identifiers_are_keys_and_nothing_else(tmp_path, value):
    # RELIABILITY row 10: no name of a file is ever made of them
    png(tmp_path / "a.png")
    quoted = value.replace('"', '""')
    text(
        tmp_path / "images.csv", f'image,patient_id,study_id,text\na.png,"{quoted}","{quoted}",Clear lungs.\n'
    )
    (item,) = pair(tmp_path).items
    assert item.patient == value and item.path == tmp_path / "a.png"
    assert value not in "\n".join(pair(tmp_path).lines())
