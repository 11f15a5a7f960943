"""The cells of a run: one mechanism on one seed, measured in a process of its own and kept in a file."""

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
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from medvl.errors import UsageError
from medvl.mechanisms.claim import Mechanism
from medvl.progress import Progress
from medvl.store.files import write_atomic

__all__ = ["ROOM", "Cell", "cell_digest", "load", "machine", "measure"]

ROOM = "medvl.mechanisms."


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        key: of the mechanism.
        module: that holds it.
        digest: of the module's code; see :func:`cell_digest`.
        seed: of everything random.
        quick: whether at the smaller size.
    """

    key: str
    module: str
    digest: str
    seed: int
    quick: bool

    def path(self, out: Path) -> Path:
        """Where its numbers lie; the name changes with whatever could change them."""
        size = "quick" if self.quick else "full"
        return out / "cells" / f"{self.key}-{self.seed}-{size}-{self.digest}.json"


def load(module: str) -> Mechanism | None:
    """Return the experiment of a module, or None where there is no such module."""
    if importlib.util.find_spec(module) is None:
        return None
    mechanism: Mechanism = importlib.import_module(module).MECHANISM
    return mechanism


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
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(ROOM):
                if node.module not in seen and node.module != ROOM + "claim":
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


def measure(cells: Sequence[Cell], out: Path, *, workers: int, progress: Progress | None) -> dict[Cell, str]:
    """Measure the cells that are not there yet; return what went wrong in those that failed."""
    todo = [cell for cell in cells if not cell.path(out).is_file()]
    failures: dict[Cell, str] = {}
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


def _keep(cell: Cell, out: Path) -> None:
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


def _run(cell: Cell) -> dict[str, Any]:
    """Measure one cell, in a process of its own."""
    mechanism = load(cell.module)
    if mechanism is None:
        raise UsageError(f"mechanism {cell.key} has no module {cell.module}.")
    wall, cpu = time.monotonic(), time.process_time()
    values = mechanism.run(cell.seed, quick=cell.quick)
    return {
        "values": {name: float(value) for name, value in values.items()},
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.monotonic() - wall,
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """Say what the numbers were measured on."""
    return {
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
    }
