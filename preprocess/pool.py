"""Chunks through a process pool, so that one file that kills its worker costs one record."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

from medvl.errors import MedvlError, StoreError
from medvl.preprocess.chunks import Chunk, Task, prepare_chunk, start_worker

__all__ = ["run_chunks"]

_STILLBORN = 3
"""So many pools in a row may die before a job begins; then something else than a file is wrong."""


@dataclass
class _Todo:
    chunk: Chunk
    poison: dict[int, str] = field(default_factory=dict)


def run_chunks(chunks: Sequence[Chunk], *, task: Task, workers: int, done: Callable[[Chunk], None]) -> None:
    """Prepare every chunk; ``done`` is called as each one is finished.

    A worker that dies takes the whole pool with it, so the jobs that were under way are suspects.
    Each of their chunks is done again alone in a pool of one; a job that kills that one too is left
    out from then on and recorded as a failure. An exception that no rule foresees counts as a crash.

    Raises:
        StoreError: the store cannot be written, or workers die before they begin.
    """
    together = deque(_Todo(chunk) for chunk in chunks)
    alone: deque[_Todo] = deque()
    stillborn = 0
    while together or alone:
        single = bool(alone)
        batch = deque([alone.popleft()]) if single else together
        again: list[_Todo] = []
        moved = False
        for todo, error in _finished(batch, task=task, workers=1 if single else workers):
            place = _place(task, todo.chunk)
            if error is None:
                done(todo.chunk)
            elif isinstance(error, MedvlError):
                raise error
            elif place is None:  # not begun: innocent
                again.append(todo)
                continue
            elif single or not isinstance(error, BrokenProcessPool):
                crashed = isinstance(error, BrokenProcessPool)
                todo.poison[place] = "a crash of its process" if crashed else type(error).__name__
                alone.appendleft(todo)
            else:
                alone.append(todo)
            moved = True
        together.extend(again)
        stillborn = 0 if moved else stillborn + 1
        if stillborn == _STILLBORN:
            raise StoreError(
                "the worker processes die before they read a file.",
                hint="See private/workers.log in the output folder; fewer workers need less memory.",
            )


def _finished(
    batch: deque[_Todo], *, task: Task, workers: int
) -> Iterator[tuple[_Todo, BaseException | None]]:
    """Yield chunks as they end, with what stopped them; return early when the pool is broken."""
    with _pool(task, workers=workers) as pool:
        flying: dict[Future[None], _Todo] = {}
        while batch or flying:
            while batch and len(flying) < workers + 1:
                todo = batch.popleft()
                task.current(todo.chunk).unlink(missing_ok=True)
                flying[_submit(pool, task, todo)] = todo
            finished, _ = concurrent.futures.wait(flying, return_when=concurrent.futures.FIRST_COMPLETED)
            broken = False
            for future in finished:
                error = future.exception()
                broken |= isinstance(error, BrokenProcessPool)
                yield flying.pop(future), error
            if broken:
                for future, todo in flying.items():
                    yield todo, future.exception()
                return


def _submit(pool: ProcessPoolExecutor, task: Task, todo: _Todo) -> Future[None]:
    # A worker inherits the mask: Ctrl-C on the terminal reaches the parent alone.
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(prepare_chunk, task, todo.chunk, todo.poison)
    except BrokenProcessPool as error:
        failed: Future[None] = Future()
        failed.set_exception(error)
        return failed
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


@contextlib.contextmanager
def _pool(task: Task, *, workers: int) -> Iterator[ProcessPoolExecutor]:
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=start_worker,
        initargs=(task.out / "private" / "workers.log",),
    )
    try:
        yield pool
    except BaseException:
        for process in list((pool._processes or {}).values()):  # a chunk is atomic: nothing to roll back
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _place(task: Task, chunk: Chunk) -> int | None:
    try:
        return int(task.current(chunk).read_text("ascii"))
    except (OSError, ValueError):
        return None
