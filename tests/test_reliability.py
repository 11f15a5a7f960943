"""Hostile input through the command: the exit status of its kind, one line on stderr, never a traceback."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
import torch
from baddicom import CT, DEFLATED, EXPLICIT, J2K, changed, meta, nested
from PIL import Image as Pillow
from pydicom.encaps import encapsulate

from medvl.cli import main
from medvl.preprocess.reports import MAX_CHARACTERS
from medvl.store import Store

HOSTILE = ("../../../../etc/cron.d/x", "a\nb", "CON", "-rf", "x" * 4096, "p\0q")
"""Identifiers of row 10 of the reliability chapter."""


def run(capsys, *words):
    """Return exit status, stdout and stderr of the command."""
    status = main([str(word) for word in words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def refused(capsys, status, message, *words):
    """The command ends with ``status`` and says ``message`` in one line, without a traceback."""
    got, out, err = run(capsys, *words)
    assert (got, out) == (status, ""), err
    assert err.startswith("medvl: ") and err.count("\n") == 1 and "Traceback" not in err
    assert message in err
    return err


# --- prepare: what is damaged costs one item --------------------------------------------------------


def bad_images(folder: Path) -> dict[str, str]:
    """Write one file for each row of bad images; return name and rule."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    (folder / "row1.dcm").write_bytes(b"")
    (folder / "row1b.dcm").write_bytes(rng.bytes(4000))
    bare = changed(folder / "row2.dcm", source=CT)
    bare.write_bytes(bare.read_bytes()[132:])
    for number, beyond in ((3, -200), (4, 100)):
        path = changed(folder / f"row{number}.dcm", SOPInstanceUID=f"1.2.{number}")
        content = path.read_bytes()
        path.write_bytes(content[: content.index(struct.pack("<HH2s", 0x7FE0, 0x10, b"OW")) + beyond])
    changed(folder / "row5.dcm", Rows=65535, Columns=65535, SOPInstanceUID="1.2.5")
    changed(folder / "row6.dcm", NumberOfFrames=100_000, SOPInstanceUID="1.2.6")
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = squeeze.compress(b"\0" * 2**26) + squeeze.flush()
    (folder / "row7.dcm").write_bytes(meta(DEFLATED) + packed)
    (folder / "row8.dcm").write_bytes(meta(EXPLICIT) + nested(5000, defined=False))
    codestream = pydicom.dcmread(J2K)
    codestream.SOPInstanceUID, codestream.Modality = "1.2.9", "DX"
    codestream.PixelData = encapsulate([rng.bytes(3000)])
    codestream["PixelData"].VR = "OB"
    codestream.save_as(folder / "row9.dcm")
    changed(folder / "row13.dcm", RescaleSlope="0", RescaleIntercept="0", SOPInstanceUID="1.2.13")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))

    about = struct.pack(">LLBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", about)
    (folder / "row20.png").write_bytes(head + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b""))
    (folder / "row29.jpg").write_bytes(b"\xff\xd8\xff" + rng.bytes(50))
    return {
        "row1.dcm": "NotDicom",
        "row1b.dcm": "BadImage",
        "row2.dcm": "NotDicom",
        "row3.dcm": "IncompleteDicom",
        "row4.dcm": "TruncatedPixels",
        "row5.dcm": "PixelLimit",
        "row6.dcm": "PixelLimit",
        "row7.dcm": "DecompressionLimit",
        "row8.dcm": "NestingLimit",
        "row9.dcm": "DecodeError",
        "row13.dcm": "BadElement",
        "row20.png": "PixelLimit",
        "row29.jpg": "BadImage",
    }


def good_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 20), dtype=np.uint8)
    Pillow.fromarray(pixels).save(path)


def test_a_folder_of_bad_images_costs_those_and_no_others(capfd, tmp_path):
    source, store = tmp_path / "source", tmp_path / "store"
    rules = bad_images(source)
    for seed, name in enumerate(("good1.png", "good2.png", "good3.png", "long.png")):
        good_image(source / name, seed)
    reports = {name: f"No effusion in case {name[:-4]}." for name in (*rules, "good1.png", "good2.png")}
    reports["good3.png"] = "\u202e<script>alert(1)</script> =HYPERLINK(1)\u200b clear lungs."
    reports["long.png"] = "a" * (MAX_CHARACTERS + 1)
    pq.write_table(
        pa.table({"image": list(reports), "text": list(reports.values())}), source / "reports.parquet"
    )
    status, out, err = run(capfd, "cxr", "prepare", source, store, "--json", "--workers", "1")
    assert status == 3 and err == "", (out, err)
    summary = json.loads(out)
    failures = [json.loads(line) for line in (store / "failures.jsonl").read_text().splitlines()]
    assert sorted(entry["rule"] for entry in failures) == sorted(rules.values())
    assert summary["failed"] == len(rules) and summary["records"] == 4
    assert summary["unpaired"]["report_too_long"] == 1  # its film is kept, without a text
    assert not any(name in (store / "failures.jsonl").read_text() for name in rules)
    kept = Store(store)
    assert sorted(kept.pixels(record).shape for record in kept.records) == [(24, 20)] * 4
    rendered = " ".join(sentence for record in kept.records for sentence in record.retrieval)
    assert "clear lungs" in rendered and "\u202e" not in rendered and "\u200b" not in rendered
    assert "<script>" not in (store / "quality.html").read_text()


def test_hostile_identifiers_become_neither_names_nor_lines(capsys, tmp_path):
    source, out = tmp_path / "source", tmp_path / "work" / "store"
    source.mkdir()
    rows = ["image,text"]
    for number, name in enumerate(HOSTILE):
        changed(
            source / f"f{number}.dcm",
            SOPInstanceUID=f"1.2.{number}",
            StudyInstanceUID=f"1.3.{number}",
            AccessionNumber=str(number),
            PatientID=name,
        )
        rows.append(f"f{number}.dcm,No effusion here.")
    (source / "reports.csv").write_text("\n".join(rows) + "\n")
    status, _, err = run(capsys, "cxr", "prepare", source, out, "--workers", "1", "--quiet")
    assert status == 0 and err == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "work"]
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["store"]
    for path in out.rglob("*"):
        assert not any(name in path.name for name in ("cron", "CON", "-rf", "xxxx"))
    patients = {record.patient_id for record in Store(out).records}
    assert len(patients) == len(HOSTILE) and all(patient.isalnum() for patient in patients)


@pytest.mark.parametrize(
    ("table", "options", "status", "message"),
    [
        ("image,text\na.png,Clear.\n", ("--column", "text=report"), 4, "'report'"),
        ("image,text\na.png,Clear,too\n", (), 4, "line 2 of file-"),
        ("image,text\na.png,Clear.\n", ("--table", "none.csv"), 4, "does not exist"),
        ("image,text\na.png,Clear.\n", ("--labels", "none.csv"), 4, "does not exist"),
        ("image,text\na.png,Clear.\n", ("--key", "none.key"), 2, "No such file"),
        ("image,text\na.png,Clear.\n", ("--split", "0.5", "0.5", "0.5"), 2, "0.5"),
        ("image,text\na.png,Clear.\n", ("--workers", "0"), 2, "workers is 0"),
        ("image,text\na.png,Clear.\n", ("--longest-px", "0"), 2, "longest_px"),
    ],
)
def test_tables_and_options_that_cannot_be(capsys, tmp_path, monkeypatch, table, options, status, message):
    monkeypatch.chdir(tmp_path)
    good_image(tmp_path / "source" / "a.png", 0)
    (tmp_path / "source" / "reports.csv").write_text(table)
    refused(
        capsys, status, message, "cxr", "prepare", tmp_path / "source", tmp_path / "out", "--quiet", *options
    )


# --- recipes and prompts ----------------------------------------------------------------------------

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 9)
)
YAML = [
    (BOMB.encode(), "the alias '*a0' is refused"),
    (b"!!python/object/apply:os.system [echo]", "python/object/apply"),
    (b"about: 1\nabout: 2", "the key 'about' is given twice"),
    (b"[" * 1_000_000, "nested more than"),
    (b"\xff\xfe\x00\xd8", "is not UTF-8 (byte 0)"),
    (b"", "NoneType"),
    (b"- a\n- b", "list"),
]


@pytest.mark.parametrize(("content", "message"), YAML)
def test_a_hostile_recipe_is_a_wrong_call(capsys, tmp_path, content, message):
    (tmp_path / "recipe.yaml").write_bytes(content)
    refused(
        capsys, 2, message, "cxr", "train", "store", "run", "--recipe", tmp_path / "recipe.yaml", "--quiet"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("content", "message"), YAML)
def test_hostile_prompts_are_a_wrong_call(capsys, tmp_path, content, message, tiny_run, tiny_store):
    (tmp_path / "prompts.yaml").write_bytes(content)
    refused(
        capsys, 2, message,
        "evaluate", tiny_run, tiny_store, "--prompts", tmp_path / "prompts.yaml", "--out", tmp_path / "out",
        "--quiet",
    )  # fmt: skip


# --- our own files ----------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda store: flip(store / "index.parquet"), "index.parquet"),
        (lambda store: (store / "index.parquet").unlink(), "index.parquet"),
        (lambda store: (store / "store.json").write_text("[" * 5000), "store.json"),
        (lambda store: (store / "store.json").unlink(), "store.json"),
        (lambda store: [flip(path) for path in (store / "shards").iterdir()], "shard"),
    ],
)
def test_a_damaged_store(capsys, tmp_path, damage, message, tiny_run, tiny_store):
    store = Path(shutil.copytree(tiny_store, tmp_path / "store"))
    damage(store)
    words = ("--out", tmp_path / "out", "--quiet", "--resamples", "5")
    refused(capsys, 4, message, "evaluate", tiny_run, store, *words)
    refused(capsys, 4, message, "cxr", "train", store, tmp_path / "run", "--quiet")


class Evil:
    """An object that touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (self.marker.touch, ())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("name", ["x.pt", "training/x.pkl", "x.npy"])
def test_a_pickle_in_a_checkpoint_is_refused_and_never_run(capsys, tmp_path, name, tiny_run, tiny_store):
    copied = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    marker = tmp_path / "ran"
    best = next((copied / "checkpoints").glob("step-*"))
    torch.save({"x": Evil(marker)}, best / name)
    refused(capsys, 4, name, "evaluate", copied, tiny_store, "--out", tmp_path / "out", "--quiet")
    refused(capsys, 4, name, "export", copied, tmp_path / "bundle")
    vouched = json.loads((best / "manifest.json").read_text())
    vouched["files"][name] = hashlib.sha256((best / name).read_bytes()).hexdigest()
    (best / "manifest.json").write_text(json.dumps(vouched))
    err = refused(capsys, 4, "can run code", "export", copied, tmp_path / "bundle")
    assert Path(name).suffix in err and not marker.exists() and not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: truncate(next(run.glob("checkpoints/*/models/model.safetensors"))), "model.safetensors"),
        (lambda run: next(run.glob("checkpoints/step-*/manifest.json")).unlink(), "manifest.json"),
        (lambda run: (run / "checkpoints" / "best.json").write_text("{"), "best.json"),
        (lambda run: [shutil.rmtree(p) for p in run.glob("checkpoints/step-*")], "step-"),
        (lambda run: (run / "provenance.json").unlink(), "provenance.json"),
    ],
)
def test_a_damaged_run(capsys, tmp_path, damage, message, tiny_run, tiny_store):
    copied = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    damage(copied)
    words = ("--out", tmp_path / "out", "--quiet", "--resamples", "5")
    refused(capsys, 4, message, "evaluate", copied, tiny_store, *words)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"status": 1, "step": "x"}'])
def test_a_damaged_summary_of_a_run(capsys, tmp_path, content, tiny_run, tiny_store):
    copied = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (copied / "summary.json").write_text(content)
    refused(
        capsys, 4, "summary.json",
        "cxr", "train", tiny_store, copied, "--recipe", copied / "recipe.yaml", "--quiet",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda bundle: truncate(bundle / "models" / "model.safetensors"), "'models/model.safetensors'"),
        (lambda bundle: (bundle / "bundle.json").unlink(), "bundle.json is missing"),
        (lambda bundle: (bundle / "bundle.json").write_bytes(b"\xff\xfe"), "bundle.json"),
        (lambda bundle: flip(bundle / "configs" / "model.json"), "'configs/model.json'"),
        (lambda bundle: (bundle / "added.py").write_text("x"), "'added.py' is not listed"),
    ],
)
def test_a_damaged_bundle(capsys, tmp_path, damage, message, tiny_bundle, tiny_store):
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    damage(bundle)
    refused(capsys, 4, message, "evaluate", bundle, tiny_store, "--out", tmp_path / "out", "--quiet")
    refused(capsys, 4, message, "index", bundle, tiny_store, tmp_path / "index", "--quiet")
    assert not (tmp_path / "index").exists()


def test_a_hostile_query_image(capsys, tmp_path, tiny_bundle, tiny_store):
    status, _, err = run(capsys, "index", tiny_bundle, tiny_store, tmp_path / "index", "--quiet")
    assert (status, err) == (0, "")
    bad = bad_images(tmp_path / "bad")
    for name in bad:
        refused(capsys, 4, "", "search", tmp_path / "index", "--image", tmp_path / "bad" / name)
    refused(capsys, 4, "cannot be read", "search", tmp_path / "index", "--image", tmp_path / "none.png")


def test_what_is_neither_a_run_nor_a_bundle_is_a_wrong_call(capsys, tmp_path, tiny_store):
    refused(capsys, 2, "neither a run, a checkpoint nor a bundle", "evaluate", tmp_path, tiny_store)


def test_damaged_plans_of_half_written_outputs(capsys, tmp_path):
    good_image(tmp_path / "source" / "a.png", 0)
    (tmp_path / "source" / "reports.csv").write_text("image,text\na.png,Clear lungs.\n")
    for content in ("{", "3", "[" * 100_000):
        (tmp_path / "out" / "private").mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / "private" / "plan.json").write_text(content)
        words = (tmp_path / "source", tmp_path / "out", "--quiet")
        refused(capsys, 4, "plan.json of the output folder is damaged", "cxr", "prepare", *words)
        (tmp_path / "films").mkdir(exist_ok=True)
        (tmp_path / "films" / "phantom.json").write_text(content)
        refused(
            capsys, 2, "phantom.json in the output folder is damaged", "phantom", "cxr", tmp_path / "films"
        )


def test_an_output_that_cannot_be_written(capsys, tmp_path, tiny_run, tiny_store):
    (tmp_path / "file").write_text("x")
    inside = tmp_path / "file" / "below"
    films = tiny_store.parent / "films"
    refused(capsys, 2, "directory", "phantom", "cxr", inside, "--n", "2", "--workers", "1", "--quiet")
    refused(
        capsys, 4, "the system says ENOTDIR", "cxr", "prepare", films, inside, "--quiet", "--workers", "1"
    )
    refused(capsys, 2, "the system refused", "cxr", "train", tiny_store, inside, "--quiet")
    refused(capsys, 2, "the system refused", "export", tiny_run, inside)
    refused(capsys, 2, "the system refused", "evaluate", tiny_run, tiny_store, "--out", inside, "--quiet")
