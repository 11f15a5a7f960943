"""Read YAML and JSON that came from outside: capped, free of code, every key once.

What is refused, with a :class:`~medvl.errors.ConfigError` that names line or depth: files above
``MAX_BYTES``, nesting above ``MAX_DEPTH``, more than ``MAX_NODES`` values, aliases (nine levels of
them are a billion values), explicit tags (``!!python/…`` names code), a key given twice. Words are
read as YAML 1.2 does: only ``true`` and ``false`` are booleans, ``no`` is a word, ``1e-4`` a number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml

from medvl.errors import ConfigError, file_token

__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_NODES", "dump_yaml", "parse_json", "parse_yaml", "read_config"]

MAX_BYTES = 4 * 2**20
MAX_DEPTH = 64
MAX_NODES = 100_000


class _Loader(yaml.SafeLoader):
    """The safe loader with the scalars of YAML 1.2 and no merge keys, dates or sexagesimals."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        """Build a mapping whose keys are words, each given once."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node)  # type: ignore[no-untyped-call]
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise ConfigError(f"line {line}: the key {key!r} is not a word.", hint="Put it in quotes.")
            if key in seen:
                raise ConfigError(f"line {line}: the key '{key}' is given twice.", hint="Keep one of them.")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _first)  # type: ignore[no-untyped-call]


def parse_yaml(text: str, *, what: str = "the YAML file") -> Any:
    r"""Return the plain values of a YAML text: dicts, lists, words, numbers, booleans, None.

    Args:
        text: one YAML document.
        what: how a message calls it.

    Raises:
        ConfigError: a syntax error, or anything that the head of this module refuses.

    Examples:
        >>> parse_yaml("rate: 1e-4\nmodes: [on, true]")
        {'rate': 0.0001, 'modes': ['on', True]}
    """
    _require_size(len(text.encode("utf-8", "replace")), what)
    try:
        _require_plain(yaml.parse(text, Loader=_Loader))
        return yaml.load(text, Loader=_Loader)  # a stricter SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "unreadable characters"
        raise ConfigError(f"{what} is not valid YAML{line}: {problem}.") from error
    except ConfigError as error:
        raise ConfigError(f"{what}: {error.message}", hint=error.hint) from error


def parse_json(text: str, *, what: str = "the JSON file") -> Any:
    """Return the values of a JSON text.

    Raises:
        ConfigError: a syntax error, a key given twice, NaN or Infinity, too deep, too large.

    Examples:
        >>> parse_json('{"rate": 1e-4}')
        {'rate': 0.0001}
    """
    _require_size(len(text.encode("utf-8", "replace")), what)
    depth = values = 0
    try:
        for token in re.finditer(r'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]|[,:]', text, re.DOTALL):
            mark = token.group()[0]
            depth += (mark in "[{") - (mark in "]}")
            values += mark in "[{,:"
            _require_modest(depth, values)
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except ConfigError as error:
        raise ConfigError(f"{what}: {error.message}", hint=error.hint) from error
    except ValueError as error:  # a JSONDecodeError, or an integer of thousands of digits
        raise ConfigError(f"{what} is not valid JSON: {error}.") from error


def read_config(path: Path) -> Any:
    """Return the values of a ``.yaml``, ``.yml`` or ``.json`` file.

    Raises:
        ConfigError: the file is missing, of another kind, or refused by the parser.
    """
    what = file_token(path)
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise ConfigError(f"{what} ends in '{path.suffix}'.", hint="Allowed: .json, .yaml, .yml.")
    try:
        size = path.stat().st_size
        _require_size(size, what)
        text = path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"{what} cannot be read: {error.strerror}.", hint="Check the path.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} is not UTF-8 (byte {error.start}).", hint="Save it as UTF-8.") from error
    return parse_json(text, what=what) if path.suffix == ".json" else parse_yaml(text, what=what)


def dump_yaml(values: Any) -> str:
    """Return ``values`` as YAML that :func:`parse_yaml` reads back as the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Short lists on one line, no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write a shared value twice rather than as an alias."""
        return True


def _list(dumper: _Dumper, values: Any) -> yaml.Node:
    plain = all(not isinstance(value, (list, tuple, dict)) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", list(values), flow_style=plain)


def _float(dumper: _Dumper, value: float) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:float", repr(float(value)))


_Dumper.add_representer(list, _list)
_Dumper.add_representer(tuple, _list)
_Dumper.add_representer(float, _float)
_Dumper.yaml_implicit_resolvers = {
    # what SafeLoader would misread is quoted too, so that other tools read the same
    mark: [*yaml.SafeDumper.yaml_implicit_resolvers.get(mark, []), *resolvers]
    for mark, resolvers in {
        **{mark: [] for mark in yaml.SafeDumper.yaml_implicit_resolvers},
        **_Loader.yaml_implicit_resolvers,
    }.items()
}


def _require_plain(events: Iterator[yaml.Event]) -> None:
    depth = nodes = 0
    for event in events:
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(
                f"line {line}: the alias '*{event.anchor}' is refused.", hint="Write the value out."
            )
        if isinstance(event, yaml.NodeEvent):
            nodes += 1
            tag = getattr(event, "tag", None)
            if tag is not None:
                raise ConfigError(f"line {line}: the tag '{tag}' is refused.", hint="Write plain values.")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        _require_modest(depth, nodes)


def _require_modest(depth: int, nodes: int) -> None:
    if depth > MAX_DEPTH:
        raise ConfigError(f"values are nested more than {MAX_DEPTH} levels deep.", hint="Flatten it.")
    if nodes > MAX_NODES:
        raise ConfigError(f"there are more than {MAX_NODES} values.", hint="Split it.")


def _require_size(size: int, what: str) -> None:
    if size > MAX_BYTES:
        raise ConfigError(f"{what} has {size} bytes; allowed are {MAX_BYTES}.", hint="Split it.")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ConfigError(f"the key '{key}' is given twice.", hint="Keep one of them.")
        values[key] = value
    return values


def _no_constant(name: str) -> NoReturn:
    raise ConfigError(f"the number {name} is refused.", hint="Allowed are finite numbers and null.")
