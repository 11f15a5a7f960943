"""Checkpoint directories: written whole or not at all, found again after any crash.

Layout of a run::

    recipe.yaml, provenance.json, metrics.csv, summary.json
    checkpoints/step-00000200/   a model directory, training/ and, last of all, manifest.json
    checkpoints/latest.json      which checkpoint is the newest
    checkpoints/best.json        which one scored best on the validation split

A checkpoint is written into a temporary folder beside it, every file reaches the disk, the manifest
with a SHA-256 of each file comes last, and then the folder takes its name.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medvl.config import parse_json
from medvl.errors import CheckpointError, ConfigError
from medvl.store import file_sha256, write_atomic

__all__ = [
    "best_model",
    "checkpoint_path",
    "latest",
    "mark_best",
    "prune",
    "read_provenance",
    "verify",
    "write_checkpoint",
]

MANIFEST = "manifest.json"


def checkpoint_path(run: Path, step: int) -> Path:
    """Return the folder of the checkpoint of ``step``."""
    return Path(run) / "checkpoints" / f"step-{step:08d}"


def write_checkpoint(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a checkpoint so that ``folder`` is either absent or whole, and point ``latest`` to it.

    Args:
        folder: where it goes; see :func:`checkpoint_path`.
        write: fills the folder that it is given.
    """
    parent = folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    for orphan in parent.glob(".*.tmp"):  # what a killed run left behind
        shutil.rmtree(orphan) if orphan.is_dir() else orphan.unlink()
    temporary = parent / f".{folder.name}.tmp"
    temporary.mkdir()
    try:
        write(temporary)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        digests = {str(path.relative_to(temporary)): file_sha256(path) for path in files}
        (temporary / MANIFEST).write_text(json.dumps({"files": digests}, indent=1), "utf-8")
        for path in [
            *files,
            temporary / MANIFEST,
            *(p for p in temporary.rglob("*") if p.is_dir()),
            temporary,
        ]:
            _fsync(path)
        if folder.exists():  # a damaged one: a whole one would have been resumed from
            shutil.rmtree(folder)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _fsync(parent)
    _point(parent / "latest.json", folder)


def verify(folder: Path) -> None:
    """Compare every file of a checkpoint with its manifest.

    Raises:
        CheckpointError: the manifest is missing or unreadable, or a file is missing, changed or added.
    """
    hint = "Remove this checkpoint; the one before it is used."
    try:
        listed = parse_json((folder / MANIFEST).read_text("utf-8"), what=MANIFEST)["files"]
        expected = {str(name): str(digest) for name, digest in listed.items()}
    except (OSError, ConfigError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder.name} has no readable {MANIFEST}: {error}.", hint=hint) from error
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {MANIFEST}
    if found != set(expected):
        odd = sorted(found ^ set(expected))
        raise CheckpointError(f"{folder.name}: these files are missing or were added: {odd}.", hint=hint)
    for name, digest in expected.items():
        if file_sha256(folder / name) != digest:
            raise CheckpointError(
                f"{folder.name}: the SHA-256 of {name} is not that of the manifest.", hint=hint
            )


def latest(run: Path) -> Path | None:
    """Return the newest whole checkpoint of a run, or None."""
    for folder in sorted((Path(run) / "checkpoints").glob("step-*"), reverse=True):
        try:
            verify(folder)
        except CheckpointError:
            continue
        return folder
    return None


def mark_best(folder: Path, *, score: float) -> None:
    """Point ``best`` to a checkpoint and say its score."""
    _point(folder.parent / "best.json", folder, score=score)


def best_model(run: Path) -> Path:
    """Return the model directory of the best checkpoint, or of the newest where none is marked.

    Raises:
        CheckpointError: the run has no whole checkpoint, or the best one is damaged.
    """
    run = Path(run)
    pointer = _pointer(run / "checkpoints" / "best.json")
    if "checkpoint" in pointer:
        folder = run / "checkpoints" / Path(str(pointer["checkpoint"])).name
        verify(folder)
        return folder
    folder_or_none = latest(run)
    if folder_or_none is None:
        raise CheckpointError(
            "this folder holds no checkpoint.", hint="Train first, or give a run directory."
        )
    return folder_or_none


def read_provenance(run: Path) -> dict[str, Any]:
    """Return what ``provenance.json`` of a run says: data digest, split seed, versions.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        values = parse_json((Path(run) / "provenance.json").read_text("utf-8"), what="provenance.json")
    except (OSError, ConfigError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"this folder is no run: provenance.json cannot be read: {error}.",
            hint="Give a folder that train wrote.",
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"provenance.json holds a {type(values).__name__}, not a mapping.")
    return values


def prune(run: Path, *, keep: int) -> None:
    """Delete all but the ``keep`` newest checkpoints and the best one."""
    parent = Path(run) / "checkpoints"
    best = _pointer(parent / "best.json").get("checkpoint")
    for folder in sorted(parent.glob("step-*"), reverse=True)[keep:]:
        if folder.name != best:
            doomed = parent / f".{folder.name}.old.tmp"
            folder.rename(doomed)  # a half-deleted folder must not look like a checkpoint
            shutil.rmtree(doomed)


def _point(pointer: Path, folder: Path, **values: float) -> None:
    write_atomic(pointer, json.dumps({"checkpoint": folder.name, **values}).encode())


def _pointer(path: Path) -> dict[str, Any]:
    try:
        values = parse_json(path.read_text("utf-8"), what=path.name)
    except FileNotFoundError:
        return {}
    except (ConfigError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path.name} cannot be read: {error}.", hint="Remove it.") from error
    return values if isinstance(values, dict) else {}


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
