"""Volumes from file to vector on every way to a model, and findings scored from their own part."""

import csv
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from medvl.alignment import ProjectionConfig, TowerRecipe, build_model
from medvl.bundle import export, load_bundle
from medvl.evaluation.cases import Cases, choose_cases
from medvl.evaluation.embedding import Embedded
from medvl.evaluation.organs import PartVectors, organ_section
from medvl.evaluation.run import _score_parts
from medvl.evaluation.subject import Subject, find_subject
from medvl.heads.zeroshot import PromptPair, Prompts
from medvl.model import Model
from medvl.modeldir import LoadedModel
from medvl.phantoms import write_ct_phantoms
from medvl.preprocess.pipeline import prepare
from medvl.specs import ReportSpec, VolumeInput, VolumeSpec
from medvl.store import Store
from medvl.tokens import train_tokeniser
from medvl.training.recipe import load_recipe
from medvl.training.run import train

sys.path.insert(0, str(Path(__file__).parent))
from tinyvolumes import write_volumes

RECIPE = "modality: ct\nimage: {name: resnet}\ntext: {name: bert}\nobjective: {name: organs, positives: same}"
SMALL = (
    "image.options={widths: [8, 16], blocks: [1, 1], stem_px: 3}",
    "text.options={layers: 1, width: 32, heads: 2, dropout: 0.0}",
    "text.vocab_size=400",
    "machine.tensorboard=false",
)


# --- one study, one vector ----------------------------------------------------------------------


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def test_checkpoint_bundle_onnx_and_a_folder_of_dicom_agree(tmp_path):
    """A study of the store by weights, bundle, ONNX and its own series, in one window and in many.

    The crop of 24 × 16 × 18 voxels is smaller than the volumes, and no multiple of the stride. Of several
    windows the vector is the mean of theirs before normalising, weighted by the voxels of the scan; ONNX
    gives unit vectors, so it is held window by window.
    """
    import onnxruntime

    source, out = tmp_path / "source", tmp_path / "store"
    write_ct_phantoms(source, n=6, seed=3, size_px=64, traps=0.0, workers=1)
    spec = VolumeSpec(spacing_mm=(9.0, 9.0, 9.0))
    prepare(source, out, modality="ct", pixels=spec, key=bytes(32), workers=1)
    store = Store(out)
    crop = "input={kind: volume, size_px: [24, 16, 18], windows: [[0.0, 2000.0]], fit: crop}"
    recipe = load_recipe(RECIPE).with_overrides(
        [*SMALL, crop, "projection.dim=16", "schedule.steps=3", "data.batch=4", "data.split_seed=0"]
    )
    train(out, tmp_path / "run", recipe=recipe)
    loaded = find_subject(tmp_path / "run").loaded
    export(tmp_path / "run", tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    session = onnxruntime.InferenceSession(tmp_path / "bundle" / "models" / "image.onnx")

    with (out / "private" / "sources.csv").open() as stream:
        places = {row["item"]: source / row["path"] for row in csv.DictReader(stream)}
    chosen = [record for record in store.records if places[record.record_id].suffix == ".dcm"][:2]
    prompts = Prompts(version="0", template=PromptPair(positive=("a",), negative=("b",)))
    models = [loaded, bundle]
    models += [
        dataclasses.replace(
            model, input=VolumeInput(**json.loads(model.input.model_dump_json()) | {"fit": "resize"})
        )
        for model in (loaded, bundle)
    ]
    assert chosen
    for record in chosen:
        stored = store.pixels(record)
        folder = places[record.record_id].parent
        assert len(loaded.input.tiles(stored.shape)) > 2
        for run, exported in (models[:2], models[2:]):
            vector = run.embed_images([stored])[0]
            assert np.array_equal(exported.embed_images([stored])[0], vector)
            model = Model(exported, prompts=prompts)
            assert np.array_equal(model.stored(folder), stored)  # what is asked is read as the data were
            assert np.abs(model.embed_image(folder) - vector).max() < 1e-5
            summed: np.ndarray = np.zeros(len(vector))
            for start in run.input.tiles(stored.shape):
                image, mask = run.input.apply(stored, start=start)
                (answer,) = session.run(None, {"images": image[None], "image_mask": mask[None]})
                with torch.no_grad():
                    pooled = run.model.encode_image(
                        torch.from_numpy(image)[None], torch.from_numpy(mask)[None]
                    ).pooled[0]
                assert np.abs(answer[0] - unit(pooled.numpy())).max() < 1e-5
                summed += pooled.double().numpy() * mask.sum()
            assert np.abs(unit(summed) - vector).max() < 1e-5


# --- organs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> Cases:
    store = write_volumes(tmp_path_factory.mktemp("organs") / "store", n=40)
    return choose_cases(Store(store), split="test", split_seed=None)


FOR, AGAINST = np.array([1.0, 0.0]), np.array([0.0, 1.0])
DRAWS = {"uncertain": "exclude", "resamples": 10, "seed": 0}


def told(cases: Cases, finding: str, *, hidden: str = "") -> dict[int, PartVectors]:
    """Return vectors of two parts that tell a finding; the second part lies in no cell where it is hidden."""
    found = {}
    for row, record in enumerate(cases.images):
        vectors = np.stack([FOR if record.labels[finding] == "present" else AGAINST] * 2).astype(np.float32)
        if record.labels[finding] == hidden:
            vectors[1] = np.nan
        found[row] = PartVectors(vectors, None)
    return found


def test_organ_auroc_counts_the_studies_that_show_the_part(cases):
    """Part 1 tells its finding: AUROC 1, of whole volumes that are all equal 1/2. Part 2 is seen in those
    that have its finding only, as a device is: one class, named with the number of studies.
    """
    names = ["lung_nodule", "liver_lesion"]
    whole = np.zeros((len(cases.images), 2))
    directions = dict.fromkeys(names, (FOR, AGAINST))
    found = organ_section(
        cases, told(cases, names[0]), whole, findings=names[:1], numbers=[1], directions=directions, **DRAWS
    )
    assert found.numbers["lung_nodule/AUROC/regions"].value == 1.0
    assert found.numbers["lung_nodule/AUROC/whole"].value == 0.5 and not found.left_out
    parts = told(cases, names[1], hidden="absent")
    found = organ_section(cases, parts, whole, findings=names, numbers=[1, 2], directions=directions, **DRAWS)
    studies = {record.study_id: record.labels[names[1]] == "present" for record in cases.images}
    n = sum(studies.values())
    assert 0 < n < len(studies) and "liver_lesion/AUROC/regions" not in found.numbers
    assert found.left_out == {
        "study and finding whose part the segmentation does not show": len(studies) - n,
        f"finding liver_lesion, which has one class where its part is seen ({n} present of {n} known)": n,
    }


def test_organ_auroc_by_the_numbers_of_the_store(cases):
    """A store of one part calls the liver number 1, which is number 11 of CT; it has no lungs."""
    torch.manual_seed(0)
    tokeniser = train_tokeniser(["a lesion in the liver"], vocab_size=300)
    model = build_model(
        image=TowerRecipe(name="resnet", options={"axes": 3, "widths": [4, 8], "blocks": [1, 1]}),
        text=TowerRecipe(name="bert", options={"layers": 1, "width": 16, "heads": 2}),
        tokeniser=tokeniser,
        projection=ProjectionConfig(dim=2),
    )
    loaded = LoadedModel(model.eval(), VolumeSpec(parts=("liver",)), VolumeInput(), ReportSpec(), tokeniser)
    vectors = np.ones((len(cases.images), 2), np.float32)
    parts = {row: PartVectors(vectors[row : row + 1], None) for row in range(len(vectors))}
    found = _score_parts(
        Subject(loaded, "model", "", None, {}, Path()),
        "ct",
        cases,
        Embedded(vectors, vectors, {}, parts),
        Prompts(version="0", template=PromptPair(positive=("{finding}",), negative=("no {finding}",))),
        "exclude",
        {"resamples": 10, "seed": 0},
    )
    assert {key.partition("/")[0] for key in found.numbers} == {"liver_lesion", "macro"}
