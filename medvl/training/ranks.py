"""The other processes of a run on several devices of one machine: started, watched and ended by the first.

Lightning would start the whole command again on each device, with its messages and its checks of the output
folder. Here the first process alone claims the folder and speaks; the others get recipe and paths and train.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import IO, Any

from lightning.fabric.plugins.environments import ClusterEnvironment

from medvl.errors import ConfigError

__all__ = ["Rank", "join", "other_ranks", "say_ready"]

READY = "ready"
PATIENCE = 60.0
"""Seconds that the others have to end after the first."""


class Rank(ClusterEnvironment):
    """Who this process is among those of one machine, for Lightning.

    Args:
        number: from 0.
        world: processes in all.
        port: of this machine, where they meet.
    """

    def __init__(self, *, number: int, world: int, port: int) -> None:
        super().__init__()
        self.number, self.world, self.port = number, world, port

    @property
    def creates_processes_externally(self) -> bool:
        """Lightning need not start any."""
        return True

    @property
    def main_address(self) -> str:
        """This machine."""
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        """Where the ranks meet."""
        return self.port

    @staticmethod
    def detect() -> bool:
        """Never found by itself."""
        return False

    def world_size(self) -> int:
        """Return the number of processes."""
        return self.world

    def set_world_size(self, size: int) -> None:
        """Keep the number that was given."""

    def global_rank(self) -> int:
        """Return the number of this process."""
        return self.number

    def set_global_rank(self, rank: int) -> None:
        """Keep the number that was given."""

    def local_rank(self) -> int:
        """Return the number of this process: there is one machine."""
        return self.number

    def node_rank(self) -> int:
        """Return 0: there is one machine."""
        return 0


class _Others:
    """The ranks from 1 on."""

    def __init__(self, children: list[subprocess.Popen[str]], files: Sequence[IO[str]]) -> None:
        self._children, self._files = children, files

    def wait_until_ready(self) -> None:
        """Wait for each to have read data and recipe; what fails after that fails in all at once.

        Raises:
            ConfigError: one of them ended before.
        """
        for number, (child, file) in enumerate(zip(self._children, self._files, strict=True), start=1):
            assert child.stdout is not None
            if child.stdout.readline().strip() != READY:
                child.wait(PATIENCE)
                file.seek(0)
                last = (file.read().strip().splitlines() or ["it said nothing"])[-1]
                raise ConfigError(
                    f"process {number} of {len(self._children) + 1} could not start: {last}",
                    hint="Set machine.devices to 1 to see the whole message.",
                )

    def end(self) -> None:
        """Wait for each to end, and end by force what does not."""
        for child in self._children:
            try:
                child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()

    def kill(self) -> None:
        """End all of them now."""
        for child in self._children:
            child.kill()
            child.wait()


@contextlib.contextmanager
def other_ranks(task: dict[str, Any], *, world: int) -> Iterator[tuple[Rank | None, _Others | None]]:
    """Start the ranks from 1 on and yield what the first needs to meet them.

    Yields nothing where one device is enough, or where a launcher such as torchrun has started all ranks.

    Args:
        task: JSON values for :func:`medvl.training.run.take_part`.
        world: processes in all.
    """
    if world == 1 or "LOCAL_RANK" in os.environ:
        yield None, None
        return
    port = _free_port()
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(world - 1)]
        children = []
        for number, file in enumerate(files, start=1):
            child = subprocess.Popen(
                [sys.executable, "-m", "medvl.training"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
            assert child.stdin is not None
            rank = {"number": number, "world": world, "port": port}
            child.stdin.write(json.dumps({**task, "rank": rank}) + "\n")
            child.stdin.flush()
            children.append(child)
        others = _Others(children, files)
        try:
            yield Rank(number=0, world=world, port=port), others
            others.end()
        except BaseException:
            others.kill()
            raise
        finally:
            for child in children:
                for stream in (child.stdin, child.stdout):
                    if stream is not None:
                        stream.close()


def join() -> tuple[dict[str, Any], Rank]:
    """Return the task and the place of this process, as the first one wrote them; die when that one dies."""
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_parent, daemon=True).start()
    return task, Rank(**task.pop("rank"))


def say_ready() -> None:
    """Tell the first process that this one has read data and recipe."""
    sys.stdout.write(f"{READY}\n")
    sys.stdout.flush()


def _die_with_parent() -> None:
    sys.stdin.read()  # returns when the first process is gone: while it waits for us it keeps the pipe open
    os._exit(1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
