"""The loader with two workers against the decode limit: two processes that read, letterbox, and do no more.

512 radiographs of 512 × 420 from disk, nothing cached, batches of 64 with their tokens, masks and labels.
Both take turns on the same records. Two ratios: pictures a second on the wall, and pictures a CPU second with
the main process counted; on a machine that others use, the second is the one to believe. The loader runs over
8 and over 56 steps, and the difference counts: training starts its workers once. The bar is 0.9. Run::

    python -m tests.benchmarks loader
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from test_store import record
from tinystore import write_store

from medvl.data import BatchOrder, BatchStream, PairDataset
from medvl.specs import InputSpec
from medvl.store import Store
from medvl.tokens import ReportTokeniser, train_tokeniser

FILMS, BATCH, LEAD, STEPS, ROUNDS = 512, 64, 8, 48, 5
SHAPE = (512, 420)
BAR = 0.9
INPUT = InputSpec()


def film(seed: int) -> np.ndarray:
    """Return a film-like picture with the noise of a reduced radiograph."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : SHAPE[0] * 1j, -1 : 1 : SHAPE[1] * 1j]
    shade = 128 + 90 * np.cos(3 * x + seed % 7) * np.sin(2 * y)
    return np.clip(shade + random.normal(0, 4, SHAPE), 0, 255).astype(np.uint8)


def decode(path: str, share: int, barrier, times) -> None:
    """Read pixels and letterbox them, and nothing else."""
    store = Store(path)
    order = BatchOrder(FILMS, size=BATCH, seed=0)
    records = [store.records[row] for step in range(share, STEPS, 2) for _, row in order.keys(step)]
    barrier.wait()
    wall, cpu = time.perf_counter(), time.process_time()
    for each in records:
        INPUT.letterbox(store.pixels(each))
    times.put((time.perf_counter() - wall, time.process_time() - cpu))


def limit(path: str) -> tuple[float, float]:
    """Return wall and CPU seconds of two processes that share the films."""
    context = multiprocessing.get_context("fork")
    barrier, times = context.Barrier(2), context.Queue()
    processes = [context.Process(target=decode, args=(path, k, barrier, times)) for k in range(2)]
    for process in processes:
        process.start()
    found = [times.get() for _ in processes]
    for process in processes:
        process.join()
    return max(wall for wall, _ in found), sum(cpu for _, cpu in found)


def cpu_s() -> float:
    """Return the CPU seconds of this process and of its ended children."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in usage)


def load(pairs: PairDataset, tokeniser: ReportTokeniser, steps: int) -> tuple[float, float]:
    """Return wall and CPU seconds of the loader over so many steps, its start and its end included."""
    wall, cpu = time.perf_counter(), cpu_s()
    order = BatchOrder(FILMS, size=BATCH, seed=0)
    stream = BatchStream(pairs, order=order, encode=tokeniser.encode, start=0, stop=steps, workers=2)
    seen = sum(len(batch.images) for batch in stream)
    if seen != steps * BATCH:
        raise RuntimeError(f"{seen} of {steps * BATCH} pictures came")
    return time.perf_counter() - wall, cpu_s() - cpu


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        (path / "shards").mkdir(parents=True)
        words = ("The lungs are clear.", "A nodule of 4.2 cm in the left lower lobe.", "No effusion.")
        samples = [
            (record(k, shape=SHAPE, study_id=f"s{k}", retrieval=words, boxes=()), film(k))
            for k in range(FILMS)
        ]
        write_store(path, samples)
        tokeniser = train_tokeniser(words, vocab_size=120)
        pairs = PairDataset(Store(path), "train", input=INPUT, cache_mb=0)
        walls, cpus, rates = [], [], []
        for turn in range(ROUNDS + 1):
            short = load(pairs, tokeniser, LEAD)
            alone = limit(str(path))
            long = load(pairs, tokeniser, LEAD + STEPS)
            if turn:  # the first turn warms both up
                walls.append(alone[0] / (long[0] - short[0]))
                cpus.append(alone[1] / (long[1] - short[1]))
                rates.append(STEPS * BATCH / (long[1] - short[1]))
    rate = statistics.median(rates)
    ratio = statistics.median(cpus)
    print(
        f"loader, two workers: {ratio:.3f} of the decode limit in CPU ({min(cpus):.3f} … {max(cpus):.3f}, "
        f"n={ROUNDS}), {statistics.median(walls):.3f} on the wall ({min(walls):.3f} … {max(walls):.3f}); "
        f"{rate:.0f} pictures per CPU second, bar {BAR}  {'pass' if ratio >= BAR else 'FAIL'}"
    )


if __name__ == "__main__":
    main()
