"""What a cell of a table that we write may hold."""

from __future__ import annotations

import re

__all__ = ["safe_cell"]

_NUMBER = re.compile(r"[+-]?\d+(?:[.,]\d+)?(?:[eE][+-]?\d+)?%?")


def safe_cell(cell: str) -> str:
    """Return a cell that no spreadsheet takes for a formula: a quote before ``= + - @``, tab and return.

    Numbers stay numbers.

    Examples:
        >>> safe_cell("=HYPERLINK(1)"), safe_cell("-4.2"), safe_cell("- no effusion"), safe_cell("fine")
        ("'=HYPERLINK(1)", '-4.2', "'- no effusion", 'fine')
    """
    risky = cell.lstrip(" ")[:1] in ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")
    return f"'{cell}" if risky and cell and not _NUMBER.fullmatch(cell) else cell
