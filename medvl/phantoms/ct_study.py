"""One CT phantom study from its seed: findings, report, volumes as files, and every table row."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from medvl.phantoms.ct_lesions import CtDrawing, draw_ct
from medvl.phantoms.ct_scan import Kernel, draw_grid
from medvl.phantoms.ct_seg import write_seg
from medvl.phantoms.ct_series import (
    CtShot,
    Plane,
    Stored,
    frames_of,
    write_classic,
    write_enhanced,
    write_nifti,
)
from medvl.phantoms.ct_traps import TRAPS, cut_file, spring, trapped_grid, write_dose_report, write_localizer
from medvl.phantoms.ct_truth import CT_FINDINGS, CtBody, CtFinding, draw_ct_body, draw_ct_findings
from medvl.phantoms.ct_wording import CtWriting, write_ct_report
from medvl.phantoms.radiograph import Person, uid
from medvl.phantoms.study import date_of, draw_person
from medvl.phantoms.truth import Level
from medvl.specs.volumes import VolumeGrid

__all__ = ["CtPhantoms", "CtRows", "write_ct_patient"]

_MAKERS = ("Aster Imaging", "Borealis Medical", "Cirrus Tomography")
_SYNTAX_CHANCE = {"explicit": 0.62, "implicit": 0.12, "rle": 0.10, "jpegls": 0.10, "jpeg2000": 0.06}
_STORED: tuple[Stored, ...] = ("unsigned", "signed", "padded", "halves")
_NORMAL = 0.3
_SEG_EVERY = 40
_BOILERPLATES = 12


@dataclass(frozen=True)
class CtPhantoms:
    """What a whole set depends on; the same values give the same bytes."""

    n: int
    seed: int
    level: Level
    size_px: int
    unobservable: float
    traps: float
    only: tuple[str, ...] = CT_FINDINGS

    def uid(self, *parts: object) -> str:
        """Return a UID of this set; sets that differ in anything share none."""
        whole = (self.seed, self.level.name, self.size_px, self.unobservable, self.traps, self.n)
        fewer = self.only if self.only != CT_FINDINGS else ()
        return uid("ct", *whole, *fewer, *parts)

    def trap(self, study: int) -> str:
        """Return the trap of a study, "" for most; every kind comes before any comes twice."""
        count = round(self.n * self.traps)
        chosen = np.random.default_rng([self.seed, 4]).permutation(self.n)[:count].tolist()
        return list(TRAPS)[chosen.index(study) % len(TRAPS)] if study in chosen else ""


@dataclass(frozen=True)
class CtRows:
    """What one study adds to the tables and to the hash of the set."""

    report: dict[str, str]
    labels: dict[str, object]
    boxes: list[dict[str, object]] = field(default_factory=list)
    truth: list[dict[str, object]] = field(default_factory=list)
    series: list[dict[str, object]] = field(default_factory=list)
    sentences: list[dict[str, object]] = field(default_factory=list)
    traps: list[dict[str, object]] = field(default_factory=list)
    mean_hu: float = 0.0
    digest: bytes = b""


@dataclass(frozen=True)
class _Reconstruction:
    """One volume of a study: how it is computed and how it is stored."""

    order: int
    kernel: Kernel
    kind: str
    plane: Plane
    grid: VolumeGrid
    shot: CtShot


def write_ct_patient(
    phantoms: CtPhantoms, out: Path, patient: int, first_study: int, count: int
) -> list[CtRows]:
    """Write the files of one patient under ``out`` and return the rows of the tables."""
    rng = np.random.default_rng([phantoms.seed, 1, patient])
    female = int(rng.integers(2))
    body, person = draw_ct_body(rng, female=female), draw_person(rng, female=female)
    day, roll = int(rng.integers(0, 1400)), rng.random()
    split = "train" if roll < 0.7 else "val" if roll < 0.85 else "test"
    return [
        _Study(phantoms, out, f"P{patient:05d}", body, person, first_study + index).write(
            date=date_of(day + 90 * index), split=split
        )
        for index in range(count)
    ]


class _Study:
    """Everything that is drawn for one study, in the order in which it is drawn."""

    def __init__(
        self, phantoms: CtPhantoms, out: Path, patient: str, body: CtBody, person: Person, number: int
    ) -> None:
        self.phantoms, self.out, self.patient, self.person = phantoms, out, patient, person
        self.number, self.trap = number, phantoms.trap(number)
        self.rng = rng = np.random.default_rng([phantoms.seed, 2, number])
        moved = tuple(float(value + rng.uniform(-6, 6)) for value in body.shift)
        self.body = replace(
            body, shift=(moved[0], moved[1], moved[2]), turn=body.turn + float(rng.uniform(-0.02, 0.02))
        )
        normal = rng.random() < _NORMAL
        self.findings = () if normal else draw_ct_findings(rng, level=phantoms.level, only=phantoms.only)
        self.contrast = int(rng.random() < 0.4)
        self.accession = f"A{phantoms.uid('accession', number)[-9:]}"
        self.study_uid = phantoms.uid("study", number)

    def write(self, *, date: str, split: str) -> CtRows:
        """Write the files and return the rows."""
        phantoms = self.phantoms
        writing = self._report()
        plans = self._plan(date)
        rows = CtRows(
            report={
                "patient_id": self.person.patient_id,
                "accession": self.accession,
                "study_instance_uid": self.study_uid,
                "image": f"volumes/{self.accession}.nii.gz" if plans[0].kind == "nifti" else "",
                "split": split,
                "report": writing.text,
            },
            labels={
                "accession": self.accession,
                **{kind: int(any(f.kind == kind for f in self.findings)) for kind in phantoms.only},
            },
            sentences=self._sentences(writing),
        )
        digest = hashlib.sha256(writing.text.encode())
        drawn: CtDrawing | None = None
        for plan in plans:
            noise = np.random.default_rng([phantoms.seed, 3, self.number, plan.order])
            each = draw_ct(
                self.body, self.findings, plan.grid, level=phantoms.level, rng=noise,
                contrast=self.contrast, kernel=plan.kernel,
            )  # fmt: skip
            self._write_volume(plan, each, rows)
            digest.update(repr(each.hu.shape).encode() + each.hu.astype("<i2").tobytes())
            digest.update(each.structures.tobytes() + each.lesions.tobytes())
            drawn = drawn or each
        assert drawn is not None
        self._place(drawn, plans[0], rows)
        digest.update(repr([sorted(box.items()) for box in rows.boxes]).encode())
        mean = float(drawn.hu[drawn.hu > -500].mean(dtype=np.float64))
        return replace(rows, digest=digest.digest(), mean_hu=round(mean, 2))

    def _report(self) -> CtWriting:
        """Write the report; that of a normal study may repeat one of a few texts word for word."""
        rng, phantoms, share = self.rng, self.phantoms, self.phantoms.unobservable
        if not self.findings and rng.random() < phantoms.level.repeats:
            share = float(rng.random() < share)
            text = int(rng.integers(_BOILERPLATES))
            rng = np.random.default_rng([phantoms.seed, 6, text, self.contrast, int(share)])
        return write_ct_report(
            rng,
            self.findings,
            contrast=self.contrast,
            unobservable=share,
            context=int(phantoms.unobservable > 0),
        )

    def _plan(self, date: str) -> list[_Reconstruction]:
        """Draw how the study was acquired, stored and named: nothing here knows of findings."""
        rng, phantoms, trap = self.rng, self.phantoms, self.trap
        roll, pair = rng.random(), rng.random() < 0.2
        kind = "nifti" if roll < 0.18 else "enhanced" if roll < 0.28 else "classic"
        syntax = list(_SYNTAX_CHANCE)[int(rng.choice(5, p=list(_SYNTAX_CHANCE.values())))]
        stored = _STORED[int(rng.integers(4))]
        maker, kvp = _MAKERS[int(rng.integers(3))], int(rng.choice((80, 100, 120, 140)))
        time = f"{int(rng.integers(7, 19)):02d}{int(rng.integers(60)):02d}{int(rng.integers(60)):02d}"
        kernel: Kernel = "lung" if rng.random() < 0.25 else "soft"
        seed, step = int(rng.integers(2**31)), float(rng.uniform(1.0, 1.3))
        segmented = self.number % _SEG_EVERY == 3
        if trap or segmented:
            kind, pair = "nifti" if trap and TRAPS[trap].kind == "nifti" else "classic", trap == "two_series"
        if trap in ("truncated", "mixed_orientation", "conflicting_instance"):
            syntax = "explicit"
        if syntax in ("rle", "jpegls", "jpeg2000"):
            stored = "unsigned"
        if kind == "enhanced":
            syntax = "explicit" if syntax in ("jpegls", "jpeg2000") else syntax
        plane: Plane = trap if trap in ("feet_first", "sagittal") else "axial"  # type: ignore[assignment]
        kernels: list[Kernel] = ["soft", "lung"] if pair and kind != "nifti" else [kernel]
        plans = []
        for order, each in enumerate(kernels):
            grid = draw_grid(
                np.random.default_rng(seed),
                self.body,
                size_px=phantoms.size_px,
                step=step * (1 - 0.4 * order),
            )
            shot = CtShot(
                self.study_uid, phantoms.uid("series", self.number, order), self.accession, date, time,
                2 + order, f"CHEST ABD {each.upper()}", {"soft": "B31f", "lung": "B70f"}[each], maker, kvp,
                self.contrast, round(float(grid.affine_ras[2, 2]) * 1.25, 2), stored, syntax,
                f"REFERRER^{self.patient[1:]}",
            )  # fmt: skip
            plans.append(_Reconstruction(order, each, kind, plane, trapped_grid(grid, trap), shot))
        return plans

    def _write_volume(self, plan: _Reconstruction, drawn: CtDrawing, rows: CtRows) -> None:
        """Write the volume, its label map and the mask of its findings."""
        home = self.out / "images" / self.patient / f"S{self.number:05d}"
        key, series = plan.shot.series_uid, home / f"R{0 if self.trap == 'two_series' else plan.order}"
        names, masks, lesions = "ordered", self.out / "masks", self.out / "truth" / "findings"
        for folder in (masks, lesions, series if plan.kind != "nifti" else self.out / "volumes"):
            folder.mkdir(parents=True, exist_ok=True)
        expected, mask = TRAPS[self.trap].expected if self.trap else "ok", "nifti"
        if plan.kind == "nifti":
            key = self.accession
            place = f"volumes/{key}.nii.gz"
            self._write_nifti(plan, drawn, self.out / place)
        else:
            place = series.relative_to(self.out).as_posix()
            names = self._write_dicom(plan, drawn, series)
            if self.number % _SEG_EVERY == 3 and not self.trap:
                mask = "seg"
                self._write_seg(plan, drawn, home / "SEG" / "S1.dcm")
        if mask == "nifti":
            write_nifti(drawn.structures, drawn.grid.affine_ras, masks / f"{key}.nii.gz")
        with (lesions / f"{key}.npz").open("wb") as file:
            np.savez_compressed(file, findings=drawn.lesions, affine_ras=drawn.grid.affine_ras)
        rows.series.append(
            {
                "accession": self.accession,
                "study_instance_uid": self.study_uid,
                "series_instance_uid": "" if plan.kind == "nifti" else key,
                "place": place,
                "kind": plan.kind,
                "plane": plan.plane,
                "kernel": plan.kernel,
                "contrast": self.contrast,
                "shape": " ".join(map(str, drawn.hu.shape)),
                "spacing_mm": " ".join(
                    f"{float(np.sqrt((drawn.grid.affine_ras[:3, a] ** 2).sum())):.4f}" for a in range(3)
                ),
                "affine_ras": " ".join(f"{value:.6f}" for value in np.ravel(drawn.grid.affine_ras)),
                "stored": plan.shot.stored if plan.kind != "nifti" else "",
                "syntax": plan.shot.syntax if plan.kind != "nifti" else "",
                "manufacturer": plan.shot.maker,
                "kvp": plan.shot.kvp,
                "names": names,
                "mask": mask,
                "trap": self.trap,
                "expected": expected,
                "hu_sha256": hashlib.sha256(drawn.hu.astype("<i2").tobytes()).hexdigest(),
            }
        )

    def _write_nifti(self, plan: _Reconstruction, drawn: CtDrawing, path: Path) -> None:
        choice = np.random.default_rng([self.phantoms.seed, 5, self.number])
        flips = ((), (0,), (0, 1))[int(choice.integers(3))]
        values, offset = drawn.hu, -1024 * int(choice.integers(2))
        if self.trap == "nifti_no_intercept":
            values, offset = drawn.hu + np.int16(1024), 0
        elif self.trap == "nifti_4d":
            values, offset = np.stack([drawn.hu, drawn.hu], axis=-1), 0
        write_nifti(values, drawn.grid.affine_ras, path, flips=flips, offset=offset)

    def _write_dicom(self, plan: _Reconstruction, drawn: CtDrawing, folder: Path) -> str:
        """Write the slices and what the trap puts beside them; return how the files are named."""
        choice = np.random.default_rng([self.phantoms.seed, 5, self.number, plan.order])

        def unique(*parts: object) -> str:
            return self.phantoms.uid("image", self.number, plan.order, *parts)

        count = drawn.hu.shape[{"sagittal": 0}.get(plan.plane, 2)]
        sound = frames_of(drawn.hu, drawn.grid, plane=plan.plane, uids=[unique(k) for k in range(count)])
        frames = spring(self.trap, sound, uid=unique, hu=drawn.hu, grid=drawn.grid)
        at_random = self.trap == "random_names" or choice.random() < 0.3
        if plan.kind == "enhanced":
            write_enhanced(frames, folder / "E1.dcm", self.person, plan.shot, sop_uid=unique("enhanced"))
            return "ordered"
        stems = [f"{'I' if plan.order == 0 else 'J'}{index:04d}" for index in range(1, len(frames) + 1)]
        if at_random:
            stems = [bytes(choice.integers(0, 256, 6, dtype=np.uint8)).hex() for _ in frames]
        paths = [folder / f"{stem}.dcm" for stem in stems]
        position = {"feet_first": "FFS"}.get(self.trap, "HFS")
        write_classic(frames, paths, self.person, plan.shot, patient_position=position)
        beside = replace(plan.shot, series_uid=unique("beside"), number=1, stored="signed", syntax="explicit")
        if self.trap == "truncated":
            cut_file(paths[len(paths) // 2])
        elif self.trap == "localizer":
            shot = replace(beside, description="SCOUT")
            write_localizer(drawn.hu, drawn.grid, folder.parent / "SCOUT", self.person, shot, uid=unique)
        elif self.trap == "dose_report":
            shot = replace(beside, description="DOSE REPORT")
            write_dose_report(folder.parent / "DOSE" / "D1.dcm", self.person, shot, sop_uid=unique("dose"))
        return "random" if at_random else "ordered"

    def _write_seg(self, plan: _Reconstruction, drawn: CtDrawing, path: Path) -> None:
        unique = self.phantoms.uid
        count = drawn.hu.shape[2]
        uids = [unique("image", self.number, plan.order, index) for index in range(count)]
        frames = frames_of(drawn.hu, drawn.grid, plane="axial", uids=uids)
        numbers = frames_of(drawn.structures.astype(np.int16), drawn.grid, plane="axial", uids=uids)
        labels: list[UInt8[np.ndarray, "rows columns"]] = [frame.hu.astype(np.uint8) for frame in numbers]
        shot = replace(
            plan.shot,
            series_uid=unique("seg", self.number),
            number=9,
            description="STRUCTURES",
            syntax="explicit",
        )
        write_seg(
            frames, labels, path, self.person, shot,
            series_uid=plan.shot.series_uid, sop_uid=unique("seg object", self.number),
            dimension_uid=unique("seg dimension", self.number),
        )  # fmt: skip

    def _place(self, drawn: CtDrawing, plan: _Reconstruction, rows: CtRows) -> None:
        """Add the boxes and truth of the findings, and the trap."""
        for finding in drawn.findings:
            rows.truth.append(self._truth(finding))
            for box in finding.boxes:
                edges = {"x0": box.x0, "y0": box.y0, "z0": box.z0, "x1": box.x1, "y1": box.y1, "z1": box.z1}
                ends = {f"{name}_mm": f"{edge:.2f}" for name, edge in edges.items() if edge is not None}
                rows.boxes.append({"accession": self.accession, "label": finding.kind, **ends})
        if self.trap:
            kind = TRAPS[self.trap]
            rows.traps.append(
                {
                    "accession": self.accession,
                    "study_instance_uid": self.study_uid,
                    "series_instance_uid": "" if kind.kind == "nifti" else plan.shot.series_uid,
                    "trap": self.trap,
                    "expected": kind.expected,
                    "records": kind.records,
                    "what": kind.what,
                }
            )

    def _truth(self, finding: CtFinding) -> dict[str, object]:
        boxes = [(box.x0, box.y0, box.z0, box.x1, box.y1, box.z1) for box in finding.boxes]
        return {
            "accession": self.accession,
            "study_instance_uid": self.study_uid,
            "label": finding.kind,
            "side": finding.side,
            "place": finding.place,
            "size": finding.size,
            "mm": finding.mm,
            "hu": finding.hu,
            "voxels": finding.voxels,
            "boxes_mm": ";".join(
                " ".join(f"{edge:.2f}" for edge in box if edge is not None) for box in boxes
            ),
        }

    def _sentences(self, writing: CtWriting) -> list[dict[str, object]]:
        return [
            {
                "accession": self.accession,
                "order": order,
                "section": item.said.section,
                "organ": item.organ,
                "kind": item.said.kind,
                "observable": int(item.said.kind != "unobservable"),
                "labels": ";".join(item.said.labels),
                "category": item.said.category,
                "style": writing.style,
                "text": item.said.text,
            }
            for order, item in enumerate(writing.statements)
        ]
