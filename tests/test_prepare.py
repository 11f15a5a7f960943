"""prepare: each image once, the same bytes whatever the workers, no patient named, typed refusals."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from medvl.errors import BadTable, UsageError, file_token
from medvl.preprocess.chunks import Chunk, Task, read_part
from medvl.preprocess.lock import hold
from medvl.preprocess.pipeline import prepare
from medvl.preprocess.pseudonyms import Pseudonyms, keep_key
from medvl.specs import PixelSpec, ReportSpec, text_hash
from medvl.splits import split_of
from medvl.store import Store

KEY = bytes(range(32))
PHI = ("CANARYNAME", "MRN-CANARY", "555-0199", "19400101")


def public_files(out: Path) -> list[Path]:
    return [p for p in out.rglob("*") if p.is_file() and "private" not in p.relative_to(out).parts]


def tree_hash(out: Path) -> str:
    """Hash every path and byte of a store outside its private folder."""
    digest = hashlib.sha256()
    for path in sorted(
        p for p in out.rglob("*") if p.is_file() and "private" not in p.relative_to(out).parts
    ):
        digest.update(path.relative_to(out).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def write_dicom(path: Path, number: int, *, rows: int = 48, columns: int = 64, **elements) -> None:
    dataset = Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    dataset.SOPInstanceUID = f"1.2.826.0.1.{number + 1}"
    dataset.StudyInstanceUID = f"1.2.826.0.2.{number // 2 + 1}"
    dataset.SeriesInstanceUID = f"1.2.826.0.3.{number + 1}"
    dataset.AccessionNumber = f"A{number // 2}"
    dataset.PatientID = f"P{number // 4}"
    dataset.Modality = "DX"
    dataset.Rows, dataset.Columns = rows, columns
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.PixelSpacing = [0.5, 0.25]
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    with disable_value_validation():
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
    pixels = np.random.default_rng(number).integers(0, 4096, (rows, columns), dtype=np.uint16)
    dataset.PixelData = pixels.tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if number % 3 == 1:
        dataset.compress(RLELossless, generate_instance_uid=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def write_tree(folder: Path, *, images: int = 12) -> Path:
    """Write DICOM images, two a study and four a patient, with a report, a label and a box each."""
    for number in range(images):
        write_dicom(folder / f"study{number // 2}" / f"im{number}.dcm", number)
    write_table(
        folder / "reports.csv",
        [
            {"accession": f"A{k}", "report": f"FINDINGS: Opacity {k}.5 cm. Compared to yesterday, no change."}
            for k in range(images // 2)
        ],
    )
    write_table(
        folder / "labels.csv", [{"accession": f"A{k}", "nodule": str(k % 2)} for k in range(images // 2)]
    )
    write_table(
        folder / "boxes.csv",
        [
            {
                "sop_instance_uid": "1.2.826.0.1.1",
                "label": "nodule",
                "x0": "8",
                "y0": "12",
                "x1": "32",
                "y1": "36",
            }
        ],
    )
    return folder


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return write_tree(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def prepared(tree, tmp_path_factory) -> Store:
    out = tmp_path_factory.mktemp("prepared") / "store"
    seen = []
    summary = prepare(tree, out, key=KEY, workers=1, progress=lambda *call: seen.append(call))
    assert (summary.files, summary.records, summary.failed, summary.resumed) == (12, 12, 0, 0)
    assert [done for done, _, _ in seen] == sorted({done for done, _, _ in seen})  # one call a chunk
    assert seen[-1] == (12, 12, "preparing images")
    return Store(out)


def test_each_image_is_one_record_with_all_that_belongs_to_it(tree, prepared):
    ids = Pseudonyms(KEY)
    assert sorted(r.record_id for r in prepared.records) == sorted(
        ids.record(f"study{k // 2}/im{k}.dcm") for k in range(12)
    )
    by_id = {r.record_id: r for r in prepared.records}
    for k in range(12):
        record = by_id[ids.record(f"study{k // 2}/im{k}.dcm")]
        assert record.study_id == ids.study(f"1.2.826.0.2.{k // 2 + 1}")
        assert record.patient_id == ids.patient(f"P{k // 4}")
        assert record.split == split_of(f"P{k // 4}")
        assert record.retrieval[0] == f"Opacity {k // 2}.5 cm."
        assert record.generation == (f"Opacity {k // 2}.5 cm.",)  # the comparison shows on no image
        assert record.labels == {"nodule": "present" if k // 2 % 2 else "absent"}
        assert (record.source_kind, record.modality, record.geometry) == ("dicom", "cxr", "ok")
        assert record.pixel_digest == PixelSpec().digest and record.report_digest == ReportSpec().digest
        assert record.text_hash == text_hash(record.report)


def test_stored_pixels_are_the_window_of_the_source(prepared):
    # PS3.3 C.11.2.1.2.1: c = 2048, w = 4096 over 12 bits is y = (x - 2047.5) / 4095 + 0.5 = x / 4095.
    record = next(r for r in prepared.records if r.record_id == Pseudonyms(KEY).record("study0/im0.dcm"))
    source = np.random.default_rng(0).integers(0, 4096, (48, 64), dtype=np.uint16)
    assert np.array_equal(prepared.pixels(record), np.rint(source / 4095 * 255))
    assert (record.source_shape, record.shape, record.spacing_mm) == ((48, 64), (48, 64), (0.5, 0.25))


def test_boxes_and_spacing_follow_the_reduction(tree, tmp_path):
    prepare(tree, tmp_path / "s", key=KEY, workers=1, pixels=PixelSpec(longest_px=16))
    store = Store(tmp_path / "s")
    record = next(r for r in store.records if r.boxes)
    # 64 × 48 becomes 16 × 12: a quarter each way, so spacing is four times as large.
    assert record.shape == (12, 16) and record.spacing_mm == (2.0, 1.0)
    box = record.boxes[0]
    assert (box.x0, box.y0, box.x1, box.y1) == (2.0, 3.0, 8.0, 9.0)
    assert store.pixel_spec.longest_px == 16 and record.pixel_digest == PixelSpec(longest_px=16).digest


def test_the_bytes_do_not_depend_on_the_workers_or_the_run(tree, prepared, tmp_path):
    prepare(tree, tmp_path / "s", key=KEY, workers=3)
    assert tree_hash(tmp_path / "s") == tree_hash(prepared.path)


def test_a_finished_store_is_left_as_it_is(tree, prepared):
    before = {p: p.stat().st_mtime_ns for p in prepared.path.iterdir() if p.name != "private"}
    summary = prepare(tree, prepared.path, workers=1)  # the key is found in the private folder
    assert summary.resumed == summary.records == 12
    assert before == {p: p.stat().st_mtime_ns for p in prepared.path.iterdir() if p.name != "private"}


def test_the_manifest_holds_specs_counts_and_options(prepared):
    manifest = prepared.manifest
    assert manifest["specs"]["pixels"] == PixelSpec().model_dump(mode="json")
    assert manifest["digests"] == {"pixels": PixelSpec().digest, "report": ReportSpec().digest}
    assert manifest["counts"]["records"] == 12 and manifest["counts"]["studies"] == 6
    assert manifest["labels"] == ["nodule"] and manifest["options"]["split seed"] == 0
    assert sum(manifest["counts"]["splits"].values()) == 12


def test_the_summary_speaks_to_people_and_to_machines(tree, prepared):
    summary = prepare(tree, prepared.path, workers=1)
    assert json.loads(json.dumps(summary.to_json()))["records"] == 12
    assert any(line.startswith("12 records of 6 studies and 3 patients") for line in summary.lines())
    assert summary.lines()[-1].startswith("Research use only")
    empty = [name for name in ("train", "val", "test") if not summary.splits[name]]
    assert empty, "three patients do not fill three splits here"
    assert any(line.startswith(f"note: no record in {' and '.join(empty)};") for line in summary.lines())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pixels": PixelSpec(longest_px=64)}, f"pixel spec was {PixelSpec().digest} and is"),
        ({"report": ReportSpec(generation_sections=("impression",))}, "report spec was"),
        ({"split_seed": 5}, "split seed was 0 and is 5"),
        ({"shard_records": 2}, "records per shard was 64 and is 2"),
    ],
)
def test_other_options_on_the_same_folder_are_refused_by_name(tree, prepared, change, says):
    with pytest.raises(UsageError, match=says):
        prepare(tree, prepared.path, workers=1, **change)


def test_a_changed_source_is_refused(prepared, tmp_path):
    other = write_tree(tmp_path / "source", images=14)
    with pytest.raises(UsageError, match=r"source was 12 images with digest [0-9a-f]{24} and is 14 images"):
        prepare(other, prepared.path, workers=1)


def test_another_key_is_refused(tree, prepared):
    with pytest.raises(UsageError, match="not the one that this output folder was begun with"):
        prepare(tree, prepared.path, key=bytes(32), workers=1)


@pytest.mark.parametrize("size", [0, 15, 65])
def test_a_key_of_wrong_length_is_refused(tmp_path, size):
    with pytest.raises(UsageError, match=f"has {size} bytes; allowed are 16 to 64"):
        keep_key(tmp_path, given=bytes(size))


def test_the_key_is_secret_and_gives_back_the_sources(prepared):
    private = prepared.path / "private"
    assert (private / "key").stat().st_mode & 0o777 == 0o600
    assert (private / "sources.csv").stat().st_mode & 0o777 == 0o600
    assert private.stat().st_mode & 0o777 == 0o700
    with (private / "sources.csv").open(newline="") as stream:
        rows = {row["item"]: row for row in csv.DictReader(stream)}
    assert rows.keys() == {record.record_id for record in prepared.records}
    assert all(row["token"] == file_token(row["path"]) for row in rows.values())


def test_a_key_is_made_once_and_kept(tmp_path):
    first = keep_key(tmp_path)
    assert len(first) == 32 and keep_key(tmp_path) == first and keep_key(tmp_path, given=first) == first


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"workers": 0}, "workers is 0"),
        ({"shard_records": 0}, "shard_records is 0"),
        ({"split": (0.5, 0.5, 0.5)}, r"split fractions are \(0.5, 0.5, 0.5\)"),
    ],
)
def test_values_out_of_range_are_refused(tree, tmp_path, arguments, says):
    with pytest.raises(UsageError, match=says):
        prepare(tree, tmp_path / "s", **arguments)
    assert not (tmp_path / "s").exists()


def test_folders_that_cannot_be_are_refused(tree, tmp_path):
    with pytest.raises(UsageError, match="the source is neither a folder nor a file"):
        prepare(tmp_path / "nowhere", tmp_path / "s")
    with pytest.raises(UsageError, match="lie inside each other"):
        prepare(tree, tree / "store")
    with pytest.raises(UsageError, match="lie inside each other"):
        prepare(tree, tree.parent)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        prepare(tree, tmp_path / "file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="holds 1 files that are not of a record store"):
        prepare(tree, tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_a_source_without_an_image_leaves_no_folder_behind(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "page.html").write_text("<p>Nothing here.</p>")
    with pytest.raises(BadTable, match="neither an image nor a report was found among 1 files"):
        prepare(tmp_path / "source", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_ct_among_the_films_is_left_out_and_named(tmp_path):
    write_dicom(tmp_path / "source" / "film.dcm", 0)
    write_dicom(tmp_path / "source" / "slice.dcm", 4, Modality="CT")
    write_dicom(tmp_path / "source" / "unsaid.dcm", 8, Modality="")
    summary = prepare(tmp_path / "source", tmp_path / "s", key=KEY, workers=1)
    assert (summary.records, summary.unpaired["other_modality"]) == (2, 1)
    assert "other_modality" in (tmp_path / "s" / "private" / "unpaired.csv").read_text()
    assert summary.complete  # left out for a reason that asks for nothing


def test_a_second_process_is_turned_away_and_a_dead_one_is_not(tree, prepared):
    with (
        hold(prepared.path / "private" / "lock"),
        pytest.raises(UsageError, match=f"process {os.getpid()} is writing to this output folder"),
    ):
        prepare(tree, prepared.path, workers=1)
    # The name of a process that is gone is no lock.
    (prepared.path / "private" / "lock").write_text('{"boot": "earlier", "pid": 1}')
    assert prepare(tree, prepared.path, workers=1).records == 12


def test_a_part_of_another_plan_is_not_taken_over(prepared):
    task = Task(prepared.path, "cxr", PixelSpec(), ReportSpec(), "another plan")
    assert read_part(task, Chunk(0, ())) is None


def hostile_tree(folder: Path) -> Path:
    """Write a tree whose tags and file names are full of names, and of which some files are damaged."""
    for number in range(6):
        write_dicom(
            folder / "CANARYNAME_JOHN" / f"CANARYNAME_19400101_{number}.dcm",
            number,
            PatientName="CANARYNAME^JOHN",
            PatientID="MRN-CANARY-1",
            PatientBirthDate="19400101",
            PatientTelephoneNumbers="555-0199",
            InstitutionName="CANARYNAME HOSPITAL",
            **({"WindowWidth": "0", "AcquisitionDate": "CANARYNAME"} if number == 1 else {}),
        )
    broken = folder / "CANARYNAME_JOHN" / "CANARYNAME_19400101_2.dcm"
    broken.write_bytes(broken.read_bytes()[:-1000])
    (folder / "CANARYNAME_empty.dcm").write_bytes(b"")
    (folder / "MRN-CANARY.txt").write_text("CANARYNAME")
    rows = [
        {"accession": f"A{k}", "patient_name": "CANARYNAME", "mrn": "MRN-CANARY-1", "report": f"No mass {k}."}
        for k in range(3)
    ]
    write_table(folder / "reports.csv", [*rows, rows[0] | {"accession": "MRN-CANARY-9"}])
    return folder


RUN = """
import sys
from pathlib import Path
from medvl.errors import MedvlError
from medvl.preprocess.pipeline import prepare
try:
    summary = prepare(Path(sys.argv[1]), Path(sys.argv[2]), key=bytes(range(32)), workers=2)
    sys.stdout.write("\\n".join(summary.lines()))
except MedvlError as error:
    sys.stderr.write(f"{error.rule}: {error}")
    sys.exit(error.exit_code)
"""


def run(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN, str(source), str(out)],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_nothing_outside_the_private_folder_names_a_patient(tmp_path):
    source, out = hostile_tree(tmp_path / "source"), tmp_path / "store"
    result = run(source, out)
    assert result.returncode == 0, result.stderr
    store = Store(out)
    texts = [result.stdout, result.stderr, json.dumps(store.table.to_pylist())]
    for path in public_files(out):
        texts += [str(path.relative_to(out)), path.read_bytes().decode("latin-1")]
    assert not [canary for canary in PHI for text in texts if canary in text]
    assert "CANARYNAME" in (out / "private" / "sources.csv").read_text()  # the way back is kept
    # 6 images and the empty file: 5 records, 2 failures, each once with its rule.
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert sorted(failure["rule"] for failure in failures) == ["NotDicom", "TruncatedPixels"]
    assert len(store) == 5 and store.manifest["counts"]["failures"] == {"NotDicom": 1, "TruncatedPixels": 1}
    assert {f["token"] for f in failures} == {
        file_token("CANARYNAME_19400101_2.dcm"),
        file_token("CANARYNAME_empty.dcm"),
    }


def test_retry_failed_does_only_the_failed_chunks_again(tmp_path):
    source = write_tree(tmp_path / "source")
    image = source / "study2" / "im4.dcm"  # run-length encoded
    good = image.read_bytes()
    frame = good.rindex(b"\xfe\xff\x00\xe0") + 8  # PS3.5 A.4: item tag, length, fragment
    image.write_bytes(good[:frame] + b"\xff" * 64 + good[frame + 64 :])  # PS3.5 G.5: its 64-byte header
    first = prepare(source, tmp_path / "s", key=KEY, workers=1, shard_records=2)
    assert (first.records, first.failed) == (11, 1)
    again = prepare(source, tmp_path / "s", workers=1, shard_records=2)
    assert (again.records, again.failed, again.resumed) == (11, 1, 12)
    image.write_bytes(good)  # mended
    retried = prepare(source, tmp_path / "s", workers=1, shard_records=2, retry_failed=True)
    assert (retried.records, retried.failed, retried.resumed) == (12, 0, 10)
    prepare(source, tmp_path / "fresh", key=KEY, workers=1, shard_records=2)
    assert tree_hash(tmp_path / "s") == tree_hash(tmp_path / "fresh")
