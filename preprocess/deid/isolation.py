"""Work on files in processes, so that one that kills its process costs one file and never the run."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from typing import TypeVar

__all__ = ["in_processes"]

_AHEAD = 3
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
    places = iter(range(len(tasks)))
    suspects: list[int] = []
    while (first := next(places, None)) is not None:
        for place, results in _together(work, tasks, chain([first], places), workers=workers):
            if results is None:
                suspects.append(place)
            else:
                yield place, results[0]
    for place in suspects:
        for _, results in _together(work, tasks, iter([place]), workers=1):
            yield place, crashed if results is None else results[0]


def _together(
    work: Callable[[Task], Result], tasks: Sequence[Task], places: Iterator[int], *, workers: int
) -> Iterator[tuple[int, tuple[Result] | None]]:
    """Yield a tuple of one result for each place, None for those that a dead process took along.

    Few tasks are under way at a time, so few are suspected; those after them are left in ``places``.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start) as pool:
        futures: dict[concurrent.futures.Future[Result], int] = {}
        broken = False
        while True:
            while (
                not broken and len(futures) < _AHEAD * workers and (place := next(places, None)) is not None
            ):
                try:
                    futures[pool.submit(work, tasks[place])] = place
                except BrokenProcessPool:
                    broken = True
                    yield place, None
            if not futures:
                return
            done, _ = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                try:
                    yield futures[future], (future.result(),)
                except BrokenProcessPool:
                    broken = True
                    yield futures[future], None
                del futures[future]


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C on the terminal is the parent's to handle
