"""Small sources for tests: pictures, films, texts, messages, structured reports; and what pairing gave."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from medvl.preprocess.sources.pairing import Pairing
from medvl.preprocess.sources.reasons import HINTS

SR = "1.2.840.10008.5.1.4.1.1.88.11"


def png(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.full((4, 4), value, np.uint8)).save(path, format="PNG")
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())
    return path


def saved(path: Path, dataset: Dataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.setdefault("SOPClassUID", "1.2.840.10008.1.3.10")
    dataset.setdefault("SOPInstanceUID", "1.2.3")
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    return path


def film(path: Path, **elements: str) -> Path:
    dataset = Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    dataset.SOPInstanceUID = f"1.2.{abs(hash(str(path)))}"
    dataset.Modality = "DX"
    dataset.Rows = dataset.Columns = 2
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.SamplesPerPixel, dataset.PixelRepresentation = 15, 1, 0
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = bytes(8)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return saved(path, dataset)


def structured(path: Path, words: str, **elements: object) -> Path:
    item = Dataset()
    item.RelationshipType, item.ValueType, item.TextValue = "CONTAINS", "TEXT", words
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = SR, f"1.3.{abs(hash(str(path)))}"
    dataset.Modality, dataset.ValueType = "SR", "CONTAINER"
    dataset.ContentSequence = [item] if words else []
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return saved(path, dataset)


def oru(accession: str, words: str, *, patient="P1", day="20240101", status="F", placer="") -> str:
    return (
        f"MSH|^~\\&|R|H|A|H|{day}0930||ORU^R01|1|P|2.5\rPID|||{patient}||DOE^JOHN\r"
        f"OBR|1|{placer}|{accession}||||{day}\rOBX|1|TX|||{words}||||||{status}\r"
    )


def found(pairing: Pairing) -> dict[str, tuple[str, str]]:
    return {item.path.name: (item.method, item.report) for item in pairing.items}


def reasons(pairing: Pairing) -> dict[str, int]:
    counts = dict(Counter(entry.reason for entry in pairing.unpaired))
    assert counts.keys() <= HINTS.keys()  # every reason tells what to do next
    return counts


def study(folder: Path, name: str, patient: str, day: str, **elements: str) -> Path:
    return film(
        folder / f"{name}.dcm",
        PatientID=patient,
        StudyDate=day,
        StudyInstanceUID=f"1.{ord(name)}",
        **elements,
    )
