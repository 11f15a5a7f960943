"""Exports as hospitals make them: names that carry the accession number, two tables, media with a viewer."""

from __future__ import annotations

import pytest
from test_pairing import dicom, png, reasons, reports, text

from medvl.errors import BadTable
from medvl.preprocess.sources.discovery import discover
from medvl.preprocess.sources.hl7 import read_messages
from medvl.preprocess.sources.pairing import pair
from medvl.preprocess.sources.tables import ENCODING, read_table

LUNGS = "The lungs are clear."
HEART = "The heart is enlarged."


# --- files named after their study --------------------------------------------------------------------------


def test_files_named_after_an_accession_number_are_views_of_one_study(tmp_path):
    for name in ("ACC1_1", "ACC1_2", "ACC2-PA", "ACC2 (2)", "ACC3", "ACC12_1"):
        png(tmp_path / "images" / f"{name}.png")
    text(tmp_path / "reports.csv", f"accession,report\nACC1,{LUNGS}\nACC2,{HEART}\nACC3,Nothing.\n")
    pairing = pair(tmp_path)
    assert reports(pairing) == {
        **dict.fromkeys(("ACC1_1.png", "ACC1_2.png"), LUNGS),
        **dict.fromkeys(("ACC2-PA.png", "ACC2 (2).png"), HEART),
        "ACC3.png": "Nothing.",
        "ACC12_1.png": "",
    }
    assert len({item.study for item in pairing.items}) == 4
    assert "5 by the study that the file is named after" in pairing.lines()[1]


def test_a_spreadsheet_may_have_eaten_the_zeros_of_file_names(tmp_path):
    png(tmp_path / "0012_1.png")
    png(tmp_path / "0012_2.png")
    png(tmp_path / "0013.png")
    text(tmp_path / "reports.csv", f"accession,report\n12.0,{LUNGS}\n13.0,{HEART}\n")
    pairing = pair(tmp_path)
    assert reports(pairing) == {"0012_1.png": LUNGS, "0012_2.png": LUNGS, "0013.png": HEART}
    png(tmp_path / "012.png")  # now the form is not unique
    assert set(reports(pair(tmp_path)).values()) == {"", HEART}


def test_a_header_or_a_named_image_counts_more_than_a_file_name(tmp_path):
    dicom(tmp_path / "A1_1.dcm", AccessionNumber="A9", StudyInstanceUID="1.1")
    dicom(tmp_path / "A1_2.dcm", StudyInstanceUID="1.1")
    text(tmp_path / "reports.csv", f"accession,report\nA1,{LUNGS}\n")
    assert reports(pair(tmp_path)) == {"A1_1.dcm": "", "A1_2.dcm": LUNGS}
    png(tmp_path / "A1.png")
    png(tmp_path / "A1_3.png")
    text(tmp_path / "reports.csv", f"accession,report,image\nA1,{LUNGS},A1_3.png\n")
    assert reports(pair(tmp_path)) == {"A1_1.dcm": "", "A1_2.dcm": "", "A1.png": "", "A1_3.png": LUNGS}


def test_texts_have_the_views_of_their_name_in_one_folder(tmp_path):
    for name in ("ACC1_1", "ACC1_2", "ACC2_1"):
        png(tmp_path / "images" / f"{name}.png")
    text(tmp_path / "reports" / "ACC1.txt", LUNGS)
    text(tmp_path / "reports" / "ACC2.txt", HEART)
    expected = {"ACC1_1.png": LUNGS, "ACC1_2.png": LUNGS, "ACC2_1.png": HEART}
    assert reports(pair(tmp_path)) == expected
    png(tmp_path / "others" / "ACC2_1.png")
    assert reasons(pair(tmp_path)) == {"ambiguous_file_name": 2}


def test_more_files_than_a_study_has_views_are_refused(tmp_path):
    for number in range(9):
        png(tmp_path / f"7_{number}.png")
    png(tmp_path / "8_0.png")
    text(tmp_path / "reports.csv", f"accession,report\n7,{LUNGS}\n8,{HEART}\n")
    pairing = pair(tmp_path)
    assert (reports(pairing), reasons(pairing)) == ({"8_0.png": HEART}, {"ambiguous_file_name": 9})


# --- several tables -----------------------------------------------------------------------------------------


def two_tables(folder):
    """Reports under accession numbers; files, patients and views in a table of their own."""
    for name in ("a1", "a2", "b1", "d1"):
        png(folder / "img" / f"{name}.png")
    text(folder / "texts.csv", f"accession,report\nA,{LUNGS}\nB,{HEART}\nC,For nobody.\n")
    rows = ("A,P1,a1.png,PA", "A,P1,a2.png,LATERAL", "B,P2,b1.png,AP", "B,P2,b2.png,AP", "D,P3,d1.png,PA")
    text(folder / "files.csv", "\n".join(("accession,patient_id,image,view", *rows)))


def test_two_tables_are_joined_by_the_key_of_both(tmp_path):
    two_tables(tmp_path)
    pairing = pair(tmp_path)
    found = {item.path.stem: (item.report, item.patient, item.view) for item in pairing.items}
    assert found == {
        "a1": (LUNGS, "P1", "PA"),
        "a2": (LUNGS, "P1", "LATERAL"),
        "b1": (HEART, "P2", "AP"),
        "d1": ("", "P3", "PA"),
    }
    assert reasons(pairing) == {
        "report_without_image": 1,  # C
        "named_image_missing": 1,  # b2.png
        "image_without_report": 1,  # d1.png
    }
    assert "column image: image (of a table joined by accession)" in pairing.lines()
    assert "a second table was joined by accession: it has 2 of 3 reports" in pairing.notes
    assert pairing.columns["patient"] == "patient_id"


def test_a_column_may_be_named_of_either_table(tmp_path):
    two_tables(tmp_path)
    text(tmp_path / "texts.csv", f"accession,report,words\nA,{HEART},{LUNGS}\n")
    chosen = pair(tmp_path, columns={"text": "words", "laterality": "view", "split": ""})
    assert chosen.columns["text"] == "words" and chosen.columns["laterality"] == "view"
    assert reports(chosen)["a1.png"] == LUNGS
    with pytest.raises(BadTable, match=r"none of the table's 3 columns is 'vieww'"):
        pair(tmp_path, columns={"view": "vieww"})


def test_a_table_without_a_shared_key_counts_by_its_own(tmp_path):
    dicom(tmp_path / "1.dcm", AccessionNumber="A", StudyInstanceUID="1.1")
    text(tmp_path / "reports.csv", f"accession,report\nA,{LUNGS}\n")
    text(tmp_path / "patients.csv", "study_uid,patient_id,split\n1.1,P7,test\n1.2,P8,test\n")
    text(tmp_path / "doses.csv", "device,dose\nX,1\n")
    pairing = pair(tmp_path)
    (item,) = pairing.items
    assert (item.report, item.patient, item.split) == (LUNGS, "P7", "test")
    assert reasons(pairing) == {"row_without_image": 1}
    assert "1 more tables were not used" in " ".join(pairing.notes)


def test_labels_alone_are_enough(tmp_path):
    png(tmp_path / "a.png")
    text(tmp_path / "labels.csv", "image,nodule,edema\na.png,1,0\n")
    pairing = pair(tmp_path)
    assert pairing.items[0].labels == {"nodule": "present", "edema": "absent"}
    assert (pairing.columns, reasons(pairing)) == ({}, {"image_without_report": 1})


def test_tables_are_joined_though_a_spreadsheet_has_eaten_zeros(tmp_path):
    png(tmp_path / "a.png")
    text(tmp_path / "files.csv", "accession,image,patient_id\n0012,a.png,P1\n")
    table = text(tmp_path / "reports.csv", f"accession,report\n12,{LUNGS}\n")
    assert [(item.report, item.patient) for item in pair(tmp_path).items] == [(LUNGS, "P1")]
    text(table, f"accession,report\n12,{LUNGS}\n012,{HEART}\n")  # the form is two numbers
    assert reports(pair(tmp_path)) == {"a.png": ""}


def test_tables_of_one_header_are_parts_of_one(tmp_path):
    png(tmp_path / "a.png")
    png(tmp_path / "b.png")
    text(tmp_path / "y2023.csv", f"image,report\na.png,{LUNGS}\n")
    later = text(tmp_path / "y2024.csv", f"image,report\nb.png,{HEART}\nc.png,Lost.\n")
    pairing = pair(tmp_path)
    assert reports(pairing) == {"a.png": LUNGS, "b.png": HEART}
    assert "2 tables have the same columns: they were read as one" in pairing.notes
    (entry,) = pairing.unpaired
    assert (entry.reason, entry.line, entry.path) == ("report_without_image", 3, later)
    for path, images in ((tmp_path / "y2023.csv", "a.png;c.png"), (later, "b.png;d.png")):
        png(tmp_path / images[-5:])
        text(path, f"image,report\n{images},{LUNGS}\n")
    assert len({item.study for item in pair(tmp_path).items}) == 2  # each of them is in line 2
    text(later, f"image,report\na.png,{HEART}\n")
    assert reasons(pair(tmp_path))["conflicting_reports"] == 1


def test_reports_may_lie_deeper_than_the_source(tmp_path):
    png(tmp_path / "Export" / "img" / "1.png")
    text(tmp_path / "Export" / "desktop.ini", "[x]")
    text(tmp_path / "Export" / "list.csv", f"image,report\n1.png,{LUNGS}\n")
    assert reports(pair(tmp_path)) == {"1.png": LUNGS}
    text(tmp_path / "list.csv", f"image,report\n1.png,{HEART}\n")  # the nearer one
    assert reports(pair(tmp_path)) == {"1.png": HEART}


# --- media and spreadsheets ---------------------------------------------------------------------------------


def test_the_pictures_of_a_viewer_are_no_films(tmp_path):
    dicom(tmp_path / "DICOMDIR")
    dicom(tmp_path / "IMG" / "1", AccessionNumber="A", StudyInstanceUID="1.1")
    png(tmp_path / "VIEWER" / "splash.png")
    png(tmp_path / "scan.png")
    (tmp_path / "VIEWER" / "icon.jpg").touch()
    text(tmp_path / "reports.csv", f"accession,image,report\nA,,{LUNGS}\n,scan.png,{HEART}\n")
    pairing = pair(tmp_path)
    assert reports(pairing) == {"1": LUNGS, "scan.png": HEART}
    assert reasons(pairing)["picture_of_a_medium"] == 2
    assert pairing.lines()[0].endswith("(1 dicom, 1 raster)")


def test_the_delimiter_is_that_of_whole_rows(tmp_path):
    # a comma in the header, in names and in reports cuts each line in two as well
    rows = "".join(f'{k};"Roe, Jo";"Heart, normal.\nRead by X";0,{k}\n' for k in range(9))
    frame = read_table(text(tmp_path / "t.csv", f"accession;Name, first;report;dose\n{rows}"))
    assert list(frame.columns) == ["accession", "Name, first", "report", "dose"]
    assert frame["dose"].tolist() == [f"0,{k}" for k in range(9)]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_its_mark_is_understood(tmp_path, encoding):
    (tmp_path / "t.csv").write_bytes("image,report\na.png,größer\n".encode(encoding))
    assert read_table(tmp_path / "t.csv").to_dict("list") == {"image": ["a.png"], "report": ["größer"]}


def test_an_encoding_that_was_guessed_is_told(tmp_path):
    png(tmp_path / "a.png")
    (tmp_path / "reports.csv").write_bytes("image,report\na.png,Herz größer.\n".encode("cp1252"))
    assert read_table(tmp_path / "reports.csv").attrs[ENCODING] == "Windows-1252"
    pairing = pair(tmp_path)
    assert reports(pairing) == {"a.png": "Herz größer."}
    assert any("it was read as Windows-1252" in note for note in pairing.notes)


def test_a_guess_among_several_columns_of_prose_names_the_others(tmp_path):
    png(tmp_path / "a.png")
    text(
        tmp_path / "t.csv",
        "image,remarks,opinion\na.png,the patient waited for a long time,no focal lesion is seen\n",
    )
    told = pair(tmp_path)
    line = "column text: remarks (longest prose, a guess: check it; or opinion, by --column text=NAME)"
    assert line in told.lines()
    assert reports(pair(tmp_path, columns={"text": "opinion"})) == {"a.png": "no focal lesion is seen"}


def test_a_table_without_texts_is_told(tmp_path):
    png(tmp_path / "a.png")
    text(tmp_path / "t.csv", "image,diagnostic\na.png,Normal.\n")
    assert "no column of the table holds texts: name it with --column text=NAME" in pair(tmp_path).notes
    assert reports(pair(tmp_path, columns={"text": "diagnostic"})) == {"a.png": "Normal."}


def test_columns_that_hold_the_names_of_persons_are_known_by_part_of_their_name(tmp_path):
    png(tmp_path / "a.png")
    header = "Bild;Befundtext;Name, Vorname;Arbeitgeber;Geburtsname/Nachname (Pat.)"
    text(tmp_path / "t.csv", f"{header}\na.png;Herz normal.;Roe, Jo;Clinic;Poe\n")
    (item,) = pair(tmp_path).items
    assert (item.report, set(item.names)) == ("Herz normal.", {"Roe, Jo", "Poe"})


def test_a_source_without_images_is_told(tmp_path):
    text(tmp_path / "reports.csv", f"accession,report\nA,{LUNGS}\n")
    assert "no image was found: give the folder or the archive that holds them" in pair(tmp_path).notes


def test_a_message_that_brings_its_own_heading_gets_no_second_one():
    lines = ("MSH|^~\\&|R|H|||2024||ORU^R01|1|P|2.3", "PID|||P1", "OBR|1||A7")
    observed = (
        "OBX|1|TX|X&GDT^CHEST||ADDENDUM: Small nodule.||||||A",
        "OBX|2|TX|X&IMP^CHEST||Nodule.||||||A",
    )
    (message,) = read_messages("\r".join((*lines, *observed)).encode())
    assert message.reports[0].text == "ADDENDUM: Small nodule.\nIMPRESSION:\nNodule."


# --- what spreadsheets and other systems do -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("sep=;\r\nimage;report\r\na.png;Clear lungs.\r\n", 3),
        ("Export of 2024;\n;\nimage;report\na.png;Clear lungs.\n", 4),
        ("image;report\na.png;Clear lungs.;;\n;;;\n", 2),
        ("image;report;\na.png;Clear lungs.;\n", 2),
    ],
)
def test_what_a_spreadsheet_adds_is_no_row(tmp_path, content, line):
    frame = read_table(text(tmp_path / "t.csv", content))
    assert frame[["image", "report"]].to_dict("index") == {line: {"image": "a.png", "report": "Clear lungs."}}


def test_a_workbook_may_have_a_title(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["Export of 2024"], [], ["accession", "report"], [12, LUNGS]):
        book.active.append(row)
    book.save(tmp_path / "t.xlsx")
    assert read_table(tmp_path / "t.xlsx").to_dict("index") == {4: {"accession": "12", "report": LUNGS}}


def test_the_case_of_a_file_name_counts_only_where_it_decides(tmp_path):
    png(tmp_path / "Images" / "IMG1.PNG")
    table = text(tmp_path / "t.csv", f"path,report\nC:\\Export\\images\\img1.png,{LUNGS}\n")
    assert reports(pair(tmp_path)) == {"IMG1.PNG": LUNGS}
    png(tmp_path / "Images" / "img1.png")
    text(table, f"path,report\nImages/img1.png,{LUNGS}\n")
    assert reports(pair(tmp_path)) == {"IMG1.PNG": "", "img1.png": LUNGS}


def test_each_patient_may_have_a_first_study(tmp_path):
    for name in ("p1/study1", "p1/study2", "p2/study1"):
        png(tmp_path / name / "a.png")
        png(tmp_path / name / "b.png")
    rows = f"p1,study1,{LUNGS}\np1,study2,{HEART}\np2,study1,Something else.\n"
    text(tmp_path / "t.csv", f"patient,study,report\n{rows}")
    found = {
        item.path.relative_to(tmp_path).as_posix(): (item.report, item.study) for item in pair(tmp_path).items
    }
    assert found["p1/study1/a.png"] == found["p1/study1/b.png"] == (LUNGS, "p1/study1")
    assert found["p2/study1/a.png"] == ("Something else.", "p2/study1")
    assert len(set(found.values())) == 3


def test_reports_in_formats_that_are_not_read_are_told(tmp_path):
    png(tmp_path / "a.png")
    text(tmp_path / "reports.json", "[]")
    text(tmp_path / "page.html", "x")
    assert reasons(pair(tmp_path)) == {"foreign_report": 1, "other_file": 1, "image_without_report": 1}


def test_every_file_is_an_item_a_report_or_has_a_reason(tmp_path):
    two_tables(tmp_path)
    dicom(tmp_path / "DICOMDIR")
    for name, uid in (("one", "1.2"), ("copy", "1.2"), ("two", "1.3")):
        dicom(tmp_path / "IMG" / name, SOPInstanceUID=uid, AccessionNumber="A", StudyInstanceUID="1.1")
    png(tmp_path / "VIEWER" / "logo.png")
    (tmp_path / "broken.dcm").touch()
    text(tmp_path / "VIEWER" / "HELP.TXT", "Press F1.")
    text(tmp_path / "B_9.txt", "Not for anybody.")
    text(tmp_path / "letters.docx", "x")
    png(tmp_path.parent / f"{tmp_path.name}_other.png")
    (tmp_path / "link.png").symlink_to(tmp_path.parent / f"{tmp_path.name}_other.png")
    pairing = pair(tmp_path)
    left_out = [
        entry for entry in pairing.unpaired if entry.reason != "image_without_report" and not entry.line
    ]
    found = [item.path for item in pairing.items] + [entry.path for entry in left_out]
    expected = [file for file in discover(tmp_path) if file.kind != "table"]  # its DICOMDIR is none
    assert sorted(found) == sorted(file.path for file in expected)
    assert "each file and row by its name: add --details FILE.csv" in pairing.lines()
