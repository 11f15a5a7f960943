"""Every trap of the list has a test, and every test names a trap of the list."""

from __future__ import annotations

import ast
from pathlib import Path

from traps import TRAPS


def rows() -> dict[int | str, list[str]]:
    """Return the tests of each row, by the marker in the sources, so that a partial run sees them all."""
    found: dict[int | str, list[str]] = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.traps":
                    for keyword in decorator.keywords:
                        found.setdefault(ast.literal_eval(keyword.value), []).append(node.name)
    return found


def test_every_trap_is_run():
    assert set(TRAPS) - set(rows()) == set()


def test_every_marker_names_a_trap():
    assert set(rows()) - set(TRAPS) == set()
    assert list(TRAPS)[:19] == list(range(1, 20))
