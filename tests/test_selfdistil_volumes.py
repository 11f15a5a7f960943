"""Self-distillation of volumes: crops along three axes, hidden blocks, values in HU, and a whole run."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tinyvolumes import write_volumes

from medvl import recipes
from medvl.data.augment import VolumeAugment, draw
from medvl.encoders.image import build_image_encoder
from medvl.errors import ConfigError
from medvl.specs import VolumeInput
from medvl.store import Store
from medvl.training.selfdistil.recipe import PretrainRecipe
from medvl.training.selfdistil.run import pretrain
from medvl.training.selfdistil.views import (
    Cut,
    FilmDataset,
    block_mask,
    crop,
    draw_box,
    draw_views,
    nothing_hu,
    volume_canvas,
)
from medvl.training.start import start_of

INPUT = VolumeInput(size_px=(16, 12, 8), windows=((0.0, 2000.0), (40.0, 400.0)))


def cut_for(input=INPUT, **changes):
    values = {
        "input": input, "grid": (4, 3, 2), "large": 2, "large_share": (0.5, 1.0), "small": 1,
        "small_share": (0.2, 0.5), "small_px": (8, 6, 4), "aspect": 4 / 3, "hidden_films": 1.0,
        "hidden": (0.1, 0.5),
    }  # fmt: skip
    return Cut(**{**values, **changes})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(write_volumes(tmp_path_factory.mktemp("volumes") / "store", n=12))


def test_a_crop_of_a_volume_reads_its_axes_in_order():
    x, y, z = np.meshgrid(np.arange(16), np.arange(12), np.arange(8), indexing="ij")
    canvas = (100 * x + 10 * y + z - 1000).astype(np.int16)[None]
    mask = np.ones(canvas.shape, bool)
    mask[0, :, :, 4:] = False
    same, inside = crop(canvas, mask, np.array([[0.0, 0, 0, 16, 12, 8]]), size_px=(16, 12, 8))
    assert np.array_equal(same, canvas) and np.array_equal(inside, mask)
    part, inside = crop(canvas, mask, np.array([[4.0, 2, 2, 8, 6, 4]]), size_px=(8, 6, 4))
    assert np.array_equal(part[0], canvas[0, 4:12, 2:8, 2:6]) and inside[0, ..., :2].all()
    assert not inside[0, ..., 2:].any()
    # Twice as fine along x: a voxel's centre lies at (i + ½)/2 − ½ of the old ones, a quarter off each.
    fine, _ = crop(canvas, mask, np.array([[4.0, 2, 2, 4, 6, 4]]), size_px=(8, 6, 4))
    assert fine[0, 2:4, 0, 0].tolist() == [canvas[0, 5, 2, 2] - 25, canvas[0, 5, 2, 2] + 25]


def test_boxes_of_volumes_have_their_share_and_see_the_scan():
    mask = np.zeros((16, 12, 8), bool)
    mask[10:, :, :4] = True
    for i in range(200):
        x, y, z, *sides = draw_box(mask, draw(i), share=(0.1, 0.4), aspect=4 / 3)
        assert 0.1 - 1e-9 <= np.prod(sides) / mask.size <= 0.4 + 1e-9
        relative = np.divide(sides, mask.shape)
        assert max(relative) / min(relative) <= (4 / 3) ** 2 + 1e-9
        assert min(x, y, z) >= 0 and (np.add([x, y, z], sides) <= np.add(mask.shape, 1e-9)).all()
        assert x + sides[0] / 2 >= min(10, 16 - sides[0] / 2) - 1e-9  # the centre, as far as sides allow


def test_hidden_blocks_of_volumes_reach_their_share():
    shares = np.array([block_mask((4, 4, 4), draw(i), share=(0.1, 0.5)).mean() for i in range(200)])
    assert shares.min() > 0.05 and shares.max() < 0.75 and 0.25 < shares.mean() < 0.45
    assert block_mask((4, 3, 2), draw(0), share=(0.3, 0.3)).shape == (24,)


@pytest.mark.parametrize("fit", ["crop", "resize"])
def test_a_canvas_shows_what_the_input_spec_shows(store, fit):
    input = INPUT.model_copy(update={"fit": fit})
    record = store.records[0]
    canvas, mask = volume_canvas(store, record, input=input, stream=draw(3))
    free = np.maximum(0, np.subtract(record.shape, input.size_px))
    start = np.floor(draw(3).uniform(size=3) * (free + 1)).astype(int).tolist()
    tensor, inside = input.apply(store.pixels(record), start=start)
    assert np.array_equal(mask, inside)
    # A film of nothing lies below every window, so it shows as the lowest value of each.
    np.testing.assert_allclose(input.window(canvas), tensor, atol=1e-6)
    assert nothing_hu(input) == -1001


def test_views_of_volumes_are_functions_of_the_key_and_change_values_in_hu(store):
    films = FilmDataset(store, "train", cut=cut_for())
    keys = [(0, 0), (0, 1), (1, 0)]
    views, again = films.views(keys), films.views(keys[1:2])
    assert views.large.shape == (2, 3, 2, 16, 12, 8) and views.small.shape == (1, 3, 2, 8, 6, 4)
    assert views.hidden.shape == (2, 3, 24) and views.hidden.any(2).all()
    assert torch.equal(again.large[:, 0], views.large[:, 1])
    assert not torch.equal(views.large[:, 0], views.large[:, 2])  # another epoch, another place
    canvas = np.zeros((1, 16, 12, 8), np.int16)
    mask = np.ones(canvas.shape, bool)
    mask[..., 4:] = False
    lifted = VolumeAugment(rotate_deg=0, shift=0, zoom=0, gain=0, offset_hu=100, noise_hu=0)
    shown = draw_views(canvas, mask, cut=cut_for(augment=lifted, large_share=(1.0, 1.0)), keys=[(0,)])
    wide = shown.large[:, 0, 0][shown.large_mask[:, 0]]
    # Window of 2000 HU about 0: HU h shows as (h/2000 + ½ − ½)/¼, for one offset a view.
    assert len(wide.unique()) == 2 and (wide.abs() <= 100 / 2000 / 0.25 + 1e-6).all()
    assert (shown.large[:, 0, 0][~shown.large_mask[:, 0]] == -2.0).all()


def recipe_for(*overrides):
    values = {
        "modality": "ct",
        "input": {"kind": "volume", "size_px": [16, 16, 8], "windows": [[0.0, 2000.0]]},
        "image": {"name": "resnet", "options": {"widths": [8, 8], "blocks": [1, 1], "stem_px": 3}},
    }
    small = [
        "data.batch=4", "schedule.steps=2", "crops.small=1", "loop.log_every=1", "machine.tensorboard=false",
        "objective.options={prototypes: 16, hidden: 16, bottleneck: 8}",
    ]  # fmt: skip
    return PretrainRecipe.from_values(values).with_overrides([*small, *overrides])


@pytest.mark.parametrize("tower", ["resnet", "vit", "slices"])
def test_a_run_ends_with_a_tower_that_an_alignment_can_start_from(store, tmp_path, tower):
    options = {
        "resnet": [],
        "vit": ["image.name=vit", "image.options={patch_px: 4, width: 16, hidden: 16, layers: 1, heads: 2}"],
        "slices": [
            "image.name=slices",
            "image.options={encoder: resnet, options: {widths: [8], blocks: [1], stem_px: 3}}",
        ],
    }[tower]
    summary = pretrain(store.path, tmp_path / "run", recipe=recipe_for(*options))
    assert (summary.status, summary.step) == ("finished", 2)
    start = start_of(tmp_path / "run" / "tower", side="image", name=tower)
    again = build_image_encoder(
        tower,
        {
            "resnet": {"axes": 3, "widths": [8, 8], "blocks": [1, 1], "stem_px": 3},
            "vit": {
                "size_px": [16, 16, 8], "patch_px": 4, "width": 16, "hidden": 16, "layers": 1, "heads": 2,
            },
            "slices": {
                "encoder": "resnet", "options": {"widths": [8], "blocks": [1], "stem_px": 3},
                "channels": 1, "size_px": [16, 16, 8],
            },
        }[tower],
    ).load_weights(start.tensors)  # fmt: skip
    assert len({path.stat().st_mode for path in (tmp_path / "run" / "tower").iterdir()}) == 1
    saved = load_file(tmp_path / "run" / "tower" / "image.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in again.state_dict().items())


def test_the_recipe_of_ct_makes_the_tower_of_the_others():
    recipe = recipes.resolve("dino", modality="ct")
    assert isinstance(recipe, PretrainRecipe)
    for name in ("global", "local-global"):
        other = recipes.resolve(name, modality="ct")
        assert (recipe.image.name, recipe.image.options) == (other.image.name, other.image.options)
        assert recipe.input == other.input


def test_small_views_have_as_many_sides_as_the_input():
    assert recipe_for().small_px == (8, 8, 4)
    with pytest.raises(ConfigError, match=r"small_px is \(8, 8\); the input has 3 axes, \(16, 16, 8\)"):
        _ = recipe_for("crops.small_px=[8,8]").small_px
