"""Which anatomical part a segmented structure belongs to, by a table of names that a user may extend."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from medvl.config import read_config
from medvl.errors import ConfigError, nearest

__all__ = ["TOTAL", "Structures", "base_name", "side_of"]

_NONE = "none"
_SIDES = frozenset({"left", "right", "lt", "rt"})
_LEVEL = re.compile(r"\d+|[ctls]\d+")
_TABLE: dict[str, Any] = read_config(Path(__file__).with_name("structures_ct.yaml"))

TOTAL: Mapping[int, str] = MappingProxyType(dict(enumerate(_TABLE["numbers"], start=1)))
"""Number to structure of label maps of TotalSegmentator, task "total", version 2 (Wasserthal et al. 2023)."""


@functools.lru_cache(maxsize=4096)
def base_name(structure: str) -> str:
    """Return the name that the table knows: words in the singular, without side, number and level.

    Examples:
        >>> base_name("lung_upper_lobe_left"), base_name("vertebrae_T12"), base_name("Ribs (right) 7")
        ('lung upper lobe', 'vertebrae', 'rib')
    """
    words = [word for word in re.split(r"[\W_]+", structure.casefold()) if word]
    kept = [word for word in words if word not in _SIDES and not _LEVEL.fullmatch(word)]
    return " ".join(word.removesuffix("s") if len(word) > 3 else word for word in kept)


def side_of(structure: str) -> tuple[str, str] | None:
    """Return the side of a structure and its name without it; None for one without a side.

    Examples:
        >>> side_of("lung_upper_lobe_left"), side_of("heart")
        (('left', 'lung upper lobe'), None)
    """
    words = [word for word in re.split(r"[\W_]+", structure.casefold()) if word]
    for side in ("left", "right"):
        if side in words:
            return side, " ".join(word for word in words if word != side)
    return None


@dataclass(frozen=True)
class Structures:
    """Names of structures and the parts that they belong to.

    Attributes:
        parts: the names of the parts, part number 1 first.
        table: name as :func:`base_name` has it → part, ``""`` for a structure that belongs to none.
    """

    parts: tuple[str, ...]
    table: Mapping[str, str]

    @classmethod
    def read(cls, path: Path | None = None, *, parts: Sequence[str]) -> Structures:
        """Return the table of the package, and over it that of a user's file.

        The file maps parts to lists of structures; ``none`` holds those that belong to no part::

            lungs: [left_lung, right_lung]
            none: [fat]

        A structure of the package's table whose part is not in ``parts`` belongs to none.

        Args:
            path: a YAML or JSON file, or None.
            parts: the parts of the store, as :class:`medvl.specs.VolumeSpec` has them.

        Raises:
            ConfigError: the file cannot be read, is no such mapping, or names a part that is not there.

        Examples:
            >>> known = Structures.read(parts=("lungs", "heart"))
            >>> known.number("lung_lower_lobe_right"), known.number("heart"), known.number("liver")
            (1, 2, 0)
        """
        table = {base_name(name): part for part, names in _TABLE["parts"].items() for name in names}
        if path is not None:
            given = read_config(path)
            given = given.get("parts", given)
            for part, names in given.items():
                if part not in (*parts, _NONE):
                    hint = nearest(str(part), [*parts, _NONE])
                    raise ConfigError(f"the table of structures has a part '{part}'.", hint=hint)
                if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                    raise ConfigError(
                        f"part '{part}' of the table of structures is no list of names.",
                        hint="Write for example: lungs: [left_lung, right_lung].",
                    )
                table |= {base_name(name): part for name in names}
        return cls(tuple(parts), {name: part if part in parts else "" for name, part in table.items()})

    def __contains__(self, structure: str) -> bool:
        return base_name(structure) in self.table

    def number(self, structure: str) -> int:
        """Return the number of a structure's part, 0 for one of no part and for one that is not known."""
        part = self.table.get(base_name(structure), "")
        return self.parts.index(part) + 1 if part else 0

    def unknown(self, structures: Iterable[str]) -> list[str]:
        """Return a line for each name that the table does not have, with the nearest that it has."""
        foreign: dict[str, str] = {}
        for name in structures:
            if name not in self:
                foreign.setdefault(base_name(name), name)
        return [
            f"structure '{name}' is not known: its voxels belong to no part; {self._advice(base)}"
            for base, name in sorted(foreign.items())
        ]

    def _advice(self, base: str) -> str:
        near = difflib.get_close_matches(base, self.table, n=1)
        return f"is it '{near[0]}'?" if near else "name its part in a file of structures"
