"""MIMIC-CXR: DICOM files and report files in folders of patients and studies."""

from __future__ import annotations

from pathlib import Path

from medvl.preprocess.sources.layouts._mimic import has_images, read_mimic
from medvl.preprocess.sources.pairing import Pairing

NAME = "mimic-cxr"
ABOUT = "MIMIC-CXR, radiographs as DICOM with reports; credentialed access of PhysioNet"
MODALITY = "cxr"


def recognise(source: Path) -> bool:
    """Look for ``files/p1?/p*/s*/*.dcm``."""
    return has_images(source, "dcm")


def read(source: Path) -> Pairing:
    """Pair by path; the tables of MIMIC-CXR-JPG give view, split and labels if they lie in the source too.

    Raises:
        BadTable: a table is damaged, no image is there, or a patient is in two official splits.
    """
    return read_mimic(source, layout=NAME, suffixes=(".dcm",), modality="")
