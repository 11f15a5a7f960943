"""Chest X-ray phantoms on disk: DICOM files, tables of reports and truth, and the hash of them all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medvl.notice import NOTICE
from medvl.phantoms.folder import begin, check_numbers, in_order, write_json, write_table
from medvl.phantoms.probes import Probe, shortcut_probes
from medvl.phantoms.study import Phantoms, StudyRows, draw_patients, write_patient
from medvl.phantoms.truth import FINDINGS, find_kinds, find_level
from medvl.specs import text_hash

__all__ = ["PhantomSummary", "write_phantoms"]

_Task = tuple[Phantoms, Path, list[tuple[int, int, int]]]


@dataclass(frozen=True)
class PhantomSummary:
    """What a phantom set is and how honest it is; ``phantom.json`` holds the same values.

    Attributes:
        notice: the first line of the set's card.
        studies, patients, images: how many.
        seed, level, size_px, unobservable, findings: what was asked for.
        hash: SHA-256 over decoded pixels, boxes and reports.
        prevalence: share of studies with each finding.
        normal: share of studies without a finding.
        duplicates: 1 − number of different report texts / number of reports.
        pointing_chance: mean share of the cells of an 8 × 8 grid that meet a finding's boxes.
        probes: shortcut probes; see :func:`medvl.phantoms.probes.shortcut_probes`.
    """

    notice: str
    studies: int
    patients: int
    images: int
    seed: int
    level: str
    size_px: int
    unobservable: float
    findings: list[str]
    hash: str
    prevalence: dict[str, float]
    normal: float
    duplicates: float
    pointing_chance: float
    probes: tuple[Probe, ...]

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the text of the command: what there is, and how far shortcuts alone would get."""
        text = [
            self.notice,
            f"{self.images} images, {self.studies} studies, {self.patients} patients, level {self.level}, "
            f"{self.normal:.0%} normal, {self.duplicates:.0%} repeated reports",
            f"hash {self.hash}",
            "shortcut probes, AUROC ± standard error (0.5 is what an honest set gives):",
        ]
        for name in dict.fromkeys(probe.shortcut for probe in self.probes):
            scores = [probe for probe in self.probes if probe.shortcut == name]
            shown = ", ".join(f"{p.target} {p.auroc:.2f} ± {p.standard_error:.2f}" for p in scores)
            text.append(f"  {name}: {shown}")
        return text


def write_phantoms(
    out: Path,
    *,
    n: int,
    seed: int,
    level: str = "middle",
    size_px: int = 256,
    unobservable: float = 0.3,
    findings: Sequence[str] | None = None,
    workers: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> PhantomSummary:
    """Write ``n`` synthetic chest studies with known truth.

    ``out`` receives ``dicom/**.dcm``, ``reports.csv``, ``labels.csv``, ``boxes.csv``, ``truth.csv`` (one row
    for each finding on each image, one for an image without any), ``sentences.csv`` (what each sentence
    says and whether an image can show it) and ``phantom.json``. The same arguments give the same bytes for
    any number of workers. A complete folder is not written again; an interrupted one is.

    Args:
        out: the folder to write; new, empty, or begun with the same arguments.
        n: number of studies.
        seed: a non-negative integer that everything depends on.
        level: ``"easy"``, ``"middle"`` or ``"hard"``.
        size_px: longer side of an image.
        unobservable: chance that a report holds sentences that no image can show; 0 also leaves out
            indication and comparison.
        findings: those that a study may have, of :data:`medvl.phantoms.FINDINGS`; None for all. Labels are of
            them alone.
        workers: processes; None takes the machine's cores for 64 studies and more.
        progress: called with done, total and a message.

    Raises:
        UsageError: a value out of range, or a folder that holds something else.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     summary = write_phantoms(Path(folder) / "set", n=4, seed=1, size_px=64)
        >>> summary.studies
        4
    """
    check_numbers(
        n=n, seed=seed, size_px=size_px, unobservable=unobservable, workers=workers, sizes_px=(48, 4096)
    )
    only = find_kinds(findings, FINDINGS)
    phantoms = Phantoms(n, seed, find_level(level), size_px, float(unobservable), only)
    asked: dict[str, Any] = {
        "studies": n,
        "seed": seed,
        "level": level,
        "size_px": size_px,
        "unobservable": float(unobservable),
        "findings": list(only),
    }
    known = begin(out, asked)
    if known is not None:
        known["probes"] = tuple(Probe(**probe) for probe in known["probes"])
        return PhantomSummary(**known)
    patients = draw_patients(n, seed)
    rows: list[StudyRows] = []
    tasks: list[_Task] = [
        (phantoms, out / "dicom", patients[start : start + 8]) for start in range(0, len(patients), 8)
    ]
    for done in in_order(_write_chunk, tasks, workers=workers, pooled=n >= 64):
        rows += done
        if progress is not None:
            progress(len(rows), n, "drawing phantoms")
    write_table(out / "reports.csv", [row.report for row in rows])
    write_table(out / "labels.csv", [row.labels for row in rows])
    boxes = [box for row in rows for box in row.boxes]
    write_table(out / "boxes.csv", boxes, columns=("sop_instance_uid", "label", "x0", "y0", "x1", "y1"))
    truth = [item for row in rows for item in row.truth]
    write_table(out / "truth.csv", truth)
    write_table(out / "sentences.csv", [item for row in rows for item in row.sentences])
    found = np.array([[int(str(row.labels[kind])) for kind in only] for row in rows])
    summary = PhantomSummary(
        notice=f"Synthetic: no patient, no clinical meaning. {NOTICE}",
        patients=len(patients),
        images=len({item["sop_instance_uid"] for item in truth}),
        hash=hashlib.sha256(b"".join(row.digest for row in rows)).hexdigest(),
        prevalence={kind: round(float(share), 4) for kind, share in zip(only, found.mean(0), strict=True)},
        normal=round(float((found.max(1) == 0).mean()), 4),
        duplicates=round(1 - len({text_hash(row.report["report"]) for row in rows}) / n, 4),
        pointing_chance=round(_pointing_chance(truth), 4),
        probes=tuple(shortcut_probes(out)),
        **asked,
    )
    write_json(out / "phantom.json", {**asdict(summary), "complete": True})
    return summary


def _write_chunk(task: _Task) -> list[StudyRows]:
    phantoms, folder, patients = task
    return [row for patient in patients for row in write_patient(phantoms, folder, *patient)]


def _pointing_chance(truth: Sequence[dict[str, object]], *, cells: int = 8) -> float:
    shares = []
    for row in truth:
        if not row["boxes"]:
            continue
        met = np.zeros((cells, cells), bool)
        for box in str(row["boxes"]).split(";"):
            x0, y0, x1, y1 = (int(edge) for edge in box.split())
            wide, high = cells / int(str(row["columns"])), cells / int(str(row["rows"]))
            across = slice(int(x0 * wide), int(np.ceil(x1 * wide)))
            met[int(y0 * high) : int(np.ceil(y1 * high)), across] = True
        shares.append(met.mean())
    return float(np.mean(shares)) if shares else 0.0
