"""MIMIC-CXR-JPG: JPEG files in folders of patients and studies, with tables of metadata, split and labels."""

from __future__ import annotations

from pathlib import Path

from medvl.preprocess.sources.layouts._mimic import has_images, read_mimic
from medvl.preprocess.sources.pairing import Pairing

NAME = "mimic-cxr-jpg"
ABOUT = "MIMIC-CXR-JPG, radiographs as JPEG with labels; credentialed access of PhysioNet"
MODALITY = "cxr"


def recognise(source: Path) -> bool:
    """Look for ``files/p1?/p*/s*/*.jpg``, or resized copies as PNG."""
    return has_images(source, "(?:jpe?g|png)")


def read(source: Path) -> Pairing:
    """Pair by path; the reports are those of MIMIC-CXR, unpacked below the source.

    Raises:
        BadTable: a table is damaged, no image is there, or a patient is in two official splits.
    """
    return read_mimic(source, layout=NAME, suffixes=(".jpg", ".jpeg", ".png"), modality="")
