"""What every part of the command shares: its parser, its progress bar, its two ways to print a result."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from medvl.errors import UsageError, nearest
from medvl.notice import NOTICE

__all__ = [
    "EXIT_SOME_FAILED",
    "Parser",
    "Verbs",
    "key_bytes",
    "key_values",
    "progress",
    "show",
    "verb",
    "write",
]

EXIT_SOME_FAILED = 3


class Parser(argparse.ArgumentParser):
    """A parser whose errors name the nearest valid value, and whose options may stand before any argument."""

    _mixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Read arguments wherever they stand; argparse alone takes an optional one only before options."""
        # Of two passes the second would no longer know what a "--" made an argument.
        if self._mixing or self._subparsers is not None or "--" in (args or ()):
            return super().parse_known_args(args, namespace)
        self._mixing = True  # what follows comes back here for each of its two passes
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found wrong as a typed error."""
        raise UsageError(f"{message}.", hint=f"See '{self.prog} --help'.")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = action.dest if action.dest != "verb" else "command"
            raise UsageError(f"unknown {name} '{value}'.", hint=nearest(str(value), map(str, action.choices)))


Verbs: TypeAlias = "argparse._SubParsersAction[Parser]"


def verb(group: Verbs, name: str, help_text: str, run: Callable[..., Any]) -> Parser:
    """Add a command with the options that all of them have."""
    parser = group.add_parser(
        name, help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}.", epilog=NOTICE
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def progress(arguments: argparse.Namespace) -> Any:
    """Return the progress bar that the call asks for."""
    from medvl.progress import Bar, silent

    return silent() if arguments.quiet or arguments.json else Bar()


def show(arguments: argparse.Namespace, result: Any) -> None:
    """Print a result: ``to_json()`` for machines, ``lines()`` for people."""
    if arguments.json:
        write(json.dumps(result.to_json(), indent=2, sort_keys=True, ensure_ascii=False))
    else:
        write("\n".join(result.lines()))


def write(text: str) -> None:
    """Print one result."""
    sys.stdout.write(text.rstrip("\n") + "\n")


def key_bytes(path: Path | None) -> bytes | None:
    """Return the bytes of a key file, or None without one."""
    return path.read_bytes() if path else None


def key_values(items: Sequence[str], *, wrong: str, hint: str) -> dict[str, str]:
    """Return ``KEY=VALUE`` arguments as a mapping.

    Args:
        items: the arguments.
        wrong: what is said of one that is not of this form; ``{}`` stands for it.
        hint: what to write instead.
    """
    found = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not (key and equals):
            raise UsageError(wrong.format(repr(item)), hint=hint)
        found[key] = value
    return found
