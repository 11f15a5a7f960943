"""The losses against plain restatements of their formulas: time, peak memory, and the same gradients.

Each twin is written as the public code of the method computes it (its Python loops included, its defects
not). Both run on the same inputs, one after the other in turn; the odd runs of ours against the even ones
say how noisy the machine is. Peak memory is that of one forward and backward pass in a process of
its own. ``python -m tests.benchmarks.bench_losses gloria`` runs the cases whose names begin so.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Case:
    """Two functions of the same leaves, the rounds to time (two of each), the bars for ours over the twin."""

    inputs: Callable[[], list]
    ours: Callable
    twin: Callable
    rounds: int
    time_bar: float
    memory_bar: float | None = None


# --- whole images with whole texts ----------------------------------------------------------------


def pairs(batch, dim=256, scale=1 / 0.07):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, dim, generator=generator)
    texts = 0.3 * images + torch.randn(batch, dim, generator=generator)
    return [images, texts, torch.tensor(scale)]


def clip_ours(images, texts, scale):
    from medvl.objectives.contrast import clip_loss

    return clip_loss(images, texts, torch.zeros(1, 1), scale=scale)


def clip_twin(images, texts, scale):
    """Two products and two cross-entropies, as open_clip writes it."""
    images, texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
    own = torch.arange(len(images))
    by_image, by_text = scale * images @ texts.T, scale * texts @ images.T
    return (F.cross_entropy(by_image, own) + F.cross_entropy(by_text, own)) / 2


def clip_one_product(images, texts, scale):
    """A leaner twin: the second direction is the transpose of the first."""
    logits = scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    own = torch.arange(len(images))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def siglip_ours(images, texts, scale):
    from medvl.objectives.siglip import siglip_loss

    return siglip_loss(images, texts, torch.zeros(1, 1), scale=scale, bias=-10.0)


def siglip_twin(images, texts, scale):
    logits = scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T - 10.0
    signs = 2 * torch.eye(len(images)) - 1
    return -F.logsigmoid(signs * logits).sum() / len(images)


# --- GLoRIA's words with the regions of every image ----------------------------------------------


def captions(batch=32, regions=361, dim=768, longest=100):
    generator = torch.Generator().manual_seed(0)
    words = 0.2 * torch.randn(batch, longest, dim, generator=generator)
    patches = 0.2 * torch.randn(batch, regions, dim, generator=generator)
    lengths = torch.randint(10, longest + 1, (batch,), generator=generator)
    return [words, patches, lengths]


def gloria_ours(words, regions, lengths):
    from medvl.objectives.gloria import gloria_local_loss

    mask = torch.arange(words.shape[1]) < lengths[:, None]
    seen = torch.ones(regions.shape[:2], dtype=torch.bool)
    return gloria_local_loss(words, mask, regions, seen, torch.eye(len(words)))


def gloria_twin(words, regions, lengths):
    """One caption after the other, repeated for each image; every context vector is formed."""
    columns, batch = [], len(regions)
    for text, length in zip(words, lengths.tolist(), strict=True):
        repeated = text[:length].T.repeat(batch, 1, 1)
        attention = torch.bmm(regions, repeated).view(-1, length).softmax(dim=1).view(batch, -1, length)
        attention = attention.transpose(1, 2).contiguous().view(batch * length, -1)
        attention = (4.0 * attention).softmax(dim=1).view(batch, length, -1)
        contexts = torch.bmm(regions.transpose(1, 2), attention.transpose(1, 2).contiguous())
        flat = [x.transpose(1, 2).contiguous().view(batch * length, -1) for x in (repeated, contexts)]
        lengths_product = (flat[0].norm(dim=1) * flat[1].norm(dim=1)).clamp(min=1e-8)
        cosines = ((flat[0] * flat[1]).sum(dim=1) / lengths_product).view(batch, length)
        columns.append((5.0 * cosines).exp().sum(dim=1).log())
    logits = 10.0 * torch.stack(columns, dim=1)
    own = torch.arange(len(regions))
    return F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)


# --- MGCA's words with the regions of their own image --------------------------------------------


def tokens(batch, shortest=111, words=111, patches=196, dim=128):
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(words) < torch.randint(shortest, words + 1, (batch, 1), generator=generator)
    return [
        torch.randn(batch, words, dim, generator=generator),
        torch.randn(batch, patches, dim, generator=generator),
        mask,
        torch.rand(batch, words, generator=generator) * mask,
        torch.rand(batch, patches, generator=generator),
    ]


def tokens_ours(words, patches, mask, word_weights, patch_weights):
    from medvl.objectives.tokens import token_alignment

    seen = torch.ones(patches.shape[:2], dtype=torch.bool)
    return token_alignment(words, patches, mask, seen, word_weights, patch_weights)


def tokens_twin(words, patches, mask, word_weights, patch_weights):
    """Batched products, a softmax each, two cross-entropies a direction; weights sample by sample."""
    words, patches = F.normalize(words, dim=-1), F.normalize(patches, dim=-1)
    padded = None if bool(mask.all()) else ~mask
    by_word = one_direction(words, patches, None, padded, sample_weights(word_weights), normalised=1)
    return by_word + one_direction(patches, words, padded, None, sample_weights(patch_weights), normalised=0)


def one_direction(queries, keys, padded_keys, padded_queries, weights, *, normalised):
    scores = torch.bmm(queries, keys.transpose(1, 2)) / 0.1
    if padded_keys is not None:
        scores = scores.masked_fill(padded_keys[:, None, :], float("-inf"))
    contexts = torch.bmm(scores.softmax(dim=-1), keys)
    if normalised:
        contexts = F.normalize(contexts, dim=-1)
    logits = torch.bmm(queries, contexts.transpose(1, 2)) / 0.1
    total, own = 0.0, torch.arange(logits.shape[1]).repeat(len(logits))
    for matrix in (logits, logits.transpose(1, 2)):
        if padded_queries is not None:
            # Padding leaves the denominators; its own rows count nothing, but must stay finite.
            matrix = matrix.masked_fill(padded_queries[:, None, :] & ~padded_queries[:, :, None], -1e9)
        losses = F.cross_entropy(matrix.reshape(-1, matrix.shape[-1]), own, reduction="none")
        total = total + (losses * weights.reshape(-1)).sum()
    return total / (2 * len(logits))


def sample_weights(attention):
    rows = []
    for row in attention.detach():
        row, counted = row.clone(), row.nonzero().squeeze(1)
        low, high = torch.quantile(row[counted], 0.1), torch.quantile(row[counted], 0.9)
        row[counted] = row[counted].clip(low, high)
        rows.append(row / row.sum())
    return torch.stack(rows)


CASES = {
    "clip 64": Case(lambda: pairs(64), clip_ours, clip_twin, 100, 1.0),
    "clip 1024": Case(lambda: pairs(1024), clip_ours, clip_twin, 11, 1.0),
    "clip 8192": Case(lambda: pairs(8192), clip_ours, clip_twin, 3, 0.6, 0.05),
    "clip 8192, one product": Case(lambda: pairs(8192), clip_ours, clip_one_product, 2, 1.0),
    "siglip 4096": Case(lambda: pairs(4096, scale=10.0), siglip_ours, siglip_twin, 3, 1.0, 0.2),
    "gloria 32": Case(captions, gloria_ours, gloria_twin, 3, 0.33, 0.25),
    "tokens 48": Case(lambda: tokens(48), tokens_ours, tokens_twin, 15, 0.5),
    "tokens 72": Case(lambda: tokens(72), tokens_ours, tokens_twin, 15, 0.5, 0.5),
    "tokens 72, ragged": Case(lambda: tokens(72, shortest=20), tokens_ours, tokens_twin, 15, 0.5),
}


def step(function: Callable, inputs: list) -> tuple[float, list]:
    """Seconds of one forward and backward pass, the loss and its gradients."""
    leaves = [x.detach().requires_grad_() if x.is_floating_point() else x for x in inputs]
    start = time.thread_time()
    loss = function(*leaves)
    loss.backward()
    seconds = time.thread_time() - start
    return seconds, [loss.detach(), *(x.grad for x in leaves if x.requires_grad and x.grad is not None)]


def peak(name: str, side: str) -> float:
    """Peak resident memory of one pass in a fresh process, in MiB above what its inputs take."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_losses", "--peak", name, side]
    run = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2]
    )
    return float(run.stdout)


def resident_peak() -> float:
    """The high-water mark of this process alone: unlike ru_maxrss it does not start at the parent's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return float(status.split("VmHWM:")[1].split()[0]) / 1024


def print_peak(name: str, side: str) -> None:
    torch.set_num_threads(1)
    case = CASES[name]
    function = getattr(case, side)
    inputs = case.inputs()
    # What a first call brings in, kernels and modules, on the smallest inputs that are still of its kind.
    step(function, [x[:4] if x.ndim else x for x in inputs])
    before = resident_peak()
    step(function, inputs)
    print(resident_peak() - before)


def measure(name: str) -> None:
    case = CASES[name]
    memory = peak(name, "ours") / peak(name, "twin") if case.memory_bar else None
    inputs = case.inputs()
    results = {side: step(getattr(case, side), inputs)[1] for side in ("ours", "twin")}
    error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*results.values(), strict=True))
    first, second, twin = [], [], []
    for _ in range(case.rounds):
        for seconds, function in (
            (first, case.ours),
            (twin, case.twin),
            (second, case.ours),
            (twin, case.twin),
        ):
            seconds.append(step(function, inputs)[0])
    ratio = statistics.median([*first, *second]) / statistics.median(twin)
    minima = min(*first, *second) / min(twin)
    noise = statistics.median(first) / statistics.median(second)
    failed = ratio > case.time_bar or error > 2e-5 or (memory is not None and memory > case.memory_bar)
    verdict = "FAIL" if failed else "inconclusive" if abs(noise - 1) > 0.05 else "pass"
    peaks = "" if memory is None else f", peak memory {memory:.3f} (bar {case.memory_bar})"
    print(
        f"{name:<22} {1000 * statistics.median(twin):8.1f} ms plain; ours / plain {ratio:.3f} (minima "
        f"{minima:.3f}, ours / ours {noise:.3f}, bar {case.time_bar}){peaks}; largest difference of loss and "
        f"gradients {error:.0e}; n={2 * case.rounds}  {verdict}",
        flush=True,
    )


def main() -> None:
    """Print each case beside its bars; noise above 5 % makes a figure inconclusive."""
    if sys.argv[1:2] == ["--peak"]:
        print_peak(*sys.argv[2:4])
        return
    torch.set_num_threads(1)
    chosen = [name for name in CASES if name.startswith(tuple(sys.argv[1:]) or "")]
    for name in chosen:
        measure(name)


if __name__ == "__main__":
    main()
