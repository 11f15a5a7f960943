"""Runs mechanism experiments and writes what they show; a run that was stopped goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from medvl.errors import UsageError, nearest
from medvl.mechanisms.cells import ROOM, Cell, cell_digest, load, machine, measure
from medvl.mechanisms.report import MechanismsSummary, Row, summarise, write_report
from medvl.progress import Progress

__all__ = ["CATALOGUE", "QUICK", "mechanisms"]

CATALOGUE: dict[str, str] = {
    "C1": ROOM + "local",
    "C2": ROOM + "negatives",
    "C3": ROOM + "complexity",
    "C7": ROOM + "backdoor",
    "C12": ROOM + "symile_xor",
    "C13": ROOM + "merging",
    "C15": ROOM + "lora",
    "P1": ROOM + "imageonly",
}
"""Module of each mechanism; each has a ``MECHANISM``."""

QUICK = ("C1", "C2", "C3", "C7", "C12")
"""What a quick run measures unless asked for more."""

_SEEDS, _QUICK_SEEDS, _FIRST_SEED = 5, 3, 0


def mechanisms(
    out: Path,
    *,
    quick: bool = False,
    only: Sequence[str] = (),
    seeds: int | None = None,
    workers: int = 2,
    progress: Progress | None = None,
    catalogue: Mapping[str, str] = CATALOGUE,
) -> MechanismsSummary:
    """Measure which claimed effects appear here, and write a table, a page and every number.

    The numbers of a cell are kept under ``out/cells`` as soon as it ends, so a killed run goes on where it
    was, and cells may be measured piecemeal with ``only`` and ``seeds``. A cell is measured again when the
    code of its experiment has changed. A failed cell is shown as one, and is tried again by the next call.

    Args:
        out: folder of ``mechanisms.md``, ``mechanisms.html``, ``mechanisms.json`` and ``cells``.
        quick: three seeds of the quick set at smaller sizes, instead of five seeds of everything.
        only: keys of mechanisms, such as ``C1``; of the quick set or of everything without.
        seeds: how many seeds, counted from 0.
        workers: processes, one thread each.
        progress: told of each cell that ends.
        catalogue: module of each key.

    Raises:
        UsageError: an unknown key, or fewer than one seed or worker.
    """
    keys = _wanted(only, quick=quick, catalogue=catalogue)
    count = seeds if seeds is not None else (_QUICK_SEEDS if quick else _SEEDS)
    if count < 1 or workers < 1:
        raise UsageError(f"seeds is {count} and workers {workers}.", hint="Allowed: 1 or more of each.")
    (out / "cells").mkdir(parents=True, exist_ok=True)
    digests = {key: cell_digest(catalogue[key]) for key in keys}
    cells = [
        Cell(key, catalogue[key], digests[key], seed, quick)
        for seed in range(_FIRST_SEED, _FIRST_SEED + count)
        for key in keys
    ]
    begun = time.monotonic()
    failures = measure(cells, out, workers=workers, progress=progress)
    rows: list[Row] = []
    for key in keys:
        of_key = [cell for cell in cells if cell.key == key]
        done = [json.loads(cell.path(out).read_text("utf-8")) for cell in of_key if cell not in failures]
        errors = [f"seed {cell.seed}: {failures[cell]}" for cell in of_key if cell in failures]
        rows.append(summarise(key, load(catalogue[key]), done, errors))
    summary = MechanismsSummary(
        out=out,
        rows=tuple(rows),
        quick=quick,
        seeds=count,
        wall_s=time.monotonic() - begun,
        machine=machine(),
    )
    write_report(summary)
    return summary


def _wanted(only: Sequence[str], *, quick: bool, catalogue: Mapping[str, str]) -> list[str]:
    for key in only:
        if key not in catalogue:
            raise UsageError(f"unknown mechanism '{key}'.", hint=nearest(key, catalogue))
    if only:
        return [key for key in catalogue if key in only]
    return [key for key in catalogue if key in QUICK or not quick]
