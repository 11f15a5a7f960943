"""Chest X-ray phantoms on disk: DICOM files, tables of reports and truth, and the hash of them all."""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medvl.errors import UsageError
from medvl.notice import NOTICE
from medvl.phantoms.probes import Probe, shortcut_probes
from medvl.phantoms.study import Phantoms, StudyRows, patient_study_counts, write_patient
from medvl.phantoms.truth import FINDINGS, find_level
from medvl.specs import text_hash

__all__ = ["PhantomSummary", "write_phantoms"]

_Task = tuple[Phantoms, Path, list[tuple[int, int, int]]]


@dataclass(frozen=True)
class PhantomSummary:
    """What a phantom set is and how honest it is; ``phantom.json`` holds the same values.

    Attributes:
        notice: the first line of the set's card.
        studies, patients, images: how many.
        seed, level, size_px, unobservable: what was asked for.
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
    _check(n=n, seed=seed, size_px=size_px, unobservable=unobservable, workers=workers)
    phantoms = Phantoms(n, seed, find_level(level), size_px, float(unobservable))
    asked: dict[str, Any] = {
        "studies": n,
        "seed": seed,
        "level": level,
        "size_px": size_px,
        "unobservable": float(unobservable),
    }
    finished = _begin(out, asked)
    if finished is not None:
        return finished
    counts = patient_study_counts(phantoms)
    firsts = np.cumsum([0, *counts])
    patients = [(index, int(firsts[index]), count) for index, count in enumerate(counts)]
    rows: list[StudyRows] = []
    for done in _in_order(phantoms, out / "dicom", patients, workers):
        rows += done
        if progress is not None:
            progress(len(rows), n, "drawing phantoms")
    _write_table(out / "reports.csv", [row.report for row in rows])
    _write_table(out / "labels.csv", [row.labels for row in rows])
    boxes = [box for row in rows for box in row.boxes]
    _write_table(out / "boxes.csv", boxes, columns=("sop_instance_uid", "label", "x0", "y0", "x1", "y1"))
    truth = [item for row in rows for item in row.truth]
    _write_table(out / "truth.csv", truth)
    _write_table(out / "sentences.csv", [item for row in rows for item in row.sentences])
    found = np.array([[int(str(row.labels[kind])) for kind in FINDINGS] for row in rows])
    summary = PhantomSummary(
        notice=f"Synthetic: no patient, no clinical meaning. {NOTICE}",
        patients=len(patients),
        images=len({item["sop_instance_uid"] for item in truth}),
        hash=hashlib.sha256(b"".join(row.digest for row in rows)).hexdigest(),
        prevalence={
            kind: round(float(share), 4) for kind, share in zip(FINDINGS, found.mean(0), strict=True)
        },
        normal=round(float((found.max(1) == 0).mean()), 4),
        duplicates=round(1 - len({text_hash(row.report["report"]) for row in rows}) / n, 4),
        pointing_chance=round(_pointing_chance(truth), 4),
        probes=tuple(shortcut_probes(out)),
        **asked,
    )
    _write_json(out / "phantom.json", {**asdict(summary), "complete": True})
    return summary


def _check(*, n: int, seed: int, size_px: int, unobservable: float, workers: int | None) -> None:
    if n < 1:
        raise UsageError(f"n is {n}, but a set has at least 1 study.", hint="Try n=200.")
    if seed < 0:
        raise UsageError(f"seed is {seed}, but a seed is 0 or more.", hint="Try seed=0.")
    if not 48 <= size_px <= 4096:
        raise UsageError(f"size_px is {size_px}, but 48 to 4096 can be drawn.", hint="Try size_px=256.")
    if not 0 <= unobservable <= 1:
        raise UsageError(f"unobservable is {unobservable}, but it is a share from 0 to 1.", hint="Try 0.3.")
    if workers is not None and workers < 1:
        raise UsageError(
            f"workers is {workers}, but at least 1 process draws.", hint="Leave it out for all cores."
        )


def _begin(out: Path, asked: dict[str, Any]) -> PhantomSummary | None:
    """Claim the folder; return the summary if the same set is already there."""
    card = out / "phantom.json"
    if card.is_file():
        try:
            known = dict(json.loads(card.read_text("utf-8")))
        except (ValueError, TypeError, RecursionError) as error:
            raise UsageError(
                "phantom.json in the output folder is damaged.", hint="Give a new folder, or delete that one."
            ) from error
        if {key: known.get(key) for key in asked} != asked:
            held = f"seed {known.get('seed')}, level {known.get('level')}, {known.get('studies')} studies"
            raise UsageError(
                f"the folder holds another phantom set ({held}).",
                hint="Give a new folder, or delete that one.",
            )
        if known.pop("complete"):
            known["probes"] = tuple(Probe(**probe) for probe in known["probes"])
            return PhantomSummary(**known)
    elif out.exists() and any(out.iterdir()):
        raise UsageError(
            "the output folder is not empty and holds no phantom set.", hint="Give a new folder."
        )
    out.mkdir(parents=True, exist_ok=True)
    _write_json(card, {**asked, "complete": False})
    return None


def _in_order(
    phantoms: Phantoms, folder: Path, patients: list[tuple[int, int, int]], workers: int | None
) -> Iterator[list[StudyRows]]:
    """Draw all patients, in order, here or in a pool of processes."""
    chunks = [patients[start : start + 8] for start in range(0, len(patients), 8)]
    tasks: list[_Task] = [(phantoms, folder, chunk) for chunk in chunks]
    count = workers or (min(8, os.cpu_count() or 1) if phantoms.n >= 64 else 1)
    if count == 1:
        yield from map(_write_chunk, tasks)
        return
    # fork needs no importable main module, so that a notebook or a script without a guard works
    method = "fork" if sys.platform == "linux" else "spawn"
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context(method)) as pool:
        yield from pool.map(_write_chunk, tasks)


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


def _write_table(
    path: Path, rows: Sequence[dict[str, object]] | Sequence[dict[str, str]], *, columns: Sequence[str] = ()
) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns or rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_json(path: Path, values: dict[str, object]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")
    part.replace(path)
