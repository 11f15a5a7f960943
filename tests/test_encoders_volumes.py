"""Encoders of volumes: against MONAI's own passes, loops over cells and slices, and closed forms."""

import json

import numpy as np
import pytest
import torch
from monai.networks.nets.swin_unetr import SwinTransformer
from safetensors.torch import save_file
from torch import nn

from medvl.encoders.image import build_image_encoder
from medvl.encoders.inflate import inflate
from medvl.encoders.lora import LoraOptions, add_lora, merge_lora
from medvl.encoders.regions import cover, from_map, part_cover
from medvl.errors import ConfigError
from medvl.training.start import start_of

VIT = {"size_px": [16, 16, 8], "patch_px": [4, 4, 2], "width": 24, "hidden": 32, "layers": 3, "heads": 2}
RESNET = {"axes": 3, "widths": [8, 16], "blocks": [2, 1], "stem_px": 3, "norm": "group"}
DENSE = {"axes": 3, "init_features": 8, "growth_rate": 4, "blocks": [2, 3], "norm": "group"}
SWIN = {"width": 12, "blocks": [2, 1], "heads": [2, 4]}
INNER = {"widths": [8, 16], "blocks": [2, 1], "norm": "group"}
SLICES = {"encoder": "resnet", "options": INNER, "channels": 1, "size_px": [16, 16, 8], "heads": 4}
TOWERS = [
    pytest.param("vit", VIT, 3, id="vit"),
    pytest.param("resnet", RESNET, 3, id="resnet"),
    pytest.param("densenet121", DENSE, 5, id="densenet"),
    pytest.param("swin", SWIN, 3, id="swin"),
    pytest.param("slices", SLICES, 3, id="slices"),
]


def volumes(count=2, channels=1, size=(16, 16, 8), seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, channels, *size, generator=generator)
    return images, torch.ones(count, *size, dtype=torch.bool)


def built(name, options, seed=1):
    torch.manual_seed(seed)
    return build_image_encoder(name, options)


def loop_cells(size, grid):
    """The voxels of each cell: floor(i·n/g) to ceil((i+1)·n/g), PyTorch's adaptive cells."""
    for index in np.ndindex(*grid):
        yield tuple(
            slice(i * n // g, -(-(i + 1) * n // g)) for i, n, g in zip(index, size, grid, strict=True)
        )


# --- regions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "grid"), [((8, 6, 4), (4, 3, 2)), ((7, 5, 6), (3, 2, 2)), ((8, 6), (2, 3)), ((7, 5), (3, 2))]
)
def test_cells_see_volume_and_parts_as_a_loop_finds(size, grid):
    random = np.random.default_rng(0)
    numbers = (random.integers(0, 4, (2, *size)) * (random.random((2, *size)) < 0.15)).astype(np.uint8)
    seen = cover(torch.from_numpy(numbers > 0), grid)
    parts = part_cover(torch.from_numpy(numbers), grid, parts=4)
    whole = part_cover(torch.from_numpy(numbers), grid, parts=4, whole=True)
    for row, volume in enumerate(numbers):
        inner = volume[tuple(slice(1, -1) for _ in size)]
        for region, cell in enumerate(loop_cells(size, grid)):
            assert bool(seen[row, region]) == bool((volume[cell] > 0).any())
            for part in (1, 2, 3, 4):
                holds = bool((volume[cell] == part).any())
                at_border = (volume == part).sum() != (inner == part).sum()
                assert bool(parts[row, region, part - 1]) == holds
                assert bool(whole[row, region, part - 1]) == (holds and not at_border)


def test_a_map_of_three_axes_becomes_regions_in_the_order_of_its_axes():
    features = torch.arange(8.0).reshape(1, 1, 2, 2, 2)
    mask = torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    mask[0, 2:, :2] = True  # cells (1, 0, 0) and (1, 0, 1): values 4 and 5
    found = from_map(features, mask)
    assert found.regions[0, :, 0].tolist() == list(range(8)) and found.region_grid == (2, 2, 2)
    assert found.pooled.tolist() == [[4.5]]


# --- vision transformer -------------------------------------------------------------------------


def test_vit_is_monais_network_and_its_regions_are_several_layers():
    encoder = built("vit", {**VIT, "region_layers": [1, 3]}).eval()
    images, mask = volumes()
    oracle, states = encoder.net(images)
    found = encoder(images, mask)
    torch.testing.assert_close(found.pooled, oracle[:, 0])
    norm = encoder.net.norm
    layers = [norm(states[0])[:, 1:], norm(states[2])[:, 1:]]
    torch.testing.assert_close(found.regions, torch.cat(layers, dim=2))
    assert encoder.region_width == 48 and encoder.width == 24
    plain = built("vit", VIT).eval()
    assert torch.equal(plain(images, mask).regions, found.regions[..., 24:])


def test_positions_at_another_crop_keep_a_ramp():
    encoder = built("vit", VIT).eval()
    ramp = torch.arange(4.0)[:, None, None].expand(4, 4, 4)  # grid of (16, 16, 8) in patches of (4, 4, 2)
    encoder.net.patch_embedding.position_embeddings.data.copy_(ramp.reshape(1, 64, 1).expand(1, 64, 24))
    found = encoder._positions((8, 6, 2))[0].unflatten(0, (8, 6, 2))
    # Cell i of 8 has its centre at (i + ½)/2 − ½ of the 4, and the ends hold the ramp's.
    expected = ((torch.arange(8) + 0.5) / 2 - 0.5).clamp(0, 3)
    torch.testing.assert_close(found, expected[:, None, None, None].expand(8, 6, 2, 24))
    images, mask = volumes(size=(32, 24, 4))
    assert encoder(images, mask).region_grid == (8, 6, 2)


# --- swin ---------------------------------------------------------------------------------------


def test_swin_is_monais_network():
    encoder = built("swin", {"width": 12, "blocks": [2, 1, 1, 1], "heads": [2, 2, 2, 2]}).eval()
    oracle = SwinTransformer(1, 12, (4, 4, 4), (2, 2, 2), (2, 1, 1, 1), (2, 2, 2, 2), downsample="mergingv2")
    own = encoder.state_dict()
    for name in oracle.state_dict():
        if name.startswith("layers"):
            stage, _, rest = name.removeprefix("layers").split(".", 2)
            oracle.state_dict()[name].copy_(own[f"trunk.stages.{int(stage) - 1}.{rest}"])
        else:
            oracle.state_dict()[name].copy_(own[f"trunk.embed.0.{name.removeprefix('patch_embed.')}"])
    images, mask = volumes(size=(32, 32, 32))
    features = oracle.eval()(images)[-1]  # under a layer norm without weights, as a new one of ours is
    found = encoder(images, mask)
    torch.testing.assert_close(found.regions, features.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-4)
    with torch.no_grad():  # MONAI's fused path
        torch.testing.assert_close(encoder(images, mask).pooled, found.pooled, atol=1e-5, rtol=1e-4)


# --- slices -------------------------------------------------------------------------------------


def picture(volume, z):
    """An axial slice as a radiologist sees it: rows from front to back, columns from right to left."""
    channels, size_x, size_y, _ = volume.shape
    found = torch.empty(channels, size_y, size_x)
    for row in range(size_y):
        for column in range(size_x):
            found[:, row, column] = volume[:, size_x - 1 - column, size_y - 1 - row, z]
    return found


def test_slices_are_a_loop_over_pictures_and_start_as_their_mean():
    encoder = built("slices", {**SLICES, "options": {**INNER, "stem_px": 3}, "channels": 2}).eval()
    (images, mask) = volumes(channels=2, size=(16, 24, 5))
    found = encoder(images, mask)
    assert found.region_grid == (4, 6, 5)
    grid = found.regions.unflatten(1, (4, 6, 5))
    for row in range(2):
        pooled = []
        for z in range(5):
            shown = picture(images[row], z)[None]
            alone = encoder.encoder(shown, torch.ones(1, 24, 16, dtype=torch.bool))
            pooled.append(alone.pooled[0])
            cells = alone.regions[0].unflatten(0, (6, 4))  # rows and columns of the picture
            for x in range(4):
                for y in range(6):
                    torch.testing.assert_close(grid[row, x, y, z], cells[5 - y, 3 - x], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.pooled[row], torch.stack(pooled).mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.region_weights, torch.full((2, 120), 1 / 120))


def test_slices_off_the_scan_change_nothing():
    encoder = built("slices", SLICES).eval()
    nn.init.normal_(encoder.pooler.query)
    images, mask = volumes()
    mask[:, :, :, 6:] = False
    before = encoder(images, mask)
    images[:, :, :, :, 6:] = 7.0
    after = encoder(images, mask)
    assert torch.equal(before.pooled, after.pooled)
    seen = before.region_mask
    assert torch.equal(before.regions[seen], after.regions[seen])
    assert not seen.unflatten(1, (4, 4, 8))[..., 6:].any() and seen.unflatten(1, (4, 4, 8))[..., :6].all()
    assert (before.region_weights[~seen] == 0).all()
    torch.testing.assert_close(before.region_weights.sum(1), torch.ones(2))
    nothing = encoder(images, torch.zeros_like(mask))
    assert torch.isfinite(nothing.pooled).all() and (nothing.region_weights == 0).all()


def test_the_attention_over_slices_is_the_formula():
    encoder = built("slices", {**SLICES, "size_px": [16, 16, 4]}).eval()
    nn.init.normal_(encoder.pooler.query)
    nn.init.normal_(encoder.pooler.positions)
    images, mask = volumes(count=1, size=(16, 16, 4))
    found = encoder(images, mask)
    each = torch.stack(
        [encoder.encoder(picture(images[0], z)[None], mask[:, :, :, 0]).pooled[0] for z in range(4)]
    )
    keys = encoder.pooler.before(each + encoder.pooler.positions[0].T)
    expected = torch.empty(16)
    for head in range(4):
        part = slice(4 * head, 4 * head + 4)
        weights = (keys[:, part] @ encoder.pooler.query[head] / 2.0).softmax(0)  # √4
        expected[part] = weights @ each[:, part]
    torch.testing.assert_close(found.pooled[0], expected, atol=1e-5, rtol=1e-4)


def test_adjacent_slices_are_channels_and_regions_are_pooled_along_z():
    encoder = built("slices", {**SLICES, "adjacent": 3, "chunk": 3}).eval()
    assert encoder.channels == 1 and encoder.encoder.channels == 3
    images, mask = volumes(count=1)
    found = encoder(images, mask)
    grid = found.regions.unflatten(1, (4, 4, 8))
    for z, near in ((0, (0, 0, 1)), (4, (3, 4, 5)), (7, (6, 7, 7))):  # the end slices repeat
        shown = torch.cat([picture(images[0], k) for k in near])[None]
        cells = encoder.encoder(shown, mask[:, :, :, 0]).regions[0].unflatten(0, (4, 4))
        torch.testing.assert_close(grid[0, :, :, z], cells.flip(0, 1).transpose(0, 1), atol=1e-5, rtol=1e-4)
    pooled = built("slices", {**SLICES, "adjacent": 3, "pool_z": 4}).eval()
    mask[..., 7] = False
    found, fine = pooled(images, mask), encoder(images, mask)
    parts = fine.regions.unflatten(1, (4, 4, 8))
    expected = torch.stack([parts[..., :4, :].mean(3), parts[..., 4:7, :].mean(3)], dim=3)
    torch.testing.assert_close(found.regions, expected.flatten(1, 3), atol=1e-5, rtol=1e-4)
    assert found.region_grid == (4, 4, 2) and found.region_mask.all()
    torch.testing.assert_close(
        found.region_weights,
        fine.region_weights.unflatten(1, (4, 4, 2, 4)).sum(-1).flatten(1),
    )


def test_a_frozen_slice_tower_rests_and_adapters_leave_its_attention_free():
    encoder = built("slices", SLICES)
    add_lora(encoder, LoraOptions(rank=2, targets="all-conv"))
    training = {name for name, value in encoder.named_parameters() if value.requires_grad}
    pooler = {name for name in training if name.startswith("pooler.")}
    assert pooler == {"pooler.query", "pooler.positions", "pooler.before.weight", "pooler.before.bias"}
    assert all(".lora_" in name for name in training - pooler) and len(training) > 4
    encoder.set_policy("frozen")
    assert not any(value.requires_grad for value in encoder.parameters())


# --- weights of films ---------------------------------------------------------------------------


def same_edges(net):
    """Repeat the ends where layers would pad with zeros, so that a constant stays constant there too."""
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            module.padding_mode = "replicate"
    return net


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet18", {}), ("densenet121", {"init_features": 8, "growth_rate": 4, "blocks": [2, 3]})],
)
def test_inflated_weights_give_the_film_at_every_depth(name, options):
    film = built(name, options).eval()
    for norm in film.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, std=0.1)
    volume = built(name, {**options, "axes": 3, "channels": 2}, seed=5).eval()
    volume.load_weights(film.state_dict())
    images, mask = torch.randn(2, 1, 48, 40), torch.ones(2, 48, 40, dtype=torch.bool)
    deep = images[..., None].expand(2, 1, 48, 40, 33).repeat(1, 2, 1, 1, 1)
    shown, found = (
        same_edges(film)(images, mask),
        same_edges(volume)(deep, mask[..., None].expand(2, 48, 40, 33)),
    )
    grid = found.regions.unflatten(1, found.region_grid)
    for z in range(grid.shape[3]):
        torch.testing.assert_close(grid[:, :, :, z].flatten(1, 2), shown.regions, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.pooled, shown.pooled, atol=1e-4, rtol=1e-3)


def test_weights_of_volumes_stay_as_they_are():
    tower = built("resnet", RESNET)
    state = tower.state_dict()
    assert all(
        value is state[name] or torch.equal(value, state[name])
        for name, value in inflate(state, like=state).items()
    )
    with pytest.raises(
        ConfigError, match=r"do not fit encoder 'resnet': tensor trunk\.\S+ is \(8,\) there and \(16,\) here"
    ):
        built("resnet", {**RESNET, "widths": [16, 16]}).load_weights(state)


def write_start(folder, tower):
    save_file(tower.state_dict(), folder / "image.safetensors")
    (folder / "image.json").write_text(json.dumps({"name": tower.name, "architecture": tower.architecture}))


def test_a_tower_of_volumes_starts_from_one_of_films(tmp_path):
    film = built("resnet", INNER)
    write_start(tmp_path, film)
    start = start_of(tmp_path, side="image", name="resnet")
    volume = built("resnet", {**INNER, "axes": 3}, seed=7).load_weights(start.tensors)
    stem = volume.trunk.stem[0].weight
    assert torch.equal(stem[..., 3], film.trunk.stem[0].weight / 7)
    slices = built("slices", {**SLICES, "channels": 3, "options": INNER}, seed=8)
    start = start_of(tmp_path, side="image", name="slices", inside="resnet")
    slices.load_weights(start.tensors)
    for name, value in film.state_dict().items():
        got = slices.encoder.state_dict()[name]
        expected = value.expand(-1, 3, -1, -1) / 3 if value.shape[1:2] == (1,) and value.ndim == 4 else value
        assert torch.equal(got, expected), name
    again = built("slices", {**SLICES, "channels": 3}, seed=9).load_weights(slices.state_dict())
    assert torch.equal(again.pooler.positions, slices.pooler.positions)
    with pytest.raises(ConfigError, match="holds the encoder 'resnet', the recipe names 'slices'"):
        start_of(tmp_path, side="image", name="slices")


# --- how far they train -------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options", "count"), TOWERS)
class TestTraining:
    def gradients(self, encoder, inputs):
        found = encoder(*inputs)
        (found.pooled.square().sum() + found.regions.square().sum()).backward()
        return {name: value.grad for name, value in encoder.named_parameters() if value.grad is not None}

    def test_checkpointed_activations_change_no_value(self, name, options, count):
        inputs = volumes()
        plain = self.gradients(built(name, options).train(), inputs)
        cached = self.gradients(built(name, options).checkpoint_activations().train(), inputs)
        assert plain.keys() == cached.keys() == dict(built(name, options).named_parameters()).keys()
        for key in plain:
            torch.testing.assert_close(cached[key], plain[key], atol=1e-6, rtol=1e-5, msg=key)

    def test_blocks_freeze_from_the_input_on(self, name, options, count):
        encoder = built(name, options)
        assert len(encoder.blocks) == count
        assert encoder.depths.keys() == dict(encoder.named_parameters()).keys()
        assert set(encoder.depths.values()) >= set(range(1, count + 1))
        encoder.freeze_layers(count - 1).train()
        gradients = self.gradients(encoder, volumes())
        assert gradients and all(encoder.depths[key] >= count for key in gradients)

    def test_adapters_change_nothing_at_first_and_merge_away(self, name, options, count):
        encoder, inputs = built(name, options).eval(), volumes()
        before = encoder(*inputs).pooled
        kind = "all-conv" if name in ("resnet", "densenet121", "slices") else "all-linear"
        add_lora(encoder, LoraOptions(rank=2, targets=kind)).eval()
        assert torch.equal(encoder(*inputs).pooled, before)
        for key, value in encoder.named_parameters():
            if ".lora_B." in key:
                nn.init.normal_(value, std=0.05)
        moved = encoder(*inputs).pooled
        assert not torch.allclose(moved, before)
        merge_lora(encoder).eval()
        torch.testing.assert_close(encoder(*inputs).pooled, moved, atol=1e-5, rtol=1e-4)

    def test_another_crop_and_twice_the_same(self, name, options, count):
        encoder = built(name, options).eval()
        images, mask = volumes(count=1, size=(24, 32, 12) if name != "swin" else (32, 16, 24))
        one, two = encoder(images, mask), encoder(images, mask)
        assert torch.equal(one.pooled, two.pooled) and torch.isfinite(one.regions).all()
        assert one.regions.shape[1] == np.prod(one.region_grid)


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet", {"axes": 4}, "option axes is 4"),
        ("resnet", {"axes": 3, "stem_px": [3, 3]}, r"stem_px is \[3, 3\]; allowed are one number or 3"),
        ("resnet", {"stem_stride": [2, 2, 1]}, r"stem_stride is \[2, 2, 1\]; allowed are one number or 2"),
        ("vit", {"size_px": [16]}, r"size_px is \(16,\); allowed are 2 numbers for films, 3 for volumes"),
        ("vit", {"size_px": [32, 32, 30]}, r"is \(32, 32, 30\); allowed are multiples of patch_px, 16"),
        ("vit", {"patch_px": [16, 16, 8]}, r"allowed are multiples of patch_px, \(16, 16, 8\)"),
        ("vit", {"region_layers": [3, 1]}, r"is \[3, 1\]; allowed are ascending numbers from 1 to 12"),
        ("vit", {"region_layers": [13]}, r"is \[13\]; allowed are ascending numbers from 1 to 12"),
        ("swin", {"blocks": [2, 2]}, "2 block counts and 4 head counts"),
        ("swin", {"blocks": [1, 1], "heads": [3, 5]}, "heads of stage 2 is 5; allowed are divisors of 96"),
        ("slices", {"encoder": "resent"}, "unknown image encoder 'resent'.*Did you mean 'resnet'"),
        ("slices", {"encoder": "resnet", "adjacent": 2}, "adjacent is 2; allowed are odd numbers"),
        ("slices", {"encoder": "resnet", "size_px": [8, 8]}, r"size_px is \(8, 8\); encoder 'slices' reads"),
        ("slices", {"encoder": "swin", "options": SWIN}, "encoder 'swin' reads volumes itself"),
        (
            "slices",
            {"encoder": "resnet", "options": {"channels": 3}, "channels": 2},
            "'resnet' takes 3 channels; 1 adjacent slices of 2 channels are 2",
        ),
        ("slices", {"encoder": "resnet", "heads": 5}, "heads is 5; allowed are divisors of .* width, 128"),
    ],
)  # fmt: skip
def test_refused_options(name, options, message):
    with pytest.raises(ConfigError, match=message):
        build_image_encoder(name, options)


def test_refused_volumes():
    images, mask = volumes(count=1)
    with pytest.raises(ConfigError, match="have 3 axes; encoder 'resnet' was built for 2"):
        build_image_encoder("resnet", {})(images, mask)
    with pytest.raises(ConfigError, match=r"have 16 x 16 x 8 voxels; allowed are multiples of 4 x 4 x 16"):
        build_image_encoder("vit", {**VIT, "size_px": [16, 16, 16], "patch_px": [4, 4, 16]})(images, mask)
    with pytest.raises(ConfigError, match="have 8 slices; allowed are multiples of pool_z, 3"):
        build_image_encoder("slices", {**SLICES, "pool_z": 3})(images, mask)
