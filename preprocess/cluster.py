"""Chunks through a Dask cluster whose machines share the source and the output folder."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from medvl.errors import UsageError
from medvl.preprocess.plan import Task
from medvl.version import VERSION

__all__ = ["DaskCluster", "connected"]

_SECONDS = 20
"""How long the scheduler may take to answer."""


class DaskCluster:
    """The workers of a running Dask scheduler; see :class:`medvl.preprocess.pool.Engine`.

    Args:
        client: a connected ``distributed.Client``; the package is imported only when it is asked for.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    @property
    def room(self) -> int:
        """One chunk more than the cluster has threads; it may grow while the run goes on."""
        return sum(self._client.nthreads().values()) + 1

    @property
    def crash(self) -> type[BaseException]:
        """What a task ends with after its worker, and those that tried again, died."""
        from distributed.scheduler import KilledWorker

        return KilledWorker

    @contextlib.contextmanager
    def executor(self, task: Task, *, alone: bool) -> Iterator[Executor]:
        """Open the cluster for a while; a chunk that is under way when the block ends is cancelled."""
        pool = self._client.get_executor(pure=False, retries=0)
        try:
            yield pool
        finally:
            pool.shutdown(wait=False)


@contextlib.contextmanager
def connected(scheduler: str, *, folders: tuple[Path, ...]) -> Iterator[DaskCluster]:
    """Connect to a scheduler and see that its workers can do the work.

    Args:
        scheduler: its address, for example ``tcp://node1:8786``.
        folders: what every worker must find under the same absolute path.

    Raises:
        UsageError: no answer, no worker, another version of medvl there, or a folder that a worker lacks.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError(
            "--scheduler needs the package distributed, which is not installed.",
            hint="pip install 'medvl[cluster]' here and on the workers.",
        ) from error
    try:
        client = Client(scheduler, timeout=_SECONDS, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise UsageError(
            f"the scheduler '{scheduler}' does not answer within {_SECONDS} s.",
            hint="Give an address such as tcp://node1:8786; 'dask scheduler' prints it when it starts.",
        ) from error
    with client:
        told = client.run(_examine, [str(folder.resolve()) for folder in folders])
        if not told:
            raise UsageError(
                f"the scheduler '{scheduler}' has no worker.", hint=f"Start some: dask worker {scheduler}"
            )
        versions = {version for version, _ in told.values()} - {VERSION}
        if versions:
            raise UsageError(
                f"the workers run medvl {', '.join(sorted(versions))}; this is medvl {VERSION}.",
                hint="Install the same version on every machine.",
            )
        without = sum(not found for _, found in told.values())
        if without:
            raise UsageError(
                f"{without} of {len(told)} workers do not find the source or the output folder.",
                hint="Both must lie on a file system that all machines mount under the same path.",
            )
        yield DaskCluster(client)


def _examine(folders: list[str]) -> tuple[str, bool]:
    """Run on each worker: its version, whether it finds the folders; then let readers be silent there."""
    warnings.filterwarnings("ignore", module="pydicom")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    return VERSION, all(os.path.isdir(folder) for folder in folders)  # noqa: PTH112  (strings cross the wire)
