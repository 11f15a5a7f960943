"""Segmentation: Dice and its loss, the decoder, whole volumes from crops."""

import math

import numpy as np
import pytest
import torch
from tinytransfer import INPUT, RESNET

from medvl.encoders.image import build_image_encoder
from medvl.errors import UsageError
from medvl.evaluation.bootstrap import Bootstrap
from medvl.evaluation.transfer_tasks import part_numbers
from medvl.heads.segmentation import PartDecoder, Segmenter, dice, part_loss, segment
from medvl.heads.transfer import label_loss
from medvl.specs import VolumeInput

# --- the figures --------------------------------------------------------------------------------


def test_dice_is_the_loop():
    random = np.random.default_rng(0)
    found, truth = (random.integers(0, 5, (4, 5, 6)).astype(np.uint8) for _ in range(2))
    found[found == 4] = 0
    truth[truth == 4] = 0
    values = dice(found, truth, parts=5)
    for part in (1, 2, 3):
        a, b = set(np.flatnonzero(found == part)), set(np.flatnonzero(truth == part))
        assert values[part - 1] == pytest.approx(2 * len(a & b) / (len(a) + len(b)))
    assert np.isnan(values[3]) and np.isnan(values[4])
    assert dice(np.zeros((2, 2), np.uint8), np.ones((2, 2), np.uint8), parts=1).tolist() == [0.0]


def test_the_loss_of_uniform_scores_is_its_closed_form():
    numbers = torch.zeros(2, 2, 2, 2, dtype=torch.uint8)
    numbers[0, 0] = 1  # 4 of 16 voxels
    # Cross-entropy ln 2; soft Dice of class k: (2·n_k/2)/(8 + n_k) with n = 12 and 4, over both images.
    expected = math.log(2) + 1 - (12 / 20 + 4 / 12) / 2
    assert float(part_loss(torch.zeros(2, 2, 2, 2, 2), numbers)) == pytest.approx(expected, abs=1e-5)


def test_numbers_are_means_over_records_that_have_the_part():
    scores = np.array([[0.5, np.nan], [1.0, 0.2], [0.0, np.nan], [0.9, 0.6]])
    bootstrap = Bootstrap(["a", "a", "b", "c"], resamples=200, seed=3)
    numbers = part_numbers(np.column_stack([scores, np.full(4, np.nan)]), ["lungs", "liver", "x"], bootstrap)
    assert list(numbers) == ["dice/macro", "dice/lungs", "dice/liver"]
    assert numbers["dice/lungs"].value == pytest.approx(0.6) and numbers["dice/lungs"].n == 4
    assert numbers["dice/liver"].value == pytest.approx(0.4) and numbers["dice/liver"].n == 2
    assert numbers["dice/macro"].value == pytest.approx(0.5)
    drawn = []
    for row in bootstrap.draws:  # how often patients a, b and c were drawn
        weights = row[[0, 0, 1, 2]]
        seen = ~np.isnan(scores[:, 1])
        drawn.append((weights @ scores[:, 0]) / weights.sum())
        assert seen.sum() == 2
    low, high = np.quantile(drawn, (0.025, 0.975))
    assert (numbers["dice/lungs"].low, numbers["dice/lungs"].high) == (
        pytest.approx(low),
        pytest.approx(high),
    )
    assert numbers["dice/liver"].undefined == sum(row[0] + row[2] == 0 for row in bootstrap.draws)


def test_unknown_labels_teach_nothing():
    scores = torch.tensor([[2.0, -1.0], [0.5, 3.0]], requires_grad=True)
    labels = torch.tensor([[1.0, torch.nan], [0.0, torch.nan]])
    value = label_loss(scores, labels)
    expected = (math.log1p(math.exp(-2.0)) + math.log1p(math.exp(0.5))) / 2
    assert float(value.detach()) == pytest.approx(expected, rel=1e-6)
    value.backward()
    assert (scores.grad[:, 1] == 0).all() and (scores.grad[:, 0] != 0).all()
    assert float(label_loss(scores.detach(), torch.full((2, 2), torch.nan))) == 0.0


# --- the decoder --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "grid", "levels"),
    [((24, 20, 16), (6, 5, 4), 2), ((14, 28, 7), (1, 2, 1), 4), ((32, 24), (4, 3), 3)],
)
def test_the_decoder_reaches_the_size_of_the_image(size, grid, levels):
    decoder = PartDecoder(
        axes=len(size), region_width=32, channels=2, classes=3, levels=levels, width=4
    ).eval()
    images, regions = torch.randn(2, 2, *size), torch.randn(2, math.prod(grid), 32)
    scores = decoder(images, regions, grid=grid)
    assert scores.shape == (2, 3, *size)
    alone = decoder(images[1:], regions[1:], grid=grid)
    torch.testing.assert_close(alone[0], scores[1], atol=1e-5, rtol=1e-4)
    changed = decoder(images, regions + 1.0, grid=grid)
    assert not torch.allclose(changed, scores)  # it reads the regions
    changed = decoder(images * 2.0, regions, grid=grid)
    assert not torch.allclose(changed, scores)  # and the image


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("resnet", {**RESNET, "channels": 1}, (16, 16, 8)),
        ("vit", {"size_px": [16, 16, 8], "patch_px": [8, 8, 4], "width": 24, "layers": 1, "heads": 2,
                 "hidden": 24, "region_layers": [1]}, (16, 16, 8)),
        ("slices", {"encoder": "resnet", "options": {"widths": [8], "blocks": [1]}, "channels": 1,
                    "size_px": [16, 16, 8]}, (16, 16, 8)),
        ("resnet", {"widths": [8, 16], "blocks": [1, 1]}, (32, 32)),
    ],
)  # fmt: skip
def test_every_parameter_of_a_segmenter_learns(name, options, size):
    torch.manual_seed(0)
    net = Segmenter(build_image_encoder(name, options), parts=("a", "b"), size_px=size, width=4)
    images, mask = torch.randn(2, 1, *size), torch.ones(2, *size, dtype=torch.bool)
    numbers = torch.randint(0, 3, (2, *size)).to(torch.uint8)
    part_loss(net(images, mask), numbers).backward()
    # The pooled vector teaches nothing here; whatever serves it alone may stay without a gradient.
    alone = ("encoder.pooler.",)
    missing = [n for n, p in net.named_parameters() if p.grad is None and not n.startswith(alone)]
    assert missing == []


# --- whole volumes ------------------------------------------------------------------------------


def small_segmenter(size):
    torch.manual_seed(4)
    tower = build_image_encoder("resnet", {**RESNET, "norm": "group"})
    return Segmenter(tower, parts=("a", "b", "c"), size_px=size, width=4).eval()


def test_a_large_volume_takes_each_voxel_from_the_crop_that_shows_most_around_it():
    input = VolumeInput(size_px=(8, 8, 8), windows=((0.0, 2000.0),))
    net = small_segmenter((8, 8, 8))
    stored = np.random.default_rng(0).integers(-900, 900, (13, 6, 8)).astype(np.int16)
    found = segment(net, stored, input=input)
    tiles = input.tiles(stored.shape)
    assert len(tiles) == 2
    crops = []
    for start in tiles:
        tensor, mask = input.apply(stored, start=start)
        with torch.inference_mode():
            scores = net(torch.from_numpy(tensor)[None], torch.from_numpy(mask)[None])
        crops.append(scores[0].argmax(0).numpy())
    pad = 1  # 6 voxels of y lie in the middle of 8
    for voxel in np.ndindex(13, 6, 8):
        x, y, z = voxel
        depths, numbers = [], []
        for start, crop in zip(tiles, crops, strict=True):
            place = (x - start[0], y + pad, z)
            if 0 <= place[0] < 8:
                depths.append(min(min(p, 7 - p) for p in place))
                numbers.append(crop[place])
        assert found[voxel] == numbers[int(np.argmax(depths))]


def test_with_a_resizing_input_a_voxel_takes_the_part_at_its_place():
    input = VolumeInput(size_px=(8, 8, 8), windows=((0.0, 2000.0),), fit="resize")
    net = small_segmenter((8, 8, 8))
    stored = np.random.default_rng(0).integers(-900, 900, (16, 12, 16)).astype(np.int16)
    found = segment(net, stored, input=input)
    tensor, mask = input.apply(stored)
    with torch.inference_mode():
        shown = net(torch.from_numpy(tensor)[None], torch.from_numpy(mask)[None])[0].argmax(0).numpy()
    # Half the size: y has 6 of 8 voxels, one of padding on each side.
    for x, y, z in np.ndindex(16, 12, 16):
        assert found[x, y, z] == shown[x // 2, y // 2 + 1, z // 2]


def test_films_have_no_parts():
    tower = build_image_encoder("resnet", {"widths": [8], "blocks": [1]})
    net = Segmenter(tower, parts=("a",), size_px=(16, 16), width=4)
    with pytest.raises(UsageError, match="encoder 'resnet' reads films"):
        segment(net, np.zeros((8, 8, 8), np.int16), input=INPUT)
