"""Planted names, numbers and dates: none is in what prepare and deid print, write or leave behind."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from medvl.preprocess.reading.burned import read_text
from medvl.store import Store

CANARIES = (
    "CANARYNAME",
    "Canaryname",
    "MRN-CANARY-77",
    "CANARY77",
    "867-5309",
    "19400102",
    "2015-03-14",
    "03/14/2015",
    "20150314",
    "Canary Street",
    "CANARYCLINIC",
    "SECRETCANARY",
)
"""In headers, private elements, pixels, tables, messages, texts and names of files."""

REPORT = (
    "CLINICAL HISTORY: Mr. John Canaryname, MRN MRN-CANARY-77, of 12 Canary Street, phone 555-867-5309.\n"
    "COMPARISON: Film of 03/14/2015.\n"
    "FINDINGS: A 4.2 cm mass in the right upper lobe. No pleural effusion. T10 compression deformity.\n"
    "IMPRESSION: Right upper lobe mass.\n"
    "Dictated by Dr. Jane Canaryname."
)
MESSAGE = "\r".join(
    (
        "MSH|^~\\&|RIS|CANARYCLINIC|X|Y|20150314||ORU^R01|1|P|2.3",
        "PID|1||MRN-CANARY-77||CANARYNAME^JOHN||19400102|M|||12 Canary Street^^Town||555-867-5309",
        "OBR|1|A2|A2|71020^CHEST|||20150314||||||||||||||||||F",
        "OBX|1|TX|71020||Mr. Canaryname was seen on 03/14/2015. A 7 mm nodule on the left. No edema.||||||F",
    )
)


def film(path: Path, number: int, *, words: str = "") -> None:
    """Write one film of the patient; ``words`` are burned into its upper left corner."""
    y, x = np.mgrid[-1:1:600j, -1:1:600j]
    grey = 3000 * np.exp(-(x**2) - y**2) + np.random.default_rng(number).normal(0, 20, x.shape)
    if words:
        picture = Pillow.new("L", (600, 600))
        ImageDraw.Draw(picture).text((20, 20), words, fill=255, font=ImageFont.load_default(28))
        grey = np.where(np.asarray(picture) > 128, 4095, grey)
    dataset = Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    dataset.SOPInstanceUID = f"1.2.826.0.77.1.{number}"
    dataset.StudyInstanceUID = f"1.2.826.0.77.2.{number}"
    dataset.SeriesInstanceUID = f"1.2.826.0.77.3.{number}"
    dataset.AccessionNumber = f"A{number}"
    dataset.PatientName, dataset.PatientID = "CANARYNAME^JOHN", "MRN-CANARY-77"
    dataset.PatientBirthDate, dataset.StudyDate = "19400102", "20150314"
    dataset.PatientAddress, dataset.PatientTelephoneNumbers = "12 Canary Street", "555-867-5309"
    dataset.InstitutionName, dataset.ReferringPhysicianName = "CANARYCLINIC", "CANARYNAME^JANE"
    dataset.ImageComments = "SECRETCANARY seen by CANARYNAME"
    dataset.private_block(0x0011, "SECRETCANARY", create=True).add_new(0x01, "LO", "CANARYNAME")
    dataset.Modality = "DX"
    dataset.Rows = dataset.Columns = 600
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.PixelData = np.clip(grey, 0, 4095).astype(np.uint16).tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("canaries") / "CANARYNAME_export"
    film(folder / "CANARYNAME" / "MRN-CANARY-77_1.dcm", 1, words="CANARYNAME JOHN  19400102")
    film(folder / "CANARYNAME" / "MRN-CANARY-77_2.dcm", 2)
    film(folder / "CANARYNAME" / "MRN-CANARY-77_3.dcm", 3)
    broken = folder / "CANARYNAME" / "MRN-CANARY-77_3.dcm"
    broken.write_bytes(broken.read_bytes()[:-5000])
    (folder / "CANARYNAME_message.hl7").write_text(MESSAGE)
    with (folder / "reports.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("accession", "patient_id", "patient_name", "study_date", "report"))
        writer.writerow(("A1", "MRN-CANARY-77", "Canaryname, John", "2015-03-14", REPORT))
        writer.writerow(("A9", "MRN-CANARY-77", "Canaryname, John", "2015-03-14", "No film of CANARYNAME."))
    return folder


def run(folder: Path, *words: str | Path) -> str:
    """Run the command with a temporary folder of its own; return all that it printed."""
    (folder / "tmp").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-m", "medvl.cli", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"TMPDIR": str(folder / "tmp")},
        cwd=folder,
    )
    assert done.returncode == 3, done.stderr  # the broken film is told
    return done.stdout + done.stderr


def left(folder: Path, out: Path, printed: str) -> dict[str, list[str]]:
    """Return the canaries that are anywhere but in the private folder, by place."""
    places = {"printed": printed.encode()}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if (out / "private") in path.parents or path == out / "private":
            continue
        places[relative] = relative.encode() + (path.read_bytes() if path.is_file() else b"")
    if (out / "index.parquet").is_file():  # compressed: its bytes alone show nothing
        places["rows"] = str(Store(out).table.to_pylist()).encode()
    found = {
        place: [canary for canary in CANARIES if canary.encode() in data] for place, data in places.items()
    }
    return {place: canaries for place, canaries in found.items() if canaries}


def burned(pixels: np.ndarray) -> str:
    return " ".join(words for _, words in read_text(pixels)).upper()


def test_prepare_leaves_no_canary(source, tmp_path):
    out = tmp_path / "store"
    printed = run(tmp_path, "cxr", "prepare", source, out, "--burned-in", "mask", "--workers", "2")
    assert left(tmp_path, out, printed) == {}
    first, other = sorted(Store(out).records, key=lambda record: "4.2 cm mass" not in record.report)
    # What is clinical stays: the measure, the side, the vertebra, the negation.
    assert "A 4.2 cm mass in the right upper lobe." in first.retrieval
    assert "No pleural effusion." in first.retrieval and "T10" in first.report
    assert first.redactions["name"] >= 2 and first.redactions["date"] == 1
    assert "7 mm nodule on the left" in other.report  # the message was paired with the second film
    # The same days of shift in the table's report and in the message: one patient, one shift.
    dates = [word for record in (first, other) for word in record.report.split() if word.count("/") == 2]
    assert len(dates) == 2 and dates[0].rstrip(".") == dates[1].rstrip(".") != "03/14/2015"
    assert any(region.masked for region in first.text_regions)
    assert "CANARY" not in burned(Store(out).pixels(first))


def test_deid_leaves_no_canary(source, tmp_path):
    out = tmp_path / "clean"
    printed = run(tmp_path, "deid", source, out, "--workers", "2")
    assert left(tmp_path, out, printed) == {}
    files = sorted((out / "dicom").rglob("*.dcm"))
    assert len(files) == 2
    for path in files:
        dataset = pydicom.dcmread(path)
        assert dataset.PatientIdentityRemoved == "YES"
        grey = (dataset.pixel_array / 16).astype(np.uint8)
        assert "CANARY" not in burned(grey)


def test_an_archive_of_the_same_leaves_no_canary(source, tmp_path):
    archive, out = tmp_path / "in" / "export.zip", tmp_path / "out" / "store"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as stream, warnings.catch_warnings():
        for path in sorted(source.rglob("*")):
            if path.is_file():
                stream.write(path, path.relative_to(source.parent))
    printed = run(tmp_path / "out", "cxr", "prepare", archive, out)
    assert left(tmp_path / "out", out, printed) == {}
    assert len(Store(out)) == 2
