"""Slices left out against all slices: image-only pre-training of a small tower, then a probe, five seeds.

    python -m tests.studies.reduction OUT [--seeds 5] [--volumes 36] [--epochs 5] [--page docs/reduction.md]

Phantom volumes of thin slices are redundant as scans are. A small convolutional tower learns by SimCLR from
all slices, from those that the hash keeps, or from every k-th of the same number; for as many passes over
its slices as the others (equal epochs), for as many steps, or for a quarter of them. A logistic regression
on 400 labelled slices (and on 100) then says which findings a slice of unseen patients shows. Each row of a
seed is appended to ``OUT/rows.jsonl`` as soon as it is known, so that a killed run goes on; ``OUT/table.md``
is made from it. Times are CPU seconds of one thread, reduction included.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np

FINDINGS = ("pleural_effusion", "consolidation", "emphysema", "pneumothorax", "liver_lesion", "kidney_cyst")
SIDE, SLICES = 48, 120
BATCH = 96
MARK, END = "<!-- measured: reduction -->", "<!-- end -->"
LABELLED = (400, 100)
ARMS = {
    "random tower": (None, None),
    "all slices": ("all", "epochs"),
    "kept by hash, equal epochs": ("hash", "epochs"),
    "every k-th, equal epochs": ("kth", "epochs"),
    "all slices, a quarter of the steps": ("all", "quarter"),
    "kept by hash, a quarter of the steps": ("hash", "quarter"),
    "kept by hash, equal steps": ("hash", "steps"),
    "every k-th, equal steps": ("kth", "steps"),
}


def volumes(count, *, seed):
    """Draw volumes and, for each slice, which findings it shows."""
    from medvl.phantoms.ct_lesions import draw_ct
    from medvl.phantoms.ct_truth import draw_ct_body, draw_ct_findings
    from medvl.phantoms.truth import find_level
    from medvl.specs.volumes import VolumeGrid

    rng, level = np.random.default_rng([seed, 17]), find_level("middle")
    spacing, depth = 370.0 / SIDE, 310.0 / SLICES
    hu = np.empty((count, SIDE, SIDE, SLICES), np.int16)
    shown = np.zeros((count, SLICES, len(FINDINGS)), bool)
    for row in range(count):
        body = draw_ct_body(rng, female=int(rng.integers(2)))
        findings = draw_ct_findings(rng, level=level, only=FINDINGS)
        affine = np.diag([spacing, spacing, depth, 1.0])
        affine[:3, 3] = (-spacing * (SIDE - 1) / 2, -spacing * (SIDE - 1) / 2 - 12, body.shift[2] - 197)
        drawn = draw_ct(body, findings, VolumeGrid(hu.shape[1:], affine), level=level, rng=rng, contrast=0)
        hu[row] = drawn.hu
        for number, finding in enumerate(drawn.findings, start=1):
            shown[row, :, FINDINGS.index(finding.kind)] |= (drawn.lesions == number).sum((0, 1)) >= 3
    return hu, shown


def pictures(hu):
    """Return slices as pictures in [0, 1]: volumes × slices × 1 × side × side."""
    window = np.clip((hu.astype(np.float32) + 1000) / 1400, 0, 1)
    return np.ascontiguousarray(np.moveaxis(window, 3, 1))[:, :, None]


def tower(seed):
    """A small residual tower; as drawn by the seed."""
    import torch

    from medvl.encoders.image import build_image_encoder

    torch.manual_seed(seed)
    return build_image_encoder(
        "resnet", {"channels": 1, "widths": [16, 32, 64], "blocks": [1, 1, 1], "stem_px": 3}
    )


def view(batch, generator):
    """A random view: crop with a change of scale, a small turn, brightness, contrast, noise."""
    import torch
    import torch.nn.functional as F

    n = len(batch)

    def uniform(low, high):
        return low + (high - low) * torch.rand(n, generator=generator)

    scale, turn = uniform(0.5, 1.0), uniform(-0.3, 0.3)
    free = 1 - scale
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = scale * turn.cos(), -scale * turn.sin()
    theta[:, 1, 0], theta[:, 1, 1] = scale * turn.sin(), scale * turn.cos()
    theta[:, 0, 2], theta[:, 1, 2] = free * uniform(-1, 1), free * uniform(-1, 1)
    out = F.grid_sample(
        batch, F.affine_grid(theta, list(batch.shape), align_corners=False), align_corners=False
    )
    out = out * uniform(0.7, 1.3)[:, None, None, None] + uniform(-0.15, 0.15)[:, None, None, None]
    return out + 0.03 * torch.randn(out.shape, generator=generator)


def pretrain(model, slices, *, steps, seed):
    """SimCLR: two views of a slice attract, all other slices of the batch repel (temperature 0.2)."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    torch.manual_seed(seed + 1000)
    head = nn.Sequential(nn.Linear(model.width, 64), nn.ReLU(), nn.Linear(64, 32))
    parameters = [*model.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=max(2, steps), pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(order) < BATCH:
            order = torch.cat([order, torch.randperm(len(slices), generator=generator)])
        chosen, order = order[:BATCH], order[BATCH:]
        batch = slices[chosen]
        both = torch.cat([view(batch, generator), view(batch, generator)])
        vectors = F.normalize(head(features(model, both)), dim=1)
        alike = vectors @ vectors.T / 0.2
        alike.fill_diagonal_(-math.inf)
        target = torch.arange(2 * BATCH).roll(BATCH)
        loss = F.cross_entropy(alike, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return float(loss.detach()) if steps else math.nan


def features(model, batch):
    """The pooled vectors of a tower."""
    import torch

    return model(batch, torch.ones(len(batch), *batch.shape[2:], dtype=torch.bool)).pooled


def probe(model, train, test, *, seed):
    """Return macro AUROC over findings on slices of unseen patients, by number of labelled slices."""
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.preprocessing import StandardScaler

    model.eval()
    with torch.inference_mode():
        vectors = [
            np.concatenate([features(model, part).numpy() for part in images.split(512)])
            for images, _ in (train, test)
        ]
    rng = np.random.default_rng(seed)
    found = {}
    for count in LABELLED:
        chosen = rng.permutation(len(vectors[0]))[:count]
        scaler = StandardScaler().fit(vectors[0][chosen])
        mine, other = scaler.transform(vectors[0][chosen]), scaler.transform(vectors[1])
        scores = []
        for label in range(len(FINDINGS)):
            truth = train[1][chosen, label]
            if truth.any() and test[1][:, label].any():
                fitted = LogisticRegression(C=0.05, class_weight="balanced", max_iter=500).fit(mine, truth)
                scores.append(roc_auc_score(test[1][:, label], fitted.decision_function(other)))
        found[str(count)] = float(np.mean(scores))
    return found


def run_seed(seed, *, count, epochs, left_out, done, write):
    """Measure the arms of one seed that are not known."""
    import torch

    from medvl.preprocess.reduction_slices import reduce_volume

    missing = [arm for arm in ARMS if (seed, arm) not in done and ARMS[arm][1] not in left_out]
    if not missing:
        return
    hu, _ = volumes(count, seed=3 * seed)
    images = pictures(hu)
    labelled, labels = volumes(40, seed=3 * seed + 1)
    unseen, truth = volumes(40, seed=3 * seed + 2)
    train = (
        torch.from_numpy(pictures(labelled)[:, ::3].reshape(-1, 1, SIDE, SIDE)),
        labels[:, ::3].reshape(-1, len(FINDINGS)),
    )
    test = (
        torch.from_numpy(pictures(unseen)[:, ::3].reshape(-1, 1, SIDE, SIDE)),
        truth[:, ::3].reshape(-1, len(FINDINGS)),
    )
    before = time.process_time()
    kept = [reduce_volume(volume).kept for volume in hu]
    hashing = time.process_time() - before
    stride = SLICES / (sum(map(len, kept)) / count)
    places = {
        "all": [range(SLICES)] * count,
        "hash": kept,
        "kth": [np.unique(np.arange(0, SLICES, stride).astype(int))] * count,
    }
    steps_all = epochs * count * SLICES // BATCH
    for arm in missing:
        pool, equal = ARMS[arm]
        model, steps, slices, seconds = tower(seed), 0, 0, 0.0
        if pool is not None:
            chosen = np.concatenate([images[row, list(each)] for row, each in enumerate(places[pool])])
            slices = len(chosen)
            steps = {
                "epochs": max(1, epochs * slices // BATCH),
                "quarter": steps_all // 4,
                "steps": steps_all,
            }[equal]
            before = time.process_time()
            pretrain(model, torch.from_numpy(chosen), steps=steps, seed=seed)
            seconds = time.process_time() - before + (hashing if pool == "hash" else 0.0)
        write({
            "seed": seed, "arm": arm, "slices": slices, "steps": steps, "seconds": round(seconds, 1),
            "auroc": probe(model, train, test, seed=seed),
        })  # fmt: skip


def table(rows):
    """Return the rows of all seeds as a table: means, and the paired difference to all slices."""
    seeds = sorted({row["seed"] for row in rows if row["arm"] == "all slices"})
    at = {(row["seed"], row["arm"]): row for row in rows}
    lines = [
        f"{len(seeds)} seeds; AUROC: mean over {len(FINDINGS)} findings, slices of 40 unseen volumes.",
        "",
        "| pre-training | slices | steps | CPU s "
        + "".join(f"| AUROC, {labels} labels | minus all slices " for labels in LABELLED)
        + "|",
        "|---" * 8 + "|",
    ]
    for arm in ARMS:
        mine = [at[seed, arm] for seed in seeds if (seed, arm) in at]
        if not mine:
            continue
        cells = [f"{np.mean([row[key] for row in mine]):.0f}" for key in ("slices", "steps", "seconds")]
        for labels in map(str, LABELLED):
            cells.append(f"{np.mean([row['auroc'][labels] for row in mine]):.3f}")
            differences = [
                row["auroc"][labels] - at[row["seed"], "all slices"]["auroc"][labels] for row in mine
            ]
            low, high = min(differences), max(differences)
            cells.append(
                "" if arm == "all slices" else f"{np.mean(differences):+.3f} ({low:+.3f} to {high:+.3f})"
            )
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--volumes", type=int, default=36)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument(
        "--without",
        nargs="+",
        choices=("quarter", "steps"),
        default=(),
        help="arms of so many steps stay out",
    )
    parser.add_argument("--page", type=Path, help="write the table behind its mark in this page")
    asked = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    file = asked.out / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def write(row):
        rows.append(row)
        with file.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        (asked.out / "table.md").write_text(table(rows))
        print(row, flush=True)

    for seed in range(asked.seeds):
        done = {(row["seed"], row["arm"]) for row in rows}
        run_seed(
            seed, count=asked.volumes, epochs=asked.epochs, left_out=asked.without, done=done, write=write
        )
    (asked.out / "table.md").write_text(table(rows))
    print(table(rows))
    if asked.page:
        head, rest = asked.page.read_text("utf-8").split(MARK)
        asked.page.write_text(f"{head}{MARK}\n\n{table(rows)}\n{rest[rest.index(END) :]}", "utf-8")


if __name__ == "__main__":
    main()
