"""What organs, their masks and equal normal statements do for CT, on drawn volumes of thorax and abdomen.

``python -m tests.studies.volumes OUT --page docs/ct.md`` trains small towers on the same volumes and
steps with the contrast of whole volumes alone, and with that of organs beside it
(:mod:`medvl.objectives.organs`), with and without normal organs as positives of each other. What is there
already is not measured again.

A finding is scored by the similarity to prompts for it less that to prompts against it. A model of whole
volumes is asked by its pooled vector, and by the mean of the regions of the finding's organ (an activation
map); a model of organs also by the organ's query. A map scores each region in the same way, one at a time;
inside the organ, only its regions may be pointed at.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
from concurrent.futures import ProcessPoolExecutor
from importlib import resources
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import nn

from medvl.anatomy import FINDING_PARTS, PARTS, finding_parts, sentence_parts
from medvl.encoders.regions import part_cover
from medvl.evaluation.classification import auroc
from medvl.evaluation.grounding import cells_in_boxes, pointing
from medvl.features import ImageFeatures, TextFeatures
from medvl.heads.zeroshot import read_prompts
from medvl.mechanisms.nets import TextSide, Words, fit
from medvl.objectives.contrast import LogitScale, clip_loss
from medvl.objectives.organs import OrganContrast
from medvl.phantoms import CT_FINDINGS
from medvl.phantoms.ct_volumes import CtVolumes, draw_volumes
from medvl.specs import VolumeInput

FINDINGS = (
    "pleural_effusion",
    "consolidation",
    "emphysema",
    "cardiomegaly",
    "pericardial_effusion",
    "lymphadenopathy",
    "hiatal_hernia",
    "liver_lesion",
    "kidney_cyst",
    "kidney_stone",
)
ARMS = ("whole volumes", "organs", "organs, normal no positive of normal")
COLUMNS = {
    "pooled": "AUROC, whole volume",
    "organ": "AUROC, the finding's organ",
    "pointing": "pointing game",
    "pointing chance": "its chance",
    "inside": "pointing inside the organ",
    "inside chance": "its chance",
}
_INPUT = VolumeInput(size_px=(40, 40, 32), windows=((-600.0, 1500.0), (40.0, 400.0)))
_DIM = 96


class Tower(nn.Module):
    """Four convolutions, the first three halving the grid; pooled and regions share all but the last one."""

    def __init__(self, *, widths: tuple[int, ...] = (16, 32, 64, 64)) -> None:
        super().__init__()
        layers, before = [], _INPUT.channels
        for depth, width in enumerate(widths):
            stride = 2 if depth < 3 else 1
            layers += [
                nn.Conv3d(before, width, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm3d(width),
                nn.ReLU(),
            ]
            before = width
        self.trunk = nn.Sequential(*layers)
        self.pooled, self.regions = nn.Linear(before, _DIM), nn.Linear(before, _DIM)

    def forward(self, volumes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple]:
        """Return the pooled vector, the regions, what the pooled head makes of each region, and the grid."""
        maps = self.trunk(volumes)
        cells = maps.flatten(2).transpose(1, 2)
        return self.pooled(cells.mean(1)), self.regions(cells), self.pooled(cells), tuple(maps.shape[2:])


def drawn(n: int, *, seed: list[int]) -> CtVolumes:
    """Return volumes of the level ``easy``, half of them normal."""
    return draw_volumes(n, seed=seed, size_px=_INPUT.size_px[0], level="easy", normal=0.5, only=FINDINGS)


def tensors(volumes: CtVolumes) -> torch.Tensor:
    """Return the model's input."""
    return torch.from_numpy(np.stack([_INPUT.window(hu) for hu in volumes.hu]))


def plain(text: str) -> str:
    """Return the words of a sentence as the text side reads them."""
    return text.casefold().replace(".", " ").replace(",", " ")


def read(volumes: CtVolumes) -> list[tuple[str, ...]]:
    """Return the sentences of each report."""
    return [tuple(plain(text) for text in report) for report in volumes.sentences]


def said_parts(volumes: CtVolumes, *, sentences: int) -> torch.Tensor:
    """Return the part of each sentence of each report."""
    numbers = np.zeros((len(volumes), sentences), np.int64)
    for row, said in zip(numbers, volumes.sentences, strict=True):
        row[: len(said)] = sentence_parts(said, modality="ct")
    return torch.from_numpy(numbers)


def keys_of(volumes: CtVolumes, *, sentences: int) -> torch.Tensor:
    """Return a number for each sentence that two equal ones share."""
    known: dict[str, int] = {}
    numbers = np.zeros((len(volumes), sentences), np.int64)
    for row, said in zip(numbers, volumes.sentences, strict=True):
        row[: len(said)] = [known.setdefault(text, len(known) + 1) for text in said]
    return torch.from_numpy(numbers)


def measure(arm: str, seed: int, *, n: int, tested: int, steps: int, out: Path) -> dict:
    """Train one arm on the volumes of one seed and score it on others."""
    result = out / f"{ARMS.index(arm)}-{seed}.json"
    if result.exists():
        return json.loads(result.read_text())
    torch.set_num_threads(1)
    train, test = drawn(n, seed=[seed, 1]), drawn(tested, seed=[seed, 2])
    started = resource.getrusage(resource.RUSAGE_SELF)
    torch.manual_seed(seed)
    reports = read(train)
    words = Words(reports)
    tower, text = Tower(), TextSide(words=len(words), dim=_DIM)
    scale = LogitScale()
    columns = [CT_FINDINGS.index(name) for name in FINDINGS]
    organs = OrganContrast(
        _DIM,
        parts=len(PARTS["ct"]),
        heads=4,
        temperature=0.07,
        finding_parts=finding_parts(FINDINGS, modality="ct"),
        false_negatives="none" if arm.endswith("of normal") else "multi",
    )
    images, tokens = tensors(train), words.encode(reports)
    said, keys = (make(train, sentences=tokens.shape[1]) for make in (said_parts, keys_of))
    parts, labels = torch.from_numpy(train.parts), torch.from_numpy(train.labels[:, columns])

    def loss(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        pooled, regions, _, grid = tower(images[rows])
        spoken = text(tokens[rows])
        own = torch.eye(len(rows))
        total = clip_loss(pooled, spoken.pooled, own, scale=scale())
        if arm == ARMS[0]:
            return total
        inside = torch.ones(regions.shape[:2], dtype=torch.bool)
        seen = ImageFeatures(
            pooled, regions, grid, inside, region_parts=part_cover(parts[rows], grid, parts=len(PARTS["ct"]))
        )
        heard = TextFeatures(
            spoken.pooled,
            spoken.words,
            spoken.word_mask,
            spoken.sentences,
            spoken.sentence_mask,
            sentence_keys=keys[rows],
            sentence_parts=said[rows],
            findings=labels[rows],
        )
        return total + organs(seen, heard, own) / 4

    heads = [tower, text, scale] + ([] if arm == ARMS[0] else [organs])
    fit(heads, loss, rows=n, steps=steps, batch=48, lr=3e-3, seed=seed)
    ended = resource.getrusage(resource.RUSAGE_SELF)
    values = scores(tower, text, None if arm == ARMS[0] else organs, test, words=words)
    values["seconds"] = ended.ru_utime + ended.ru_stime - started.ru_utime - started.ru_stime
    result.write_text(json.dumps(values))
    return values


@torch.no_grad()
def scores(
    tower: Tower, text: TextSide, organs: OrganContrast | None, test: CtVolumes, *, words: Words
) -> dict:
    """Return AUROC of the findings and the pointing game of each finding that is there."""
    tower.eval()
    text.eval()
    outputs = [tower(part) for part in tensors(test).split(64)]
    pooled, regions, mapped = (torch.cat([output[k] for output in outputs]) for k in range(3))
    grid = outputs[0][3]
    cover = part_cover(torch.from_numpy(test.parts), grid, parts=len(PARTS["ct"]))
    whole, local, hits, hits_inside = [], [], [], []
    for finding in FINDINGS:
        column = CT_FINDINGS.index(finding)
        number = PARTS["ct"].index(FINDING_PARTS["ct"][finding])
        said, denied = phrases(finding)
        groups = [text(words.encode([(phrase,) for phrase in group])) for group in (said, denied)]
        asked = [output.pooled for output in groups]
        whole.append(auroc(test.labels[:, column], _against(pooled, *asked).numpy()))
        shown = cover[..., number]
        if organs is None:
            organ = (mapped * shown[..., None]).sum(1) / shown.sum(1).clamp_min(1)[:, None]
            cells = _against(mapped.flatten(0, 1), *asked).unflatten(0, mapped.shape[:2])
        else:
            asked = [output.sentences[:, 0] for output in groups]
            organ = organs.pool(regions, cover)[:, number]
            cells = _against(regions.flatten(0, 1), *asked).unflatten(0, regions.shape[:2])
        there = shown.any(1).numpy()
        local.append(auroc(test.labels[there, column], _against(organ, *asked).numpy()[there]))
        for row, boxes in enumerate(test.boxes):
            own = [box for box in boxes if box.label == finding]
            if own:
                touched = cells_in_boxes(own, grid=grid, size_px=_INPUT.size_px)
                found = cells[row].reshape(grid).double().numpy()
                hits.append(pointing(found, touched))
                inside = shown[row].reshape(grid).numpy()
                if inside.any():
                    hits_inside.append(pointing(np.where(inside, found, np.nan), touched))
    return {
        "pooled": float(np.mean(whole)),
        "organ": float(np.mean(local)),
        "pointing": float(np.mean([hit for hit, _ in hits])),
        "pointing chance": float(np.mean([chance for _, chance in hits])),
        "inside": float(np.mean([hit for hit, _ in hits_inside])),
        "inside chance": float(np.mean([chance for _, chance in hits_inside])),
        "each": dict(zip(FINDINGS, zip(whole, local, strict=True), strict=True)),
    }


def phrases(finding: str) -> tuple[list[str], list[str]]:
    """Return sentences for and against a finding: the prompts of the recipes."""
    pair = read_prompts(Path(str(resources.files("medvl.recipes.ct") / "prompts.yaml"))).of(finding)
    return [plain(text) for text in pair.positive], [plain(text) for text in pair.negative]


def _against(vectors: torch.Tensor, said: torch.Tensor, denied: torch.Tensor) -> torch.Tensor:
    unit = nn.functional.normalize(vectors, dim=-1)
    directions = [nn.functional.normalize(group, dim=-1).mean(0) for group in (said, denied)]
    return unit @ (directions[0] - directions[1])


def sign_test(differences: list[float]) -> float:
    """Return the two-sided p of so many differences of one sign; zeros are left out."""
    above = sum(value > 0 for value in differences)
    count = above + sum(value < 0 for value in differences)
    tail = sum(math.comb(count, k) for k in range(max(above, count - above), count + 1)) / 2**count
    return min(1.0, 2 * tail)


def table(results: dict[str, list[dict]]) -> list[str]:
    """Return the Markdown tables: mean ± SD over seeds with every value, then paired differences."""
    lines = ["| | " + " | ".join(COLUMNS.values()) + " | CPU s |", "|---" * (len(COLUMNS) + 2) + "|"]
    for arm, runs in results.items():
        cells = []
        for column in COLUMNS:
            values = [run[column] for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            each = ", ".join(f"{value:.3f}" for value in values)
            shown = f"{statistics.mean(values):.3f} ± {spread:.3f} ({each})"
            cells.append(f"{statistics.mean(values):.3f}" if column.endswith("chance") else shown)
        seconds = statistics.median(run["seconds"] for run in runs)
        lines.append(f"| {arm} | " + " | ".join(cells) + f" | {seconds:.0f} |")
    lines += ["", "| difference, paired by seed | mean | ahead on | sign test |", "|---|---|---|---|"]
    asked = [
        ("organ AUROC: organs − whole volumes", 1, 0, "organ", "organ"),
        ("organ AUROC of organs − whole-volume AUROC of whole volumes", 1, 0, "organ", "pooled"),
        ("whole-volume AUROC: organs − whole volumes", 1, 0, "pooled", "pooled"),
        ("pointing game: organs − whole volumes", 1, 0, "pointing", "pointing"),
        ("pointing inside the organ: organs − whole volumes", 1, 0, "inside", "inside"),
        ("organ AUROC: normal a positive of normal − not", 1, 2, "organ", "organ"),
        ("pointing game: normal a positive of normal − not", 1, 2, "pointing", "pointing"),
    ]
    for name, ours, theirs, mine, other in asked:
        pairs = zip(results[ARMS[ours]], results[ARMS[theirs]], strict=True)
        differences = [a[mine] - b[other] for a, b in pairs]
        ahead = sum(value > 0 for value in differences)
        lines.append(
            f"| {name} | {statistics.mean(differences):+.3f} | {ahead} of {len(differences)} seeds | "
            f"p {sign_test(differences):.3f} |"
        )
    return lines


def main() -> None:
    """Measure everything that is not there yet, and print or publish the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--n", type=int, default=800)
    parser.add_argument("--tested", type=int, default=300)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--page", type=Path, help="a page with a line <!-- measured -->")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict]] = {arm: [] for arm in ARMS}
    sizes = {"n": asked.n, "tested": asked.tested, "steps": asked.steps}
    with ProcessPoolExecutor(asked.workers, mp_context=get_context("spawn")) as pool:
        runs = {
            (arm, seed): pool.submit(measure, arm, seed, out=asked.out, **sizes)
            for seed in asked.seeds
            for arm in ARMS
        }
        for (arm, seed), run in runs.items():
            results[arm].append(run.result())
            print(arm, seed, results[arm][-1], flush=True)
    text = "\n".join(
        [
            f"n = {asked.n} drawn volumes of {' × '.join(map(str, _INPUT.size_px))} voxels, half of them "
            f"normal, {len(FINDINGS)} findings, {asked.steps} steps of 48, {asked.tested} volumes to test, "
            f"seeds {asked.seeds}; mean ± SD over seeds, each seed in brackets.",
            "",
            *table(results),
        ]
    )
    (asked.out / "table.md").write_text(text + "\n")
    print(text)
    if asked.page:
        head, mark, _ = asked.page.read_text("utf-8").partition("<!-- measured -->\n")
        asked.page.write_text(f"{head}{mark}\n{text}\n", "utf-8")


if __name__ == "__main__":
    main()
