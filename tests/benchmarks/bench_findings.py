"""Reports labelled per CPU second, parsing left out; the bar is 1,500.

Two sets: phrases joined into reports that repeat their sentences as real ones do (two in three, Zipf-like),
and, where the shared development data lie beside the checkout, the real reports.
"""

import csv
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import yaml

from medvl.preprocess.reports import findings, parse_report
from medvl.records import Report

BAR = 1500
RUNS = 5
HERE = Path(__file__).resolve()
DATA = HERE.parents[3] / "shared" / "data" / "reports"


def made(vocabulary: str, *, reports: int = 1000, sentences: int = 10) -> list[Report]:
    """Return reports whose sentences are drawn by rank; rare ones get a number of their own."""
    suite = yaml.safe_load((HERE.parents[1] / "sentences" / "findings.yaml").read_text("utf-8"))
    texts = [case["text"] for case in suite if case["set"] == vocabulary]
    random = np.random.default_rng(0)
    lines = []
    for _ in range(reports):
        ranks = random.zipf(1.3, sentences)
        lines.append(" ".join(texts[r % len(texts)] + (f" Image {r}." if r > 500 else "") for r in ranks))
    return [parse_report(f"FINDINGS: {line}") for line in lines]


def real(name: str, columns: tuple[str, ...]) -> list[Report]:
    """Return the parsed reports of a shared set, none where it is absent."""
    path = DATA / name / "reports.csv"
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [parse_report("\n".join(f"{c.upper()}: {row[c]}" for c in columns)) for row in rows]


def rate(reports: list[Report], vocabulary: str) -> float:
    """Return reports per CPU second, the median of runs that each start without remembered sentences."""
    rates = []
    for _ in range(RUNS):
        findings.forget()
        start = time.process_time()
        for report in reports:
            findings.said(report, vocabulary=vocabulary)
        rates.append(len(reports) / (time.process_time() - start))
    return statistics.median(rates)


def main() -> None:
    """Print each rate beside the bar."""
    sets = {
        "made, cxr": (made("cxr"), "cxr"),
        "made, ct": (made("ct"), "ct"),
        "iu_xray": (real("iu_xray", ("findings", "impression")), "cxr"),
        "ct_chest_labelled": (real("ct_chest_labelled", ("text",)), "ct"),
    }
    results = {name: round(rate(*pair)) for name, pair in sets.items() if pair[0]}
    if "--json" in sys.argv:
        print(json.dumps({"reports_per_cpu_second": results, "bar": BAR}))
        return
    for name, value in results.items():
        print(f"{name:<20} {value:6d} reports a CPU second (bar {BAR})  {'pass' if value >= BAR else 'FAIL'}")


if __name__ == "__main__":
    main()
