"""How far and how fast a tower trains: frozen layers, layer decay, checkpointing, averages, starts."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tinymodules import batch, gradients, module, tokeniser
from tinystore import SMALL, write_tiny
from torch import nn

from medvl import recipes
from medvl.alignment import ProjectionConfig, TowerRecipe, build_model
from medvl.encoders.blocks import block_names, module_depths
from medvl.encoders.image import build_image_encoder
from medvl.encoders.text import build_text_encoder
from medvl.errors import CheckpointError, ConfigError
from medvl.modeldir import read_model
from medvl.training import checkpoints
from medvl.training.average import averaged_copy, ema_decay, move_average
from medvl.training.module import Learning
from medvl.training.run import train
from medvl.training.start import start_of

VIT = {"size_px": [16, 16], "patch_px": 4, "width": 16, "hidden": 32, "layers": 3, "heads": 2, "dropout": 0.1}
RESNET = {"widths": [8, 16], "blocks": [2, 1], "stem_px": 3}
BERT = {"layers": 3, "width": 16, "heads": 2, "dropout": 0.1}
DENSE = "trunk.0.denseblock"

# --- blocks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "count", "first", "last"),
    [
        ("vit", VIT, 3, "net.blocks.0", "net.blocks.2"),
        ("resnet", RESNET, 3, "trunk.stages.0.0", "trunk.stages.1.0"),
        ("resnet50", {}, 16, "trunk.stages.0.0", "trunk.stages.3.2"),
        (
            "densenet121",
            {"blocks": [2, 3]},
            5,
            "trunk.0.denseblock1.denselayer1",
            "trunk.0.denseblock2.denselayer3",
        ),
    ],
)
def test_blocks_of_image_towers(name, options, count, first, last):
    tower = build_image_encoder(name, options)
    blocks = block_names(tower)
    assert (len(blocks), blocks[0], blocks[-1]) == (count, first, last)
    depths = tower.depths
    assert depths.keys() == dict(tower.named_parameters()).keys()
    for i, block in enumerate(blocks, start=1):
        inside = {depth for parameter, depth in depths.items() if parameter.startswith(f"{block}.")}
        assert inside == {i}
    if name == "vit":
        assert depths["net.cls_token"] == depths["net.patch_embedding.position_embeddings"] == 0
        assert depths["net.norm.weight"] == 4
    if name == "densenet121":  # the transition belongs to the block before it
        assert depths["trunk.0.transition1.conv.weight"] == 2


def test_a_network_without_blocks_has_depth_zero():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert block_names(net) == [] and set(module_depths(net).values()) == {0}


# --- freezing -----------------------------------------------------------------------------------


def test_the_first_layers_rest_with_the_embeddings():
    tower = build_text_encoder("bert", BERT, tokeniser()).freeze_layers(2).train()
    trains = {name for name, p in tower.named_parameters() if p.requires_grad}
    assert trains and all(name.startswith("model.encoder.layer.2.") for name in trains)
    layers = tower.get_submodule("model.encoder.layer")
    assert [layer.attention.self.dropout.training for layer in layers] == [False, False, True]
    assert not tower.model.embeddings.dropout.training
    tower.freeze_layers(0).train()
    assert all(p.requires_grad for p in tower.parameters()) and tower.model.embeddings.dropout.training


def test_batch_norm_of_resting_blocks_rests():
    tower = build_image_encoder("resnet", RESNET).freeze_layers(1).train()
    before = copy.deepcopy(tower.state_dict())
    images = torch.randn(4, 1, 16, 16)
    tower(images, torch.ones(4, 16, 16, dtype=torch.bool)).pooled.sum().backward()
    after = tower.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith(("trunk.stages.0.1.", "trunk.stages.1.")) for name in moved)


def test_adapters_of_resting_layers_rest():
    build = {"name": "bert", "options": BERT, "train": "lora", "lora": {"rank": 1}, "freeze_layers": 2}
    net = module("clip", text=build)
    names = [name for name, _ in net.model.named_towers()["text"]]
    assert names and all(".layer.2." in name and ".lora_" in name for name in names)


def test_more_frozen_layers_than_there_are_is_refused():
    with pytest.raises(ConfigError, match=r"freeze_layers is 4, but encoder 'bert' has 3 blocks"):
        build_text_encoder("bert", BERT, tokeniser()).freeze_layers(4)


# --- layer decay --------------------------------------------------------------------------------


def test_learning_rates_fall_from_block_to_block():
    """Depth l of n + 1 = 4 learns with factor · 0.5^(4 − l); projections and scale with the plain rate."""
    learning = Learning(lr=1.0, image=0.1, layer_decay=0.5)
    net = module("clip", image={"name": "vit", "options": VIT}, text={"options": BERT}, learning=learning)
    optimiser = net.configure_optimizers()["optimizer"]
    rates = {id(p): group["initial_lr"] for group in optimiser.param_groups for p in group["params"]}
    named = dict(net.named_parameters())
    assert len(rates) == len(named)  # each once
    expected = {
        "model.image_encoder.net.cls_token": 0.1 * 0.5**4,
        "model.image_encoder.net.blocks.0.norm1.weight": 0.1 * 0.5**3,
        "model.image_encoder.net.blocks.2.norm1.weight": 0.1 * 0.5,
        "model.image_encoder.net.norm.weight": 0.1,
        "model.text_encoder.model.embeddings.word_embeddings.weight": 0.5**3,  # nothing lies after its blocks
        "model.text_encoder.model.encoder.layer.2.output.dense.weight": 1.0,
        "model.image_projection.weight": 1.0,
        "objective.scale.log_scale": 1.0,
    }
    for name, rate in expected.items():
        assert rates[id(named[name])] == pytest.approx(rate), name
    plain = module("clip", image={"name": "vit", "options": VIT}).configure_optimizers()["optimizer"]
    assert [g["name"] for g in plain.param_groups] == ["image"] * 2 + ["text"] * 2 + [
        "projection",
        "objective",
    ]


# --- checkpointing ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "options"), [("vit", VIT), ("resnet", RESNET), ("densenet121", {"blocks": [1, 2]})]
)
def test_checkpointed_activations_change_no_value(image, options):
    """With dropout and with batch norm, whose running statistics must move once."""
    found = []
    for again in (False, True):
        tower = {"activation_checkpointing": again}
        net = module(
            "multi",
            image={"name": image, "options": options, **tower},
            text={"options": BERT, **tower},
        ).train()
        rows = batch()
        torch.manual_seed(5)
        image_features, text_features = net.encode(rows)
        total = net.loss(image_features, text_features, rows).total
        total.backward()
        found.append((total.detach(), gradients(net), {n: b.clone() for n, b in net.named_buffers()}))
    (one, plain, before), (two, cached, after) = found
    assert torch.equal(one, two) and plain.keys() == cached.keys()
    for name in plain:
        torch.testing.assert_close(cached[name], plain[name], atol=1e-7, rtol=1e-6, msg=name)
    for name in before:
        assert torch.equal(before[name], after[name]), name


def test_a_checkpointed_tower_copies_and_evaluates_as_before():
    net = module("clip", image={"name": "vit", "options": VIT, "activation_checkpointing": True}).train()
    rows = batch()
    twin = copy.deepcopy(net.model.image_encoder).eval()
    with torch.no_grad():
        for parameter in net.model.image_encoder.parameters():
            parameter.zero_()  # the twin must not compute with these
    with torch.no_grad():
        assert float(twin(rows.images, rows.image_mask).pooled.abs().max()) > 1e-3
    pooled = copy.deepcopy(twin).train()(rows.images, rows.image_mask).pooled
    pooled.square().sum().backward()


def test_checkpointed_activations_are_not_kept():
    """Bytes that the graph holds between the passes; of six blocks their inputs alone remain."""
    options = {**VIT, "layers": 6, "width": 32, "hidden": 128, "dropout": 0.0}
    held = {}
    for again in (False, True):
        tower = build_image_encoder("vit", options).train()
        if again:
            tower.checkpoint_activations()
        own = {p.data_ptr() for p in tower.parameters()}
        kept = {}

        def pack(tensor, own=own, kept=kept):
            if tensor.data_ptr() not in own:
                kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        rows = batch()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            pooled = tower(rows.images, rows.image_mask).pooled
        held[again] = sum(kept.values())
        pooled.sum().backward()
    assert held[True] < 0.25 * held[False], held


# --- averages -----------------------------------------------------------------------------------


def test_the_average_is_the_recursion():
    net = module("clip").model
    average = averaged_copy(net, share=True)
    weight, kept = net.image_projection.weight, average.image_projection.weight
    expected = weight.detach().clone()
    for step in range(5):
        with torch.no_grad():
            weight.add_(1.0)
        decay = min(0.5, (1 + step) / (10 + step))
        assert ema_decay(0.5, step=step) == decay
        expected = decay * expected + (1 - decay) * weight.detach()
        move_average(average, net, decay=decay)
    torch.testing.assert_close(kept, expected)
    assert not any(p.requires_grad for p in average.parameters())


def test_the_average_shares_what_never_moves():
    net = module("clip", image={"train": "frozen"}).model
    average = averaged_copy(net, share=True)
    assert average.image_encoder.trunk.stem[0].weight is net.image_encoder.trunk.stem[0].weight
    assert average.text_projection.weight is not net.text_projection.weight
    apart = averaged_copy(net, share=False)
    assert apart.image_encoder.trunk.stem[0].weight is not net.image_encoder.trunk.stem[0].weight


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("towers") / "store", n=48)


RUN = [*SMALL, "schedule.steps=4", "loop.every_steps=2", "loop.log_every=1"]


def test_a_run_keeps_the_averaged_model_and_the_last_weights(store, tmp_path):
    """The model directory is what was validated, what trains lies beside; a resumed run is the same."""
    plain, run, again = (tmp_path / name for name in ("plain", "run", "again"))
    train(store, plain, recipe=recipes.resolve("clip", RUN))
    train(store, run, recipe=recipes.resolve("clip", [*RUN, "loop.ema=0.9"]))
    model = load_file(checkpoints.latest(run) / "models" / "model.safetensors")
    state = checkpoints.latest(run) / "training"
    last = load_file(checkpoints.latest(plain) / "models" / "model.safetensors")
    tree = json.loads((state / "state.json").read_text())
    entry = dict(dict(tree["dict"])["state_dict"]["dict"])
    tensors = load_file(state / "state.safetensors")
    name = "image_projection.weight"
    # Averaging changes no step: the weights that train are those of the run without it.
    assert torch.equal(tensors[entry[f"model.{name}"]["tensor"]], last[name])
    assert not torch.equal(model[name], last[name])
    # Running statistics are shared, so they are written once.
    assert not any("running_mean" in key for key in entry)
    train(store, again, recipe=recipes.resolve("clip", [*RUN, "loop.ema=0.9", "schedule.steps=4"]))
    newest = checkpoints.latest(again)
    for path in (newest, again / "summary.json"):  # as if it had been killed after step 2
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    train(store, again, recipe=recipes.resolve("clip", [*RUN, "loop.ema=0.9"]))
    for name in ("models/model.safetensors", "training/state.safetensors"):
        a, b = load_file(checkpoints.latest(run) / name), load_file(checkpoints.latest(again) / name)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), name
    assert (run / "metrics.csv").read_bytes() == (again / "metrics.csv").read_bytes()


# --- where a tower starts -----------------------------------------------------------------------


def test_towers_start_from_a_run(store, tmp_path):
    """Adapters are merged on the way; the text tower brings its tokeniser."""
    lora = "image.lora={rank: 2, targets: all-conv}"
    train(store, tmp_path / "first", recipe=recipes.resolve("clip", [*RUN, "image.train=lora", lora]))
    start = [
        f"image.weights={tmp_path / 'first'}",
        f"text.weights={tmp_path / 'first'}",
        "optimiser.lr=1e-30",
    ]
    recipe = recipes.resolve("clip", [*RUN, *start, "schedule.steps=1", "loop.seed=9", "text.vocab_size=300"])
    train(store, tmp_path / "second", recipe=recipe)
    first = read_model(checkpoints.best_model(tmp_path / "first"))
    second = read_model(checkpoints.best_model(tmp_path / "second"))
    assert second.tokeniser.digest == first.tokeniser.digest
    rows = batch()
    images = torch.nn.functional.interpolate(rows.images, (32, 32))
    film = torch.ones(8, 32, 32, dtype=torch.bool)
    for tower in (first.model.image_encoder, second.model.image_encoder):
        for norm in tower.modules():  # the second run has moved the statistics by a step
            if isinstance(norm, nn.BatchNorm2d):
                norm.reset_running_stats()
    one, two = (loaded.model.image_encoder(images, film).pooled for loaded in (first, second))
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
    words = first.model.text_encoder.state_dict()
    assert all(
        torch.equal(value, second.model.text_encoder.state_dict()[name]) for name, value in words.items()
    )


def test_an_image_tower_starts_from_self_distillation(tmp_path):
    tower = build_image_encoder("vit", VIT)
    save_file(tower.state_dict(), tmp_path / "image.safetensors")
    (tmp_path / "image.json").write_text(json.dumps({"name": "vit", "architecture": tower.architecture}))
    start = start_of(tmp_path, side="image", name="vit")
    model = build_model(
        image=TowerRecipe(name="vit", options=VIT),
        text=TowerRecipe(name="bert", options=BERT),
        tokeniser=tokeniser(),
        projection=ProjectionConfig(dim=4),
        weights={"image": start.tensors},
    )
    for name, value in tower.state_dict().items():
        assert torch.equal(value, model.image_encoder.state_dict()[name])
    with pytest.raises(ConfigError, match=r"weights holds the encoder 'vit', the recipe names 'resnet'"):
        start_of(tmp_path, side="image", name="resnet")
    other = build_image_encoder("vit", {**VIT, "layers": 2})
    with pytest.raises(
        ConfigError,
        match=r"do not fit encoder 'vit': tensor net\.blocks\.2\.\S+ is \(\S+\) there and missing",
    ):
        other.load_weights(start.tensors)
    (tmp_path / "image.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"image tower cannot be read: 'name'"):
        start_of(tmp_path, side="image", name="vit")
    tower.net.cls_token.data.fill_(torch.nan)
    save_file(tower.state_dict(), tmp_path / "image.safetensors")
    (tmp_path / "image.json").write_text(json.dumps({"name": "vit", "architecture": {}}))
    with pytest.raises(CheckpointError, match=r"tensor net\.cls_token of image\.safetensors holds NaN"):
        start_of(tmp_path, side="image", name="vit")
    with pytest.raises(ConfigError, match=r"text\.weights names no folder with weights"):
        start_of(tmp_path, side="text", name="bert")
