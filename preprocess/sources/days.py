"""The last key: one patient and one day, where nothing ties and no identifier says otherwise."""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from medvl.preprocess.sources.headers import FoundImage
from medvl.preprocess.sources.identifiers import calendar, loose
from medvl.preprocess.sources.rows import Row

__all__ = ["NEAR_DAYS", "Claim", "claims_by_day", "study_key"]

NEAR_DAYS = 1
"""A report dictated after midnight carries the next day."""


@dataclass
class Claim:
    """Rows that lie nearest to a study: the places of its images, the distance, and whether it ties."""

    places: list[int]
    rows: list[Row]
    days_apart: int
    tied: bool


@dataclass
class _Study:
    patient: str
    day: datetime.date
    places: list[int]


def study_key(image: FoundImage) -> str:
    """Return what the images of one study share by their headers, "" without a header."""
    header = image.header
    if header is None:
        return ""
    return header.study_uid or header.accession or f"{header.patient_id}\0{header.study_date}"


def claims_by_day(
    rows: Sequence[Row], images: Sequence[FoundImage], *, open_places: Collection[int]
) -> tuple[list[Claim], str]:
    """Return the rows that patient and day give to studies, and what a user should know of the dates.

    A row goes to the nearest study of its patient within a day, and a study takes its nearest rows. Two
    studies equally near to a row tie, and so do rows of two days equally near to a study.

    Args:
        rows: rows that no image has by a better key.
        images: all images.
        open_places: indices of the images without a row.
    """
    days, note = calendar([row.get("date") for row in rows])
    dated = [
        (row, day) for row, day in zip(rows, days, strict=True) if day is not None and row.get("patient")
    ]
    if not dated:
        return [], note
    told = _sole(row.get("patient") for row, _ in dated)
    stated = _sole(image.header.patient_id for image in images if image.header is not None)
    by_patient: dict[str, list[tuple[Row, datetime.date]]] = defaultdict(list)
    for row, day in dated:
        by_patient[loose(row.get("patient"))].append((row, day))
    claims = []
    for study in _studies(images, open_places):
        if study.patient in told and study.patient in stated:
            image = images[study.places[0]]
            near = [pair for pair in by_patient[study.patient] if not _contradicts(pair[0], image)]
            claims += _nearest(study, near)
    return _settled(claims), note


def _sole(patients: Iterable[str]) -> set[str]:
    """Return the loose forms that only one way of writing has."""
    forms: dict[str, set[str]] = defaultdict(set)
    for patient in patients:
        forms[loose(patient)].add(patient)
    return {form for form, written in forms.items() if form and len(written) == 1}


def _studies(images: Sequence[FoundImage], open_places: Collection[int]) -> list[_Study]:
    found: dict[str, _Study] = {}
    for place in open_places:
        header = images[place].header
        if header is not None and header.patient_id:
            (day,), _ = calendar([header.study_date])
            if day is not None:
                study = _Study(loose(header.patient_id), day, [])
                found.setdefault(study_key(images[place]), study).places.append(place)
    return list(found.values())


def _contradicts(row: Row, image: FoundImage) -> bool:
    """Whether the row names another study than the header: both state a key, and it did not match."""
    return any(row.get(role) and image.ids().get(role) for role in ("accession", "study_uid"))


def _nearest(study: _Study, dated: Sequence[tuple[Row, datetime.date]]) -> list[Claim]:
    apart = [(abs((day - study.day).days), day, row) for row, day in dated]
    least = min((distance for distance, _, _ in apart), default=NEAR_DAYS + 1)
    if least > NEAR_DAYS:
        return []
    rows = [row for distance, _, row in apart if distance == least]
    return [
        Claim(study.places, rows, least, len({day for distance, day, _ in apart if distance == least}) > 1)
    ]


def _settled(claims: Sequence[Claim]) -> list[Claim]:
    """Leave a row to the study that lies nearest; mark the studies that share it at one distance."""
    claimants: dict[int, list[Claim]] = defaultdict(list)
    for claim in claims:
        for row in claim.rows:
            claimants[id(row)].append(claim)

    def rivals(claim: Claim) -> list[int]:
        return [other.days_apart for row in claim.rows for other in claimants[id(row)] if other is not claim]

    kept = [claim for claim in claims if all(apart >= claim.days_apart for apart in rivals(claim))]
    for claim in kept:
        claim.tied |= any(apart == claim.days_apart for apart in rivals(claim))
    return kept
