"""Transfer: decoders and classifiers on an encoder, their training, Dice and AUROC, and heads on disk."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tinystore import write_tiny
from tinytransfer import INPUT, RESNET, loaded_model
from tinyvolumes import SPEC, write_volumes

from medvl.alignment import TowerRecipe
from medvl.encoders.image import build_image_encoder
from medvl.errors import CheckpointError, ConfigError, DigestMismatch, UsageError
from medvl.evaluation.transfer import transfer
from medvl.evaluation.transfer_tasks import TransferJob
from medvl.heads.saved import read_head, write_head
from medvl.heads.segmentation import Segmenter, dice, part_loss, segment
from medvl.heads.transfer import Classifier, fit_head, label_loss, tower_to_train
from medvl.modeldir import read_model, write_model
from medvl.notice import NOTICE
from medvl.specs import InputSpec, PixelSpec, VolumeInput
from medvl.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_volumes(tmp_path_factory.mktemp("volumes") / "store", n=40)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    write_model(folder, loaded_model())
    return folder


# --- training -----------------------------------------------------------------------------------


def shells(steps, seed=0):
    """Volumes whose parts are their two kinds of grey."""
    random = np.random.default_rng(seed)
    for _ in range(steps):
        numbers = np.zeros((4, 16, 16, 8), np.uint8)
        for volume in numbers:
            for part in (1, 2):
                x, y, z = random.integers(0, 8), random.integers(0, 8), random.integers(0, 4)
                volume[x : x + 8, y : y + 8, z : z + 4] = part
        grey = np.array([0.0, 1.0, -1.0], np.float32)[numbers] + 0.1 * random.normal(size=numbers.shape)
        images = torch.from_numpy(grey.astype(np.float32))[:, None]
        yield images, torch.ones(numbers.shape, dtype=torch.bool), torch.from_numpy(numbers)


def test_a_decoder_on_a_frozen_encoder_learns_what_is_separable():
    torch.manual_seed(0)
    tower = build_image_encoder("resnet", RESNET).set_policy("frozen")
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    net = Segmenter(tower, parts=("bright", "dark"), size_px=(16, 16, 8), width=8)
    losses = fit_head(net, shells(60), loss=part_loss, steps=60, lr=1e-2)
    assert len(losses) == 60 and losses[-1] < 0.4 * losses[0]
    images, mask, numbers = next(shells(1, seed=9))
    with torch.no_grad():
        found = net(images, mask).argmax(1).to(torch.uint8)
    assert (dice(found.numpy(), numbers.numpy(), parts=2) > 0.9).all()
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())


@pytest.mark.parametrize("train", ["lora", "full"])
def test_how_far_the_encoder_trains(train):
    loaded = loaded_model()
    tower = tower_to_train(loaded.model, train)
    before = {name: value.clone() for name, value in tower.named_parameters()}
    net = Classifier(tower, labels=1)
    rows = [(images, mask, (images.mean((1, 2, 3, 4)) > 0).float()[:, None]) for images, mask, _ in shells(3)]
    fit_head(net, rows, loss=label_loss, steps=3, lr=1e-2)
    moved = {name for name, value in tower.named_parameters() if not torch.equal(value, before[name])}
    assert moved and (all(".lora_" in name for name in moved) if train == "lora" else len(moved) > 5)
    assert loaded.model.image_encoder.lora is None  # the model itself stays as it is
    own = loaded.model.image_encoder.state_dict()
    assert all(
        torch.equal(value, loaded_model().model.image_encoder.state_dict()[n]) for n, value in own.items()
    )


def test_a_tower_with_adapters_is_merged_first_and_a_random_one_is_new():
    recipe = TowerRecipe(name="resnet", options=RESNET, train="lora", lora={"rank": 2, "targets": "all-conv"})
    loaded = loaded_model(image=recipe)
    for name, value in loaded.model.image_encoder.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(value, std=0.1)
    images, mask = torch.randn(2, 1, 16, 16, 8), torch.ones(2, 16, 16, 8, dtype=torch.bool)
    expected = loaded.model.image_encoder(images, mask).pooled
    tower = tower_to_train(loaded.model, "frozen").eval()
    torch.testing.assert_close(tower(images, mask).pooled, expected, atol=1e-5, rtol=1e-4)
    assert tower.lora is None and loaded.model.image_encoder.lora is not None
    fresh = tower_to_train(loaded.model, "full", start="random").eval()
    assert not torch.allclose(fresh(images, mask).pooled, expected)
    with pytest.raises(UsageError, match=r"unknown training policy 'frosen'.*Did you mean 'frozen'"):
        tower_to_train(loaded.model, "frosen")


def test_a_loss_that_is_not_finite_stops():
    tower = build_image_encoder("resnet", RESNET)
    rows = [
        (torch.full((2, 1, 8, 8, 8), torch.nan), torch.ones(2, 8, 8, 8, dtype=torch.bool), torch.ones(2, 1))
    ]
    with pytest.raises(UsageError, match="the loss of step 1 is nan"):
        fit_head(Classifier(tower, labels=1), rows, loss=label_loss, steps=1, lr=1e-3)


# --- heads on disk ------------------------------------------------------------------------------


@pytest.mark.parametrize("train", ["frozen", "random", "lora", "full"])
@pytest.mark.parametrize("kind", ["parts", "labels"])
def test_a_head_is_read_as_it_was_written(kind, train, tmp_path):
    loaded = loaded_model(pool="attention")
    if train == "random":  # frozen, and yet not the model's own
        torch.manual_seed(1)
        tower = tower_to_train(loaded.model, "frozen", start="random")
    else:
        tower = tower_to_train(loaded.model, train)
    if kind == "parts":
        net = Segmenter(tower, parts=("a", "b"), size_px=INPUT.size_px, width=4)
        fit_head(net, tiny_rows(parts=True), loss=part_loss, steps=2, lr=1e-2)
    else:
        net = Classifier(tower, labels=2, pool=copy.deepcopy(loaded.model.image_pool))
        fit_head(net, tiny_rows(parts=False), loss=label_loss, steps=2, lr=1e-2)
    write_head(tmp_path, net, names=("a", "b"), loaded=loaded)
    assert (tmp_path / "image.safetensors").is_file() == (train != "frozen")
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1  # head.json has those of new files
    again = read_head(tmp_path, loaded)
    images, mask, _ = next(iter(tiny_rows(parts=True)))
    with torch.no_grad():
        torch.testing.assert_close(again(images, mask), net(images, mask), atol=1e-5, rtol=1e-4)


def tiny_rows(*, parts):
    torch.manual_seed(1)
    for _ in range(2):
        images, mask = torch.randn(2, 1, 24, 20, 16), torch.ones(2, 24, 20, 16, dtype=torch.bool)
        taught = torch.randint(0, 3, (2, 24, 20, 16)).to(torch.uint8) if parts else torch.eye(2)
        yield images, mask, taught


def test_a_head_of_another_model_or_a_damaged_one_is_refused(tmp_path):
    loaded = loaded_model()
    net = Classifier(tower_to_train(loaded.model, "frozen"), labels=1)
    write_head(tmp_path, net, names=("a",), loaded=loaded)
    about = json.loads((tmp_path / "head.json").read_text())
    with pytest.raises(DigestMismatch, match="0" * 32):
        (tmp_path / "head.json").write_text(json.dumps({**about, "model_digest": "0" * 32}))
        read_head(tmp_path, loaded)
    with pytest.raises(CheckpointError, match="has format 'other'; this version reads 'medvl-head-1'"):
        (tmp_path / "head.json").write_text(json.dumps({**about, "format": "other"}))
        read_head(tmp_path, loaded)
    with pytest.raises(CheckpointError, match=r"does not fit its encoder: first tensor head.bias"):
        (tmp_path / "head.json").write_text(json.dumps({**about, "names": ["a", "b"]}))
        read_head(tmp_path, loaded)
    with pytest.raises(CheckpointError, match=r"cannot be read: 'names'"):
        (tmp_path / "head.json").write_text(json.dumps({"format": about["format"]}))
        read_head(tmp_path, loaded)
    net.head.bias.data.fill_(torch.nan)
    write_head(tmp_path, net, names=("a",), loaded=loaded)
    with pytest.raises(CheckpointError, match=r"tensor head\.bias of the head holds NaN"):
        read_head(tmp_path, loaded)


# --- the whole ----------------------------------------------------------------------------------


def test_parts_are_learned_and_measured_on_whole_volumes(store, model, tmp_path):
    steps: dict[str, tuple[int, int]] = {}
    result = transfer(
        model, store, tmp_path / "out", task="parts", steps=40, batch=4, lr=1e-2, resamples=100,
        progress=lambda done, total, what: steps.__setitem__(what, (done, total)),
    )  # fmt: skip
    assert result.value("dice/lungs") > 0.7 and result.value("dice/liver") > 0.5
    assert 0.5 < result.value("dice/macro") <= 1.0
    records = [r for r in Store(store).records if r.split == "test"]
    with_parts = [r for r in records if r.parts_size]
    assert result.metrics["records"]["test"] == len(with_parts) == steps["segmenting"][1]
    without = len(records) - len(with_parts)
    assert result.metrics["left_out"].get("test record without parts", 0) == without
    assert steps["training the head"] == (40, 40)
    head = read_head(tmp_path / "out", read_model(model))
    opened = Store(store)
    found = segment(head, opened.pixels(with_parts[0]), input=INPUT)
    truth = opened.parts(with_parts[0])
    assert np.nanmean(dice(found, truth, parts=16)) > 0.4
    values = json.loads((tmp_path / "out" / "transfer.json").read_text())
    assert values["numbers"]["dice/lungs"]["low"] <= values["numbers"]["dice/lungs"]["high"]
    assert "| lungs |" in (tmp_path / "out" / "table.md").read_text()
    assert result.lines()[-1] == NOTICE
    with pytest.raises(UsageError, match=r"no figure 'dice/lung'.*Did you mean 'dice/lungs'"):
        result.value("dice/lung")


def test_labels_by_a_probe_and_by_training_on_a_share(store, model, tmp_path):
    probed = transfer(model, store, tmp_path / "a", task="labels", resamples=100)
    assert set(probed.metrics["numbers"]) == {"auroc/macro", "auroc/lung_nodule", "auroc/liver_lesion"}
    assert not (tmp_path / "a" / "head.json").exists()
    less = transfer(
        model, store, tmp_path / "b", task="labels", train="full", start="random", share=0.6, steps=4,
        resamples=100,
    )  # fmt: skip
    assert (tmp_path / "b" / "image.json").is_file() and (tmp_path / "b" / "head.json").is_file()
    trained, all_of_them = less.metrics["patients"]["train"], probed.metrics["patients"]["train"]
    assert trained == math.ceil(0.6 * all_of_them)
    again = transfer(
        model, store, tmp_path / "c", task="labels", train="full", start="random", share=0.6, steps=4,
        resamples=100,
    )  # fmt: skip
    assert again.metrics["numbers"] == less.metrics["numbers"]


def test_crops_of_several_volumes_in_one_batch_are_each_volumes_mean(store):
    """The oracle embeds window after window, alone; windows of 16³ voxels part each of the volumes."""
    input = VolumeInput(size_px=(16, 16, 16), windows=((0.0, 2000.0),), fit="crop")
    loaded = loaded_model(input=input)
    records = Store(store).records[:3]
    net = Classifier(tower_to_train(loaded.model, "frozen"), labels=1).eval()
    expected = []
    for record in records:
        volume = Store(store).pixels(record)
        pairs = [input.apply(volume, start=start) for start in input.tiles(volume.shape)]
        with torch.inference_mode():
            found = [net.vectors(*(torch.from_numpy(one[None]) for one in pair))[0].numpy() for pair in pairs]
        expected.append(np.average(found, axis=0, weights=[mask.sum() for _, mask in pairs]))
        assert len(pairs) > 1
    seen = []
    for batch in (1, 4, 64):
        job = TransferJob(
            Store(store),
            loaded,
            (),
            records,
            net.encoder,
            1,
            batch,
            1e-3,
            0,
            10,
            lambda *told: seen.append(told),
        )
        assert np.allclose(job.answers(records, net.vectors, what="embedding"), expected, atol=1e-5)
        assert seen[-1] == (3, 3, "embedding")


def test_films_have_labels_too_and_results_lie_beside_the_model(tmp_path):
    films = write_tiny(tmp_path / "store", n=60)
    film = loaded_model(
        image=TowerRecipe(name="resnet", options={"widths": [8, 16], "blocks": [1, 1], "stem_px": 3}),
        input=InputSpec(size_px=(32, 32)),
        pixels=PixelSpec(),
    )
    write_model(tmp_path / "film", film)
    probed = transfer(tmp_path / "film", films, task="labels", resamples=50)
    assert probed.out == tmp_path / "film-transfer-labels-frozen"
    assert probed.value("auroc/nodule") > 0.9  # a bright square, which even a random tower tells
    tuned = transfer(
        tmp_path / "film", films, task="labels", train="full", start="random", share=0.75, steps=3,
        resamples=50,
    )  # fmt: skip
    assert tuned.out == tmp_path / "film-transfer-labels-full-random-share-0.75"
    assert (tuned.out / "head.json").is_file() and 0 <= tuned.value("auroc/nodule") <= 1


def test_refused_transfers(store, model, tmp_path):
    with pytest.raises(UsageError, match=r"unknown task 'part'.*Did you mean 'parts'"):
        transfer(model, store, tmp_path, task="part")
    with pytest.raises(UsageError, match="unknown split 'train'"):
        transfer(model, store, tmp_path, split="train")
    with pytest.raises(UsageError, match="unknown start 'rnd'"):
        transfer(model, store, tmp_path, start="rnd")
    with pytest.raises(UsageError, match=r"share is 1.5, steps 300 and lr 0.002"):
        transfer(model, store, tmp_path, share=1.5)
    with pytest.raises(ConfigError, match="a batch of 1 out of"):
        transfer(model, store, tmp_path, batch=1)
    film = loaded_model(
        image=TowerRecipe(name="resnet", options={"widths": [8], "blocks": [1]}),
        input=InputSpec(size_px=(32, 32)),
        pixels=PixelSpec(),
    )
    write_model(tmp_path / "film", film)
    with pytest.raises(DigestMismatch):
        transfer(tmp_path / "film", store, tmp_path / "x")
    other = replace(film, pixels=SPEC)
    write_model(tmp_path / "odd", other)
    with pytest.raises(UsageError, match="the model reads films; only volumes have parts"):
        transfer(tmp_path / "odd", store, tmp_path / "x")
