"""A step in 8 chunks against one pass over the whole batch: time, peak memory, and the same gradients.

Towers whose activations outweigh their parameters: a vision transformer of 6 layers and a text tower of 2,
for 96 pairs. Peaks are those of fresh processes, beyond what one small step took; times are of the processor,
of interleaved steps, with one pass against one pass as a measure of the noise.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch

ROWS, CHUNKS, PAIRS = 96, 8, 7
MEMORY, TIME, EXACT = 0.35, 1.6, 1e-5
WORDS = (
    "the lungs are clear without focal consolidation effusion or pneumothorax and the heart is normal".split()
)


def _module(chunk: int | None):
    import functools

    from medvl.alignment import ProjectionConfig, TowerRecipe, build_model
    from medvl.data import positives
    from medvl.objectives import OBJECTIVES
    from medvl.tokens import train_tokeniser
    from medvl.training.module import AlignmentModule, Learning

    tokeniser = train_tokeniser([" ".join(WORDS)] * 5, max_tokens=40)
    torch.manual_seed(0)
    vit = {"size_px": [64, 64], "patch_px": 8, "width": 256, "hidden": 1024, "layers": 6, "heads": 4}
    bert = {"layers": 2, "width": 256, "heads": 4, "dropout": 0.0}
    model = build_model(
        image=TowerRecipe(name="vit", options=vit),
        text=TowerRecipe(name="bert", options=bert),
        tokeniser=tokeniser,
        projection=ProjectionConfig(dim=128),
        local=False,
    )
    module = AlignmentModule(
        model,
        OBJECTIVES.build("clip", {}, 128),
        positives=functools.partial(positives, mode="identity"),
        learning=Learning(lr=1e-3),
        steps=10,
        steps_per_epoch=10,
        chunk=chunk,
    )
    return module.train(), tokeniser


def _batch(tokeniser, rows: int):
    from medvl.features import Batch

    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(WORDS), generator=generator).tolist() for _ in range(rows)]
    tokens, mask = map(torch.from_numpy, tokeniser.encode([[" ".join(WORDS[i] for i in o)] for o in orders]))
    return Batch(
        images=torch.randn(rows, 1, 64, 64, generator=generator),
        image_mask=torch.ones(rows, 64, 64, dtype=torch.bool),
        tokens=tokens,
        token_mask=mask,
        study=torch.arange(rows),
        report=torch.arange(rows),
        labels=torch.empty(rows, 0),
    )


def _step(module, batch) -> dict[str, torch.Tensor]:
    module.zero_grad()
    image, text = module.encode(batch)
    module.loss(image, text, batch).total.backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def _peak(chunk: int | None) -> float:
    """Return the peak of one step in MiB beyond that of a step of two rows, in a fresh process."""
    folder = Path(__file__).resolve().parents[2]
    script = f"from tests.benchmarks.bench_gradcache import memory; memory({chunk})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=folder
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def memory(chunk: int | None) -> None:
    """Print the peak of one step; called in a fresh process."""
    torch.set_num_threads(1)
    module, tokeniser = _module(chunk)
    batch = _batch(tokeniser, ROWS)
    _step(module, _batch(tokeniser, 2))
    before = _high_water()
    _step(module, batch)
    print((_high_water() - before) / 1024)


def _high_water() -> int:
    """Return the peak of this process in KiB; ru_maxrss would begin with that of the process before it."""
    status = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def main() -> None:
    """Print the ratios beside their bars; noise above 5 % makes the time inconclusive."""
    torch.set_num_threads(1)
    nets = [_module(None), _module(None), _module(ROWS // CHUNKS)]
    batch = _batch(nets[0][1], ROWS)
    gradients = [_step(net, batch) for net, _ in nets]  # also the warm-up
    largest = max(float(g.abs().max()) for g in gradients[0].values())
    worst = max(float((gradients[0][n] - gradients[2][n]).abs().max()) for n in gradients[0]) / max(
        1.0, largest
    )
    seconds: list[list[float]] = [[], [], []]
    for pair in range(PAIRS):
        for which in (0, 1, 2) if pair % 2 else (2, 1, 0):
            start = time.process_time()
            _step(nets[which][0], batch)
            seconds[which].append(time.process_time() - start)
    one, again, chunks = (statistics.median(times) for times in seconds)
    plain, cached = _peak(None), _peak(ROWS // CHUNKS)
    noisy = abs(one / again - 1) > 0.05
    good = cached <= MEMORY * plain and worst <= EXACT and gradients[0].keys() == gradients[2].keys()
    passed = good and chunks <= TIME * (one + again) / 2
    verdict = "FAIL" if not good else "inconclusive" if noisy else "pass" if passed else "FAIL"
    print(
        f"gradcache, {CHUNKS} chunks of {ROWS // CHUNKS}: time {2 * chunks / (one + again):.2f} of one pass "
        f"({one:.2f} s; one pass / one pass {one / again:.3f}, bar {TIME}), "
        f"peak {cached / plain:.3f} ({plain:.0f} -> {cached:.0f} MiB, bar {MEMORY}), "
        f"gradients within {worst:.1e} (bar {EXACT:g}), n={PAIRS}  {verdict}"
    )


if __name__ == "__main__":
    main()
