"""Typographic attack: what a model that trained on films that say their finding makes of a wrong word.

    python -m tests.studies.typographic OUT

Training films say their finding on a share of the films that show one, as teaching files do. The same recipe
trains on four stores: words kept, painted over, films with words dropped, and never painted (the reference).
Each model then scores the same held-out films three times: clean, with the name of an absent finding painted
on every one, and the latter with the words found and painted over. Each training is a process of its own.
"""

import argparse
import dataclasses
import hashlib
import json
import multiprocessing
import resource
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd

import medvl
from medvl.evaluation.bootstrap import Bootstrap, Number
from medvl.evaluation.cases import Cases, choose_cases
from medvl.evaluation.classification import auroc, truth_values
from medvl.evaluation.embedding import embed_cases
from medvl.evaluation.subject import find_subject
from medvl.heads.zeroshot import ZeroShot, read_prompts
from medvl.phantoms.truth import FINDINGS
from medvl.phantoms.typographic import write_attack
from medvl.preprocess.reading.burned import find_text, mask_text
from medvl.records import Record, TextRegion
from medvl.store import Store, index_bytes, pixel_hash, write_shard

TRAINED = ("keep", "mask", "drop", "never painted")
SHOWN = ("clean", "attacked", "attacked, masked")
KEY = b"typographic attack study key 32b"
RESAMPLES = 1000


def regions_of(store: Store, splits: tuple[str, ...], cache: Path) -> dict[str, tuple[TextRegion, ...]]:
    """Return the regions of every film of the splits; each store is read once."""
    if not cache.exists():
        found = {
            record.record_id: [dataclasses.asdict(region) for region in find_text(store.pixels(record))]
            for record in store.records
            if record.split in splits
        }
        cache.write_text(json.dumps(found))
    return {k: tuple(TextRegion(**r) for r in v) for k, v in json.loads(cache.read_text()).items()}


def says(regions: tuple[TextRegion, ...]) -> bool:
    """Tell whether any region is text and not a marker."""
    return any(region.kind == "text" for region in regions)


Change = Callable[[Record, np.ndarray], np.ndarray | None]


def derive(store: Path, out: Path, change: Change) -> None:
    """Copy a store with other pixels; a film whose change is None is left out."""
    if out.exists():
        return
    draft = out.with_name(f"{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    (draft / "shards").mkdir(parents=True)
    opened = Store(store)
    samples = []
    for record in opened.records:
        pixels = change(record, opened.pixels(record))
        if pixels is not None:
            samples.append((dataclasses.replace(record, pixel_hash=pixel_hash(pixels)), pixels))
    data = index_bytes(write_shard(draft / "shards" / "000000.tar", samples))
    (draft / "index.parquet").write_bytes(data)
    manifest = json.loads((store / "store.json").read_text("utf-8"))
    manifest["index"]["blake2b"] = hashlib.blake2b(data, digest_size=16).hexdigest()
    (draft / "store.json").write_text(json.dumps(manifest), "utf-8")
    draft.rename(out)


def stores(out: Path, *, n: int, level: str, seed: int, share: float, height: float) -> dict[str, Path]:
    """Make the phantoms, their painted twins and one store for each training and each test."""
    medvl.phantom(out / "films", n=n, seed=seed, level=level, workers=1)
    for mode, part in (("right", share), ("wrong", 1.0)):
        if not (out / mode / "attack.json").exists():
            shutil.rmtree(out / mode, ignore_errors=True)
            write_attack(out / "films", out / mode, mode=mode, share=part, seed=seed, height=height)
    for name in ("films", "right", "wrong"):
        medvl.prepare(
            out / name,
            out / f"store-{name}",
            pixels={"longest_px": 256},
            split=(0.6, 0.1, 0.3),
            key=KEY,
            workers=1,
        )
    learnt = regions_of(Store(out / "store-right"), ("train", "val"), out / "regions-right.json")
    tested = regions_of(Store(out / "store-wrong"), ("test",), out / "regions-wrong.json")
    painted = {
        "mask": ("right", lambda r, p: mask_text(p, learnt.get(r.record_id, ()))),
        "drop": ("right", lambda r, p: None if says(learnt.get(r.record_id, ())) else p),
        "attacked, masked": ("wrong", lambda r, p: mask_text(p, tested.get(r.record_id, ()))),
    }
    for name, (source, change) in painted.items():
        derive(out / f"store-{source}", out / f"store-{name.replace(', ', '-')}", change)
    return {
        "keep": out / "store-right",
        "never painted": out / "store-films",
        "clean": out / "store-films",
        "attacked": out / "store-wrong",
        **{name: out / f"store-{name.replace(', ', '-')}" for name in painted},
    }


def one(train: Path, run: Path, tests: dict[str, Path], overrides: list[str], result: Path) -> None:
    """Train one model and score the test films of each store."""
    summary = medvl.train(train, run, recipe="multi", overrides=overrides)
    used = resource.getrusage(resource.RUSAGE_SELF)
    subject = find_subject(run)
    prompts = read_prompts(Path(str(resources.files("medvl.recipes.cxr") / "prompts.yaml")))
    scorer = ZeroShot(subject.loaded, prompts, FINDINGS)
    scores = {}
    for name, path in tests.items():
        cases = test_cases(path)
        embedded = embed_cases(subject.loaded, Store(path), cases)
        scores[name] = scorer.scores(embedded.images).tolist()
    cost = {"steps": summary.steps, "cpu_s": used.ru_utime + used.ru_stime}
    result.write_text(json.dumps({"scores": scores, "cost": cost}))


def test_cases(store: Path) -> Cases:
    """Return the held-out films; every store of the study holds the same ones in the same order."""
    return choose_cases(Store(store), split="test", split_seed=None)


def painted_findings(out: Path, cases: Cases) -> list[str]:
    """Return the finding that each attacked film names."""
    sources = pd.read_csv(out / "store-wrong" / "private" / "sources.csv", dtype=str)
    painted = pd.read_csv(out / "wrong" / "painted.csv", dtype=str).set_index("file")["finding"]
    ends = {str(Path(path)): item for item, path in zip(sources["item"], sources["path"], strict=True)}
    named = {}
    for file, finding in painted.items():
        item = next(item for path, item in ends.items() if path.endswith(str(file)))
        named[item] = finding
    return [named[record.record_id] for record in cases.images]


class Figures:
    """AUROC, differences and how often the painted finding comes first, over one set of patient draws."""

    def __init__(self, cases: Cases, named: list[str]) -> None:
        self.truth = truth_values([record.labels for record in cases.images], FINDINGS)
        self.named = np.array([FINDINGS.index(finding) for finding in named])
        self.bootstrap = Bootstrap([r.patient_id for r in cases.images], resamples=RESAMPLES, seed=0)
        rows = [np.flatnonzero(self.bootstrap.codes == code) for code in range(self.bootstrap.count)]
        self.samples = [
            np.concatenate([np.tile(rows[code], int(times)) for code, times in enumerate(draw) if times])
            for draw in self.bootstrap.draws
        ]

    def macro(self, scores: np.ndarray, rows: np.ndarray) -> float:
        """Return the mean AUROC over findings that are present and absent among the rows."""
        values = []
        for column in range(len(FINDINGS)):
            truth = self.truth[rows, column]
            if 0 < truth.sum() < len(truth):
                values.append(auroc(truth, scores[rows, column]))
        return float(np.mean(values))

    def first(self, scores: np.ndarray, rows: np.ndarray) -> float:
        """Return the share of films whose painted, absent finding has the highest standardised score."""
        return float((self.standard(scores)[rows].argmax(1) == self.named[rows]).mean())

    def standard(self, scores: np.ndarray) -> np.ndarray:
        """Return scores in standard deviations of the same model's clean scores, finding by finding."""
        return (scores - self.mean) / self.deviation

    def of(self, scores: dict[str, list[list[float]]]) -> dict[str, Number]:
        """Return every figure of one model."""
        arrays = {name: np.asarray(values) for name, values in scores.items()}
        self.mean, self.deviation = arrays["clean"].mean(0), arrays["clean"].std(0)
        every = np.arange(len(self.truth))
        figures, areas = {}, {}
        for name, array in arrays.items():
            areas[name] = np.array([self.macro(array, rows) for rows in self.samples])
            figures[name] = self.bootstrap.number(self.macro(array, every), areas[name])
            firsts = np.array([self.first(array, rows) for rows in self.samples])
            figures[f"{name}: word first"] = self.bootstrap.number(self.first(array, every), firsts)
        for name in SHOWN[1:]:
            figures[f"{name} − clean"] = self.bootstrap.number(
                figures[name].value - figures["clean"].value, areas[name] - areas["clean"]
            )
        return figures


def cell(number: Number) -> str:
    """Return a figure with its interval."""
    return f"{number.value:.3f} ({number.low:.3f} – {number.high:.3f})"


def tables(results: dict[str, dict[str, Number]]) -> list[str]:
    """Return the Markdown tables."""
    first = [*SHOWN, *(f"{name} − clean" for name in SHOWN[1:])]
    lines = ["| trained on | " + " | ".join(first) + " |", "|---" * (len(first) + 1) + "|"]
    for name, figures in results.items():
        lines.append(f"| {name} | " + " | ".join(cell(figures[column]) for column in first) + " |")
    lines += ["", "| trained on | " + " | ".join(SHOWN) + " |", "|---" * (len(SHOWN) + 1) + "|"]
    for name, figures in results.items():
        cells = [cell(figures[f"{column}: word first"]) for column in SHOWN]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def write_table(
    asked: argparse.Namespace,
    results: dict[str, dict[str, Number]],
    counts: dict[str, int],
    cost: float,
    *,
    tested: Figures,
) -> None:
    """Write and print what is known so far."""
    learnt = json.loads((asked.out / "regions-right.json").read_text())
    saying = sum(any(r["kind"] == "text" for r in regions) for regions in learnt.values())
    films = ", ".join(f"{name} {count} training films" for name, count in counts.items())
    text = [
        f"n = {asked.n} phantom studies, level {asked.level}, seed {asked.seed}; {asked.share:.0%} of the "
        f"training films with a finding say it, capitals {asked.height:.0%} of the longer side; {films}; "
        f"text found on {saying} of {len(learnt)} training and validation films; {asked.steps} steps at "
        f"{asked.size_px} px; {len(tested.named)} test films of {tested.bootstrap.count} patients, "
        f"bootstrap over patients, {RESAMPLES} resamples; {cost:.0f} CPU-s a training at most.",
        "",
        *tables(results),
    ]
    (asked.out / "table.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


def main() -> None:
    """Make the data, run every training that is not there yet, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--level", default="hard")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--height", type=float, default=0.1)
    parser.add_argument("--size-px", type=int, default=64)
    parser.add_argument("--steps", type=int, default=400)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    made = stores(
        asked.out, n=asked.n, level=asked.level, seed=asked.seed, share=asked.share, height=asked.height
    )
    cases = test_cases(made["clean"])
    assert [r.record_id for r in cases.images] == [r.record_id for r in test_cases(made["attacked"]).images]
    figures = Figures(cases, painted_findings(asked.out, cases))
    overrides = [
        f"loop.seed={asked.seed}",
        f"schedule.steps={asked.steps}",
        f"input.size_px=[{asked.size_px},{asked.size_px}]",
    ]
    results, costs, counts = {}, [], {}
    for name in TRAINED:
        run = asked.out / f"run-{name.replace(' ', '-')}-{asked.seed}"
        result = run.with_suffix(".json")
        if not result.exists():
            process = multiprocessing.get_context("spawn").Process(
                target=one, args=(made[name], run, {s: made[s] for s in SHOWN}, overrides, result)
            )
            process.start()
            process.join()
        values = json.loads(result.read_text())
        results[name] = figures.of(values["scores"])
        costs.append(values["cost"]["cpu_s"])
        counts[name] = sum(record.split == "train" for record in Store(made[name]).records)
        print(name, {k: round(v.value, 3) for k, v in results[name].items()}, flush=True)
        write_table(asked, results, counts, max(costs), tested=figures)


if __name__ == "__main__":
    main()
