"""Reports that are no table rows: text files, messages, structured reports, and what a dry run shows."""

from __future__ import annotations

import pydicom
from pydicom.dataset import Dataset
from sourcecases import SR, film, found, oru, png, reasons, structured, text

from medvl.preprocess.sources.pairing import ROW_HEADER, pair

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
    assert any("no report was found" in note for note in pair(tmp_path).notes)
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
