"""Exports as hospitals make them: names that carry the accession number, two tables, media with a viewer."""

from __future__ import annotations

from test_pairing import dicom, png, reasons, reports, text

from medvl.preprocess.sources.pairing import pair

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
