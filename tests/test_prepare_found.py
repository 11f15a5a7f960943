"""prepare accounts for everything it found: real radiographs, and what it had to leave out."""

from __future__ import annotations

import csv
import zipfile

import numpy as np
import pydicom
import pytest
from PIL import Image as Pillow

import medvl
from medvl.cli import main
from medvl.preprocess.pipeline import prepare
from medvl.preprocess.pseudonyms import Pseudonyms
from medvl.store import Store

KEY = bytes(range(32))


def test_what_is_refused_is_named_in_private_and_ends_with_status_3(tmp_path, capsys):
    source = tmp_path / "source"
    source.mkdir()
    for number, name in enumerate(("a", "b")):
        Pillow.fromarray(np.full((20, 20), 40 * number, np.uint8)).save(source / f"{name}.png")
    rows = ("a.png,1,Clear lungs.", "a.png,1,Left effusion.", "b.png,2,No effusion.", "c.png,3,Gone.")
    table = "\n".join(("image,patient,report", *rows)) + "\n"
    (source / "reports.csv").write_text(table)
    status = main(["cxr", "prepare", str(source), str(tmp_path / "store"), "--workers", "1", "--quiet"])
    assert status == 3 and len(Store(tmp_path / "store")) == 1
    with (tmp_path / "store" / "private" / "unpaired.csv").open(newline="") as stream:
        rows = {(row["reason"], row["path"], row["line"]) for row in csv.DictReader(stream)}
    assert ("conflicting_reports", "a.png") in {(reason, path) for reason, path, _ in rows}
    assert {line for reason, _, line in rows if reason == "report_without_image"} == {"5"}
    assert "a.png" not in capsys.readouterr().out


@pytest.mark.data
def test_real_radiographs_are_all_accounted_for(shared_data, tmp_path):
    source = shared_data / "cxr" / "clinical_notes"
    summary = prepare(source, tmp_path / "s", key=KEY, workers=2)
    with (source / "images.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert summary.files == summary.records + summary.failed == len(rows) == 274
    assert summary.failed == 0 and summary.unpaired == {"image_without_report": 75}
    assert summary.columns["patient"] == "group_id"
    ids = Pseudonyms(KEY)
    by_id = {record.record_id: record for record in Store(tmp_path / "s").records}
    for row in rows:
        record = by_id[ids.record(row["image"])]
        assert record.patient_id == ids.patient(row["group_id"])
        assert bool(record.report) == bool(row["text"].strip())
        assert record.source_shape == (int(row["height"]), int(row["width"]))
    assert sum(len(record.boxes) for record in by_id.values()) == 542
    splits = {}
    for record in by_id.values():
        splits.setdefault(record.patient_id, set()).add(record.split)
    assert all(len(found) == 1 for found in splits.values())


def test_an_archive_with_messages_becomes_a_store_that_names_nobody(tmp_path):
    films = tmp_path / "films"
    medvl.phantom(films, n=3, seed=3, size_px=64, workers=1)
    header = [pydicom.dcmread(path) for path in sorted(films.rglob("*.dcm"))]
    messages = [
        f"MSH|^~\\&|R|H|A|H|202401020930||ORU^R01|1|P|2.5\rPID|||{film.PatientID}||DOEMARKER^JOHN\r"
        f"OBR|1||{film.AccessionNumber}||||20240102\r"
        f"OBX|1|TX|||FINDINGS: Mr. Doemarker has clear lungs.||||||F\r"
        for film in {film.StudyInstanceUID: film for film in header}.values()
    ]
    archive = tmp_path / "export.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for number, path in enumerate(sorted(films.rglob("*.dcm"))):
            out.write(path, f"export/{number}.dcm")
        out.writestr("export/feed.hl7", "".join(messages))
    store = tmp_path / "store"
    summary = prepare(archive, store, key=KEY, workers=1)
    records = Store(store).records
    assert summary.failed == 0 and len(records) == len(header)
    assert all("clear lungs" in record.report for record in records)
    for path in store.rglob("*"):
        if path.is_file() and "private" not in path.relative_to(store).parts:
            assert b"doemarker" not in path.read_bytes().lower()
    again = prepare(archive, store, key=KEY, workers=1)
    assert again.records == summary.records and again.resumed == len(header)


def test_a_private_table_holds_no_formula(tmp_path):
    from medvl.preprocess.pseudonyms import write_sources

    write_sources(tmp_path, [("r1", "t1", "=HYPERLINK(1).png"), ("r2", "t2", "plain.png")])
    lines = (tmp_path / "sources.csv").read_text().splitlines()
    assert lines == ["item,token,path", "r1,t1,'=HYPERLINK(1).png", "r2,t2,plain.png"]
