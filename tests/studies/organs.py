"""How well reports are parted by organ: against 330 real sentences labelled by hand.

    python -m tests.studies.organs ../shared/data/reports [--out docs/reports.md]

The real sentences are of held-out groups and were labelled before the rules ran on any of them; other groups
served to look at. The baseline is the part that a sentence names first. Intervals are 95 % percentiles over
bootstrap resamples of sentences (each wording was drawn once).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from jaxtyping import Bool, Int

from medvl.anatomy import PARTS, _first_part
from medvl.preprocess.reports import parse_report
from medvl.preprocess.reports.organs import said_by_sentence, sentence_state
from medvl.records import Report

HERE = Path(__file__).parent
NAMES = PARTS["ct"]
RESAMPLES = 2000
RULES = ("named", "leaning")


def real_reports(folder: Path) -> list[Report]:
    """Parse the reports of the labelled set, in the order of its table."""
    table = pd.read_csv(folder / "ct_chest_labelled" / "reports.csv")
    return [parse_report(text) for text in table["text"]]


def hits(found: Sequence[set[str]], wanted: Sequence[set[str]]) -> Bool[np.ndarray, "two sentences parts"]:
    """Return what was found and what was wanted as matrices."""
    return np.array([[[part in row for part in NAMES] for row in rows] for rows in (found, wanted)])


def f1(found: Bool[np.ndarray, "rows parts"], wanted: Bool[np.ndarray, "rows parts"]) -> float:
    """Return the micro F1 of all (sentence, part) pairs."""
    both = float((found & wanted).sum())
    total = float(found.sum() + wanted.sum())
    return 2 * both / total if total else 1.0


def interval(values: Sequence[float]) -> str:
    """Return the middle 95 %."""
    low, high = np.percentile(values, [2.5, 97.5])
    return f"({low:.3f}–{high:.3f})"


def scored(
    found: Sequence[set[str]], wanted: Sequence[set[str]], picks: Int[np.ndarray, "draws rows"]
) -> str:
    """Return micro F1 and the share of sentences without error, with intervals, as two cells of a table."""
    ours, theirs = hits(found, wanted)
    exact = (ours == theirs).all(axis=1)
    return (
        f"{f1(ours, theirs):.3f} {interval([f1(ours[d], theirs[d]) for d in picks])} | "
        f"{exact.mean():.3f} {interval([float(exact[d].mean()) for d in picks])}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, or write them behind their mark in a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    lines = tables(options.folder)
    if options.out is None:
        print("\n".join(lines))
        return
    mark = "<!-- measured: organs -->\n"
    text = options.out.read_text("utf-8")
    head, rest = text.split(mark)
    tail = rest[rest.index("<!-- end -->") :]
    options.out.write_text(head + mark + "\n".join(["", *lines, "", ""]) + tail, "utf-8")


def tables(folder: Path) -> list[str]:
    """Measure."""
    reports = real_reports(folder)
    told = [said_by_sentence(report) for report in reports]
    samples = yaml.safe_load((HERE / "organs.yaml").read_text("utf-8"))
    sentences = [said for report in told for said in report]
    assigned = sum(bool(said.states) for said in sentences)
    share = {rule: sum(said.rule == rule and bool(said.states) for said in sentences) for rule in RULES}
    total = len(sentences)
    lines = [
        f"{len(reports)} reports, {total} sentences; {assigned / total:.1%} belong to a part or several: "
        f"{share['named'] / total:.1%} name it, {share['leaning'] / total:.1%} lean on the sentence before.",
        "",
        "| held-out sentences | | micro F1 of (sentence, part) | without error | normal, abnormal, neither |",
        "|---|---|---|---|---|",
    ]
    both: tuple[list[set[str]], list[set[str]]] = ([], [])
    for name, labels in samples.items():
        places = [tuple(map(int, key.split("."))) for key in labels]
        texts = [reports[row].sentence_text(reports[row].sentences[number]) for row, number in places]
        wanted = [set(label["parts"]) for label in labels.values()]
        found = [set(told[row][number].states) for row, number in places]
        numbers = [_first_part(text, "ct") for text in texts]
        first = [{NAMES[number - 1]} if number else set() for number in numbers]
        picks = resampled(len(places))
        agree = np.array(
            [sentence_state(t) == label["state"] for t, label in zip(texts, labels.values(), strict=True)]
        )
        states = f"{agree.mean():.3f} {interval([float(agree[d].mean()) for d in picks])}"
        lines.append(f"| {len(places)} {name} | medvl | {scored(found, wanted, picks)} | {states} |")
        lines.append(f"| | the part named first | {scored(first, wanted, picks)} | |")
        both[0].extend(found)
        both[1].extend(wanted)
    return [*lines, "", *part_rows(*both)]


def resampled(count: int) -> Int[np.ndarray, "draws rows"]:
    """Return the rows of each bootstrap resample."""
    return np.random.default_rng(0).integers(0, count, (RESAMPLES, count))


def part_rows(found: Sequence[set[str]], wanted: Sequence[set[str]]) -> list[str]:
    """Return a table with one row a part, of both samples together."""
    lines = ["| part | sentences by hand | precision | recall | F1 |", "|---|---|---|---|---|"]
    ours, theirs = hits(found, wanted)
    picks = resampled(len(found))
    for column, part in enumerate(NAMES):
        mine, right = ours[:, column : column + 1], theirs[:, column : column + 1]
        both = int((mine & right).sum())
        if right.any():
            draws = interval([f1(mine[d], right[d]) for d in picks])
            precision, recall = both / max(1, int(mine.sum())), both / int(right.sum())
            lines.append(
                f"| {part} | {right.sum()} | {precision:.2f} | {recall:.2f} | {f1(mine, right):.2f} {draws} |"
            )
    return lines


if __name__ == "__main__":
    main()
