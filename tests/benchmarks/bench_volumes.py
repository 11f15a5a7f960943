"""Volumes against plain readers: DICOM series, ``.nii.gz``, and patches of a stored volume.

The scan is made here: 96 slices of 512 × 512 in int16, smooth tissue within a cylinder, air around it, noise
of σ = 12, written as an uncompressed series (one of pydicom's packaged CT headers on every slice, file names
shuffled) and as a gzipped NIfTI. Peers, each as a script would use it: a loop of ``pydicom.dcmread`` sorted
by position with an int16 rescale, SimpleITK's ``ImageSeriesReader``, nibabel's ``get_fdata`` (float64, its
default; float32 is printed too). All take turns in CPU seconds on one thread; ours run once before each peer,
and the ratio of their odd and even runs says how noisy the machine is. Every turn compares the arrays. Peak
memory is that of one call in a process of its own, beyond what its imports hold. Run::

    python -m tests.benchmarks volumes
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import nibabel
import numpy as np
import pydicom
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid
from scipy.ndimage import zoom

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from test_store import record

from medvl.images import Unit
from medvl.preprocess.reading.nifti import read_nifti
from medvl.preprocess.reading.series import find_series, read_series
from medvl.specs import VolumeSpec
from medvl.store import write_shard
from medvl.store.shards import read_volume

SHAPE = (96, 512, 512)
"""Slices, rows, columns."""
SPACING_MM = (1.25, 0.7, 0.7)
ROUNDS = 8
PATCH = (96, 96, 96)
BAR_LOOP, BAR_SITK, BAR_NIFTI, BAR_PEAK, BAR_PATCH = 0.6, 0.4, 0.45, 2.2, 20


def scan() -> np.ndarray:
    """Return slices, rows and columns in HU."""
    random = np.random.default_rng(0)
    tissue = zoom(
        300 * random.normal(0, 1, (6, 8, 8)).astype(np.float32),
        [n / m for n, m in zip(SHAPE, (6, 8, 8), strict=True)],
        order=1,
    )
    y, x = np.mgrid[-1 : 1 : SHAPE[1] * 1j, -1 : 1 : SHAPE[2] * 1j]
    body = x * x + (1.4 * y) ** 2 < 0.8
    hu = np.where(body, tissue, -1000) + random.normal(0, 12, SHAPE).astype(np.float32)
    return np.rint(hu).clip(-1024, 3071).astype(np.int16)


def write_series(folder: Path, volume: np.ndarray) -> list[Path]:
    """Write the slices under shuffled names."""
    folder.mkdir()
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.Rows, dataset.Columns = volume.shape[1:]
    dataset.PixelSpacing = list(SPACING_MM[1:])
    names = np.random.default_rng(1).permutation(len(volume))
    for index, values in enumerate(volume):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.ImagePositionPatient = [-180.0, -180.0, index * SPACING_MM[0]]
        dataset.InstanceNumber = index + 1
        dataset.PixelData = (values + 1024).astype("<i2").tobytes()
        dataset.save_as(folder / f"{names[index]:04d}")
    return sorted(folder.iterdir())


def series_ours(paths: list[Path]) -> np.ndarray:
    (series,) = find_series(paths)
    return read_series(series)[0].array[0]


def series_loop(paths: list[Path]) -> np.ndarray:
    slices = sorted((pydicom.dcmread(p) for p in paths), key=lambda s: float(s.ImagePositionPatient[2]))
    return np.stack([s.pixel_array * np.int16(s.RescaleSlope) + np.int16(s.RescaleIntercept) for s in slices])


def series_sitk(paths: list[Path]) -> np.ndarray:
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(paths[0].parent)))
    return SimpleITK.GetArrayFromImage(reader.Execute())


def nifti_ours(path: Path) -> np.ndarray:
    return read_nifti(path, unit=Unit.HU).array[0].astype(np.float32)


def nifti_float64(path: Path) -> np.ndarray:
    return nibabel.load(path).get_fdata()


def nifti_float32(path: Path) -> np.ndarray:
    return nibabel.load(path).get_fdata(dtype=np.float32)


def timed(function: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    start = time.process_time()
    found = function()
    return time.process_time() - start, found


def race(name: str, ours: Callable, peers: dict[str, tuple[Callable, float | None]]) -> None:
    """Let ours and its peers take turns, and print the ratio of medians to each peer."""
    runs: tuple[list[float], list[float]] = ([], [])
    theirs: dict[str, list[float]] = {peer: [] for peer in peers}
    for turn in range(ROUNDS + 1):
        for number, (peer, (function, _)) in enumerate(peers.items()):
            seconds, expected = timed(ours)
            other, found = timed(function)
            if not np.array_equal(found, expected):
                raise RuntimeError(f"{name}: ours and {peer} differ")
            if turn:  # the first turn warms all up
                theirs[peer].append(other)
                runs[(turn + number) % 2].append(seconds)
    one, two = runs
    noise = statistics.median(one) / statistics.median(two)
    for peer, (_, bar) in peers.items():
        ratio = statistics.median(one + two) / statistics.median(theirs[peer])
        minima = min(one + two) / min(theirs[peer])
        print(
            f"{name:<22} {1000 * statistics.median(one + two):7.1f} ms; / {peer} {ratio:.3f} (minima "
            f"{minima:.3f}, ours / ours {noise:.3f}, n={len(one + two)}), {told(ratio, bar, noise)}",
            flush=True,
        )


def told(ratio: float, bar: float | None, noise: float) -> str:
    if bar is None:
        return "no bar"
    if ratio > bar:
        return f"bar {bar}  FAIL"
    return f"bar {bar}  {'inconclusive' if abs(noise - 1) > 0.05 and ratio > 0.9 * bar else 'pass'}"


def peak(expression: str, path: Path) -> float:
    """Return the MB that evaluating a call takes beyond its imports, at most, in a fresh process."""
    code = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from tests.benchmarks.bench_volumes import *\n"
        "def high():\n"
        "    return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) / 1000\n"
        "path = Path(sys.argv[1]); before = high()\n"
        f"found = {expression}\nprint(high() - before, found.nbytes / 1e6)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    used, size = map(float, done.stdout.split())
    return used / size


def patches(folder: Path, path: Path) -> None:
    """Print how a patch of the stored volume compares with reading the file again."""
    image = read_nifti(path, unit=Unit.HU)
    stored = VolumeSpec(spacing_mm=None, crop="none").apply(image)
    before = time.process_time()
    given = record(0, shape=stored.shape, dtype="int16")
    (placed,) = write_shard(folder / "000000.tar", [(given, stored, None)])
    writing = time.process_time() - before
    random = np.random.default_rng(0)
    times, again, whole = [], [], []
    for turn in range(3 * ROUNDS + 1):
        start = [int(random.integers(0, n - p + 1)) for n, p in zip(stored.shape, PATCH, strict=True)]
        stop = [a + p for a, p in zip(start, PATCH, strict=True)]
        seconds, found = timed(lambda a=start, b=stop: read_volume(folder, placed, start=a, stop=b))
        second, _ = timed(lambda a=start, b=stop: read_volume(folder, placed, start=a, stop=b))
        if not np.array_equal(found, stored[tuple(map(slice, start, stop))]):
            raise RuntimeError("the patch differs")
        if turn:
            times.append(seconds)
            again.append(second)
        if turn % 6 == 1:
            whole.append(timed(lambda: nifti_float64(path))[0])
    per_patch = statistics.median(times + again)
    faster = statistics.median(whole) / per_patch
    ours = timed(lambda: read_nifti(path))[0] / per_patch
    print(
        f"{'patch of 96³':<22} {1000 * per_patch:7.1f} ms; {faster:.0f} times as fast as get_fdata "
        f"(bar {BAR_PATCH}), {ours:.0f} as our own reading of the file (ours / ours "
        f"{statistics.median(times) / statistics.median(again):.3f}, n={len(times + again)}); stored "
        f"{placed.size / stored.nbytes:.3f} of raw, written in {writing:.2f} s  "
        f"{'pass' if faster >= BAR_PATCH else 'FAIL'}"
    )


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        volume = scan()
        paths = write_series(folder / "series", volume)
        affine = np.diag([-SPACING_MM[2], -SPACING_MM[1], SPACING_MM[0], 1.0])
        nifti = folder / "scan.nii.gz"
        nibabel.Nifti1Image(volume.transpose(2, 1, 0), affine).to_filename(nifti)
        peers = {"pydicom loop": (lambda: series_loop(paths), BAR_LOOP)}
        try:
            import SimpleITK
        except ImportError:
            print("SimpleITK is not installed: left out")
        else:
            peers[f"SimpleITK {SimpleITK.__version__}"] = (lambda: series_sitk(paths), BAR_SITK)
        race("series of 96 slices", lambda: series_ours(paths), peers)
        race(
            ".nii.gz to float32",
            lambda: nifti_ours(nifti),
            {
                f"nibabel {nibabel.__version__} get_fdata": (lambda: nifti_float64(nifti), BAR_NIFTI),
                "get_fdata(float32)": (lambda: nifti_float32(nifti), None),
            },
        )
        high = peak("nifti_ours(path)", nifti)
        other = peak("nifti_float32(path)", nifti)
        print(
            f"{'its peak memory':<22} {high:.2f} times the float32 array, bar {BAR_PEAK}; nibabel's float32 "
            f"{other:.2f}  {'pass' if high <= BAR_PEAK else 'FAIL'}"
        )
        patches(folder, nifti)


if __name__ == "__main__":
    main()
