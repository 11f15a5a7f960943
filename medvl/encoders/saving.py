"""Tensors to a safetensors file that whoever may read new files may read."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

__all__ = ["save_tensors"]


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors by name; safetensors alone leaves files that their owner alone can read."""
    save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    # A new file tells which permissions are usual: to ask for the umask is to change it, for all threads.
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    new.touch()
    path.chmod(stat.S_IMODE(new.stat().st_mode))
    new.unlink()
