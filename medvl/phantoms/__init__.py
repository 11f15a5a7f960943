"""Synthetic studies with known truth, written as real files: no patient, no clinical meaning."""

from medvl.phantoms.cxr import PhantomSummary, write_phantoms
from medvl.phantoms.probes import Probe, shortcut_probes
from medvl.phantoms.truth import FINDINGS, LEVELS, Finding, Level

__all__ = [
    "FINDINGS",
    "LEVELS",
    "Finding",
    "Level",
    "PhantomSummary",
    "Probe",
    "shortcut_probes",
    "write_phantoms",
]
