"""The loader of volumes with two workers against the decode limit, and its memory over ten epochs.

96 volumes of about 128 × 112 × 96 with parts, crops of 96³ in two windows from disk, nothing cached, batches
of 8 with their tokens. The limit is two processes that read the same patches with their parts and bring them
into windows, and do no more. Both take turns. Two ratios: volumes a second on the wall, and volumes a CPU
second with the main process counted; on a machine that others use, the second is the one to believe. The
loader runs over 2 and over 14 steps, and the difference counts: training starts its workers once. The bar is
0.9. Memory: the peak (VmHWM) of the main process of a fresh run after two and after ten epochs; it may grow
by 2 %.
Run::

    python -m tests.benchmarks volume_loader
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import statistics
import subprocess
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
from tinyvolumes import write_volumes

from medvl.anatomy import sentence_parts
from medvl.data import BatchOrder, BatchStream, PairDataset
from medvl.specs import VolumeInput
from medvl.store import Store
from medvl.tokens import ReportTokeniser, train_tokeniser

STUDIES, BATCH, LEAD, STEPS, ROUNDS, EPOCHS = 96, 8, 2, 12, 5, 10
SHAPE = (128, 112, 96)
BAR, FLAT = 0.9, 0.02
INPUT = VolumeInput(size_px=(96, 96, 96))


def parts(sentences):
    """Return the parts that sentences speak of."""
    return sentence_parts(sentences, modality="ct")


def pairs_of(path: str) -> PairDataset:
    """Return the pairs of a store: middle crops with their parts, from disk."""
    return PairDataset(Store(path), "train", input=INPUT, parts=parts, cache_mb=0)


def words() -> ReportTokeniser:
    """Return a tokeniser of the reports."""
    return train_tokeniser(["A nodule in the lung.", "The liver is unremarkable."], vocab_size=120)


def decode(path: str, share: int, barrier, times) -> None:
    """Read patches and parts, bring them into windows, and nothing else."""
    pairs = pairs_of(path)
    order = BatchOrder(len(pairs), size=BATCH, seed=0)
    records = [pairs.records[row] for step in range(share, STEPS, 2) for _, row in order.keys(step)]
    barrier.wait()
    wall, cpu = time.perf_counter(), time.process_time()
    for each in records:
        low, high = INPUT.span(each.shape)
        INPUT.apply(pairs.store.patch(each, low, high))
        pairs.store.parts(each, low, high)
    times.put((time.perf_counter() - wall, time.process_time() - cpu))


def limit(path: str) -> tuple[float, float]:
    """Return wall and CPU seconds of two processes that share the volumes."""
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


def stream_of(pairs: PairDataset, tokeniser: ReportTokeniser, steps: int) -> BatchStream:
    """Return the batches of so many steps from two workers."""
    order = BatchOrder(len(pairs), size=BATCH, seed=0)
    return BatchStream(pairs, order=order, encode=tokeniser.encode, start=0, stop=steps, workers=2)


def load(pairs: PairDataset, tokeniser: ReportTokeniser, steps: int) -> tuple[float, float]:
    """Return wall and CPU seconds of the loader over so many steps, its start and its end included."""
    wall, cpu = time.perf_counter(), cpu_s()
    seen = 0
    for batch in stream_of(pairs, tokeniser, steps):
        seen += len(batch.images)
        if batch.voxel_parts is None:
            raise RuntimeError("the parts did not come")
    if seen != steps * BATCH:
        raise RuntimeError(f"{seen} of {steps * BATCH} volumes came")
    return time.perf_counter() - wall, cpu_s() - cpu


def peak_mb() -> float:
    """Return the peak of this process's resident memory."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def epochs(path: str) -> None:
    """Read ten epochs and print the peak after each."""
    pairs = pairs_of(path)
    each = len(pairs) // BATCH
    peaks = []
    for step, batch in enumerate(stream_of(pairs, words(), EPOCHS * each), start=1):
        if not bool(torch.isfinite(batch.images).all()):
            raise RuntimeError("a value is not finite")
        if step % each == 0:
            peaks.append(peak_mb())
    print(json.dumps(peaks))


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    with tempfile.TemporaryDirectory() as folder:
        path = write_volumes(Path(folder) / "store", n=STUDIES, shape=SHAPE, twins=False)
        pairs, tokeniser = pairs_of(str(path)), words()
        apart = np.abs(pairs[0].image - INPUT.apply(pairs.store.pixels(pairs.records[0]))[0]).max()
        if apart:
            raise RuntimeError(f"the loader's crop is not the spec's: {apart}")
        walls, cpus, rates = [], [], []
        for turn in range(ROUNDS + 1):
            short = load(pairs, tokeniser, LEAD)
            alone = limit(str(path))
            long = load(pairs, tokeniser, LEAD + STEPS)
            if turn:  # the first turn warms both up
                walls.append(alone[0] / (long[0] - short[0]))
                cpus.append(alone[1] / (long[1] - short[1]))
                rates.append(STEPS * BATCH / (long[1] - short[1]))
        command = [sys.executable, __file__, "--epochs", str(path)]
        peaks = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    ratio, rate = statistics.median(cpus), statistics.median(rates)
    growth = peaks[-1] / peaks[1] - 1
    passed = ratio >= BAR and growth <= FLAT
    print(
        f"loader of volumes, two workers: {ratio:.3f} of the decode limit in CPU ({min(cpus):.3f} … "
        f"{max(cpus):.3f}, n={ROUNDS}), {statistics.median(walls):.3f} on the wall ({min(walls):.3f} … "
        f"{max(walls):.3f}); {rate:.0f} volumes per CPU second, bar {BAR}; peak memory "
        f"{peaks[1]:.0f} MB after two epochs, {peaks[-1]:.0f} MB after ten ({growth:+.1%}, bar {FLAT:.0%})  "
        f"{'pass' if passed else 'FAIL'}"
    )


if __name__ == "__main__":
    if "--epochs" in sys.argv:
        epochs(sys.argv[-1])
    else:
        main()
