"""The index finds what brute force finds, leaves out what it must, and really forgets."""

import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvl.errors import IndexFileError, UsageError
from medvl.retrieval import lance as room
from medvl.retrieval.lance import LanceIndex
from medvl.retrieval.results import Results
from medvl.retrieval.vectors import index_schema, quoted, top

DIM = 16


def unit_rows(n, seed=0, dim=DIM):
    x = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def table(x, *, first=0, text=None, report="words"):
    n, dim = x.shape
    rows = [
        {
            "record_id": f"r{first + i:06d}", "study_id": f"s{i // 2}", "patient_id": f"p{(first + i) // 4}",
            "modality": "cxr", "view": "PA" if i % 2 else "AP", "laterality": None,
            "split": "test" if i % 5 == 0 else "train", "findings": ["nodule"] if i % 3 == 0 else [],
            "report": f"{report} {i}", "text_hash": "h", "thumbnail": b"jpeg",
            "vector": x[i], "text_vector": (x if text is None else text)[i],
        }
        for i in range(n)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=index_schema(dim))


@pytest.fixture
def small(tmp_path):
    x = unit_rows(60)
    index = LanceIndex.create(tmp_path / "index", dim=DIM, about={"model_digest": "m"})
    index.upsert(table(x))
    return index, x


def brute(x, q, k, keep=None):
    """Order by cosine, then by id: written as a loop, apart from the index's code."""
    rows = range(len(x)) if keep is None else keep
    scored = sorted((-float(np.dot(x[i], q)), i) for i in rows)
    return [f"r{i:06d}" for _, i in scored[:k]]


def test_search_equals_brute_force(small):
    index, x = small
    for q in unit_rows(10, seed=1):
        assert [h.record_id for h in index.search(q, k=7)] == brute(x, q, 7)


def test_scores_are_cosines_and_the_query_is_normalised(small):
    index, x = small
    hit = index.search(3.0 * x[11], k=1)[0]
    assert hit.record_id == "r000011" and hit.score == pytest.approx(1.0, abs=1e-6)
    assert hit.report == "words 11" and hit.thumbnail == b"jpeg"


def test_filter_and_patient_exclusion(small):
    index, x = small
    q = unit_rows(1, seed=2)[0]
    keep = [i for i in range(60) if i % 2 and i % 5 == 0]
    hits = index.search(q, k=4, where="view = 'PA' AND split = 'test'")
    assert [h.record_id for h in hits] == brute(x, q, 4, keep)
    keep = [i for i in range(60) if i // 4 != 2]
    hits = index.search(q, k=60, exclude_patients=["p2"])
    assert [h.record_id for h in hits] == brute(x, q, 60, keep)
    assert {h.patient_id for h in index.search(q, k=60, where="array_has(findings, 'nodule')")}
    assert all("nodule" in h.findings for h in index.search(q, k=60, where="array_has(findings, 'nodule')"))


@pytest.mark.parametrize(
    "where",
    [
        "1 = 1) --",
        "1 = 1) OR (1 = 1",
        "1 = 1) OR patient_id IN ('p1') --",
        "1 = 1 /*",
        "view = 'PA' --",
        "view = 'PA'; x",
        "report = 'o'hara'",
        "(view = 'PA'",
    ],
)
def test_a_filter_that_leaves_its_brackets_is_refused(small, where):
    index, x = small
    for patients in ([], ["p1"]):
        with pytest.raises(UsageError, match=re.escape(f"the filter {where!r} cannot be read: brackets")):
            index.search(x[4], k=60, where=where, exclude_patients=patients)


def test_brackets_and_dashes_inside_a_text_value_are_read_as_text(small):
    index, x = small
    where = "report = 'words (1' OR report = 'it''s; -- )' OR (report = 'words 7')"
    assert [hit.record_id for hit in index.search(x[7], k=60, where=where)] == ["r000007"]


def test_an_index_is_not_made_among_other_files(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "index.parquet").write_bytes(b"other")
    for path in (tmp_path / "store", tmp_path / "store" / "index.parquet"):
        with pytest.raises(UsageError, match="is a file, or a folder that holds other files"):
            LanceIndex.create(path, dim=4, about={})
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["index.parquet"]


def test_an_or_in_the_filter_does_not_escape_the_exclusion(small):
    index, _ = small
    hits = index.search(
        unit_rows(1, seed=3)[0], k=60, where="view = 'PA' OR view = 'AP'", exclude_patients=["p1"]
    )
    assert len(hits) == 56 and "p1" not in {h.patient_id for h in hits}


def test_equal_scores_come_in_the_order_of_ids(tmp_path):
    x = np.tile(unit_rows(1), (30, 1))
    index = LanceIndex.create(tmp_path / "i", dim=DIM, about={})
    shuffled = table(x).take(np.random.default_rng(0).permutation(30))
    index.upsert(shuffled)
    assert [h.record_id for h in index.search(x[0], k=5)] == [f"r{i:06d}" for i in range(5)]


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 12), st.integers(0, 1000))
def test_top_k_is_a_prefix_of_top_k_plus_one(k, seed):
    scores = np.random.default_rng(seed).integers(0, 4, 12).astype(np.float32)
    assert top(scores, k).tolist() == top(scores, k + 1).tolist()[:k]
    assert top(scores, 12).tolist() == sorted(range(12), key=lambda i: (-scores[i], i))


def test_a_record_is_replaced_never_doubled(small):
    index, x = small
    index.upsert(table(-x[:5]))
    assert index.count() == 60
    assert index.search(-x[3], k=1)[0].record_id == "r000003"


def test_text_vectors_are_searched_on_demand(tmp_path):
    x, t = unit_rows(20), unit_rows(20, seed=9)
    index = LanceIndex.create(tmp_path / "i", dim=DIM, about={})
    index.upsert(table(x, text=t))
    assert index.search(t[4], k=1, against="text")[0].record_id == "r000004"
    assert index.search(x[4], k=1)[0].record_id == "r000004"


def test_erasing_a_patient_leaves_no_byte_and_no_version(tmp_path):
    folder = tmp_path / "index"
    index = LanceIndex.create(folder, dim=DIM, about={"model_digest": "m"})
    x = unit_rows(40)
    index.upsert(table(x[:20], report="ordinary"))
    secret = "qzxv-7731-unmistakable-canary"
    index.upsert(table(x[20:24], first=20, report=secret))  # patient p5
    index.upsert(table(x[24:], first=24, report="ordinary"))

    def holds(needle):
        return [p for p in folder.rglob("*") if p.is_file() and needle in p.read_bytes()]

    vector = x[21].tobytes()
    assert holds(secret.encode()) and holds(vector), (
        "the probe must be visible before, or the test proves nothing"
    )
    assert index.erase(f"patient_id = {quoted('p5')}") == 4
    assert holds(secret.encode()) == [] and holds(vector) == []
    again = LanceIndex(folder)
    assert again.count() == 36 and again.about == {"model_digest": "m"}
    assert len(again._table.list_versions()) == 1
    assert "p5" not in {h.patient_id for h in again.search(x[21], k=36)}
    assert again.erase("patient_id = 'p5'") == 0


def test_the_graph_agrees_with_exact_search_and_forgets_too(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "EXACT_ROWS", 500)
    x = unit_rows(2000, dim=32)
    index = LanceIndex.create(tmp_path / "i", dim=32, about={})
    index.upsert(table(x))
    assert index.build_graph()
    queries = unit_rows(20, seed=5, dim=32)
    assert index.measure_recall(queries) >= 0.99
    keep = [i for i in range(2000) if i % 10 == 5]  # view PA, split test: 200 rows, answered exactly
    for q in queries[:5]:
        hits = index.search(q, k=10, where="view = 'PA' AND split = 'test'")
        assert [h.record_id for h in hits] == brute(x, q, 10, keep)
    wide = [h.record_id for h in index.search(queries[0], k=10, where="view = 'PA'")]  # 1000 rows: the graph
    exact = brute(x, queries[0], 10, [i for i in range(2000) if i % 2])
    assert len(set(wide) & set(exact)) >= 9
    victim = index.search(queries[0], k=1)[0]
    assert index.erase(f"patient_id = {quoted(victim.patient_id)}") == 4
    assert victim.patient_id not in {h.patient_id for h in index.search(queries[0], k=50)}
    assert index._table.list_indices()


def test_errors_name_the_value_and_the_way_out(small, tmp_path):
    index, x = small
    with pytest.raises(UsageError, match=r"k is 0; allowed are whole numbers from 1"):
        index.search(x[0], k=0)
    with pytest.raises(UsageError, match=r"shape \(3,\); the index holds finite vectors of length 16"):
        index.search(np.ones(3, np.float32))
    with pytest.raises(UsageError, match=r"shape \(16,\); the index holds finite"):
        index.search(np.full(DIM, np.nan, np.float32))
    with pytest.raises(UsageError, match="zero vector"):
        index.search(np.zeros(DIM, np.float32))
    with pytest.raises(
        UsageError, match=r"'viw = 'PA'' cannot be read.*Did you mean 'view'|Did you mean 'view'"
    ):
        index.search(x[0], where="viw = 'PA'")
    with pytest.raises(UsageError) as refused:
        index.search(x[0], where="viw = 'PA'")
    assert str(refused.value).count("Did you mean") == 1
    with pytest.raises(UsageError, match="the index has no record 'nobody'"):
        index.vector_of("nobody")
    with pytest.raises(IndexFileError, match="there is no index at this path"):
        LanceIndex(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(IndexFileError, match="holds no table 'records'"):
        LanceIndex(tmp_path / "empty")


def test_vector_of_returns_the_stored_vector(small):
    index, x = small
    np.testing.assert_array_equal(index.vector_of("r000007"), x[7])


def test_results_as_lines_json_and_escaped_page(small):
    index, x = small
    index.upsert(table(x[:1], report="<script>alert(1)</script>"))
    results = Results(tuple(index.search(x[0], k=3)), text="left <b>effusion</b>", where="view = 'PA'")
    assert results[0].rank == 1 and len(results[:2]) == 2
    assert (
        results.to_json()["hits"][0]["record_id"] == "r000000"
        and "thumbnail" not in results.to_json()["hits"][0]
    )
    page = results.to_html()
    assert "<script>alert" not in page and "&lt;script&gt;" in page and "left &lt;b&gt;" in page
    # Long names are words that wrap, and the names of the filter stay at hand.
    wide = replace(results[0], findings=("coronary_artery_wall_calcification", "nodule"), view=None)
    card = Results((wide,)).to_html()
    assert ">coronary artery wall calcification, nodule<" in card and "overflow-wrap: anywhere" in card
    assert 'title="coronary_artery_wall_calcification, nodule"' in card and '"soft">test · ' in card
    assert "Research use only" in page and "Research use only" in results.lines()[-1]
    assert Results(()).lines()[0] == "No case matches the filter."
