"""Identifiers of another form, patient and day, columns of other languages, and what must not be shown."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sourcecases import film, found, reasons, study, text

from medvl.preprocess.sources.columns import guess_columns
from medvl.preprocess.sources.identifiers import calendar, looks_like_date, loose
from medvl.preprocess.sources.pairing import Item, pair

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
    told = "column study_date: the dates could be day or month first: they were not used; write YYYY-MM-DD"
    assert told in pairing.notes
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
