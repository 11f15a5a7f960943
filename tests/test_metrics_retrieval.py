"""Retrieval figures against closed forms, every order of the ties, and independent libraries."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from medvl.errors import UsageError
from medvl.evaluation.retrieval import Keys, Ranking, ceiling, cosine_scores, relevance
from medvl.evaluation.retrieval_rows import Direction, direction_numbers, gallery_numbers


def every_order(scores, relevant):
    """All rankings that sort `scores` downwards, as lists of relevance; the oracle of the ties."""
    items = range(len(scores))
    return [
        [bool(relevant[i]) for i in order]
        for order in itertools.permutations(items)
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]


def oracle(scores, relevant, k):
    """Mean hit, rank, average precision and precision over every order, by loops."""
    hits, ranks, areas, precisions = [], [], [], []
    for order in every_order(scores, relevant):
        hits.append(any(order[:k]))
        ranks.append(order.index(True) + 1)
        found, area = 0, 0.0
        for place, right in enumerate(order, start=1):
            found += right
            area += right * found / place
        areas.append(area / found)
        precisions.append(sum(order[:k]) / k)
    return [float(np.mean(values)) for values in (hits, ranks, areas, precisions)] + [min(ranks), max(ranks)]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6).flatmap(
        lambda n: st.tuples(
            st.lists(st.integers(0, 2), min_size=n, max_size=n),
            st.lists(st.booleans(), min_size=n, max_size=n).filter(any),
            st.integers(1, n),
        )
    )
)
def test_every_figure_is_the_mean_over_all_orders_that_ties_allow(case):
    scores, relevant, k = case
    ranking = Ranking(np.array([scores], float))
    right = np.array([relevant])
    best, worst = ranking.rank_bounds(right)
    got = [
        ranking.hit(right, k=k)[0],
        ranking.rank(right)[0],
        ranking.average_precision(right)[0],
        ranking.precision(right, k=k)[0],
        best[0],
        worst[0],
    ]
    np.testing.assert_allclose(got, oracle(scores, relevant, k), atol=1e-12)


@pytest.mark.parametrize("n", [1, 7, 100])
def test_constant_embeddings_give_recall_k_of_n_and_median_rank_in_the_middle(n):
    scores = cosine_scores(np.full((n, 5), 0.3, np.float32), np.full((n, 5), -0.7, np.float32))
    ranking, right = Ranking(scores), np.eye(n, dtype=bool)
    for k in (1, 5, 10):
        np.testing.assert_allclose(ranking.hit(right, k=k), min(1, k / n), atol=1e-12)
    assert np.median(ranking.rank(right)) == (n + 1) / 2
    best, worst = ranking.rank_bounds(right)
    assert (best == 1).all() and (worst == n).all()


def test_recall_is_the_clamp_of_the_convention_for_one_right_answer():
    random = np.random.default_rng(3)
    scores = random.integers(0, 4, (50, 30)).astype(float)
    right = np.zeros((50, 30), bool)
    right[np.arange(50), random.integers(0, 30, 50)] = True
    own = scores[right][:, None]
    above, equal = (scores > own).sum(1), (scores == own).sum(1) - 1
    for k in (1, 5, 10):
        expected = np.clip((k - above) / (equal + 1), 0, 1)
        np.testing.assert_allclose(Ranking(scores).hit(right, k=k), expected, atol=1e-12)
    np.testing.assert_allclose(Ranking(scores).rank(right), 1 + above + equal / 2, atol=1e-12)


def test_strict_greater_and_topk_evaluators_are_fooled_where_this_one_is_not():
    # EVALUATION §3.8 and its R@K row: a strict ">" counts a constant encoder as perfect, a sort that
    # keeps the index order counts the diagonal's luck.
    scores, right = np.zeros((20, 20)), np.eye(20, dtype=bool)
    strict = ((scores > scores[right][:, None]).sum(1) < 1).mean()
    indexed = (np.argsort(-scores, axis=1, kind="stable")[:, 0] == np.arange(20)).mean()
    assert strict == 1.0 and indexed == 0.05
    skewed = scores + np.zeros(20)
    first = np.zeros((20, 20), bool)
    first[:, 0] = True
    assert (np.argsort(-skewed, axis=1, kind="stable")[:, 0] == 0).mean() == 1.0
    assert Ranking(scores).hit(first, k=1).mean() == pytest.approx(1 / 20)


def test_average_precision_equals_scikit_learn_without_ties():
    random = np.random.default_rng(0)
    scores = random.permuted(np.tile(np.arange(40.0), (25, 1)), axis=1)
    right = random.random((25, 40)) < 0.2
    right[:, 0] = True
    expected = [average_precision_score(r, s) for r, s in zip(right, scores, strict=True)]
    np.testing.assert_allclose(Ranking(scores).average_precision(right), expected, atol=1e-12)


def test_relevance_matrix_that_is_the_identity_gives_the_diagonal_figures():
    random = np.random.default_rng(1)
    scores = random.standard_normal((30, 30))
    rank = (scores > np.diag(scores)[:, None]).sum(1) + 1
    ranking, right = Ranking(scores), np.eye(30, dtype=bool)
    np.testing.assert_array_equal(ranking.rank(right), rank)
    for k in (1, 5):
        np.testing.assert_array_equal(ranking.hit(right, k=k), rank <= k)
    np.testing.assert_allclose(ranking.average_precision(right), 1 / rank, atol=1e-12)


def test_recall_never_falls_with_k():
    random = np.random.default_rng(2)
    scores = np.round(random.standard_normal((40, 25)), 1)
    right = random.random((40, 25)) < 0.1
    right[:, 3] = True
    hits = np.stack([Ranking(scores).hit(right, k=k) for k in range(1, 26)])
    assert (np.diff(hits, axis=0) >= -1e-12).all()
    np.testing.assert_allclose(hits[-1], 1.0)


def test_two_images_of_one_study_are_both_right():
    # CT-CLIP's evaluator (EVALUATION §3.6) counts the diagonal alone and punishes the twin.
    images = Keys(np.array([0, 0, 1]), np.array([4, 4, 5]), np.array([-1, -1, -1]))
    texts = images.take(np.array([0, 2]))
    assert relevance(texts, images, mode="id").tolist() == [[True, True, False], [False, False, True]]
    scores = np.array([[0.1, 0.9, 0.0], [0.0, 0.0, 1.0]])  # study 0's second image comes first
    assert Ranking(scores).hit(relevance(texts, images, mode="id"), k=1).tolist() == [1.0, 1.0]
    diagonal = [scores[0].argmax() == 0, scores[1].argmax() == 2]
    assert diagonal == [False, True]


def test_equal_reports_are_right_by_text_and_ties_by_id():
    # Four studies, two with one report. A model that embeds words perfectly cannot tell the pair:
    # R@1 by id is (½ + ½ + 1 + 1)/4, which is its ceiling; by text it is 1.
    keys = Keys(np.arange(4), np.array([7, 7, 8, 9]), np.array([0, 0, 0, 1]))
    scores = (keys.text[:, None] == keys.text[None]).astype(float)
    by_id = Ranking(scores).hit(relevance(keys, keys, mode="id"), k=1)
    assert by_id.mean() == ceiling(keys.text, k=1) == 0.75
    assert Ranking(scores).hit(relevance(keys, keys, mode="text"), k=1).mean() == 1.0
    # min(2, 3)/3 three times and 1 once
    assert ceiling(keys.label, k=2) == pytest.approx((3 * 2 / 3 + 1) / 4)


def test_rounding_noise_between_copies_of_a_report_does_not_decide_their_order():
    base = np.array([[1.0, 2.0, 3.0]], np.float32)
    copies = np.concatenate([base, base * (1 + 3e-8), base + 1e-7]).astype(np.float32)
    assert len(set(cosine_scores(base, copies)[0])) == 1


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(UsageError, match="1 of 4 scores are NaN"):
        Ranking(np.array([[0.0, np.nan], [1.0, 2.0]]))
    with pytest.raises(UsageError, match=r"\(0, 3\)"):
        Ranking(np.zeros((0, 3)))
    with pytest.raises(UsageError, match="1 of 2 query embeddings hold NaN"):
        cosine_scores(np.array([[np.nan, 1.0], [1, 1]]), np.ones((1, 2)))
    with pytest.raises(UsageError, match="2 of 3 gallery embeddings hold NaN"):
        cosine_scores(np.ones((1, 2)), np.array([[np.inf, 1.0], [1, np.nan], [1, 1]]))
    ranking = Ranking(np.zeros((2, 3)))
    with pytest.raises(UsageError, match="1 of 2 queries have no relevant item"):
        ranking.hit(np.array([[True, False, False], [False, False, False]]), k=1)
    with pytest.raises(UsageError, match=r"relevance matrix is \(1, 3\), the scores are \(2, 3\)"):
        ranking.rank(np.ones((1, 3), bool))
    with pytest.raises(UsageError, match="P@9 is asked of a gallery of 3"):
        ranking.precision(np.ones((2, 3), bool), k=9)
    keys = Keys(np.array([0]), np.array([0]), np.array([0]))
    with pytest.raises(UsageError, match=r"unknown relevance 'txt'.*'text'"):
        relevance(keys, keys, mode="txt")


def pairs(n, *, seed=0, texts=None, noise=0.4):
    """A direction of `n` one-image studies whose scores are the identity plus noise."""
    random = np.random.default_rng(seed)
    text = np.arange(n) if texts is None else random.integers(0, texts, n)
    keys = Keys(np.arange(n), text, text % 3)
    scores = (text[:, None] == text[None]) + noise * random.standard_normal((n, n))
    return Direction(scores, keys, keys, [f"p{i // 2}" for i in range(n)])


def test_every_row_of_the_table_is_what_its_name_says():
    direction = pairs(60, texts=20, noise=0.2)
    numbers, left_out = direction_numbers(direction, resamples=200, seed=0)
    assert left_out == {"id": 0, "text": 0, "label": 0}
    keys = direction.queries
    m = np.bincount(keys.text)[keys.text]
    assert numbers["id/R@1/chance"].value == pytest.approx(1 / 60)
    assert numbers["id/MedR/chance"].value == 61 / 2
    # Drawing 5 of 60 without replacement misses all m copies with probability C(60-m,5)/C(60,5).
    missed = [np.prod([(60 - c - t) / (60 - t) for t in range(5)]) for c in m]
    assert numbers["text/R@5/chance"].value == pytest.approx(1 - np.mean(missed))
    assert numbers["id/R@1/ceiling"].value == pytest.approx(ceiling(keys.text, k=1))
    assert numbers["text/R@1/ceiling"].value == 1.0
    assert numbers["id/R@1/labels"].value == pytest.approx(ceiling(keys.label, k=1))
    model, best = numbers["id/R@1/model"], numbers["id/R@1/ceiling"].value
    assert numbers["id/R@1/normalised"].value == pytest.approx(model.value / best)
    assert model.n == 60 and model.patients == 30 and model.low <= model.value <= model.high
    assert numbers["label/P@5/chance"].value == pytest.approx(
        np.mean(np.bincount(keys.label)[keys.label] / 60)
    )


def test_no_order_beats_the_ceiling_by_findings():
    numbers, _ = direction_numbers(pairs(60, texts=20, noise=0.2), resamples=20, seed=0)
    labels = pairs(60, texts=20).queries.label
    m = np.bincount(labels)[labels]  # right answers of each query
    # Right answers first: K places hold min(K, m) of them, and every precision on the way is 1.
    for k in (5, 10, 50):
        assert numbers[f"label/P@{k}/ceiling"].value == pytest.approx(np.mean(np.minimum(k, m) / k))
    assert numbers["label/mAP/ceiling"].value == pytest.approx(1)
    for metric in ("R@1", "R@10", "mAP", "P@5", "P@10", "P@50"):
        best = numbers[f"label/{metric}/ceiling"].value
        for row in ("model", "labels", "chance", "shuffled"):
            assert numbers[f"label/{metric}/{row}"].value <= best + 1e-12


def test_shuffled_pairs_stay_at_chance_however_good_the_model_is():
    values, chance = [], None
    for seed in range(8):
        numbers, _ = direction_numbers(pairs(50, seed=seed, noise=0.0), resamples=20, seed=seed)
        assert numbers["id/R@1/model"].value == 1.0
        values.append(numbers["id/R@5/shuffled"].value)
        chance = numbers["id/R@5/chance"].value
    # The mean of 8 x 20 deals of 50 queries: its standard error is about sqrt(.1*.9/50/160) = .0034.
    assert abs(np.mean(values) - chance) < 3 * 0.0034


def test_studies_without_labels_are_left_out_of_the_label_mode_and_counted():
    keys = Keys(np.arange(4), np.arange(4), np.array([0, 0, -1, 1]))
    numbers, left_out = direction_numbers(Direction(np.eye(4), keys, keys, list("abcd")), resamples=10)
    assert left_out == {"id": 0, "text": 0, "label": 1}
    assert numbers["label/R@1/model"].n == 3 and numbers["id/R@1/model"].n == 4


def test_random_galleries_are_as_large_as_they_say():
    numbers = gallery_numbers(pairs(150, noise=5.0), seed=0)
    assert set(numbers) == {f"{m}/R@{k}/gallery-100" for m in ("id", "text") for k in (1, 5, 10)}
    assert numbers["id/R@1/gallery-100"].n == 100
    # The same 150 studies give a lower recall in the whole gallery than in 100 of them.
    whole, _ = direction_numbers(pairs(150, noise=5.0), resamples=10)
    assert numbers["id/R@10/gallery-100"].value > whole["id/R@10/model"].value
    assert gallery_numbers(pairs(60), seed=0) == {}


def test_rows_of_other_models_share_queries_and_gallery():
    good = pairs(40, noise=0.0)
    both = Direction(np.zeros((40, 40)), good.queries, good.gallery, good.patients, {"ridge": good.scores})
    numbers, _ = direction_numbers(both, resamples=20)
    assert numbers["id/R@1/ridge"].value == 1.0
    assert numbers["id/R@1/model"].value == pytest.approx(1 / 40)
