"""CPU of ``prepare``, all included, against a bare pydicom decode loop over the same radiographs.

Both read the same 2048 × 2048 12-bit files in four transfer syntaxes; ``prepare`` also reduces,
compresses, hashes and writes them, pairs and parses reports, and renders the quality page, with two
workers whose start counts too. The bar is a ratio of medians of at most 2.0. Run::

    python tests/benchmarks/bench_prepare.py [--images 24] [--pairs 3] [--json]
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import openjpeg
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from medvl.preprocess.pipeline import prepare

BAR = 2.0
SIZE_PX = 2048
SYNTAXES = (ExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless)


def radiograph(seed: int) -> np.ndarray:
    """Return a film-like picture: dark lungs in a bright trunk, ribs, quantum noise, 12 bits."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : SIZE_PX * 1j, -1 : 1 : SIZE_PX * 1j].astype(np.float32)
    trunk = 2600 * np.exp(-((x / 0.85) ** 8) - (y / 1.2) ** 8)
    lungs = sum(1500 * np.exp(-(((x - side) / 0.28) ** 4) - ((y + 0.1) / 0.6) ** 4) for side in (-0.4, 0.4))
    ribs = 120 * np.sin(28 * (y + 0.35 * x**2))
    noise = random.normal(0, 10, y.shape).astype(np.float32)
    return np.clip(500 + trunk - lungs + ribs + noise, 0, 4095).astype(np.uint16)


def j2k(pixels: np.ndarray) -> bytes:
    """Return a lossless JPEG 2000 code stream."""
    stream = openjpeg.encode_pixel_data(
        pixels.tobytes(),
        rows=SIZE_PX,
        columns=SIZE_PX,
        samples_per_pixel=1,
        bits_allocated=16,
        bits_stored=12,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
    )
    return bytes(stream)


def write_source(folder: Path, images: int) -> list[Path]:
    """Write the radiographs and their report table."""
    paths = []
    for number in range(images):
        dataset = Dataset()
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
        dataset.SOPInstanceUID = f"1.2.826.0.1.{number + 1}"
        dataset.StudyInstanceUID = f"1.2.826.0.2.{number + 1}"
        dataset.AccessionNumber, dataset.PatientID = f"A{number}", f"P{number}"
        dataset.Modality = "DX"
        dataset.Rows = dataset.Columns = SIZE_PX
        dataset.SamplesPerPixel = 1
        dataset.PhotometricInterpretation = "MONOCHROME1" if number % 5 == 4 else "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
        dataset.PixelRepresentation = 0
        dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
        pixels = radiograph(number)
        dataset.PixelData = pixels.tobytes()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        syntax = UID(SYNTAXES[number % len(SYNTAXES)])
        if syntax == JPEG2000Lossless:  # openjpeg directly: pydicom would need one more package
            dataset.PixelData = encapsulate([j2k(pixels)])
            dataset["PixelData"].is_undefined_length = True
            dataset.file_meta.TransferSyntaxUID = syntax
        elif syntax != ExplicitVRLittleEndian:
            encoder = "gdcm" if syntax == RLELossless else "pyjpegls"
            dataset.compress(syntax, encoding_plugin=encoder, generate_instance_uid=False)
        paths.append(folder / f"im{number:03d}.dcm")
        dataset.save_as(paths[-1], enforce_file_format=True)
    with (folder / "reports.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("accession", "report"))
        for number in range(images):
            text = f"FINDINGS: Opacity of {number} mm. No effusion. IMPRESSION: Nodule of {number} mm."
            writer.writerow((f"A{number}", text))
    return paths


def cpu_s() -> float:
    """Return the CPU seconds of this process and of its ended children."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in usage)


def decode(paths: list[Path]) -> int:
    """Decode every file as a plain script would, with the decoders that pydicom chooses."""
    return sum(int(pydicom.dcmread(path).pixel_array[0, 0]) for path in paths)


def measure(images: int, pairs: int) -> dict[str, object]:
    """Return both medians, their ratio and every pair, in CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "source", Path(folder) / "store"
        source.mkdir()
        paths = write_source(source, images)
        bare, whole = [], []
        for pair in range(pairs + 1):
            before = cpu_s()
            decode(paths)
            between = cpu_s()
            summary = prepare(source, out, workers=2)
            after = cpu_s()
            if summary.records != images:
                raise RuntimeError(f"{summary.records} of {images} images became records")
            shutil.rmtree(out)
            if pair:  # the first pair warms both up
                bare.append(between - before)
                whole.append(after - between)
    ratio = statistics.median(whole) / statistics.median(bare)
    return {
        "images": images,
        "bare_s": [round(value, 3) for value in bare],
        "prepare_s": [round(value, 3) for value in whole],
        "ratio": round(ratio, 3),
        "bar": BAR,
        "passed": ratio <= BAR,
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments.images, arguments.pairs)
    if arguments.json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        verdict = "pass" if result["passed"] else "FAIL"
        sys.stdout.write(
            f"prepare / bare decode loop: {result['ratio']} of {BAR} allowed ({verdict}); CPU seconds for "
            f"{arguments.images} images: prepare {result['prepare_s']}, bare {result['bare_s']}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
