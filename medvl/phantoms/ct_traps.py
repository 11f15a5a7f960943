"""What goes wrong in real CT archives, made on purpose: each trap with the verdict that it deserves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
from jaxtyping import Int16
from pydicom.uid import UID, XRayRadiationDoseSRStorage

from medvl.phantoms.ct_series import CtShot, Frame, Plane, common_header, frames_of, write_classic
from medvl.phantoms.radiograph import Person
from medvl.specs.volumes import VolumeGrid

__all__ = ["TRAPS", "Trap", "cut_file", "spring", "trapped_grid", "write_dose_report", "write_localizer"]


@dataclass(frozen=True)
class Trap:
    """One defect or oddity.

    Attributes:
        expected: what a reader must say of the series or file: ``"ok"``, ``"rejected:<reason>"`` as the
            geometry verdicts of ``medvl ct prepare``, or ``"failure:<error>"``.
        records: how many volumes the study gives by default.
        kind: ``"dicom"`` or ``"nifti"``.
        what: the trap in words.
    """

    expected: str
    records: int
    kind: Literal["dicom", "nifti"]
    what: str


TRAPS: Mapping[str, Trap] = MappingProxyType(
    {
        "localizer": Trap("ok", 1, "dicom", "a localizer series beside the volume, which itself is refused"),
        "tilt": Trap("rejected:tilt", 0, "dicom", "a gantry tilted by 12 degrees"),
        "missing_slice": Trap("rejected:gap", 0, "dicom", "one slice in the middle is missing"),
        "duplicate_instance": Trap("ok", 1, "dicom", "two copies of one file under other names"),
        "duplicate_position": Trap("rejected:duplicate_position", 0, "dicom", "two slices at one position"),
        "conflicting_instance": Trap(
            "rejected:conflicting_instance", 0, "dicom", "one SOPInstanceUID on different pixels"
        ),
        "uneven_spacing": Trap("rejected:spacing", 0, "dicom", "intervals that differ by 6 percent"),
        "mixed_orientation": Trap(
            "ok", 1, "dicom", "a coronal and a sagittal picture within the axial series, which are refused"
        ),
        "random_names": Trap("ok", 1, "dicom", "files named at random"),
        "reversed_numbers": Trap("ok", 1, "dicom", "InstanceNumber runs against the position"),
        "two_series": Trap("ok", 2, "dicom", "two reconstructions in one folder"),
        "truncated": Trap("failure:TruncatedPixels", 0, "dicom", "one file of the series is cut short"),
        "no_position": Trap("rejected:no_position", 0, "dicom", "slices that do not say where they lie"),
        "feet_first": Trap("ok", 1, "dicom", "feet first: columns run to the right, slices to the feet"),
        "sagittal": Trap("ok", 1, "dicom", "sagittal slices"),
        "oblique": Trap("ok", 1, "dicom", "slices tilted by 9 degrees, stacked along their normal"),
        "dose_report": Trap("ok", 1, "dicom", "a radiation dose report beside the volume"),
        "nifti_no_intercept": Trap(
            "ok", 1, "nifti", "stored values 1024 too high: the intercept was left out"
        ),
        "nifti_4d": Trap("failure:MultiFrame", 0, "nifti", "a fourth axis with two volumes"),
    }
)
"""Every trap by its name; ``truth/traps.csv`` lists those of a set."""


def trapped_grid(grid: VolumeGrid, trap: str) -> VolumeGrid:
    """Return the voxels of a tilted gantry or of oblique slices; else the grid itself."""
    if trap not in ("tilt", "oblique"):
        return grid
    half = 0.105 if trap == "tilt" else 0.079  # tangent of half the angle: 12 and 9 degrees
    cosine, sine = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    affine = np.array(grid.affine_ras, np.float64)
    rows, depth = affine[1, 1], affine[2, 2]
    affine[:3, 1] = (0.0, rows * cosine, -rows * sine)
    if trap == "oblique":
        affine[:3, 2] = (0.0, depth * sine, depth * cosine)
    middle = [(size - 1) / 2 for size in grid.shape]
    for axis in (1, 2):
        old = float(grid.affine_ras[axis, 3] + grid.affine_ras[axis, axis] * middle[axis])
        affine[axis, 3] = old - float(affine[axis, 1] * middle[1] + affine[axis, 2] * middle[2])
    return VolumeGrid(grid.shape, affine)


def _missing(frames: list[Frame], uid: Callable[..., str], volume: _Volume) -> list[Frame]:
    return frames[: len(frames) // 2] + frames[len(frames) // 2 + 1 :]


def _copies(frames: list[Frame], uid: Callable[..., str], volume: _Volume) -> list[Frame]:
    return [*frames, frames[2], frames[-3]]


def _same_place(frames: list[Frame], uid: Callable[..., str], volume: _Volume) -> list[Frame]:
    twin = frames[len(frames) // 3]
    return [*frames, replace(twin, sop_uid=uid("twin"), number=len(frames) + 1)]


def _conflict(frames: list[Frame], uid: Callable[..., str], volume: _Volume) -> list[Frame]:
    return [*frames, replace(frames[1], hu=frames[2].hu)]


def _uneven(frames: list[Frame], uid: Callable[..., str], volume: _Volume) -> list[Frame]:
    first, second = frames[0].position, frames[1].position
    assert first is not None and second is not None
    step = [0.03 * (b - a) for a, b in zip(first, second, strict=True)]
    moved = []
    for index, frame in enumerate(frames):
        x, y, z = frame.position or first
        moved.append(replace(frame, position=(x + step[0], y + step[1], z + step[2])) if index % 2 else frame)
    return moved


def _mixed(frames: list[Frame], uid: Callable[..., str], volume: _Volume) -> list[Frame]:
    rows, columns = frames[0].hu.shape
    across = []
    for number, plane in enumerate(_SCOUT_PLANES):
        whole = volume.frames(plane, uid)
        frame = whole[len(whole) // 2]
        picture = np.full((rows, columns), -1000, np.int16)
        high, wide = min(rows, frame.hu.shape[0]), min(columns, frame.hu.shape[1])
        picture[:high, :wide] = frame.hu[:high, :wide]
        across.append(
            replace(frame, hu=picture, sop_uid=uid("across", number), number=len(frames) + 1 + number)
        )
    return [*frames, *across]


def _backwards(frames: list[Frame], uid: Callable[..., str], volume: _Volume) -> list[Frame]:
    return [replace(frame, number=len(frames) - index) for index, frame in enumerate(frames)]


def _nowhere(frames: list[Frame], uid: Callable[..., str], volume: _Volume) -> list[Frame]:
    return [replace(frame, position=None, orientation=None) for frame in frames]


@dataclass(frozen=True)
class _Volume:
    hu: Int16[np.ndarray, "x y z"]
    grid: VolumeGrid

    def frames(self, plane: Plane, uid: Callable[..., str]) -> list[Frame]:
        count = self.hu.shape[{"sagittal": 0, "coronal": 1}.get(plane, 2)]
        return frames_of(self.hu, self.grid, plane=plane, uids=[uid(plane, k) for k in range(count)])


_SCOUT_PLANES: tuple[Plane, ...] = ("coronal", "sagittal")
_SPRUNG: Mapping[str, Callable[[list[Frame], Callable[..., str], _Volume], list[Frame]]] = {
    "missing_slice": _missing,
    "duplicate_instance": _copies,
    "duplicate_position": _same_place,
    "conflicting_instance": _conflict,
    "uneven_spacing": _uneven,
    "mixed_orientation": _mixed,
    "reversed_numbers": _backwards,
    "no_position": _nowhere,
}


def spring(
    trap: str,
    frames: Sequence[Frame],
    *,
    uid: Callable[..., str],
    hu: Int16[np.ndarray, "x y z"],
    grid: VolumeGrid,
) -> list[Frame]:
    """Return the slices as the trap leaves them; those of other traps as they are.

    Args:
        trap: a key of :data:`TRAPS`, or "".
        frames: the slices of the sound series.
        uid: makes a UID of this series from whatever it is given.
        hu: of the volume that they were cut from.
        grid: its voxels.
    """
    alter = _SPRUNG.get(trap)
    return list(frames) if alter is None else alter(list(frames), uid, _Volume(hu, grid))


def write_localizer(
    hu: Int16[np.ndarray, "x y z"],
    grid: VolumeGrid,
    folder: Path,
    person: Person,
    shot: CtShot,
    *,
    uid: Callable[..., str],
) -> None:
    """Write a frontal and a lateral scout as one series."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, plane in enumerate(_SCOUT_PLANES, 1):
        frames = _Volume(hu, grid).frames(plane, uid)
        mean = np.rint(hu.mean(axis=1 if plane == "coronal" else 0, dtype=np.float64)).astype(np.int16)
        side = np.flip(mean.T, (0, 1))  # rows to the feet, columns to the left or the back
        frame = replace(
            frames[len(frames) // 2],
            hu=np.ascontiguousarray(side),
            sop_uid=uid("scout", number),
            number=number,
        )
        path = folder / f"L{number}.dcm"
        write_classic([frame], [path], person, shot, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))


def write_dose_report(path: Path, person: Person, shot: CtShot, *, sop_uid: str) -> None:
    """Write a radiation dose report: a DICOM object of the study without pixels."""
    ds = common_header(person, shot, modality="SR")
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = XRayRadiationDoseSRStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = UID(sop_uid)
    ds.InstanceNumber, ds.CompletionFlag, ds.VerificationFlag, ds.ValueType = (
        1,
        "COMPLETE",
        "UNVERIFIED",
        "CONTAINER",
    )
    ds.ContinuityOfContent = "SEPARATE"
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)


def cut_file(path: Path) -> None:
    """Cut a file to two thirds of its length."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
