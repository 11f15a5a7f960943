"""Synthetic studies with known truth, written as real files: no patient, no clinical meaning."""

from medvl.phantoms.ct import write_ct_phantoms
from medvl.phantoms.ct_truth import CT_FINDINGS, STRUCTURES
from medvl.phantoms.cxr import PhantomSummary, write_phantoms
from medvl.phantoms.probes import Probe, shortcut_probes
from medvl.phantoms.truth import FINDINGS, LEVELS, Finding, Level

__all__ = [
    "CT_FINDINGS",
    "FINDINGS",
    "LEVELS",
    "STRUCTURES",
    "Finding",
    "Level",
    "PhantomSummary",
    "Probe",
    "shortcut_probes",
    "write_ct_phantoms",
    "write_phantoms",
]
