"""Chunks through an engine of workers, so that one file that kills its worker costs one record."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from medvl.errors import MedvlError, StoreError
from medvl.preprocess.chunks import prepare_chunk, start_worker
from medvl.preprocess.plan import Chunk, Task

__all__ = ["Engine", "ProcessPool", "Unforeseen", "run_chunks"]

_STILLBORN = 3
"""So many pools in a row may die before a job begins; then something else than a file is wrong."""


@runtime_checkable
class Engine(Protocol):
    """What does the chunks: processes of this machine, or a cluster. The plan lies outside of it."""

    @property
    def room(self) -> int:
        """How many chunks may be under way."""
        ...

    @property
    def crash(self) -> type[BaseException]:
        """The exception that tells of a dead worker."""
        ...

    def executor(self, task: Task, *, alone: bool) -> AbstractContextManager[Executor]:
        """Open the workers; ``alone`` asks for one, so that a crash has one suspect."""
        ...


class Unforeseen(RuntimeError):
    """An exception that no rule foresees, by the name of its type: its own words may quote a file."""


@dataclass
class _Todo:
    chunk: Chunk
    poison: dict[int, str] = field(default_factory=dict)


def run_chunks(chunks: Sequence[Chunk], *, task: Task, engine: Engine, done: Callable[[Chunk], None]) -> None:
    """Prepare every chunk; ``done`` is called as each one is finished.

    A worker that dies may take others with it, so the jobs that were under way are suspects.
    Each of their chunks is done again alone; a job that kills that one too is left
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
        for todo, error in _finished(batch, task=task, engine=engine, alone=single):
            place = _place(task, todo.chunk)
            if error is None:
                done(todo.chunk)
            elif isinstance(error, MedvlError):
                raise error
            elif place is None:  # not begun: innocent
                again.append(todo)
                continue
            elif single or not isinstance(error, engine.crash):
                todo.poison[place] = str(error) if isinstance(error, Unforeseen) else "a crash of its process"
                alone.appendleft(todo)
            else:
                alone.append(todo)
            moved = True
        together.extend(again)
        stillborn = 0 if moved else stillborn + 1
        if stillborn == _STILLBORN:
            raise StoreError(
                "the worker processes die before they read a file.",
                hint="See private/workers.log in the output folder. A script calls prepare under "
                "if __name__ == '__main__'; fewer workers need less memory.",
            )


def _finished(
    batch: deque[_Todo], *, task: Task, engine: Engine, alone: bool
) -> Iterator[tuple[_Todo, BaseException | None]]:
    """Yield chunks as they end, with what stopped them; return early when the pool is broken."""
    room = 1 if alone else engine.room
    with engine.executor(task, alone=alone) as pool:
        flying: dict[Future[None], _Todo] = {}
        while batch or flying:
            while batch and len(flying) < room:
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


def _submit(pool: Executor, task: Task, todo: _Todo) -> Future[None]:
    # A worker inherits the mask: Ctrl-C on the terminal reaches the parent alone.
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(_prepare, task, todo.chunk, todo.poison)
    except BrokenProcessPool as error:
        failed: Future[None] = Future()
        failed.set_exception(error)
        return failed
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _prepare(task: Task, chunk: Chunk, poison: Mapping[int, str]) -> None:
    try:
        prepare_chunk(task, chunk, poison)
    except MedvlError:
        raise
    except Exception as error:  # noqa: BLE001  (engines log what a task raises; its words may quote a file)
        raise Unforeseen(type(error).__name__) from None


@dataclass(frozen=True)
class ProcessPool:
    """Processes of this machine."""

    workers: int

    @property
    def room(self) -> int:
        """One chunk more than workers waits in line."""
        return self.workers + 1

    @property
    def crash(self) -> type[BaseException]:
        """A dead worker breaks the pool."""
        return BrokenProcessPool

    @contextlib.contextmanager
    def executor(self, task: Task, *, alone: bool) -> Iterator[Executor]:
        """Start the processes; whatever ends the block ends them."""
        pool = ProcessPoolExecutor(
            1 if alone else self.workers,
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
