"""The folder of a phantom set: claimed once, written in order by a pool, described by a card."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from medvl.errors import UsageError

__all__ = ["begin", "check_numbers", "in_order", "write_json", "write_table"]

Task = TypeVar("Task")
Done = TypeVar("Done")
CARD = "phantom.json"


def check_numbers(
    *, n: int, seed: int, size_px: int, unobservable: float, workers: int | None, sizes_px: tuple[int, int]
) -> None:
    """Refuse numbers that no set can have.

    Raises:
        UsageError: one is out of its range.
    """
    low, high = sizes_px
    if n < 1:
        raise UsageError(f"n is {n}, but a set has at least 1 study.", hint="Try n=200.")
    if seed < 0:
        raise UsageError(f"seed is {seed}, but a seed is 0 or more.", hint="Try seed=0.")
    if not low <= size_px <= high:
        raise UsageError(
            f"size_px is {size_px}, but {low} to {high} can be drawn.",
            hint=f"Try size_px={min(256, high // 3)}.",
        )
    if not 0 <= unobservable <= 1:
        raise UsageError(f"unobservable is {unobservable}, but it is a share from 0 to 1.", hint="Try 0.3.")
    if workers is not None and workers < 1:
        raise UsageError(
            f"workers is {workers}, but at least 1 process draws.", hint="Leave it out for all cores."
        )


def begin(out: Path, asked: dict[str, Any], *, modality: str = "cxr") -> dict[str, Any] | None:
    """Claim the folder; return the values of its card if the same set is already there, else None.

    Raises:
        UsageError: the folder holds something else, or its card is damaged.
    """
    card = out / CARD
    if card.is_file():
        try:
            known = dict(json.loads(card.read_text("utf-8")))
        except (ValueError, TypeError, RecursionError) as error:
            raise UsageError(
                "phantom.json in the output folder is damaged.", hint="Give a new folder, or delete that one."
            ) from error
        held = known.get("modality", "cxr")
        if held != modality or {key: known.get(key) for key in asked} != asked:
            kind = "" if held == modality else f"{held}, "
            about = (
                f"{kind}seed {known.get('seed')}, level {known.get('level')}, {known.get('studies')} studies"
            )
            raise UsageError(
                f"the folder holds another phantom set ({about}).",
                hint="Give a new folder, or delete that one.",
            )
        if known.pop("complete"):
            return known
    elif out.exists() and any(out.iterdir()):
        raise UsageError(
            "the output folder is not empty and holds no phantom set.", hint="Give a new folder."
        )
    out.mkdir(parents=True, exist_ok=True)
    write_json(card, {**asked, "complete": False})
    return None


def in_order(
    work: Callable[[Task], Done], tasks: Sequence[Task], *, workers: int | None, pooled: bool
) -> Iterator[Done]:
    """Do all tasks and return their results in order, here or in a pool of processes.

    Args:
        work: a function of a module, so that another process finds it.
        tasks: what it is called with.
        workers: processes; None takes the machine's cores where ``pooled`` says that it is worth it.
        pooled: whether there is enough to do.
    """
    count = workers or (min(8, os.cpu_count() or 1) if pooled else 1)
    if count == 1:
        yield from map(work, tasks)
        return
    # fork needs no importable main module, so that a notebook or a script without a guard works
    method = "fork" if sys.platform == "linux" else "spawn"
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context(method)) as pool:
        yield from pool.map(work, tasks)


def write_table(
    path: Path, rows: Sequence[dict[str, object]] | Sequence[dict[str, str]], *, columns: Sequence[str] = ()
) -> None:
    """Write rows as CSV; ``columns`` where there may be no row."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns or rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, values: dict[str, object]) -> None:
    """Write plain values whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")
    part.replace(path)
