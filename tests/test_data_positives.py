"""Which texts of a batch describe which images, against loops over sets."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medvl.data import finding_similarity, positives
from medvl.errors import ConfigError
from medvl.objectives.contrast import clip_loss

NAN = float("nan")


def similarity_oracle(labels):
    """Jaccard over findings known in both rows, by loops; two rows without a finding agree."""
    n = len(labels)
    result = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            a = {f for f, v in enumerate(labels[i]) if v == 1}
            b = {f for f, v in enumerate(labels[j]) if v == 1}
            known = {
                f for f in range(len(labels[i])) if not np.isnan(labels[i][f]) and not np.isnan(labels[j][f])
            }
            union = (a | b) & known
            if union:
                result[i, j] = len(a & b & known) / len(union)
            else:
                result[i, j] = float(not a and not b and bool(known))
    return result


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0, NAN]), min_size=3, max_size=3), min_size=1, max_size=6))
def test_similarity_equals_the_loop_oracle(labels):
    found = finding_similarity(torch.tensor(labels), torch.tensor(labels))
    assert torch.allclose(found.double(), torch.tensor(similarity_oracle(labels)))


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from([0.0, 1.0, NAN])),
        min_size=1,
        max_size=7,
    )
)
def test_positives_are_symmetric_with_a_unit_diagonal(rows):
    study, report = (torch.tensor([row[k] for row in rows]) for k in (0, 1))
    labels = torch.tensor([[row[2]] for row in rows])
    for mode in ("identity", "same", "similar"):
        lazy = positives(study, report, labels, mode=mode, weight=0.4)
        matrix = lazy.rows(0, len(lazy))
        assert torch.equal(lazy.rows(1, 3), matrix[1:3]) and torch.equal(lazy.columns(1, 3), matrix.T[1:3])
        assert torch.equal(matrix, matrix.T) and bool((matrix.diagonal() == 1).all())
        assert bool(((matrix >= 0) & (matrix <= 1)).all())
        for i, a in enumerate(rows):
            for j, b in enumerate(rows):
                equal = a[0] == b[0] or a[1] == b[1]
                if mode == "identity":
                    assert matrix[i, j] == float(i == j)
                elif equal:
                    assert matrix[i, j] == 1
                else:
                    assert matrix[i, j] <= (0.4 + 1e-6 if mode == "similar" else 0)


def test_no_labels_leave_only_equal_keys():
    keys = torch.arange(3)
    matrix = positives(keys, keys, torch.empty(3, 0), mode="similar").rows(0, 3)
    assert torch.equal(matrix, torch.eye(3))


def test_positives_refuse_unknown_modes_and_weights():
    keys = torch.arange(2)
    with pytest.raises(ConfigError, match=r"unknown positives mode 'simliar'.*Did you mean 'similar'"):
        positives(keys, keys, torch.empty(2, 0), mode="simliar")
    for weight in (0.0, 1.5):
        with pytest.raises(ConfigError, match=rf"weight of similar findings is {weight}.*0 < weight <= 1"):
            positives(keys, keys, torch.empty(2, 0), weight=weight)


@pytest.mark.parametrize("mode", ["label", "similar", "bank"])
@pytest.mark.parametrize("rule", ["mask", "multi", "soft"])
def test_every_rule_acts_on_every_kind_of_positive(mode, rule):
    # Cases 0 and 1 have other words, the same finding and the same meaning; case 2 is another one.
    keys, labels = torch.arange(3), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    bank = torch.tensor([[1.0, 0.0], [0.9, 0.19**0.5], [0.0, 1.0]])
    found = positives(keys, keys, labels, mode=mode, weight=1.0, bank=bank)
    twins = torch.eye(3) + torch.eye(3)[[1, 0, 2]] * torch.tensor([1.0, 1.0, 0.0])
    assert torch.equal(found.rows(0, 3), twins)
    images, texts = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    loss = clip_loss(images, texts, found, scale=5.0, false_negatives=rule)
    assert loss == clip_loss(images, texts, twins, scale=5.0, false_negatives=rule)
    assert loss != clip_loss(images, texts, torch.eye(3), scale=5.0)


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0, NAN]), min_size=3, max_size=3), min_size=1, max_size=6))
def test_label_positives_are_equal_known_sets(rows):
    keys = torch.arange(len(rows))
    matrix = positives(keys, keys, torch.tensor(rows), mode="label").rows(0, len(rows))
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            present = [{f for f, value in enumerate(row) if value == 1} for row in (a, b)]
            known = any(not np.isnan(x) and not np.isnan(y) for x, y in zip(a, b, strict=True))
            assert matrix[i, j] == float(i == j or (present[0] == present[1] and known))


def bank_oracle(study, report, bank, weight, neighbours, least):
    """§4 by loops: neighbours of i are other cases, nearest first, ties with the last one included."""
    n = len(bank)
    same = [[study[i] == study[j] or report[i] == report[j] for j in range(n)] for i in range(n)]
    sim = [[float(np.dot(bank[i], bank[j])) for j in range(n)] for i in range(n)]
    near = [[False] * n for _ in range(n)]
    for i in range(n):
        others = sorted((sim[i][j] for j in range(n) if not same[i][j]), reverse=True)
        last = others[min(neighbours, len(others)) - 1] if others else 2.0
        for j in range(n):
            near[i][j] = not same[i][j] and sim[i][j] >= max(last, least) - 1e-6
    result = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if same[i][j]:
                result[i, j] = 1.0
            elif near[i][j] or near[j][i]:
                result[i, j] = min(max(weight * sim[i][j], 1e-6), weight)
    return result


@pytest.mark.parametrize("neighbours", [1, 3, 50])
@pytest.mark.parametrize("least", [-1.0, 0.2, 0.9])
def test_bank_positives_equal_the_loop_oracle(neighbours, least):
    generator = np.random.default_rng(neighbours)
    bank = generator.normal(size=(17, 4)).astype(np.float32)
    bank[5] = bank[6] = bank[7]  # ties
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    study, report = np.arange(17), np.arange(17)
    study[1], report[3] = 0, 2
    lazy = positives(
        torch.tensor(study), torch.tensor(report), torch.empty(17, 0),
        mode="bank", weight=0.6, bank=torch.tensor(bank), neighbours=neighbours, least=least,
    )  # fmt: skip
    expected = bank_oracle(study, report, bank.astype(np.float64), 0.6, neighbours, least)
    np.testing.assert_allclose(lazy.rows(0, 17).numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(lazy.rows(4, 9).numpy(), expected[4:9], atol=1e-6)
    np.testing.assert_allclose(lazy.columns(4, 9).numpy(), expected[:, 4:9].T, atol=1e-6)


def test_blocks_of_the_bank_find_the_same_neighbours(monkeypatch):
    import sys

    from medvl.data import positives as room  # the function; its module is where the size of a block is

    bank = torch.nn.functional.normalize(torch.randn(23, 5), dim=1)
    keys = torch.arange(23)

    def matrix():
        return room(keys, keys, torch.empty(23, 0), mode="bank", bank=bank, neighbours=2, least=-1).rows(
            0, 23
        )

    whole = matrix()
    monkeypatch.setattr(sys.modules["medvl.data.positives"], "_BLOCK_ENTRIES", 3 * 23)
    assert torch.allclose(matrix(), whole, atol=1e-6)


def test_an_empty_bank_or_an_unreachable_similarity_is_exactly_same():
    study, report = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 2, 2])
    alike = torch.ones(4, 1)
    same = positives(study, report, torch.empty(4, 0), mode="same").rows(0, 4)
    for bank, least in ((torch.empty(4, 0), 0.0), (alike, 1.001)):
        found = positives(study, report, torch.empty(4, 0), mode="bank", bank=bank, least=least)
        assert torch.equal(found.rows(0, 4), same)
    everyone = positives(study, report, torch.empty(4, 0), mode="bank", bank=alike, neighbours=9, least=-1)
    assert bool((everyone.rows(0, 4) > 0).all())


def test_bank_refuses_what_it_cannot_use():
    keys = torch.arange(2)
    with pytest.raises(ConfigError, match=r"mode 'bank' got no bank vectors\..*bank_vectors"):
        positives(keys, keys, torch.empty(2, 0), mode="bank")
    with pytest.raises(ConfigError, match=r"neighbours is 0\. Allowed: 1 or more"):
        positives(keys, keys, torch.empty(2, 0), mode="bank", bank=torch.ones(2, 1), neighbours=0)
