"""Image encoders on volumes of 64 x 64 x 64: CPU time and peak memory of each, and the fused attention.

Each encoder runs in processes of its own: one that embeds a volume without gradients, and one that takes a
training step. Time is CPU time on one thread, the median of a few rounds; memory is the peak over what
the process held before its first pass (imports, weights, the volume). The vision transformer runs
with fused and with plain attention in turn on the same tokens; both must agree, and the odd rounds of
the fused one against its even ones say how noisy the machine is. Then stored volumes are embedded alone and
as many at once as ``medvl index`` and ``medvl evaluate`` do, in turn in the same way.
``python -m tests.benchmarks.bench_encoders swin`` runs the encoders whose names begin so.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

SIDE = 64
VIT = {"size_px": [SIDE] * 3, "width": 384, "hidden": 1536, "layers": 12, "heads": 6}
CASES = {
    "vit, patch 16": ("vit", {**VIT, "patch_px": 16}),
    "vit, patch 8": ("vit", {**VIT, "patch_px": 8}),
    "vit, patch 8, checkpointed": ("vit", {**VIT, "patch_px": 8}),
    "swin, four stages": ("swin", {}),
    "swin, three stages": ("swin", {"blocks": [2, 2, 2], "heads": [3, 6, 12]}),
    "resnet": ("resnet", {"axes": 3}),
    "resnet18": ("resnet18", {"axes": 3}),
    "resnet50": ("resnet50", {"axes": 3}),
    "densenet121": ("densenet121", {"axes": 3}),
    "slices, efficientnet_lite0": (
        "slices",
        {"size_px": [SIDE] * 3, "channels": 1, "adjacent": 3, "options": {"pretrained": False}},
    ),
    "slices, resnet18": ("slices", {"encoder": "resnet18", "size_px": [SIDE] * 3, "channels": 1}),
}


def held(what: str) -> float:
    """Return MiB that this process holds (VmRSS) or held at most (VmHWM)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1024


def build(name: str):
    import torch

    from medvl.encoders.image import build_image_encoder

    torch.manual_seed(0)
    kind, options = CASES[name]
    tower = build_image_encoder(kind, options)
    return tower.checkpoint_activations() if name.endswith("checkpointed") else tower


def one(name: str, mode: str, rounds: int) -> dict:
    """Return what this process measures of one encoder."""
    import torch

    tower = build(name).train(mode == "train")
    images = torch.randn(1, tower.channels, SIDE, SIDE, SIDE)
    mask = torch.ones(1, SIDE, SIDE, SIDE, dtype=torch.bool)
    if name.startswith(("resnet", "densenet", "slices")):
        tower.eval()  # one volume has no batch statistics; gradients flow all the same
    before, seconds = held("VmRSS"), []
    for _ in range(rounds):
        start = time.thread_time()
        if mode == "train":
            found = tower(images, mask)
            (found.pooled.square().sum() + found.regions.square().mean()).backward()
        else:
            with torch.no_grad():
                found = tower(images, mask)
        seconds.append(time.thread_time() - start)
    return {
        "ms": 1000 * statistics.median(seconds),
        "mib": held("VmHWM") - before,
        "parameters": sum(p.numel() for p in tower.parameters()) / 1e6,
        "grid": list(found.region_grid),
    }


def apart(name: str, mode: str, rounds: int) -> dict:
    """Measure in a process of its own, which starts as a copy of this one: its peak starts anew."""
    fork = multiprocessing.get_context("fork")
    with fork.Pool(1) as pool:
        return pool.apply(one, (name, mode, rounds))


def attention() -> None:
    """Compare fused and plain attention of the transformer with 512 patches."""
    import torch

    tower = build("vit, patch 8").eval()
    images = torch.randn(1, 1, SIDE, SIDE, SIDE)
    mask = torch.ones(1, SIDE, SIDE, SIDE, dtype=torch.bool)
    blocks, seconds, pooled = tower.net.blocks, {True: [], False: []}, {}
    for _ in range(6):
        for fused in (True, False):
            for block in blocks:
                block.attn.use_flash_attention = fused
            start = time.thread_time()
            with torch.no_grad():
                pooled[fused] = tower(images, mask).pooled
            seconds[fused].append(time.thread_time() - start)
    assert torch.allclose(pooled[True], pooled[False], atol=1e-4), "fused and plain attention differ"
    fused, plain = (statistics.median(seconds[kind][1:]) for kind in (True, False))
    control = statistics.median(seconds[True][1::2]) / statistics.median(seconds[True][2::2])
    print(f"fused attention {1000 * fused:.0f} ms, plain {1000 * plain:.0f} ms, {fused / plain:.2f} x; "
          f"A/A {control:.2f}")  # fmt: skip


SHARED = {
    "resnet of the CT recipes": (
        ("resnet", {"axes": 3, "channels": 3, "widths": [16, 32, 64], "blocks": [1, 1, 1], "stem_px": 3}),
        {"size_px": (40, 32, 36), "windows": ((-600, 1500), (40, 400), (500, 1800)), "fit": "resize"},
    ),
    "resnet18": (CASES["resnet18"], {"size_px": (SIDE,) * 3, "windows": ((40, 400),), "fit": "resize"}),
    "vit, patch 8": (
        CASES["vit, patch 8"],
        {"size_px": (SIDE,) * 3, "windows": ((40, 400),), "fit": "resize"},
    ),
}


def batches(name: str) -> None:
    """Compare volumes embedded alone and several at once, from stored arrays to vectors."""
    import numpy as np
    import torch

    from medvl.encoders.image import build_image_encoder
    from medvl.sliding import WINDOWS, mean_answers
    from medvl.specs import VolumeInput

    torch.manual_seed(0)
    (kind, options), values = SHARED[name]
    tower, input = build_image_encoder(kind, options).eval(), VolumeInput(**values)
    random = np.random.default_rng(0)
    shapes = [(57 + i % 3, 46 + i % 4, 51) for i in range(2 * WINDOWS)]
    volumes = [random.integers(-1000, 1000, shape, dtype=np.int16) for shape in shapes]
    seconds, found = {1: [], WINDOWS: []}, {}
    for _ in range(7):
        for size in seconds:
            start = time.thread_time()
            answers = mean_answers(lambda *pair: tower(*pair).pooled, input, volumes, size=size)
            found[size] = np.stack(list(answers))
            seconds[size].append(time.thread_time() - start)
    assert np.allclose(found[1], found[WINDOWS], atol=1e-4), "volumes alone and together differ"
    alone, together = (1000 * statistics.median(seconds[size][1:]) / len(volumes) for size in seconds)
    control = statistics.median(seconds[WINDOWS][1::2]) / statistics.median(seconds[WINDOWS][2::2])
    print(f"{name}: a volume alone {alone:.1f} ms, {WINDOWS} at once {together:.1f} ms, "
          f"{together / alone:.2f} x; A/A {control:.2f}", flush=True)  # fmt: skip


def main() -> None:
    """Print one line an encoder."""
    import torch

    import medvl.encoders.image  # noqa: F401 - once, and not in each process

    torch.set_num_threads(1)
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    print("| encoder | regions | M parameters | embed, CPU ms | MiB | step, CPU ms | MiB |")
    print("|---|---|---|---|---|---|---|")
    for name in CASES:
        if not name.startswith(wanted):
            continue
        embed, step = apart(name, "embed", 3), apart(name, "train", 2)
        grid = " × ".join(map(str, embed["grid"]))
        print(
            f"| {name} | {grid} | {embed['parameters']:.1f} | {embed['ms']:.0f} | {embed['mib']:.0f} | "
            f"{step['ms']:.0f} | {step['mib']:.0f} |",
            flush=True,
        )
    if "vit".startswith(wanted[:3]):
        attention()
    for name in SHARED:
        if name.startswith(wanted):
            batches(name)


if __name__ == "__main__":
    main()
