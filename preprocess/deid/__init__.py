"""De-identification: DICOM headers, burned-in text, tables and reports, with one key and an audit."""

from medvl.preprocess.deid.audit import AuditReport, audit, collect_carriers
from medvl.preprocess.deid.header import clean_dataset
from medvl.preprocess.deid.profile import Profile
from medvl.preprocess.deid.run import DeidSummary, deidentify
from medvl.preprocess.deid.text import deidentify_text

__all__ = [
    "AuditReport",
    "DeidSummary",
    "Profile",
    "audit",
    "clean_dataset",
    "collect_carriers",
    "deidentify",
    "deidentify_text",
]
