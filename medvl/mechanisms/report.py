"""The result of a run of experiments: values, a Markdown page, an HTML page with a dot for each seed."""

from __future__ import annotations

import html
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from medvl.mechanisms.claim import Mechanism
from medvl.mechanisms.judge import Judged, judge, overall
from medvl.notice import NOTICE
from medvl.store.files import write_atomic

__all__ = ["MechanismsSummary", "Row", "summarise", "write_report"]

FAILED = "failed"


@dataclass(frozen=True)
class Row:
    """One mechanism over its seeds.

    Attributes:
        key: its short name.
        mechanism: what it is; None where its module is missing.
        verdict: of :func:`medvl.mechanisms.judge.overall`, or ``failed`` where a cell is missing.
        judged: its effects, over the seeds that ended.
        runs: the numbers of each seed.
        seeds: of ``runs``.
        errors: what went wrong, by seed.
        cpu_s: processor time of all its cells.
    """

    key: str
    mechanism: Mechanism | None
    verdict: str
    judged: tuple[Judged, ...]
    runs: tuple[Mapping[str, float], ...]
    seeds: tuple[int, ...]
    errors: tuple[str, ...]
    cpu_s: float


@dataclass(frozen=True)
class MechanismsSummary:
    """What a run measured.

    Attributes:
        out: its folder.
        rows: one a mechanism.
        quick: whether it was the smaller one.
        seeds: how many.
        wall_s: time of this call, which measures only the cells that were not there yet.
        machine: where.
    """

    out: Path
    rows: tuple[Row, ...]
    quick: bool
    seeds: int
    wall_s: float
    machine: Mapping[str, Any]

    @property
    def exit_code(self) -> int:
        """3 where a cell failed, else 0: an effect that does not appear is a result."""
        return 3 if any(row.errors for row in self.rows) else 0

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "notice": NOTICE,
            "quick": self.quick,
            "seeds": self.seeds,
            "wall_s": round(self.wall_s, 1),
            "cpu_s": round(sum(row.cpu_s for row in self.rows), 1),
            "machine": dict(self.machine),
            "mechanisms": [_plain(row) for row in self.rows],
        }

    def lines(self) -> list[str]:
        """Return the text of the command."""
        text = []
        for row in self.rows:
            title = row.mechanism.title if row.mechanism else "no such module"
            text.append(f"{row.key:<4}{row.verdict:<15} {title}  ({row.cpu_s / 60:.1f} CPU-min)")
            text += [f"      {_effect_line(one)}" for one in row.judged]
            text += [f"      failed: {error}" for error in row.errors]
        return [*text, f"page: {self.out / 'mechanisms.html'}", NOTICE]


def summarise(
    key: str, mechanism: Mechanism | None, cells: Sequence[Mapping[str, Any]], errors: Sequence[str]
) -> Row:
    """Judge the effects of one mechanism by its cells; one that failed is never hidden."""
    runs = tuple(cell["values"] for cell in cells)
    judged = tuple(judge(effect, runs) for effect in mechanism.effects) if mechanism and runs else ()
    verdict = FAILED if errors or mechanism is None or not runs else overall(mechanism, judged)
    return Row(
        key,
        mechanism,
        verdict,
        judged,
        runs,
        tuple(int(cell["seed"]) for cell in cells),
        tuple(errors),
        sum(float(cell["cpu_s"]) for cell in cells),
    )


def write_report(summary: MechanismsSummary) -> None:
    """Write ``mechanisms.json``, ``mechanisms.md`` and ``mechanisms.html`` into the folder of the run."""
    plain = json.dumps(summary.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    for name, text in (
        ("mechanisms.json", plain + "\n"),
        ("mechanisms.md", _markdown(summary)),
        ("mechanisms.html", _page(summary)),
    ):
        write_atomic(summary.out / name, text.encode())


def _plain(row: Row) -> dict[str, Any]:
    mechanism = row.mechanism
    return {
        "key": row.key,
        "title": mechanism.title if mechanism else "",
        "claim": mechanism.claim if mechanism else "",
        "source": mechanism.source if mechanism else "",
        "verdict": row.verdict,
        "errors": list(row.errors),
        "cpu_s": round(row.cpu_s, 1),
        "effects": [
            {
                "name": one.effect.name,
                "after": one.effect.after,
                "before": one.effect.before,
                "wanted": one.effect.wanted,
                "slack": one.effect.slack,
                "main": one.effect.main,
                "values": list(one.values),
                "mean": one.mean,
                "low": one.low,
                "high": one.high,
                "right": one.right,
                "sign_p": one.sign_p,
                "verdict": one.verdict,
            }
            for one in row.judged
        ],
        "runs": {str(seed): dict(run) for seed, run in zip(row.seeds, row.runs, strict=True)},
    }


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:+.3f}"


def _interval(one: Judged) -> str:
    return "–" if one.low is None else f"{_number(one.low)} … {_number(one.high)}"


def _sign(one: Judged) -> str:
    shown = "" if one.sign_p is None else f" (p = {one.sign_p:.3f})"
    return f"{one.right}/{len(one.values)}{shown}"


def _wanted(one: Judged) -> str:
    slack = f" ± {one.effect.slack:g}" if one.effect.slack else ""
    return {"up": "> 0", "down": "< 0", "none": "0"}[one.effect.wanted] + slack


def _effect_line(one: Judged) -> str:
    return (
        f"{one.effect.name}: {_number(one.mean)} [{_interval(one)}], {_sign(one)} seeds right: {one.verdict}"
    )


def _effect_rows(row: Row) -> Iterable[list[str]]:
    for one in row.judged:
        name = one.effect.name if one.effect.main else f"{one.effect.name} (beside)"
        yield [name, _wanted(one), _number(one.mean), _interval(one), _sign(one), one.verdict]


_HEAD = ["effect", "claimed", "mean", "95 % interval", "seeds right", "verdict"]


def _setting(summary: MechanismsSummary) -> str:
    machine = summary.machine
    cpu = sum(row.cpu_s for row in summary.rows) / 60
    return (
        f"{'Quick' if summary.quick else 'Full'} run, {summary.seeds} seeds each; {cpu:.0f} CPU-minutes in "
        f"all, {machine['cores']} cores, torch {machine['torch']}, Python {machine['python']}."
    )


_HOW = (
    "A mechanism is called *reproduced* if, for each effect that carries its verdict, every seed has the "
    "claimed sign and the mean is more than two standard errors away from none; *direction only* if the mean "
    "has the sign; else *not reproduced*. Intervals are Student's t over seeds; p is of the one-sided sign "
    "test. Effects marked (beside) are shown and carry no verdict."
)


def _markdown(summary: MechanismsSummary) -> str:
    command = "medvl mechanisms OUT" + (" --quick" if summary.quick else "")
    text = [
        "# Mechanisms",
        "",
        f"> {NOTICE} Drawn phantoms and digits carry no clinical meaning.",
        "",
        "Small experiments that show, or fail to show, on two processor cores the effects that methods "
        f"claim. `{command}` wrote this page as `OUT/mechanisms.md`, beside `mechanisms.html` and "
        "`mechanisms.json`.",
        "",
        _setting(summary),
        "",
        _HOW,
        "",
        *_table(["", "mechanism", *_HEAD, "the paper's claim", "CPU-min"], _overview(summary)),
    ]
    for row in summary.rows:
        text += ["", *_section(row)]
    return "\n".join(text) + "\n"


def _overview(summary: MechanismsSummary) -> Iterable[list[str]]:
    for row in summary.rows:
        title, claim = (row.mechanism.title, row.mechanism.claim) if row.mechanism else ("", "")
        cpu = f"{row.cpu_s / 60:.1f}"
        main = [one for one in row.judged if one.effect.main]
        if not main:
            yield [row.key, title, "–", "–", "–", "–", "–", f"**{row.verdict}**", claim, cpu]
        for place, one in enumerate(main):
            first = place == 0
            cells = [one.effect.name, _wanted(one), _number(one.mean), _interval(one), _sign(one)]
            verdict = f"**{row.verdict}**" if first else ""
            start = [row.key, title] if first else ["", ""]
            yield [*start, *cells, verdict, *([claim, cpu] if first else ["", ""])]


def _section(row: Row) -> list[str]:
    if row.mechanism is None:
        return [f"## {row.key}", "", *(f"- failed, {error}" for error in row.errors)]
    mechanism = row.mechanism
    text = [
        f"## {row.key}: {mechanism.title}",
        "",
        f"**Claim.** {mechanism.claim} ({mechanism.source})",
        "",
        f"**Setting.** {mechanism.setting}",
        "",
        f"**Verdict.** {row.verdict}.",
    ]
    text += ["", *(f"- failed, {error}" for error in row.errors)] if row.errors else []
    if row.judged:
        text += ["", *_table(_HEAD, _effect_rows(row))]
        names = list(row.runs[0])
        header = ["measured", *(f"seed {seed}" for seed in row.seeds), "mean"]
        text += ["", *_table(header, (_measured(row, name) for name in names))]
    if mechanism.tried:
        text += ["", f"**Tried, and what this does not show.** {mechanism.tried}"]
    return text


def _measured(row: Row, name: str) -> list[str]:
    values = [run[name] for run in row.runs]
    return [name, *(f"{value:.3f}" for value in values), f"{sum(values) / len(values):.3f}"]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(head), "|" + " --- |" * len(head), *(line(row) for row in rows)]


_CSS = """
:root { color-scheme: light dark; --ink: light-dark(#1b2430, #e8edf2); --soft: light-dark(#5d6b7a, #9aa8b6);
  --paper: light-dark(#fff, #12171d); --line: light-dark(#dde3e9, #2b343e); }
body { margin: 0 auto; max-width: 1120px; padding: 2rem 1.25rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th, .soft { color: var(--soft); font-weight: 400; } .scroll { overflow-x: auto; }
svg { width: 100%; max-width: 900px; height: auto; } h2 { margin-top: 2.2rem; }
"""


def _page(summary: MechanismsSummary) -> str:
    def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
        top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell).replace('**', '')}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'

    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>medvl mechanisms</title>",
        f"<style>{_CSS}</style><h1>Mechanisms</h1><p class='soft'>{html.escape(NOTICE)}</p>",
        f"<p>{html.escape(_setting(summary))}</p><p class='soft'>{html.escape(_HOW).replace('*', '')}</p>",
        f"<figure>{_dots(summary)}</figure>",
        table(["", "mechanism", *_HEAD, "the paper's claim", "CPU-min"], _overview(summary)),
    ]
    for row in summary.rows:
        parts.append(f"<h2>{row.key}: {html.escape(row.mechanism.title if row.mechanism else '')}</h2>")
        parts += [f"<p>failed, {html.escape(error)}</p>" for error in row.errors]
        if row.mechanism is not None:
            for name, text in (("Claim", row.mechanism.claim), ("Setting", row.mechanism.setting)):
                parts.append(f"<p><b>{name}.</b> {html.escape(text)}</p>")
        if row.judged:
            parts.append(table(_HEAD, _effect_rows(row)))
    return "\n".join(parts) + "</html>\n"


def _dots(summary: MechanismsSummary) -> str:
    """Draw a dot for each seed and a bar for the mean of each effect that carries a verdict."""
    shown = [(row, one) for row in summary.rows for one in row.judged if one.effect.main]
    if not shown:
        return ""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "medvl", "font.size": 9}):
        figure = Figure(figsize=(9, 0.6 + 0.42 * len(shown)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color="#808080", linewidth=0.8)
        for place, (_, one) in enumerate(shown):
            colour = "#3a9d6e" if one.verdict == "reproduced" else "#c8a415"
            colour = "#c2473d" if one.verdict == "not reproduced" else colour
            if one.low is not None and one.high is not None:
                axes.plot([one.low, one.high], [place, place], color=colour, linewidth=4, alpha=0.3)
            axes.plot(one.values, [place] * len(one.values), "o", color=colour, markersize=5, alpha=0.8)
            axes.plot([one.mean], [place], "|", color=colour, markersize=16, markeredgewidth=2)
        axes.set_yticks(range(len(shown)), [f"{row.key}  {one.effect.name}" for row, one in shown])
        axes.invert_yaxis()
        axes.set_xlabel("effect: one dot a seed, the mean and its 95 % interval")
        axes.spines[["top", "right", "left"]].set_visible(False)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    # The page's own ink, so that labels can be read on a dark page.
    return svg[svg.index("<svg") :].replace("<svg ", '<svg fill="currentColor" ', 1)
