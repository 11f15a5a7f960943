"""Where the packaged DICOM fixtures lie, and how to find one or read it without warnings."""

from __future__ import annotations

import warnings
from pathlib import Path

import nibabel
import pydicom

PYDICOM = Path(pydicom.__file__).parent / "data"
FIXTURES = sorted(p for p in PYDICOM.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc"))
NICOM = Path(nibabel.__file__).parent / "nicom" / "tests" / "data"


def golden(name: str) -> Path:
    found = [p for p in FIXTURES if p.as_posix().endswith("/" + name)]
    assert len(found) == 1, (name, found)
    return found[0]


def quiet(path: Path) -> pydicom.Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(path, force=True)
