"""NIfTI volumes: one scaling, true axes, and headers that lie, against nibabel and by hand."""

from __future__ import annotations

import gzip
import re
import struct
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seriescases import write_series

from medvl.errors import (
    BadAffine,
    BadImage,
    DecompressionLimit,
    InputError,
    MedvlError,
    MultiFrame,
    PixelLimit,
    TruncatedPixels,
)
from medvl.images import Image, Unit
from medvl.preprocess.reading.limits import Limits
from medvl.preprocess.reading.nifti import is_nifti, read_nifti
from medvl.preprocess.reading.series import find_series, read_series
from medvl.preprocess.reading.volumes import canonical, hu_check

DATA = Path(nibabel.__file__).parent / "tests" / "data"
# NIfTI-1 header: offset in bytes and struct code of the fields that the tests falsify
FIELDS = {
    "dim0": (40, "h"),
    "dim1": (42, "h"),
    "dim2": (44, "h"),
    "dim3": (46, "h"),
    "datatype": (70, "h"),
    "pixdim1": (80, "f"),
    "vox_offset": (108, "f"),
    "scl_slope": (112, "f"),
    "scl_inter": (116, "f"),
    "xyzt_units": (123, "b"),
    "qform_code": (252, "h"),
    "sform_code": (254, "h"),
    "quatern_b": (256, "f"),
    "qoffset_x": (268, "f"),
    "srow_x0": (280, "f"),
    "srow_y1": (300, "f"),
    "magic": (344, "4s"),
}


def made(path: Path, *, values: np.ndarray | None = None, **fields: object) -> Path:
    """Write a small volume and overwrite fields of its header."""
    values = np.arange(60, dtype=np.int16).reshape(3, 4, 5) if values is None else values
    image = nibabel.Nifti1Image(values, np.diag([2.0, 3.0, 4.0, 1.0]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path.with_suffix(".nii"))
    content = bytearray(path.with_suffix(".nii").read_bytes())
    for name, value in fields.items():
        offset, code = FIELDS[name]
        struct.pack_into(f"<{code}", content, offset, value)
    packed = gzip.compress(bytes(content)) if path.suffix == ".gz" else bytes(content)
    path.write_bytes(packed)
    return path


# --- row 12: one scaling ---


@pytest.mark.traps(row=12)
@pytest.mark.parametrize("frame", [0, 7, 19])
def test_the_slope_is_applied_exactly_once(frame):
    path = DATA / "functional.nii"
    stored = nibabel.load(path).dataobj.get_unscaled()[..., frame]
    content = path.read_bytes()  # the slope from the bytes: nibabel forgets it once loaded
    slope, inter = struct.unpack("<2f", content[112:120])
    assert slope == pytest.approx(0.0754, abs=1e-4) and inter == pytest.approx(3100.76, abs=1e-2)
    image = read_nifti(path, frame=frame)
    np.testing.assert_allclose(image.array[0], stored * np.float64(slope) + inter, rtol=1e-6)
    assert image.array.dtype == np.float32


@pytest.mark.traps(row=12)
@pytest.mark.parametrize("slope, inter, dtype", [(1, -10, np.int16), (2, 5, np.int16), (0.5, 0, np.float32)])
def test_integral_scaling_gives_integers_where_they_surely_fit(tmp_path, slope, inter, dtype):
    stored = np.arange(-30, 30, dtype=np.int8).reshape(3, 4, 5)
    path = made(tmp_path / "a.nii", values=stored, scl_slope=slope, scl_inter=inter)
    image = read_nifti(path)
    assert image.array.dtype == dtype
    np.testing.assert_array_equal(image.array[0], stored * slope + inter)


@pytest.mark.traps(row=12)
@pytest.mark.parametrize("slope", [0.0, float("nan")])
def test_no_slope_is_no_scaling(tmp_path, slope):
    image = read_nifti(made(tmp_path / "a.nii", scl_slope=slope, scl_inter=7.0))
    np.testing.assert_array_equal(image.array[0].ravel(), np.arange(60))


def body(seed: int = 0) -> np.ndarray:
    """Return HU of a schematic chest: air around, soft tissue and fat, lungs, a little bone."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice([-1000, 40, -100, -850, 600], p=[0.4, 0.25, 0.12, 0.2, 0.03], size=(20, 20, 20))
    return (kinds + rng.normal(0, 12, kinds.shape)).astype(np.int16)


@pytest.mark.traps(row=12)
def test_the_check_of_hounsfield_units_sees_a_second_rescale():
    good = Image(body()[None], Unit.HU)
    assert hu_check(good) == ()
    for wrong, message in (
        (good.array - 1024, "where soft tissue|of the voxels lie between -200 and 300|as soft tissue does"),
        (good.array + 1024, "only 0.0% of the voxels lie near -1000 HU.*rescale left out, or applied twice"),
        ((good.array * 0.5).astype(np.float32), "the lowest is -5"),
    ):
        notes = " ".join(hu_check(replace(good, array=wrong)))
        assert re.search(message, notes), notes
    assert hu_check(Image(body()[None] + 1024, Unit.MODALITY_LUT)) == ()  # no claim, nothing to check
    nothing = np.full((1, 4, 4, 4), np.nan, np.float32)
    assert hu_check(Image(nothing, Unit.HU)) == ("no voxel is finite",)


@pytest.mark.traps(row=12)
def test_fat_alone_is_no_body():
    fat = np.where(np.random.default_rng(0).random((1, 20, 20, 20)) < 0.5, -1000, -100).astype(np.int16)
    assert any("0.0% of the body lies between 0 and 80 HU" in note for note in hu_check(Image(fat, Unit.HU)))


# --- row 13: orientation ---


@pytest.mark.traps(row=13)
def test_anatomical_flips_x_only():
    image = read_nifti(DATA / "anatomical.nii")
    assert (DATA / "anatomical.nii").read_bytes()[:4] == struct.pack(">i", 348)  # big-endian
    assert image.array.dtype == np.int16 and image.array.dtype.isnative
    assert nibabel.aff2axcodes(image.affine_ras) == ("L", "A", "S")
    turned = canonical(image)
    np.testing.assert_array_equal(turned.array, image.array[:, ::-1])
    assert nibabel.aff2axcodes(turned.affine_ras) == ("R", "A", "S")
    assert np.shares_memory(turned.array, image.array)


@pytest.mark.traps(row=13)
@pytest.mark.parametrize(
    "name, frame",
    [
        ("anatomical.nii", None),
        ("functional.nii", 3),
        ("example4d.nii.gz", 1),
        ("standard.nii.gz", None),
        ("example_nifti2.nii.gz", 1),
    ],
)
def test_values_and_axes_are_those_of_nibabel(name, frame):
    oracle = nibabel.load(DATA / name)
    values = oracle.get_fdata()[..., frame] if frame is not None else oracle.get_fdata()
    image = read_nifti(DATA / name, frame=frame)
    np.testing.assert_allclose(image.array[0], values, rtol=1e-6)
    np.testing.assert_allclose(image.affine_ras, oracle.affine, atol=1e-6)
    np.testing.assert_allclose(image.spacing_mm, oracle.header.get_zooms()[:3], rtol=1e-5)
    turned = canonical(image)
    expected = nibabel.as_closest_canonical(nibabel.Nifti1Image(values, oracle.affine))
    np.testing.assert_allclose(turned.array[0], expected.get_fdata(), rtol=1e-6)
    np.testing.assert_allclose(turned.affine_ras, expected.affine, atol=1e-5)


@pytest.mark.traps(row=13)
@given(st.permutations(range(3)), st.tuples(*[st.booleans()] * 3), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_a_marked_voxel_keeps_its_place_in_space(axes, flips, seed):
    rng = np.random.default_rng(seed)
    matrix = np.eye(3)[list(axes)] * np.where(flips, -1, 1) * rng.uniform(0.5, 3, 3)
    affine = np.eye(4)
    affine[:3, :3] = matrix + rng.normal(0, 0.03, (3, 3))
    affine[:3, 3] = rng.uniform(-100, 100, 3)
    array = np.zeros((1, 4, 5, 6), np.int16)
    mark = tuple(rng.integers(0, (4, 5, 6)))
    array[0][mark] = 7
    turned = canonical(Image(array, Unit.HU, affine_ras=affine, spacing_mm=(1.0, 1.0, 1.0)))
    place = np.argwhere(turned.array[0] == 7)[0]
    np.testing.assert_allclose(turned.affine_ras @ [*place, 1], affine @ [*mark, 1], atol=1e-9)
    assert (np.diag(turned.affine_ras)[:3] > 0).all()  # to the right, the front and the top


@pytest.mark.traps(row=13)
def test_a_dicom_series_and_a_nifti_file_of_it_agree(tmp_path):
    paths = write_series(tmp_path / "s", (0, 2.5, 5, 7.5))
    image, _ = read_series(find_series(paths)[0])
    nibabel.save(nibabel.Nifti1Image(image.array[0], image.affine_ras), tmp_path / "a.nii.gz")
    one, two = canonical(image), canonical(read_nifti(tmp_path / "a.nii.gz", unit=Unit.HU))
    np.testing.assert_array_equal(one.array, two.array)
    np.testing.assert_allclose(one.affine_ras, two.affine_ras, atol=1e-4)
    # LPS to RAS: the first pixel of the file lies at (72.2, 143) and the x axis of the view runs right
    assert one.affine_ras[0, 3] == pytest.approx(72.2 - 15 * 0.488281, abs=1e-4)


# --- headers that lie (RELIABILITY rows 15 to 17) ---


def test_more_voxels_than_bytes_takes_no_memory(tmp_path):
    path = made(tmp_path / "a.nii", dim1=600, dim2=600, dim3=600)
    with pytest.raises(TruncatedPixels, match=r"the file has 472 bytes; its header promises 432,000,352"):
        read_nifti(path)
    path = made(tmp_path / "b.nii", dim1=30000, dim2=30000, dim3=3000)
    with pytest.raises(PixelLimit, match=r"30,000 × 30,000 × 3,000 voxels"):
        read_nifti(path)
    with pytest.raises(InputError, match=r"the file has 472 bytes; the limit is 100"):
        read_nifti(made(tmp_path / "c.nii"), limits=Limits(max_bytes=100))


def test_a_gzip_bomb_is_refused_from_its_header(tmp_path):
    path = tmp_path / "a.nii.gz"
    head = made(tmp_path / "h.nii", dim1=512, dim2=512, dim3=512).read_bytes()[:352]
    with gzip.open(path, "wb") as stream:
        stream.write(head)
        for _ in range(256):
            stream.write(b"\0" * 2**20)
    assert path.stat().st_size < 300_000
    with pytest.raises(DecompressionLimit, match=r"promises 268,435,808 when unpacked; the limit is 100"):
        read_nifti(path)


def test_memory_of_a_volume(tmp_path):
    """Peak memory of reading stays below 2.2 times what comes back (float32, 64 MiB)."""
    noise = np.random.default_rng(0).integers(0, 4000, (256, 256, 256)).astype(np.uint16)
    nibabel.save(nibabel.Nifti1Image(noise, np.eye(4)), tmp_path / "a.nii.gz")
    code = """
        import resource, sys
        from pathlib import Path
        from medvl.preprocess.reading.nifti import read_nifti
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        size = read_nifti(Path(sys.argv[1])).array.nbytes
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / size)
    """
    run = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a.nii.gz")]
    assert float(subprocess.run(run, capture_output=True, text=True, check=True).stdout) <= 2.2


@pytest.mark.parametrize(
    "fields, error, message",
    [
        ({"dim0": 0}, BadImage, r"dim\[0\] is 0; allowed: 1 to 7"),
        ({"dim0": 8}, BadImage, r"dim\[0\] is 8; allowed: 1 to 7"),
        ({"dim2": -4}, BadImage, r"the axes are 3 × -4 × 5; each must be at least 1"),
        ({"datatype": 128}, BadImage, r"the datatype code is 128; allowed: 2, 4, 8, 16"),
        ({"vox_offset": 10.0}, BadImage, r"vox_offset is 10; it must be at least 352"),
        ({"vox_offset": float("nan")}, BadImage, r"vox_offset is nan"),
        ({"scl_slope": float("inf")}, BadImage, r"scl_slope is inf and scl_inter"),
        ({"magic": b"ni1\0"}, BadImage, r"the magic is b'ni1'; allowed: b'n\+1'.*converted to one \.nii"),
        ({"srow_x0": 0.0}, BadAffine, r"singular: voxel edges 0, 3, 4 mm"),
        ({"srow_y1": float("nan")}, BadAffine, r"holds a value that is not finite"),
        ({"sform_code": 0, "quatern_b": 5.0, "qform_code": 1}, BadAffine, r"the qform is no rotation"),
        ({"sform_code": 0, "qform_code": 0, "pixdim1": 0.0}, BadAffine, r"pixdim is \(0\.0, 3\.0, 4\.0\)"),
    ],
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_bad_headers_are_named(tmp_path, fields, error, message, name):
    with pytest.raises(error, match=message):
        read_nifti(made(tmp_path / name, **fields))


def test_sform_goes_before_qform_and_a_conflict_is_said(tmp_path):
    image = read_nifti(made(tmp_path / "a.nii", qform_code=1, qoffset_x=50.0))
    np.testing.assert_allclose(image.affine_ras, np.diag([2, 3, 4, 1]))
    assert any("place a corner 50.0 mm apart, sform is followed" in note for note in image.notes)
    agreed = read_nifti(made(tmp_path / "b.nii", qform_code=1))
    assert agreed.notes == ()
    broken = read_nifti(made(tmp_path / "c.nii", qform_code=1, quatern_b=5.0))
    assert broken.notes == ("the qform is no rotation, sform is followed",)


def test_a_volume_without_orientation_has_spacing_and_no_axes(tmp_path):
    image = read_nifti(made(tmp_path / "a.nii", qform_code=0, sform_code=0))
    assert image.affine_ras is None and image.spacing_mm == (2.0, 3.0, 4.0)
    assert any("orientation is unknown" in note for note in image.notes)
    with pytest.raises(BadAffine, match="does not say how it lies"):
        canonical(image)


@pytest.mark.parametrize("code, factor", [(1, 1000.0), (3, 0.001), (2, 1.0)])
def test_lengths_are_turned_to_millimetres(tmp_path, code, factor):
    image = read_nifti(made(tmp_path / "a.nii", xyzt_units=code))
    assert image.spacing_mm == pytest.approx((2 * factor, 3 * factor, 4 * factor))


def test_four_axes_need_a_choice():
    with pytest.raises(MultiFrame, match=r"the file holds 20 volumes\. Choose one with frame=0 … 19"):
        read_nifti(DATA / "functional.nii")
    with pytest.raises(MultiFrame, match=r"volume 20 was asked for; the file holds volumes 0 … 19"):
        read_nifti(DATA / "functional.nii", frame=20)


def test_voxels_that_are_not_finite_are_counted(tmp_path):
    values = np.ones((3, 4, 5), np.float32)
    values[0, 0, :2] = np.nan
    assert "2 voxels are not finite" in read_nifti(made(tmp_path / "a.nii", values=values)).notes


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_cut_files(tmp_path, name):
    content = made(tmp_path / name, values=np.random.default_rng(0).integers(0, 99, (9, 9, 9)).astype("i2"))
    whole = content.read_bytes()
    for part in (0, 3, 100, 400, len(whole) - 9):
        (tmp_path / "cut").write_bytes(whole[:part])
        with pytest.raises((BadImage, TruncatedPixels)):
            read_nifti(tmp_path / "cut")


def test_what_is_nifti(tmp_path):
    assert is_nifti(made(tmp_path / "a.nii")) and is_nifti(made(tmp_path / "a.nii.gz"))
    assert is_nifti(DATA / "anatomical.nii") and is_nifti(DATA / "example_nifti2.nii.gz")
    for content in (b"", b"abc", b"\x1f\x8b\x08\0\0", gzip.compress(b"hello"), b"\x1f\x8b" + b"\xff" * 40):
        (tmp_path / "b").write_bytes(content)
        assert not is_nifti(tmp_path / "b")
    for read in (is_nifti, read_nifti):
        with pytest.raises(InputError, match="cannot be read: No such file"):
            read(tmp_path / "none.nii")


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_flipped_bytes_give_a_volume_or_a_typed_error(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    source = made(folder / f"seed{data.draw(st.sampled_from(['.nii', '.nii.gz']))}")
    content = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "flipped").write_bytes(content)
    try:
        assert read_nifti(folder / "flipped", limits=Limits(max_voxels=10**6)).array.ndim == 4
    except MedvlError as error:
        assert str(error)


@pytest.mark.data
def test_a_real_chest_is_in_hounsfield_units(shared_data):
    image = read_nifti(shared_data / "ct" / "volumes" / "chest_ct.nii.gz", unit=Unit.HU)
    assert hu_check(image) == () and image.array.dtype == np.int16
    assert hu_check(replace(image, array=image.array - 1024)) != ()
    assert hu_check(replace(image, array=image.array + 1024)) != ()
