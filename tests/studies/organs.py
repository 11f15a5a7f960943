"""How well reports are parted by organ: against 200 real sentences labelled by hand, and 169 of our own.

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
from jaxtyping import Bool, Float

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
    found: Sequence[set[str]], wanted: Sequence[set[str]], picks: Float[np.ndarray, "draws rows"]
) -> str:
    """Return micro F1 and the share of sentences without error, with intervals, as two cells of a table."""
    ours, theirs = hits(found, wanted)
    exact = (ours == theirs).all(axis=1)
    draws = picks.astype(int)
    return (
        f"{f1(ours, theirs):.3f} {interval([f1(ours[d], theirs[d]) for d in draws])} | "
        f"{exact.mean():.3f} {interval([float(exact[d].mean()) for d in draws])}"
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
    labels = yaml.safe_load((HERE / "organs.yaml").read_text("utf-8"))
    places = [tuple(map(int, key.split("."))) for key in labels]
    texts = [reports[row].sentence_text(reports[row].sentences[number]) for row, number in places]
    wanted = [set(label["parts"]) for label in labels.values()]
    found = [set(told[row][number].states) for row, number in places]
    first = [{NAMES[_first_part(text, "ct") - 1]} if _first_part(text, "ct") else set() for text in texts]
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(places), (RESAMPLES, len(places))).astype(float)

    sentences = [said for report in told for said in report]
    assigned = sum(bool(said.states) for said in sentences)
    normal = [label["state"] for label in labels.values()]
    said = [sentence_state(text) for text in texts]
    agree = np.array([a == b for a, b in zip(normal, said, strict=True)])
    share = {rule: sum(said.rule == rule and bool(said.states) for said in sentences) for rule in RULES}
    total = len(sentences)
    pairs = list(zip(normal, said, strict=True))
    lines = [
        f"{len(reports)} reports, {total} sentences; {assigned / total:.1%} belong to a part or several: "
        f"{share['named'] / total:.1%} name it, {share['leaning'] / total:.1%} lean on the sentence before.",
        "",
        f"| {len(places)} held-out sentences | micro F1 of (sentence, part) | sentences without error |",
        "|---|---|---|",
        f"| medvl | {scored(found, wanted, picks)} |",
        f"| the part named first | {scored(first, wanted, picks)} |",
        "",
        f"Normal, abnormal or neither: {agree.mean():.3f} "
        f"{interval([float(agree[d].mean()) for d in picks.astype(int)])} of the sentences as by hand; "
        f"{pairs.count(('normal', 'abnormal'))} normal ones are called abnormal, "
        f"{pairs.count(('abnormal', 'normal'))} abnormal ones normal.",
        "",
        "| part | sentences by hand | precision | recall | F1 |",
        "|---|---|---|---|---|",
    ]
    ours, theirs = hits(found, wanted)
    for column, part in enumerate(NAMES):
        mine, right = ours[:, column], theirs[:, column]
        both = int((mine & right).sum())
        if not right.sum():
            continue
        draws = [f1(mine[d][:, None], right[d][:, None]) for d in picks.astype(int)]
        precision = both / max(1, int(mine.sum()))
        lines.append(
            f"| {part} | {right.sum()} | {precision:.2f} | {both / right.sum():.2f} "
            f"| {f1(mine[:, None], right[:, None]):.2f} {interval(draws)} |"
        )
    return lines


if __name__ == "__main__":
    main()
