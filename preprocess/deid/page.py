"""The page of a de-identification run: what was done, what was refused, what the audit found."""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any

import jinja2

__all__ = ["audit_page"]


@functools.cache
def _template() -> jinja2.Template:
    text = resources.files(__package__).joinpath("audit.html").read_text("utf-8")
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(text)


def audit_page(summary: dict[str, Any]) -> str:
    """Return one HTML file without scripts; nothing is loaded from elsewhere.

    Args:
        summary: ``DeidSummary.to_json()``.
    """
    return _template().render(s=summary)
