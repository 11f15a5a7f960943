"""The linear probe: what it must reach, what it must not, and that no patient is on both sides."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medvl.errors import UsageError
from medvl.evaluation.probe import linear_probe, nested_subset


def rows(n, *, shift, seed):
    random = np.random.default_rng(seed)
    truth = np.arange(n) % 2 == 0
    vectors = random.normal(size=(n, 5))
    vectors[:, 0] += shift * truth
    return vectors, truth, np.arange(n) // 4


def probe(shift, **options):
    train, truth, groups = rows(400, shift=shift, seed=0)
    test, test_truth, test_groups = rows(400, shift=shift, seed=1)
    return linear_probe(
        train,
        truth,
        groups,
        test=test,
        test_truth=test_truth,
        test_groups=1000 + test_groups,
        resamples=200,
        **options,
    )


def test_reaches_the_auroc_of_the_best_direction():
    # Two unit normals 2 apart: AUROC = Φ(2/√2) = Φ(1.4142) = .9214; 400 rows: standard error .013
    found = probe(2.0)
    assert found.numbers[1.0].value == pytest.approx(0.9214, abs=0.03)
    assert found.numbers[1.0].low < 0.9214 < found.numbers[1.0].high
    assert found.numbers[0.01].value < found.numbers[1.0].value + 0.01
    assert len(found.draws[0.1]) == 5 and len(found.draws[1.0]) == 1
    assert all(size == 40 for size in found.sizes[0.1])  # 10 of 100 patients, 4 rows each
    assert found.numbers[0.1].value == pytest.approx(np.mean(found.draws[0.1]))


def test_noise_stays_at_chance():
    found = probe(0.0)
    assert found.numbers[1.0].low < 0.5 < found.numbers[1.0].high


def test_equals_sklearns_area_for_its_own_scores():
    train, truth, groups = rows(80, shift=1.0, seed=3)
    test, test_truth, test_groups = rows(60, shift=1.0, seed=4)
    test = test.copy()
    found = linear_probe(
        train[:, :1], truth, groups,
        test=test[:, :1], test_truth=test_truth, test_groups=500 + test_groups,
        shares=(1.0,), resamples=50,
    )  # fmt: skip
    # One feature: any increasing score ranks the rows as the feature itself does.
    assert found.numbers[1.0].value == pytest.approx(roc_auc_score(test_truth, test[:, 0]))


def test_subsets_are_nested_by_patient_and_hold_both_classes():
    truth = np.zeros(100, bool)
    truth[::10] = True
    groups = np.arange(100) // 2
    before = set()
    for share in (0.01, 0.1, 0.5, 1.0):
        chosen = set(nested_subset(truth, groups, share=share, seed=5))
        assert before <= chosen and all((row ^ 1) in chosen for row in chosen)
        assert truth[list(chosen)].sum() >= 4
        before = chosen
    assert len(before) == 100


def test_refuses_shared_patients_and_one_class():
    vectors, truth, groups = rows(40, shift=1.0, seed=0)
    same = {"test": vectors, "test_truth": truth, "test_groups": groups}
    with pytest.raises(UsageError, match="10 patients are both in training and in test"):
        linear_probe(vectors, truth, groups, **same)
    one = {"test": vectors, "test_truth": np.ones(40, bool), "test_groups": groups + 99}
    with pytest.raises(UsageError, match="40 of 40 test rows are positive; both classes are needed"):
        linear_probe(vectors, truth, groups, **one)
