"""Several report encoders in one table: figures, chance, and paired differences from one of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from medvl.errors import UsageError, nearest
from medvl.evaluation.bootstrap import Number
from medvl.evaluation.tables import cell, is_rank
from medvl.language.evaluate import HEADLINES, TextEvaluation, difference
from medvl.notice import NOTICE
from medvl.store import write_atomic

__all__ = ["TextComparison", "compare"]

_SECTIONS = {
    "retrieval": "Variant retrieval",
    "drop": "How far a wording moves a report (0 not at all, 1 as far as another report)",
    "error": "One error: is the right wording nearer?",
    "impression": "Findings → impression",
    "probe": "Label probe",
}


@dataclass(frozen=True)
class TextComparison:
    """Evaluations of the same trials.

    Attributes:
        evaluations: one an encoder.
        reference: the name of the one from which differences are told.
        title: of the page: which reports.
    """

    evaluations: tuple[TextEvaluation, ...]
    reference: str
    title: str = "Report encoders"

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "title": self.title,
            "reference": self.reference,
            "encoders": [evaluation.to_json() for evaluation in self.evaluations],
            "differences": {
                name: {key: number.plain() for key, number in gaps.items()}
                for name, gaps in self.differences().items()
            },
            "notice": NOTICE,
        }

    def differences(self) -> dict[str, dict[str, Number]]:
        """Return, for each other encoder, its headline figures minus those of the reference."""
        [base] = [evaluation for evaluation in self.evaluations if evaluation.name == self.reference]
        return {
            other.name: {
                key: difference(other, base, key)
                for key in HEADLINES
                if key in other.figures.samples and key in base.figures.samples
            }
            for other in self.evaluations
            if other is not base
        }

    def lines(self) -> list[str]:
        """Return the summary for people."""
        gaps = self.differences()
        lines = []
        for evaluation in self.evaluations:
            lines += evaluation.lines()[:-1]
            for key, number in gaps.get(evaluation.name, {}).items():
                lines.append(f"  {HEADLINES[key]}: {_signed(number)} against {self.reference}")
        return [*lines, NOTICE]

    def tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Return title, columns and rows of each table."""
        names = [evaluation.name for evaluation in self.evaluations]
        gaps = self.differences()
        others = [name for name in names if name != self.reference]
        found = [
            (
                f"Differences from {self.reference}, paired",
                ["figure", *others],
                [
                    [title, *(_signed(gaps[name].get(key)) for name in others)]
                    for key, title in HEADLINES.items()
                    if any(key in gaps[name] for name in others)
                ],
            )
        ]
        keys = list(dict.fromkeys(key for one in self.evaluations for key in one.figures.numbers))
        for section, title in _SECTIONS.items():
            rows = [self._row(key) for key in keys if key.split("/")[0] == section]
            if rows:
                found.append((title, ["figure", "n", "chance", *names], rows))
        return found

    def _row(self, key: str) -> list[str]:
        digits = 1 if is_rank(key.rsplit("/", 1)[-1]) else 3
        numbers = [evaluation.figures.numbers.get(key) for evaluation in self.evaluations]
        chance = next((e.figures.chance[key] for e in self.evaluations if key in e.figures.chance), None)
        return [
            key.partition("/")[2].replace("_", " ").replace("/", " · "),
            str(next(number.n for number in numbers if number is not None)),
            "" if chance is None else f"{chance:.{digits}f}",
            *(cell(number.plain() if number else None, digits=digits) for number in numbers),
        ]

    def markdown(self) -> str:
        """Return the tables as Markdown."""
        lines = [f"# {self.title}", "", f"**{NOTICE}**", "", *self._about(), ""]
        for title, columns, rows in self.tables():
            lines += [f"## {title}", "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
            lines += [f"| {' | '.join(row)} |" for row in rows]
            lines.append("")
        return "\n".join(lines)

    def html(self) -> str:
        """Return the tables as one page without any other file."""
        parts = [
            "<!doctype html><html lang='en'><meta charset='utf-8'><title>",
            escape(self.title),
            "</title><style>body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:76rem;"
            "padding:0 1rem}table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}"
            "th,td{border-bottom:1px solid #8884;padding:.25rem .7rem;text-align:left}</style>",
            f"<h1>{escape(self.title)}</h1><p><strong>{escape(NOTICE)}</strong></p>",
            *(f"<p>{escape(line)}</p>" for line in self._about()),
        ]
        for title, columns, rows in self.tables():
            parts.append(f"<h2>{escape(title)}</h2><table><tr>")
            parts += [f"<th>{escape(column)}</th>" for column in columns]
            parts.append("</tr>")
            for row in rows:
                parts.append("<tr>" + "".join(f"<td>{escape(value)}</td>" for value in row) + "</tr>")
            parts.append("</table>")
        return "".join(parts)

    def _about(self) -> list[str]:
        first = self.evaluations[0]
        data, protocol = first.data, first.protocol
        return [
            f"{data['reports']} held-out reports of {data['patients']} patients; {data['train_reports']} "
            f"training reports; {data['left_out']} held-out reports with words of training are left out. "
            f"In brackets the 95 % {protocol['interval']} ({protocol['resamples']} "
            f"resamples, seed {protocol['seed']}). {protocol['duplicates'].capitalize()}.",
            "Seen: wordings by rules that training may use. Unseen: by rules that are kept from it.",
        ]

    def write(self, out: Path) -> Path:
        """Write ``metrics.json``, ``table.md`` and ``report.html`` into a folder and return the page."""
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / "metrics.json", (json.dumps(self.to_json(), indent=1) + "\n").encode())
        write_atomic(out / "table.md", (self.markdown() + "\n").encode())
        write_atomic(out / "report.html", self.html().encode())
        return out / "report.html"


def compare(
    evaluations: Sequence[TextEvaluation], *, reference: str, title: str = "Report encoders"
) -> TextComparison:
    """Put evaluations of the same trials side by side.

    Args:
        evaluations: of two encoders or more, each with a name of its own.
        reference: name of the one that the others are compared with.
        title: of the page.

    Raises:
        UsageError: two evaluations of one name, or no evaluation has the reference's name.
    """
    names = [evaluation.name for evaluation in evaluations]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"{names.count(twice[0])} encoders are named '{twice[0]}'.", hint="Name each apart.")
    if reference not in names:
        raise UsageError(f"no encoder is named '{reference}'.", hint=nearest(reference, names))
    return TextComparison(tuple(evaluations), reference, title)


def _signed(number: Number | None) -> str:
    """Return a difference with its interval, marked where the interval leaves zero out."""
    if number is None or number.low is None or number.high is None:
        return ""
    mark = "" if number.low <= 0 <= number.high else " *"
    return f"{number.value:+.3f} ({number.low:+.3f} to {number.high:+.3f}){mark}"
