"""Adapters for the layouts of public data sets: one file each, found by their names in this folder.

A module is an adapter when its name does not begin with an underscore. It offers ``NAME``, ``ABOUT``,
``MODALITY``, ``recognise(source)`` and ``read(source)``; see ``docs/layouts.md``.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medvl.errors import UsageError, nearest
from medvl.preprocess.sources.pairing import Pairing

__all__ = ["Layout", "all_layouts", "find", "pair_layout"]

Modality = Literal["cxr", "ct", "pathology", "any"]


@dataclass(frozen=True)
class Layout:
    """How one public data set lies on disk.

    Attributes:
        name: what ``--layout`` takes.
        about: what it is and on which terms it may be used.
        modality: of its images; ``"any"`` for figures of articles.
        recognise: whether a folder looks like it, after a few looks at names and one header.
        read: images, reports, labels and official splits of such a folder.
    """

    name: str
    about: str
    modality: Modality
    recognise: Callable[[Path], bool]
    read: Callable[[Path], Pairing]


@functools.cache
def all_layouts() -> dict[str, Layout]:
    """Return every layout by name, in alphabetical order.

    Examples:
        >>> list(all_layouts())[:3]
        ['chexpert', 'chexpert-plus', 'ct-rate']
    """
    found = {}
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            adapter = importlib.import_module(f"{__name__}.{module.name}")
            found[adapter.NAME] = Layout(
                adapter.NAME, adapter.ABOUT, adapter.MODALITY, adapter.recognise, adapter.read
            )
    return dict(sorted(found.items()))


def find(source: Path, *, name: str | None = None) -> Layout | None:
    """Return the layout of a folder, or None when it has none that is known.

    Args:
        source: the folder.
        name: take this layout, whatever the folder looks like.

    Raises:
        UsageError: an unknown name, or a folder that looks like two data sets.
    """
    layouts = all_layouts()
    if name is not None:
        if name not in layouts:
            raise UsageError(f"'{name}' is not the layout of a known data set.", hint=nearest(name, layouts))
        return layouts[name]
    fitting = [layout for layout in layouts.values() if layout.recognise(source)]
    if len(fitting) > 1:
        names = " and ".join(layout.name for layout in fitting)
        raise UsageError(
            f"the source looks like {names}.",
            hint=f"Name one: --layout {fitting[0].name}.",
        )
    return fitting[0] if fitting else None


def pair_layout(source: Path, name: str) -> Pairing:
    """Read a public data set.

    Args:
        source: its folder.
        name: its layout; ``"auto"`` to look.

    Raises:
        UsageError: the source is no folder, no known layout, or looks like two.
        BadTable: a table of the release is missing or damaged, no image is there, or a patient is in two of
            its splits.
    """
    if not source.is_dir():
        raise UsageError("the source is not a folder.", hint="Give the folder that holds the data set.")
    layout = find(source, name=None if name == "auto" else name)
    if layout is None:
        raise UsageError(
            "the source has not the layout of a known data set.",
            hint=f"Name one if it has: --layout {' | '.join(all_layouts())}.",
        )
    return layout.read(source)
