"""Index queries at 100,000 x 512 against FAISS exact search, one query at a time, interleaved.

Data: unit vectors around 2,000 centres of a 64-dimensional latent space plus noise. Both sides return ids
and scores. The filter (view = 'PATH', about 1.5 %) is resolved to rows once on both sides and then reused;
the first use of a filter, which reads its rows into memory, is printed apart.
"""

import tempfile
import time

import faiss
import numpy as np
import pyarrow as pa

from medvl.retrieval.lance import LanceIndex
from medvl.retrieval.vectors import index_schema

ROWS, DIM, QUERIES, K = 100_000, 512, 100, 10


def clustered(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return unit database and query vectors."""
    rng = np.random.default_rng(seed)
    centres, lift = rng.normal(size=(2000, 64)), rng.normal(size=(64, DIM))

    def draw(n: int) -> np.ndarray:
        latent = centres[rng.integers(0, 2000, n)] + 0.3 * rng.normal(size=(n, 64))
        x = (latent @ lift + 0.5 * rng.normal(size=(n, DIM))).astype(np.float32)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    return draw(ROWS), draw(QUERIES)


def rows(x: np.ndarray, first: int, rare: np.ndarray) -> pa.Table:
    """Return index rows of one slice."""
    n = len(x)
    vector = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), DIM)
    fixed = {name: [""] * n for name in ("study_id", "laterality", "split", "report", "text_hash")}
    columns = {
        **fixed,
        "record_id": [f"r{first + i:06d}" for i in range(n)],
        "patient_id": [f"p{(first + i) // 3}" for i in range(n)],
        "modality": ["cxr"] * n,
        "view": np.where(rare, "PATH", "PA").tolist(),
        "findings": [[]] * n,
        "thumbnail": [b""] * n,
        "vector": vector,
        "text_vector": vector,
    }
    schema = index_schema(DIM)
    return pa.table(
        [
            pa.array(columns[f.name], f.type) if f.name not in ("vector", "text_vector") else vector
            for f in schema
        ],
        schema=schema,
    )


def paired(name: str, ours, theirs, queries, bar: float) -> None:
    """Time both sides query by query in turn and print the ratio of medians."""
    for q in queries[:5]:
        ours(q), theirs(q)
    a, b, shared = [], [], 0
    for q in queries:
        t = time.perf_counter()
        mine = ours(q)
        a.append(time.perf_counter() - t)
        t = time.perf_counter()
        exact = theirs(q)
        b.append(time.perf_counter() - t)
        shared += len({int(i[1:]) for i in mine} & set(exact.tolist()))
    ratio, recall = np.median(a) / np.median(b), shared / (K * len(queries))
    verdict = "pass" if ratio <= bar and recall >= 0.99 else "FAIL"
    print(
        f"{name:<22} medvl {1e3 * np.median(a):6.2f} ms  FAISS exact {1e3 * np.median(b):6.2f} ms  "
        f"ratio {ratio:.2f} (bar {bar:.2f})  recall@{K} {recall:.4f} (bar 0.99)  n={len(queries)}  {verdict}"
    )


def main() -> None:
    """Build both indexes and print the paired figures."""
    x, queries = clustered()
    rare = np.random.default_rng(1).random(ROWS) < 0.015
    flat = faiss.IndexFlatIP(DIM)
    flat.add(x)
    with tempfile.TemporaryDirectory() as folder:
        index = LanceIndex.create(f"{folder}/index", dim=DIM, about={})
        t = time.perf_counter()
        for first in range(0, ROWS, 20_000):
            index.upsert(rows(x[first : first + 20_000], first, rare[first : first + 20_000]))
        ingest = time.perf_counter() - t
        t = time.perf_counter()
        index.build_graph()
        print(f"ingest {ingest:.1f} s, graph {time.perf_counter() - t:.1f} s (wall)")
        paired(
            "all rows",
            lambda q: index.neighbours(q, k=K).record_ids,
            lambda q: flat.search(q[None], K)[1][0],
            queries,
            1.0,
        )
        where = "view = 'PATH'"
        t = time.perf_counter()
        index.neighbours(queries[0], k=K, where=where)
        print(f"first use of a filter: {1e3 * (time.perf_counter() - t):.1f} ms")
        selector = faiss.SearchParameters(sel=faiss.IDSelectorBatch(np.flatnonzero(rare)))
        paired(
            f"filtered, {rare.sum()} rows",
            lambda q: index.neighbours(q, k=K, where=where).record_ids,
            lambda q: flat.search(q[None], K, params=selector)[1][0],
            queries,
            1.0,
        )


if __name__ == "__main__":
    main()
