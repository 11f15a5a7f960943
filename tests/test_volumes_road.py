"""Volumes on the whole road: sliding windows, parts, training, evaluation, pictures, search, bundle."""

import dataclasses
import itertools
import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from medvl.alignment import TowerRecipe, build_model
from medvl.anatomy import PARTS
from medvl.bundle import export, load_bundle
from medvl.errors import CheckpointError, ConfigError, IrregularSeries, NotDicom, UsageError
from medvl.evaluation.cases import choose_cases
from medvl.evaluation.grounding import (
    box_mask,
    box_sides,
    cells_in_boxes,
    contrast_to_noise,
    mean_iou,
    pointing,
)
from medvl.evaluation.organs import organ_pool, part_vectors
from medvl.evaluation.retrieval import Keys
from medvl.evaluation.retrieval_rows import sideways_numbers
from medvl.evaluation.run import evaluate
from medvl.evaluation.subject import find_subject
from medvl.features import ImageFeatures
from medvl.heads.grounding import cell_map, heat_map, volume_vectors
from medvl.heads.zeroshot import read_prompts
from medvl.images import Image, Unit
from medvl.model import Model, read_volume
from medvl.modeldir import LoadedModel, read_model, write_model
from medvl.onnx_export import export_onnx
from medvl.planes import Montage, record_montage, window_of, windowed
from medvl.records import Box
from medvl.retrieval.index import build_index
from medvl.sliding import Lattice, part_cells, whole_volume
from medvl.specs import InputSpec, PixelSpec, ReportSpec, VolumeInput
from medvl.store import Store
from medvl.tokens import train_tokeniser
from medvl.training.recipe import load_recipe
from medvl.training.run import train

sys.path.insert(0, str(Path(__file__).parent))
from seriescases import write_series
from tinyvolumes import LIVER, LUNGS, SPEC, VOLUME, write_volumes

PROMPTS = Path(__file__).resolve().parents[1] / "recipes" / "ct" / "prompts.yaml"
RECIPE = "modality: ct\nimage: {name: resnet}\ntext: {name: bert}\nobjective: {name: organs}"


ONNX = {
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


def tiny(image="resnet", **changes) -> LoadedModel:
    torch.manual_seed(0)
    tokeniser = train_tokeniser(["the lungs are clear"], vocab_size=300)
    model = build_model(
        image=TowerRecipe(name=image, options=ONNX[image]),
        text=TowerRecipe(name="bert", options={"layers": 1, "width": 32, "heads": 2}),
        tokeniser=tokeniser,
    )
    input = VolumeInput(size_px=(16, 16, 16), windows=((0.0, 2000.0),))
    values = {"pixels": SPEC, "input": input, "report": ReportSpec(), "tokeniser": tokeniser} | changes
    return LoadedModel(model=model.eval(), **values)


# --- sliding windows ----------------------------------------------------------------------------


def means(cell):
    """Return an encoder whose regions are the means of cells of ``cell`` voxels."""

    def encode(images, mask):
        regions = torch.nn.functional.avg_pool3d(images, cell).flatten(2).transpose(1, 2)
        seen = torch.nn.functional.max_pool3d(mask[:, None].float(), cell).flatten(1) > 0
        grid = tuple(side // cell for side in images.shape[2:])
        return ImageFeatures(images.flatten(2).mean(2), regions, grid, seen)

    return encode


WIDE = VolumeInput(size_px=(8, 8, 8), windows=((0.0, 60000.0),), mean=(0.0,), std=(1.0,))


def test_windows_of_a_cellwise_encoder_give_the_cells_of_the_whole():
    """Starts 0, 6, 12 are multiples of the cell of 2, so every cell's mean is that of the whole volume."""
    volume = np.random.default_rng(0).integers(-1000, 1000, (20, 8, 14), dtype=np.int16)
    found = whole_volume(means(2), WIDE, volume)
    assert found.grid == (10, 4, 7) and found.mask.all()
    assert found.lattice == Lattice((1.0,) * 3, (0.0,) * 3, (20.0, 8.0, 14.0))
    cells = WIDE.window(volume)[0].reshape(10, 2, 4, 2, 7, 2).mean((1, 3, 5))
    assert np.abs(found.regions[:, 0] - cells.ravel()).max() < 1e-6


def test_windows_beside_the_cells_share_by_overlap():
    """Along x: length 11, windows at 0, 3 (11 - 8), cell 4: the second window's cells 3-7, 7-11 lie beside
    the whole's 0-4, 4-8, 8-12. Cell 0: window 1's first with weight 1 and 1/4 of window 2's first, and so on.
    """
    volume = np.zeros((11, 8, 8), np.int16)
    volume[:] = (np.arange(11) * 1000)[:, None, None]
    found = whole_volume(means(4), WIDE, volume)
    value = WIDE.window((np.arange(11) * 1000)[:, None, None].astype(np.int16))[0, :, 0, 0]
    first = [value[0:4].mean(), value[4:8].mean()]
    second = [value[3:7].mean(), value[7:11].mean()]
    expected = [
        (first[0] + second[0] / 4) / 1.25,
        (first[1] + 0.75 * second[0] + 0.25 * second[1]) / 2,
        second[1],
    ]
    assert found.grid == (3, 2, 2)
    assert np.allclose(found.regions[:, 0].reshape(3, 2, 2)[:, 0, 0], expected, atol=1e-6)


def test_pooled_is_the_mean_over_windows_by_their_voxels():
    volume = np.random.default_rng(1).integers(-1000, 1000, (20, 5, 14), dtype=np.int16)
    found = whole_volume(means(2), WIDE, volume)
    windows = [WIDE.apply(volume, start=start)[0].mean() for start in WIDE.tiles(volume.shape, overlap=0.25)]
    # Every window has 8 × 5 × 8 voxels of the scan, so the weights are equal.
    assert found.pooled[0] == pytest.approx(np.mean(windows), abs=1e-6)
    # 5 voxels are padded to 8 by one before and two after: cells 0 to 3 see 1, 2, 2 and 0 of them.
    assert found.mask.reshape(found.grid)[0, :, 0].tolist() == [True, True, True, False]
    assert found.lattice.offset == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("shape", [(20, 8, 14), (30, 17, 9), (5, 6, 7)])
def test_how_many_windows_at_once_changes_nothing(shape):
    loaded = tiny()
    volume = np.random.default_rng(2).integers(-1000, 1000, shape, dtype=np.int16)
    one, many = (whole_volume(loaded.model.encode_image, loaded.input, volume, windows=n) for n in (1, 50))
    assert one.grid == many.grid and np.array_equal(one.mask, many.mask)
    assert np.abs(one.regions - many.regions).max() < 1e-5 and np.abs(one.pooled - many.pooled).max() < 1e-5


def test_a_volume_of_one_window_is_embedded_at_once():
    loaded = tiny()
    volume = np.random.default_rng(3).integers(-1000, 1000, (16, 12, 16), dtype=np.int16)
    found = volume_vectors(loaded, volume)
    features = loaded.model.encode_image(*loaded.image_tensors([volume]))
    assert np.allclose(found.pooled, features.pooled.detach().numpy(), atol=1e-6)
    seen = features.region_mask.numpy()
    assert found.grid == features.region_grid and np.array_equal(found.mask, seen)
    assert np.allclose(found.regions[seen], features.regions.detach().numpy()[seen], atol=1e-6)
    assert found.lattice == Lattice.of(loaded.input, volume.shape)
    unit = loaded.embed_images([volume, volume])
    assert np.allclose(unit[0], unit[1]) and np.linalg.norm(unit[0]) == pytest.approx(1, abs=1e-6)


def test_a_model_of_films_refuses_volumes():
    films = tiny(input=InputSpec(size_px=(16, 16)), pixels=PixelSpec())
    with pytest.raises(ConfigError, match="reads films; a volume was given"):
        films.whole(np.zeros((8, 8, 8), np.int16))


@pytest.mark.parametrize("fit", ["crop", "resize"])
def test_part_cells_against_a_loop(fit):
    rng = np.random.default_rng(4)
    input = VolumeInput(size_px=(12, 8, 8), fit=fit)
    numbers = rng.integers(0, 4, (9, 13, 6)).astype(np.uint8) * (rng.random((9, 13, 6)) < 0.05)
    numbers = numbers.astype(np.uint8)
    lattice, grid = Lattice.of(input, numbers.shape), (3, 2, 4)
    expected = np.zeros((*grid, 2), bool)
    for voxel in itertools.product(*map(range, numbers.shape)):
        part = int(numbers[voxel])
        place = [(v + 0.5) * s + o for v, s, o in zip(voxel, lattice.scale, lattice.offset, strict=True)]
        cell = [int(np.floor(p * g / n)) for p, g, n in zip(place, grid, input.size_px, strict=True)]
        if 1 <= part <= 2 and all(0 <= c < g for c, g in zip(cell, grid, strict=True)):
            expected[(*cell, part - 1)] = True
    found = part_cells(numbers, lattice=lattice, grid=grid, parts=2)
    assert np.array_equal(found, expected.reshape(-1, 2)) and expected.any()


# --- grounding ----------------------------------------------------------------------------------


def test_a_map_in_three_axes_is_trilinear_and_nan_where_nobody_looked():
    """Cells on a line from 0 to 1 along y: voxel centres read between cell centres; the crop ends inside."""
    cells = np.zeros((2, 2, 2))
    cells[:, 1] = 1.0
    input = VolumeInput(size_px=(4, 4, 4))
    heat = heat_map(cells, input=input, shape=(4, 8, 4), sigma=0.0)
    assert np.isnan(heat[:, :2]).all() and np.isnan(heat[:, 6:]).all()
    assert np.allclose(heat[1, 2:6, 3], [0, 0.25, 0.75, 1.0])  # as the films' example
    smooth = heat_map(np.where(np.arange(8).reshape(2, 2, 2) < 7, 0.3, np.nan), input=input, shape=(4, 4, 4))
    assert np.allclose(smooth, 0.3)  # a constant stays one beside cells without a scan


def test_slabs_of_a_large_map_are_the_map(monkeypatch):
    cells = np.random.default_rng(5).normal(size=(3, 4, 2))
    input = VolumeInput(size_px=(12, 16, 8), fit="resize")
    whole = heat_map(cells, input=input, shape=(25, 30, 17))
    monkeypatch.setattr("medvl.heads.grounding._SLAB", 1000)
    assert np.array_equal(heat_map(cells, input=input, shape=(25, 30, 17)), whole, equal_nan=True)


def test_cells_and_voxels_in_boxes():
    box = Box("nodule", x0=1.0, y0=2.5, x1=3.0, y1=4.0, z0=7.9, z1=9.0)
    cells = cells_in_boxes([box], grid=(2, 4, 2), size_px=(4, 8, 16))
    expected = np.zeros((2, 4, 2), bool)
    expected[:, 1, 0] = expected[:, 1, 1] = True  # x cells 0-2 and 2-4; y cell 2-4; z cells 0-8 and 8-16
    assert np.array_equal(cells, expected)
    voxels = box_mask([box], shape=(4, 8, 16))
    assert voxels.sum() == 2 * 2 * 1 and voxels[1:3, 2:4, 8].all()  # centres 1.5, 2.5; 2.5, 3.5; 8.5
    flat = dataclasses.replace(box, z0=None, z1=None)
    with pytest.raises(UsageError, match="the box of 'nodule' has no z"):
        box_sides(flat, axes=3)


def test_metrics_of_a_map_in_three_axes():
    """A map that is 1 in the box and 0 beside points right, has IoU 1 at every threshold and no noise."""
    inside = np.zeros((4, 5, 6), bool)
    inside[1:3, 2:4, 3] = True
    heat = inside.astype(float)
    assert pointing(heat, inside) == (1.0, 4 / 120)
    assert mean_iou(heat, inside) == 1.0 and contrast_to_noise(heat, inside) is None
    rng = np.random.default_rng(6)
    noisy = heat + rng.normal(size=heat.shape)
    out = noisy[~inside]
    expected = (noisy[inside].mean() - out.mean()) / np.sqrt(noisy[inside].var() + out.var())
    assert contrast_to_noise(noisy, inside) == pytest.approx(expected)


def test_cell_map_of_three_axes():
    regions = np.eye(8)
    found = cell_map(regions, regions[5], grid=(2, 2, 2), mask=np.arange(8) != 2)
    assert found[1, 0, 1] == 1 and np.isnan(found[0, 1, 0]) and np.nansum(found) == 1
    with pytest.raises(UsageError, match=r"a grid of \(2, 2\) does not hold 8 regions"):
        cell_map(regions, regions[0], grid=(2, 2), mask=np.ones(8, bool))


# --- pictures -----------------------------------------------------------------------------------


def test_slices_hang_as_radiologists_hang_them():
    """x grows to the right, y to the front, z to the top: the first voxel is left, back and low."""
    volume = np.full((4, 6, 8), -1024, np.int16)
    volume[3, 5, 7] = 3000  # the patient's right, front, top
    montage = Montage(volume.shape, (1.0, 1.0, 1.0), at=(3.5, 5.5, 7.5), side_px=140)
    axial, coronal, sagittal = montage.slices(volume)
    assert axial.shape == (6, 4) and coronal.shape == (8, 4) and sagittal.shape == (8, 6)
    for part in (axial, coronal, sagittal):  # right on the left; front or head at the top; front on the left
        assert part[0, 0] == 3000 and (part == 3000).sum() == 1
    # In px: x 4, y 6 mm wide with a gap of 4 between, so 14 mm over 140: 10 px a mm.
    picture = np.asarray(montage.grey(volume, (0.0, 100.0)))
    assert picture.shape == (180 * 140 // 180, 140 * 140 // 180) or picture.shape[0] == 140
    marks = montage.mark((3.5, 5.5, 7.5))
    for x, y in marks:  # each mark lies on the white voxel
        row, column = int(y / 100 * picture.shape[0]), int(x / 100 * picture.shape[1])
        assert picture[row, column] > 200


def test_boxes_are_drawn_on_the_slices_that_cut_them():
    montage = Montage((10, 10, 10), (1.0, 1.0, 1.0), at=(2.5, 5.5, 5.5), side_px=240)
    through = Box("a", x0=2.0, y0=5.0, x1=4.0, y1=7.0, z0=5.0, z1=8.0)
    beside = Box("b", x0=3.0, y0=5.0, x1=4.0, y1=7.0, z0=5.0, z1=8.0)
    assert len(montage.boxes(through)) == 3 and len(montage.boxes(beside)) == 2
    # On the axial slice: 10 px a mm; x 2-4 from the left of the patient is 60-80 px from the left edge.
    axial = montage.boxes(through)[0]
    assert [round(axial[key] * 2.4, 6) for key in ("left", "top", "width", "height")] == [60, 30, 20, 20]


def test_millimetres_decide_the_shape():
    montage = Montage((10, 10, 10), (1.0, 1.0, 4.0), side_px=540)  # 10 + 4 + 10 mm wide, 10 + 4 + 40 high
    assert montage.size_px == (240, 540)


def test_windows():
    assert windowed(np.array([[-160, 40, 240]], np.int16), (40, 400)).tolist() == [[0, 128, 255]]
    assert window_of(["lung_nodule"]) == (-600, 1500) and window_of(["liver_lesion", "x"]) == (40, 400)
    assert window_of([]) == (40, 400)


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
    montage = record_montage(record, Store(store).pixels(record), side_px=100)
    assert max(montage.size) == 100


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
@pytest.mark.parametrize("name", sorted(ONNX))
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
    heat = model.heat_map(tmp_path / "series", "A nodule in the lung.")
    assert heat.shape == model.stored(image).shape and not np.isnan(heat).all()
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
    with pytest.raises(ConfigError, match=r"recipe: unknown key 'input\.channels'"):
        load_recipe(RECIPE + "\ninput: {kind: volume, channels: 3}")
    with pytest.raises(ConfigError, match=r"input\.size_px"):
        load_recipe(RECIPE + "\ninput: {kind: volume, size_px: [8, 8]}")
