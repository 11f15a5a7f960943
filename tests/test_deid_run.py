"""A folder goes in, a clean folder comes out: joined by one key, audited, resumable, without a canary."""

from __future__ import annotations

import csv
import datetime
import json
import logging
import os
import re
import stat
import tarfile
from pathlib import Path

import pandas as pd
import pytest
from deidcases import PLANTED, TRACES, as_bytes, plant_source, planted
from pydicom import dcmread

from medvl.errors import BadTable, UsageError, file_token
from medvl.preprocess.deid.audit import audit, collect_carriers
from medvl.preprocess.deid.files import FileTask, clean_files
from medvl.preprocess.deid.people import People
from medvl.preprocess.deid.profile import DEFAULT
from medvl.preprocess.deid.run import deidentify
from medvl.preprocess.deid.tables import clean_table
from medvl.preprocess.pseudonyms import Pseudonyms

KEY = bytes(range(32))
IDS = Pseudonyms(KEY)
CANARIES = (
    *TRACES,
    "OTHERMAN",
    "Igor",
    "MRNQ8822",
    "ACCQ990018",
    "CANARYQ",
    "617-555-0198",
    "Featherstone",
    "1931",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return plant_source(tmp_path_factory.mktemp("in") / "source")


@pytest.fixture(scope="module")
def done(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "clean"
    return deidentify(source, out, key=KEY, pixels="off", workers=1)


def shared_bytes(out):
    """Everything that may be shared: names and contents."""
    for path in sorted(out.rglob("*")):
        relative = path.relative_to(out)
        if relative.parts[0] != "private":
            yield str(relative).encode()
            if path.is_file():
                yield path.read_bytes()


def test_everything_is_cleaned_and_the_audit_is_clean(done):
    assert done.complete, done.lines()
    assert (done.dicom, done.tables, done.texts, done.patients) == (3, 1, 1, 2)
    assert (done.table_rows, done.rows_left_out) == (2, 0)
    assert done.audit.searched["uid"] >= 6 and done.audit.searched["name"] > 5
    assert done.lines()[0] == "3 DICOM files, 1 tables and 1 texts of 2 patients cleaned"
    assert "none left" in done.lines()[-1]


@pytest.mark.traps
def test_no_canary_is_in_anything_that_may_be_shared(done):
    everything = b"\n".join(shared_bytes(done.out)).lower()
    assert [canary for canary in CANARIES if canary.lower().encode() in everything] == []


def test_files_are_named_by_hashes(done):
    names = [path.relative_to(done.out).as_posix() for path in (done.out / "dicom").rglob("*.dcm")]
    assert all(re.fullmatch(r"dicom/[0-9a-f]{20}/[0-9a-f]{20}/[0-9a-f]{20}\.dcm", name) for name in names)
    assert {name.split("/")[1] for name in names} == {IDS.patient("MRNQ4711987"), IDS.patient("MRNQ8822")}


def test_headers_tables_and_texts_move_by_the_same_days(done):
    patient = IDS.patient("MRNQ4711987")
    dates = sorted(dcmread(path).StudyDate for path in (done.out / "dicom" / patient).rglob("*.dcm"))
    first, second = (datetime.datetime.strptime(date, "%Y%m%d") for date in dates)
    assert second - first == datetime.timedelta(days=45)  # 12 March to 26 April
    [table] = (done.out / "tables").iterdir()
    with table.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    [text] = (done.out / "text").iterdir()
    assert rows[0]["study_date"] == f"{first:%Y-%m-%d}"
    assert f"{first:%m/%d/%Y}" in rows[0]["report"]
    words = text.read_text("utf-8")
    assert f"seen on {first:%m/%d/%Y} at [hospital]" in words
    assert f"{first.day} {first:%B %Y}: nodule of 4.2 mm" in words
    assert words.startswith("[name], MRN [id], born ")


def test_table_rows_still_find_their_images(done):
    [table] = (done.out / "tables").iterdir()
    with table.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert set(rows[0]) == {"patient_id", "accession", "study_date", "sex", "age", "report", "image"}
    for row in rows:
        dataset = dcmread(done.out / row["image"])
        assert (row["patient_id"], row["accession"]) == (dataset.PatientID, dataset.AccessionNumber)
    assert [row["age"] for row in rows] == ["90", "45"]
    assert [row["sex"] for row in rows] == ["M", "F"]
    assert rows[0]["report"].startswith("FINDINGS: Mr. [name] has a 4.2 cm mass, as on ")
    assert rows[1]["report"] == "FINDINGS: [name] is well. Discussed with Dr. [name]."


def test_what_leads_back_is_readable_by_its_owner_alone(done):
    private = done.out / "private"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    for name in ("key", "mapping.csv"):
        assert stat.S_IMODE((private / name).stat().st_mode) == 0o600
    rows = (private / "mapping.csv").read_text("utf-8").splitlines()
    days = IDS.shift_days("MRNQ8822")
    assert f"patient,MRNQ8822,{IDS.patient('MRNQ8822')},{days}" in rows
    assert sum(row.startswith("file,") for row in rows) == 3


def test_the_page_and_the_json_say_the_same(done):
    told = json.loads((done.out / "audit.json").read_text("utf-8"))
    assert told == json.loads(json.dumps(done.to_json()))
    assert told["actions"]["(0010,0010) PatientName"] == {"pseudonym": 3}
    page = (done.out / "audit.html").read_text("utf-8")
    assert "Research use only" in page and "does not guarantee" in page
    assert "<script" not in page


def test_a_second_run_goes_on_and_changes_nothing(done, source):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in done.out.rglob("*.dcm")}
    again = deidentify(source, done.out, pixels="off", workers=1)
    assert again.complete and again.to_json() == done.to_json()
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in done.out.rglob("*.dcm")} == before


def test_an_interrupted_run_ends_with_the_same_bytes(done, source, tmp_path):
    out = tmp_path / "clean"

    def stop(count, total, step):
        if step == "cleaning" and count == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deidentify(source, out, key=KEY, pixels="off", workers=1, progress=stop)
    assert len(list(out.rglob("*.dcm"))) == 2
    deidentify(source, out, pixels="off", workers=1)
    assert list(shared_bytes(out)) == list(shared_bytes(done.out))


@pytest.mark.slow
def test_processes_give_the_same_bytes(done, source, tmp_path):
    deidentify(source, tmp_path / "clean", key=KEY, pixels="off", workers=2)
    assert list(shared_bytes(tmp_path / "clean")) == list(shared_bytes(done.out))


class Deadly(type(Path())):
    """A path that ends the process that asks for it."""

    def is_file(self) -> bool:
        os._exit(9)


@pytest.mark.slow
def test_a_file_that_kills_its_process_costs_one_file(source, tmp_path):
    paths = sorted(source.rglob("*.dcm"))
    tasks = [
        FileTask(path, kind(tmp_path / f"{i}.dcm"), tmp_path / f"{i}.json", KEY, "p", (), (), DEFAULT, "off")
        for i, (path, kind) in enumerate(zip(paths, (Path, Deadly, Path), strict=True))
    ]
    outcomes = dict(clean_files(tasks, workers=2))
    assert [outcomes[i].refused for i in range(3)] == ["", "WorkerCrash", ""]
    assert (tmp_path / "0.dcm").is_file() and (tmp_path / "2.dcm").is_file()


def test_what_cannot_be_cleaned_is_listed_and_never_copied(tmp_path, caplog):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "QUACKENBUSH.dcm").write_bytes(as_bytes(planted())[:900])
    (folder / "empty.dcm").write_bytes(b"")
    (folder / "scan.png").write_bytes(b"\x89PNG\r\n\x1a\nQUACKENBUSH")
    (folder / "letters").mkdir()
    (folder / "letters" / "letter.txt").write_text("Quackenbush is well.")
    (folder / "loose.csv").write_text("remark\nQuackenbush is well and will not come again today\n")
    (folder / "thumbs.db").write_bytes(b"QUACKENBUSH")
    with caplog.at_level(logging.DEBUG):
        summary = deidentify(folder, tmp_path / "out", pixels="off", workers=1)
    assert not summary.complete
    assert summary.refused["KindNotCleaned"] == 1 and summary.refused["NoPatient"] == 1
    assert summary.refused["BadTable"] == 1
    assert sum(summary.refused.values()) == 5 and summary.left_out["not an image, a table or a text"] == 1
    assert ("KindNotCleaned", file_token("scan.png")) in summary.refusals
    assert not list((tmp_path / "out").rglob("*.dcm"))
    assert b"quackenbush" not in b"".join(shared_bytes(tmp_path / "out")).lower()
    assert "quackenbush" not in caplog.text.lower()
    assert "quackenbush" not in "".join(summary.lines()).lower()


def test_two_pictures_of_one_uid_are_refused_and_copies_left_out(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.dcm").write_bytes(as_bytes(planted(study=1)))
    (folder / "b.dcm").write_bytes(as_bytes(planted(study=1)))
    other = planted(study=2)
    (folder / "c.dcm").write_bytes(as_bytes(other))
    other.PixelData = bytes(len(other.PixelData))
    (folder / "d.dcm").write_bytes(as_bytes(other))
    summary = deidentify(folder, tmp_path / "out", pixels="off", workers=1)
    assert summary.refused == {"SameUidDifferentContent": 2}
    assert summary.left_out == {"a copy of another file": 1}
    assert summary.dicom == 1


def test_rows_whose_patient_nobody_knows_are_left_out(tmp_path):
    table = tmp_path / "reports.csv"
    table.write_text(
        "patient_id,report\nP1,The lungs of Anna are clear and nothing else.\n,Whose are these lungs?\n"
    )
    clean = clean_table(table, ids=IDS, people=People())
    assert (clean.rows, clean.rows_left_out) == (1, 1)


def test_columns_that_are_not_understood_are_dropped(tmp_path):
    table = tmp_path / "reports.csv"
    table.write_text(
        "patient_id,ward,lucky_number,score,nickname,report,Pneumonia,mystery_id\n"
        "P1,north,99887766,3,Zeb,The lungs are clear on 12 March 2015 in all parts.,0,12\n"
        "P2,north,99887765,4.5,Igi,The lungs are clear since March 2015 in all parts.,1,13\n"
    )
    clean = clean_table(table, ids=IDS, people=People())
    header = clean.data.decode().splitlines()[0].split(",")
    # ward: a word that two patients share; score: small numbers; labels stay
    assert header == ["patient_id", "ward", "score", "report", "Pneumonia"]
    assert clean.columns["drop"] == 3
    assert clean.words == {"date": 2}


def test_a_parquet_table_stays_one(tmp_path):
    frame = pd.DataFrame({"patient_id": ["P1"], "report": ["Seen by Dr. Quackenbush on 03/12/2015 again."]})
    frame.to_parquet(tmp_path / "t.parquet")
    clean = clean_table(tmp_path / "t.parquet", ids=IDS, people=People())
    (tmp_path / "c.parquet").write_bytes(clean.data)
    assert pd.read_parquet(tmp_path / "c.parquet")["report"][0].startswith("Seen by Dr. [name] on ")


def test_a_table_without_a_patient_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("words\nThe lungs are clear and the heart is normal.\n")
    with pytest.raises(
        BadTable, match=r"no column of the table file-.* names a patient, .* name such a column"
    ):
        clean_table(tmp_path / "t.csv", ids=IDS, people=People())


def test_errors_of_a_call(source, tmp_path):
    with pytest.raises(
        UsageError, match=r"'blur' is no policy for burned-in text. Allowed: drop, keep, mask, off"
    ):
        deidentify(source, tmp_path / "x", pixels="blur")
    with pytest.raises(UsageError, match="workers is 0; allowed are whole numbers from 1"):
        deidentify(source, tmp_path / "x", workers=0)
    with pytest.raises(UsageError, match="the source is not a folder"):
        deidentify(tmp_path / "none", tmp_path / "x")
    with pytest.raises(UsageError, match="source and output lie inside one another"):
        deidentify(source, source / "clean")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_bytes(b"")
    with pytest.raises(
        UsageError, match="the output folder holds 1 files or folders that are not of such a run"
    ):
        deidentify(source, tmp_path / "full")


def test_other_options_or_another_key_do_not_go_on(done, source):
    with pytest.raises(UsageError, match=r"begun with another profile or another policy"):
        deidentify(source, done.out, pixels="keep")
    with pytest.raises(UsageError, match="not the one that this output folder was begun with"):
        deidentify(source, done.out, key=bytes(32), pixels="off")


def test_a_key_joins_two_runs(done, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "later.dcm").write_bytes(as_bytes(planted(study=2, date="20150501")))
    deidentify(folder, tmp_path / "out", key=KEY, pixels="off", workers=1)
    [later] = (tmp_path / "out").rglob("*.dcm")
    patient = IDS.patient("MRNQ4711987")
    before = {dcmread(path).StudyInstanceUID for path in (done.out / "dicom" / patient).rglob("*.dcm")}
    assert dcmread(later).PatientID == patient and dcmread(later).StudyInstanceUID in before


def planted_everywhere(folder, word):
    """Write a word into every kind of place that an audit searches."""
    dataset = planted()
    for element in list(dataset):
        if element.tag.group in (0x0010, 0x0011, 0x0008) or element.tag.group >= 0x6000:
            if element.keyword not in ("SOPClassUID", "SOPInstanceUID") and element.keyword != "PixelData":
                del dataset[element.tag]
    dataset.private_block(0x0013, "PLAIN", create=True).add_new(1, "LO", word)
    dataset.save_as(folder / "a.dcm")
    (folder / "t.csv").write_text(f"a,b\n1,{word}\n")
    (folder / "t.txt").write_text(f"about {word}.")
    (folder / "t.json").write_text(json.dumps({"x": [word]}))
    (folder / "t.html").write_text(f"<b>{word}</b>")
    (folder / f"{word}.bin").write_bytes(b"")
    pd.DataFrame({"c": [word]}).to_parquet(folder / "t.parquet")
    with tarfile.open(folder / "t.tar", "w") as archive:
        archive.add(folder / "t.txt", "1.txt")
        archive.add(folder / "t.html", f"{word}.x")


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("Quackenbush", "name"),
        ("MRNQ4711987", "id"),
        ("ACCQ990017", "id"),
        ("1.2.826.0.1.3680043.9.7777.1.1", "uid"),
        ("07/04/1931", "birth date"),
        ("1931-07-04", "birth date"),
        ("617-555-0199", "phone"),
        ("17 Quincunx Crescent", "address"),
        ("Quartzdale Infirmary", "institution"),
        ("Featherstone", "name"),
        ("PRIVATEQ1 Quackenbush", "private"),
    ],
)
def test_an_audit_finds_each_kind_in_each_place(word, kind, source, tmp_path):
    planted_everywhere(tmp_path, word.replace("/", "-") if kind != "birth date" else word.replace("/", "."))
    report = audit(collect_carriers(source), tmp_path)
    places = {finding.file for finding in report.findings if finding.kind == kind}
    files = ("a.dcm", "t.csv", "t.txt", "t.json", "t.html", "t.parquet", "t.tar")
    missing = [name for name in files if file_token(name) not in places]
    assert missing == []
    assert not report.clean
    told = json.dumps(report.to_json()) + "".join(report.lines())
    assert "quackenbush" not in told.lower() and "MRNQ" not in told


def test_an_audit_finds_a_date_that_did_not_move(done, source, tmp_path):
    carriers = collect_carriers(source, ids=IDS)
    dataset = planted()
    for element in list(dataset):
        if element.tag.group in (0x0010, 0x0011, 0x0008) and element.keyword != "SOPClassUID":
            del dataset[element.tag]
    dataset.PatientID, dataset.SOPInstanceUID = IDS.patient("MRNQ4711987"), "1.2"
    dataset.StudyDate = "20150312"
    dataset.save_as(tmp_path / "a.dcm")
    report = audit(carriers, tmp_path)
    assert ("date", "(0008,0020)") in {(finding.kind, finding.place) for finding in report.findings}


def test_words_that_mean_too_little_are_listed_as_not_searched(source):
    carriers = collect_carriers(source)
    assert any("ordinary words" in reason for reason in carriers.not_searched())
    assert any("whose it is only the key tells" in reason for reason in carriers.not_searched())


def test_an_unreadable_file_is_no_clean_audit(source, tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    report = audit(collect_carriers(source), tmp_path)
    assert report.unreadable == (file_token("t.parquet"),) and not report.clean


@pytest.mark.data
@pytest.mark.traps
def test_a_real_file_with_a_birth_date_and_a_second_id(shared_data, tmp_path):
    originals = shared_data / "cxr" / "dicom"
    summary = deidentify(originals, tmp_path / "out", pixels="off", workers=1)
    assert summary.complete, summary.lines()
    for path in (tmp_path / "out").rglob("*.dcm"):
        dataset = dcmread(path)
        assert not dataset.PatientBirthDate and "OtherPatientIDs" not in dataset
    births = {
        str(dcmread(path).PatientBirthDate)
        for path in originals.rglob("*")
        if path.is_file() and path.suffix != ".csv"
    }
    assert any(births)
    everything = b"".join(shared_bytes(tmp_path / "out"))
    assert not [birth for birth in births if birth and birth.encode() in everything]


def test_nothing_is_written_outside_the_output(source, tmp_path, monkeypatch):
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    before = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    deidentify(source, tmp_path / "out", pixels="off", workers=1)
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == before
    assert list(scratch.iterdir()) == []
    assert PLANTED["PatientID"] not in "".join(str(path) for path in (tmp_path / "out").rglob("*"))
