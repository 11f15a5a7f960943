"""The report labeller against human labels of chest CT reports, beside keywords and NegEx.

    python -m tests.studies.labels ../shared/data/reports --out docs/labels.md

Rules that were set before the first run: a finding counts as positive where it is present, unchanged or
uncertain (the second table counts uncertain as negative), and as negative where it is absent or not named;
intervals are 95 % percentiles over 2,000 bootstrap resamples of groups (``group_id``: known patients and
equal texts), seed 0; macro is the mean over findings. None of these texts was read
while the rules were written.
"""

import argparse
import csv
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from medvl.preprocess.reports import parse_report
from medvl.preprocess.reports.findings import describes_image, findings_of, said
from medvl.records import Report
from tests import baselines
from tests.studies.learned_labels import learned

RESAMPLES = 2000
MARK = "<!-- measured -->"
Label = Callable[[Report], set[str]]


def ours(positive: set[str]) -> Label:
    """Return our labeller with the states that count as positive."""
    return lambda report: {f for f, state in said(report, vocabulary="ct").items() if state in positive}


def baseline(name: str) -> Label:
    """Return a baseline over the sentences that our labeller reads."""

    def label(report: Report) -> set[str]:
        found: set[str] = set()
        for sentence in filter(describes_image, report.sentences):
            text = report.text[sentence.start : sentence.end]
            if name == "keywords":
                found |= baselines.keywords(text, vocabulary="ct")
            else:
                rules = baselines.NEGEX if name == "negex" else baselines.NEGEX_ADAPTED
                states = baselines.negex(text, vocabulary="ct", rules=rules)
                found |= {finding for finding, affirmed in states.items() if affirmed}
        return found

    return label


def counts(predicted: list[set[str]], truth: list[set[str]], findings: tuple[str, ...]) -> np.ndarray:
    """Return true positives, false positives and false negatives: reports × findings × 3."""
    rows = [
        [(f in p and f in t, f in p and f not in t, f not in p and f in t) for f in findings]
        for p, t in zip(predicted, truth, strict=True)
    ]
    return np.array(rows, dtype=np.int64)


def scores(total: np.ndarray) -> np.ndarray:
    """Return precision, recall and F1 from counts in the last axis; 0 where nothing is there."""
    tp, fp, fn = np.moveaxis(total.astype(float), -1, 0)
    parts = [(tp, tp + fp), (tp, tp + fn), (2 * tp, 2 * tp + fp + fn)]
    return np.stack([np.divide(a, b, out=np.zeros_like(a), where=b > 0) for a, b in parts], axis=-1)


def resampled(each: np.ndarray, groups: list[str]) -> np.ndarray:
    """Return counts over bootstrap resamples of groups: resamples × findings × 3."""
    names, index = np.unique(groups, return_inverse=True)
    summed = np.zeros((len(names), *each.shape[1:]), np.int64)
    np.add.at(summed, index, each)
    random = np.random.default_rng(0)
    weights = np.stack([np.bincount(random.integers(0, len(names), len(names)), minlength=len(names))
                        for _ in range(RESAMPLES)])  # fmt: skip
    return np.tensordot(weights, summed, axes=1)


def interval(values: np.ndarray) -> str:
    low, high = np.percentile(values, (2.5, 97.5))
    return f"{low:.3f}–{high:.3f}"


def summary(total: np.ndarray, draws: np.ndarray) -> dict[str, tuple[float, np.ndarray]]:
    """Return macro and micro F1 with their resampled values."""
    return {
        "macro F1": (scores(total)[:, 2].mean(), scores(draws)[..., 2].mean(axis=-1)),
        "micro F1": (scores(total.sum(0))[2], scores(draws.sum(1))[..., 2]),
        "micro precision": (scores(total.sum(0))[0], scores(draws.sum(1))[..., 0]),
        "micro recall": (scores(total.sum(0))[1], scores(draws.sum(1))[..., 1]),
    }


def ct_tables(folder: Path) -> list[str]:
    """Return the tables on the reports with human labels."""
    findings = findings_of("ct")
    with (folder / "ct_chest_labelled" / "reports.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    truth = [{f for f in findings if float(row[f] or 0) == 1} for row in rows]
    groups = [row["group_id"] for row in rows]
    reports = [parse_report(row["text"]) for row in rows]
    methods: dict[str, Label] = {
        "medvl": ours({"present", "unchanged", "uncertain"}),
        "medvl, uncertain as negative": ours({"present", "unchanged"}),
        "keywords": baseline("keywords"),
        "NegEx (2001)": baseline("negex"),
        "NegEx, adapted": baseline("adapted"),
    }
    each = {name: counts([label(r) for r in reports], truth, findings) for name, label in methods.items()}
    trained = learned(reports, truth, groups, findings)
    each |= {f"learned: {name}": counts(found, truth, findings) for name, found in trained.items()}
    draws = {name: resampled(values, groups) for name, values in each.items()}
    keys = ("macro F1", "micro F1", "micro precision", "micro recall")
    lines = [
        f"{len(rows)} reports in {len(set(groups))} groups, {sum(map(len, truth))} positive labels.",
        "",
        "| | " + " | ".join(keys) + " |",
        "|---" * (len(keys) + 1) + "|",
    ]
    for name, values in each.items():
        table = summary(values.sum(0), draws[name])
        lines.append(
            f"| {name} | " + " | ".join(f"{table[k][0]:.3f} ({interval(table[k][1])})" for k in keys) + " |"
        )
    difference = ["", "Paired difference of F1 to medvl, same resamples:", ""]
    for name in each:
        if name != "medvl":
            mine, other = (
                summary(each["medvl"].sum(0), draws["medvl"]),
                summary(each[name].sum(0), draws[name]),
            )
            cells = [
                f"{k} {mine[k][0] - other[k][0]:+.3f} ({interval(mine[k][1] - other[k][1])})"
                for k in keys[:2]
            ]
            difference.append(f"- over {name}: " + ", ".join(cells))
    lines += [*difference, "", "### Finding by finding", ""]
    lines += [
        "| finding | n | precision | recall | F1 | keywords F1 | NegEx F1 | NegEx, adapted F1 "
        "| TF-IDF F1 | states and TF-IDF F1 |",
        "|---" * 10 + "|",
    ]
    for place, finding in enumerate(findings):
        own = scores(each["medvl"][:, place].sum(0))
        spread = scores(draws["medvl"][:, place])
        cells = [f"{own[i]:.3f} ({interval(spread[:, i])})" for i in range(3)]
        beside = [*list(methods)[2:], "learned: TF-IDF"]
        cells += [f"{scores(each[name][:, place].sum(0))[2]:.3f}" for name in beside]
        best = "learned: rules' states and TF-IDF"
        spread = scores(draws[best][:, place])
        cells.append(f"{scores(each[best][:, place].sum(0))[2]:.3f} ({interval(spread[:, 2])})")
        lines.append(f"| {finding} | {sum(finding in t for t in truth)} | " + " | ".join(cells) + " |")
    return lines


def cxr_tables(folder: Path) -> list[str]:
    """Return counts of states on chest radiograph reports, and a coarse check against the indexers."""
    with (folder / "iu_xray" / "reports.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    tally: Counter[tuple[str, str]] = Counter()
    agree: Counter[tuple[bool, bool]] = Counter()
    cached = time.process_time()
    for row in rows:
        text = f"FINDINGS: {row['findings']}\nIMPRESSION: {row['impression']}"
        states = said(parse_report(text), vocabulary="cxr")
        tally.update(states.items())
        if row["findings"].strip() or row["impression"].strip():
            agree[states.get("no_finding") == "present", row["mesh"].strip().lower() == "normal"] += 1
    seconds = time.process_time() - cached
    kinds = ("present", "unchanged", "uncertain", "absent")
    lines = ["| finding | " + " | ".join(kinds) + " |", "|---" * 5 + "|"]
    for finding in findings_of("cxr"):
        lines.append(f"| {finding} | " + " | ".join(str(tally[finding, kind]) for kind in kinds) + " |")
    both, neither = agree[True, True], agree[False, False]
    lines += [
        "",
        f"{len(rows)} reports, parsed and labelled in {seconds:.1f} CPU-s. "
        "There are no human labels of these 14 findings. Of the indexers' headings only `normal` is "
        "comparable, and only coarsely, for they index much that is not among the 14 (scars, "
        "spines, old granulomas): "
        f"`no_finding` and `normal` agree on {both + neither} of {agree.total()}; "
        f"no_finding alone {agree[True, False]}, normal alone {agree[False, True]}.",
    ]  # fmt: skip
    return lines


def main() -> None:
    """Measure, print, and write the page's measured part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    lines = [
        "## Human labels of chest CT reports",
        "",
        *ct_tables(asked.folder),
        "",
        "## Chest radiograph reports",
    ]
    text = "\n".join([*lines, "", *cxr_tables(asked.folder)]) + "\n"
    print(text)
    if asked.out:
        kept = asked.out.read_text("utf-8").split(MARK)[0]
        asked.out.write_text(f"{kept}{MARK}\n\n{text}", "utf-8")


if __name__ == "__main__":
    main()
