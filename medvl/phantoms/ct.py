"""CT phantoms on disk: DICOM series and NIfTI, label maps, tables of reports and truth, and their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from medvl.errors import UsageError
from medvl.notice import NOTICE
from medvl.phantoms.ct_study import CtPhantoms, CtRows, write_ct_patient
from medvl.phantoms.ct_truth import CT_FINDINGS, STRUCTURES
from medvl.phantoms.cxr import PhantomSummary
from medvl.phantoms.folder import begin, check_numbers, in_order, write_json, write_table
from medvl.phantoms.probes import Probe, probe_all
from medvl.phantoms.study import draw_patients
from medvl.phantoms.truth import find_kinds, find_level
from medvl.progress import Progress
from medvl.specs import text_hash

__all__ = ["write_ct_phantoms"]

_Task = tuple[CtPhantoms, Path, list[tuple[int, int, int]]]
_BOX_COLUMNS = ("accession", "label", "x0_mm", "y0_mm", "z0_mm", "x1_mm", "y1_mm", "z1_mm")
_TRAP_COLUMNS = (
    "accession",
    "study_instance_uid",
    "series_instance_uid",
    "trap",
    "expected",
    "records",
    "what",
)
_TRUTH_COLUMNS = (
    "accession", "study_instance_uid", "label", "side", "place", "size", "mm", "hu", "voxels", "boxes_mm",
)  # fmt: skip


def write_ct_phantoms(
    out: Path,
    *,
    n: int,
    seed: int,
    level: str = "middle",
    size_px: int = 80,
    unobservable: float = 0.3,
    traps: float = 0.06,
    findings: Sequence[str] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> PhantomSummary:
    """Write ``n`` synthetic CT studies of thorax and abdomen with known truth.

    ``out`` receives

    - ``images/<patient>/<study>/<series>/*.dcm``: classic and enhanced DICOM, some compressed; a fifth of the
      classic studies have two reconstructions that share one report;
    - ``volumes/<accession>.nii.gz``: studies that come as NIfTI;
    - ``reports.csv``, ``labels.csv`` and ``boxes.csv`` (RAS millimetres of the patient), one key a study;
    - ``masks/``: label maps of 34 structures, ``labels.yaml`` with their names; one study in forty has a
      DICOM Segmentation beside its series instead;
    - ``truth/``: what only tests read. ``truth.csv`` (a row for each finding), ``series.csv`` (a row for each
      volume), ``sentences.csv``, ``traps.csv`` and ``findings/<key>.npz``, the voxels of each finding;
    - ``phantom.json``, the card.

    The same arguments give the same bytes for any number of workers. A complete folder is not written again.

    Args:
        out: the folder to write; new, empty, or begun with the same arguments.
        n: number of studies.
        seed: a non-negative integer that everything depends on.
        level: ``"easy"``, ``"middle"`` or ``"hard"``.
        size_px: pixels of a slice along each side; the field is about 370 mm wide whatever the size.
        unobservable: chance that a report holds sentences that no image can show; 0 also leaves out
            indication, technique and comparison.
        traps: share of the studies that are a trap; see :data:`medvl.phantoms.ct_traps.TRAPS`.
        findings: those that a study may have, of :data:`medvl.phantoms.CT_FINDINGS`; None for all. Labels
            are of them alone.
        workers: processes; None takes the machine's cores for 16 studies and more.
        progress: called with done, total and a message.

    Raises:
        UsageError: a value out of range, or a folder that holds something else.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     summary = write_ct_phantoms(Path(folder) / "set", n=2, seed=1, size_px=32)
        >>> summary.studies
        2
    """
    check_numbers(
        n=n, seed=seed, size_px=size_px, unobservable=unobservable, workers=workers, sizes_px=(32, 512)
    )
    if not 0 <= traps <= 1:
        raise UsageError(f"traps is {traps}, but it is a share from 0 to 1.", hint="Try 0.06.")
    only = find_kinds(findings, CT_FINDINGS)
    phantoms = CtPhantoms(n, seed, find_level(level), size_px, float(unobservable), float(traps), only)
    asked: dict[str, Any] = {
        "studies": n,
        "seed": seed,
        "level": level,
        "size_px": size_px,
        "unobservable": float(unobservable),
        "findings": list(only),
    }
    known = begin(out, {"modality": "ct", **asked, "traps": float(traps)}, modality="ct")
    if known is not None:
        known["probes"] = tuple(Probe(**probe) for probe in known["probes"])
        return PhantomSummary(
            **{key: value for key, value in known.items() if key not in ("modality", "traps")}
        )
    patients = draw_patients(n, seed)
    tasks: list[_Task] = [
        (phantoms, out, patients[start : start + 2]) for start in range(0, len(patients), 2)
    ]
    rows: list[CtRows] = []
    for done in in_order(_write_chunk, tasks, workers=workers, pooled=n >= 16):
        rows += done
        if progress is not None:
            progress(len(rows), n, "drawing phantoms")
    _write_tables(out, rows)
    summary = _summary(rows, asked, patients=len(patients))
    write_json(
        out / "phantom.json",
        {"modality": "ct", **asdict(summary), "traps": float(traps), "complete": True},
    )
    return summary


def _write_chunk(task: _Task) -> list[CtRows]:
    phantoms, out, patients = task
    return [row for patient in patients for row in write_ct_patient(phantoms, out, *patient)]


def _write_tables(out: Path, rows: Sequence[CtRows]) -> None:
    truth = out / "truth"
    truth.mkdir(exist_ok=True)
    write_table(out / "reports.csv", [row.report for row in rows])
    write_table(out / "labels.csv", [row.labels for row in rows])
    write_table(out / "boxes.csv", [box for row in rows for box in row.boxes], columns=_BOX_COLUMNS)
    write_table(truth / "truth.csv", [item for row in rows for item in row.truth], columns=_TRUTH_COLUMNS)
    write_table(truth / "series.csv", [item for row in rows for item in row.series])
    write_table(truth / "sentences.csv", [item for row in rows for item in row.sentences])
    write_table(truth / "traps.csv", [item for row in rows for item in row.traps], columns=_TRAP_COLUMNS)
    names = "".join(f"{number}: {name}\n" for name, number in STRUCTURES.items())
    (out / "masks" / "labels.yaml").write_text(names, "utf-8")


def _summary(rows: Sequence[CtRows], asked: dict[str, Any], *, patients: int) -> PhantomSummary:
    only = asked["findings"]
    found = np.array([[int(str(row.labels[kind])) for kind in only] for row in rows])
    return PhantomSummary(
        notice=f"Synthetic: no patient, no clinical meaning. {NOTICE}",
        patients=patients,
        images=sum(len(row.series) for row in rows),
        hash=hashlib.sha256(b"".join(row.digest for row in rows)).hexdigest(),
        prevalence={kind: round(float(share), 4) for kind, share in zip(only, found.mean(0), strict=True)},
        normal=round(float((found.max(1) == 0).mean()), 4),
        duplicates=round(1 - len({text_hash(row.report["report"]) for row in rows}) / len(rows), 4),
        pointing_chance=round(_pointing_chance(rows), 4),
        probes=tuple(_probes(rows, only, found)),
        **asked,
    )


def _pointing_chance(rows: Sequence[CtRows], *, cells: int = 8) -> float:
    """Return the mean share of the cells of an 8 × 8 × 8 grid over the scan that meet a finding's boxes."""
    shares = []
    for row in rows:
        affine = np.array([float(value) for value in str(row.series[0]["affine_ras"]).split()]).reshape(4, 4)
        if np.count_nonzero(affine[:3, :3]) != 3:
            continue  # tilted slices: boxes along the axes of the patient say little there
        size = np.array([int(value) for value in str(row.series[0]["shape"]).split()])
        scale = np.diag(affine)[:3]
        for item in row.truth:
            met = np.zeros((cells,) * 3, bool)
            for box in filter(None, str(item["boxes_mm"]).split(";")):
                ends = np.array([float(edge) for edge in box.split()]).reshape(2, 3)
                parts = ((ends - affine[:3, 3]) / scale + 0.5) / size * cells
                low, high = np.floor(parts[0]).astype(int), np.ceil(parts[1]).astype(int)
                met[tuple(slice(max(0, int(a)), int(b)) for a, b in zip(low, high, strict=True))] = True
            shares.append(met.mean())
    return float(np.mean(shares)) if shares else 0.0


def _probes(rows: Sequence[CtRows], only: Sequence[str], found: np.ndarray) -> list[Probe]:
    tags = ("kind", "kernel", "contrast", "stored", "syntax", "manufacturer", "kvp", "names")
    one_hot = [
        np.array(
            [
                [
                    float(str(row.series[0][tag]) == value)
                    for value in sorted({str(r.series[0][tag]) for r in rows})
                ]
                for row in rows
            ]
        )
        for tag in tags
    ]
    people = {
        name: index for index, name in enumerate(dict.fromkeys(row.report["patient_id"] for row in rows))
    }
    return probe_all(
        {
            "report_length": np.array([[float(len(row.report["report"].split()))] for row in rows]),
            "mean_intensity": np.array([[row.mean_hu] for row in rows]),
            "acquisition": np.concatenate(one_hot, axis=1),
        },
        {
            "any": found.max(1).astype(np.int64),
            **{kind: found[:, index].astype(np.int64) for index, kind in enumerate(only)},
        },
        np.array([people[row.report["patient_id"]] for row in rows], np.int64),
    )
