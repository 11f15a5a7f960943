"""A bundle answers as its run does, and a bundle that was touched is refused."""

import json
import shutil

import numpy as np
import pytest

import medvl
from medvl.bundle import export, load_bundle
from medvl.errors import BundleError, DigestMismatch, UsageError
from medvl.modeldir import read_model
from medvl.retrieval.lance import LanceIndex
from medvl.store import Store
from medvl.training.checkpoints import best_model


@pytest.fixture
def copy(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def test_checkpoint_bundle_and_onnx_agree_on_the_same_study(tiny_run, tiny_bundle, tiny_store):
    import onnxruntime

    store = Store(tiny_store)
    films = [store.pixels(record) for record in store.records[:5]]
    reports = [list(record.retrieval) for record in store.records[:5]]
    run, bundle = read_model(best_model(tiny_run)), load_bundle(tiny_bundle)
    np.testing.assert_array_equal(run.embed_images(films), bundle.embed_images(films))
    np.testing.assert_array_equal(run.embed_texts(reports), bundle.embed_texts(reports))
    pixels, masks = zip(*(bundle.input.apply(film) for film in films), strict=True)
    image = onnxruntime.InferenceSession(tiny_bundle / "models" / "image.onnx")
    (vectors,) = image.run(None, {"images": np.stack(pixels), "image_mask": np.stack(masks)})
    np.testing.assert_allclose(vectors, bundle.embed_images(films), atol=1e-5)
    tokens, mask = bundle.tokeniser.encode(reports)
    text = onnxruntime.InferenceSession(tiny_bundle / "models" / "text.onnx")
    (vectors,) = text.run(None, {"tokens": tokens, "token_mask": mask})
    np.testing.assert_allclose(vectors, bundle.embed_texts(reports), atol=1e-5)


def test_every_file_can_be_read_by_whom_new_files_can_be_read(tiny_bundle, tiny_run, tmp_path):
    (tmp_path / "new").touch()
    files = [path for folder in (tiny_bundle, tiny_run) for path in folder.rglob("*") if path.is_file()]
    assert {path.stat().st_mode for path in files} == {(tmp_path / "new").stat().st_mode}


def test_metadata_and_card(tiny_bundle):
    metadata = json.loads((tiny_bundle / "configs" / "metadata.json").read_text())
    # The keys that MONAI's metadata schema (meta_schema_20240725) requires.
    for key in (
        "version", "changelog", "monai_version", "pytorch_version", "numpy_version", "task", "description",
        "authors", "copyright", "network_data_format",
    ):  # fmt: skip
        assert key in metadata
    image = metadata["network_data_format"]["inputs"]["image"]
    assert image["num_channels"] == 1 and image["spatial_shape"] == [64, 64]
    # black is (0 - 0.45) / 0.28 and white (1 - 0.45) / 0.28 by the recipe's input spec
    assert image["value_range"] == [-1.6071, 1.9643]
    card = (tiny_bundle / "docs" / "README.md").read_text()
    assert "Research use only" in card and "Not evaluated" in card
    assert load_bundle(tiny_bundle).digest in card
    assert not (tiny_bundle / "docs" / "metrics.json").exists()


def test_the_card_quotes_the_evaluation_and_its_hash(tiny_run, tiny_store, tmp_path):
    import hashlib

    run = shutil.copytree(tiny_run, tmp_path / "run")
    medvl.evaluate(run, tiny_store, resamples=20, baselines=())
    summary = export(run, tmp_path / "bundle", onnx=False)
    card = (tmp_path / "bundle" / "docs" / "README.md").read_text()
    metrics = (tmp_path / "bundle" / "docs" / "metrics.json").read_bytes()
    assert summary.evaluated and summary.parity is None
    assert hashlib.sha256(metrics).hexdigest() in card and "No ONNX files" in card
    assert (run / "evaluation" / "table.md").read_text() in card


def test_an_existing_folder_is_not_overwritten(tiny_run, tiny_bundle):
    with pytest.raises(UsageError, match="exists already"):
        export(tiny_run, tiny_bundle, onnx=False)


def test_touched_bundles_are_refused_by_name(copy):
    weights = copy / "models" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BundleError, match=r"'models/model\.safetensors' has SHA-256"):
        load_bundle(copy)


def test_an_added_or_missing_file_is_refused(copy):
    (copy / "models" / "model.pt").write_bytes(b"\x80\x04")
    with pytest.raises(BundleError, match=r"'models/model\.pt' is not listed"):
        load_bundle(copy)
    (copy / "models" / "model.pt").unlink()
    (copy / "configs" / "specs.json").unlink()
    with pytest.raises(BundleError, match=r"'configs/specs\.json' is missing"):
        load_bundle(copy)


def test_a_link_out_of_the_bundle_is_refused(copy, tmp_path):
    outside = tmp_path / "outside.json"
    outside.write_text("{}")
    (copy / "docs" / "README.md").unlink()
    (copy / "docs" / "README.md").symlink_to(outside)
    with pytest.raises(BundleError, match=r"holds a link, 'docs/README\.md'"):
        load_bundle(copy)


def test_no_bundle_and_another_format(copy, tmp_path):
    with pytest.raises(BundleError, match=r"bundle\.json is missing"):
        load_bundle(tmp_path)
    (copy / "bundle.json").write_text(json.dumps({"format": "medvl-bundle-0", "files": {}}))
    with pytest.raises(BundleError, match="has format 'medvl-bundle-0'; this version reads 'medvl-bundle-1'"):
        load_bundle(copy)
    (copy / "bundle.json").write_text("[" * 5000)
    with pytest.raises(BundleError, match=r"bundle\.json"):
        load_bundle(copy)


def test_a_signed_bundle_whose_config_names_code_is_still_refused(copy, tmp_path):
    """Even with a matching manifest, unknown keys such as auto_map are errors and nothing runs."""
    import hashlib

    marker = tmp_path / "ran"
    config = copy / "configs" / "model.json"
    values = json.loads(config.read_text())
    values["auto_map"] = {"AutoModel": f"__import__('pathlib').Path({str(marker)!r}).touch()"}
    config.write_text(json.dumps(values))
    for manifest in (copy / "configs" / "manifest.json", copy / "bundle.json"):
        about = json.loads(manifest.read_text())
        for name in about["files"]:
            about["files"][name] = hashlib.sha256((copy / name).read_bytes()).hexdigest()
        manifest.write_text(json.dumps(about))
    with pytest.raises(BundleError, match="auto_map"):
        load_bundle(copy)
    assert not marker.exists()


def test_a_query_is_read_as_the_data_were(tiny_bundle, tiny_store, tmp_path):
    """The film's file and its stored record give one vector; another model's index is refused."""
    model = medvl.load(tiny_bundle)
    index = tmp_path / "index"
    summary = medvl.index(tiny_bundle, tiny_store, index)
    store = Store(tiny_store)
    assert summary.total == len(store)
    sources = sorted((tiny_store.parent / "films").rglob("*.dcm"))[:6]
    by_vector = {
        record.record_id: model.loaded.embed_images([store.pixels(record)])[0] for record in store.records
    }
    for source in sources:
        vector = model.embed_image(source)
        hit = medvl.search(index, image=source, k=1)[0]
        np.testing.assert_allclose(vector, by_vector[hit.record_id], atol=1e-6)
        assert hit.score == pytest.approx(1.0, abs=1e-5)
    both = medvl.search(
        index, text="left pleural effusion", image=sources[0], k=3, html=tmp_path / "hits.html"
    )
    assert len(both) == 3 and "data:image/jpeg" in (tmp_path / "hits.html").read_text()
    other = tmp_path / "other"
    shutil.copytree(index, other)
    LanceIndex(other)._database.drop_table("records")
    LanceIndex.create(other, dim=16, about={"model_digest": "another"})
    with pytest.raises(DigestMismatch, match=f"{model.loaded.digest}.*made with another"):
        model.search(other, text="effusion")
    with pytest.raises(DigestMismatch, match="another"):
        medvl.index(tiny_bundle, tiny_store, other)
    with pytest.raises(UsageError, match="needs a text, an image, or both"):
        medvl.search(index)
    with pytest.raises(UsageError, match="holds no sentence"):
        model.embed_text("   ")


def test_an_index_finds_its_bundle_after_both_moved(tiny_bundle, tiny_store, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    shutil.copytree(tiny_bundle, here / "bundle")
    medvl.index(here / "bundle", tiny_store, here / "index")
    there = here.rename(tmp_path / "there")
    assert len(medvl.search(there / "index", text="nodule", k=2)) == 2
    shutil.rmtree(there / "bundle")
    with pytest.raises(UsageError, match="not where it was"):
        medvl.search(there / "index", text="nodule")


def test_findings_and_heat_map(tiny_bundle, tiny_store):
    model = medvl.load(tiny_bundle)
    film = sorted((tiny_store.parent / "films").rglob("*.dcm"))[0]
    scores = model.findings(film, ["nodule", "pneumothorax"])
    assert set(scores) == {"nodule", "pneumothorax"} and list(scores.values()) == sorted(
        scores.values(), reverse=True
    )
    heat = model.heat_map(film, "left pneumothorax")
    assert heat.shape == model.stored(film).shape and np.isfinite(heat).any()


def test_erasing_through_the_verb(tiny_bundle, tiny_store, tmp_path):
    index = tmp_path / "index"
    medvl.index(tiny_bundle, tiny_store, index)
    patient = Store(tiny_store).records[0].patient_id
    own = sum(record.patient_id == patient for record in Store(tiny_store).records)
    assert medvl.erase(index, patients=[patient]).erased == own
    with pytest.raises(UsageError, match="0 patients and 0 records"):
        medvl.erase(index)
