"""Random reads of packed CT-like volumes, in records per CPU second, against a plain blosc2 + NumPy reader.

64 volumes of 96³ int16: smooth anatomy, noise of σ = 12 everywhere, 45 % air; a read includes the checksum
and the cast to float32. The plain reader does what a script would: ``np.load`` of ``blosc2.decompress2`` of
the same bytes, without a checksum. Both take turns. The bars are 300 records a CPU second at 0.55 of the raw
size. Run::

    python -m tests.benchmarks store
"""

from __future__ import annotations

import io
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import blosc2
import numpy as np
from scipy.ndimage import zoom

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from test_store import record

from medvl.store import read_pixels, write_shard

VOLUMES = 64
SIDE = 96
ROUNDS = 7
BAR_RATE, BAR_SIZE = 300, 0.55


def volume(seed: int) -> np.ndarray:
    """Return smooth tissue within a cylinder, air around it, and noise in both, in HU."""
    random = np.random.default_rng(seed)
    tissue = 300 * zoom(random.normal(0, 1, (8, 8, 8)), SIDE / 8, order=1)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    radius = (y * y + x * x)[:, :, None]
    body = radius <= np.quantile(radius, 0.55)
    return np.rint(np.where(body, tissue, -1000) + random.normal(0, 12, tissue.shape)).astype(np.int16)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        shards, records, raw, packing = Path(folder), [], 0, 0.0
        for number in range(4):
            volumes = [volume(seed) for seed in range(16 * number, 16 * number + 16)]
            raw += sum(each.nbytes for each in volumes)
            samples = [
                (record(16 * number + k, shape=each.shape, dtype="int16"), each)
                for k, each in enumerate(volumes)
            ]
            before = time.process_time()
            records += write_shard(shards / f"{number:06d}.tar", samples)
            packing += time.process_time() - before
        size = sum(each.size for each in records) / raw
        order = np.random.default_rng(1)
        ours, plain = [], []
        for turn in range(ROUNDS + 1):
            chosen = [records[k] for k in order.permutation(VOLUMES)]
            start = time.process_time()
            total = sum(float(read_pixels(shards, each).astype(np.float32)[0, 0, 0]) for each in chosen)
            middle = time.process_time()
            for each in chosen:
                payload = blosc2.decompress2(read_plainly(shards, each), nthreads=1)
                total -= float(np.load(io.BytesIO(payload)).astype(np.float32)[0, 0, 0])
            end = time.process_time()
            if total:
                raise RuntimeError("the two readers differ")
            if turn:  # the first turn warms both up
                ours.append(VOLUMES / (middle - start))
                plain.append(VOLUMES / (end - middle))
    rate = statistics.median(ours)
    passed = rate >= BAR_RATE and size <= BAR_SIZE
    print(
        f"store, random reads of {SIDE}³ int16: {rate:.0f} records per CPU second ({min(ours):.0f} … "
        f"{max(ours):.0f}, n={ROUNDS} × {VOLUMES}), bar {BAR_RATE}; plain reader "
        f"{statistics.median(plain):.0f}; size {size:.3f} of raw, bar {BAR_SIZE}; "
        f"written at {VOLUMES / packing:.0f}/s  {'pass' if passed else 'FAIL'}"
    )


def read_plainly(shards: Path, each) -> bytes:
    """Return the bytes of a payload as a script would read them."""
    with (shards / each.shard).open("rb") as stream:
        stream.seek(each.offset)
        return stream.read(each.size)


if __name__ == "__main__":
    main()
