"""One phantom study from its seed: findings, report, pictures and every table row."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt16
from PIL import Image as Pillow
from PIL import ImageDraw

from medvl.phantoms.chest import Frame, Plane, smooth_field
from medvl.phantoms.lesions import draw_chest
from medvl.phantoms.radiograph import (
    LEVELS_SHOWN,
    Encoding,
    Person,
    Shot,
    draw_encoding,
    to_dataset,
    uid,
    write_dicom,
)
from medvl.phantoms.truth import FINDINGS, SEVERITIES, Body, Finding, Level, draw_body, draw_findings
from medvl.phantoms.wording import Writing, boilerplate, write_report

__all__ = [
    "Phantoms",
    "StudyRows",
    "date_of",
    "draw_patients",
    "draw_person",
    "expose",
    "write_patient",
]

_GIVEN = (
    "ALICE BRUNO CHIARA DMITRI ELENA FARID GRETA HIRO INGRID JOSE KAVITA LARS MINA NOAH OLGA PAULO".split()
)
_FAMILY = (
    "ABBOTT BERGER CASTRO DUPONT ERIKSEN FISCHER GUPTA HANSEN IBRAHIM JANSEN KOWALSKI LOPEZ MORETTI".split()
)
_STREETS = "MAPLE OAK CEDAR WILLOW HARBOUR STATION".split()
_BOILERPLATES = 16


@dataclass(frozen=True)
class Phantoms:
    """What a whole set depends on; the same values give the same bytes."""

    n: int
    seed: int
    level: Level
    size_px: int
    unobservable: float
    only: tuple[str, ...] = FINDINGS

    def uid(self, *parts: object) -> str:
        """Return a UID of this set; sets that differ in anything share none."""
        fewer = self.only if self.only != FINDINGS else ()
        return uid(self.seed, self.level.name, self.size_px, self.unobservable, self.n, *fewer, *parts)


@dataclass(frozen=True)
class StudyRows:
    """What one study adds to the tables and to the hash of the set."""

    report: dict[str, str]
    labels: dict[str, object]
    boxes: list[dict[str, object]] = field(default_factory=list)
    truth: list[dict[str, object]] = field(default_factory=list)
    sentences: list[dict[str, object]] = field(default_factory=list)
    digest: bytes = b""


def draw_patients(n: int, seed: int) -> list[tuple[int, int, int]]:
    """Return number, first study and count of studies, 1 or 2, of each patient; counts add up to ``n``."""
    rolls = np.random.default_rng([seed, 0]).random(n)
    patients: list[tuple[int, int, int]] = []
    first = 0
    for index, roll in enumerate(rolls):
        if first == n:
            break
        count = min(n - first, 1 + int(roll < 0.35))
        patients.append((index, first, count))
        first += count
    return patients


def write_patient(
    phantoms: Phantoms, folder: Path, patient: int, first_study: int, count: int
) -> list[StudyRows]:
    """Write the DICOM files of one patient under ``folder`` and return the rows of the tables."""
    rng = np.random.default_rng([phantoms.seed, 1, patient])
    female = int(rng.integers(2))
    body = draw_body(rng, female=female)
    person = draw_person(rng, female=female)
    day = int(rng.integers(0, 1400))
    rows: list[StudyRows] = []
    findings: tuple[Finding, ...] | None = None
    for index in range(count):
        study_rng = np.random.default_rng([phantoms.seed, 2, first_study + index])
        findings = _study_findings(study_rng, phantoms, findings)
        date = date_of(day + 40 * index)
        home = folder / f"P{patient:05d}" / f"S{first_study + index:05d}"
        rows.append(
            _write_study(phantoms, study_rng, body, person, findings, first_study + index, date, home)
        )
    return rows


def _study_findings(
    rng: np.random.Generator, phantoms: Phantoms, before: tuple[Finding, ...] | None
) -> tuple[Finding, ...]:
    """Half of the studies are normal; a later study repeats the earlier one's findings half of the time."""
    fresh = draw_findings(rng, level=phantoms.level, only=phantoms.only) if rng.random() < 0.5 else ()
    follow, step = rng.random() < 0.5, int(rng.integers(-1, 2))
    if before is None or not follow:
        return fresh
    return tuple(_progress(finding, step) for finding in before)


def _progress(finding: Finding, step: int) -> Finding:
    severity = SEVERITIES[min(2, max(0, SEVERITIES.index(finding.severity) + step))]
    if finding.zone == "none":
        return replace(
            finding, severity=severity, size=("small", "medium", "large")[SEVERITIES.index(severity)]
        )
    return replace(finding, severity=severity)


def _write_study(
    phantoms: Phantoms,
    rng: np.random.Generator,
    body: Body,
    person: Person,
    findings: tuple[Finding, ...],
    number: int,
    date: str,
    home: Path,
) -> StudyRows:
    accession = f"A{phantoms.uid('accession', number)[-9:]}"
    study_uid = phantoms.uid("study", number)
    writing = _report(phantoms, rng, findings)
    views = ["PA" if rng.random() < 0.7 else "AP"]
    if rng.random() < 0.3:
        views.append("LL")
    digest = hashlib.sha256(writing.text.encode())
    rows = StudyRows(
        report={
            "accession": accession,
            "study_instance_uid": study_uid,
            "patient_id": person.patient_id,
            **{
                name: writing.section(name) for name in ("indication", "comparison", "findings", "impression")
            },
            "report": writing.text,
        },
        labels={
            "accession": accession,
            **{kind: int(any(f.kind == kind for f in findings)) for kind in phantoms.only},
        },
        sentences=_sentence_rows(accession, writing),
    )
    home.mkdir(parents=True, exist_ok=True)
    time = f"{int(rng.integers(7, 19)):02d}{int(rng.integers(60)):02d}{int(rng.integers(60)):02d}"
    referrer = f"{_FAMILY[int(rng.integers(len(_FAMILY)))]}^{_GIVEN[int(rng.integers(len(_GIVEN)))]}"
    for order, view in enumerate(views):
        image_rng = np.random.default_rng([phantoms.seed, 3, number, order])
        frame = _draw_frame(image_rng, phantoms.size_px)
        encoding, maker, kvp = draw_encoding(image_rng)
        level = phantoms.level
        plane, placed = draw_chest(
            body, findings, frame, view=view, contrast=level.contrast, clutter=level.clutter
        )
        levels = expose(plane, image_rng, noise=level.noise, clutter=level.clutter)
        _burn_marker(levels, image_rng)
        sop_uid = phantoms.uid("image", number, order)
        shot = Shot(
            study_uid, phantoms.uid("series", number, order), sop_uid, accession, date, time, order, view,
            frame.spacing_mm, maker, kvp, referrer,
        )  # fmt: skip
        dataset, stored = to_dataset(levels, encoding, person, shot)
        write_dicom(dataset, home / f"I{order:02d}.dcm", encoding=encoding)
        digest.update(repr(stored.shape).encode() + stored.astype("<u2", copy=False).tobytes())
        shared = {
            "patient_id": person.patient_id,
            "accession": accession,
            "study_instance_uid": study_uid,
            "sop_instance_uid": sop_uid,
            "file": (home / f"I{order:02d}.dcm").relative_to(home.parents[2]).as_posix(),
        }
        _add_image_rows(
            rows, shared, placed, encoding, shot, stored.shape, float(levels.mean()) / (LEVELS_SHOWN - 1)
        )
    for row in rows.boxes:
        digest.update(repr(sorted(row.items())).encode())
    return replace(rows, digest=digest.digest())


def _report(phantoms: Phantoms, rng: np.random.Generator, findings: tuple[Finding, ...]) -> Writing:
    if not findings and rng.random() < phantoms.level.repeats:
        extra = float(rng.random() < phantoms.unobservable)
        context = int(phantoms.unobservable > 0)
        pool = boilerplate(phantoms.seed, count=_BOILERPLATES, unobservable=extra, context=context)
        return pool[int(rng.integers(_BOILERPLATES))]
    return write_report(
        rng, findings, unobservable=phantoms.unobservable, context=int(phantoms.unobservable > 0)
    )


def _add_image_rows(
    rows: StudyRows,
    shared: dict[str, str],
    placed: tuple[Finding, ...],
    encoding: Encoding,
    shot: Shot,
    shape: tuple[int, ...],
    mean_grey: float,
) -> None:
    image = {
        **shared,
        "view": shot.view,
        "rows": shape[0],
        "columns": shape[1],
        "spacing_mm": round(shot.spacing_mm, 6),
        "mean_grey": round(mean_grey, 5),
        "manufacturer": shot.maker,
        "kvp": shot.kvp,
        **{name: getattr(encoding, name) for name in Encoding.__dataclass_fields__},
    }
    nothing = {"label": "", "side": "", "zone": "", "size": "", "severity": "", "boxes": ""}
    if not placed:
        rows.truth.append({**image, **nothing})
    for finding in placed:
        corners = [tuple(int(edge) for edge in (box.x0, box.y0, box.x1, box.y1)) for box in finding.boxes]
        rows.truth.append(
            {
                **image,
                "label": finding.kind,
                "side": finding.side,
                "zone": finding.zone,
                "size": finding.size,
                "severity": finding.severity,
                "boxes": ";".join(" ".join(map(str, box)) for box in corners),
            }
        )
        for x0, y0, x1, y1 in corners:
            place = {"label": finding.kind, "x0": x0, "y0": y0, "x1": x1, "y1": y1}
            rows.boxes.append({"sop_instance_uid": shared["sop_instance_uid"], **place})


def _sentence_rows(accession: str, writing: Writing) -> list[dict[str, object]]:
    return [
        {
            "accession": accession,
            "order": order,
            "section": item.section,
            "kind": item.kind,
            "observable": int(item.kind != "unobservable"),
            "labels": ";".join(item.labels),
            "category": item.category,
            "style": writing.style,
            "text": item.text,
        }
        for order, item in enumerate(writing.statements)
    ]


def expose(
    plane: Plane, rng: np.random.Generator, *, noise: float, clutter: float
) -> UInt16[np.ndarray, "rows columns"]:
    """Add uneven tissue, noise and an automatic exposure; return display levels.

    The exposure control sets the mean grey to a value drawn at random, as real systems do; brightness
    then tells nothing about disease.
    """
    target, gain = rng.uniform(0.38, 0.50), rng.uniform(0.88, 1.12)
    picture = plane + smooth_field(rng, plane.shape, 6) * (0.018 * clutter)
    picture += rng.standard_normal(plane.shape, dtype=np.float32) * noise
    picture *= gain
    picture += target - float(np.clip(picture, 0, 1).mean(dtype=np.float64))
    picture *= LEVELS_SHOWN - 1
    np.clip(picture, 0, LEVELS_SHOWN - 1, out=picture)
    return np.rint(picture, out=picture).astype(np.uint16)


def _burn_marker(levels: UInt16[np.ndarray, "rows columns"], rng: np.random.Generator) -> None:
    """Burn a lead ``L`` in at the patient's left, the image's right; some films have none."""
    present, right, down, tall = rng.random() < 0.85, rng.uniform(0.06, 0.12), rng.uniform(0.06, 0.14), 0.055
    if not present:
        return
    rows, columns = levels.shape
    height = tall * max(rows, columns)
    x, y, bar = columns * (1 - right), rows * down, max(1.0, height * 0.2)
    canvas = Pillow.new("1", (columns, rows))
    pen = ImageDraw.Draw(canvas)
    pen.rectangle((x, y, x + bar, y + height), fill=1)
    pen.rectangle((x, y + height - bar, x + height * 0.6, y + height), fill=1)
    levels[np.asarray(canvas)] = LEVELS_SHOWN - 1 - int(rng.integers(0, 200))


def _draw_frame(rng: np.random.Generator, size_px: int) -> Frame:
    aspect = (1.0, 1.0, 1.2, 1.2, 0.85)[int(rng.integers(5))]
    rows = size_px if aspect >= 1 else round(size_px * aspect)
    columns = size_px if aspect <= 1 else round(size_px / aspect)
    field_mm = (345.0, 360.0, 375.0, 390.0)[int(rng.integers(4))]
    return Frame(
        rows,
        columns,
        field_mm / min(rows, columns),
        (float(rng.uniform(-10, 10)), float(rng.uniform(-8, 12))),
    )


def draw_person(rng: np.random.Generator, *, female: int) -> Person:
    """Draw the identifiers of a patient who does not exist."""

    def pick(names: list[str]) -> str:
        return names[int(rng.integers(len(names)))]

    born = f"{int(rng.integers(1932, 2001))}{int(rng.integers(1, 13)):02d}{int(rng.integers(1, 29)):02d}"
    return Person(
        name=f"{pick(_FAMILY)}^{pick(_GIVEN)}^{pick(_GIVEN)[0]}",
        patient_id=f"MRN{int(rng.integers(10**8, 10**9))}",
        birth_date=born,
        sex="F" if female else "M",
        address=f"{int(rng.integers(1, 400))} {pick(_STREETS)} STREET",
    )


def date_of(day: int) -> str:
    """Return a day, counted from the start of 2018, as DICOM writes it."""
    return str(np.datetime64("2018-01-02") + day).replace("-", "")
