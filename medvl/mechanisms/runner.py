"""Runs mechanism experiments: cells of a mechanism and a seed, in processes, each kept once it is done."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from medvl.errors import UsageError, nearest
from medvl.mechanisms.claim import Mechanism
from medvl.mechanisms.report import MechanismsSummary, Row, summarise, write_report
from medvl.progress import Progress
from medvl.store.files import write_atomic

__all__ = ["CATALOGUE", "QUICK", "cell_digest", "mechanisms"]

_ROOM = "medvl.mechanisms."

CATALOGUE: dict[str, str] = {
    "C1": _ROOM + "local",
    "C2": _ROOM + "negatives",
    "C3": _ROOM + "complexity",
    "C7": _ROOM + "backdoor",
    "C12": _ROOM + "symile_xor",
    "C13": _ROOM + "merging",
    "C15": _ROOM + "lora",
    "P1": _ROOM + "imageonly",
}
"""Module of each mechanism; each has a ``MECHANISM``."""

QUICK = ("C1", "C2", "C3", "C7", "C12")
"""What a quick run measures unless asked for more."""

_SEEDS, _QUICK_SEEDS = 5, 3


@dataclass(frozen=True)
class _Cell:
    key: str
    module: str
    seed: int
    quick: bool

    def path(self, out: Path) -> Path:
        """Where its numbers lie; the name changes with whatever could change them."""
        size = "quick" if self.quick else "full"
        return out / "cells" / f"{self.key}-{self.seed}-{size}-{cell_digest(self.module)}.json"


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
    cells = [_Cell(key, catalogue[key], seed, quick) for seed in range(count) for key in keys]
    begun = time.monotonic()
    failures = _measure(cells, out, workers=workers, progress=progress)
    rows: list[Row] = []
    for key in keys:
        of_key = [cell for cell in cells if cell.key == key]
        done = [json.loads(cell.path(out).read_text("utf-8")) for cell in of_key if cell not in failures]
        errors = [f"seed {cell.seed}: {failures[cell]}" for cell in of_key if cell in failures]
        rows.append(summarise(key, _load(catalogue[key]), done, errors))
    summary = MechanismsSummary(
        out=out,
        rows=tuple(rows),
        quick=quick,
        seeds=count,
        wall_s=time.monotonic() - begun,
        machine=_machine(),
    )
    write_report(summary)
    return summary


def cell_digest(module: str) -> str:
    """Return a digest of the code of an experiment and of the modules of this room that it imports.

    Comments, docstrings and the ``MECHANISM`` that words the claim are left out: they change no number.
    """
    digest = hashlib.sha256()
    todo, seen = [module], {module}
    while todo:
        name = todo.pop(0)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            return "missing"
        tree = ast.parse(Path(spec.origin).read_text("utf-8"))
        tree.body = [node for node in tree.body if not _names(node, "MECHANISM")]
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                node.body = [part for part in body if not _is_text(part)]  # type: ignore[attr-defined]
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_ROOM):
                if node.module not in seen and node.module != _ROOM + "claim":
                    todo.append(str(node.module))
                    seen.add(str(node.module))
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:12]


def _names(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.Assign) and any(
        isinstance(t, ast.Name) and t.id == name for t in node.targets
    )


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _wanted(only: Sequence[str], *, quick: bool, catalogue: Mapping[str, str]) -> list[str]:
    for key in only:
        if key not in catalogue:
            raise UsageError(f"unknown mechanism '{key}'.", hint=nearest(key, catalogue))
    if only:
        return [key for key in catalogue if key in only]
    return [key for key in catalogue if key in QUICK or not quick]


def _load(module: str) -> Mechanism | None:
    """Return the experiment of a module, or None where there is no such module."""
    if importlib.util.find_spec(module) is None:
        return None
    mechanism: Mechanism = importlib.import_module(module).MECHANISM
    return mechanism


def _measure(
    cells: Sequence[_Cell], out: Path, *, workers: int, progress: Progress | None
) -> dict[_Cell, str]:
    """Measure the cells that are not there yet; return what went wrong in those that failed."""
    todo = [cell for cell in cells if not cell.path(out).is_file()]
    failures: dict[_Cell, str] = {}
    done = len(cells) - len(todo)
    if progress is not None:
        progress(done, len(cells), "cells")
    pool = ThreadPoolExecutor(workers)
    try:
        futures = {pool.submit(_keep, cell, out): cell for cell in todo}
        for future in as_completed(futures):
            error = future.exception()
            if error is not None:
                failures[futures[future]] = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            done += 1
            if progress is not None:
                progress(done, len(cells), "cells")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return failures


def _keep(cell: _Cell, out: Path) -> None:
    """Measure one cell in a process of its own, so that its crash, memory and processor time are its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_one_thread) as process:
        record = process.submit(_run, cell).result()
    text = json.dumps({"key": cell.key, "seed": cell.seed, "quick": cell.quick, **record}, indent=1)
    write_atomic(cell.path(out), (text + "\n").encode())


def _one_thread() -> None:
    """Before torch is imported: two processes of two threads each fight over two cores."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"


def _run(cell: _Cell) -> dict[str, Any]:
    """Measure one cell, in a process of its own."""
    mechanism = _load(cell.module)
    if mechanism is None:
        raise UsageError(f"mechanism {cell.key} has no module {cell.module}.")
    wall, cpu = time.monotonic(), time.process_time()
    values = mechanism.run(cell.seed, quick=cell.quick)
    return {
        "values": {name: float(value) for name, value in values.items()},
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.monotonic() - wall,
        "machine": _machine(),
    }


def _machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
    }
