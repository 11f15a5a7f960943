"""Reports that are no table rows, identifiers of another form, patient and day, other kinds of images."""

from __future__ import annotations

import datetime
import gzip
import json
import shutil
import sys
import zipfile
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from medvl.errors import BadTable, MissingDependency
from medvl.preprocess.sources.columns import guess_columns
from medvl.preprocess.sources.dicomdir import folder_of, references
from medvl.preprocess.sources.discovery import discover
from medvl.preprocess.sources.identifiers import calendar, looks_like_date, loose
from medvl.preprocess.sources.pairing import ROW_HEADER, Item, Pairing, pair
from medvl.preprocess.sources.reasons import HINTS
from medvl.preprocess.sources.tables import TOO_LONG, read_table, safe_cell

DISK = Path(pydicom.__file__).parent / "data" / "test_files" / "dicomdirtests"
SR = "1.2.840.10008.5.1.4.1.1.88.11"


def png(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.full((4, 4), value, np.uint8)).save(path, format="PNG")
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())
    return path


def saved(path: Path, dataset: Dataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.setdefault("SOPClassUID", "1.2.840.10008.1.3.10")
    dataset.setdefault("SOPInstanceUID", "1.2.3")
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    return path


def film(path: Path, **elements: str) -> Path:
    dataset = Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    dataset.SOPInstanceUID = f"1.2.{abs(hash(str(path)))}"
    dataset.Modality = "DX"
    dataset.Rows = dataset.Columns = 2
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.SamplesPerPixel, dataset.PixelRepresentation = 15, 1, 0
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = bytes(8)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return saved(path, dataset)


def structured(path: Path, words: str, **elements: object) -> Path:
    item = Dataset()
    item.RelationshipType, item.ValueType, item.TextValue = "CONTAINS", "TEXT", words
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = SR, f"1.3.{abs(hash(str(path)))}"
    dataset.Modality, dataset.ValueType = "SR", "CONTAINER"
    dataset.ContentSequence = [item] if words else []
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return saved(path, dataset)


def oru(accession: str, words: str, *, patient="P1", day="20240101", status="F", placer="") -> str:
    return (
        f"MSH|^~\\&|R|H|A|H|{day}0930||ORU^R01|1|P|2.5\rPID|||{patient}||DOE^JOHN\r"
        f"OBR|1|{placer}|{accession}||||{day}\rOBX|1|TX|||{words}||||||{status}\r"
    )


def found(pairing: Pairing) -> dict[str, tuple[str, str]]:
    return {item.path.name: (item.method, item.report) for item in pairing.items}


def reasons(pairing: Pairing) -> dict[str, int]:
    counts = dict(Counter(entry.reason for entry in pairing.unpaired))
    assert counts.keys() <= HINTS.keys()  # every reason tells what to do next
    return counts


# --- text files ---------------------------------------------------------------------------------------------


def test_a_text_is_matched_by_accession_study_stem_and_folder(tmp_path):
    film(tmp_path / "a.dcm", AccessionNumber="ACC1", StudyInstanceUID="1.1")
    film(tmp_path / "b.dcm", AccessionNumber="ACC2", StudyInstanceUID="1.2")
    film(tmp_path / "p1" / "s50414267" / "c.dcm", StudyInstanceUID="1.3")
    film(tmp_path / "p1" / "s50414267" / "d.dcm", StudyInstanceUID="1.3")
    png(tmp_path / "pictures" / "e.png")
    film(tmp_path / "case" / "images" / "f.dcm", StudyInstanceUID="1.6")
    png(tmp_path / "other" / "g.png")
    png(tmp_path / "other" / "h.png")
    text(tmp_path / "texts" / "ACC1.txt", "By accession.\r\n")
    text(tmp_path / "texts" / "1.2.txt", "By study.")
    text(tmp_path / "p1" / "s50414267.txt", "As MIMIC writes it.")
    text(tmp_path / "texts" / "e.txt", "By the name of the image.")
    text(tmp_path / "case" / "summary.txt", "By the folder of the study.")
    text(tmp_path / "other" / "report.txt", "Two views of one study.")
    text(tmp_path / "README.txt", "About the data.")
    text(tmp_path / "stray.txt", "Of nobody.")
    pairing = pair(tmp_path)
    assert found(pairing) == {
        "a.dcm": ("accession", "By accession."),
        "b.dcm": ("study_uid", "By study."),
        "c.dcm": ("folder", "As MIMIC writes it."),
        "d.dcm": ("folder", "As MIMIC writes it."),
        "e.png": ("file", "By the name of the image."),
        "f.dcm": ("folder", "By the folder of the study."),
        "g.png": ("folder", "Two views of one study."),
        "h.png": ("folder", "Two views of one study."),
    }
    assert reasons(pairing) == {"other_file": 1, "text_without_image": 1}
    assert len({item.study for item in pairing.items}) == 6  # g and h are one study, c and d another


def test_a_text_is_never_spread_over_a_folder_of_many_pictures(tmp_path):
    for number in range(9):  # more than a study has views
        png(tmp_path / "all" / f"{number}.png")
    text(tmp_path / "all" / "report.txt", "Whose is it.")
    text(tmp_path / "images.csv", "image,text\n0.png,First of nine.\n")
    pairing = pair(tmp_path)
    assert sum(bool(item.report) for item in pairing.items) == 1
    assert reasons(pairing) == {"text_without_image": 1, "image_without_report": 8}
    for number in range(2):
        png(tmp_path / "two" / f"x{number}.png")
    text(tmp_path / "two" / "about the scanner.txt", "Not a report.")
    assert reasons(pair(tmp_path))["text_without_image"] == 2


def test_a_stem_that_fits_two_images_is_refused_and_the_nearer_path_wins(tmp_path):
    png(tmp_path / "a" / "1.png")
    png(tmp_path / "b" / "1.png")
    text(tmp_path / "texts" / "1.txt", "Whose is it.")
    text(tmp_path / "texts" / "report.txt", "Also there.")
    with pytest.raises(BadTable, match="no report table was found among 4 files"):
        pair(tmp_path)
    text(tmp_path / "a" / "1.txt", "The one beside it.")
    (tmp_path / "texts" / "1.txt").unlink()
    by_path = {item.path.relative_to(tmp_path).as_posix(): item.report for item in pair(tmp_path).items}
    assert by_path == {"a/1.png": "The one beside it.", "b/1.png": ""}


def test_a_text_that_begins_like_a_bitmap_is_a_text(tmp_path):
    png(tmp_path / "a.png")
    text(tmp_path / "a.txt", "BMI 24. Clear lungs.")  # a bitmap begins with "BM"
    assert found(pair(tmp_path)) == {"a.png": ("file", "BMI 24. Clear lungs.")}


def test_texts_that_cannot_be_read_or_are_too_long_are_listed(tmp_path):
    png(tmp_path / "a.png")
    png(tmp_path / "b.png")
    png(tmp_path / "c.png")
    (tmp_path / "a.txt").write_bytes(b"zero \0 byte")
    (tmp_path / "b.txt").write_bytes(b"x" * 200_001)
    (tmp_path / "c.txt").write_bytes("Ödem.".encode("cp1252"))
    pairing = pair(tmp_path)
    assert found(pairing)["c.png"] == ("file", "Ödem.")
    assert reasons(pairing) == {"text_unreadable": 1, "report_too_long": 1, "image_without_report": 2}


# --- messages and structured reports ------------------------------------------------------------------------


def test_messages_and_structured_reports_pair_with_the_films_of_their_study(tmp_path):
    film(
        tmp_path / "a.dcm", AccessionNumber="A1", StudyInstanceUID="1.1", PatientID="P1", StudyDate="20240101"
    )
    film(tmp_path / "b.dcm", AccessionNumber="A2", StudyInstanceUID="1.2", PatientID="P1")
    film(tmp_path / "c.dcm", AccessionNumber="A3", StudyInstanceUID="1.3", PatientID="P3")
    text(tmp_path / "in.hl7", oru("A1", "From a message.") + oru("A9", "Of nobody."))
    text(tmp_path / "feed.txt", oru("F7", "By its placer number.", placer="A2"))  # known by its content
    structured(
        tmp_path / "sr.dcm", "From a structured report.", StudyInstanceUID="1.3", PatientName="ROE^JANE"
    )
    structured(tmp_path / "empty.dcm", "", StudyInstanceUID="1.3")
    pairing = pair(tmp_path)
    assert found(pairing) == {
        "a.dcm": ("accession", "From a message."),
        "b.dcm": ("accession", "By its placer number."),
        "c.dcm": ("study_uid", "From a structured report."),
    }
    assert reasons(pairing) == {"report_without_image": 1, "sr_without_text": 1}
    by_name = {item.path.name: item for item in pairing.items}
    assert by_name["a.dcm"].names == ("DOE^JOHN",) and by_name["c.dcm"].names == ("ROE^JANE",)
    assert by_name["a.dcm"].study_date == "20240101" and by_name["a.dcm"].line == 1


def test_a_placer_number_of_another_patient_is_no_match(tmp_path):
    film(tmp_path / "a.dcm", AccessionNumber="A2", StudyInstanceUID="1.1", PatientID="P1")
    text(tmp_path / "in.hl7", oru("F7", "Of somebody else.", placer="A2", patient="P8"))
    assert found(pair(tmp_path)) == {"a.dcm": ("none", "")}


def test_sources_that_agree_merge_and_those_that_differ_conflict(tmp_path):
    film(tmp_path / "a.dcm", AccessionNumber="A1", StudyInstanceUID="1.1", PatientID="P1")
    text(tmp_path / "reports.csv", "accession,report,patient_id,edema\nA1,Clear lungs.,G1,1\n")
    text(tmp_path / "A1.txt", "Clear  lungs.\n")
    structured(tmp_path / "sr.dcm", "CLEAR LUNGS.", StudyInstanceUID="1.1")
    (item,) = pair(tmp_path).items
    assert (item.method, item.report, item.patient) == ("accession", "Clear lungs.", "G1")
    assert item.labels == {"edema": "present"}
    text(tmp_path / "in.hl7", oru("A1", "Effusion."))
    pairing = pair(tmp_path)
    assert not pairing.items and reasons(pairing) == {"conflicting_reports": 1}


def test_a_preliminary_report_gives_way_to_a_final_one_of_any_source(tmp_path):
    film(tmp_path / "a.dcm", AccessionNumber="A1", StudyInstanceUID="1.1")
    structured(tmp_path / "sr.dcm", "Preliminary.", StudyInstanceUID="1.1", VerificationFlag="UNVERIFIED")
    assert found(pair(tmp_path)) == {"a.dcm": ("study_uid", "Preliminary.")}
    text(tmp_path / "in.hl7", oru("A1", "Final."))
    pairing = pair(tmp_path)
    assert pairing.items[0].report == "Final." and reasons(pairing) == {"superseded_report": 1}
    assert "1 reports are preliminary: partial, not verified, or not final" in pairing.notes


def test_a_structured_report_that_is_succeeded_is_listed(tmp_path):
    film(tmp_path / "a.dcm", StudyInstanceUID="1.1")
    first = structured(tmp_path / "one.dcm", "Old.", StudyInstanceUID="1.1")
    sop, series, document = Dataset(), Dataset(), Dataset()
    sop.ReferencedSOPClassUID = SR
    sop.ReferencedSOPInstanceUID = pydicom.dcmread(first).SOPInstanceUID
    series.ReferencedSOPSequence = [sop]
    document.ReferencedSeriesSequence = [series]
    structured(tmp_path / "two.dcm", "New.", StudyInstanceUID="1.1", PredecessorDocumentsSequence=[document])
    pairing = pair(tmp_path)
    assert found(pairing) == {"a.dcm": ("study_uid", "New.")}
    assert reasons(pairing) == {"superseded_report": 1}


def test_what_messages_leave_out_is_noted(tmp_path):
    film(tmp_path / "a.dcm", AccessionNumber="A1", StudyInstanceUID="1.1")
    text(tmp_path / "in.hl7", oru("A1", "Old.") + oru("A1", "New.", day="20240102") + "MSH|^~\\&|\r")
    text(tmp_path / "empty.hl7", "nothing here")
    pairing = pair(tmp_path)
    assert found(pairing) == {"a.dcm": ("accession", "New.")}
    assert reasons(pairing) == {"hl7_not_a_report": 1, "hl7_without_text": 1}
    assert "2 HL7 reports give 1: later versions, addenda and deletions count" in pairing.notes


# --- identifiers of another form ----------------------------------------------------------------------------


def test_accession_numbers_of_another_form_match_where_they_are_unique(tmp_path):
    for name, accession in (("a", "0012"), ("b", "ACC-77"), ("c", "5"), ("d", "05"), ("e", "900")):
        film(tmp_path / f"{name}.dcm", AccessionNumber=accession, StudyInstanceUID=f"1.{name.encode().hex()}")
    text(
        tmp_path / "reports.csv",
        "accession,report\n12.0,Twelve.\nacc 77,Seventy-seven.\n005,Five of whom.\n900,Nine hundred.\n",
    )
    pairing = pair(tmp_path)
    assert found(pairing) == {
        "a.dcm": ("loose", "Twelve."),
        "b.dcm": ("loose", "Seventy-seven."),
        "c.dcm": ("none", ""),  # "5" and "05" could both be "005"
        "d.dcm": ("none", ""),
        "e.dcm": ("accession", "Nine hundred."),
    }
    assert reasons(pairing) == {"image_without_report": 2, "report_without_image": 1}
    assert any(note.startswith("2 images were matched after accession") for note in pairing.notes)


@given(st.text(max_size=20))
def test_the_loose_form_is_a_fixed_point(identifier):
    assert loose(loose(identifier)) == loose(identifier)


@given(st.integers(1, 10**12), st.integers(0, 4), st.sampled_from(["", "ACC-", "acc", "Accession No: ", "#"]))
def test_what_spreadsheets_do_to_a_number_does_not_change_its_loose_form(number, zeros, prefix):
    assert loose(f" {prefix}{'0' * zeros}{number}.0 ") == loose(str(number)) == str(number)


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_different_numbers_have_different_loose_forms(one, two):
    assert (loose(str(one)) == loose(str(two))) == (one == two)


# --- patient and day ----------------------------------------------------------------------------------------


def study(folder: Path, name: str, patient: str, day: str, **elements: str) -> Path:
    return film(
        folder / f"{name}.dcm",
        PatientID=patient,
        StudyDate=day,
        StudyInstanceUID=f"1.{ord(name)}",
        **elements,
    )


def test_patient_and_day_match_the_nearest_within_one_day(tmp_path):
    study(tmp_path, "a", "P1", "20240131")
    study(tmp_path, "b", "P1", "20240202")
    study(tmp_path, "c", "P2", "20240310")
    study(tmp_path, "d", "P3", "20240310")
    text(
        tmp_path / "reports.csv",
        "patient_id,study_date,report\n"
        "P1,31.01.2024,The same day.\nP1,03.02.2024,The day after.\n"
        "P2,12.03.2024,Two days after.\nP3,10.03.2024 17:05,With a time.\n",
    )
    pairing = pair(tmp_path)
    assert found(pairing) == {
        "a.dcm": ("patient_date", "The same day."),
        "b.dcm": ("patient_date", "The day after."),
        "c.dcm": ("none", ""),
        "d.dcm": ("patient_date", "With a time."),
    }
    assert "3 images were matched by patient and study date, 1 day apart or less" in pairing.notes
    assert [item.study_date for item in pairing.items] == ["20240131", "20240202", "20240310", "20240310"]
    assert pairing.columns["date"] == "study_date"


def test_ties_are_refused(tmp_path):
    study(tmp_path, "a", "P1", "20240131")
    study(tmp_path, "b", "P1", "20240131")  # two studies of one day
    study(tmp_path, "c", "P2", "20240202")  # a day before and a day after
    study(tmp_path, "d", "P3", "20240301")  # the same day beats the next one
    study(tmp_path, "e", "P3", "20240302")
    text(
        tmp_path / "reports.csv",
        "patient_id,study_date,report\nP1,2024-01-31,Whose.\nP2,2024-02-01,Before.\nP2,2024-02-03,After.\n"
        "P3,2024-03-01,First of two.\n",
    )
    pairing = pair(tmp_path)
    assert found(pairing) == {"d.dcm": ("patient_date", "First of two."), "e.dcm": ("none", "")}
    assert reasons(pairing) == {"ambiguous_patient_date": 3, "image_without_report": 1}


def test_an_accession_number_that_differs_is_stronger_than_the_day(tmp_path):
    study(tmp_path, "a", "P1", "20240131", AccessionNumber="A1")
    text(tmp_path / "reports.csv", "accession,patient_id,study_date,report\nA2,P1,20240131,Another study.\n")
    assert found(pair(tmp_path)) == {"a.dcm": ("none", "")}


def test_dates_whose_order_is_not_clear_are_not_used(tmp_path):
    study(tmp_path, "a", "P1", "20240304")
    text(tmp_path / "reports.csv", "patient_id,study_date,report\nP1,04/03/2024,March or April.\n")
    pairing = pair(tmp_path)
    assert found(pairing) == {"a.dcm": ("none", "")}
    assert "column study_date: the dates could be day or month first: they were not used" in pairing.notes
    text(
        tmp_path / "reports.csv",
        "patient_id,study_date,report\nP1,04/03/2024,In March.\nP1,25/12/2023,Old.\n",
    )
    assert found(pair(tmp_path)) == {"a.dcm": ("patient_date", "In March.")}


@pytest.mark.parametrize(
    "cell",
    ["20240131", "2024-01-31", "2024/1/31", "2024-01-31T09:30:00", "31.01.2024", "31. 1. 2024", "31-Jan-2024",
     "31 January 2024", "Jan 31, 2024", "January 31st 2024", "31/01/2024", "01/31/2024", "1/31/2024 9:05 PM"],
)  # fmt: skip
def test_dates_of_many_forms(cell):
    (day,), note = calendar([cell])
    assert day is not None and day.isoformat() == "2024-01-31" and note == ""
    assert looks_like_date(cell)


def test_dates_that_are_none():
    cells = ["", "31.02.2024", "2024", "yesterday", "31/01/24", "12345678901", "20249999", "Foo 31, 2024"]
    assert calendar(cells) == ([None] * len(cells), "")
    days, note = calendar(["31/01/2024", "01/31/2024", "2024-01-02"])  # both orders in one column
    assert [day is not None for day in days] == [False, False, True] and "were not used" in note


@given(st.dates())
def test_what_python_writes_is_read_back(day):
    assert calendar([day.isoformat(), day.strftime("%d.%m.") + f"{day.year:04}"])[0] == [day, day]


# --- columns of other languages -----------------------------------------------------------------------------

PROSE = "Kein Erguss, keine Infiltrate heute."
LANGUAGES = {
    "German": (
        {"Patienten-ID": "1", "Untersuchungsdatum": "31.01.2024", "Befund": PROSE, "Beurteilung": PROSE,
         "Auftragsnummer": "7", "Nachname": "Doe", "Vorname": "John"},
        {"patient": "Patienten-ID", "date": "Untersuchungsdatum", "text": ("Befund", "Beurteilung"),
         "accession": "Auftragsnummer", "name": ("Nachname", "Vorname")},
    ),
    "French": (
        {"N° patient": "1", "ID patient": "1", "Date examen": "31/01/2024", "Résultats": PROSE,
         "Conclusion": PROSE},
        {"patient": "ID patient", "date": "Date examen", "text": ("Résultats", "Conclusion")},
    ),
    "Spanish": (
        {"ID Paciente": "1", "Fecha": "31/01/2024", "Hallazgos": PROSE, "Impresión": PROSE},
        {"patient": "ID Paciente", "date": "Fecha", "text": ("Hallazgos", "Impresión")},
    ),
    "Italian": (
        {"Paziente": "1", "Data esame": "31/01/2024", "Referto": PROSE},
        {"patient": "Paziente", "date": "Data esame", "text": ("Referto",)},
    ),
    "Portuguese": (
        {"Prontuário": "1", "Data": "31/01/2024", "Achados": PROSE, "Conclusão": PROSE},
        {"patient": "Prontuário", "date": "Data", "text": ("Achados", "Conclusão")},
    ),
    "Turkish": (
        {"Hasta No": "1", "Çekim Tarihi": "31.01.2024", "Bulgular": PROSE, "Sonuç": PROSE,
         "Adı Soyadı": "X Y"},
        {"patient": "Hasta No", "date": "Çekim Tarihi", "text": ("Bulgular", "Sonuç"),
         "name": ("Adı Soyadı",)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("language", LANGUAGES)
def test_columns_of_other_languages_are_guessed(language):
    cells, expected = LANGUAGES[language]
    frame = pd.DataFrame({name: [cell, cell] for name, cell in cells.items()}, dtype=str)
    columns = guess_columns(frame)
    assert {role: getattr(columns, role) for role in expected} == expected


def test_foreign_section_columns_get_headings_that_the_parser_knows():
    frame = pd.DataFrame({"Befund": [PROSE], "Beurteilung": ["Normal."]}, dtype=str)
    row = frame.to_dict("records")[0]
    assert guess_columns(frame).report_text(row) == f"FINDINGS: {PROSE}\nIMPRESSION: Normal."


def test_date_and_name_can_be_named(tmp_path):
    study(tmp_path, "a", "P1", "20240131")
    text(tmp_path / "reports.csv", "who,when,also,report\nP1,2024-01-31,John Doe,Clear lungs today.\n")
    given_columns = {"patient": "who", "date": "when", "name": "also", "text": "report"}
    (item,) = pair(tmp_path, columns=given_columns).items
    assert (item.method, item.names) == ("patient_date", ("John Doe",))
    assert pair(tmp_path, columns={**given_columns, "name": ""}).items[0].names == ()


# --- identity -----------------------------------------------------------------------------------------------


def test_items_say_what_must_not_survive_in_the_text_and_show_it_nowhere(tmp_path):
    film(
        tmp_path / "SECRET.dcm",
        PatientName="DOE^JOHN",
        ReferringPhysicianName="SMITH^ANNA",
        PatientID="MRN12345",
        AccessionNumber="ACC777",
        StudyInstanceUID="1.2.99",
        StudyDate="20240131",
    )
    text(
        tmp_path / "reports.csv", "accession,patient_id,patient_name,report\nACC777,G1,Jon Doe,Clear lungs.\n"
    )
    pairing = pair(tmp_path)
    (item,) = pairing.items
    assert item.names == ("DOE^JOHN", "SMITH^ANNA", "Jon Doe")
    assert item.ids == ("MRN12345", "ACC777")  # "G1" is too short to be taken out of a text
    assert (item.study_date, item.kind, item.line) == ("20240131", "dicom", 2)
    shown = repr(pairing) + json.dumps(pairing.summary()) + "\n".join(pairing.lines())
    for secret in (
        "DOE",
        "Doe",
        "SMITH",
        "MRN12345",
        "ACC777",
        "SECRET",
        "20240131",
        "1.2.99",
        "Clear lungs",
    ):
        assert secret not in shown


def test_an_item_of_old_needs_no_new_field(tmp_path):
    item = Item(tmp_path / "a.png", "P", "S")
    assert (item.kind, item.names, item.ids, item.study_date) == ("dicom", (), (), None)


# --- what a dry run shows -----------------------------------------------------------------------------------


def test_lines_tell_reasons_examples_and_what_to_do(tmp_path):
    for number in range(5):
        png(tmp_path / f"{number}.png")
    text(tmp_path / "pack.zip", "x")
    text(tmp_path / "images.csv", "image,text\n0.png,First of five.\n9.png,Nobody has it.\n")
    pairing = pair(tmp_path)
    lines = pairing.lines()
    assert lines[0] == "5 images of 5 studies and 5 patients"
    (archive,) = [line for line in lines if line.startswith("archive_file")]
    assert archive.startswith("archive_file: 1 (file-") and "unpack it" in archive
    (row,) = [line for line in lines if line.startswith("report_without_image")]
    assert row.startswith("report_without_image: 1 (line 3): ")
    (without,) = [line for line in lines if line.startswith("image_without_report")]
    assert without.count("file-") == 3 and "…" in without
    rows = list(pairing.rows())
    assert len(ROW_HEADER) == len(rows[0]) == 5
    assert ("0.png", "paired", "file", "", "2") in rows and (
        "1.png",
        "without report",
        "none",
        "",
        "",
    ) in rows
    assert ("pack.zip", "left out", "", "archive_file", "") in rows
    assert ("", "left out", "", "report_without_image", "3") in rows
    assert len(rows) == 5 + 2


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
        "broken.nii": "damaged",
        "cut.nii.gz": "damaged",
        "slide.svs": "slide",
        "m.mrxs": "slide",
        "more.tar.gz": "archive",
        "p.png": "raster",
    }
    text(tmp_path / "reports.csv", "volume_name,report\na.nii.gz,A volume.\nb,Another.\nslide,A slide.\n")
    assert reasons(pair(tmp_path)) == {
        "not_a_radiograph": 4, "archive_file": 1, "image_without_report": 3, "report_without_image": 3,
    }  # fmt: skip
    pairing = pair(tmp_path, kinds=frozenset({"nifti"}))
    assert found(pairing) == {"a.nii.gz": ("file", "A volume."), "b.nii": ("file", "Another.")}
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
