"""Every objective and every text tower on small real sets, in one table, beside what costs no training.

    python -m tests.studies.alignment NOTES CHILDREN OUT --text NAME=DIRECTORY

``NOTES`` holds films with clinical notes (columns image, text, group_id), ``CHILDREN`` films of one disease
with its cause (columns image, patient_id, etiology). All objectives train the same pretrained towers on five
splits by group; the table gives retrieval on the held-out groups and a linear probe of the image tower on the
other set. A difference from the ridge regression between the same towers, frozen, is called noise where
its interval holds 0: the interval is that of the corrected resampled t-test over the splits. The image
tower learns low-rank adapters; in the rows of objectives the report tower stays as it is.

Sources: Nadeau and Bengio 2003, doi 10.1023/A:1024068626366, for splits that share cases.
"""

import argparse
import json
import math
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student

import medvl

CUTS = ("image_to_text/id/R@5", "image_to_text/id/R@10", "text_to_image/id/R@5")
WORDS = {"image_to_text/id/R@5": "film → note R@5", "image_to_text/id/R@10": "film → note R@10",
         "text_to_image/id/R@5": "note → film R@5"}  # fmt: skip
SHARES = (0.01, 0.1, 1.0)
SIZE = "input.size_px=[96, 96]"
SHORT = "schedule.epochs=6"


def plans(texts):
    """The overrides of each row of the table: every objective, then every text tower with ``multi``."""
    from medvl.objectives import OBJECTIVES

    still = ["text.train=frozen", "text.lora=null"]
    rows = {f"objective {name}": [f"objective.name={name}", *still] for name in OBJECTIVES}
    rows["objective coca"] = ["objective.name=clip", "projection.image_pool=attention", *still]
    rows["text minilm, adapters"] = []
    rows["text bert, from scratch"] = [
        "text={name: bert, options: {layers: 2, width: 128, heads: 4}, train: full, lora: null, "
        "max_tokens: 64}"
    ]
    for name, path in texts:
        tower = f"name: huggingface, options: {{path: {path}}}, max_tokens: 64"
        rows[f"text {name}, frozen"] = [f"text={{{tower}, train: frozen, lora: null}}"]
        rows[f"text {name}, adapters"] = [
            f"text={{{tower}, train: lora, lora: {{rank: 8, targets: all-linear}}}}"
        ]
    return rows


def one(store, run, overrides, seed):
    """Train and evaluate one split; what is there already is read."""
    import torch

    torch.set_num_threads(1)
    metrics = run / "evaluation" / "metrics.json"
    if not metrics.exists():
        values = [f"data.split_seed={seed}", f"loop.seed={seed}", SIZE, SHORT, *overrides]
        medvl.train(store, run, recipe="starter", overrides=values)
        medvl.evaluate(run, store, baselines=("ridge",), resamples=200)
    return json.loads(metrics.read_text())["numbers"]


def vectors_of(encoder, spec, paths):
    """The pooled vectors of an image tower, without projection."""
    import torch
    from PIL import Image

    found = []
    encoder.eval()
    with torch.inference_mode():
        for start in range(0, len(paths), 32):
            arrays = [np.asarray(Image.open(path).convert("L")) for path in paths[start : start + 32]]
            pairs = [spec.apply(array) for array in arrays]
            images, masks = (torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True))
            found.append(encoder(images, masks).pooled.numpy())
    return np.concatenate(found)


def probe(children, out, name, make):
    """AUROC of bacterial against viral by share of the training patients; kept in a file."""
    import torch

    from medvl.evaluation.probe import linear_probe
    from medvl.splits import split_of

    torch.set_num_threads(1)
    file = out / "probes" / f"{name.replace(' ', '-').replace(',', '')}.json"
    if not file.exists():
        table = pd.read_csv(children / "images.csv")
        table = table[table.etiology.isin(["bacterial", "viral"])]
        held = table.patient_id.map(lambda patient: split_of(patient, seed=0)).eq("test").to_numpy()
        encoder, spec = make()
        vectors = vectors_of(encoder, spec, [children / image for image in table.image])
        truth, groups = table.etiology.eq("bacterial").to_numpy(), table.patient_id.to_numpy()
        found = linear_probe(
            vectors[~held], truth[~held], groups[~held],
            test=vectors[held], test_truth=truth[held], test_groups=groups[held], shares=SHARES,
        )  # fmt: skip
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({str(share): number.plain() for share, number in found.numbers.items()}))
    return json.loads(file.read_text())


def run_tower(run):
    """The image tower of a run with its input."""
    from medvl.evaluation.subject import find_subject

    loaded = find_subject(run).loaded
    return loaded.model.image_encoder, loaded.input


def plain_tower(*, pretrained):
    """EfficientNet-Lite0 with ImageNet weights, or the same network with random ones."""
    import torch

    from medvl.encoders.image import build_image_encoder
    from medvl.recipes import resolve

    torch.manual_seed(0)
    recipe = resolve("starter", [SIZE])
    options = {} if pretrained else {"pretrained": False}
    return build_image_encoder("efficientnet_lite0", options), recipe.input


def interval(differences, *, share):
    """Half the 95 % interval of a mean difference over splits that share cases."""
    k = len(differences)
    if k < 2:
        return math.inf
    spread = statistics.variance(differences) * (1 / k + share)
    return float(student.ppf(0.975, k - 1)) * math.sqrt(spread)


def row_of(name, results, probed):
    """One line: mean recall, its difference from ridge with interval, and the probe."""
    cells = [name]
    for cut in CUTS:
        model, ridge = (
            [numbers[f"retrieval/{cut}/{who}"]["value"] for numbers in results] for who in ("model", "ridge")
        )
        gap = [a - b for a, b in zip(model, ridge, strict=True)]
        half = interval(gap, share=0.2 / 0.7)
        verdict = "noise" if abs(statistics.mean(gap)) <= half else "above ridge" if gap else "below ridge"
        if statistics.mean(gap) < -half:
            verdict = "below ridge"
        cells.append(f"{statistics.mean(model):.3f} ({statistics.mean(gap):+.3f} ± {half:.3f}, {verdict})")
    cells += [probe_cell(probed, share) for share in SHARES] if probed else ["–"] * len(SHARES)
    return "| " + " | ".join(cells) + " |"


def probe_cell(probed, share):
    """One figure of the probe with its interval."""
    number = probed[str(share)]
    return f"{number['value']:.3f} ({number['low']:.3f}–{number['high']:.3f})"


def main() -> None:
    """Prepare once, train and evaluate every row on every split, probe the towers of the first split."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notes", type=Path)
    parser.add_argument("children", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", help="rows whose name holds one of these words")
    parser.add_argument("--text", action="append", default=[], metavar="NAME=DIRECTORY")
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    store = asked.out / "store"
    medvl.prepare(asked.notes, store, split=(0.7, 0.1, 0.2), key=b"notes" * 8)
    rows = plans([tuple(given.split("=", 1)) for given in asked.text])
    rows = {
        name: values for name, values in rows.items() if not asked.only or any(w in name for w in asked.only)
    }
    folder = {name: asked.out / name.replace(" ", "-").replace(",", "") for name in rows}
    with ProcessPoolExecutor(asked.workers) as pool:
        jobs = {
            name: [pool.submit(one, store, folder[name] / str(seed), values, seed) for seed in asked.splits]
            for name, values in rows.items()
        }
        results = {name: [job.result() for job in each] for name, each in jobs.items()}
    head = ["", *(WORDS[cut] for cut in CUTS), *(f"probe, {share:.0%} of patients" for share in SHARES)]
    some = next(iter(results.values()))
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for who in ("chance", "ridge"):
        means = [statistics.mean(n[f"retrieval/{cut}/{who}"]["value"] for n in some) for cut in CUTS]
        lines.append(f"| {who} | " + " | ".join(f"{mean:.3f}" for mean in means) + " | – | – | – |")
    for name, pretrained in (("ImageNet features", True), ("random features", False)):
        probed = probe(
            asked.children, asked.out, name, lambda pretrained=pretrained: plain_tower(pretrained=pretrained)
        )
        lines.append(f"| {name} | – | – | – | " + " | ".join(probe_cell(probed, s) for s in SHARES) + " |")
    for name, each in results.items():
        run = folder[name] / str(asked.splits[0])
        probed = probe(asked.children, asked.out, name, lambda run=run: run_tower(run))
        lines.append(row_of(name, each, probed))
    queries = [numbers["retrieval/image_to_text/id/R@5/model"]["n"] for numbers in some]
    splits = f"{len(asked.splits)} splits by group (seeds {asked.splits})"
    films = f"{min(queries)}–{max(queries)} held-out films each"
    lines += ["", f"{splits}, {films}; in brackets the difference from ridge and its interval."]
    (asked.out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
