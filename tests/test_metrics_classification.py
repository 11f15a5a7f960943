"""AUROC, average precision, the patient bootstrap and the ridge baseline against independent libraries."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from medvl.errors import UsageError
from medvl.evaluation.bootstrap import Bootstrap, Number
from medvl.evaluation.classification import (
    auroc,
    average_precision,
    classify,
    roc_points,
    truth_values,
)
from medvl.evaluation.ridge import fit_ridge


@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_areas_equal_scikit_learn_with_and_without_ties(decimals):
    random = np.random.default_rng(decimals)
    for _ in range(30):
        n = int(random.integers(5, 200))
        truth = random.random(n) < 0.3
        truth[:2] = (True, False)
        scores = np.round(random.standard_normal(n) + truth, decimals)
        assert auroc(truth, scores) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
        assert average_precision(truth, scores) == pytest.approx(
            average_precision_score(truth, scores), abs=1e-12
        )
        alarms, hits = roc_points(truth, scores)
        expected = roc_curve(truth, scores, drop_intermediate=False)
        np.testing.assert_allclose(alarms, expected[0], atol=1e-12)
        np.testing.assert_allclose(hits, expected[1], atol=1e-12)
        # The trapezes under the curve are the Mann-Whitney count.
        assert np.trapezoid(hits, alarms) == pytest.approx(auroc(truth, scores), abs=1e-12)


def test_every_resample_is_the_figure_on_the_rows_it_drew():
    # Oracle: repeat the rows as often as the weights say and ask scikit-learn.
    random = np.random.default_rng(5)
    n = 40
    patients = random.integers(0, 15, n)
    truth = (random.random((n, 2)) < 0.5).astype(float)
    truth[random.random((n, 2)) < 0.1] = np.nan
    scores = np.round(random.standard_normal((n, 2)) + np.nan_to_num(truth), 1)
    result = classify(truth, scores, findings=["a", "b"], patients=patients, resamples=60, seed=3)
    bootstrap = Bootstrap(patients, resamples=60, seed=3)
    areas = np.empty((60, 2))
    for draw in range(60):
        times = bootstrap.draws[draw, bootstrap.codes].astype(int)
        for column in range(2):
            rows = np.repeat(np.arange(n), np.where(np.isnan(truth[:, column]), 0, times))
            areas[draw, column] = roc_auc_score(truth[rows, column], scores[rows, column])
    for column, name in enumerate("ab"):
        low, high = np.quantile(areas[:, column], (0.025, 0.975))
        number = result.numbers[f"{name}/AUROC"]
        assert (number.low, number.high) == (pytest.approx(low), pytest.approx(high))
        assert number.n == (~np.isnan(truth[:, column])).sum()
    macro = result.numbers["macro/AUROC"]
    assert macro.low == pytest.approx(np.quantile(areas.mean(1), 0.025))
    assert macro.value == pytest.approx(
        (result.numbers["a/AUROC"].value + result.numbers["b/AUROC"].value) / 2
    )


def test_findings_with_one_class_are_dropped_by_name_and_not_averaged():
    truth = np.array([[1.0, 0, np.nan], [0, 0, np.nan], [1, 0, 1]])
    result = classify(
        truth, np.eye(3), findings=["seen", "never", "once"], patients=["a", "b", "c"], resamples=50
    )
    assert result.findings == ("seen",)
    assert result.dropped == {"never": "0 present of 3 known", "once": "1 present of 1 known"}
    assert result.numbers["macro/AUROC"].value == result.numbers["seen/AUROC"].value
    # With two of three patients positive some draws hold one class only; they are counted, not scored.
    assert result.numbers["seen/AUROC"].undefined > 0
    assert result.numbers["seen/prevalence"].value == pytest.approx(2 / 3)


def test_uncertain_policies():
    labels = [{"edema": "uncertain", "cardiomegaly": "uncertain", "nodule": "uncertain"}, {"edema": "absent"}]
    names = ["edema", "cardiomegaly", "nodule"]
    nan = np.nan
    expected = {
        "exclude": [[nan, nan, nan], [0, nan, nan]],
        "ones": [[1, 1, 1], [0, nan, nan]],
        "zeros": [[0, 0, 0], [0, nan, nan]],
        "mixed": [[1, 0, nan], [0, nan, nan]],
    }
    for policy, rows in expected.items():
        np.testing.assert_array_equal(truth_values(labels, names, uncertain=policy), rows)
    with pytest.raises(UsageError, match=r"unknown policy 'zeroes'.*'zeros'"):
        truth_values(labels, names, uncertain="zeroes")


def test_scores_that_are_not_numbers_are_refused_not_zeroed():
    # EVALUATION §3.5: an evaluator that turns NaN into 0 gives a score for a model that has none.
    truth, scores = np.array([1, 0, 1, 0]), np.array([0.5, 0.1, np.nan, 0.2])
    assert roc_auc_score(truth, np.nan_to_num(scores)) == 0.5
    for figure in (auroc, average_precision, roc_points):
        with pytest.raises(UsageError, match="1 of 4 scores are NaN"):
            figure(truth, scores)
        with pytest.raises(UsageError, match="4 of 4 rows are positive"):
            figure(np.ones(4), np.zeros(4))


def test_weighted_median_is_the_median_of_the_rows_drawn():
    random = np.random.default_rng(0)
    values, patients = random.integers(1, 20, 31) / 2, random.integers(0, 9, 31)
    bootstrap = Bootstrap(patients, resamples=200, seed=4)
    drawn = [np.median(np.repeat(values, times.astype(int))) for times in bootstrap.draws[:, bootstrap.codes]]
    number = bootstrap.median(values)
    assert (number.low, number.high) == tuple(np.quantile(drawn, (0.025, 0.975)))
    assert number.value == np.median(values)


def test_interval_covers_the_truth_as_often_as_it_says_and_row_resampling_does_not():
    # 60 patients of 5 images each that all share their patient's outcome: the truth is 0.4.
    cluster, rows, runs = 0, 0, 200
    for seed in range(runs):
        random = np.random.default_rng(seed)
        outcome = (random.random(60) < 0.4).astype(float)
        values = np.repeat(outcome, 5)
        by_patient = Bootstrap(np.repeat(np.arange(60), 5), resamples=400, seed=seed).mean(values)
        by_row = Bootstrap(np.arange(300), resamples=400, seed=seed).mean(values)
        cluster += by_patient.low <= 0.4 <= by_patient.high
        rows += by_row.low <= 0.4 <= by_row.high
    # Binomial(200, .95): standard error .015; the row bootstrap's interval is sqrt(5) too short (about .62).
    assert cluster / runs > 0.95 - 4 * 0.0155
    assert rows / runs < 0.75


def test_bootstrap_is_a_function_of_the_seed_and_refuses_nonsense():
    values = np.arange(6.0)
    first = Bootstrap(list("aabbcc"), resamples=100, seed=1).mean(values)
    assert first == Bootstrap(list("aabbcc"), resamples=100, seed=1).mean(values)
    assert first.patients == 3 and first.n == 6
    with pytest.raises(UsageError, match="0 rows"):
        Bootstrap([])
    with pytest.raises(UsageError, match="resamples is 0"):
        Bootstrap(["a"], resamples=0)
    with pytest.raises(UsageError, match="got 2 values for 6 rows"):
        Bootstrap(list("aabbcc")).mean(np.zeros(2))
    with pytest.raises(UsageError, match="1 of 6 values are NaN"):
        Bootstrap(list("aabbcc")).median(np.array([0, 1, 2, 3, 4, np.nan]))
    assert Bootstrap(["a"], resamples=3).number(0.5, np.full(3, np.nan)) == Number(0.5, None, None, 1, 1, 3)


def test_number_keeps_its_interval_when_scaled_and_as_json():
    number = Number(0.4, 0.2, 0.6, 10, 5)
    assert number.scaled(0.5) == Number(0.2, 0.1, 0.3, 10, 5)
    assert number.plain() == {"value": 0.4, "n": 10, "low": 0.2, "high": 0.6, "patients": 5}
    assert Number(0.1, n=3).plain() == {"value": 0.1, "n": 3}


def test_ridge_solution_is_scikit_learns():
    random = np.random.default_rng(0)
    images, texts = random.standard_normal((30, 12)), random.standard_normal((30, 4))
    fitted = fit_ridge(images, texts, groups=np.arange(30), alphas=[0.7])
    centred = images - images.mean(0)
    scale = np.trace(centred.T @ centred) / 12  # mean eigenvalue
    other = SklearnRidge(alpha=0.7 * scale).fit(images, texts)
    np.testing.assert_allclose(fitted.weights, other.coef_.T, atol=1e-9)
    new = random.standard_normal((3, 12))
    predicted = fitted.text_mean + (new - fitted.image_mean) @ fitted.weights
    np.testing.assert_allclose(predicted, other.predict(new), atol=1e-9)


def test_ridge_finds_a_linear_relation_and_stays_at_chance_on_noise():
    random = np.random.default_rng(1)
    images = random.standard_normal((160, 20))
    texts = images @ random.standard_normal((20, 10)) + 0.1 * random.standard_normal((160, 10))
    groups = np.repeat(np.arange(80), 2)
    fitted = fit_ridge(images[:120], texts[:120], groups=groups[:120])
    scores = fitted.scores(images[120:], texts[120:])
    assert (scores.argmax(1) == np.arange(40)).mean() > 0.95 and fitted.rank < 0.01
    noise = fit_ridge(images[:120], random.standard_normal((120, 10)), groups=groups[:120])
    assert 0.4 < noise.rank < 0.6  # chance is 0.5


def test_ridge_needs_pairs_of_two_patients():
    with pytest.raises(UsageError, match="6 training pairs of 1 patients"):
        fit_ridge(np.ones((6, 2)), np.ones((6, 2)), groups=["a"] * 6)
