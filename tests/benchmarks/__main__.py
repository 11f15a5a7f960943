"""Run every benchmark in this folder, or those named: ``python -m tests.benchmarks index help``."""

import importlib
import pkgutil
import sys

import tests.benchmarks as here


def main() -> None:
    """Run the chosen benchmarks one after the other."""
    names = [
        module.name for module in pkgutil.iter_modules(here.__path__) if module.name.startswith("bench_")
    ]
    wanted = [f"bench_{name}" for name in sys.argv[1:]] or names
    sys.argv[1:] = []  # a benchmark has options of its own
    for name in wanted:
        if name not in names:
            raise SystemExit(f"unknown benchmark {name!r}; there are {', '.join(n[6:] for n in names)}")
        print(f"\n== {name[6:]}", flush=True)
        importlib.import_module(f"tests.benchmarks.{name}").main()


if __name__ == "__main__":
    main()
