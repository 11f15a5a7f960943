"""Names of files compared: one may be the end of the other, and may end in the number of a view."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Generic, TypeVar

from medvl.preprocess.sources.discovery import IMAGE_SUFFIXES, SLIDE_SUFFIXES

__all__ = ["NO_FIT", "ByKey", "Fit", "Names", "named_after", "path_parts"]

T = TypeVar("T")

Fit = tuple[int, bool, int]
"""How well a name fits a file: components in common, same suffix, minus components that only one has."""

NO_FIT: Fit = (-1000, False, 0)
_OTHER_CASE = 500
"""How much worse a name fits that differs in upper and lower case."""
_SUFFIXES = (*IMAGE_SUFFIXES, *SLIDE_SUFFIXES, ".nii", ".nii.gz")
_VIEW_TAIL = re.compile(r"(.+?)(?:[ _.\-]+(?:[A-Za-z]{1,9}\d{0,3}|\d{1,3})| ?\(\d{1,3}\))$")


def path_parts(name: str) -> tuple[str, ...]:
    """Return the components of a file name from the last to the first; image suffixes do not count."""
    parts = [part for part in re.split(r"[/\\]", name.strip()) if part not in ("", ".")]
    if not parts:
        return ()
    stem = parts[-1]
    while suffix := next(
        (end for end in _SUFFIXES if stem.lower().endswith(end) and len(stem) > len(end)), ""
    ):
        stem = stem[: -len(suffix)]
    return (stem, *reversed(parts[:-1]))


def named_after(relative: str) -> tuple[str, ...]:
    """Return what a file may be named after: its stem, then the stem without the endings of its views.

    Examples:
        >>> named_after("images/ACC1000_2_PA.png"), named_after("2024-0001 (2).dcm")
        (('ACC1000_2_PA', 'ACC1000_2', 'ACC1000'), ('2024-0001 (2)', '2024-0001'))
    """
    names = [*path_parts(relative)[:1]]
    while names and len(names) < 4 and (shorter := _VIEW_TAIL.fullmatch(names[-1])):
        names.append(shorter[1])
    return tuple(names)


class Names(Generic[T]):
    """Values under file names: a name matches a file when the shorter path is the end of the longer one."""

    def __init__(self, pairs: Iterable[tuple[str, T]]) -> None:
        self._by_stem: dict[str, list[tuple[tuple[str, ...], str, T]]] = defaultdict(list)
        for name, value in pairs:
            parts = path_parts(name)
            if parts and ".." not in parts:
                suffix = PurePosixPath(name.replace("\\", "/")).suffix
                self._by_stem[parts[0].casefold()].append((parts, suffix, value))

    def find(self, relative: str) -> tuple[Fit, list[T]]:
        """Return the values whose name agrees best, and how well; the case counts where it decides."""
        parts, suffix = path_parts(relative), PurePosixPath(relative).suffix
        folded = tuple(map(str.casefold, parts))
        scored = []
        for own, own_suffix, value in self._by_stem.get(folded[0] if folded else "", ()):
            same = all(a == b for a, b in zip(own, parts, strict=False))
            if same or all(a.casefold() == b for a, b in zip(own, folded, strict=False)):
                common = min(len(own), len(parts)) - (0 if same else _OTHER_CASE)
                scored.append(((common, own_suffix == suffix, -abs(len(own) - len(parts))), value))
        best = max((score for score, _ in scored), default=NO_FIT)
        return best, [value for score, value in scored if score == best]


class ByKey(Generic[T]):
    """Labels or boxes under a key of any kind, found for an image."""

    def __init__(self, table: Mapping[str, T]) -> None:
        self.table = dict(table)
        self.names = Names((key, key) for key in table)
        self.used: set[str] = set()

    def unused(self) -> set[str]:
        """Return the keys that no image has asked for."""
        return self.table.keys() - self.used

    def find(self, relative: str, ids: Iterable[str]) -> T | None:
        """Return the value under one of the identifiers, else under the file name."""
        keys = [key for key in ids if key in self.table] or self.names.find(relative)[1]
        self.used.update(keys)
        return self.table[keys[0]] if keys else None
