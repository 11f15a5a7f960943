"""``check_store`` on an index of 100,000 records with reports of some 700 letters and planted faults.

Wall and CPU seconds of a freshly opened store, file read and checksum included; the faults that were
planted must be found in their number. The bar is one second. Run::

    python -m tests.benchmarks check
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medvl.preprocess.checks import check_store
from medvl.specs import PixelSpec, ReportSpec
from medvl.store import FORMAT, INDEX_SCHEMA, Store, index_digest

ROWS = 100_000
RUNS = 5
BAR_S = 1.0
FINDINGS = (
    "atelectasis cardiomegaly consolidation edema effusion emphysema fibrosis fracture hernia mass nodule "
    "pneumonia pneumothorax support"
).split()
STATES = ("present", "absent", "uncertain", "unchanged")
LEAKS, TWINS, CONFLICTS, OPPOSITE = 7, 11, 13, 5


def write_index(folder: Path, rows: int = ROWS) -> None:
    """Write a store without pixels: two films a study, two studies a patient, some boxes."""
    random = np.random.default_rng(0)
    words = np.array(
        "lungs heart size normal there is a small stable of mild interval mm cm lobe upper".split()
    )
    patient = np.arange(rows) // 4
    split = np.array(["train", "val", "test"])[random.choice(3, rows // 4 + 1, p=(0.8, 0.1, 0.1))][patient]
    study = np.arange(rows) // 2
    texts = [" ".join(words[random.integers(0, len(words), 140)]) for _ in range(rows // 2 + 1)]
    states = random.integers(0, 8, (rows // 2 + 1, len(FINDINGS)))
    labels = [{f: STATES[s] for f, s in zip(FINDINGS, row, strict=True) if s < 4} for row in states.tolist()]
    report = [f"{k}. {texts[k]}." for k in study]
    said = [dict(labels[k]) for k in study]
    label = [dict(labels[k]) for k in study]
    boxes = [[] for _ in range(rows)]
    for k in range(0, rows, 20):
        boxes[k] = [{"label": "nodule", "x0": 300.0, "y0": 9.0, "x1": 340.0, "y1": 40.0}]
        report[k] += " A nodule in the left lung."
    pixels = [hashlib.blake2b(str(k).encode(), digest_size=12).hexdigest() for k in range(rows)]
    views = np.where(np.arange(rows) % 2, "LATERAL", "PA")
    for k in range(LEAKS):  # one film of a patient in another split
        split[4000 + 400 * k] = "test" if split[4001 + 400 * k] != "test" else "train"
    for k in range(TWINS):  # the picture of another patient
        pixels[50_001 + 40 * k] = pixels[10_001 + 40 * k]
    for k in range(CONFLICTS):  # a label against the report
        label[30_002 + 40 * k], said[30_002 + 40 * k] = {"mass": "present"}, {"mass": "absent"}
    for k in range(OPPOSITE):  # a box in the right half of the patient, words of the left
        boxes[60_000 + 40 * k] = [{"label": "nodule", "x0": 30.0, "y0": 9.0, "x1": 60.0, "y1": 40.0}]
    size = 1000
    columns = {
        "record_id": [f"{k:020x}" for k in range(rows)],
        "study_id": [f"s{k}" for k in study],
        "patient_id": [f"p{k}" for k in patient],
        "modality": ["cxr"] * rows,
        "split": split.tolist(),
        "source_kind": ["dicom"] * rows,
        "view": views.tolist(),
        "laterality": [None] * rows,
        "report": report,
        "retrieval": [[part.strip() + "." for part in text.split(".") if part.strip()] for text in report],
        "generation": [[text] for text in report],
        "labels": [json.dumps(each, sort_keys=True) for each in label],
        "said": [json.dumps(each, sort_keys=True) for each in said],
        "boxes": [json.dumps(each) for each in boxes],
        "text_hash": [hashlib.blake2b(text.encode(), digest_size=12).hexdigest() for text in report],
        "pixel_hash": pixels,
        "pixel_digest": [PixelSpec().digest] * rows,
        "report_digest": [ReportSpec().digest] * rows,
        "shape": [[512, 420]] * rows,
        "dtype": ["uint8"] * rows,
        "shard": [f"{k // 64:06d}.tar" for k in range(rows)],
        "offset": [512 + size * (k % 64) for k in range(rows)],
        "size": [size] * rows,
        "crc32": [0] * rows,
    }
    for name in INDEX_SCHEMA.names:
        empty = "[]" if INDEX_SCHEMA.field(name).type == pa.string() else None
        columns.setdefault(name, [empty] * rows)
    table = pa.Table.from_pydict({name: columns[name] for name in INDEX_SCHEMA.names}, schema=INDEX_SCHEMA)
    pq.write_table(table, folder / "index.parquet", compression="zstd")
    (folder / "shards").mkdir()
    for name in set(columns["shard"]):
        with (folder / "shards" / name).open("wb") as stream:
            stream.truncate(512 + size * 64 + 1024)
    manifest = {
        "format": FORMAT,
        "digests": {"pixels": PixelSpec().digest, "report": ReportSpec().digest},
        "index": {"blake2b": index_digest((folder / "index.parquet").read_bytes())},
    }
    (folder / "store.json").write_text(json.dumps(manifest))


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        write_index(Path(name))
        walls, cpus = [], []
        for run in range(RUNS + 1):
            wall, cpu = time.perf_counter(), time.process_time()
            report = check_store(Store(name))
            if run:  # the first warms up
                walls.append(time.perf_counter() - wall)
                cpus.append(time.process_time() - cpu)
    counts = {check.name: check.count for check in report.checks}
    planted = {
        "patient-leak": LEAKS,
        "pixel-patients": TWINS,
        "label-report": CONFLICTS,
        "box-side": OPPOSITE,
        "missing-shard": 0,
        "mixed-specs": 0,
    }
    found = all(counts[name] == count for name, count in planted.items())
    wall = statistics.median(walls)
    faults = "faults found" if found else f"WRONG: {counts}"
    print(
        f"check of {ROWS:,} records: {wall:.2f} s wall ({min(walls):.2f} … {max(walls):.2f}, n={RUNS}), "
        f"{statistics.median(cpus):.2f} s CPU, bar {BAR_S} s; {faults}"
        f"  {'pass' if wall <= BAR_S and found else 'FAIL'}"
    )


if __name__ == "__main__":
    main()
