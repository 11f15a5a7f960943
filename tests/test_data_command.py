"""The commands that keep stores, by hand as their user would: each result is a store, or says why not."""

from __future__ import annotations

import csv
import json
import re
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from medvl.cli import main
from medvl.errors import UsageError
from medvl.phantoms.cxr import write_phantoms
from medvl.preprocess.pipeline import Tables, prepare, preview
from medvl.preprocess.rewriting import rewrite_store
from medvl.store import Store

KEY = bytes(range(32))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(folder, n=16, seed=1, size_px=64, workers=1)
    return folder


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("store") / "store"
    prepare(source, out, key=KEY, workers=1)
    return out


@pytest.fixture
def store(prepared, tmp_path) -> Path:
    """A copy that a test may change."""
    import shutil

    return Path(shutil.copytree(prepared, tmp_path / "store"))


def run(capsys, *words):
    status = main([str(word) for word in (*words, "--json")])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return status, json.loads(captured.out), captured.err


# --- prepare ----------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_be_paired_and_writes_nothing(source, tmp_path, capsys):
    out, details = tmp_path / "store", tmp_path / "pairs.csv"
    status, said, _ = run(capsys, "cxr", "prepare", source, out, "--dry-run", "--details", details)
    assert status == 0 and not out.exists()
    assert said["images"] == said["with_report"] == said["methods"]["accession"]
    rows = list(csv.DictReader(details.read_text().splitlines()))
    assert len([row for row in rows if row["status"] == "paired"]) == said["images"]
    assert stat.S_IMODE(details.stat().st_mode) == 0o600  # it names files


def test_what_a_dry_run_promises_is_what_prepare_does(source, prepared):
    pairs = preview(source, prepared.parent / "other")
    assert len(pairs.items) == len(Store(prepared))


def test_an_unknown_layout_is_named(source, tmp_path):
    with pytest.raises(UsageError, match=r"'mimic' is not the layout of a known data set.*mimic-cxr"):
        preview(source, tmp_path / "out", tables=Tables(layout="mimic"))


def test_labels_come_from_the_reports_where_the_source_has_none(source, prepared, tmp_path):
    import shutil

    bare = Path(shutil.copytree(source, tmp_path / "bare", ignore=shutil.ignore_patterns("labels.csv")))
    prepare(bare, tmp_path / "store", key=KEY, workers=1)
    with_table = {r.pixel_hash: r for r in Store(prepared).records}
    for record in Store(tmp_path / "store").records:
        assert record.labels == record.said and record.said
        assert with_table[record.pixel_hash].said == record.said
        assert with_table[record.pixel_hash].labels != record.said


def test_another_language_of_reports_is_chosen_and_noted(source, tmp_path, capsys):
    status, _, _ = run(
        capsys, "cxr", "prepare", source, tmp_path / "store", "--report", "parser=de-1", "--workers", "1"
    )
    store = Store(tmp_path / "store")
    assert status == 0 and store.report_spec.parser == "de-1"
    noted = [r for r in store.records if any("looks like language 'en'" in note for note in r.notes)]
    assert len(noted) > len(store) / 2


def test_a_bad_report_option_names_the_nearest(source, tmp_path, capsys):
    assert main(["cxr", "prepare", str(source), str(tmp_path / "s"), "--report", "abreviations=expand"]) == 2
    assert "no key 'abreviations'" in (err := capsys.readouterr().err) and "abbreviations" in err


# --- data -------------------------------------------------------------------------------------------


def test_check_names_what_is_wrong(store, tmp_path, capsys):
    status, said, _ = run(capsys, "data", "check", store, "--deep", "--details", tmp_path / "all.csv")
    assert status == 0 and said["worst"] in ("ok", "note") and said["deep"] is True
    assert (tmp_path / "all.csv").read_text().startswith("check,level,finding,record_id")


def test_select_append_and_a_page_for_each(store, tmp_path, capsys):
    frontal, lateral = tmp_path / "pa", tmp_path / "other"
    status, said, _ = run(capsys, "data", "select", store, frontal, "view == 'PA'")
    assert status == 0 and said["records"] == len(Store(frontal)) < len(Store(store))
    run(capsys, "data", "select", store, lateral, "view != 'PA'")
    assert "selected" in (frontal / "quality.html").read_text()
    (frontal / "private").mkdir()
    (lateral / "private").mkdir()
    for folder in (frontal, lateral):  # the user brings the key: without it nobody can tell one patient
        (folder / "private" / "key").write_bytes((store / "private" / "key").read_bytes())
    status, said, _ = run(capsys, "data", "append", frontal, lateral)
    assert status == 0 and said["records"] == len(Store(store))
    assert {r.record_id for r in Store(frontal).records} == {r.record_id for r in Store(store).records}


def test_a_store_that_was_appended_to_is_not_prepared_again(store, source, tmp_path, capsys):
    prepare(source, tmp_path / "more", key=KEY, workers=1)
    run(capsys, "data", "append", store, tmp_path / "more")
    with pytest.raises(UsageError, match=r"this store was appended to after it was prepared.*data append"):
        prepare(source, store, workers=1)


def test_reduce_and_export(store, tmp_path, capsys):
    status, said, _ = run(capsys, "data", "reduce", store, tmp_path / "less", "--details", tmp_path / "d.csv")
    assert status == 0 and len(said["kept"]) == len(Store(tmp_path / "less"))
    assert (tmp_path / "d.csv").read_text().startswith("outcome,")
    status, said, _ = run(capsys, "data", "export", store, tmp_path / "folder", "--to", "folder")
    assert status == 0 and said["records"] == len(Store(store))
    assert len(list((tmp_path / "folder").rglob("*.png"))) == len(Store(store))


def test_the_audit_of_a_store_is_clean_until_a_number_is_left(source, store, capsys):
    status, said, _ = run(capsys, "data", "audit", store, source)
    assert status == 0 and said["clean"] is True and sum(said["searched"].values()) > 20
    patient = next(csv.DictReader((source / "reports.csv").read_text().splitlines()))["patient_id"]
    (store / "notes.txt").write_text(f"seen: {patient}")
    status, said, _ = run(capsys, "data", "audit", store, source)
    assert status == 3 and said["clean"] is False
    assert patient not in json.dumps(said)  # a finding is named by kind and place


# --- rewrite ----------------------------------------------------------------------------------------


class Passive:
    """A small grammar in place of a language model; some of its sentences say something else."""

    digest = "passive-1"

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        self.asked += len(prompts)
        return [self.answer(json.loads(re.search(r"DATA: (\".*\")", prompt)[1])) for prompt in prompts]

    @staticmethod
    def answer(sentence: str) -> str:
        if sentence.startswith("No "):
            return f"There is {sentence[3:]}"  # the negation is lost: refused
        return f"{sentence[:-1]}, as seen here."


def test_a_rewritten_store_keeps_its_facts_and_its_originals(store, source):
    before = {record.record_id: record for record in Store(store).records}
    generator = Passive()
    summary = rewrite_store(store, generator)
    after = Store(store)
    changed = 0
    for record in after.records:
        assert record.retrieval == before[record.record_id].retrieval
        assert len(record.rewritten) == len(record.retrieval)
        for old, new in zip(record.retrieval, record.rewritten, strict=True):
            assert new in (old, f"{old[:-1]}, as seen here.")
            assert new == old or not old.startswith("No ")
            changed += new != old
    assert changed and summary.refused and summary.rewritten
    assert after.manifest["rewritten"]["generator"] == "passive-1"
    asked = generator.asked
    assert rewrite_store(store, generator) == summary and generator.asked == asked  # from the cache
    with pytest.raises(UsageError, match="this store was rewritten after it was prepared"):
        prepare(source, store, workers=1)


def test_a_rewritten_store_trains(store, tmp_path):
    from tinystore import SMALL

    from medvl import verbs

    rewrite_store(store, Passive())
    run_dir = tmp_path / "run"
    verbs.train(
        store, run_dir, overrides=[*SMALL, "data.view=rewritten", "data.batch=4", "schedule.epochs=1"]
    )
    assert "view: rewritten" in (run_dir / "recipe.yaml").read_text()


def test_a_dry_run_ends_with_status_3_where_prepare_would(source, tmp_path, capsys):
    import shutil

    messy = Path(shutil.copytree(source, tmp_path / "messy"))
    rows = (messy / "reports.csv").read_text().splitlines()
    first = rows[1].split(",")
    with (messy / "reports.csv").open("a") as stream:  # a second, different report of the same accession
        stream.write(",".join([*first[:3], "", "", "", "", "Another text."]) + "\n")
    status, said, _ = run(capsys, "cxr", "prepare", messy, tmp_path / "out", "--dry-run")
    assert status == 3 and said["unpaired"]["conflicting_reports"] >= 1
