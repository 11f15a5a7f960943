"""What separable volumes must teach a model on the whole road, and what shuffled reports must not."""

import csv
import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml

import medvl
from medvl.evaluation.cases import choose_cases
from medvl.evaluation.embedding import embed_cases
from medvl.evaluation.subject import find_subject
from medvl.phantoms.ct_lesions import draw_ct
from medvl.phantoms.ct_truth import STRUCTURES, CtFinding, draw_ct_body
from medvl.phantoms.truth import find_level
from medvl.specs.volumes import VolumeGrid
from medvl.store import Store
from medvl.training.recipe import load_recipe

SIDES = {
    "left": "Large left pleural effusion.",
    "right": "Large right pleural effusion.",
    "": "No pleural effusion.",
}
HEARTS = {True: "The heart is enlarged.", False: "Heart size is normal."}
KINDS = list(itertools.product(SIDES, HEARTS))
"""Six kinds of volume with six reports: the side of an effusion, and the size of the heart."""
LEARNED, HELD_OUT = 60, 36
SIZE, SPACING = (40, 40, 32), (9.25, 9.25, 9.6875)

RECIPE = """
modality: ct
data: {batch: 24}
input: {kind: volume, size_px: [24, 24, 16], windows: [[40.0, 400.0]], fit: resize}
augment: {rotate_deg: 0, shift: 0.03, zoom: 0.05, brightness: 0, contrast: 0, noise: 0}
image: {name: resnet, options: {widths: [16, 48], blocks: [1, 1], stem_px: 3}}
text: {name: bert, options: {layers: 1, width: 32, heads: 2, dropout: 0.0}, vocab_size: 400}
projection: {dim: 32, norm: batch}
objective: {name: organs, positives: same}
optimiser: {lr: 5e-3}
schedule: {steps: 120}
loop: {every_steps: 120}
machine: {tensorboard: false}
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Volumes of different bodies with masks of their structures; kinds take turns."""
    folder = tmp_path_factory.mktemp("learn") / "source"
    for name in ("volumes", "masks"):
        (folder / name).mkdir(parents=True)
    names = {number: name for name, number in STRUCTURES.items()}
    (folder / "masks" / "labels.yaml").write_text(yaml.safe_dump(names))
    rng = np.random.default_rng(5)
    for row in range(LEARNED + HELD_OUT):
        side, enlarged = KINDS[row % len(KINDS)]
        found = []
        if side:
            depth = int(rng.integers(33, 51))
            found.append(CtFinding("pleural_effusion", side, side, "large", depth, grain=row))
        if enlarged:
            found.append(CtFinding("cardiomegaly", "none", "heart", "large", 3, grain=row))
        body = draw_ct_body(rng, female=int(rng.integers(2)))
        affine = np.diag([*SPACING, 1.0])
        affine[:3, 3] = (-180.0, -192.0, body.shift[2] - 197.0)
        drawn = draw_ct(body, found, VolumeGrid(SIZE, affine), level=find_level("easy"), rng=rng)
        for name, voxels in (("volumes", drawn.hu), ("masks", drawn.structures)):
            nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / name / f"v{row:03d}.nii.gz")
    return folder


def tell(source: Path, said: np.ndarray) -> None:
    """Write the tables: row i has the report and the labels of row ``said[i]``."""
    with (source / "reports.csv").open("w") as reports, (source / "labels.csv").open("w") as labels:
        told, known = csv.writer(reports), csv.writer(labels)
        told.writerow(["patient_id", "accession", "image", "split", "report"])
        known.writerow(["accession", "pleural_effusion", "cardiomegaly"])
        for row, other in enumerate(said):
            side, enlarged = KINDS[other % len(KINDS)]
            split = "train" if row < LEARNED else "test"
            report = f"{SIDES[side]} {HEARTS[enlarged]}"
            told.writerow([f"p{row}", f"a{row}", f"volumes/v{row:03d}.nii.gz", split, report])
            known.writerow([f"a{row}", int(bool(side)), int(enlarged)])


@pytest.mark.parametrize("shuffled", [False, True])
def test_separable_volumes_are_learnt_and_shuffled_reports_are_not(source, tmp_path, shuffled):
    """Held-out volumes of new bodies find the report of their kind, unless training reports were shuffled.

    Shuffled reports do not tell which report belongs to which kind of volume, whatever else is learned from
    them: each of the 6! ways to give the six reports to the six kinds is as good as the true one. Their
    recalls, with the model's own answers, are the exact distribution of chance. Separable ones reach the
    highest of them, which 1 of 720 does.
    """
    said = np.arange(LEARNED + HELD_OUT)
    if shuffled:
        said[:LEARNED] = np.random.default_rng(1).permutation(LEARNED)
    tell(source, said)
    store, run = tmp_path / "store", tmp_path / "run"
    spacing = {"spacing_mm": SPACING}
    prepared = medvl.prepare(source, store, modality="ct", pixels=spacing, key=bytes(32), workers=1)
    assert (prepared.records, prepared.failed) == (LEARNED + HELD_OUT, 0)
    medvl.train(store, run, modality="ct", recipe=load_recipe(RECIPE))
    result = medvl.evaluate(run, store, baselines=(), resamples=100)
    recall = result.value("retrieval/image_to_text/text/R@1/model")

    cases = choose_cases(Store(store), split="test", split_seed=None)
    embedded = embed_cases(find_subject(run).loaded, Store(store), cases)
    words = [text.words for text in cases.texts]
    reports = [f"{SIDES[side]} {HEARTS[enlarged]}" for side, enlarged in KINDS]
    own = {text.study_id: text.words for text in cases.texts}
    answers = np.zeros((len(KINDS), len(KINDS)), int)
    for record, column in zip(cases.images, (embedded.images @ embedded.texts.T).argmax(1), strict=True):
        answers[reports.index(own[record.study_id]), reports.index(words[column])] += 1
    assert answers.sum(1).tolist() == [HELD_OUT // len(KINDS)] * len(KINDS)
    kinds = np.arange(len(KINDS))
    chance = np.array([answers[kinds, dealt].sum() for dealt in itertools.permutations(kinds)]) / HELD_OUT
    assert np.trace(answers) / HELD_OUT == pytest.approx(recall)
    assert chance.mean() == pytest.approx(1 / len(KINDS))
    if shuffled:
        assert min(np.mean(chance >= recall - 1e-9), np.mean(chance <= recall + 1e-9)) > 0.005
    else:
        assert recall == result.value("retrieval/text_to_image/text/R@1/model") == 1.0
        assert np.mean(chance >= recall) == 1 / 720
        assert result.metrics["numbers"]["organs/macro/AUROC/query"]["low"] > 0.5
