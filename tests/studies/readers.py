"""What readers of DICOM series make of the same files: right, wrong, or refused, and whether they say so.

    python -m tests.studies.readers [--out docs/readers.md]

Packaged files first, then series written from one packaged header with 100·i HU painted on slice i.
Whether a volume is right is asked of it by one rule for all readers: at three pixels of every slice, in
millimetres of space as the headers give it, the volume must hold their values.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from readingcases import PYDICOM, golden
from seriescases import enhanced, tilted, write_series

from medvl.errors import MedvlError
from medvl.notice import NOTICE

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
PACKAGED = PYDICOM / "test_files" / "dicomdirtests"
DEPTHS = (0, 2.5, 5, 7.5, 10)
Volume = tuple[np.ndarray, np.ndarray | None]
Points = list[tuple[np.ndarray, float]]
"""Places in RAS mm, and the value that a right volume has there."""


@dataclass
class Case:
    """Files of one folder, and what a right volume of them holds."""

    name: str
    folder: Path
    series: int = 1
    spacing_mm: float | None = None
    slices: list[Points] = field(default_factory=list)


def folder_of(root: Path, name: str, files: list[Path]) -> Path:
    """Return a folder that holds copies of these files and nothing else."""
    folder = root / name.replace(" ", "_")
    folder.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(files):
        target = folder / f"f{number:03d}.dcm"
        if path != target:
            shutil.copy(path, target)
    return folder


def middles(folder: Path) -> list[Points]:
    """Return three pixels of each slice, by pydicom: the middle one and two near corners."""
    found = []
    for path in sorted(folder.iterdir()):
        dataset = pydicom.dcmread(path)
        cosines = np.array(dataset.ImageOrientationPatient, float)
        start = np.array(dataset.ImagePositionPatient, float)
        down, across = cosines[3:] * dataset.PixelSpacing[0], cosines[:3] * dataset.PixelSpacing[1]
        slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
        pixels = dataset.pixel_array * slope + intercept
        rows, columns = pixels.shape
        places = ((rows // 2, columns // 2), (1, 2), (rows - 2, 1))
        found.append([((start + r * down + c * across) * [-1, -1, 1], pixels[r, c]) for r, c in places])
    return found


def cases(root: Path) -> list[Case]:
    """Write the files of every case."""

    def packaged(name: str, files: list[Path], **about: object) -> Case:
        folder = folder_of(root, name, files)
        return Case(name, folder, slices=middles(folder), **about)

    def painted(name: str, depths: tuple[float, ...] = DEPTHS, **elements: object) -> Case:
        folder = root / name.replace(" ", "_")
        write_series(folder, depths, **elements)
        return Case(name, folder, slices=middles(folder))

    lean = tilted(root / "gantry_tilt_of_22_degrees")[0].parent
    both = root / "two_series_in_one_folder"
    write_series(both, DEPTHS)
    for number, path in enumerate(write_series(both / "b", tuple(z + 1.25 for z in DEPTHS), series=2)):
        path.rename(both / f"t{number}.dcm")
    (both / "b").rmdir()
    mprage = enhanced(root / "enhanced_multi-frame_MR" / "a.dcm").parent
    return [
        packaged("hole of 202 mm", sorted((PACKAGED / "77654033" / "CT2").iterdir())),
        packaged("two scouts", sorted((PACKAGED / "98892001" / "CT2N").iterdir())),
        packaged("radial MR", sorted((PACKAGED / "98892003" / "MR700").iterdir())),
        Case("MONOCHROME1 film", folder_of(root, "film", [golden("77654033/CR1/6154")])),
        packaged("13-bit J2K with a wrong sign flag", [golden("J2K_pixelrep_mismatch.dcm")]),
        Case("enhanced multi-frame MR", mprage, spacing_mm=1.0, slices=frames(mprage / "a.dcm")),
        packaged("one slice 5 mm thick", [golden("test_files/CT_small.dcm")], spacing_mm=5.0),
        packaged("one slice, SpacingBetweenSlices 20", [golden("693_J2KI.dcm")], spacing_mm=5.0),
        painted("InstanceNumber swapped", InstanceNumber=[1, 3, 2, 5, 4]),
        painted("InstanceNumber missing once", InstanceNumber=[1, 2, None, 4, 5]),
        painted("two slices at one position", (0, 2.5, 2.5, 5, 7.5)),
        painted("a slope of each slice's own", RescaleSlope=["1", "2", "4", "1", "2"]),
        Case("gantry tilt of 22 degrees", lean, slices=middles(lean)),
        Case("two series in one folder", both, series=2, slices=middles(both)),
    ]


def frames(path: Path) -> list[Points]:
    """Return the place of the first pixel of each frame; its pixels are all zero."""
    groups = pydicom.dcmread(path, stop_before_pixels=True).PerFrameFunctionalGroupsSequence
    places = [np.array(g.PlanePositionSequence[0].ImagePositionPatient, float) for g in groups]
    return [[(place * [-1, -1, 1], 0.0)] for place in places]


# --- the readers: a folder to volumes with their affines, voxel to RAS mm ---


def medvl_reader(folder: Path) -> list[Volume]:
    """Series by series, every policy at its default."""
    from medvl.preprocess.reading import read_image
    from medvl.preprocess.reading.series import find_series, read_series

    found = []
    for series in find_series(sorted(folder.iterdir())):
        if series.geometry.verdict == "rejected:no_position" and len(series.slices) == 1:
            image = read_image(series.slices[0].path)
        else:
            image = read_series(series)[0]
        for note in image.notes:
            warnings.warn(note, stacklevel=1)
        found.append((image.array[0], image.affine_ras))
    return found


def monai_reader(name: str) -> Callable[[Path], list[Volume]]:
    """One of MONAI's readers with its default options."""

    def read(folder: Path) -> list[Volume]:
        from monai.data import image_reader

        reader = getattr(image_reader, name)()
        files = sorted(str(path) for path in folder.iterdir())
        array, about = reader.get_data(reader.read(files[0] if len(files) == 1 else str(folder)))
        return [(np.asarray(array), np.asarray(about["affine"]))]

    return read


def simpleitk_reader(folder: Path) -> list[Volume]:
    """Every series of the folder through ImageSeriesReader."""
    import SimpleITK

    found = []
    for series in SimpleITK.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)):
        files = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series)
        image = SimpleITK.ReadImage(files if len(files) > 1 else files[0])
        affine = np.eye(4)
        size = image.GetDimension()
        directions = np.array(image.GetDirection()).reshape(size, size)[:3, :3]
        affine[:3, :3] = directions * np.array(image.GetSpacing()[:3])
        affine[:3, 3] = image.GetOrigin()[:3]
        array = np.squeeze(SimpleITK.GetArrayFromImage(image)).T
        found.append((array.reshape(array.shape + (1,) * (3 - array.ndim)), FLIP @ affine))
    return found


def highdicom_reader(folder: Path) -> list[Volume]:
    """One volume of all files, or of the frames of the one file."""
    import highdicom

    files = sorted(folder.iterdir())
    datasets = [pydicom.dcmread(path) for path in files]
    if "PerFrameFunctionalGroupsSequence" in datasets[0]:
        volume = highdicom.imread(files[0]).get_volume()
    else:
        volume = highdicom.get_volume_from_series(datasets)
    return [(volume.array, FLIP @ volume.affine)]


def dicom2nifti_reader(folder: Path) -> list[Volume]:
    """The converter's own defaults, without its reorientation."""
    import dicom2nifti
    import nibabel

    with tempfile.TemporaryDirectory() as out:
        target = Path(out) / "a.nii"
        dicom2nifti.dicom_series_to_nifti(str(folder), str(target), reorient_nifti=False)
        image = nibabel.load(target)
        return [(np.asarray(image.dataobj), image.affine)]


def dcm2niix_reader(folder: Path) -> list[Volume]:
    """All files that the program writes."""
    import nibabel

    program = shutil.which("dcm2niix") or str(
        Path(importlib.util.find_spec("dcm2niix").origin).parent / "dcm2niix"
    )
    with tempfile.TemporaryDirectory() as out:
        run = subprocess.run([program, "-o", out, str(folder)], capture_output=True, text=True)
        if "Warning" in run.stdout:
            warnings.warn("said on its output", stacklevel=1)
        images = [nibabel.load(path) for path in sorted(Path(out).glob("*.nii*"))]
        return [(np.asarray(image.dataobj), image.affine) for image in images]


READERS: dict[str, tuple[str, Callable[[Path], list[Volume]]]] = {
    "medvl": ("medvl", medvl_reader),
    "MONAI PydicomReader": ("monai", monai_reader("PydicomReader")),
    "MONAI ITKReader": ("itk", monai_reader("ITKReader")),
    "SimpleITK": ("SimpleITK", simpleitk_reader),
    "highdicom": ("highdicom", highdicom_reader),
    "dicom2nifti": ("dicom2nifti", dicom2nifti_reader),
    "dcm2niix": ("dcm2niix", dcm2niix_reader),
}


# --- what became of a case ---


@contextmanager
def listening() -> Iterator[list[str]]:
    """Collect whatever is said: Python's warnings, and words of native code on the standard error."""
    said: list[str] = []
    kept = os.dup(2)
    with tempfile.TemporaryFile() as catcher, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        os.dup2(catcher.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            catcher.seek(0)
            said += [str(each.message) for each in caught if "eprecat" not in str(each.message)]
            said += [catcher.read().decode("utf-8", "replace").strip()]


def outcome(case: Case, reader: str) -> str:
    """Return ``right``, ``wrong (…)`` or ``refuses (…)``, with ``, says so`` when anything was said."""
    module, read = READERS[reader]
    if importlib.util.find_spec(module) is None:
        return "not installed"
    with listening() as said:
        try:
            volumes = read(case.folder)
        except MedvlError as error:
            return f"refuses ({getattr(error, 'verdict', '').partition(':')[2] or error.rule})"
        except Exception as error:  # noqa: BLE001 - readers refuse with nearly any class
            return f"refuses ({type(error).__name__})"
    volumes = [(array[..., None] if array.ndim == 2 else array, affine) for array, affine in volumes]
    if not volumes:
        return "refuses (no volume)"
    judged = film(volumes[0][0]) if case.name.startswith("MONOCHROME1") else judge(case, volumes)
    return judged + (", says so" if any(said) else ", silent" if judged.startswith("wrong") else "")


def film(array: np.ndarray) -> str:
    """Say whether a MONOCHROME1 film keeps its modality values, 1563.9 to 2116.6 by pydicom."""
    dataset = pydicom.dcmread(golden("77654033/CR1/6154"))
    values = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    low, high = float(np.min(array)), float(np.max(array))
    kept = max(abs(low - values.min()), abs(high - values.max())) < 0.1
    return "right (values kept)" if kept else f"wrong (inverted: {low:.0f} to {high:.0f})"


def judge(case: Case, volumes: list[Volume]) -> str:
    """Ask the volumes for the value at every point of the case."""
    count = f"{len(volumes)} volumes" if len(volumes) > 1 else ""
    held = [any(all(holds(v, *point) for point in points) for v in volumes) for points in case.slices]
    if not all(held):
        told = f"{held.count(False)} of {len(held)} slices not where they lie"
        return f"wrong ({', '.join(filter(None, [count, told]))})"
    if len(volumes) < case.series:
        return f"wrong ({case.series} series in {len(volumes)} volume)"
    if case.spacing_mm is not None:
        step = thickness(volumes[0])
        verdict = "right" if abs(step - case.spacing_mm) < 1e-3 else "wrong"
        return f"{verdict} (z spacing {step:g})"
    return f"right ({count})" if count else "right"


def slice_axis(volume: Volume) -> int:
    """Return the axis with the fewest voxels, which is that of the slices in every case here."""
    return int(np.argmin(volume[0].shape[:3]))


def thickness(volume: Volume) -> float:
    """Return the distance between slices."""
    return float(np.linalg.norm(volume[1][:3, slice_axis(volume)]))


def holds(volume: Volume, place: np.ndarray, value: float) -> bool:
    """Say whether the volume has a voxel at a place, in RAS mm, with this value; padding may be raised."""
    array, affine = volume
    if array.ndim != 3 or affine is None or affine.shape != (4, 4) or abs(np.linalg.det(affine)) < 1e-9:
        return False
    near = np.rint(np.linalg.solve(affine, [*place, 1.0])[:3]).astype(int)
    apart_mm = np.linalg.norm((affine @ [*near, 1.0])[:3] - place)
    if apart_mm > 0.05 or (near < 0).any() or (near >= array.shape[:3]).any():
        return False
    got = float(array[tuple(near)])
    return abs(got - value) <= 1 or (value < -1024 and got == -1024)


def table(root: Path, readers: list[str]) -> list[str]:
    """Return the Markdown table of every case and reader."""
    lines = ["| case | " + " | ".join(readers) + " |", "|---" * (len(readers) + 1) + "|"]
    for case in cases(root):
        lines.append(f"| {case.name} | " + " | ".join(outcome(case, reader) for reader in readers) + " |")
    return lines


def main() -> None:
    """Print the table, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the page of the documentation there")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        lines = table(Path(root), list(READERS))
    if asked.out is None:
        print("\n".join(lines))
        return
    asked.out.write_text("\n".join([PAGE.strip(), "", *lines, "", NOTICE, ""]), "utf-8")


PAGE = """
# Readers

    python -m tests.studies.readers --out docs/readers.md

What readers make of the same DICOM files: files that ship with pydicom and nibabel, and series written from
one of their headers with 100·i HU painted on slice i, so that a slice out of place shows. *Right*: at three
pixels of every slice, in millimetres of space as the headers give it, the volume holds their values.
*Refuses*: no volume, with the error or the reason. *Silent*: wrong, and neither a warning nor a word on the
standard error. Each reader runs with its default options; columns say where one was not installed.

`medvl` refuses what is no regular volume and names the reason (`Geometry.verdict`, with its numbers);
`read_series(..., on_irregular="resample")` straightens tilted and uneven stacks and `allow_gaps=True` fills
holes, both linearly and only on request, and the verdict is then `resampled`. MONOCHROME1 is kept as it is
and inverted once, by `PixelSpec`, after the window. Below −1024 HU lies only padding, so it is raised to
−1024, with a note. One slice has no spacing: its thickness stands for it, with a note.
"""


if __name__ == "__main__":
    main()
