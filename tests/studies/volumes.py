"""What organs and equal normal statements do for CT: recipes on phantom studies of thorax and abdomen.

``python -m tests.studies.volumes OUT`` draws a set of studies for each seed, prepares it, trains each arm
with the same towers and steps, evaluates it on patients that it has not seen and prints a table. What is
there already is not made again. The sign test asks whether the differences over seeds could be a coin's.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import medvl

ARMS = {
    "whole volumes": ("global", ()),
    "organs": ("local-global", ()),
    "organs, normal is no positive of normal": ("local-global", ("objective.options.false_negatives=none",)),
}
COLUMNS = {
    "zeroshot/macro/AUROC": "zero-shot AUROC, whole volume",
    "organs/macro/AUROC/regions": "organ AUROC, its regions",
    "organs/macro/AUROC/query": "organ AUROC, its query",
    "grounding/all/pointing": "pointing game in 3D",
    "retrieval/image_to_text/label/P@5": "label-aware P@5",
}
"""Key of a number of the evaluation to the name of its column."""


def prepared(out: Path, *, seed: int, n: int) -> Path:
    """Draw and prepare the studies of a seed; return the store."""
    folder = out / f"studies-{seed}"
    store = out / f"store-{seed}"
    medvl.phantom(folder, modality="ct", n=n, seed=seed, workers=1)
    medvl.prepare(
        folder,
        store,
        modality="ct",
        pixels={"spacing_mm": (4, 4, 5)},
        columns={"split": ""},
        split=(0.6, 0.1, 0.3),
        key=b"study" * 8,
        workers=1,
    )
    return store


def cell(out: Path, arm: str, seed: int, n: int, overrides: tuple[str, ...]) -> dict:
    """Train and evaluate one arm on the studies of one seed."""
    recipe, own = ARMS[arm]
    name = arm.replace(",", "").replace(" ", "-")
    result = out / f"{name}-{seed}.json"
    if not result.exists():
        store, run = out / f"store-{seed}", out / f"{name}-{seed}"
        medvl.train(
            store, run, modality="ct", recipe=recipe, overrides=[f"loop.seed={seed}", *own, *overrides]
        )
        numbers = medvl.evaluate(run, store, baselines=(), resamples=200).metrics["numbers"]
        kept = {
            key: value["value"]
            for key, value in numbers.items()
            if any(key.startswith(column) for column in COLUMNS)
        }
        result.write_text(json.dumps(kept))
    return json.loads(result.read_text())


def sign_test(differences: list[float]) -> float:
    """Return the two-sided p of so many differences of one sign; zeros are left out."""
    above = sum(value > 0 for value in differences)
    below = sum(value < 0 for value in differences)
    count = above + below
    tail = sum(math.comb(count, k) for k in range(max(above, below), count + 1)) / 2**count
    return min(1.0, 2 * tail)


def _value(numbers: dict, column: str) -> float | None:
    return numbers.get(column, numbers.get(f"{column}/model"))


def _has(numbers: dict, column: str) -> bool:
    return _value(numbers, column) is not None


def table(results: dict[str, list[dict]]) -> list[str]:
    """Return the Markdown table: mean ± SD over seeds, every value, and paired differences."""
    known = {column for runs in results.values() for run in runs for column in COLUMNS if _has(run, column)}
    columns = [column for column in COLUMNS if column in known]
    lines = ["| | " + " | ".join(COLUMNS[c] for c in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    first = next(iter(results))
    for arm, runs in results.items():
        cells = []
        for column in columns:
            values = [_value(run, column) for run in runs]
            if any(value is None for value in values):
                cells.append("–")
                continue
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            each = ", ".join(f"{value:.3f}" for value in values)
            cells.append(f"{statistics.mean(values):.3f} ± {spread:.3f} ({each})")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    for arm, runs in results.items():
        if arm == first:
            continue
        cells = []
        for column in columns:
            pairs = [
                (_value(ours, column), _value(theirs, column))
                for ours, theirs in zip(runs, results[first], strict=True)
            ]
            if any(value is None for pair in pairs for value in pair):
                cells.append("–")
                continue
            differences = [ours - theirs for ours, theirs in pairs]
            ahead = sum(value > 0 for value in differences)
            cells.append(
                f"{statistics.mean(differences):+.3f}, ahead on {ahead} of {len(differences)}, "
                f"p {sign_test(differences):.3f}"
            )
        lines.append(f"| {arm} − {first} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Make the data, run everything that is not there yet, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict]] = {arm: [] for arm in ARMS}
    with ProcessPoolExecutor(asked.workers, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        stores = [pool.submit(prepared, asked.out, seed=seed, n=asked.n) for seed in asked.seeds]
        for store in stores:
            store.result()
        runs = {
            (arm, seed): pool.submit(cell, asked.out, arm, seed, asked.n, tuple(asked.overrides))
            for seed in asked.seeds
            for arm in ARMS
        }
        for (arm, seed), run in runs.items():
            results[arm].append(run.result())
            print(arm, seed, {name: _value(results[arm][-1], name) for name in COLUMNS}, flush=True)
    text = "\n".join(
        [
            f"n = {asked.n} phantom CT studies a seed, seeds {asked.seeds}; mean ± SD over seeds (each seed "
            "in brackets), held-out patients; p: two-sided sign test.",
            "",
            *table(results),
        ]
    )
    (asked.out / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
