"""Medical vision-language models from a lab's own studies and reports.

The verbs of the ``medvl`` command are functions here: ``medvl.prepare``, ``medvl.train``, ``medvl.evaluate``,
``medvl.transfer``, ``medvl.export``, ``medvl.index``, ``medvl.search``, ``medvl.load`` and ``medvl.phantom``;
for report encoders ``medvl.adapt_text`` and ``medvl.evaluate_text``. They are loaded when first used;
``import medvl`` imports nothing heavy.
"""

from __future__ import annotations

from typing import Any

from medvl.version import VERSION

__version__ = VERSION

_VERBS = ("erase", "evaluate", "export", "index", "load", "phantom", "prepare", "search", "train", "transfer")
_TEXT_VERBS = ("adapt_text", "evaluate_text")

__all__ = ["__version__", *_TEXT_VERBS, *_VERBS]


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        from medvl import verbs

        return getattr(verbs, name)
    if name in _TEXT_VERBS:
        from medvl.language import road

        return getattr(road, name)
    raise AttributeError(f"module 'medvl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
