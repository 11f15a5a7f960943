"""Which texts of a batch describe which images, against loops over sets."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medvl.data import finding_similarity, positives
from medvl.errors import ConfigError

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
    with pytest.raises(ConfigError, match=r"weight of similar findings is 1\.0"):
        positives(keys, keys, torch.empty(2, 0), weight=1.0)
