"""Reports cleaned per CPU second: parse, both text views, and the list of all changes.

One process, one thread, on reports of a table, or on made-up ones where there is none. Two figures: with an
empty cache of sentences, as at the start of a run, and with the cache as the reports leave it, as for sets
whose sentences repeat. The bar is 500 with an empty cache. Run::

    python tests/benchmarks/bench_reports.py [TABLE...] [--runs 5] [--json]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path

from medvl.preprocess.reports import all_changes, parse_report
from medvl.preprocess.reports.marks import read_sentence
from medvl.preprocess.sources.columns import guess_columns
from medvl.preprocess.sources.tables import read_table
from medvl.specs import ReportSpec

BAR = 500
DATA = Path(__file__).parents[3] / "shared" / "data" / "reports"
PLACES = ("left upper lobe", "right lower lobe", "lingula", "right apex", "left base")
SEEN = ("nodule", "opacity", "consolidation", "small effusion", "calcified granuloma", "thickening")
LINES = (
    "There is a {size} mm {what} in the {where}.",
    "No {what} in the {where}.",
    "Stable {what} in the {where}, unchanged from the prior study.",
    "As compared to ___, the {what} in the {where} has increased to {size} mm.",
    "Recommend follow-up of the {what} in {size} months.",
    "The {where} is clear.",
)


def invented(count: int, *, seed: int = 0) -> list[str]:
    """Return reports of some 25 sentences, most of them different."""
    draw = random.Random(seed)

    def line() -> str:
        words = {"size": draw.randint(2, 90), "what": draw.choice(SEEN), "where": draw.choice(PLACES)}
        return draw.choice(LINES).format(**words)

    return [
        f"FINDINGS: {' '.join(line() for _ in range(20))} IMPRESSION: {' '.join(line() for _ in range(5))}"
        for _ in range(count)
    ]


def texts(table: Path) -> list[str]:
    """Return the report texts of a table."""
    frame = read_table(table)
    columns = guess_columns(frame)
    return [columns.report_text(row) for row in frame.to_dict("records")]


def clean(reports: list[str], spec: ReportSpec) -> float:
    """Return the CPU seconds that cleaning takes."""
    start = time.process_time()
    for text in reports:
        report = parse_report(text, parser=spec.parser)
        spec.render(report, "retrieval")
        spec.render(report, "generation")
        all_changes(report, spec)
    return time.process_time() - start


def measure(reports: list[str], runs: int) -> dict[str, object]:
    """Return reports per CPU second, the median and the range of the runs."""
    spec, cold, warm = ReportSpec(), [], []
    for _ in range(runs + 1):
        read_sentence.cache_clear()
        cold.append(len(reports) / clean(reports, spec))
        warm.append(len(reports) / clean(reports, spec))
    figures = {
        name: {
            "median": round(statistics.median(run[1:])),
            "range": [round(min(run[1:])), round(max(run[1:]))],
        }
        for name, run in (("empty cache", cold), ("full cache", warm))  # the first run warms up
    }
    words = statistics.mean(len(text.split()) for text in reports)
    passed = statistics.median(cold[1:]) >= BAR
    return {"reports": len(reports), "words": round(words), **figures, "bar": BAR, "passed": passed}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    tables = arguments.tables or sorted(DATA.glob("*/reports.csv"))
    sets = {table.parent.name: texts(table) for table in tables} or {"made up": invented(500)}
    for name, reports in sets.items():
        result = {"set": name} | measure(reports, arguments.runs)
        if arguments.json:
            sys.stdout.write(json.dumps(result) + "\n")
            continue
        cold, warm = result["empty cache"], result["full cache"]
        sys.stdout.write(
            f"{name}: {result['reports']} reports of {result['words']} words; per CPU second "
            f"{cold['median']} (range {cold['range']}), with a full cache {warm['median']}; "
            f"bar {BAR}: {'pass' if result['passed'] else 'FAIL'}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
