"""The quality page and the checks behind it: what they count, and that no text can break out of the page."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from medvl.notice import NOTICE
from medvl.preprocess.checks import check_records, check_store
from medvl.preprocess.chunks import Failure
from medvl.preprocess.quality import _histogram, render_quality
from medvl.preprocess.reports import parse_report
from medvl.records import Box, Record
from medvl.specs import PixelSpec, ReportSpec, text_hash
from medvl.store import write_shard

HOSTILE = '</td></script><script>alert(1)</script><img src=x onerror="alert(2)">{{ 7*7 }} &amp;'


def record(number: int, *, text: str = "", **changes) -> Record:
    report = parse_report(text)
    values = {
        "record_id": f"{number:020x}",
        "study_id": f"s{number}",
        "patient_id": f"p{number}",
        "modality": "cxr",
        "split": "train",
        "source_kind": "dicom",
        "report": text,
        "sections": report.sections,
        "sentences": report.sentences,
        "retrieval": ReportSpec().render(report, "retrieval"),
        "generation": ReportSpec().render(report, "generation"),
        "text_hash": text_hash(text),
        "pixel_hash": f"x{number}",
        "pixel_digest": PixelSpec().digest,
        "report_digest": ReportSpec().digest,
        "shape": (30, 40),
        "dtype": "uint8",
        "source_shape": (60, 80),
        "spacing_mm": (0.5, 0.5),
        "spacing_frame": "detector",
        "view": "PA",
    }
    return Record(**(values | changes))


def found(records: list[Record]) -> dict[str, tuple[str, int]]:
    return {check.name: (check.level, check.count) for check in check_records(records) if check.count}


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([record(0, text="Nodule."), record(1, text="Effusion.")], {}),
        (
            [
                record(0, text="Nodule.", patient_id="p"),
                record(1, text="Effusion.", patient_id="p", split="test"),
            ],
            {"patient-leak": ("problem", 1)},
        ),
        (
            [
                record(0, text="Nodule.", pixel_hash="x"),
                record(1, text="Effusion.", pixel_hash="x", split="val"),
            ],
            {"pixel-leak": ("problem", 1), "equal-pixels": ("note", 1), "pixel-patients": ("problem", 1)},
        ),
        (
            [record(0, text="No mass."), record(1, text="no  MASS.", split="test")],  # the same words
            {"report-leak": ("note", 1), "report-patients": ("note", 1)},
        ),
        (
            [
                record(k, text="Nodule.", study_id="s", patient_id="p", pixel_hash=f"{k // 2}")
                for k in range(3)
            ],
            {"equal-pixels": ("note", 1)},
        ),
        (
            [
                record(0, text="Nodule.", study_id="s", patient_id="p", labels={"nodule": "present"}),
                record(1, text="Effusion.", study_id="s", patient_id="p", labels={"nodule": "absent"}),
            ],
            {"study-reports": ("note", 1), "label-conflict": ("problem", 1)},
        ),
        (
            [
                record(0, text="Nodule.", study_id="s", patient_id="p", labels={"nodule": "present"}),
                record(1, text="Nodule.", study_id="s", patient_id="p", labels={"nodule": "uncertain"}),
            ],
            {},
        ),
        ([record(0), record(1), record(2, text="Nodule.")], {"no-report": ("note", 2)}),
        ([record(0, text="Dictated by Dr. Jane Roe.", retrieval=())], {"no-sentence": ("note", 1)}),
    ],
)
def test_checks_count_what_is_wrong(records, expected):
    assert found(records) == expected


def test_checks_name_the_records():
    twins = [
        record(0, text="Nodule.", pixel_hash="x"),
        record(7, text="Effusion.", pixel_hash="x", split="val"),
    ]
    leak = next(check for check in check_records(twins) if check.name == "pixel-leak")
    assert leak.groups == ((f"{0:020x}", f"{7:020x}"),)


def test_a_store_is_checked_by_its_records(tmp_path):
    import json

    from medvl.store import FORMAT, Store, index_bytes

    records = [
        record(0, text="Nodule.", patient_id="p"),
        record(1, text="Effusion.", patient_id="p", split="test"),
    ]
    (tmp_path / "index.parquet").write_bytes(index_bytes(records))
    (tmp_path / "store.json").write_text(json.dumps({"format": FORMAT}))
    expected = check_records(records)
    assert list(check_store(Store(tmp_path)).checks[: len(expected)]) == expected


class Page(HTMLParser):
    """The tags, attributes and visible words of a page, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.words.append(data)

    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def render(tmp_path, records, **changes) -> Page:
    pictures = [np.full((30, 40), 7 * k, np.uint8) for k in range(len(records))]
    placed = write_shard(tmp_path / "000000.tar", list(zip(records, pictures, strict=True)))
    counts = {"files": 9, "records": len(records), "studies": 3, "patients": 2, "failed": 1}
    arguments = {
        "failures": [Failure("a", "file-0123456789", "DecodeError", "no decoder")],
        "counts": counts | {"unpaired": {"image_without_report": 4}},
        "columns": {"text": "report"},
        "notes": (),
        "kinds": {"DICOM RLE Lossless": 2},
        "checks": check_records(records),
        "pixels": PixelSpec(),
        "report": ReportSpec(),
        "shards": tmp_path,
    }
    return Page(render_quality(placed, **(arguments | changes)))


def test_the_page_says_what_is_in_the_store(tmp_path):
    records = [
        record(0, text="HISTORY: Cough. FINDINGS: Nodule.", labels={"nodule": "present"}, inverted=True),
        record(1, text="HISTORY: Cough. FINDINGS: Nodule.", labels={"nodule": "absent"}, split="test"),
        record(2, boxes=(Box("nodule", 2.0, 3.0, 12.0, 23.0),), view="LATERAL"),
    ]
    page = render(tmp_path, records)
    words = page.text()
    for part in (
        NOTICE,
        "1 of 9 images failed",
        "2 records with a report",
        "DecodeError no decoder file-0123456789",
        "image_without_report 4",
        "text report",
        "DICOM RLE Lossless 2",
        "PA 2 67",
        "LATERAL 1 33",
        "MONOCHROME1, inverted once 1 33",
        "1 different reports · words each",
        "2 studies, 2 patients",
        "section history",
        "nodule 1 0 1 0 1",  # present, unchanged, absent, uncertain, unknown
        PixelSpec().digest,
        ReportSpec().digest,
        "1 equal reports in more than one split",
    ):
        assert part in words, part
    assert page.tags.count("image") == 3 and page.tags.count("rect") == 1
    assert ("width", "10.0") in page.attributes and ("height", "20.0") in page.attributes


def test_the_page_loads_nothing_and_runs_nothing(tmp_path):
    page = render(tmp_path, [record(0, text="Nodule.")])
    assert not {"script", "link", "iframe", "object", "embed", "form"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href"):
            assert value.startswith("data:image/jpeg;base64,")
    assert ("content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in page.attributes


def test_hostile_text_is_shown_and_not_obeyed(tmp_path):
    hostile = [
        record(
            k,
            text=f"FINDINGS: {HOSTILE}",
            view=HOSTILE,
            laterality=HOSTILE,
            labels={HOSTILE: "present"},
            boxes=(Box(HOSTILE, 1.0, 1.0, 2.0, 2.0),),
            notes=(HOSTILE,),
            geometry=HOSTILE,
        )
        for k in range(2)
    ]
    page = render(
        tmp_path,
        hostile,
        columns={"text": HOSTILE},
        kinds={HOSTILE: 1},
        notes=(HOSTILE,),
        failures=[Failure("a", HOSTILE, HOSTILE, HOSTILE)],
    )
    assert "script" not in page.tags and "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    # Seen as written at each place; the template engine has not computed 7 × 7 either.
    assert len(re.findall(re.escape("<script>alert(1)</script>"), page.text())) >= 10
    assert "{{ 7*7 }}" in page.text() and "49" not in page.text()


def test_an_empty_store_has_a_page(tmp_path):
    page = render(tmp_path, [])
    assert "No record." in page.text() and "No labels were given." in page.text()


def test_numbers_that_are_nearly_equal_make_a_histogram():
    """Between 3 and 3 + 1e-15 there are not as many numbers as edges."""
    bars = _histogram([3.0, 3.0 + 1e-15, 3.0])["bars"]
    assert sum(bar["count"] for bar in bars) == 3
