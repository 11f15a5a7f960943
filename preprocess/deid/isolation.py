"""Work on files in processes, so that one that kills its process costs one file and never the run."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

__all__ = ["in_processes"]

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_processes(
    work: Callable[[Task], Result], tasks: Sequence[Task], *, workers: int, crashed: Result
) -> Iterator[tuple[int, Result]]:
    """Yield the place of each task with its result, in any order.

    Whatever was under way when a process died runs again, each task in a process of its own, so the one
    that kills is told from those that stood beside it.

    Args:
        work: a function that can be pickled.
        tasks: its arguments.
        workers: processes; with 1 everything runs in this one, without protection.
        crashed: the result of a task that ends its process.
    """
    if workers == 1 or len(tasks) < 2:
        yield from ((place, work(task)) for place, task in enumerate(tasks))
        return
    suspects: list[int] = []
    for place, results in _together(work, tasks, workers=workers):
        if results is None:
            suspects.append(place)
        else:
            yield place, results[0]
    for place in suspects:
        for _, results in _together(work, [tasks[place]], workers=1):
            yield place, crashed if results is None else results[0]


def _together(
    work: Callable[[Task], Result], tasks: Sequence[Task], *, workers: int
) -> Iterator[tuple[int, tuple[Result] | None]]:
    """Yield a tuple of one result for each task, None for those that a dead process took along."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start) as pool:
        futures: dict[concurrent.futures.Future[Result], int] = {}
        try:
            for place, task in enumerate(tasks):
                futures[pool.submit(work, task)] = place
        except BrokenProcessPool:
            yield from ((place, None) for place in range(len(futures), len(tasks)))
        for future in concurrent.futures.as_completed(futures):
            try:
                yield futures[future], (future.result(),)
            except BrokenProcessPool:
                yield futures[future], None


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C on the terminal is the parent's to handle
