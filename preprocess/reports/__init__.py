"""From report text to sections, sentences, tags and states of findings, as spans of the original."""

from medvl.preprocess.reports.parsing import (
    MAX_CHARACTERS,
    PARSERS,
    all_changes,
    changes,
    hygiene_notes,
    mask_identity,
    parse_report,
)
from medvl.records import Change

__all__ = [
    "MAX_CHARACTERS",
    "PARSERS",
    "Change",
    "all_changes",
    "changes",
    "hygiene_notes",
    "mask_identity",
    "parse_report",
]
