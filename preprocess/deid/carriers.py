"""The values of the originals that identify somebody, and a fast search for all of them at once."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from medvl.errors import InputError
from medvl.preprocess.deid.facts import Facts, read_facts
from medvl.preprocess.deid.names import name_parts
from medvl.preprocess.deid.residue import PlainSearch
from medvl.preprocess.deid.tables import identifying_columns
from medvl.preprocess.deid.values import REMOVED, move_date
from medvl.preprocess.deid.words import COMMON
from medvl.preprocess.pseudonyms import Pseudonyms
from medvl.preprocess.sources.discovery import TABLE_SUFFIXES, discover

__all__ = ["Carriers", "Place", "collect_carriers"]

_TOKEN = re.compile(r"[^\W_]+")
_UID = re.compile(r"\d+(?:\.\d+){4,}")
_PRINTABLE = re.compile(rb"[\x20-\x7e]{8,}")
_DATE = re.compile(r"(?<!\d)(?:((?:19|20)\d\d)([-/.]?)(\d\d)\2(\d\d)|(\d\d?)([/.-])(\d\d?)\6((?:19|20)\d\d))")
_ORDINARY = COMMON | frozenset(
    """
    abdomen adult and angio angiography anonymized anonymous ap axial body bone box boxes brain breast cardiac
    cervical chest child clinic comparison contrast cor coronal cr ct cta cxr data dataset default
    department dept dicom digital dr dx ecg exam examination false female film findings for frontal
    general head history hospital image images imaging impression index indication iv knee label labels
    lateral lumbar lung
    lungs main male mammography medical modality mr mri ms nan neck new no none normal not null oblique of
    on orthanc other outpatient pa patient pelvis person pet phantom portable post pre private procedure
    protocol public radiograph radiography radiology ray record removed report reports routine sag
    sagittal sample samples scan screening section series shoulder siemens source spine standard studies
    study supine system systems table tables test testing text the thorax to toshiba train trauma true
    ultrasound unknown unspecified upright us use val valid validate validation view views w with without
    wo x xr xray yes sentence sentences truth metadata meta info list files file
    """.split()
)
"""Words that name no one: a value made of nothing else is not looked for."""
LEAST = 4
"""Shorter words and numbers occur everywhere."""
LEAST_IN_BYTES = 8
"""In compressed or random bytes shorter words occur by chance."""


@dataclass(frozen=True)
class Place:
    """A part of a file to search.

    Attributes:
        name: what a finding calls it.
        text: its words; ``binary`` where only long printable runs mean anything.
        encoded: the same words as bytes, whose encoding nobody knows.
        patient: whose it says it is, by pseudonym.
        dates: values of a date element, which are compared with the patient's own dates.
    """

    name: str
    text: str = ""
    binary: bytes = b""
    encoded: bytes = b""
    patient: str = ""
    dates: tuple[str, ...] = ()


@dataclass
class Carriers:
    """Identifying values by kind, ready to be searched.

    Attributes:
        values: kind to values, as they were written.
        dates: pseudonym ("" where no key was given) to its dates, eight digits each.
        moved: pseudonym to the dates that its own become.
        births: birth dates of all patients.
    """

    values: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    dates: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    moved: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    births: set[str] = field(default_factory=set)
    _index: dict[str, list[tuple[str, tuple[str, ...], int]]] | None = None
    _uids: set[str] = field(default_factory=set)
    _looked_for: Counter[str] = field(default_factory=Counter)
    _passed_over: Counter[str] = field(default_factory=Counter)
    _births_searched: set[str] = field(default_factory=set)
    _plain: PlainSearch | None = None

    def add(self, kind: str, value: str) -> None:
        """Take in one value."""
        value = value.strip()
        if value:
            self.values[kind].add(value)
            self._index = None

    def take(self, facts: Facts, *, ids: Pseudonyms | None) -> None:
        """Take in what one file says; a private or free-text copy of a value that stays names nobody."""
        harmless = set(facts.harmless)
        for kind, value in facts.carriers:
            if kind in ("private", "comment", "device", "institution") and value in harmless:
                continue
            self.add(kind, value)
        patient = ids.patient(facts.patient) if ids else ""
        self.births.update(facts.birth_dates)
        self.dates[patient].update(facts.dates)
        if ids:
            days = ids.shift_days(facts.patient)
            self.moved[patient].update(m for date in facts.dates if (m := move_date(date, days=days)))
        self._index = None

    def searched(self) -> dict[str, int]:
        """Return kind to the number of different values that are looked for."""
        self._build()
        return dict(sorted(self._looked_for.items()))

    def not_searched(self) -> dict[str, int]:
        """Return kind and reason to the number of values that are not looked for."""
        self._build()
        return dict(sorted(self._passed_over.items()))

    def found(self, place: Place) -> Iterator[str]:
        """Yield the kind of each value that is in a place, once a value.

        Two searches that share nothing are made; the second counts where the first has nothing of its kind.
        """
        kinds: set[str] = set()
        for kind in self._by_words(place):
            kinds.add(kind)
            yield kind
        if self._plain is not None:
            plainly = set(self._plain.found(place.text)) if place.text else set()
            for data in filter(None, (place.binary, place.encoded)):
                plainly |= set(self._plain.found_in_bytes(data))
            yield from sorted(plainly - kinds)

    def _by_words(self, place: Place) -> Iterator[str]:
        index = self._build()
        if place.binary:
            runs = " \n ".join(run.decode("ascii") for run in _PRINTABLE.findall(place.binary))
            yield from self._in_text(runs, index, least=LEAST_IN_BYTES)
        if place.text:
            yield from self._in_text(place.text, index, least=LEAST)
        own, moved = self.dates.get(place.patient, set()), self.moved.get(place.patient, set())
        for value in place.dates if place.patient and place.patient in self.moved else ():
            if value[:8] in own - moved:
                yield "date"

    def _in_text(
        self, text: str, index: dict[str, list[tuple[str, tuple[str, ...], int]]], *, least: int
    ) -> Iterator[str]:
        words = [match[0].lower() for match in _TOKEN.finditer(text)]
        seen: set[tuple[str, tuple[str, ...]]] = set()
        for at, word in enumerate(words):
            for kind, value, offset in index.get(word, ()):
                start = at - offset
                if start < 0 or (kind, value) in seen or sum(map(len, value)) < least:
                    continue
                if tuple(words[start : start + len(value)]) == value:
                    seen.add((kind, value))
                    yield kind
        if self._uids:
            yield from ("uid" for uid in set(_UID.findall(text)) if uid in self._uids)
        if self._births_searched:
            yield from ("birth date" for date in set(_dates(text)) if date in self._births_searched)

    def _build(self) -> dict[str, list[tuple[str, tuple[str, ...], int]]]:
        if self._index is not None:
            return self._index
        self._looked_for.clear()
        self._passed_over.clear()
        self._uids = {value for value in self.values.get("uid", ()) if _UID.fullmatch(value)}
        self._looked_for["uid"] = len(self._uids)
        index: dict[str, list[tuple[str, tuple[str, ...], int]]] = defaultdict(list)
        for kind, values in self.values.items():
            if kind == "uid":
                continue
            for words in {form for value in values for form in _forms(kind, value)}:
                reason = _means_little(words)
                if reason:
                    self._passed_over[f"{kind}: {reason}"] += 1
                    continue
                rarest = max(range(len(words)), key=lambda i: (words[i] not in _ORDINARY, len(words[i])))
                index[words[rarest]].append((kind, words, rarest))
                self._looked_for[kind] += 1
        moved = set().union(*self.moved.values()) if self.moved else set().union(*self.dates.values(), set())
        self._births_searched = self.births - moved
        self._looked_for["birth date"] = len(self._births_searched)
        self._looked_for["date"] = sum(len(self.dates[p] - self.moved[p]) for p in self.moved)
        if left := len(self.births & moved):
            self._passed_over["birth date: equals a date that was moved there"] = left
        if not self.moved and (left := len(set().union(*self.dates.values(), set()))):
            self._passed_over["date: whose it is only the key tells"] = left
        # A short number ("id 1", a study's "12345") is told by its words alone; a UID is no such number.
        self._plain = PlainSearch(
            self.values.get("name", ()), self.values.get("id", ()), ordinary=(*_ORDINARY, REMOVED.lower())
        )
        self._index = dict(index)
        return self._index


def collect_carriers(source: str | Path, *, ids: Pseudonyms | None = None) -> Carriers:
    """Gather every identifying value of a source.

    Names in all their parts, identifiers, birth and study dates, addresses, telephone numbers, institutions,
    physicians, device serials, UIDs, texts of private elements, free texts, identifying columns of
    tables, names of files and folders.

    Args:
        source: the folder of the originals.
        ids: the pseudonyms of the clean files; with them a patient's own dates are searched in its files.

    Raises:
        UsageError: the source is not a folder.
    """
    source = Path(source)
    files = discover(source)
    facts = ((file.relative, read_facts(file.path)) for file in files if file.kind == "dicom")
    return gather(source, [file.relative for file in files], facts, ids=ids)


def gather(
    source: Path,
    names: Iterable[str],
    facts: Iterable[tuple[str, Facts | None]],
    *,
    ids: Pseudonyms | None,
    columns_of: Callable[[Path], list[tuple[str, list[str]]]] = identifying_columns,
) -> Carriers:
    """Gather from facts that were read already; the tables are read here."""
    carriers = Carriers()
    for _, fact in facts:
        if fact is not None:
            carriers.take(fact, ids=ids)
    for name in names:
        path = PurePosixPath(name)
        for part in (*path.parts[:-1], path.stem):
            carriers.add("file name", part)
        if name.lower().endswith(TABLE_SUFFIXES):
            try:
                for kind, cells in columns_of(source / name):
                    for cell in cells:
                        carriers.add(kind, cell)
            except InputError:
                continue  # cleaning refuses it and says so
    return carriers


def _forms(kind: str, value: str) -> Iterator[tuple[str, ...]]:
    """Yield the runs of words that stand for a value; of a name also each part that is no common word."""
    words = tuple(match.lower() for match in _TOKEN.findall(value))
    if not words:
        return
    yield words
    if kind == "name":
        family, given = name_parts(value)
        if family and given:
            yield (*given, *family)
            yield (*family, *given)
        yield from ((part,) for part in (*family, *given))
    elif kind == "id" and len(words) == 1 and words[0].startswith("0"):
        yield (words[0].lstrip("0"),)


def _means_little(words: tuple[str, ...]) -> str:
    """Return why a value is not looked for; "" when it is."""
    if all(word in _ORDINARY or len(word) < 3 or word == REMOVED.lower() for word in words):
        return "ordinary words"
    if sum(map(len, words)) < LEAST:
        return f"fewer than {LEAST} characters"
    if len(words) == 1 and words[0].isdigit() and len(words[0]) < 5:
        return "a number of fewer than 5 digits"
    if all(word.isdigit() for word in words) and max(map(len, words)) < 4:
        return "small numbers"
    return ""


def _dates(text: str) -> Iterator[str]:
    for match in _DATE.finditer(text):
        if match[1]:
            yield f"{match[1]}{match[3]}{match[4]}"
        else:
            first, second, year = match[5], match[7], match[8]
            yield f"{year}{int(first):02}{int(second):02}"
            yield f"{year}{int(second):02}{int(first):02}"
