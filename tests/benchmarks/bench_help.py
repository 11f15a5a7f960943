"""CPU seconds of ``medvl --help`` and ``--version`` as whole processes."""

import os
import resource
import statistics
import subprocess
import sys

RUNS = 11


def cpu_seconds(*words: str) -> float:
    """Return user and system seconds of one run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "medvl.cli", *words], check=True, stdout=subprocess.DEVNULL, env=os.environ
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    """Print the medians beside their bar."""
    for words in (("--help",), ("--version",), ("cxr", "prepare", "--help")):
        seconds = [cpu_seconds(*words) for _ in range(RUNS)]
        median = statistics.median(seconds)
        verdict = "pass" if median <= 0.25 else "FAIL"
        print(f"medvl {' '.join(words):<20} {median:.3f} CPU-s (bar 0.25)  n={RUNS}  {verdict}")


if __name__ == "__main__":
    main()
