"""Progress of long jobs: one callable that every verb takes, and the bar of the command line."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

__all__ = ["Bar", "Progress", "silent"]


@runtime_checkable
class Progress(Protocol):
    """Called as work goes on; ``message`` names the step, and a new message starts a new bar."""

    def __call__(self, done: int, total: int, message: str) -> None:
        """Say that ``done`` of ``total`` items of the step ``message`` are done."""
        ...


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """No progress: the verbs take None."""
    yield None


class Bar:
    """A progress bar on stderr; on a pipe or in a log file, one line when a step ends.

    Examples:
        >>> with Bar() as bar:
        ...     bar(1, 2, "reading")
    """

    def __enter__(self) -> Bar:
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.description:<28}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
        return self

    def __call__(self, done: int, total: int, message: str) -> None:
        """Move the bar of the step ``message``."""
        if self._bar is None:
            if done >= total and message not in self._tasks:
                self._tasks[message] = total
                sys.stderr.write(f"{message}: {total}\n")
            return
        if message not in self._tasks:
            self._tasks[message] = self._bar.add_task(message, total=total)
        self._bar.update(self._tasks[message], completed=done, total=total)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
