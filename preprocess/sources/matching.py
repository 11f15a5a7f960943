"""Rows under the keys of images: identifiers of the header, file names, names of folders, patient and day."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pandas as pd

from medvl.errors import file_token
from medvl.preprocess.sources.columns import Columns
from medvl.preprocess.sources.days import NEAR_DAYS, claims_by_day, study_key
from medvl.preprocess.sources.headers import FoundImage
from medvl.preprocess.sources.identifiers import loose
from medvl.preprocess.sources.labels import row_labels
from medvl.preprocess.sources.names import NO_FIT, Fit, Names, named_after, path_parts
from medvl.preprocess.sources.rows import Row, Unpaired
from medvl.preprocess.sources.tables import TOO_LONG
from medvl.specs import text_hash

__all__ = ["KEYS", "Match", "ReportTable", "merged"]

KEYS = ("accession", "study_uid", "sop_uid", "study")
_MOST_VIEWS = 8


@dataclass
class Match:
    """What one source says of one image.

    Attributes:
        method: the kind of key under which rows were found, or ``none``.
        rows: all of them; ``row`` is the one to take.
        refusal: why none can be taken.
    """

    method: str = "none"
    rows: list[Row] = field(default_factory=list)
    score: Fit = NO_FIT
    refusal: str = ""

    @property
    def row(self) -> Row | None:
        """The first row with a final report, else with a report, else the first row."""
        final = (row for row in self.rows if row.text and not row.preliminary)
        said = (row for row in self.rows if row.text)
        return next(final, None) or next(said, None) or next(iter(self.rows), None)

    def get(self, role: str) -> str:
        """Return the first cell of a role that says something, "" when none does."""
        return next((value for row in self.rows if (value := row.get(role))), "")


def merged(matches: Sequence[Match]) -> Match:
    """Return what all sources together say of one image: the row of each, the table's first.

    A source that had to refuse the image counts only where no other has a report for it.
    """
    told = [match for match in matches if match.rows and not match.refusal]
    refused = [match for match in matches if match.refusal]
    rows = [row for match in told if (row := match.row)]
    if refused and not any(row.text for row in rows):
        return refused[0]
    chosen = next((match for match in told if match.row and match.row.text), next(iter(told), Match()))
    return Match(chosen.method, rows, chosen.score, _conflict(rows))


def _conflict(rows: Sequence[Row]) -> str:
    """Two final reports that differ are a conflict; a preliminary one gives way to a final one."""
    for stage in (False, True):
        texts = {text_hash(row.text) for row in rows if row.text and row.preliminary is stage}
        if texts:
            return "conflicting_reports" if len(texts) > 1 else ""
    return ""


class ReportTable:
    """The rows of one source, indexed by each kind of key."""

    def __init__(self, columns: Columns, rows: list[Row]) -> None:
        self.columns = columns
        self.rows = rows
        self.notes: list[str] = []
        self.unpaired: list[Unpaired] = []
        self.by = {role: _index((row.get(role), row) for row in rows) for role in KEYS}
        self.also = {
            role: _index((value, row) for row in rows for value in row.also.get(role, ()))
            for role in ("accession", "study_uid")
        }
        self.names = Names((name, (row, name)) for row in rows for name in row.images)
        self.folders = _index((row.folder, row) for row in rows)
        for row in rows:
            row.missing = set(row.images)

    @classmethod
    def of(cls, frame: pd.DataFrame, columns: Columns, *, path: Path | None = None) -> ReportTable:
        """Return the rows of a table; ``path`` where it is not the table of the reports."""
        cells = [{str(name): str(cell) for name, cell in row.items()} for row in frame.to_dict("records")]
        states = row_labels(frame, columns)
        rows = []
        for line, row, labels in zip(frame.index, cells, states, strict=True):
            told = columns.values(row)
            images = [part.strip() for part in re.split(r"[;|]", told.get("image", "")) if part.strip()]
            rows.append(Row(int(line), told, columns.report_text(row), labels, tuple(images), path=path))
        table = cls(columns, rows)
        table.unpaired = [
            Unpaired("report_too_long", line=int(line)) for line in frame.attrs.get(TOO_LONG, ())
        ]
        return table

    # --- matching -------------------------------------------------------------------------------------------

    def match_all(self, images: Sequence[FoundImage]) -> list[Match]:
        """Give each image its rows; refuse what would be a guess.

        ``conflicting_reports``: its rows hold different texts. ``ambiguous_file_name``: the row's file name
        fits several images equally well, or more files are named after its study than a study has views;
        one that fits it less well than another has no row.
        ``ambiguous_patient_date``: two studies of a patient lie as near to a row, or two rows to a study.
        """
        alone = _folders_of_one_study(images) if any(self.folders) else set()
        matches = [self._match(image, alone) for image in images]
        best: dict[int, Fit] = defaultdict(lambda: NO_FIT)
        for match in (match for match in matches if match.method == "file"):
            best[id(match.rows[0])] = max(best[id(match.rows[0])], match.score)
        for match in matches:
            if match.method == "file" and match.score < best[id(match.rows[0])]:
                match.method, match.rows = "none", []
        claims = _claims(images, matches)
        self._match_loosely(images, matches)
        self._match_days(images, matches)
        for match in matches:
            for row in match.rows:
                row.used = True
            if not match.refusal:
                match.refusal = _conflict(match.rows)
            if not match.refusal and match.method in ("file", "name"):
                row = match.rows[0]
                fits = _FITS[match.method](row, claims[id(row)])
                match.refusal = "" if fits else "ambiguous_file_name"
        return matches

    def _match(self, image: FoundImage, alone: set[str]) -> Match:
        ids = image.ids()
        score, named = self.names.find(image.file.relative)
        for row, name in named:
            row.missing.discard(name)
        by_name = [row for row, _ in named]
        exact = self.by["sop_uid"].get(ids.get("sop_uid", ""), []) or by_name
        for method in ("accession", "study_uid", "sop_uid"):
            rows = self._keyed(method, ids.get(method, ""), image)
            if rows:
                own = [row for row in rows if any(row is other for other in exact)]
                return Match(method, own or rows)
        if by_name:
            return Match("file", by_name, score)
        if rows := self._named_after(image):
            return Match("name", rows)
        for folder in (part.as_posix() for part in PurePosixPath(image.file.relative).parents):
            part = PurePosixPath(folder).name
            for name in (part, part[1:] if part[:1] == "s" else part):  # MIMIC writes s50414267
                if rows := self.by["study"].get(name) or self.by["study"].get(f"s{name}", []):
                    return Match("folder", _of_patient(rows, image))
            rows = self.folders.get(folder, []) if folder in alone else []
            if rows := [row for row in rows if image.header is not None or not row.get("study")]:
                return Match("folder", rows)
        return Match()

    def _keyed(self, method: str, value: str, image: FoundImage) -> list[Row]:
        if not value:
            return []
        rows = self.by[method].get(value) or self.by["study"].get(value, [])
        if rows or method not in self.also:
            return rows
        # an order's second number may be another order's first: the patient must not say otherwise
        patient = loose(image.header.patient_id) if image.header is not None else ""
        return [
            row
            for row in self.also[method].get(value, [])
            if not row.get("patient") or patient in map(loose, (row.get("patient"), *row.ids))
        ]

    def _named_after(self, image: FoundImage) -> list[Row]:
        """Return the rows whose study the file is named after, where neither of the two says otherwise."""
        ids = image.ids()
        for name in named_after(image.file.relative):
            for role in ("accession", "study_uid", "study"):
                rows = [] if ids.get("accession") or ids.get(role) else self.by[role].get(name, [])
                # a text file of the very stem has had its turn, by path
                shorter = name != path_parts(image.file.relative)[0]
                if rows := [row for row in rows if not row.images or (row.origin == "text" and shorter)]:
                    return rows
        return []

    def _match_loosely(self, images: Sequence[FoundImage], matches: Sequence[Match]) -> None:
        """Match accession numbers that differ in form alone, where the form is unique on both sides."""
        stated: dict[str, set[str]] = defaultdict(set)
        for image in images:
            for value in _stated(image):
                stated[loose(value)].add(value)
        told: dict[str, set[str]] = defaultdict(set)
        rows: dict[str, list[Row]] = defaultdict(list)
        for value in {*self.by["accession"], *self.by["study"]} if stated else ():
            told[loose(value)].add(value)
            rows[loose(value)] += self.by["accession"].get(value) or self.by["study"].get(value, [])
        count = 0
        for image, match in zip(images, matches, strict=True):
            form = next((form for value in _stated(image) if (form := loose(value)) in told), "")
            fits = match.method == "none" and form and len(stated[form]) == 1 == len(told[form])
            if fits and (image.header is not None or not any(row.images for row in rows[form])):
                match.method, match.rows = "loose", rows[form]
                count += 1
        if count:
            self.notes.append(
                f"{count} images were matched after accession numbers were brought into one form (blanks, "
                "case, prefix, leading zeros, a trailing .0)"
            )

    def _match_days(self, images: Sequence[FoundImage], matches: Sequence[Match]) -> None:
        used = {id(row) for match in matches for row in match.rows}
        free = [row for row in self.rows if id(row) not in used]
        places = [place for place, match in enumerate(matches) if match.method == "none"]
        claims, note = claims_by_day(free, images, open_places=places)
        for claim in claims:
            for place in claim.places:
                refusal = "ambiguous_patient_date" if claim.tied else ""
                matches[place].method, matches[place].rows = "patient_date", claim.rows
                matches[place].refusal = refusal
        count = sum(len(claim.places) for claim in claims if not claim.tied)
        if note and self.columns.date and self.columns.patient:
            self.notes.append(f"column {self.columns.date}: {note}")
        if count:
            self.notes.append(
                f"{count} images were matched by patient and study date, {NEAR_DAYS} day apart or less"
            )

    def unused(self, source: Path) -> Iterator[Unpaired]:
        """Yield each row, or image name in a row, that no image has."""
        used = {(row.path, row.line) for row in self.rows if row.used}
        told: set[tuple[Path | None, int]] = set()
        for row in self.rows:
            token, place = file_token(row.path) if row.path else "", (row.path, row.line)
            if not row.used and place in used:  # a report joined to several images, of which some are there
                yield Unpaired("named_image_missing", token, row.line, row.path)
            elif not row.used and (place not in told or row.origin != "table"):
                told.add(place)
                yield Unpaired(_why_unused(row, source), token, row.line, row.path)
            elif row.origin == "table" and len(row.images) > len(row.missing):
                for _ in row.missing:
                    yield Unpaired("named_image_missing", token, row.line)


def _of_patient(rows: list[Row], image: FoundImage) -> list[Row]:
    """Return those rows whose patient is a folder of the image, where there are any: ``p7/study1/a.png``."""
    folders = PurePosixPath(image.file.relative).parts[:-1]
    return [row for row in rows if row.get("patient") in folders] or rows


def _index(pairs: Iterable[tuple[str, Row]]) -> dict[str, list[Row]]:
    index: dict[str, list[Row]] = {}
    for value, row in pairs:
        if value:
            index.setdefault(value, []).append(row)
    return index


def _stated(image: FoundImage) -> tuple[str, ...]:
    """Return the accession number of the header; where there is no header, what the file is named after."""
    if image.header is None:
        return named_after(image.file.relative)
    return (image.header.accession,) if image.header.accession else ()


def _claims(images: Sequence[FoundImage], matches: Sequence[Match]) -> dict[int, list[str]]:
    """Return the folders of the images that claim a row by a name, under the identity of the row."""
    claims: dict[int, list[str]] = defaultdict(list)
    for image, match in zip(images, matches, strict=True):
        if match.method in _FITS:
            claims[id(match.rows[0])].append(image.file.relative.rpartition("/")[0])
    return claims


def _are_named(row: Row, folders: Sequence[str]) -> bool:
    """Whether a row names so many images; a text file has a path and a stem for one."""
    return len(folders) <= (1 if row.origin == "text" else len(row.images))


def _are_views(row: Row, folders: Sequence[str]) -> bool:
    """Whether files named after a row can be its views; a text's name is unique in a folder only."""
    return len(folders) <= _MOST_VIEWS and (row.origin != "text" or len(set(folders)) == 1)


_FITS = {"file": _are_named, "name": _are_views}


def _why_unused(row: Row, source: Path) -> str:
    if any(_leaves(name, source) for name in row.images):
        return "path_outside_source"
    if row.origin == "text":
        return "text_without_image"
    return "report_without_image" if row.text else "row_without_image"


def _folders_of_one_study(images: Sequence[FoundImage]) -> set[str]:
    """Return the folders below which all images are of one study.

    Images without a header are one study only in the very folder that holds them, and only if they are no
    more than a study has views.
    """
    folders = [[part.as_posix() for part in PurePosixPath(i.file.relative).parents] for i in images]
    sizes = Counter(own for own, *_ in folders)
    studies: dict[str, set[str]] = defaultdict(set)
    for image, (own, *above) in zip(images, folders, strict=True):
        key = study_key(image)
        studies[own].add(key or (own if sizes[own] <= _MOST_VIEWS else image.file.relative))
        for folder in above:
            studies[folder].add(key or image.file.relative)
    return {folder for folder, keys in studies.items() if len(keys) == 1 and folder != "."}


def _leaves(name: str, source: Path) -> bool:
    path = Path(name)
    return ".." in path_parts(name) or (path.is_absolute() and not path.is_relative_to(source.resolve()))
