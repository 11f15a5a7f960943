"""Wall time of ``prepare`` with one worker against two, start of the processes included.

The two are interleaved, and every second pair runs in the other order. Each worker needs a core of its
own while it is measured: on a machine that others use, the best pair says more than the median, so both
are printed with the spread. The bar is 1.8. Run::

    python -m tests.benchmarks workers
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from medvl.preprocess.pipeline import prepare
from tests.benchmarks.bench_prepare import write_source

BAR = 1.8


def seconds(source: Path, out: Path, *, workers: int) -> float:
    """Return the wall seconds of one whole prepare."""
    began = time.perf_counter()
    prepare(source, out, workers=workers)
    taken = time.perf_counter() - began
    shutil.rmtree(out)
    return taken


def measure(images: int, pairs: int) -> dict[str, object]:
    """Return the seconds of every run and the ratios of the pairs."""
    one, two = [], []
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "source", Path(folder) / "store"
        source.mkdir()
        write_source(source, images)
        for pair in range(pairs):
            for workers in (1, 2) if pair % 2 else (2, 1):
                (one if workers == 1 else two).append(seconds(source, out, workers=workers))
    ratios = [a / b for a, b in zip(one, two, strict=True)]
    return {
        "images": images,
        "one_s": [round(value, 2) for value in one],
        "two_s": [round(value, 2) for value in two],
        "median": round(statistics.median(ratios), 2),
        "best": round(max(ratios), 2),
        "bar": BAR,
        "passed": statistics.median(ratios) >= BAR,
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments.images, arguments.pairs)
    if arguments.json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        verdict = "pass" if result["passed"] else "FAIL"
        sys.stdout.write(
            f"one worker / two workers: median {result['median']}, best {result['best']}, at least {BAR} "
            f"({verdict}); wall seconds for {arguments.images} films: {result['one_s']} / {result['two_s']}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
