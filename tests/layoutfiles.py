"""Files of the miniature trees: small pictures with contents of their own, tables as pandas writes them."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
# --- files --------------------------------------------------------------------------------------------------


def grey(path: Path, *, bits: int = 8) -> Path:
    """Write a small picture whose content is its own; the suffix decides the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = int.from_bytes(hashlib.blake2b(path.as_posix().encode(), digest_size=4).digest())
    top = 2**bits - 1
    ramp = np.linspace(0, top, 48 * 40).reshape(48, 40)
    values = np.roll(ramp, seed % 1900) // 2 + np.random.default_rng(seed).integers(0, top // 2, (48, 40))
    kind = {".png": "PNG", ".svs": "TIFF", ".tif": "TIFF"}.get(path.suffix, "JPEG")
    Pillow.fromarray(values.astype(np.uint8 if bits == 8 else np.uint16)).save(path, format=kind)
    return path


def dicom(path: Path) -> Path:
    """Write a small radiograph; its identifiers are those of the file name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    number = int.from_bytes(hashlib.blake2b(path.stem.encode(), digest_size=8).digest())
    dataset.SOPInstanceUID = dataset.StudyInstanceUID = f"2.25.{number}"
    dataset.Modality, dataset.PatientID = "DX", "someone"
    dataset.Rows, dataset.Columns = 48, 40
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.PhotometricInterpretation = "MONOCHROME2"
    values = np.random.default_rng(number % 2**32).integers(0, 4096, (48, 40), dtype=np.uint16)
    dataset.PixelData = values.tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    return path


def empty(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, "utf-8")
    return path


def table(path: Path, names: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Write a CSV file as pandas writes it, gzip when the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    data = file.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def lines(path: Path, records: Iterable[dict[str, object]]) -> Path:
    return text(path, "".join(json.dumps(record) + "\n" for record in records))


def codes(**states: float) -> list[object]:
    """Return the cells of a row of the fourteen labels: ``Cardiomegaly=1.0``, blanks shown as ``_``."""
    return [states.get(name.replace(" ", "_"), "") for name in FINDINGS]
