"""Evaluation of report encoders: constant and fact-reading encoders, loops, an independent probe, tables."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from medvl.corpus import ReportCase, Wording
from medvl.errors import UsageError
from medvl.language.baselines import hashed_words, tf_idf
from medvl.language.comparison import compare
from medvl.language.evaluate import difference, evaluate_text
from medvl.language.probe import fit_probe, nested_share, probe_scores
from medvl.language.trials import make_trials, text_key
from medvl.preprocess.reports.facts import facts_of
from medvl.preprocess.reports.negatives import hard_negatives
from medvl.preprocess.reports.variants import variants

ORGANS = ("right upper lobe", "left upper lobe", "right lower lobe", "left lower lobe")


def corpus(n: int = 60) -> tuple[ReportCase, ...]:
    """Reports that differ in size, place and effusion; the labels follow from their words."""
    cases = []
    for i in range(n):
        effusion = i % 3 == 0
        findings = (
            f"There is a {i + 2} mm nodule in the {ORGANS[i % 4]}.",
            "There is a small left pleural effusion." if effusion else "No pleural effusion.",
            "No pneumothorax.",
        )
        impression = (
            f"Nodule of {i + 2} mm.",
            "Small left effusion." if effusion else "No pleural effusion.",
        )
        cases.append(
            ReportCase(
                f"c{i}",
                f"p{i // 2}",
                "train" if i < n // 2 else "test",
                (*findings, *impression),
                findings,
                impression,
                {"pleural_effusion": "present" if effusion else "absent", "lung_lesion": "present"},
            )
        )
    return tuple(cases)


CASES = corpus()


@pytest.fixture(scope="module")
def trials():
    return make_trials(CASES, variants=variants, hard_negatives=hard_negatives)


def judge(embed, trials, name="model"):
    return evaluate_text(
        embed,
        CASES,
        variants=variants,
        hard_negatives=hard_negatives,
        name=name,
        resamples=100,
        trials=trials,
    )


def constant(texts):
    return np.ones((len(texts), 4), np.float32)


def reader(texts):
    """Place each text by its facts alone: a random direction for each set of states, numbers and sides."""
    rows = []
    for text in texts:
        facts = facts_of(text)
        key = repr([sorted(facts.states.items()), sorted(facts.numbers.items()), sorted(facts.sides.items())])
        seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())
        rows.append(np.random.default_rng(seed).normal(size=64))
    return np.asarray(rows, np.float32)


def test_a_constant_encoder_is_at_chance_everywhere(trials):
    found = judge(constant, trials)
    assert len(trials.cases) == 30
    # every kind keeps the reports apart, so that R@K of a constant encoder is K/N
    assert found.number("retrieval/seen/paraphrase/R@1").value == pytest.approx(1 / 30)
    assert found.number("retrieval/seen/paraphrase/R@5").value == pytest.approx(5 / 30)
    assert found.number("retrieval/seen/paraphrase/MedR").value == pytest.approx(15.5)
    for key, chance in found.figures.chance.items():
        if not key.startswith("drop"):
            assert found.number(key).value == pytest.approx(chance), key


def test_a_reader_of_facts_finds_every_paraphrase_and_every_error_of_fact(trials):
    found = judge(reader, trials)
    for key in (
        "retrieval/seen/paraphrase/R@1",
        "retrieval/unseen/paraphrase/R@1",
        "retrieval/seen/mixed/R@1",
    ):
        assert found.number(key).value == 1
    assert found.number("drop/unseen/paraphrase").value == pytest.approx(0, abs=1e-6)
    for kind in ("negation", "side", "measurement", "insertion", "finding"):
        assert found.number(f"error/unseen/{kind}/accuracy").value == 1
        assert found.number(f"error/matched/{kind}/accuracy").value == 1
    # small and large are not among the facts it reads: right and wrong wording tie
    assert found.number("error/unseen/severity/accuracy").value == 0.5


def test_retrieval_equals_a_loop(trials):
    embed = hashed_words(width=64)
    found = judge(embed, trials)
    table = trials.variants["test", "mixed"]
    hits, ranks = [], []
    for row, text in table.items():
        query = embed([text])[0].astype(np.float64)
        scores = []
        for case in trials.cases:
            other = embed([case.sentences])[0].astype(np.float64)
            scores.append(round(query @ other / np.linalg.norm(query) / np.linalg.norm(other), 6))
        above = sum(score > scores[row] for score in scores)
        equal = sum(score == scores[row] for score in scores)
        hits.append(min(max((1 - above) / equal, 0), 1))  # one relevant report in a group of equal scores
        ranks.append(above + (equal + 1) / 2)
    assert found.number("retrieval/unseen/mixed/R@1").value == pytest.approx(np.mean(hits))
    assert found.number("retrieval/unseen/mixed/MedR").value == pytest.approx(np.median(ranks))


def test_equal_wordings_of_several_reports_are_all_right(trials):
    # Twenty of thirty impressions would say the same without the size of the nodule: use those alone.
    def short(case, *, seed, part):
        return (Wording("impression", case.impression[1:]),) if part == "train" else ()

    def none(case, *, seed, part):
        return ()

    made = make_trials(CASES, variants=short, hard_negatives=none)
    found = evaluate_text(constant, CASES, variants=short, hard_negatives=none, resamples=20, trials=made)
    with_effusion = sum(case.labels["pleural_effusion"] == "present" for case in made.cases)
    without = 30 - with_effusion
    # a constant encoder hits a class of m right answers among 30 with probability m / 30
    expected = (with_effusion * with_effusion + without * without) / 30 / 30
    assert found.number("retrieval/seen/impression/R@1").value == pytest.approx(expected)


def test_equal_reports_stand_once():
    doubled = (*CASES, *(case for case in CASES if case.split == "test"))
    assert len(make_trials(doubled, variants=variants, hard_negatives=hard_negatives).cases) == 30


def test_reports_with_words_of_training_are_left_out():
    """Patients apart are not enough: normal findings are told in set phrases."""
    train, test = CASES[0], CASES[-1]
    copy = dataclasses.replace(test, case_id="copy", patient_id="other", sentences=train.sentences)
    made = make_trials((*CASES, copy), variants=variants, hard_negatives=hard_negatives)
    assert len(made.cases) == 30 and made.left_out == 1
    known = [text_key(test.sentences)]
    made = make_trials(CASES, variants=variants, hard_negatives=hard_negatives, known=known)
    assert len(made.cases) == 29 and made.left_out == 1 and test not in made.cases
    with pytest.raises(UsageError, match="0 different reports are in test, without 1 whose words training"):
        make_trials((train, copy), variants=variants, hard_negatives=hard_negatives)


def test_differences_are_paired(trials):
    one, other = judge(reader, trials, "reader"), judge(constant, trials, "constant")
    same = difference(one, one, "retrieval/seen/all/R@1")
    assert (same.value, same.low, same.high) == (0, 0, 0)
    gap = difference(one, other, "error/matched/all/accuracy")
    assert gap.value == pytest.approx(
        one.number("error/matched/all/accuracy").value - other.number("error/matched/all/accuracy").value
    )
    assert gap.low is not None and gap.low > 0


def test_the_probe_equals_scikit_learn():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(80, 5))
    truth = (features @ rng.normal(size=(5, 2)) + rng.normal(size=(80, 2)) > 0).astype(float)
    truth[:7, 1] = np.nan  # unknown states do not count
    penalty = 0.02
    ours = fit_probe(features, truth, penalty=penalty)
    for column in range(2):
        known = ~np.isnan(truth[:, column])
        # scikit-learn minimises C·Σ loss + ½‖w‖², ours mean loss + λ/2‖w‖² over all 80 rows: C = 1/(80 λ)
        theirs = LogisticRegression(C=1 / (80 * penalty), tol=1e-10, max_iter=1000)
        theirs.fit(features[known], truth[known, column])
        np.testing.assert_allclose(ours[:-1, column], theirs.coef_[0], atol=2e-3)
        np.testing.assert_allclose(ours[-1, column], theirs.intercept_[0], atol=2e-3)


def test_shares_of_patients_are_nested():
    patients = [f"p{i // 3}" for i in range(90)]
    tenth, all_ = (nested_share(patients, share=share, seed=1) for share in (0.1, 1.0))
    assert all_.sum() == 90
    assert tenth.sum() == 9  # three patients of thirty, with three reports each
    half = nested_share(patients, share=0.5, seed=1)
    assert ((tenth <= half) & (half <= all_)).all()


def test_a_probe_of_the_words_finds_the_effusion(trials):
    found = judge(hashed_words(), trials)
    assert found.data["findings_probed"] == ["pleural_effusion"]  # every report has the nodule: one class
    assert found.number("probe/100%/pleural_effusion/AUROC").value == 1


def test_tf_idf_learns_from_training_reports_alone():
    embed = tf_idf(CASES, width=8)
    assert embed([["No pleural effusion."], ["Zebra."]]).shape == (2, 8)
    assert not embed([["Zebra."]]).any()  # a word that no training report has


def test_tables_and_files(trials, tmp_path):
    made = compare(
        [judge(constant, trials, "constant"), judge(reader, trials, "reader")],
        reference="constant",
        title="Two",
    )
    page = made.write(tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())
    value = stored["encoders"][1]["numbers"]["retrieval/unseen/paraphrase/R@1"]["value"]
    assert value == 1
    assert stored["differences"]["reader"]["retrieval/unseen/all/R@1"]["low"] > 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| unseen · paraphrase · R@1 | 30 | 0.033 | 0.033" in table
    assert "Research use only" in page.read_text() and "<h2>Variant retrieval</h2>" in page.read_text()
    assert any("against constant" in line for line in made.lines())


def test_refusals(trials):
    with pytest.raises(UsageError, match="0 different reports are in val"):
        make_trials(CASES, variants=variants, hard_negatives=hard_negatives, splits=("val",))
    with pytest.raises(UsageError, match="NaN or infinity for 256 of 256"):
        judge(lambda texts: np.full((len(texts), 2), np.nan, np.float32), trials)
    found = judge(constant, trials)
    with pytest.raises(UsageError, match="no figure 'retrieval/seen/all/R@2'"):
        found.number("retrieval/seen/all/R@2")
    with pytest.raises(UsageError, match="'retrieval/seen/all/MedR' has no resampled values"):
        difference(found, found, "retrieval/seen/all/MedR")
    other = evaluate_text(
        constant, CASES, variants=variants, hard_negatives=hard_negatives, resamples=50, trials=trials
    )
    with pytest.raises(UsageError, match="were not evaluated on the same"):
        difference(found, other, "retrieval/seen/all/R@1")
    with pytest.raises(UsageError, match="2 encoders are named 'model'"):
        compare([found, found], reference="model")
    with pytest.raises(UsageError, match="no encoder is named 'minilm'"):
        compare([found], reference="minilm")
    with pytest.raises(UsageError, match="width is 0"):
        hashed_words(width=0)
    with pytest.raises(UsageError, match="0 training reports"):
        tf_idf([case for case in CASES if case.split == "test"])
    with pytest.raises(UsageError, match="2 training patients; it needs at least 3"):
        ones = np.ones((4, 2))
        probe_scores(ones, ones, ones, patients=["a", "a", "b", "b"])


def test_text_keys_ignore_case_and_blanks():
    assert text_key(("No  effusion.", "Clear.")) == text_key(("no effusion. clear.",))
