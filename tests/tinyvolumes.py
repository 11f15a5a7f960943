"""Tiny CT volumes with parts and boxes in a store of the store's own writer, and tiny models of volumes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from medvl.alignment import TowerRecipe, build_model
from medvl.anatomy import PARTS
from medvl.modeldir import LoadedModel
from medvl.records import Box, Record
from medvl.specs import ReportSpec, VolumeInput, VolumeSpec, text_hash
from medvl.splits import split_of
from medvl.store import FORMAT, INDEX_SCHEMA, record_row, write_shard
from medvl.tokens import train_tokeniser

SPEC = VolumeSpec(spacing_mm=(4.0, 4.0, 4.0))
LUNGS, LIVER = PARTS["ct"].index("lungs") + 1, PARTS["ct"].index("liver") + 1
FINDINGS = {
    "lung_nodule": (LUNGS, "A nodule in the lung.", "The lungs are clear.", 400),
    "liver_lesion": (LIVER, "A lesion in the liver.", "The liver is unremarkable.", 1200),
}

VOLUME = (
    "modality=ct",
    "input={kind: volume, size_px: [24, 20, 16], windows: [[0.0, 2000.0]]}",
    "data.batch=12",
    "image.options={widths: [8, 16], blocks: [1, 1], stem_px: 3}",
    "text.options={layers: 1, width: 32, heads: 2}",
    "text.vocab_size=400",
    "projection.dim=16",
    "machine.tensorboard=false",
)
"""Overrides that make any compact recipe one of tiny volumes."""


def draw(seed: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, list[Box], dict[str, str]]:
    """Draw a body with lungs above a liver; each may hold a lesion."""
    rng = np.random.default_rng(seed)
    hu = rng.normal(-1000, 15, shape)
    parts = np.zeros(shape, np.uint8)
    half = shape[2] // 2
    body = (slice(2, -2), slice(2, -2), slice(None))
    hu[body] += 1020
    boxes, labels = [], {}
    for finding, (part, _, _, lift) in FINDINGS.items():
        begin = half if part == LUNGS else 1
        room = (slice(4, shape[0] - 4), slice(4, shape[1] - 4), slice(begin, begin + half - 2))
        parts[room] = part
        hu[room] += -800 if part == LUNGS else 40
        labels[finding] = "present" if rng.random() < 0.5 else "absent"
        if labels[finding] == "present":
            low = [int(rng.integers(s.start, s.stop - 3)) for s in room]
            hu[tuple(slice(at, at + 4) for at in low)] += lift
            high = [at + 4.0 for at in low]
            boxes.append(Box(finding, float(low[0]), float(low[1]), high[0], high[1], float(low[2]), high[2]))
    return np.clip(hu, -1024, 3071).astype(np.int16), parts, boxes, labels


def write_volumes(
    path: Path, *, n: int = 36, shape: tuple[int, int, int] = (28, 22, 20), twins: bool = True
) -> Path:
    """Write n studies; every fourth has a second reconstruction, and one of ten has no parts."""
    (path / "shards").mkdir(parents=True)
    samples = []
    for i in range(n):
        # Shapes differ, some smaller than the tensor of VOLUME along an axis.
        sides = (shape[0] + i % 3, shape[1] - i % 4, shape[2] - i % 5)
        hu, parts, boxes, labels = draw(i, sides)
        sentences = tuple(
            there if labels[name] == "present" else clear for name, (_, there, clear, _) in FINDINGS.items()
        )
        for twin in range(2 if twins and i % 4 == 0 else 1):
            volume = hu if not twin else (hu + np.int16(7))
            record = Record(
                record_id=f"v{i:04d}r{twin}",
                study_id=f"s{i:04d}",
                patient_id=f"p{i:04d}",
                modality="ct",
                split=split_of(f"p{i:04d}", fractions=(0.6, 0.2, 0.2)),
                source_kind="nifti",
                report=" ".join(sentences),
                retrieval=sentences,
                generation=sentences,
                text_hash=text_hash(" ".join(sentences)),
                pixel_hash=f"{i:04d}{twin}",
                pixel_digest=SPEC.digest,
                report_digest=ReportSpec().digest,
                shape=sides,
                dtype="int16",
                source_shape=sides,
                spacing_mm=(4.0, 4.0, 4.0),
                affine_ras=tuple(np.diag([4.0, 4.0, 4.0, 1.0]).ravel().tolist()),
                labels=labels,  # type: ignore[arg-type]
                boxes=tuple(boxes),
                part_voxels={"lungs": int((parts == LUNGS).sum())} if i % 10 else {},
            )
            samples.append((record, volume, parts if i % 10 else None))
    placed = write_shard(path / "shards" / "000000.tar", samples)
    table = pa.Table.from_pylist([record_row(record) for record in placed], schema=INDEX_SCHEMA)
    pq.write_table(table, path / "index.parquet")
    specs = {"pixels": SPEC.model_dump(mode="json"), "report": ReportSpec().model_dump(mode="json")}
    (path / "store.json").write_text(json.dumps({"format": FORMAT, "modality": "ct", "specs": specs}))
    return path


ENCODERS = {
    "resnet": {"axes": 3, "widths": [4, 8], "blocks": [1, 1], "stem_px": 3},
    "densenet121": {"axes": 3},
    "vit": {"size_px": [16, 16, 16], "patch_px": 8, "width": 32, "layers": 1, "heads": 2},
    # Two pieces of slices in the batch that is traced, one in that of one volume, three in that of three.
    "slices": {
        "encoder": "resnet",
        "options": {"widths": [4, 8], "blocks": [1, 1], "stem_px": 3},
        "channels": 1,
        "chunk": 20,
    },
}


def tiny(image: str = "resnet", **changes: object) -> LoadedModel:
    """Return a model of volumes of 16³ voxels with random weights."""
    torch.manual_seed(0)
    tokeniser = train_tokeniser(["the lungs are clear"], vocab_size=300)
    model = build_model(
        image=TowerRecipe(name=image, options=ENCODERS[image]),
        text=TowerRecipe(name="bert", options={"layers": 1, "width": 32, "heads": 2}),
        tokeniser=tokeniser,
    )
    input = VolumeInput(size_px=(16, 16, 16), windows=((0.0, 2000.0),))
    values = {"pixels": SPEC, "input": input, "report": ReportSpec(), "tokeniser": tokeniser} | changes
    return LoadedModel(model=model.eval(), **values)
