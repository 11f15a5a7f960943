"""Tables from outside: what is read, what is refused, and which column is taken for what."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvl.errors import BadTable
from medvl.preprocess.sources.columns import guess_columns
from medvl.preprocess.sources.labels import LabelEncoding, finding_name, read_boxes, read_labels, row_labels
from medvl.preprocess.sources.tables import read_table
from medvl.records import Box


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def table(*header, rows=1, **columns):
    return pd.DataFrame({**dict.fromkeys(header, "x"), **columns}, dtype=str, index=range(1, rows + 1))


# --- reading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_encodings_and_delimiters(tmp_path, encoding, delimiter):
    rows = [["id", "report"], ["007", "Œdème; left, 4.2 cm | right\ttoo"], ["008", "Clear."]]
    text = "".join(delimiter.join(f'"{cell}"' for cell in row) + "\r\n" for row in rows)
    frame = read_table(write(tmp_path / "t.csv", text, encoding))
    assert list(frame.columns) == ["id", "report"]
    assert frame.to_dict("list") == {"id": ["007", "008"], "report": [rows[1][1], "Clear."]}
    assert list(frame.index) == [2, 3]


def test_cells_stay_strings_and_blank_lines_do_not_count(tmp_path):
    frame = read_table(write(tmp_path / "t.csv", "\n a ,b\n\n00012,\n,NA\n1.0,true\n"))
    assert frame.to_dict("list") == {"a": ["00012", "", "1.0"], "b": ["", "NA", "true"]}
    assert list(frame.index) == [4, 5, 6]


def test_a_quoted_field_may_hold_lines_and_the_index_names_the_line_where_its_row_begins(tmp_path):
    frame = read_table(write(tmp_path / "t.csv", 'a,b\n1,"two\nlines, ""quoted"""\n2,x\n'))
    assert frame["b"].tolist() == ['two\nlines, "quoted"', "x"]
    assert list(frame.index) == [2, 4]


def test_tsv_takes_tabs_even_where_commas_are_as_many(tmp_path):
    frame = read_table(write(tmp_path / "t.tsv", "a,b\tc\n1,2\t3\n"))
    assert frame.to_dict("list") == {"a,b": ["1,2"], "c": ["3"]}


def test_parquet_and_csv_give_the_same_frame(tmp_path):
    frame = pd.DataFrame({"accession": ["007", "008"], "edema": [1, 0], "note": ["Clear.", None]})
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv", index=False)
    parquet, csv = read_table(tmp_path / "t.parquet"), read_table(tmp_path / "t.csv")
    assert parquet.to_dict("list") == csv.to_dict("list")
    assert parquet["edema"].tolist() == ["1", "0"]


REFUSED = {
    "long row": ("t.csv", "a,b\n1,2\n1,2,3\n", r"line 3 of file-\w+ has 3 fields; the header has 2"),
    "short row": ("t.csv", "a,b,c\n1,2,3\n\n1,2\n", r"line 4 of file-\w+ has 2 fields; the header has 3"),
    "line after a quoted break": ("t.csv", 'a,b\n1,"x\ny"\n1\n', r"line 4 of file-\w+ has 1 fields"),
    "open quotation mark": ("t.csv", 'a,b\n1,"x\n2,y\n', r"line 2 of file-\w+ is not a row: unexpected end"),
    "text after a quotation": ("t.csv", 'a,b\n1,"x" y\n', r"line 2 of file-\w+ is not a row.*expected after"),
    "zero bytes": ("t.csv", "", r"table file-\w+ is empty"),
    "blank": ("t.csv", "\n \n", r"table file-\w+ is empty"),
    "header only": ("t.csv", "a,b\n", r"table file-\w+ has no rows"),
    "two columns of one name": ("t.csv", "a,b,a\n1,2,3\n", r"has the column 'a' 2 times"),
    "a suffix": ("t.xls", "a,b\n1,2\n", r"suffix '\.xls'\. Allowed: .*\.csv.*\.tsv"),
    "no workbook": ("t.xlsx", "a,b\n1,2\n", r"table file-\w+ is not a readable workbook"),
    "no Parquet": ("t.parquet", "a,b\n1,2\n", r"table file-\w+ is not readable Parquet"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_table_that_breaks_a_rule_is_refused_by_line(tmp_path, case):
    name, text, match = REFUSED[case]
    with pytest.raises(BadTable, match=match) as caught:
        read_table(write(tmp_path / name, text))
    assert name not in str(caught.value)  # a file name may hold a patient's name


def test_a_missing_table_and_bytes_that_are_no_text(tmp_path):
    with pytest.raises(BadTable, match=r"table file-\w+ does not exist"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "t.csv").write_bytes(b"a,b\n\x81\x8d,\xff\n")
    with pytest.raises(BadTable, match=r"table file-\w+ is neither UTF-8, UTF-16 nor Windows-1252 text"):
        read_table(tmp_path / "t.csv")


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), max_size=12).map(str.strip)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5))
def test_what_pandas_writes_is_read_back(tmp_path_factory, cells):
    path = tmp_path_factory.mktemp("t") / "t.csv"
    frame = pd.DataFrame({"key": "k", "a": [a for a, _ in cells], "b": [b for _, b in cells]}, dtype=str)
    frame.to_csv(path, index=False, quoting=1)
    assert read_table(path).to_dict("list") == frame.to_dict("list")


# --- columns ------------------------------------------------------------------------------------------------

PROSE = "No focal consolidation is seen today."
PUBLIC = {
    "IU X-ray": (
        table("uid", "MeSH", image="Xray Chest PA and Lateral", findings=PROSE, impression="Normal."),
        {"study": "uid", "image": None, "text": ("findings", "impression")},
    ),
    "MIMIC-CXR": (
        table("subject_id", "study_id", "dicom_id", ViewPosition="PA", split="train", report=PROSE),
        {"patient": "subject_id", "study": "study_id", "image": "dicom_id", "view": "ViewPosition",
         "split": "split", "text": ("report",)},
    ),
    "CheXpert": (
        table(Path="train/patient1/study1/view1_frontal.jpg", Sex="Male", Age="68", Edema="1.0",
              **{"Frontal/Lateral": "Frontal", "Lung Opacity": "-1.0", "Fracture": ""}),
        {"image": "Path", "view": "Frontal/Lateral", "labels": ("Edema", "Lung Opacity"), "text": ()},
    ),
    "PadChest": (
        table("PatientID", "StudyID", rows=4, ImageID="1.png", Projection="PA", Report=PROSE,
              Labels=["['normal']", "['normal']", "['copd', 'nodule']", "['normal']"]),
        {"patient": "PatientID", "study": "StudyID", "image": "ImageID", "view": "Projection",
         "text": ("Report",), "labels": ("Labels",)},
    ),
    "VinDr": (table(image_id="abc", class_name="Nodule"), {"image": "image_id"}),
    "hospital export": (
        table("Accession Number", "Study Instance UID", "SOP Instance UID", "MRN", **{"Report Text": PROSE}),
        {"accession": "Accession Number", "study_uid": "Study Instance UID", "sop_uid": "SOP Instance UID",
         "patient": "MRN", "text": ("Report Text",)},
    ),
    "unknown prose": (table("key", befund=PROSE), {"text": ("befund",)}),
    "a split that is none": (table("image", split="7"), {"split": None}),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLIC)
def test_columns_of_public_sets_are_guessed(name):
    frame, expected = PUBLIC[name]
    columns = guess_columns(frame)
    assert {role: getattr(columns, role) for role in expected} == expected


def test_the_group_wins_over_the_patient_and_it_is_shown():
    columns = guess_columns(table("image", "patient_id", "group_id"))
    assert columns.patient == "group_id"
    assert "patient: group_id (by name; the group wins over the patient)" in columns.explain()


def test_columns_can_be_named_and_unnamed():
    frame = table("image", "patient_id", "text", a="Left one.", b="Right one.")
    columns = guess_columns(frame, columns={"text": "a+b", "patient": "", "image": "image"})
    assert (columns.text, columns.patient, columns.image) == (("a", "b"), None, "image")
    assert "text: a, b (given)" in columns.explain()
    assert columns.report_text(frame.to_dict("records")[0]) == "A: Left one.\nB: Right one."


def test_section_columns_are_joined_under_headings_that_the_parser_knows():
    columns = guess_columns(table(clinical_history="Cough.", findings="Clear.", impression="nan"))
    row = {"clinical_history": "Cough.", "findings": "Clear.", "impression": "nan"}
    assert columns.report_text(row) == "CLINICAL HISTORY: Cough.\nFINDINGS: Clear."


def test_a_table_without_a_header_does_not_spill_its_first_row():
    frame = pd.DataFrame({"DOE JOHN": ["ROE JANE"], "a.png": ["b.png"]})
    with pytest.raises(BadTable, match=r"none of the table's 2 columns is 'report'") as caught:
        guess_columns(frame, columns={"text": "report"})
    assert "DOE" not in str(caught.value)


def test_overrides_are_checked():
    frame = table("patient_id", "report")
    with pytest.raises(BadTable, match=r"columns is 'patient_di'.*Did you mean 'patient_id'"):
        guess_columns(frame, columns={"patient": "patient_di"})
    with pytest.raises(BadTable, match=r"'pateint' is not a role.*Did you mean 'patient'"):
        guess_columns(frame, columns={"pateint": "patient_id"})
    with pytest.raises(BadTable, match=r"role 'patient' takes one column; got 2"):
        guess_columns(frame, columns={"patient": "patient_id+report"})


# --- labels and boxes ---------------------------------------------------------------------------------------


def test_numeric_labels_follow_chexpert(tmp_path):
    path = write(tmp_path / "labels.csv", "accession,Edema,Lung Opacity\n1,1,-1\n2,0.0,\n3,,\n")
    assert read_labels(path) == {
        "1": {"edema": "present", "lung_opacity": "uncertain"},
        "2": {"edema": "absent"},
        "3": {},
    }


def test_another_encoding_is_a_value():
    frame = table(rows=2, image=["a", "b"], edema=["2", "9"])
    encoding = LabelEncoding(present=frozenset({"2"}), absent=frozenset({"9"}))
    columns = guess_columns(frame, columns={"labels": "edema"})
    assert row_labels(frame, columns, encoding=encoding) == [{"edema": "present"}, {"edema": "absent"}]


def test_a_categorical_column_is_exclusive_only_where_it_has_a_value():
    frame = table(rows=4, finding=["COVID-19, ARDS", "Pneumonia/Viral", "", "Unknown"])
    columns = guess_columns(frame, columns={"labels": "finding"})
    covid, viral, blank, unknown = row_labels(frame, columns)
    assert covid == {"covid_19": "present", "ards": "present", "pneumonia": "absent", "viral": "absent"}
    assert viral == {"covid_19": "absent", "ards": "absent", "pneumonia": "present", "viral": "present"}
    assert blank == unknown == {}


def test_labels_that_cannot_be_read(tmp_path):
    frame = table(rows=2, image=["a", "b"], edema=["1", "maybe so"], nodule=["1", "0"])
    columns = guess_columns(frame, columns={"labels": "edema+nodule"})
    with pytest.raises(BadTable, match=r"line 2 of column 'edema' is no label: a cell of 8 characters"):
        row_labels(frame, columns)
    with pytest.raises(BadTable, match=r"line 3 of file-\w+ contradicts an earlier row"):
        read_labels(write(tmp_path / "a.csv", "accession,edema\n1,1\n1,0\n"))
    with pytest.raises(BadTable, match=r"no column that names an image or a study"):
        read_labels(write(tmp_path / "b.csv", "who,edema\n1,1\n"))
    with pytest.raises(BadTable, match=r"table file-\w+ has no label column"):
        read_labels(write(tmp_path / "c.csv", "accession,who\n1,x y z\n"))


@pytest.mark.parametrize("header", ["x0,y0,x1,y1", "x_min,y_min,x_max,y_max", "x,y,width,height"])
def test_boxes(tmp_path, header):
    last = "20,40" if header.startswith("x,") else "30,60"
    path = write(
        tmp_path / "boxes.csv", f"image,label,{header}\na.png,Left Lung,10,20,{last}\nb.png,none,,,,\n"
    )
    assert read_boxes(path) == {"a.png": (Box("left_lung", 10.0, 20.0, 30.0, 60.0),)}


def test_boxes_that_cannot_be_read(tmp_path):
    def boxes(text):
        return read_boxes(write(tmp_path / "boxes.csv", text))

    with pytest.raises(BadTable, match=r"line 2 has a coordinate that is no number"):
        boxes("image,label,x0,y0,x1,y1\na,n,1,2,3,four\n")
    for cells in ("5,5,5,9", "0,0,nan,1", "0,0,inf,1"):
        with pytest.raises(BadTable, match=r"line 2 has an empty box"):
            boxes(f"image,label,x0,y0,x1,y1\na,n,{cells}\n")
    with pytest.raises(BadTable, match=r"table file-\w+ lacks coordinates"):
        boxes("image,label,x0,y0\na,n,1,2\n")
    with pytest.raises(BadTable, match=r"table file-\w+ lacks a label column"):
        boxes("image,x0,y0,x1,y1\na,1,2,3,4\n")


@given(st.text(max_size=20))
def test_finding_names_are_stable(label):
    assert finding_name(finding_name(label)) == finding_name(label)
