"""The checks of a whole store: every fault found by name, none invented, equal to a loop over the records."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_curation import picture, record, write_store

from medvl.notice import NOTICE
from medvl.preprocess.checks import check_records, check_store
from medvl.preprocess.sides import box_against_words, side_of_view, side_of_words
from medvl.records import IS_PRESENT, Box
from medvl.store import Store, index_bytes, index_digest, write_atomic


def found(records, **options):
    return {c.name: c.groups for c in check_records(records, **options) if c.count}


def ids(*numbers):
    return tuple(record(n).record_id for n in numbers)


# --- against a loop over the records ------------------------------------------------------------


def loop_oracle(records):
    """The questions of the docstrings, answered by dictionaries and loops."""

    def groups(key, of=records):
        made = defaultdict(list)
        for r in of:
            made[getattr(r, key)].append(r)
        return [made[k] for k in sorted(made)]

    def differ(made, key):
        return [g for g in made if len({getattr(r, key) for r in g}) > 1]

    def conflict(group):
        states = {(f, IS_PRESENT.get(s)) for r in group for f, s in r.labels.items()}
        return any((f, True) in states and (f, False) in states for f, _ in states)

    texts = [r for r in records if r.text_hash]
    twins = [g for g in groups("pixel_hash") if len(g) > 1]
    pixels, text, study = groups("pixel_hash"), groups("text_hash", texts), groups("study_id")
    opposite = [
        [r]
        for r in records
        if any(
            None is not IS_PRESENT.get(s) is not IS_PRESENT.get(r.said.get(f)) is not None
            for f, s in r.labels.items()
        )
    ]
    result = {
        "patient-leak": differ(groups("patient_id"), "split"),
        "study-leak": differ(study, "split"),
        "pixel-leak": differ(pixels, "split"),
        "report-leak": differ(text, "split"),
        "equal-pixels": twins,
        "pixel-patients": differ(twins, "patient_id"),
        "report-patients": differ(text, "patient_id"),
        "study-reports": differ(study, "text_hash"),
        "study-patients": differ(study, "patient_id"),
        "label-conflict": [g for g in [*study, *twins] if conflict(g)],
        "label-report": opposite,
        "no-report": [[r] for r in records if not r.text_hash],
        "no-sentence": [[r] for r in texts if not r.retrieval],
    }
    return {k: tuple(tuple(r.record_id for r in g) for g in v) for k, v in result.items() if v}


STATES = st.sampled_from(["present", "absent", "uncertain", "unchanged"])
MARKS = st.fixed_dictionaries(
    {
        "study_id": st.sampled_from("ab"),
        "patient_id": st.sampled_from("pq"),
        "split": st.sampled_from(["train", "val", "test"]),
        "pixel_hash": st.sampled_from("xyz"),
        "text_hash": st.sampled_from(["", "t", "u"]),
        "retrieval": st.sampled_from([(), ("The lungs are clear.",)]),
        "labels": st.dictionaries(st.sampled_from(["nodule", "a b", "edema"]), STATES, max_size=3),
        "said": st.dictionaries(st.sampled_from(["nodule", "a b", "mass"]), STATES, max_size=3),
    }
)


@settings(max_examples=150, deadline=None)
@given(st.lists(MARKS, max_size=7))
def test_checks_equal_the_loop_oracle(marks):
    records = [record(n, **values) for n, values in enumerate(marks)]
    ours = found(records, shown=None)
    assert ours == loop_oracle(records)


# --- single questions ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "empty"),
    [
        (("Normal.",), 0),
        (("N/A", "___"), 1),
        (("XXXX", "[redacted]"), 1),
        (("1.", "-"), 1),
        (("肺野は明瞭",), 0),
    ],
)
def test_reports_without_words_are_found(lines, empty):
    assert len(found([record(0, retrieval=lines)]).get("near-empty", ())) == empty


def test_another_spec_is_found_by_the_manifest_or_by_number(tmp_path):
    records = [record(n, pixel_digest="old" if n == 2 else "new") for n in range(5)]
    assert found(records)["mixed-specs"] == (ids(2),)
    store = write_store(tmp_path / "s", range(3), changes={1: {"report_digest": "other"}})
    check = next(c for c in check_store(store).checks if c.name == "mixed-specs")
    assert (check.level, check.groups) == ("problem", (ids(1),))


def test_an_id_that_is_there_twice_is_found():
    assert found([record(0), record(1), record(0)])["equal-ids"] == (ids(0, 0),)


def sided(number, view, laterality, **changes):
    return record(number, view=view, laterality=laterality, **changes)


@pytest.mark.parametrize(
    ("records", "groups"),
    [
        ([sided(0, "LL", "R")], (ids(0),)),
        ([sided(0, "LL", "L"), sided(1, "RL", "R"), sided(2, "LL", None), sided(3, "PA", "R")], ()),
        ([sided(0, "PA", "L", study_id="s"), sided(1, "AP", "R", study_id="s")], (ids(0, 1),)),
        ([sided(0, "PA", "L", study_id="s"), sided(1, "LATERAL", "R", study_id="s")], ()),
        ([sided(0, "PA", "B", study_id="s"), sided(1, "AP", "R", study_id="s")], ()),
        ([sided(0, "PA", "L"), sided(1, "AP", "R")], ()),
    ],
)
def test_columns_that_contradict_each_other(records, groups):
    assert found(records).get("side-conflict", ()) == groups


def test_one_picture_with_two_sides():
    twins = [sided(0, "OBLIQUE", "L", pixel_hash="x"), sided(1, "OBLIQUE", "R", pixel_hash="x")]
    assert found(twins)["side-conflict"] == (ids(0, 1),)


LEFT_OF_IMAGE, RIGHT_OF_IMAGE, MIDDLE = (1.0, 0.0, 5.0, 9.0), (18.0, 0.0, 23.0, 9.0), (9.0, 0.0, 16.0, 9.0)


@pytest.mark.parametrize(
    ("places", "sentences", "view", "conflict"),
    [
        # the patient's left is the right of the image
        ([LEFT_OF_IMAGE], ["A nodule in the left lung."], "PA", True),
        ([RIGHT_OF_IMAGE], ["A nodule in the left lung."], "AP", False),
        ([RIGHT_OF_IMAGE], ["Nodules in the RIGHT upper lobe.", "Left effusion."], "PA", True),
        ([LEFT_OF_IMAGE], ["A nodule in the left lung."], "LATERAL", False),
        ([LEFT_OF_IMAGE], ["A nodule in the left lung."], None, False),
        ([LEFT_OF_IMAGE, RIGHT_OF_IMAGE], ["A nodule in the left lung."], "PA", False),
        ([MIDDLE], ["A nodule in the left lung."], "PA", False),
        ([LEFT_OF_IMAGE], ["A nodule in the left lung.", "A nodule in the right lung."], "PA", False),
        ([LEFT_OF_IMAGE], ["A nodule in the left lung.", "The nodule is 4 mm."], "PA", False),
        ([LEFT_OF_IMAGE], ["No nodule in the left lung."], "PA", False),
        ([LEFT_OF_IMAGE], ["Bilateral nodules, left more than right."], "PA", False),
        ([LEFT_OF_IMAGE], ["Effusion on the left."], "PA", False),
        ([LEFT_OF_IMAGE], ["Micronodules in the left lung."], "PA", False),
        ([LEFT_OF_IMAGE], [], "PA", False),
    ],
)
def test_a_box_on_the_side_that_the_report_does_not_mean(places, sentences, view, conflict):
    boxes = tuple(Box("nodule", *place) for place in places)
    groups = found([record(0, boxes=boxes, retrieval=tuple(sentences), view=view)]).get("box-side", ())
    assert groups == ((ids(0),) if conflict else ())


def test_labels_are_matched_as_words():
    box = {"label": "pleural_effusion", "x0": 0, "x1": 3}
    assert box_against_words([box], ["Left pleural effusions."], 24)
    assert not box_against_words([box], ["Left pleura, effusion."], 24)
    assert (side_of_view("rl"), side_of_view(None)) == ("R", None)
    assert (side_of_words("Rt. base"), side_of_words("Both sides, left worse")) == ("R", None)


# --- a store ------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path / "store", range(9))


def test_a_sound_store_has_no_finding(store):
    report = check_store(store, deep=True)
    assert report.worst == "ok" and {c.level for c in report.checks} == {"ok"}
    assert report.records == 9 and report.deep
    names = [c.name for c in report.checks]
    assert len(set(names)) == len(names) == 21
    assert report.lines() == ["9 records, 21 checks, 0 with findings", NOTICE]
    assert report.table() == "check,level,finding,record_id\n"


def test_a_store_and_its_records_say_the_same(tmp_path):
    split = record(0).split
    changes = {
        1: {"split": "test" if split != "test" else "train"},
        5: {"text_hash": ""},
        6: {"retrieval": ()},
    }
    store = write_store(tmp_path / "s", range(9), changes=changes)
    assert list(check_store(store).checks[:18]) == check_records(store.records)


def test_missing_and_cut_shards_name_their_records(store):
    (store.path / "shards/000001.tar").unlink()
    last = store.path / "shards/000002.tar"
    last.write_bytes(last.read_bytes()[:700])
    (store.path / "shards/000007.tar").touch()
    report = check_store(Store(store.path))
    checks = {c.name: c for c in report.checks}
    lost = {r.record_id for r in store.records if r.shard != "000000.tar"}
    assert checks["missing-shard"].count == 2 and report.worst == "problem"
    assert {name for group in checks["missing-shard"].groups for name in group} == lost
    assert checks["stray-shard"].groups == (("000007.tar",),)


def test_a_deep_check_reads_every_payload(store):
    hurt = store.records[4]
    shard = store.path / "shards" / hurt.shard
    data = bytearray(shard.read_bytes())
    data[hurt.offset + hurt.size // 2] ^= 1
    shard.write_bytes(data)
    assert check_store(store).worst == "ok"  # its length is right
    seen = []
    report = check_store(store, deep=True, progress=lambda *args: seen.append(args))
    assert report.checks[-1].groups == ((hurt.record_id,),) and report.worst == "problem"
    assert seen[-1] == (9, 9, "reading payloads")


def test_a_deep_check_finds_pixels_that_are_not_those_of_the_hash(tmp_path):
    store = write_store(tmp_path / "s", range(3), changes={2: {"pixel_hash": "0" * 24}})
    assert check_store(store, deep=True).checks[-1].groups == (ids(2),)


def test_the_report_names_some_and_gives_all_on_demand(tmp_path):
    numbers = range(30)
    store = write_store(tmp_path / "s", numbers, changes={n: {"text_hash": ""} for n in numbers})
    some, every = check_store(store), check_store(store, shown=None)
    check = {
        name: next(c for c in r.checks if c.name == "no-report") for name, r in (("s", some), ("e", every))
    }
    assert check["s"].count == check["e"].count == 30
    assert len(check["s"].groups) == 12 and len(check["e"].groups) == 30
    for report in (some, every):
        assert "    … and 18 more" in report.lines()
    rows = list(csv.DictReader(io.StringIO(every.table())))
    assert {row["record_id"] for row in rows if row["check"] == "no-report"} == set(ids(*numbers))
    values = json.loads(json.dumps(every.to_json()))
    assert values["worst"] == "note" and values["notice"] == NOTICE and values["records"] == 30


def test_problems_come_first(tmp_path):
    other = {"train": "test", "val": "train", "test": "val"}
    changes = {0: {"split": other[record(0).split]}, 4: {"text_hash": ""}}
    store = write_store(tmp_path / "s", range(6), changes=changes)
    lines = check_store(store).lines()
    levels = [line.split(":")[0] for line in lines if line.startswith(("problem", "note"))]
    assert levels == sorted(levels, reverse=True) and {"problem", "note"} == set(levels)
    assert any(record(0).record_id in line and record(1).record_id in line for line in lines)


def test_an_empty_store_is_no_error(tmp_path):
    store = write_store(tmp_path / "s", range(1))
    index = index_bytes([])
    write_atomic(store.path / "index.parquet", index)
    manifest = store.manifest | {"index": {"blake2b": index_digest(index)}}
    write_atomic(store.path / "store.json", json.dumps(manifest).encode())
    report = check_store(Store(store.path), deep=True)
    assert report.records == 0 and report.worst == "note"  # the shard that nobody names
    assert check_records([]) == [dataclasses.replace(c) for c in report.checks[:18]]


def test_a_surrogate_in_a_report_is_no_error():
    assert found([record(0, retrieval=("\ud800 opacity",), report="\ud800")]) == {}


def test_pixels_are_not_read_unless_asked(store, monkeypatch):
    monkeypatch.setattr(Store, "pixels", lambda *_: pytest.fail("a payload was read"))
    assert check_store(store).worst == "ok"
    assert np.array_equal(picture(1), picture(1))
