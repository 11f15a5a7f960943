"""What asks for too much ends in a typed error below 1 GB, and a real volume as a series keeps its values."""

from __future__ import annotations

import gzip
import subprocess
import sys
import textwrap

import nibabel
import numpy as np
import pydicom
import pytest
from baddicom import EXPLICIT, changed, meta, nested
from readingcases import golden
from seriescases import write_series

from medvl.images import Unit
from medvl.preprocess.reading import nifti as nifti_reader
from medvl.preprocess.reading.nifti import read_nifti
from medvl.preprocess.reading.series import find_series, read_series
from medvl.specs import VolumeSpec

MOST_MB = 1000
CODE = """
    import sys
    from pathlib import Path
    from medvl.errors import MedvlError
    from medvl.images import Unit
    from medvl.preprocess.reading.nifti import read_nifti
    from medvl.preprocess.reading.series import find_series, read_series
    from medvl.specs import VolumeSpec

    paths = [Path(name) for name in sys.argv[1:]]
    try:
        if paths[0].suffix == ".dcm":
            (series,) = find_series(paths)
            image = read_series(series)[0]
        else:
            image = read_nifti(paths[0], unit=Unit.HU)
        VolumeSpec().apply(image)
    except MedvlError as error:
        print(error.rule)
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1000)
"""


def refused(*paths):
    """Return the rule that a fresh process names, and the most memory it held, in MB."""
    run = [sys.executable, "-c", textwrap.dedent(CODE), *map(str, paths)]
    rule, held = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    return rule, float(held)


def header(side):
    made = nibabel.Nifti2Header()  # NIfTI-1 has no axis beyond 32,767
    made.set_data_shape((side, side, side))
    made.set_data_dtype(np.int16)
    made.set_sform(np.eye(4), code=1)
    made["magic"], made["vox_offset"] = b"n+2\0\r\n\032\n", 544
    return made.binaryblock + b"\0" * 4


@pytest.mark.parametrize("packed", [False, True])
def test_a_header_of_30000_cubed(tmp_path, packed):
    path = tmp_path / ("a.nii.gz" if packed else "a.nii")
    data = header(30_000) + b"\0" * 1000
    path.write_bytes(gzip.compress(data) if packed else data)
    rule, held = refused(path)
    assert rule == "PixelLimit" and held < MOST_MB


def test_a_gzip_bomb_of_800_mb(tmp_path):
    # 640³ are fewer voxels than the limit, but not from 0.8 MB
    path = tmp_path / "a.nii.gz"
    head = header(640)[:544]
    with gzip.open(path, "wb", compresslevel=9) as stream:
        stream.write(head)
        for _ in range(800):
            stream.write(b"\0" * 2**20)
    assert path.stat().st_size < 10**6
    rule, held = refused(path)
    assert rule == "DecompressionLimit" and held < MOST_MB


def test_a_gzip_stream_behind_an_honest_header_is_read_no_further(tmp_path):
    # the header promises 2,000 bytes, the stream holds 128 MB more: only what is promised is unpacked
    path = tmp_path / "a.nii.gz"
    with gzip.open(path, "wb", compresslevel=9) as stream:
        stream.write(header(10)[:544])
        for _ in range(128):
            stream.write(b"\0" * 2**20)
    code = CODE.replace("VolumeSpec().apply(image)", "print(image.array.shape[1])")
    run = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    shape, held = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    assert shape == "10" and float(held) < 300


@pytest.mark.parametrize("defined", [True, False])
def test_a_sequence_5000_deep_in_a_series(tmp_path, defined):
    good = write_series(tmp_path, (0, 2.5, 5, 7.5))
    (tmp_path / "deep.dcm").write_bytes(meta(EXPLICIT) + nested(5000, defined=defined))
    rule, held = refused(tmp_path / "deep.dcm", *good)
    assert rule == "NestingLimit" and held < MOST_MB
    told = []
    (series,) = find_series(
        [tmp_path / "deep.dcm", *good], on_error=lambda path, error: told.append(error.rule)
    )
    assert told == ["NestingLimit"] and len(series.slices) == 4


def test_a_series_that_announces_65535_squared(tmp_path):
    path = changed(tmp_path / "a.dcm", Rows=65535, Columns=65535)
    rule, held = refused(path)
    assert rule == "PixelLimit" and held < MOST_MB


# --- a plain slice is read without its header ---


def test_a_slice_that_changed_since_it_was_found_is_read_as_it_is_now(tmp_path):
    paths = write_series(tmp_path, (0, 2.5, 5, 7.5))
    (series,) = find_series(paths)
    assert all(piece.plain is not None for piece in series.slices)
    dataset = pydicom.dcmread(paths[2])
    dataset.ImageComments = "now longer"  # another size, and the pixels lie elsewhere
    dataset.PixelData = (np.frombuffer(dataset.PixelData, "<i2") + 7).tobytes()
    dataset.save_as(paths[2])
    image, _ = read_series(series)
    assert image.array[0, :, 0, 0].tolist() == [0, 100, 207, 300]


@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "693_J2KI.dcm", "MR_small_bigendian.dcm"]
)
def test_only_uncompressed_little_endian_slices_are_plain(name):
    (series,) = find_series([golden(name)])
    (piece,) = series.slices
    assert (piece.plain is not None) == (name in ("CT_small.dcm", "MR_small.dcm"))
    if piece.plain is not None:
        image, _ = read_series(series)
        found = piece.plain.read(piece.path)
        assert found.dtype == image.array.dtype and np.array_equal(found, image.array[0, 0])
        assert piece.plain.unit is image.unit


# --- gzip without isal ---


def test_the_standard_library_reads_the_same(tmp_path, monkeypatch):
    values = np.random.default_rng(0).integers(-1000, 1000, (20, 30, 40), dtype=np.int16)
    nibabel.Nifti1Image(values, np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    fast = read_nifti(tmp_path / "a.nii.gz").array
    monkeypatch.setattr(nifti_reader, "GzipFile", gzip.GzipFile)
    assert np.array_equal(fast, values[None]) and np.array_equal(
        read_nifti(tmp_path / "a.nii.gz").array, fast
    )


# --- a real volume ---


def as_series(folder, hu, affine, *, reverse):
    """Write a NIfTI volume as a series: shuffled order, random names; return the files and what was written.

    The slices run down when ``reverse``; instance numbers say nothing true.
    """
    folder.mkdir()
    random = np.random.default_rng(int(reverse))
    dataset = pydicom.dcmread(golden("CT_small.dcm"))
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    edges = np.linalg.norm(lps[:3, :3], axis=0)
    along_x, along_y = lps[:3, 0] / edges[0], lps[:3, 1] / edges[1]
    dataset.ImageOrientationPatient = [f"{value:.8f}" for value in (*along_x, *along_y)]
    dataset.PixelSpacing = [f"{edges[1]:.8f}", f"{edges[0]:.8f}"]
    dataset.Rows, dataset.Columns = hu.shape[1], hu.shape[0]  # rows run along y
    depths = list(range(hu.shape[2]))[:: -1 if reverse else 1]
    names = random.permutation(10**6)[: len(depths)]
    paths = []
    for number, depth in enumerate(depths):
        dataset.SOPInstanceUID = f"1.2.826.0.1.3680043.9.9999.7.{number + 1}"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.InstanceNumber = int(random.integers(1, 500))
        dataset.ImagePositionPatient = [f"{value:.6f}" for value in (lps @ [0, 0, depth, 1])[:3]]
        dataset.PixelData = (hu[:, :, depth].T + 1024).astype("<i2").tobytes()
        paths.append(folder / f"{names[number]:06d}")
        dataset.save_as(paths[-1])
    random.shuffle(paths)
    return paths


@pytest.mark.data
@pytest.mark.parametrize("reverse", [False, True])
def test_a_real_volume_as_a_series_keeps_its_values_in_space(shared_data, tmp_path, reverse):
    file = shared_data / "ct" / "volumes" / "chest_ct.nii.gz"
    oracle = nibabel.load(file)
    hu = np.asanyarray(oracle.dataobj)
    paths = as_series(tmp_path / "series", hu, oracle.affine, reverse=reverse)
    (series,) = find_series(paths)
    image, geometry = read_series(series)
    assert geometry.verdict == "ok" and image.unit is Unit.HU and image.array.dtype == np.int16
    # 200 named points in RAS mm; the inverse affine finds the voxel that holds each
    random = np.random.default_rng(5)
    for index in random.integers(0, hu.shape, (200, 3)):
        point = oracle.affine @ [*index, 1]
        place = np.linalg.inv(image.affine_ras) @ point
        assert np.abs(place - np.rint(place)).max() < 1e-3
        assert image.array[0][tuple(np.rint(place[:3]).astype(int))] == hu[tuple(index)]
    # and the stored array is the same, bit for bit, as that of the file itself
    spec = VolumeSpec(spacing_mm=(3.0, 3.0, 5.0))
    other = read_nifti(file, unit=Unit.HU)
    one, two = spec.grid(image), spec.grid(other)
    np.testing.assert_allclose(one.affine_ras, two.affine_ras, atol=1e-4)
    assert one.shape == two.shape
    apart = np.abs(spec.apply(image, grid=one).astype(int) - spec.apply(other, grid=two))
    assert apart.max() <= 1 and (apart > 0).mean() < 1e-3  # positions have six decimals: rounding may differ


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "shape", "low", "high"),
    [
        ("ct_small_128.dcm", (1, 1, 128, 128), -896, 1167),
        ("pancreas_ct_slice_j2k.dcm", (1, 1, 512, 512), -1024, None),
    ],
)
def test_single_real_slices_are_volumes_of_one(shared_data, name, shape, low, high):
    (series,) = find_series([shared_data / "ct" / "dicom" / name])
    image, geometry = read_series(series)
    assert geometry.verdict == "ok" and image.unit is Unit.HU and image.array.shape == shape
    assert image.array.min() == low and (high is None or image.array.max() == high)
    assert any("one slice" in note for note in image.notes)
    assert VolumeSpec(crop="none").apply(image).shape[2] >= 1
