"""Reading and PixelSpec against a bare pydicom loop (``dcmread`` and ``pixel_array``), in CPU seconds.

For each kind of file the two are timed in turn, in alternating order, and compared pair by pair: the
figure is the median of the ratios with a 95 % bootstrap interval. Beside it stands the loop against
itself, so that the noise of the machine is known. Run::

    python -m tests.benchmarks decode
    python tests/benchmarks/bench_decode.py [--pairs 41] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import openjpeg
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from medvl.preprocess.reading import read_image
from medvl.specs import PixelSpec

NATIVE, J2K = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.90"
SPEC = PixelSpec()
BARS = {NATIVE: 1.5, J2K: 1.1}
FILMS = ((2048, 2048), (1955, 1841), (1760, 1424))
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "cxr" / "dicom"


def picture(shape: tuple[int, int]) -> np.ndarray:
    """Return a film-like picture of 12 bits: dark lungs in a bright trunk, ribs, quantum noise."""
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j].astype(np.float32)
    trunk = 2600 * np.exp(-((x / 0.85) ** 8) - (y / 1.2) ** 8)
    lungs = sum(1500 * np.exp(-(((x - side) / 0.28) ** 4) - ((y + 0.1) / 0.6) ** 4) for side in (-0.4, 0.4))
    noise = np.random.default_rng(0).normal(0, 10, shape).astype(np.float32)
    film = 500 + trunk - lungs + 120 * np.sin(28 * (y + 0.35 * x**2)) + noise
    return np.clip(film, 0, 4095).astype(np.uint16)


def write(path: Path, pixels: np.ndarray, syntax: str, **elements: object) -> Path:
    """Write one 16-bit file in one transfer syntax."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.826.0.1.1"
    dataset.PatientID, dataset.Modality = "P", "DX"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME1"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = pixels.tobytes()
    if syntax == J2K:
        stream = openjpeg.encode_pixel_data(
            pixels.tobytes(),
            rows=pixels.shape[0],
            columns=pixels.shape[1],
            samples_per_pixel=1,
            bits_allocated=16,
            bits_stored=12,
            pixel_representation=0,
            photometric_interpretation="MONOCHROME2",
        )
        dataset.PixelData = encapsulate([bytes(stream)])
        dataset["PixelData"].is_undefined_length = True
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path, enforce_file_format=True)
    return path


def cases(folder: Path) -> dict[str, tuple[Path, str]]:
    """Write the files and return each by its name, with its transfer syntax."""
    found = {}
    for rows, columns in FILMS:
        name = f"{rows} × {columns} native"
        found[name] = (write(folder / f"{rows}.dcm", picture((rows, columns)), NATIVE), NATIVE)
    percentiles = picture(FILMS[0])
    bare = write(folder / "bare.dcm", percentiles, NATIVE, WindowCenter=None, WindowWidth=None)
    found["2048 × 2048 native, no window"] = (bare, NATIVE)
    ct = {
        "Modality": "CT",
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PhotometricInterpretation": "MONOCHROME2",
    }
    slice_ = picture((512, 512))
    found["512 × 512 CT native"] = (write(folder / "ct.dcm", slice_, NATIVE, **ct), NATIVE)
    found["512 × 512 CT J2K"] = (write(folder / "ctj.dcm", slice_, J2K, **ct), J2K)
    real = sorted(SHARED.glob("*.dcm")) if SHARED.is_dir() else []
    for path in real:
        found[f"{path.stem.replace('chest_cr_', 'real film, ')}"] = (path, J2K)
    if not real:
        found["2048 × 2048 J2K"] = (write(folder / "j.dcm", picture(FILMS[0]), J2K), J2K)
    return found


def bare(path: Path) -> int:
    """Decode as a plain script would, with the decoder that pydicom chooses."""
    return int(pydicom.dcmread(path).pixel_array[0, 0])


def stored(path: Path) -> int:
    """Read and interpret as ``prepare`` does."""
    return int(SPEC.apply(read_image(path))[0, 0])


def seconds(call: Callable[[Path], int], path: Path, repeats: int) -> float:
    """Return the CPU seconds of one call."""
    start = time.process_time()
    for _ in range(repeats):
        call(path)
    return (time.process_time() - start) / repeats


def paired(path: Path, pairs: int) -> dict[str, float]:
    """Time both in turn and return the median of the paired ratios with its interval."""
    repeats = max(1, round(0.004 / max(seconds(bare, path, 2), 1e-5)))  # a pair takes some milliseconds
    seconds(stored, path, 2)
    rows = []
    for pair in range(pairs):
        order = (bare, stored, bare) if pair % 2 else (stored, bare, bare)
        timed = [seconds(call, path, repeats) for call in order]
        ours = timed[order.index(stored)]
        theirs = [value for call, value in zip(order, timed, strict=True) if call is bare]
        rows.append((ours, *theirs))
    ours, one, two = np.array(rows).T
    ratios = 2 * ours / (one + two)
    draws = np.random.default_rng(0).integers(0, pairs, (2000, pairs))
    low, high = np.percentile(np.median(ratios[draws], 1), (2.5, 97.5))
    return {
        "ratio": float(np.median(ratios)),
        "low": float(low),
        "high": float(high),
        "bare_ms": 1e3 * float(np.median(one)),
        "bare_against_bare": float(np.median(one / two)),
        "pairs": pairs,
    }


def main() -> int:
    """Measure and print each kind of file beside its bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=41)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (path, syntax) in cases(Path(folder)).items():
            result = paired(path, arguments.pairs if syntax == NATIVE else max(7, arguments.pairs // 4))
            results[name] = {**result, "bar": BARS[syntax], "passed": result["ratio"] <= BARS[syntax]}
            if not arguments.json:
                verdict = "pass" if results[name]["passed"] else "FAIL"
                spread = f"[{result['low']:.3f}, {result['high']:.3f}]"
                noise = f"bare / bare {result['bare_against_bare']:.3f}, bar {BARS[syntax]}"
                sys.stdout.write(
                    f"decode + spec, {name:<32} {result['bare_ms']:7.2f} ms bare; "
                    f"ratio {result['ratio']:.3f} {spread} ({noise}), n={result['pairs']}  {verdict}\n"
                )
                sys.stdout.flush()
    if arguments.json:
        sys.stdout.write(json.dumps(results) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
