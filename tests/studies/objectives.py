"""Recipes on the same phantoms at equal steps: what each objective buys and what it costs.

    python -m tests.studies.objectives OUT --seeds 0 1 2 [--recipes clip multi siglip …]

Every run trains in a process of its own, so that CPU time and memory are its own. A last run trains
``multi`` on the same films with the reports dealt to other patients: it must stay at chance.
"""

import argparse
import hashlib
import json
import multiprocessing
import resource
import shutil
import statistics
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import medvl

RECIPES = ("clip", "mgca", "multi")
SHUFFLED = "multi, shuffled pairs"
COLUMNS = {
    "zeroshot/macro/AUROC": "zero-shot AUROC",
    "grounding/all/pointing": "pointing game",
    "grounding/all/CNR": "CNR",
    "retrieval/image_to_text/label/P@5": "P@5 findings",
    "retrieval/image_to_text/id/R@5": "R@5 same study",
}
_TEXT = ("report", "retrieval", "generation", "sections", "sentences", "text_hash", "labels")


def shuffle_pairs(store: Path, out: Path, *, seed: int) -> None:
    """Copy a store with every report, and the labels that go with it, dealt to another patient."""
    shutil.copytree(store, out)
    table = pq.read_table(store / "index.parquet").to_pandas()
    patients = table["patient_id"].to_numpy()
    order = np.random.default_rng(seed).permutation(len(table))
    while (clash := np.flatnonzero(patients[order] == patients)).size:
        swap = np.random.default_rng(seed + clash.size).integers(0, len(table), clash.size)
        order[clash], order[swap] = order[swap].copy(), order[clash].copy()
    for name in _TEXT:
        table[name] = table[name].to_numpy()[order]
    # A dealt report no longer belongs to the film's study, so every film is a study of its own.
    table["study_id"] = table["record_id"]
    schema = pq.read_schema(store / "index.parquet")
    shuffled = pa.Table.from_pandas(table, schema=schema, preserve_index=False)
    pq.write_table(shuffled, out / "index.parquet")
    manifest = json.loads((out / "store.json").read_text("utf-8"))
    index = (out / "index.parquet").read_bytes()
    manifest["index"]["blake2b"] = hashlib.blake2b(index, digest_size=16).hexdigest()
    (out / "store.json").write_text(json.dumps(manifest), "utf-8")


def one(store: Path, run: Path, *, recipe: str, seed: int, overrides: list[str], result: Path) -> None:
    """Train and evaluate one run, and write its figures and what it cost."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    import medvl.training.run

    warm = resource.getrusage(resource.RUSAGE_SELF)
    summary = medvl.train(store, run, recipe=recipe, overrides=[f"loop.seed={seed}", *overrides])
    after = resource.getrusage(resource.RUSAGE_SELF)
    numbers = medvl.evaluate(run, store, baselines=(), resamples=500).metrics["numbers"]
    cpu = after.ru_utime + after.ru_stime - warm.ru_utime - warm.ru_stime
    values = {key: numbers[f"{key}/model"] for key in COLUMNS}
    values["chance"] = {
        key: numbers[f"{key}/chance"]["value"] for key in COLUMNS if f"{key}/chance" in numbers
    }
    values["cost"] = {
        "steps": summary.steps,
        "cpu_ms_per_step": 1e3 * cpu / summary.steps,
        "peak_mb": (after.ru_maxrss - before.ru_maxrss) / 1024,
    }
    result.write_text(json.dumps(values))


def _mean(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    spread = statistics.stdev(values)
    each = ", ".join(f"{value:.3f}" for value in values)
    return f"{statistics.mean(values):.3f} ± {spread:.3f} ({each})"


def table(results: dict[str, list[dict]]) -> list[str]:
    """Return the Markdown table: mean ± standard deviation over seeds, and every value."""
    names = list(COLUMNS)
    lines = [
        "| | " + " | ".join(COLUMNS.values()) + " | CPU ms a step | peak MB |",
        "|---" * (len(names) + 3) + "|",
    ]
    for recipe, runs in results.items():
        cells = [_mean([run[name]["value"] for run in runs]) for name in names]
        step = statistics.median(run["cost"]["cpu_ms_per_step"] for run in runs)
        peak = statistics.median(run["cost"]["peak_mb"] for run in runs)
        lines.append(f"| {recipe} | " + " | ".join(cells) + f" | {step:.0f} | {peak:.0f} |")
    chance = next(iter(results.values()))[0]["chance"]
    cells = [f"{chance[name]:.3f}" if name in chance else "" for name in names]
    lines.append("| chance | " + " | ".join(cells) + " | | |")
    return lines


def ratios(results: dict[str, list[dict]]) -> str:
    """Return how many times the pointing game of CLIP each seed of multi reaches."""
    key = "grounding/all/pointing"
    pairs = zip(results["multi"], results["clip"], strict=True)
    each = [m[key]["value"] / c[key]["value"] for m, c in pairs]
    return "pointing game, multi ÷ clip, seed by seed: " + ", ".join(f"{value:.2f}" for value in each)


def main() -> None:
    """Make the data, run everything that is not there yet, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--n", type=int, default=1200)
    parser.add_argument("--level", default="middle")
    parser.add_argument(
        "--recipes", nargs="+", default=list(RECIPES), help="clip and multi must be among them"
    )
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    store = asked.out / "store"
    medvl.phantom(asked.out / "films", n=asked.n, seed=0, level=asked.level)
    medvl.prepare(
        asked.out / "films", store, pixels={"longest_px": 256}, split=(0.7, 0.1, 0.2), key=b"study" * 8
    )
    dealt = asked.out / "store-shuffled"
    if not dealt.exists():
        shuffle_pairs(store, dealt, seed=0)
    plan = [(recipe, seed, recipe, store) for seed in asked.seeds for recipe in asked.recipes]
    plan.append((SHUFFLED, asked.seeds[0], "multi", dealt))
    results: dict[str, list[dict]] = {name: [] for name in (*asked.recipes, SHUFFLED)}
    for name, seed, recipe, data in plan:
        folder = asked.out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
        result = folder.with_suffix(".json")
        if not result.exists():
            process = multiprocessing.get_context("spawn").Process(
                target=one,
                args=(data, folder),
                kwargs={"recipe": recipe, "seed": seed, "overrides": asked.overrides, "result": result},
            )
            process.start()
            process.join()
        results[name].append(json.loads(result.read_text()))
        print(name, seed, {k: round(results[name][-1][k]["value"], 3) for k in COLUMNS}, flush=True)
    steps = results["multi"][0]["cost"]["steps"]
    text = "\n".join(
        [
            f"n = {asked.n} phantom studies, level {asked.level}, {steps} steps each, seeds {asked.seeds}; "
            "mean ± SD over seeds (each seed in brackets), held-out patients.",
            "",
            *table(results),
            "",
            ratios(results),
        ]
    )
    (asked.out / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
