"""The residual audit: every identifying value of the originals, searched in everything that came out."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow
import pyarrow.parquet as pq

from medvl.errors import InputError, file_token
from medvl.preprocess.deid.carriers import Carriers, Place, collect_carriers
from medvl.preprocess.deid.header import elements_of, strings_of
from medvl.preprocess.reading.limits import DEFAULT_LIMITS
from medvl.preprocess.reading.part10 import PIXEL_TAGS, opened

__all__ = ["AuditReport", "Carriers", "Finding", "audit", "collect_carriers"]

_SKIPPED = "private"
_MOST_FINDINGS = 1000


@dataclass(frozen=True)
class Finding:
    """An identifying value that is still there, named by kind and place, never by the value.

    Attributes:
        kind: of the value: name, id, birth date, date, address, phone, institution, device, uid, private,
            comment, table or file name.
        file: token of the file.
        place: tag, ``bytes``, ``pixels``, ``text``, ``name of the file``, ``column 3`` …
    """

    kind: str
    file: str
    place: str


@dataclass(frozen=True)
class AuditReport:
    """What an audit searched and what it found.

    Attributes:
        findings: what is left, the first thousand.
        count: how many there are.
        searched: kind to how many different values were looked for.
        not_searched: kind with reason to how many values mean too little to be looked for.
        files: how many files were looked at, by kind.
        unreadable: tokens of files that could not be looked at.
    """

    findings: tuple[Finding, ...] = ()
    count: int = 0
    searched: dict[str, int] = field(default_factory=dict)
    not_searched: dict[str, int] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    unreadable: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether nothing was found and everything could be looked at."""
        return not self.count and not self.unreadable

    def to_json(self) -> dict[str, object]:
        """Return the report as plain values."""
        return {
            "clean": self.clean,
            "count": self.count,
            "findings": [vars(finding) for finding in self.findings],
            "searched": self.searched,
            "not_searched": self.not_searched,
            "files": self.files,
            "unreadable": list(self.unreadable),
        }

    def lines(self) -> list[str]:
        """Return what to show: the verdict, then one line a kind and place."""
        if self.clean:
            total, files = sum(self.searched.values()), sum(self.files.values())
            return [f"audit: {total:,} identifying values searched in {files:,} files, none left"]
        places = Counter((finding.kind, finding.place) for finding in self.findings)
        shown = [f"audit: {self.count:,} identifying values left"]
        shown += [f"  {kind} in {place}: {count}" for (kind, place), count in places.most_common(20)]
        return shown + [f"  not readable: {token}" for token in self.unreadable[:20]]


def audit(carriers: Carriers, folder: str | Path, *, pixels: str = "off") -> AuditReport:
    """Search identifying values in everything below a folder: a deid output or a record store.

    DICOM files are searched element by element, with all that is nested or private, and byte by byte;
    tables, text, JSON, HTML and Parquet by their words; tar archives by their members; files and folders by
    their names. The folder ``private`` holds the key and is passed over.

    Args:
        carriers: what :func:`collect_carriers` gathered.
        folder: to search.
        pixels: ``"read"`` also reads burned-in text and searches its words; ``"off"`` does not.

    Returns:
        The findings, named by kind and place.
    """
    folder = Path(folder)
    findings: list[Finding] = []
    unreadable: list[str] = []
    count = 0
    files: Counter[str] = Counter()
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if relative.parts[0] == _SKIPPED or not path.is_file() or path.is_symlink():
            continue
        token = file_token(path)
        kind, places = _places(path, pixels=pixels)
        files[kind] += 1
        try:
            for place in [Place("name of the file", " ".join(relative.parts)), *places]:
                for carrier in carriers.found(place):
                    count += 1
                    if len(findings) < _MOST_FINDINGS:
                        findings.append(Finding(carrier, token, place.name))
        except (InputError, OSError, pyarrow.ArrowException, tarfile.TarError):
            unreadable.append(token)
    return AuditReport(
        tuple(findings), count, carriers.searched(), carriers.not_searched(), dict(files), tuple(unreadable)
    )


def _places(path: Path, *, pixels: str) -> tuple[str, Iterator[Place]]:
    suffix = path.suffix.lower()
    if suffix in (".parquet", ".pq"):
        return "parquet", _parquet(path)
    if suffix == ".tar":
        return "tar", _tar(path)
    with path.open("rb") as stream:
        head = stream.read(132)
    if head[128:] == b"DICM":
        return "dicom", _dicom(path, pixels=pixels)
    if suffix in (".png", ".jpg", ".jpeg", ".npy", ".b2", ".npz"):
        return "binary", iter([Place("bytes", binary=path.read_bytes())])
    return "text", iter([Place("text", path.read_bytes().decode("utf-8", "replace"))])


def _dicom(path: Path, *, pixels: str) -> Iterator[Place]:
    data = path.read_bytes()
    with opened(path, limits=DEFAULT_LIMITS, lenient=True) as part10:
        dataset = part10.dataset
        patient = str(dataset.get("PatientID") or "")
        for element in elements_of(dataset):
            if element.tag in PIXEL_TAGS:
                continue
            place = f"({element.tag.group:04X},{element.tag.element:04X})"
            if isinstance(element.value, bytes):
                yield Place(place, binary=element.value)
            else:
                words = strings_of(element.value)
                date = element.VR in ("DA", "DT")
                yield Place(place, "\n".join(words), patient=patient, dates=tuple(words) if date else ())
        start = part10.pixel_start or len(data)
        deflated = part10.transfer_syntax.endswith(".1.99")
    if not deflated:
        yield Place("bytes", data[:start].decode("latin-1"), encoded=data[:start])
        yield Place("pixels", binary=data[start:])
    if pixels == "read":
        yield from _pictures(path)


def _pictures(path: Path) -> Iterator[Place]:
    from medvl.preprocess.deid.pixels import words_in_pixels

    yield Place("pixels", "\n".join(words_in_pixels(path)))


def _parquet(path: Path) -> Iterator[Place]:
    file = pq.ParquetFile(path)
    yield Place("names of columns", "\n".join(file.schema_arrow.names))
    for batch in file.iter_batches(batch_size=1024):
        for number, column in enumerate(batch.columns, 1):
            words = json.dumps(column.to_pylist(), default=str, ensure_ascii=False)
            yield Place(f"column {number}", words)


def _tar(path: Path) -> Iterator[Place]:
    with tarfile.open(path) as archive:
        for number, member in enumerate(archive, 1):
            yield Place("name of a member", member.name)
            stream = archive.extractfile(member) if member.isfile() else None
            if stream is None:
                continue
            data = stream.read()
            if member.name.endswith((".txt", ".json")):
                yield Place(f"member {number}", data.decode("utf-8", "replace"))
            else:
                yield Place(f"member {number}", binary=data)
