"""The starter recipe on a small real set, five splits by group, beside chance and a ridge regression.

    python -m tests.studies.clinical_notes FOLDER OUT --splits 0 1 2 3 4

``FOLDER`` holds ``images.csv`` (columns image, text, finding, group_id) and the pictures. The ridge
regression maps the same two frozen pretrained towers onto each other: what can be had without any
training of a tower.
"""

import argparse
import json
import statistics
from pathlib import Path

import medvl

DIRECTIONS = {"image_to_text": "film → note", "text_to_image": "note → film"}
ROWS = ("model", "ridge", "shuffled", "chance", "ceiling")
CUTS = ("R@1", "R@5", "R@10")


def main() -> None:
    """Prepare once, then train and evaluate on every split."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--recipe", default="starter")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    asked = parser.parse_args()
    store = asked.out / "store"
    prepared = medvl.prepare(asked.folder, store, split=(0.7, 0.1, 0.2), key=b"notes" * 8)
    print("\n".join(prepared.lines()), flush=True)
    results = []
    for seed in asked.splits:
        run = asked.out / f"{asked.recipe}-{seed}"
        if not (run / "evaluation" / "metrics.json").exists():
            overrides = [f"data.split_seed={seed}", f"loop.seed={seed}", *asked.overrides]
            medvl.train(store, run, recipe=asked.recipe, overrides=overrides)
            medvl.evaluate(run, store, baselines=("ridge",))
        results.append(json.loads((run / "evaluation" / "metrics.json").read_text())["numbers"])
        print(
            seed,
            {cut: round(results[-1][f"retrieval/image_to_text/id/{cut}/model"]["value"], 3) for cut in CUTS},
            flush=True,
        )
    queries = [numbers["retrieval/image_to_text/id/R@1/model"]["n"] for numbers in results]
    lines = [
        f"Recipe {asked.recipe}, {len(results)} splits by group (seeds {asked.splits}), "
        f"{min(queries)}–{max(queries)} held-out films a split; mean over splits, each split in brackets.",
        "",
    ]
    for direction, words in DIRECTIONS.items():
        lines += [f"| {words} | " + " | ".join(CUTS) + " |", "|---" * (len(CUTS) + 1) + "|"]
        for row in ROWS:
            cells = []
            for cut in CUTS:
                each = [n[f"retrieval/{direction}/id/{cut}/{row}"]["value"] for n in results]
                cells.append(f"{statistics.mean(each):.3f} ({', '.join(f'{value:.3f}' for value in each)})")
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
        lines.append("")
    key = "zeroshot/macro/AUROC/model"
    scored = [n[key] for n in results if key in n]
    if scored:
        each = ", ".join(f"{s['value']:.3f} ({s['low']:.3f}–{s['high']:.3f})" for s in scored)
        lines.append(f"zero-shot AUROC, macro over findings, split by split with its interval: {each}")
    (asked.out / f"table-{asked.recipe}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
