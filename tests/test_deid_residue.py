"""What headers hide, what the second search of the audit sees, and files that kill their process."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from deidcases import as_bytes, plant_source, planted
from pydicom import dcmread
from pydicom.dataset import Dataset

from medvl.preprocess.deid.audit import audit, collect_carriers
from medvl.preprocess.deid.carriers import Carriers, Place
from medvl.preprocess.deid.facts import read_facts
from medvl.preprocess.deid.isolation import in_processes
from medvl.preprocess.deid.residue import PlainSearch
from medvl.preprocess.deid.run import deidentify

KEY = bytes(range(32))


def item(**values):
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def cleaned(dataset, folder):
    """Return the summary of a run on one file, and the clean file if there is one."""
    (folder / "in").mkdir()
    (folder / "in" / "a.dcm").write_bytes(as_bytes(dataset))
    summary = deidentify(folder / "in", folder / "out", key=KEY, pixels="off", workers=1)
    return summary, next(iter((folder / "out").rglob("*.dcm")), None)


def deep(dataset):
    inner = item(PatientName="SECRETQ^B", InstitutionName="SECRETQ", TextValue="Mr. Quackenbush")
    inner.add_new(0x00110010, "LO", "SECRETQ")
    inner.add_new(0x00111001, "UN", b"SECRETQ ")
    for _ in range(3):
        inner = item(ReferencedImageSequence=[inner], ContentSequence=[inner])
    dataset.ContentSequence = [inner]


def nested_pixels(dataset):
    dataset.ReferencedImageSequence = [item(BitsAllocated=8, PixelData=b"SECRETQSECRETQ!!")]


def directory(dataset):
    dataset.add_new(0x00041130, "CS", "SECRETQ")
    dataset.add_new(0x00041500, "CS", ["SECRETQ", "B"])


def japanese(dataset):
    dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    dataset.PatientName = "Secretq^T=山田^太郎"
    dataset.FilterType, dataset.ConvolutionKernel = "山田 太郎", "SECRETQ T."


def spelt(dataset):
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName = "SECRÈTQ^JÜRGEN"
    dataset.ContrastBolusAgent, dataset.FilterType = "for secretq", "SECRETQ_JUERGEN"


def cut_number(dataset):
    dataset.PatientID = "AB1234567"
    dataset.ConvolutionKernel, dataset.FilterType = "AB 123-4567", "AB.1234567"


@pytest.mark.parametrize("plant", [deep, nested_pixels, directory, japanese, spelt, cut_number])
def test_no_header_hides_anything(plant, tmp_path):
    dataset = planted()
    plant(dataset)
    summary, path = cleaned(dataset, tmp_path)
    assert summary.complete, summary.lines()
    data = path.read_bytes()
    hidden = (
        b"SECRETQ",
        "山田".encode("iso2022_jp")[3:7],
        b"123-4567",
        b"1234567",
        b"3680043.9.7777",
        b"JUERGEN",
    )
    assert [word for word in hidden if word.lower() in data.lower()] == []


def test_unused_bits_of_unsigned_pixels_are_cleared(tmp_path):
    dataset = planted()
    grey = np.frombuffer(dataset.PixelData, "<u2") & 0x0FFF
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, 0
    dataset.PixelData = (grey | 0xA000).astype("<u2").tobytes()
    _, path = cleaned(dataset, tmp_path)
    np.testing.assert_array_equal(np.frombuffer(dcmread(path).PixelData, "<u2"), grey)


def test_an_encapsulated_document_is_refused(tmp_path):
    dataset = planted()
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.104.1"
    del dataset.PixelData
    dataset.EncapsulatedDocument = b"%PDF SECRETQ"
    summary, path = cleaned(dataset, tmp_path)
    assert path is None and summary.refused == {"KindNotCleaned": 1} and not summary.complete


class Deadly(type(Path())):
    """A path that ends the process that asks for it."""

    def __fspath__(self) -> str:
        os._exit(9)

    def __str__(self) -> str:
        os._exit(9)

    def stat(self, **_: object) -> os.stat_result:
        os._exit(9)

    def open(self, *_: object, **__: object) -> None:
        os._exit(9)


@pytest.mark.slow
def test_a_header_that_kills_its_process_costs_one_file(tmp_path):
    path = tmp_path / "a.dcm"
    path.write_bytes(as_bytes(planted()))
    paths = [path] * 10 + [Deadly("b.dcm")] + [path] * 10
    facts = dict(in_processes(read_facts, paths, workers=2, crashed=None))
    assert [place for place in range(21) if facts[place] is None] == [10]


def test_results_come_for_every_task_without_processes():
    assert dict(in_processes(abs, [-1, 2], workers=1, crashed=-1)) == {0: 1, 1: 2}


RESIDUE = [
    ("x_Quackenbushington9", "name"),
    ("quackenbush", "name"),
    ("ZebedeeQuackenbush", "name"),
    ("zebedee2", "name"),
    ("mrnq4711987.dcm", "id"),
    ("oldMRNQ4711987x", "id"),
    ("AB-1234567", "id"),
    ("小东来了", "name"),
]


@pytest.mark.parametrize(("words", "kind"), RESIDUE)
def test_the_plain_search_finds(words, kind):
    search = PlainSearch(
        ["QUACKENBUSH^ZEBEDEE", "Wang^X=王^小东"], ["MRNQ4711987", "AB-1234567"], ordinary=()
    )
    assert kind in set(search.found(words))


def test_the_plain_search_finds_names_in_any_encoding():
    search = PlainSearch(["Wang^X=王^小东", "MÜLLER^A"], [], ordinary=())
    for encoding in ("utf-8", "gb18030"):
        assert list(search.found_in_bytes(b"\0\1" + "小东".encode(encoding) + b"\2")) == ["name"]
    assert list(search.found_in_bytes("x MÜLLER".encode("latin-1"))) == ["name"]


@pytest.mark.parametrize(
    "words",
    [
        "across the sternum",
        "Baker cyst",
        "2.25.1234567890123",
        "abedfab0123",
        "agreed; rich",
        "the 12345 films",
    ],
)
def test_the_plain_search_raises_no_false_alarm(words):
    names = ["ROSS^ANN", "STERN^RICH", "BAKER^REED", "ABED^FRANK"]
    assert list(PlainSearch(names, ["345678", "1234"], ordinary=()).found(words)) == []


def test_a_residue_that_the_parser_of_names_overlooks_is_found():
    carriers = Carriers()
    carriers.add("name", "QUACKENBUSH^ZEBEDEE")
    carriers.values["id"].add("MRNQ4711987")
    assert list(carriers.found(Place("text", "a zebedee2_quackenbushs film"))) == ["name"]
    assert list(carriers.found(Place("text", "no one is named here"))) == []


def test_a_planted_residue_makes_the_audit_fail(tmp_path):
    source = plant_source(tmp_path / "source")
    summary = deidentify(source, tmp_path / "out", key=KEY, pixels="off", workers=1)
    assert summary.complete, summary.lines()
    carriers = collect_carriers(source)
    text = next((tmp_path / "out" / "text").iterdir())
    text.write_text(text.read_text("utf-8") + " see quackenbushfilm9", "utf-8")
    report = audit(carriers, tmp_path / "out")
    assert not report.clean and {finding.kind for finding in report.findings} == {"name"}
