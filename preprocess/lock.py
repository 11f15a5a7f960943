"""One writer per output folder: a lock that dies with its process and says who holds it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from medvl.errors import UsageError

__all__ = ["hold"]


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``; the kernel lets go of it when the process dies, however it dies.

    The file says which process of which boot holds it, for people to read. A file that a killed
    process left behind is no lock and is taken over.

    Raises:
        UsageError: another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"process {_holder(descriptor)} is writing to this output folder.",
                hint="Wait until it ends, or choose another folder.",
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "boot": _boot_id()}).encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    try:
        return str(json.loads(os.pread(descriptor, 200, 0))["pid"])
    except (ValueError, KeyError, TypeError):  # read between the lock and the name
        return "unknown"


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text("ascii").strip() if path.is_file() else ""
