"""What the originals say of people: read once a file, for the join of tables and for the audit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from medvl.errors import InputError
from medvl.preprocess.deid.header import FREE_TEXT, elements_of, identity_of, strings_of
from medvl.preprocess.deid.profile import row_of
from medvl.preprocess.reading.limits import DEFAULT_LIMITS
from medvl.preprocess.reading.part10 import PIXEL_TAGS, opened, text

__all__ = ["Facts", "read_facts"]

_KINDS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("address", re.compile("Address|CountryOf|RegionOf|Location")),
    ("phone", re.compile("Telephone|Telecom")),
    ("institution", re.compile("Institution|Department|Organization|Facility|Site")),
    ("device", re.compile("Device|Station|Serial|Detector|Gantry|Plate|Cassette|AE|Network")),
    ("id", re.compile("ID$|IDs$|Number|Identifier")),
)
_PRINTABLE = re.compile(rb"[\x20-\x7e]{6,}")
_DATE = re.compile(r"(\d{4})[-./]?(\d\d)[-./]?(\d\d)")


@dataclass(frozen=True)
class Facts:
    """What one DICOM file says of its patient and of everybody else.

    Attributes:
        patient: what joins the patient's files: PatientID, or else the name, or else the study.
        names, numbers: as :func:`medvl.preprocess.deid.header.identity_of` returns them.
        accession, study_uid, series_uid, sop_uid: identifiers of the header.
        carriers: kind and value of everything that identifies.
        dates: every date of the header, as eight digits; the birth date is not among them.
        birth_dates: the dates of birth.
        harmless: values of elements that stay: a private copy of one identifies nobody.
    """

    patient: str
    names: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    accession: str = ""
    study_uid: str = ""
    series_uid: str = ""
    sop_uid: str = ""
    carriers: tuple[tuple[str, str], ...] = ()
    dates: tuple[str, ...] = ()
    birth_dates: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ()


def read_facts(path: Path) -> Facts | None:
    """Read what a DICOM file says of people; None where it cannot be read, which cleaning will say."""
    try:
        with opened(path, limits=DEFAULT_LIMITS, lenient=True) as part10:
            dataset = part10.dataset
            uid = text(dataset, "StudyInstanceUID")
            carriers, dates, births, harmless = _carriers(dataset)
            names, numbers = identity_of(dataset)
            return Facts(
                patient=text(dataset, "PatientID") or text(dataset, "PatientName") or uid,
                names=names,
                numbers=numbers,
                accession=text(dataset, "AccessionNumber"),
                study_uid=uid,
                series_uid=text(dataset, "SeriesInstanceUID"),
                sop_uid=text(dataset, "SOPInstanceUID"),
                carriers=tuple(carriers),
                dates=tuple(dates),
                birth_dates=tuple(births),
                harmless=tuple(harmless),
            )
    except InputError:
        return None


def _carriers(
    dataset: Dataset,
) -> tuple[dict[tuple[str, str], None], dict[str, None], dict[str, None], dict[str, None]]:
    carriers: dict[tuple[str, str], None] = {}
    dates: dict[str, None] = {}
    births: dict[str, None] = {}
    harmless: dict[str, None] = {}
    for element in elements_of(dataset):
        if element.tag in PIXEL_TAGS:
            continue
        values = list(_words(element.value))
        if element.VR in ("DA", "DT") and not element.tag.is_private:
            into = births if "Birth" in element.keyword else dates
            into.update((f"{m[1]}{m[2]}{m[3]}", None) for value in values if (m := _DATE.match(value)))
            continue
        kind = _kind(element.tag, element.VR, element.keyword)
        if kind is None:
            harmless.update(dict.fromkeys(values))
        else:
            carriers.update(dict.fromkeys((kind, value) for value in values if value))
    return carriers, dates, births, harmless


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, bytes):
        yield from (run.decode("ascii").strip() for run in _PRINTABLE.findall(value[:65536]))
    else:
        yield from strings_of(value)


def _kind(tag: Any, vr: str, keyword: str) -> str | None:
    """Return what an element's value identifies, or None for elements that a clean file keeps."""
    if tag.is_private:
        return "private"
    if vr in ("TM", "AS", "DS", "IS", "US", "SS", "UL", "SL", "FL", "FD", "AT", "OW", "OF", "OD", "OL"):
        return None
    row = row_of(tag)
    if vr == "PN":
        return "name"
    if row is None:
        return "comment" if vr in FREE_TEXT or (tag.group >> 8) in (0x50, 0x60) else None
    if vr == "UI":
        return "uid"
    if any(row.options.get(option) == "K" for option in ("patient",)):
        return None
    return next((kind for kind, pattern in _KINDS if pattern.search(keyword)), "comment")
