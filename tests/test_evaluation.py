"""A whole evaluation on a small store with a small model: what is scored, left out, refused and written."""

import dataclasses
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from medvl.alignment import ProjectionConfig, TowerRecipe, build_model
from medvl.encoders.text import text_tokeniser
from medvl.errors import CheckpointError, DigestMismatch, StoreError, UsageError
from medvl.evaluation.cases import choose_cases
from medvl.evaluation.embedding import embed_cases
from medvl.evaluation.run import evaluate
from medvl.evaluation.subject import find_subject
from medvl.heads.grounding import image_vectors, phrase_map, phrase_vector
from medvl.modeldir import LoadedModel, read_model, write_model
from medvl.notice import NOTICE
from medvl.records import Box, Record
from medvl.specs import InputSpec, PixelSpec, ReportSpec, text_hash
from medvl.splits import split_of
from medvl.store import FORMAT, INDEX_SCHEMA, Store, record_row, write_shard
from medvl.training.checkpoints import checkpoint_path, mark_best, write_checkpoint
from medvl.training.recipe import load_recipe
from medvl.training.run import store_digest

PIXELS, REPORT = PixelSpec(longest_px=48), ReportSpec()
RECIPE = """
modality: cxr
input: {size_px: [32, 32]}
image: {name: resnet, options: {widths: [8, 16], blocks: [1, 1]}}
text: {name: bert, options: {layers: 1, width: 32}, vocab_size: 300}
projection: {dim: 16}
objective: {name: clip}
"""
SENTENCES = (
    ("Small left nodule.", "No effusion."),
    ("Large right effusion.",),
    ("Normal chest.",),
    ("Normal chest.",),
    ("Nodule and effusion.",),
)


def film(seed):
    return np.random.default_rng(seed).integers(0, 255, (48, 40 if seed % 2 else 48)).astype(np.uint8)


def make_record(number, *, view="PA", split=None, patient=None, sentences=None, **changes):
    patient = patient or f"p{number % 30:02d}"
    said = SENTENCES[number % 5] if sentences is None else sentences
    kind = number % 5
    state = {"nodule": kind in (0, 4), "pleural_effusion": kind in (1, 4)}
    boxes = (Box("nodule", 8.0, 8.0, 20.0, 20.0),) if kind in (0, 4) else ()
    array = film(number if view == "PA" else 1000 + number)
    values = {
        "record_id": f"r{number:03d}{view}",
        "study_id": f"s{number:03d}",
        "patient_id": patient,
        "modality": "cxr",
        "split": split or split_of(patient, fractions=(0.5, 0.1, 0.4)),
        "source_kind": "raster",
        "report": " ".join(said),
        "retrieval": said,
        "generation": said,
        "text_hash": text_hash(" ".join(said)),
        "pixel_hash": f"h{number}{view}",
        "pixel_digest": PIXELS.digest,
        "report_digest": REPORT.digest,
        "shape": array.shape,
        "dtype": "uint8",
        "source_shape": array.shape,
        "view": view,
        "labels": {name: "present" if there else "absent" for name, there in state.items()},
        "boxes": boxes,
    }
    return Record(**(values | changes)), array


def write_store(folder, samples):
    (folder / "shards").mkdir(parents=True)
    placed = write_shard(folder / "shards" / "000000.tar", sorted(samples, key=lambda s: s[0].record_id))
    rows = pa.Table.from_pylist([record_row(record) for record in placed], schema=INDEX_SCHEMA)
    pq.write_table(rows, folder / "index.parquet")
    (folder / "store.json").write_text(json.dumps({"format": FORMAT, "modality": "cxr"}))
    return folder


def samples():
    made = [make_record(number) for number in range(60)]
    # Two more views of studies 3 and 10: every image of a study shares its report.
    return made + [make_record(number, view="LATERAL", boxes=()) for number in (3, 10)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("data") / "store", samples())


def small_model(seed=0, *, local=True):
    recipe = load_recipe(RECIPE)
    words = [" ".join(said) for said in SENTENCES]
    tokeniser = text_tokeniser(
        recipe.text.name, recipe.text.options, texts=words, vocab_size=300, max_tokens=32
    )
    torch.manual_seed(seed)
    model = build_model(
        image=recipe.image,
        text=TowerRecipe(name="bert", options=recipe.text.options),
        tokeniser=tokeniser,
        projection=ProjectionConfig(dim=16),
        local=local,
    )
    return LoadedModel(model.eval(), PIXELS, InputSpec(size_px=(32, 32)), REPORT, tokeniser)


def write_run(folder, store, *, loaded=None, split_seed=None):
    loaded = loaded or small_model()
    folder.mkdir()
    (folder / "recipe.yaml").write_text(load_recipe(RECIPE).to_yaml())
    about = {"store": store_digest(Store(store)), "split_seed": split_seed}
    (folder / "provenance.json").write_text(json.dumps(about))
    step = checkpoint_path(folder, 5)
    write_checkpoint(step, lambda path: write_model(path, loaded))
    mark_best(step, score=1.0)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, store):
    return write_run(tmp_path_factory.mktemp("runs") / "run", store)


@pytest.fixture(scope="module")
def evaluation(run, store):
    steps = []
    result = evaluate(run, store, resamples=100, progress=lambda done, total, message: steps.append(message))
    assert {"embedding films", "ridge baseline: films", "grounding", "drawing"} <= set(steps)
    return result


def held_out(store, split="test"):
    return [record for record in Store(store).records if record.split == split]


def test_only_the_held_out_patients_are_scored_and_all_of_them(evaluation, store):
    test = held_out(store)
    data = evaluation.metrics["data"]
    assert data["images"] == len(test)
    assert data["texts"] == data["studies"] == len({record.study_id for record in test})
    assert data["patients"] == len({record.patient_id for record in test})
    assert data["training_pairs"] == len(held_out(store, "train"))
    assert data["trained_on_this_store"] is True


def test_chance_and_ceiling_are_those_of_the_gallery_with_its_duplicates(evaluation, store):
    test = held_out(store)
    studies = sorted({record.study_id for record in test})
    n = len(studies)
    value = evaluation.value
    # Reports are the gallery of films: one per study, equal ones included; nothing shrinks it.
    assert value("retrieval/image_to_text/id/R@1/chance") == pytest.approx(1 / n)
    hash_of = {record.study_id: record.text_hash for record in test}
    copies = [sum(other == hash_of[record.study_id] for other in hash_of.values()) for record in test]
    assert value("retrieval/image_to_text/id/R@1/ceiling") == pytest.approx(np.mean([1 / m for m in copies]))
    assert value("retrieval/image_to_text/text/R@1/ceiling") == 1.0
    assert value("zeroshot/macro/AUROC/chance") == 0.5
    ratio = value("retrieval/image_to_text/id/R@5/model") / value("retrieval/image_to_text/id/R@5/ceiling")
    assert value("retrieval/image_to_text/id/R@5/normalised") == pytest.approx(ratio)
    with pytest.raises(UsageError, match=r"no figure 'zeroshot/macro/AUROC'"):
        value("zeroshot/macro/AUROC")


def test_figures_do_not_depend_on_the_order_of_the_records(run, store, evaluation, tmp_path):
    # EVALUATION §3.6: pairing by the order of two listings. Renaming the records reorders the store.
    renamed = [
        (dataclasses.replace(record, record_id=f"q{999 - i:03d}"), array)
        for i, (record, array) in enumerate(samples())
    ]
    other = evaluate(
        run, write_store(tmp_path / "store", renamed), tmp_path / "out", resamples=20, baselines=()
    )
    for key, number in evaluation.metrics["numbers"].items():
        if key.endswith("/model") and not key.startswith("grounding"):
            assert other.value(key) == pytest.approx(number["value"], abs=1e-9), key


def test_the_same_call_gives_the_same_bytes(run, store, tmp_path):
    for name in ("a", "b"):
        evaluate(run, store, tmp_path / name, resamples=30)
    for file in ("metrics.json", "table.md", "report.html", "figures/map.svg"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_what_is_written_is_complete_and_self_contained(evaluation, run):
    out = run / "evaluation"
    assert evaluation.out == out and evaluation.page == out / "report.html"
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics == evaluation.metrics and metrics["notice"] == NOTICE
    for key, number in metrics["numbers"].items():
        assert np.isfinite(number["value"]) and number["n"] > 0, key
        if key.endswith("/model"):
            assert number["low"] <= number["value"] + 1e-12 and number["value"] <= number["high"] + 1e-12, key
    for row in ("chance", "shuffled", "ceiling", "ridge"):
        assert f"retrieval/text_to_image/id/R@5/{row}" in metrics["numbers"]
    assert metrics["protocol"]["seed"] == 0 and metrics["protocol"]["resamples"] == 100
    page = (out / "report.html").read_text()
    assert NOTICE in page and page.count("<svg") == 3 and "data:image/jpeg;base64," in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # nothing is fetched from anywhere
    assert len(re.findall(r'id="([^"]+)"', page)) == len(set(re.findall(r'id="([^"]+)"', page)))
    assert "ridge, same towers frozen" in (out / "table.md").read_text()
    assert evaluation.lines()[-1] == NOTICE and any("pointing game" in line for line in evaluation.lines())
    assert evaluation.to_json()["out"] == str(out)


def test_a_patient_of_the_training_split_is_never_scored(run, tmp_path):
    # EVALUATION §3.1: rows, not patients, were split, and 97.8 % of validation stayed in training.
    leaking = [make_record(0, split="train", patient="p"), make_record(1, split="test", patient="p")]
    with pytest.raises(UsageError, match="1 patients are in 'test' and in 'train'"):
        evaluate(run, write_store(tmp_path / "store", leaking), tmp_path / "out")


@pytest.mark.parametrize("split", ["train", "tests"])
def test_only_held_out_splits_are_evaluated(run, store, split):
    with pytest.raises(UsageError, match=f"the split '{split}' cannot be evaluated"):
        evaluate(run, store, split=split)


def test_the_split_of_the_run_is_used_and_not_the_stores(store, tmp_path):
    run = write_run(tmp_path / "run", store, split_seed=3)
    seed = find_subject(run).split_seed
    assert seed == 3
    cases = choose_cases(Store(store), split="test", split_seed=seed)
    assert {record.patient_id for record in cases.images} == {
        record.patient_id for record in Store(store).records if split_of(record.patient_id, seed=3) == "test"
    }


def test_what_is_left_out_is_counted(tmp_path):
    made = [
        make_record(0, split="test"),
        make_record(1, split="test", sentences=(), text_hash=""),
        make_record(2, split="test", geometry="rejected:no pixels"),
        make_record(3, split="test", pixel_hash="same"),
        make_record(4, split="train", pixel_hash="same"),
    ]
    cases = choose_cases(Store(write_store(tmp_path / "store", made)), split="test", split_seed=None)
    assert [record.study_id for record in cases.images] == ["s000", "s001"]
    assert [text.study_id for text in cases.texts] == ["s000"] and cases.with_text == (0,)
    assert cases.left_out == {
        "film rejected:no pixels": 1,
        "film equal to one of the training split": 1,
        "film without a report (out of retrieval only)": 1,
    }
    with pytest.raises(UsageError, match=r"'val' holds no usable film: 0 records\. Prepare"):
        choose_cases(Store(tmp_path / "store"), split="val", split_seed=None)


def test_two_images_of_a_study_share_one_report(store):
    cases = choose_cases(Store(store), split="test", split_seed=None)
    images, texts = cases.keys()
    assert len(np.unique(texts.study)) == len(texts.study)
    twins = [record.study_id for record in cases.images]
    twice = sorted({study for study in twins if twins.count(study) == 2})
    for study in twice:
        rows = [row for row, record in enumerate(cases.images) if record.study_id == study]
        assert len(set(images.study[rows])) == 1 and len(set(images.text[rows])) == 1


def test_equal_reports_have_equal_vectors_bit_for_bit(store):
    loaded, opened = small_model(), Store(store)
    cases = choose_cases(opened, split="test", split_seed=None)
    embedded = embed_cases(loaded, opened, cases)
    normal = [row for row, text in enumerate(cases.texts) if text.words == "Normal chest."]
    assert len(normal) > 2
    assert (embedded.texts[normal] == embedded.texts[normal[0]]).all()


def test_other_specs_are_refused(store, tmp_path):
    loaded = small_model()
    other = dataclasses.replace(loaded, pixels=PixelSpec(longest_px=64))
    run = write_run(tmp_path / "pixels", store, loaded=other)
    with pytest.raises(DigestMismatch, match=f"pixel spec digest is {PIXELS.digest}"):
        evaluate(run, store)
    other = dataclasses.replace(loaded, report=ReportSpec(parser="other"))
    run = write_run(tmp_path / "reports", store, loaded=other)
    with pytest.raises(DigestMismatch, match=f"report spec digest is {REPORT.digest}"):
        evaluate(run, store)


def test_a_damaged_film_stops_the_evaluation_and_is_not_replaced(run, tmp_path):
    # EVALUATION §3.8: an unreadable image became a white one and was scored.
    store = write_store(tmp_path / "store", samples())
    record = held_out(store)[0]
    shard = store / "shards" / record.shard
    data = bytearray(shard.read_bytes())
    data[record.offset + record.size // 2] ^= 0xFF
    shard.write_bytes(bytes(data))
    with pytest.raises(StoreError, match=f"record {record.record_id} .* is damaged"):
        evaluate(run, store, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_and_a_model_directory_can_be_evaluated_too(run, store, tmp_path):
    checkpoint = checkpoint_path(run, 5)
    assert find_subject(checkpoint).kind == "checkpoint"
    write_model(tmp_path / "model", read_model(checkpoint))
    subject = find_subject(tmp_path / "model")
    assert subject.kind == "model" and subject.recipe is None and subject.view == "retrieval"
    result = evaluate(tmp_path / "model", store, resamples=20)
    assert result.out == tmp_path / "model-evaluation"
    assert "no recipe lies beside this model" in result.metrics["protocol"]["ridge"]
    with pytest.raises(UsageError, match="neither a run, a checkpoint nor a bundle"):
        find_subject(tmp_path)
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        find_subject(tmp_path / "empty")


def test_unknown_baselines_and_stores_without_reports_are_refused(run, store, tmp_path):
    with pytest.raises(UsageError, match=r"unknown baseline 'rigde'.*'ridge'"):
        evaluate(run, store, baselines=("rigde",))
    silent = write_store(tmp_path / "store", [make_record(0, split="test", sentences=(), text_hash="")])
    with pytest.raises(UsageError, match="no record of the split 'test' has a report"):
        evaluate(run, silent, tmp_path / "out")


@pytest.mark.parametrize("local", [True, False])
def test_regions_and_phrases_are_compared_in_the_space_that_was_trained(local):
    loaded = small_model(local=local)
    found = image_vectors(loaded, [film(0), film(1)])
    phrase = phrase_vector(loaded, ["Small left nodule.", "Normal chest."])
    assert np.linalg.norm(phrase) == pytest.approx(1.0)
    tokens, mask = loaded.text_tensors([["Small left nodule."], ["Normal chest."]])
    with torch.no_grad():
        text = loaded.model.encode_text(tokens, mask)
        features = loaded.model.image_encoder(*loaded.image_tensors([film(0), film(1)]))
        projection = loaded.model.region_projection if local else loaded.model.image_projection
        regions = projection(features.regions).numpy()
    rows = (text.sentences[:, 0] if local else text.pooled).numpy()
    mean = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(0)
    np.testing.assert_allclose(phrase, mean / np.linalg.norm(mean), atol=1e-5)
    np.testing.assert_allclose(found.regions, regions, atol=1e-5)
    heat = phrase_map(loaded, film(1), ["Normal chest."])
    assert heat.shape == (48, 40) and not np.isnan(heat).any()
    with pytest.raises(UsageError, match="0 films"):
        image_vectors(loaded, [])
    with pytest.raises(UsageError, match="0 sentences"):
        phrase_vector(loaded, [])
