"""Volumes on the whole road: parts, training, evaluation, search, bundle, one volume as a question."""

import dataclasses
import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from medvl.anatomy import PARTS
from medvl.bundle import export, load_bundle
from medvl.errors import CheckpointError, ConfigError, IrregularSeries, MultiFrame, NotDicom, UsageError
from medvl.evaluation.cases import choose_cases
from medvl.evaluation.embedding import embed_cases
from medvl.evaluation.organs import organ_pool, part_vectors
from medvl.evaluation.retrieval import Keys
from medvl.evaluation.retrieval_rows import sideways_numbers
from medvl.evaluation.run import evaluate
from medvl.evaluation.sections import grounding_section
from medvl.evaluation.subject import find_subject
from medvl.heads.grounding import phrase_vector
from medvl.heads.zeroshot import read_prompts
from medvl.images import Image, Unit
from medvl.model import Model, read_volume
from medvl.modeldir import read_model, write_model
from medvl.onnx_export import export_onnx
from medvl.planes import record_montage
from medvl.retrieval.index import build_index
from medvl.specs import VolumeInput
from medvl.store import Store
from medvl.training.recipe import load_recipe
from medvl.training.run import train
from medvl.training.state import write_state

sys.path.insert(0, str(Path(__file__).parent))
from seriescases import write_series
from tinyvolumes import ENCODERS, LIVER, LUNGS, SPEC, VOLUME, tiny, write_volumes

PROMPTS = Path(__file__).resolve().parents[1] / "recipes" / "ct" / "prompts.yaml"
RECIPE = "modality: ct\nimage: {name: resnet}\ntext: {name: bert}\nobjective: {name: organs}"


# --- the road -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return write_volumes(tmp_path_factory.mktemp("road") / "store", n=40)


@pytest.fixture(scope="module")
def run(store) -> Path:
    recipe = load_recipe(RECIPE).with_overrides([*VOLUME, "schedule.steps=4", "loop.every_steps=2"])
    train(store, store.parent / "run", recipe=recipe)
    return store.parent / "run"


@pytest.fixture(scope="module")
def evaluated(run, store):
    return evaluate(run, store, resamples=50)


def test_regions_know_their_parts(store):
    """The parts of regions are those of voxels, pooled by their maximum over each cell."""
    loaded = tiny()
    record = next(r for r in Store(store).records if r.parts_size)
    numbers = Store(store).parts(record)[:16, :16, :16]
    images, masks = loaded.image_tensors([Store(store).pixels(record)[:16, :16, :16]])
    features = loaded.model.project_image(
        images, masks, voxel_parts=torch.from_numpy(numbers)[None], body_parts=len(PARTS["ct"])
    )
    grid = features.region_grid
    for part in (LUNGS, LIVER):
        cells = (numbers == part).reshape(
            grid[0], 16 // grid[0], grid[1], 16 // grid[1], grid[2], 16 // grid[2]
        )
        assert np.array_equal(features.region_parts[0, :, part - 1].numpy(), cells.max((1, 3, 5)).ravel())
    assert loaded.model.project_image(images, masks).region_parts is None
    plain = loaded.model.project_image(images, masks, parts=False, voxel_parts=None)
    assert plain.region_grid == (1, 1, 1)


def test_training_reads_the_parts(store, tmp_path):
    """A step with and without the segmentation: the term of whole cases is equal, that of organs not."""
    losses = []
    for name in ("organs", "blind"):
        path = write_volumes(tmp_path / name, n=24)
        if name == "blind":
            import pyarrow.parquet as pq

            table = pq.read_table(path / "index.parquet")
            at = table.schema.get_field_index("parts_size")
            zero = type(table["parts_size"])
            table = table.set_column(at, "parts_size", [[0] * table.num_rows])
            pq.write_table(table, path / "index.parquet")
            assert zero
        recipe = load_recipe(RECIPE).with_overrides([*VOLUME, "schedule.steps=1", "loop.log_every=1"])
        train(path, tmp_path / f"run-{name}", recipe=recipe)
        rows = (tmp_path / f"run-{name}" / "metrics.csv").read_text().splitlines()
        losses.append(dict(zip(rows[0].split(","), rows[1].split(","), strict=True)))
    assert losses[0]["train/instance"] == losses[1]["train/instance"]
    assert losses[0]["train/organs"] != losses[1]["train/organs"]


def test_workers_and_chunks_learn_alike(store, tmp_path):
    """Without norms of the batch and dropout, a chunk's loss is that of the whole but for rounding."""
    changes = [
        *VOLUME,
        "image.options={widths: [8, 16], blocks: [1, 1], stem_px: 3, norm: group}",
        "text.options={layers: 1, width: 32, heads: 2, dropout: 0.0}",
        "schedule.steps=2",
        "loop.log_every=1",
    ]
    weights, losses = [], []
    for name, more in {
        "plain": [],
        "workers": ["machine.workers=2", "machine.cache_mb=0"],
        "chunks": ["data.chunk=5"],
    }.items():
        train(store, tmp_path / name, recipe=load_recipe(RECIPE).with_overrides([*changes, *more]))
        weights.append(find_subject(tmp_path / name).loaded.model.state_dict())
        rows = [row.split(",") for row in (tmp_path / name / "metrics.csv").read_text().splitlines()]
        losses.append([float(row[rows[0].index("train/loss")]) for row in rows[1:]])
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    assert losses[0] == losses[1] and losses[2] == pytest.approx(losses[0], rel=1e-4)


def test_a_store_that_numbers_parts_otherwise_is_refused(store, tmp_path):
    import shutil

    shutil.copytree(store, tmp_path / "other")
    about = json.loads((tmp_path / "other" / "store.json").read_text())
    about["specs"]["pixels"]["parts"] = ["liver", "lungs"]
    (tmp_path / "other" / "store.json").write_text(json.dumps(about))
    recipe = load_recipe(RECIPE).with_overrides(VOLUME)
    with pytest.raises(
        ConfigError, match="the store numbers the parts liver, lungs, sentences lungs, airways"
    ):
        train(tmp_path / "other", tmp_path / "run", recipe=recipe)


def test_an_evaluation_of_volumes(evaluated, store):
    numbers = evaluated.metrics["numbers"]
    for key in (
        "retrieval/image_to_text/id/R@1/model",
        "retrieval/image_to_image/id/R@1/model",
        "retrieval/image_to_image/label/mAP/chance",
        "zeroshot/macro/AUROC/model",
        "organs/macro/AUROC/query",
        "organs/macro/AUROC/regions",
        "organs/macro/AUROC/whole",
        "grounding/all/pointing/model",
    ):
        assert 0 <= numbers[key]["value"] <= 1, key
    assert evaluated.metrics["data"]["noun"] == "volume"
    left_out = evaluated.metrics["left_out"]
    without = [
        r for r in choose_cases(Store(store), split="test", split_seed=None).images if not r.parts_size
    ]
    assert left_out.get("volume without a segmentation (out of the organs' AUROC)", 0) == len(without)
    page = evaluated.page.read_text("utf-8")
    assert (
        "Axial, coronal and sagittal" in page and "Volume → report" in page and "film" not in evaluated.table
    )
    assert any("from the finding's own part" in line for line in evaluated.lines())


def test_both_reconstructions_are_right_hits(store):
    cases = choose_cases(Store(store), split="test", split_seed=None)
    images, texts = cases.keys()
    records = [cases.images[row] for row in cases.with_text]
    twins = [row for row, record in enumerate(records) if record.record_id.endswith("r1")]
    assert twins
    for row in twins:
        partner = [r.record_id for r in records].index(records[row].record_id[:-1] + "0")
        assert images.study[row] == images.study[partner]
        assert (texts.study == images.study[row]).sum() == 1  # one report for both


def test_volumes_that_find_volumes():
    """Two studies of two reconstructions and one of one. Cosines put the twin first for rows 0 to 3.

    By id: rows 0 to 3 have a right answer, all first, R@1 = 1; chance is 1 of 4 others. By findings: studies
    0 and 2 are equal; row 0's candidates are rows 2, 3 and 4, row 4's all four others; with these cosines
    rows 0 and 1 find row 4 first (0.5 before 0.1), and row 4 rows 0 and 1.
    """
    keys = Keys(np.array([0, 0, 1, 1, 2]), np.array([-1] * 5), np.array([7, 7, 8, 8, 7]))
    scores = np.full((5, 5), 0.1)
    scores[:2, :2] = scores[2:4, 2:4] = 0.9
    scores[4, :2] = scores[:2, 4] = 0.5
    np.fill_diagonal(scores, 1.0)
    numbers, left_out = sideways_numbers(scores, keys, patients=[0, 0, 1, 1, 2], resamples=20)
    assert left_out == {"id": 1, "text": 5, "label": 2}
    assert numbers["id/R@1/model"].value == 1 and numbers["id/R@1/chance"].value == pytest.approx(1 / 4)
    assert numbers["label/R@1/model"].value == 1 and numbers["label/mAP/model"].value == 1
    # Chance at 1 by findings: rows 0 and 1 have 1 of 3 candidates, row 4 has 2 of 4.
    assert numbers["label/R@1/chance"].value == pytest.approx((1 / 3 + 1 / 3 + 1 / 2) / 3)


def test_vectors_of_parts():
    regions = np.random.default_rng(8).normal(size=(6, 4)).astype(np.float32)
    cells = np.zeros((6, 3), bool)
    cells[1:3, 0] = cells[4, 2] = True
    found = part_vectors(regions, cells, pool=None)
    assert np.allclose(found.regions[0], regions[1:3].mean(0)) and np.allclose(found.regions[2], regions[4])
    assert np.isnan(found.regions[1]).all() and found.query is None


def test_queries_come_from_the_checkpoint(run, store):
    subject = find_subject(run)
    pool = organ_pool(subject.folder, subject.recipe)
    assert pool is not None and pool.query.shape == (len(PARTS["ct"]), 16)
    assert organ_pool(None, subject.recipe) is None
    regions = torch.randn(1, 5, 16)
    mask = torch.ones(1, 5, len(PARTS["ct"]), dtype=torch.bool)
    cells = mask[0].numpy()
    expected = pool(regions, mask)[0].detach().numpy()
    assert np.allclose(part_vectors(regions[0].numpy(), cells, pool=pool).query, expected, atol=1e-6)


def test_queries_of_another_kind_are_refused(run, tmp_path):
    subject = find_subject(run)
    pool = organ_pool(subject.folder, subject.recipe)
    tensors = {**pool.state_dict(), "value.weight": torch.eye(16)}  # what a projection of regions would be
    (tmp_path / "training").mkdir()
    state = {"state_dict": {f"objective.organs.pool.{name}": value for name, value in tensors.items()}}
    write_state(tmp_path / "training", state)
    with pytest.raises(CheckpointError, match=r"not those of this version: first tensor 'value\.weight'"):
        organ_pool(tmp_path, subject.recipe)


def test_maps_of_volumes_are_of_prompts_less_prompts_against(run, store, evaluated):
    loaded, wording = find_subject(run).loaded, read_prompts(PROMPTS)
    cases = choose_cases(Store(store), split="test", split_seed=None)
    embedded = embed_cases(loaded, Store(store), cases)
    boxed = {box.label for record in cases.images for box in record.boxes}
    found = {}
    for less in (True, False):
        phrases = {}
        for name in boxed:
            said = wording.of(name)
            phrases[name] = phrase_vector(loaded, said.positive, against=said.negative if less else ())
        section = grounding_section(cases, embedded, phrases, input=loaded.input, resamples=50, seed=0)
        found[less] = section.numbers["all/CNR/model"].value
    told = evaluated.metrics["numbers"]["grounding/all/CNR/model"]["value"]
    assert told == pytest.approx(found[True], abs=1e-5) and abs(told - found[False]) > 1e-3
    assert evaluated.metrics["protocol"]["grounding_phrase"].endswith("less its negative prompts")


def test_the_index_and_its_pictures(run, store, tmp_path):
    loaded = find_subject(run).loaded
    summary = build_index(loaded, Store(store), tmp_path / "index", about={})
    assert summary.records == len(Store(store))
    model = Model(loaded, prompts=read_prompts(PROMPTS))
    record = Store(store).records[0]
    image = Image(
        Store(store).pixels(record)[None],
        Unit.HU,
        affine_ras=np.array(record.affine_ras).reshape(4, 4),
        spacing_mm=record.spacing_mm,
    )
    hits = model.search(tmp_path / "index", image=image, k=3)
    assert len(hits) == 3 and len(hits.query_thumbnail) > 100
    import io

    picture = Pillow.open(io.BytesIO(hits[0].thumbnail))
    assert max(picture.size) == 280
    montage = record_montage(record, Store(store).pixels(record), side_px=400)
    assert max(montage.size) == 400
    nowhere = dataclasses.replace(record, affine_ras=())  # the letters come from where the volume lies
    assert record_montage(nowhere, Store(store).pixels(record), side_px=400).tobytes() != montage.tobytes()


def test_a_bundle_of_volumes(run, store, tmp_path):
    export(run, tmp_path / "bundle", onnx=False)
    loaded, bundled = find_subject(run).loaded, load_bundle(tmp_path / "bundle")
    volumes = [Store(store).pixels(record) for record in Store(store).records[:3]]
    assert np.array_equal(loaded.embed_images(volumes), bundled.embed_images(volumes))
    assert isinstance(bundled.input, VolumeInput) and bundled.pixels == SPEC
    about = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text())
    image = about["network_data_format"]["inputs"]["image"]
    assert image["modality"] == "CT" and image["spatial_shape"] == [24, 20, 16] and image["is_patch_data"]
    assert image["channel_def"] == {"0": "window 0 ± 1000 HU"} and image["value_range"] == [-2.0, 2.0]
    assert "CT volumes" in (tmp_path / "bundle" / "docs" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_onnx_says_what_the_model_says(name, tmp_path):
    """Every encoder of volumes, at random weights, on random volumes of two sizes of batch."""
    # DenseNet halves its maps five times.
    side = 32 if name == "densenet121" else 16
    input = VolumeInput(size_px=(side,) * 3, windows=((0.0, 2000.0),))
    parity = export_onnx(tiny(name, input=input), tmp_path)
    assert parity.image_max_difference < 1e-4


def test_specs_of_an_unknown_kind_are_refused(tmp_path):
    write_model(tmp_path / "model", tiny())
    assert read_model(tmp_path / "model").input == tiny().input
    path = tmp_path / "model" / "configs" / "specs.json"
    path.write_text(path.read_text().replace('"kind": "volume"', '"kind": "volumes"'))
    manifest = tmp_path / "model" / "configs" / "manifest.json"
    from medvl.store import file_sha256

    about = json.loads(manifest.read_text())
    about["files"]["configs/specs.json"] = file_sha256(path)
    manifest.write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match=r"kind is 'volumes'.*Did you mean 'volume'"):
        read_model(tmp_path / "model")


# --- one volume as a question -------------------------------------------------------------------


def test_a_series_a_nifti_file_and_an_image_are_one_volume(tmp_path):
    paths = write_series(tmp_path / "series", tuple(2.5 * k for k in range(12)))
    assert len(paths) == 12
    (tmp_path / "series" / "notes.txt").write_text("no DICOM")
    image = read_volume(tmp_path / "series")
    nibabel.save(nibabel.Nifti1Image(image.array[0], image.affine_ras), tmp_path / "v.nii.gz")
    model = Model(tiny(), prompts=read_prompts(PROMPTS))
    vectors = [model.embed_image(source) for source in (tmp_path / "series", tmp_path / "v.nii.gz", image)]
    # NIfTI keeps its affine in 32 bits.
    assert np.allclose(vectors[0], vectors[2], atol=1e-6) and np.allclose(vectors[1], vectors[2], atol=1e-3)
    phases = np.stack([image.array[0] * 0, image.array[0]], axis=-1)
    nibabel.save(nibabel.Nifti1Image(phases, image.affine_ras), tmp_path / "phases.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "phases.nii.gz", frame=1).array, image.array)
    with pytest.raises(MultiFrame, match="the file holds 2 volumes"):
        model.stored(tmp_path / "phases.nii.gz")  # the spec of the model chooses none
    heat = model.heat_map(tmp_path / "series", "A nodule in the lung.")
    assert heat.shape == model.stored(image).shape and not np.isnan(heat).all()
    # A map is linear in its phrase: that of a difference is the difference of two maps, up to its length.
    none = model.heat_map(image, "No nodule in the lung.")
    towards = model.heat_map(image, "A nodule in the lung.", against="No nodule in the lung.")
    ratio = (model.heat_map(image, "A nodule in the lung.") - none) / towards
    far = np.abs(towards) > 0.01
    assert far.any() and np.allclose(ratio[far], np.median(ratio[far]), rtol=1e-2) and ratio[far][0] > 0
    assert set(model.findings(image, ["lung_nodule"])) == {"lung_nodule"}


def test_a_folder_of_several_volumes_or_none(tmp_path):
    write_series(tmp_path / "two" / "a", tuple(2.5 * k for k in range(8)))
    write_series(tmp_path / "two" / "b", tuple(2.5 * k for k in range(6)), series=2)
    with pytest.raises(UsageError, match="the folder holds 2 volumes, of 8, 6 slices"):
        read_volume(tmp_path / "two")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotDicom, match="holds 0 DICOM files"):
        read_volume(tmp_path / "empty")
    (tmp_path / "empty" / "note.txt").write_text("x" * 200)
    with pytest.raises(NotDicom):
        read_volume(tmp_path / "empty")
    write_series(tmp_path / "gap", (0, 2.5, 5, 12.5, 15, 17.5))
    with pytest.raises(IrregularSeries, match="no regular volume"):
        read_volume(tmp_path / "gap")
    first = sorted((tmp_path / "two" / "a").iterdir())[0]
    with pytest.raises(UsageError, match=r"one slice was found.*Give the folder that holds every slice"):
        read_volume(first)
    with pytest.raises(ConfigError, match=r"recipe: unknown key 'input\.channels'"):
        load_recipe(RECIPE + "\ninput: {kind: volume, channels: 3}")
    with pytest.raises(ConfigError, match=r"input\.size_px"):
        load_recipe(RECIPE + "\ninput: {kind: volume, size_px: [8, 8]}")
