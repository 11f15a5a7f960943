"""Reading reports as cases: tables, folders, stores; patients and equal reports stay in one split."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import pytest
from tinystore import write_tiny

from medvl.errors import BadTable, UsageError
from medvl.preprocess.reports.corpus import read_corpus
from medvl.specs.base import text_hash


def table(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows(n: int) -> list[dict[str, str]]:
    return [
        {
            "report_id": f"r{i}",
            "patient_id": f"p{i // 2}",
            "indication": "Cough.",
            "findings": f"There is a {i + 1} mm nodule. XXXX in the base.",
            "impression": "No effusion." if i % 3 else "Small effusion.",
        }
        for i in range(n)
    ]


def test_sections_and_labels_of_a_table(tmp_path):
    cases = read_corpus(table(tmp_path / "t.csv", rows(4)))
    assert len(cases) == 4
    first = cases[0]
    assert first.findings[0] == "There is a 1 mm nodule."
    assert first.impression == ("Small effusion.",)
    assert first.sentences == first.findings + first.impression  # the indication says nothing of the picture
    assert "XXXX" not in " ".join(first.sentences)
    assert first.labels["pleural_effusion"] == "present"
    assert cases[1].labels["pleural_effusion"] == "absent"
    assert "p0" not in first.patient_id.split("-")[0] and first.patient_id == cases[1].patient_id


def test_splits_hold_patients_and_equal_reports_together(tmp_path):
    lines = rows(120)
    for i in range(0, 120, 7):
        lines[i] |= {"findings": "Clear lungs.", "impression": "Normal chest."}
    cases = read_corpus(table(tmp_path / "t.csv", lines), seed=3, split=(0.5, 0.2, 0.3))
    by_patient, by_text = defaultdict(set), defaultdict(set)
    for case in cases:
        by_patient[case.patient_id].add(case.split)
        by_text[text_hash(" ".join(case.sentences))].add(case.split)
    assert all(len(splits) == 1 for splits in (*by_patient.values(), *by_text.values()))
    assert {case.split for case in cases} == {"train", "val", "test"}
    again = read_corpus(tmp_path / "t.csv", seed=3, split=(0.5, 0.2, 0.3))
    assert again == cases
    assert [case.split for case in read_corpus(tmp_path / "t.csv", seed=4, split=(0.5, 0.2, 0.3))] != [
        case.split for case in cases
    ]


def test_a_table_keeps_its_own_split_where_it_has_one_for_every_report(tmp_path):
    lines = [line | {"split": ("train", "valid", "test")[i // 2 % 3]} for i, line in enumerate(rows(12))]
    lines[7]["patient_id"] = "p2"  # a training report of a patient who is in test
    lines[6] |= {
        key: lines[4][key] for key in ("indication", "findings", "impression")
    }  # equal to one in test
    cases = read_corpus(table(tmp_path / "t.csv", lines))
    assert [case.split for case in cases] == ["train"] * 2 + (["val"] * 2 + ["test"] * 2) * 2
    lines[0]["split"] = ""
    assert [case.split for case in read_corpus(table(tmp_path / "u.csv", lines))] == [
        case.split
        for case in read_corpus(table(tmp_path / "v.csv", [line | {"split": ""} for line in lines]))
    ]


def test_label_columns_win_over_what_the_report_says(tmp_path):
    lines = [
        {
            "report_id": f"r{i}",
            "text": f"Nodule of {i} mm. No emphysema.",
            "emphysema": "1",
            "lung_nodule": "0",
        }
        for i in range(3)
    ]
    cases = read_corpus(table(tmp_path / "t.csv", lines))
    assert cases[0].labels == {"emphysema": "present", "lung_nodule": "absent"}


def test_categories_are_no_labels(tmp_path):
    lines = [line | {"problems": "normal"} for line in rows(6)]
    assert "normal" not in read_corpus(table(tmp_path / "t.csv", lines))[0].labels


def test_quotation_marks_part_findings_and_conclusions(tmp_path):
    text = 'Trachea is open. No effusion was seen. " Nodule in the right lung." Emphysema.'
    [case] = read_corpus(table(tmp_path / "t.csv", [{"id": "1", "text": text}]))
    assert case.findings == ("Trachea is open.", "No effusion was seen.")
    assert case.impression == ("Nodule in the right lung.", "Emphysema.")


@pytest.mark.parametrize(
    ("words", "finding"),
    [
        ("CT of the chest. Mosaic attenuation.", "mosaic_attenuation_pattern"),
        ("Frontal radiograph of the chest. Pulmonary edema.", "edema"),
    ],
)
def test_the_vocabulary_is_told_by_words(tmp_path, words, finding):
    [case] = read_corpus(table(tmp_path / "t.csv", [{"id": "1", "text": words}]))
    assert finding in case.labels


def test_a_folder_of_text_files(tmp_path):
    for patient in ("a", "b"):
        (tmp_path / patient).mkdir()
        for number in (1, 2):
            text = f"FINDINGS: A {number} mm nodule of {patient}. IMPRESSION: Nodule."
            (tmp_path / patient / f"{number}.txt").write_text(text)
    cases = read_corpus(tmp_path)
    assert len(cases) == 4 and len({case.patient_id for case in cases}) == 2
    assert cases[0].impression == ("Nodule.",)


def test_a_store_keeps_its_split_and_training_shares_no_report_with_it(tmp_path):
    store = write_tiny(tmp_path / "store", own_words=False)  # three different reports in all splits
    cases = read_corpus(store)
    assert {case.split for case in cases} == {"val", "test"}
    own = read_corpus(write_tiny(tmp_path / "own"))
    assert len(own) == 48 and {case.split for case in own} == {"train", "val", "test"}


def test_a_limit_takes_some(tmp_path):
    path = table(tmp_path / "t.csv", rows(30))
    some = read_corpus(path, limit=10)
    whole = read_corpus(path)
    assert len(some) == 10 and all(case in whole for case in some)


def test_columns_can_be_named(tmp_path):
    path = table(tmp_path / "t.csv", [{"a": "x", "b": "Left effusion."}, {"a": "x", "b": "No effusion."}])
    cases = read_corpus(path, columns={"text": "b", "patient": "a"})
    assert len({case.patient_id for case in cases}) == 1


def test_refusals(tmp_path):
    path = table(tmp_path / "t.csv", rows(4))
    with pytest.raises(UsageError, match="unknown vocabulary 'mri'"):
        read_corpus(path, vocabulary="mri")
    with pytest.raises(UsageError, match="limit is 0"):
        read_corpus(path, limit=0)
    with pytest.raises(UsageError, match="does not exist"):
        read_corpus(tmp_path / "nothing")
    with pytest.raises(UsageError, match="no report with a sentence"):
        read_corpus(table(tmp_path / "u.csv", [{"id": "1", "text": "XXXX XXXX."}]))
    with pytest.raises(BadTable, match="no column of reports"):
        read_corpus(table(tmp_path / "v.csv", [{"id": "1", "age": "7"}]))


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "n", "both", "labelled"),
    [
        # 21 of 2,888 rows have no words; one CT report says nothing of a picture
        ("iu_xray", 2867, 2504, "pleural_effusion"),
        ("ct_chest_labelled", 752, 553, "mosaic_attenuation_pattern"),
    ],
)
def test_real_sets_read_with_the_path_alone(shared_data, name, n, both, labelled):
    cases = read_corpus(shared_data / "reports" / name)
    assert len(cases) == n
    assert sum(bool(case.findings and case.impression) for case in cases) == both
    assert any(labelled in case.labels for case in cases)
    shares = [sum(case.split == split for case in cases) / n for split in ("train", "val", "test")]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.03)
    assert not any("XXXX" in sentence for case in cases for sentence in case.sentences)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "finding"),
    [("iu_xray", "pleural_effusion"), ("ct_chest_labelled", "mosaic_attenuation_pattern")],
)
def test_some_real_reports_read_with_the_path_alone(shared_data, name, finding):
    cases = read_corpus(shared_data / "reports" / name, limit=25)
    assert len(cases) == 25 and any(finding in case.labels for case in cases)
    assert sum(bool(case.findings and case.impression) for case in cases) > 12
    assert not any("XXXX" in sentence for case in cases for sentence in case.sentences)
