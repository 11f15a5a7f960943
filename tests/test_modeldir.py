"""The model directory: what comes back is what was written, and anything else is refused by name."""

import hashlib
import json
import os
import stat
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from medvl.alignment import ProjectionConfig, TowerRecipe, build_model
from medvl.encoders.saving import save_tensors
from medvl.errors import BundleError, CheckpointError, ConfigError
from medvl.modeldir import (
    CONFIG,
    FILES,
    MANIFEST,
    SPECS,
    TOKENIZER,
    WEIGHTS,
    LoadedModel,
    read_model,
    write_model,
)
from medvl.specs import InputSpec, PixelSpec, ReportSpec
from medvl.tokens import train_tokeniser

TEXTS = ["no effusion", ["Small left effusion.", "No change, 4.2 cm."], ""]


def loaded(**values) -> LoadedModel:
    torch.manual_seed(0)
    tokeniser = train_tokeniser(["small left effusion", "no change"], max_tokens=32)
    model = build_model(
        **{
            "image": TowerRecipe(name="resnet", options={"widths": [4, 8], "blocks": [1, 1]}),
            "text": TowerRecipe(name="bert", options={"layers": 1, "width": 16}),
            "projection": ProjectionConfig(dim=12),
            "tokeniser": tokeniser,
        }
        | values
    )
    return LoadedModel(
        model.eval(), PixelSpec(longest_px=64), InputSpec(size_px=(16, 16)), ReportSpec(), tokeniser
    )


@pytest.fixture(scope="module")
def original():
    return loaded()


@pytest.fixture
def folder(original, tmp_path):
    write_model(tmp_path, original)
    return tmp_path


def films(n: int = 5):
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (20 + i, 30), dtype=np.uint8) for i in range(n)]


def change(folder, name, edit):
    """Edit a JSON file and make the manifest agree, as somebody who means it would."""
    values = json.loads((folder / name).read_text())
    edit(values)
    (folder / name).write_text(json.dumps(values))
    vouch(folder)


def backbone(values):
    return values["text"]["architecture"]["config"]


def vouch(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def change_weights(folder, edit):
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)
    vouch(folder)


class TestRoundTrip:
    def test_everything_comes_back(self, original, folder):
        again = read_model(folder)
        assert again.config == original.config
        assert (again.pixels, again.input, again.report) == (original.pixels, original.input, original.report)
        assert again.tokeniser.digest == original.tokeniser.digest
        assert again.digest == original.digest
        assert not again.model.training
        assert np.array_equal(again.embed_images(films()), original.embed_images(films()))
        assert np.array_equal(again.embed_texts(TEXTS), original.embed_texts(TEXTS))

    def test_adapters_and_frozen_towers_come_back(self, tmp_path):
        bert = {"layers": 1, "width": 16}
        adapted = loaded(
            text=TowerRecipe(name="bert", options=bert, train="lora", lora={"rank": 2}),
            image=TowerRecipe(name="resnet", options={"widths": [4], "blocks": [1]}, train="frozen"),
            local=False,
        )
        for name, value in adapted.model.named_parameters():
            if ".lora_B" in name:
                torch.nn.init.normal_(value)
        write_model(tmp_path, adapted)
        again = read_model(tmp_path)
        assert again.config == adapted.config and again.digest == adapted.digest
        assert np.array_equal(again.embed_texts(TEXTS), adapted.embed_texts(TEXTS))

    def test_writing_again_replaces(self, folder):
        other = loaded(projection=ProjectionConfig(dim=3))
        write_model(folder, other)
        assert read_model(folder).digest == other.digest

    def test_only_the_named_files_are_written(self, folder):
        files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert files == {*FILES, MANIFEST}

    def test_bytes_depend_on_the_model_alone(self, original, folder, tmp_path):
        write_model(tmp_path / "again", original)
        for name in (*FILES, MANIFEST):
            assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()

    def test_the_digest_follows_each_part(self, original):
        def changed(**values):
            parts = {
                name: getattr(original, name) for name in ("model", "pixels", "input", "report", "tokeniser")
            }
            return LoadedModel(**{**parts, **values}).digest

        other = loaded()
        with torch.no_grad():
            other.model.image_projection.weight[0, 0] += 1
        digests = {
            original.digest,
            changed(pixels=PixelSpec(longest_px=65)),
            changed(input=InputSpec(size_px=(16, 24))),
            changed(report=ReportSpec(parser="en-2")),
            changed(tokeniser=train_tokeniser(["effusion"], max_tokens=31)),
            changed(model=other.model),
        }
        assert len(digests) == 6
        assert changed() == original.digest
        other.model.image_encoder.set_policy("frozen")  # how it trained is not how it answers
        assert loaded().digest == original.digest


class TestEmbedding:
    def test_unit_vectors_in_the_order_given(self, original):
        images, texts = original.embed_images(films()), original.embed_texts(TEXTS)
        assert images.shape == (5, 12) and texts.shape == (3, 12)
        np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-6)
        for i, film in enumerate(films()):
            np.testing.assert_allclose(original.embed_images([film])[0], images[i], atol=1e-5)

    def test_batches_change_nothing_but_rounding(self, original):
        np.testing.assert_allclose(
            original.embed_images(films(), batch_size=2), original.embed_images(films()), atol=1e-6
        )
        np.testing.assert_allclose(
            original.embed_texts(TEXTS, batch_size=1), original.embed_texts(TEXTS), atol=1e-6
        )

    def test_it_is_the_model_on_the_spec_s_tensor(self, original):
        image, mask = original.input.apply(films(1)[0])
        with torch.no_grad():
            pooled = original.model.encode_image(torch.tensor(image)[None], torch.tensor(mask)[None]).pooled
        expected = torch.nn.functional.normalize(pooled).numpy()
        np.testing.assert_allclose(original.embed_images(films(1)), expected, atol=1e-6)

    def test_a_string_is_its_one_sentence_with_blanks_folded(self, original):
        one = original.embed_texts(["  no \n effusion "])
        assert np.array_equal(one, original.embed_texts([["no effusion"]]))

    def test_nothing_gives_nothing(self, original):
        assert original.embed_images([]).shape == original.embed_texts([]).shape == (0, 12)

    def test_refused_batch_size(self, original):
        with pytest.raises(ConfigError, match=r"batch_size is 0; allowed are 1 or more"):
            original.embed_images(films(), batch_size=0)

    def test_device(self, original):
        assert original.device == torch.device("cpu")
        assert original.to("cpu") is original


class TestRefusals:
    def refused(self, folder, pattern):
        with pytest.raises(CheckpointError, match=pattern):
            read_model(folder)
        with pytest.raises(BundleError, match=pattern):
            read_model(folder, error=BundleError)

    @pytest.mark.parametrize("suffix", [".pt", ".pkl", ".bin", ".ckpt", ".PTH", ".npy"])
    def test_pickles_anywhere(self, folder, suffix):
        marker = folder / "ran"

        class Evil:
            def __reduce__(self):
                return (marker.touch, ())

        (folder / "training").mkdir()
        torch.save({"x": Evil()}, folder / "training" / f"state{suffix}")
        self.refused(folder, rf"holds a '\{suffix}' file, which can run code")
        assert not marker.exists()

    def test_other_files_beside_it_are_allowed(self, folder):
        (folder / "docs").mkdir()
        (folder / "docs/card.md").write_text("x")
        (folder / "models/model.onnx").write_bytes(b"x")
        read_model(folder)

    @pytest.mark.parametrize("name", FILES)
    def test_a_missing_file(self, folder, name):
        (folder / name).unlink()
        self.refused(folder, f"{name} is missing")

    @pytest.mark.parametrize("name", FILES)
    def test_one_flipped_byte(self, folder, name):
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
        self.refused(folder, f"the SHA-256 of {name} is not that of {MANIFEST}")

    def test_a_link_out_of_the_directory(self, folder, tmp_path_factory):
        outside = tmp_path_factory.mktemp("outside") / "x"
        outside.write_bytes((folder / CONFIG).read_bytes())
        (folder / CONFIG).unlink()
        (folder / CONFIG).symlink_to(outside)
        self.refused(folder, f"{CONFIG} is missing or a link")

    def test_manifests(self, folder):
        manifest = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps({**manifest, "format": "medvl-model-9"}))
        self.refused(folder, r"has format 'medvl-model-9'; this version reads 'medvl-model-1'")
        (folder / MANIFEST).write_text(json.dumps({**manifest, "files": {"../x": "0"}}))
        self.refused(folder, f"must list exactly {CONFIG}")
        (folder / MANIFEST).write_text("[]")
        self.refused(folder, r"manifest.json is not a JSON object")
        (folder / MANIFEST).write_bytes(b"\xff")
        self.refused(folder, r"manifest.json is not UTF-8")
        (folder / MANIFEST).unlink()
        self.refused(folder, f"no whole model directory: {MANIFEST} is missing")

    def test_no_directory(self, tmp_path):
        self.refused(tmp_path / "nothing", "no whole model directory")

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (lambda v: v.update(locall=1), r"locall: Extra .*Did you mean 'local'"),
            (lambda v: v["image"].update(nam="x"), r"image.nam: Extra .*Did you mean 'name'"),
            (lambda v: v["projection"].update(dims=1), r"projection.dims: Extra .*Did you mean 'dim'"),
            (lambda v: v["text"].update(lora={"ranks": 1}), r"text.lora.ranks: .*Did you mean 'rank'"),
            (lambda v: v["image"].update(name="resnt"), r"unknown image encoder 'resnt'.*'resnet'"),
            (lambda v: v["image"]["architecture"].update(wdths=1), r"no option 'wdths'.*'widths'"),
            (lambda v: v["image"]["architecture"].update(norm="x"), r"option norm is 'x'"),
            (lambda v: v["text"]["architecture"].update(code="x"), r"text encoder 'bert' has no key 'code'"),
            (
                lambda v: backbone(v).update(auto_map={}),
                r"'auto_map', which names code",
            ),
            (lambda v: backbone(v).update(model_type="x"), r"unknown model_type 'x'"),
            (
                lambda v: backbone(v).update(hidden_sze=1),
                r"'hidden_sze'.*'hidden_size'",
            ),
            (lambda v: v["text"].update(train="lora"), r"policy of encoder 'bert' is 'lora'"),
            (lambda v: v.pop("text"), r"model.json: text: Field required"),
        ],
    )
    def test_architectures(self, folder, edit, message):
        change(folder, CONFIG, edit)
        self.refused(folder, message)

    def test_networks_that_no_machine_can_build(self, folder):
        change(folder, CONFIG, lambda v: backbone(v).update(num_hidden_layers=10**9))
        self.refused(folder, r"num_hidden_layers is 1000000000, but the weights have \d+ tensors")
        write_model(folder, loaded())
        change(folder, CONFIG, lambda v: backbone(v).update(vocab_size=10**12))  # 64 terabytes
        self.refused(folder, r"the architecture has \(1000000000000,|cannot be used")
        write_model(folder, loaded())
        change(folder, CONFIG, lambda v: v["image"]["architecture"].update(blocks=[10**9, 1]))
        self.refused(folder, r"blocks is \[1000000000, 1\], but the weights have \d+ tensors")

    def test_specs(self, folder):
        change(folder, SPECS, lambda v: v.update(pixel={}))
        self.refused(folder, r"specs.json has no key 'pixel'.*Did you mean 'pixels'")
        change(folder, SPECS, lambda v: (v.pop("pixel"), v.pop("input")))
        self.refused(folder, r"specs.json lacks the object 'input'")
        change(folder, SPECS, lambda v: v.update(input={"size": 3}))
        self.refused(folder, r"input spec has no key 'size'")

    def test_json_bombs(self, folder):
        (folder / CONFIG).write_text("[" * 100_000)
        vouch(folder)
        self.refused(folder, r"nested more than 64 levels deep")
        (folder / CONFIG).write_text(" " * (4 * 2**20 + 1))
        vouch(folder)
        self.refused(folder, r"model.json has 4194305 bytes; allowed are 4194304")

    def test_tokenisers(self, folder):
        (folder / TOKENIZER).write_text("{}")
        vouch(folder)
        self.refused(folder, r"is not a tokenizer.json")
        train_tokeniser([f"word{i} effusion{i}" for i in range(99)] * 2).save((folder / TOKENIZER).parent)
        vouch(folder)
        self.refused(folder, r"the tokeniser has \d+ ids, but the text encoder knows \d+")

    def test_tensors(self, folder):
        name = "image_projection.weight"
        change_weights(folder, lambda t: t.update({name: t[name][:, :3].clone()}))
        self.refused(folder, r"tensor image_projection.weight is \(12, 3\) .* the architecture has \(12, 8\)")
        change_weights(folder, lambda t: t.update({name: torch.zeros(12, 8, dtype=torch.bfloat16)}))
        self.refused(folder, r"image_projection.weight is \(12, 8\) torch.bfloat16; .* torch.float32")
        change_weights(folder, lambda t: t.pop(name))
        self.refused(folder, r"tensor image_projection.weight is missing")
        change_weights(folder, lambda t: t.update({name: torch.zeros(12, 8), "extra": torch.zeros(1)}))
        self.refused(folder, r"tensor extra is unexpected")

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_values_that_are_not_finite(self, folder, value):
        change_weights(folder, lambda t: t["text_projection.weight"].view(-1)[3:4].fill_(value))
        self.refused(folder, r"tensor text_projection.weight holds NaN or infinity")

    def test_damaged_safetensors(self, folder):
        path = folder / WEIGHTS
        whole = path.read_bytes()
        header = int.from_bytes(whole[:8], "little")
        overlap = whole[8 : 8 + header].replace(b'"data_offsets":[', b'"data_offsets":[9', 1)
        for data in (
            whole[:-50],  # cut in the data
            whole[:20],  # cut in the header
            b"",
            struct.pack("<Q", 2**40) + whole[8:],  # a header of a terabyte
            struct.pack("<Q", len(overlap)) + overlap + whole[8 + header :],
        ):
            path.write_bytes(data)
            vouch(folder)
            self.refused(folder, r"model.safetensors is damaged")


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o007, 0o660)])
def test_saved_tensors_have_the_permissions_that_the_process_gives(tmp_path, mask, mode):
    path = tmp_path / "weights"
    before = os.umask(mask)
    try:
        save_tensors({"a": torch.ones(2)}, path)
    finally:
        assert os.umask(before) == mask
    assert stat.S_IMODE(path.stat().st_mode) == mode and [*tmp_path.iterdir()] == [path]
