"""A small source with everything that identifies planted in it, for the tests of de-identification."""

from __future__ import annotations

import io
from pathlib import Path

from pydicom import dcmread, dcmwrite
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset

PLANTED = {
    "PatientName": "QUACKENBUSH^ZEBEDEE",
    "PatientID": "MRNQ4711987",
    "PatientBirthDate": "19310704",
    "PatientAddress": "17 Quincunx Crescent",
    "PatientTelephoneNumbers": "617-555-0199",
    "AccessionNumber": "ACCQ990017",
    "InstitutionName": "Quartzdale Infirmary",
    "ReferringPhysicianName": "FEATHERSTONE^ORLANDO",
    "OperatorsName": "PICKLEWORTH^MONA",
    "StudyDescription": "CT for Quackenbush rulefracture",
    "PatientAge": "093Y",
    "ImageComments": "spoke to Quackenbush familyq",
    "OtherPatientIDs": "OTHERQ5512",
}
"""Header elements; private ones, a nested one, file meta, overlays, preamble and tail come on top."""

TRACES = (
    "QUACKENBUSH",
    "Quackenbush",
    "ZEBEDEE",
    "MRNQ4711987",
    "19310704",
    "Quincunx",
    "617-555-0199",
    "ACCQ990017",
    "Quartzdale",
    "FEATHERSTONE",
    "PICKLEWORTH",
    "rulefracture",
    "093Y",
    "familyq",
    "OTHERQ5512",
    "PRIVATEQ1",
    "PRIVATEQ2",
    "NESTEDQ",
    "PREAMBLEQ",
    "OVERLAYQ",
    "TRAILINGQ",
    "PADDINGQ",
    "AETITLEQ",
    "1.2.826.0.1.3680043.9.7777.1",
)


def planted(*, study: int = 1, date: str = "20150312") -> FileDataset:
    """Return CT_small with the carriers planted."""
    dataset = dcmread(get_testdata_file("CT_small.dcm", download=False))
    for keyword, value in PLANTED.items():
        setattr(dataset, keyword, value)
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = date
    dataset.StudyInstanceUID = f"1.2.826.0.1.3680043.9.7777.1.{study}"
    dataset.SeriesInstanceUID = f"1.2.826.0.1.3680043.9.7777.1.{study}.2"
    dataset.SOPInstanceUID = f"1.2.826.0.1.3680043.9.7777.1.{study}.3"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.SourceApplicationEntityTitle = "AETITLEQ"
    block = dataset.private_block(0x0011, "QUAINT CREATOR", create=True)
    block.add_new(0x01, "LO", "PRIVATEQ1 Quackenbush")
    block.add_new(0x02, "UN", b"PRIVATEQ2 bytes")
    request = Dataset()
    request.ScheduledProcedureStepDescription = "NESTEDQ for Zebedee"
    dataset.RequestAttributesSequence = [request]
    reference = Dataset()
    reference.ReferencedSOPClassUID = dataset.SOPClassUID
    reference.ReferencedSOPInstanceUID = f"1.2.826.0.1.3680043.9.7777.1.{2 if study == 1 else 1}.3"
    dataset.SourceImageSequence = [reference]
    dataset.add_new(0x60000010, "US", 8)
    dataset.add_new(0x60000011, "US", 8)
    dataset.add_new(0x60003000, "OW", b"OVERLAYQ")
    dataset.add_new(0x60004000, "LT", "OVERLAYQ comment")
    dataset.add_new(0xFFFCFFFC, "OB", b"PADDINGQ" * 4)
    return dataset


def as_bytes(dataset: FileDataset) -> bytes:
    """Return the file, with words in the preamble and behind the data set."""
    dataset.preamble = b"PREAMBLEQ".ljust(128, b"\0")
    stream = io.BytesIO()
    dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue() + b"TRAILINGQ Quackenbush"


def plant_source(folder: Path) -> Path:
    """Write two studies of one patient, one of another, a table and a text file."""
    images = folder / "QUACKENBUSH_ZEBEDEE" / "MRNQ4711987"
    images.mkdir(parents=True)
    (images / "quackenbush-1.dcm").write_bytes(as_bytes(planted(study=1, date="20150312")))
    (images / "quackenbush-2.dcm").write_bytes(as_bytes(planted(study=2, date="20150426")))
    other = planted(study=5)
    other.PatientName, other.PatientID = "OTHERMAN^IGOR", "MRNQ8822"
    other.AccessionNumber, other.OtherPatientIDs = "ACCQ990018", ""
    (folder / "b").mkdir()
    (folder / "b" / "otherman.dcm").write_bytes(as_bytes(other))
    (images / "ACCQ990017.txt").write_text(
        "Zebedee Quackenbush, MRN MRNQ4711987, born 07/04/1931, was seen on 03/12/2015 at Quartzdale "
        "Infirmary. "
        "Compared with 12 March 2015: nodule of 4.2 mm. Mr. Quackenbush called from 617-555-0199. Lives at "
        "17 Quincunx Street, Boston. Signed by: Orlando Featherstone, MD",
        "utf-8",
    )
    (folder / "reports.csv").write_text(
        "patient_id,accession,patient_name,phone,study_date,sex,age,report,image,remark\n"
        "MRNQ4711987,ACCQ990017,Zebedee Quackenbush,617-555-0199,2015-03-12,M,93,"
        '"FINDINGS: Mr. Quackenbush has a 4.2 cm mass, as on 03/12/2015.",quackenbush-1.dcm,CANARYQ\n'
        "MRNQ8822,ACCQ990018,Igor Otherman,617-555-0198,2015-04-26,F,45,"
        '"FINDINGS: Igor is well. Discussed with Dr. Featherstone.",otherman.dcm,CANARYQ2\n',
        "utf-8",
    )
    return folder
