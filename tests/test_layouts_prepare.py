"""Public layouts from folder to store: each picture becomes a record with text, labels and official split."""

from __future__ import annotations

from collections import Counter

import layouttrees
import pytest
from layoutfiles import grey, text

from medvl.errors import UsageError
from medvl.preprocess.pipeline import Tables, prepare
from medvl.preprocess.sources.layouts import pair_layout
from medvl.store import Store


def made(tmp_path, tree: str, **options):
    """Write a tree, prepare it without a word about its layout, and return summary and records."""
    _, write = layouttrees.TREES[tree]
    root = write(tmp_path / "source")
    summary = prepare(root, tmp_path / "store", workers=1, key=b"k" * 32, **options)
    return summary, list(Store(tmp_path / "store").records)


@pytest.mark.parametrize("tree", ["iu_xray", "mimic_cxr", "mimic_cxr_jpg", "chexpert_plus", "padchest"])
def test_the_store_holds_what_was_paired(tmp_path, tree):
    summary, records = made(tmp_path, tree)
    items = pair_layout(tmp_path / "source", "auto").items
    assert summary.failed == 0
    assert summary.records == len(items)
    assert summary.patients == len({item.patient for item in items})
    assert summary.studies == len({item.study for item in items})
    # The same texts as often, up to the names and days that the cleaning takes out of them.
    assert Counter(bool(record.report) for record in records) == Counter(bool(item.report) for item in items)
    assert Counter(record.view for record in records) == Counter(item.view for item in items)
    told = Counter(item.split for item in items if item.split)
    assert all(summary.splits[split] >= count for split, count in told.items())
    assert len({record.pixel_hash for record in records}) == len(items)
    assert all(record.source_shape == (48, 40) for record in records)


def test_the_summary_says_what_was_recognised_and_in_which_language_the_reports_are(tmp_path):
    summary, _ = made(tmp_path, "padchest")
    told = "\n".join(summary.lines())
    assert "note: read as the public data set padchest; --layout none pairs by file and table" in told
    assert "note: the reports are in Spanish: read them with --report parser=es-1" in told
    assert f"each file and row by its name: {tmp_path / 'store' / 'private' / 'unpaired.csv'}" in told


def test_reports_in_another_language_than_their_rules_are_counted(tmp_path):
    source = tmp_path / "source"
    befund = "Die Lungen sind frei und gut belüftet. Das Herz ist nicht vergrößert."
    for name in ("1", "2"):
        grey(source / f"{name}.png")
    text(source / "reports.csv", f"image,report\n1.png,{befund}\n2.png,The lungs are clear.\n")
    summary = prepare(source, tmp_path / "store", workers=1)
    told = "1 × report: looks like language 'de', read by the rules en-1; --report parser=NAME reads another"
    assert any(note.startswith(told) for note in summary.notes)


def test_sixteen_bit_png_files_are_read_in_full_depth(tmp_path):
    _, records = made(tmp_path, "padchest")
    pixels = [Store(tmp_path / "store").pixels(record) for record in records]
    # A ramp over 16 bits that is cut to its upper byte, or clipped at 255, has few levels or only one.
    assert all(len(set(picture.ravel().tolist())) > 100 for picture in pixels)


def test_labels_and_official_split_of_mimic_reach_the_records(tmp_path):
    _, records = made(tmp_path, "mimic_cxr_jpg")
    by_study = {record.study_id: record for record in records}
    edema = [record for record in by_study.values() if record.labels.get("edema") == "uncertain"]
    assert [(record.split, record.labels["pleural_effusion"]) for record in edema] == [("val", "present")]
    assert Counter(record.split for record in records)["val"] >= 3


def test_the_layout_can_be_named_and_must_be_of_the_modality(tmp_path):
    root = layouttrees.ct_rate(tmp_path / "source")
    with pytest.raises(UsageError, match="ct-rate, a data set of modality 'ct'; this is 'cxr'"):
        prepare(root, tmp_path / "store", workers=1)
    with pytest.raises(UsageError, match="'ct-rat' is not the layout"):
        prepare(root, tmp_path / "store", tables=Tables(layout="ct-rat"), workers=1)
