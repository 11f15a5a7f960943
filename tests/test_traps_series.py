"""Series and volumes: order, holes, localizers, spacing, rescale, padding, frames, on packaged files."""

from __future__ import annotations

import itertools
import pickle

import highdicom
import numpy as np
import pydicom
import pytest
from readingcases import PYDICOM, golden
from seriescases import SIDE, tilted, write_series, write_slice

from medvl.errors import GapInSeries, InputError, IrregularSeries, PixelLimit
from medvl.images import Photometric
from medvl.preprocess.reading.geometry import Geometry
from medvl.preprocess.reading.limits import Limits
from medvl.preprocess.reading.series import find_series, read_series
from medvl.preprocess.reading.slices import slices_of

PACKAGED = PYDICOM / "test_files" / "dicomdirtests"
CT5N = sorted((PACKAGED / "98892001" / "CT5N").iterdir())
CT2 = sorted((PACKAGED / "77654033" / "CT2").iterdir())
SCOUTS = sorted((PACKAGED / "98892001" / "CT2N").iterdir())
RADIAL = sorted((PACKAGED / "98892003" / "MR700").iterdir())


def only(paths):
    (series,) = find_series(paths)
    return series


def at(image, ras):
    """Return the value of the voxel at a point in RAS millimetres."""
    index = np.linalg.solve(image.affine_ras, [*ras, 1.0])[:3]
    assert np.abs(index - np.rint(index)).max() < 1e-3
    return image.array[0, *np.rint(index).astype(int)]


# --- row 1: order ---


@pytest.mark.traps(row=1)
def test_ct5n_is_ordered_by_position_though_its_numbers_run_the_other_way():
    image, geometry = read_series(only(CT5N))
    assert geometry.verdict == "ok" and image.array.shape == (1, 5, 16, 16)
    oracle = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in CT5N])
    for index in np.ndindex(5, 4, 4):  # highdicom's voxels at their points in space, LPS turned to RAS
        lps = oracle.affine @ [*index, 1]
        assert at(image, (-lps[0], -lps[1], lps[2])) == oracle.array[index]


@pytest.mark.traps(row=1)
def test_swapped_and_missing_instance_numbers_change_nothing(tmp_path):
    depths = (0, 2.5, 5, 7.5, 10)
    for numbers in ([1, 3, 2, 5, 4], [9, 9, 9, 9, 9], [5, 4, None, 2, 1]):
        image, geometry = read_series(only(write_series(tmp_path, depths, InstanceNumber=numbers)))
        assert geometry.verdict == "ok"
        assert image.array[0, :, 0, 0].tolist() == [0, 100, 200, 300, 400]
        assert image.spacing_mm == pytest.approx((2.5, 0.488281, 0.488281))


@pytest.mark.traps(row=1)
@pytest.mark.parametrize("paths", list(itertools.permutations(CT2[1:])))
def test_any_order_of_the_files_gives_one_volume(paths):
    image, geometry = read_series(only(paths))
    # golden facts in world coordinates, LPS (−125, −128.100006, z)
    for z, hu in ((103.019997, 905), (104.269997, 1304), (105.519997, 622)):
        assert at(image, (125.0, 128.100006, z)) == hu
    assert geometry.numbers["spacing_median_mm"] == 1.25
    assert "few slices: 3" in image.notes


# --- row 2: holes, doubles, mixtures ---


@pytest.mark.traps(row=2)
def test_the_hole_of_ct2_is_refused_with_its_size():
    series = only(CT2)
    assert series.geometry.verdict == "rejected:gap"
    # from z −99.480003 to 103.019997 are 202.5 mm, which is 162 steps of 1.25 mm
    assert series.geometry.numbers["spacing_max_mm"] == pytest.approx(202.5)
    assert series.geometry.numbers["missing"] == 161
    with pytest.raises(GapInSeries, match=r"missing slices .*spacing_max_mm 202\.5; missing 161.*allow_gaps"):
        read_series(series)


@pytest.mark.traps(row=2)
def test_a_hole_is_filled_only_on_request_and_said(tmp_path):
    series = only(write_series(tmp_path, (0, 1.25, 5.0, 6.25)))
    assert series.geometry.numbers["missing"] == 2
    with pytest.raises(GapInSeries) as caught:
        read_series(series, on_irregular="resample")
    assert caught.value.verdict == "rejected:gap"
    assert pickle.loads(pickle.dumps(caught.value)).verdict == "rejected:gap"  # noqa: S301 - our own bytes
    image, geometry = read_series(series, allow_gaps=True)
    assert geometry.verdict == "resampled" and geometry.numbers["spacing_max_mm"] == 3.75
    # painted 0, 100 at 0 and 1.25 mm and 200 at 5 mm: 100 + 100 · (2.5 − 1.25) / 3.75 = 133
    assert image.array[0, :, 0, 0].tolist() == [0, 100, 133, 167, 200, 300]
    assert any("interpolated linearly onto a regular grid: missing slices" in note for note in image.notes)


@pytest.mark.traps(row=2)
def test_two_slices_at_one_position_are_refused_whatever_is_allowed(tmp_path):
    series = only(write_series(tmp_path, (0, 1.25, 1.25, 2.5)))
    assert series.geometry.verdict == "rejected:duplicate_position"
    assert series.geometry.numbers["duplicates"] == 1
    with pytest.raises(IrregularSeries, match=r"several slices at one position .*duplicates 1"):
        read_series(series, allow_gaps=True, on_irregular="resample")
    everywhere = only(write_series(tmp_path, (1.0, 1.0, 1.0, 1.0)))
    assert everywhere.geometry.verdict == "rejected:duplicate_position"


@pytest.mark.traps(row=2)
def test_radial_slices_are_refused():
    assert only(RADIAL).geometry == Geometry("rejected:mixed_orientation", {"slices": 7})
    with pytest.raises(IrregularSeries, match=r"slices that are not parallel \(slices 7\)"):
        read_series(only(RADIAL))


@pytest.mark.traps(row=2)
def test_two_stacks_of_one_series_come_apart(tmp_path):
    coronal = [["1", "0", "0", "0", "0", "-1"]] * 4
    axial = write_series(tmp_path / "a", (0, 2, 4, 6))
    positions = [(0.0, float(y), 0.0) for y in (0, 3, 6, 9)]
    other = write_series(
        tmp_path / "b", (0, 0, 0, 0), position=positions, ImageOrientationPatient=coronal, series=1
    )
    for number, path in enumerate(other):  # the same series, other instances
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number + 1}"
        dataset.save_as(path)
    found = find_series([*axial, *other])
    assert sorted(series.geometry.numbers["spacing_median_mm"] for series in found) == [2, 3]
    assert all(series.geometry.verdict == "ok" for series in found)


@pytest.mark.traps(row=2)
def test_copies_are_dropped_with_a_note_and_impostors_refused(tmp_path):
    paths = write_series(tmp_path, (0, 2.5, 5, 7.5))
    copy = tmp_path / "copy.dcm"
    copy.write_bytes(paths[1].read_bytes())
    series = only([*paths, copy])
    assert series.geometry.verdict == "ok" and series.notes == ("1 copies of instances left out",)
    write_slice(copy, 1, (-72.2, -143.0, 2.5), stored=np.zeros((SIDE, SIDE)))
    impostor = only([*paths, copy])
    assert impostor.geometry.verdict == "rejected:conflicting_instance"
    with pytest.raises(IrregularSeries, match="one SOP Instance UID on different pixels"):
        read_series(impostor)


@pytest.mark.traps(row=2)
def test_uneven_spacing_is_refused_or_resampled(tmp_path):
    # 2.5 and 2.65 mm: 6 % apart, so no hole and no regular volume
    series = only(write_series(tmp_path, (0, 2.5, 5.0, 7.65, 10.15, 12.65)))
    assert series.geometry.verdict == "rejected:spacing"
    with pytest.raises(IrregularSeries, match=r"uneven spacing .*spacing_max_mm 2\.65.*resample"):
        read_series(series)
    image, geometry = read_series(series, on_irregular="resample")
    assert geometry.verdict == "resampled" and image.spacing_mm[0] == 2.5
    # at 7.5 mm: 200 + 100 · 2.5 / 2.65 = 294; at 10 mm: 300 + 100 · 2.35 / 2.5 = 394; then 494
    assert image.array[0, :, 3, 3].tolist() == [0, 100, 200, 294, 394, 494]


@pytest.mark.traps(row=2)
def test_a_tilted_gantry_is_refused_or_straightened(tmp_path):
    series = only(tilted(tmp_path))
    assert series.geometry.verdict == "rejected:tilt"
    assert series.geometry.numbers["tilt_degrees"] == pytest.approx(22, abs=1e-3)
    with pytest.raises(IrregularSeries, match=r"a tilted gantry .*tilt_degrees 22"):
        read_series(series)
    image, geometry = read_series(series, on_irregular="resample")
    assert geometry.verdict == "resampled"
    axes = image.affine_ras[:3, :3]
    np.testing.assert_allclose(axes.T @ axes, np.diag(np.array(image.spacing_mm) ** 2), atol=1e-6)
    # along the normal the slices are 2.5 · cos 22° apart, and 10 · sin 22° = 3.746 mm drift down the rows,
    # which is 7.67 pixels: 16 rows grow to 24
    assert image.spacing_mm[0] == pytest.approx(2.5 * np.cos(np.radians(22)), abs=1e-5)
    assert image.array.shape == (1, 5, 24, 16)
    assert image.array.min() == -1024


@pytest.mark.traps(row=2)
def test_a_straightened_stack_keeps_a_world_plane(tmp_path):
    """Values that are a plane in space, z in HU, are that plane after straightening, wherever slices were."""
    rows = np.arange(SIDE)[:, None] * 0.488281 * np.ones((1, SIDE))
    lean = np.sin(np.radians(22))
    painted = [1024 + np.rint(100 * (z - rows * lean)) for z in (0, 2.5, 5, 7.5, 10)]
    paths = tilted(tmp_path)
    for index, (path, stored) in enumerate(zip(paths, painted, strict=True)):
        orientation = pydicom.dcmread(path).ImageOrientationPatient
        position = (-72.2, -143.0, 2.5 * index)
        write_slice(path, index, position, ImageOrientationPatient=orientation, stored=stored)
    image, _ = read_series(only(paths), on_irregular="resample")
    inside = np.argwhere(image.array[0] > -1000)
    world = np.c_[inside, np.ones(len(inside))] @ image.affine_ras.T
    values = image.array[0][tuple(inside.T)]
    assert len(inside) > 1000 and np.abs(values - 100 * world[:, 2]).max() <= 2


@pytest.mark.traps(row=2)
def test_a_slice_beside_the_line_is_drift(tmp_path):
    positions = [(-72.2, -143.0, 0.0), (-72.2, -142.0, 2.5), (-72.2, -143.0, 5.0), (-72.2, -143.0, 7.5)]
    series = only(write_series(tmp_path, (0, 0, 0, 0), position=positions))
    assert series.geometry.verdict == "rejected:drift"
    assert series.geometry.numbers["drift_px"] == pytest.approx(1 / 0.488281, abs=1e-3)


@pytest.mark.traps(row=2)
def test_other_mixtures(tmp_path):
    spacing = [["0.5", "0.5"], ["0.5", "0.5"], ["0.6", "0.6"], ["0.5", "0.5"]]
    series = only(write_series(tmp_path, (0, 1, 2, 3), PixelSpacing=spacing))
    assert series.geometry.verdict == "rejected:mixed_spacing"
    crooked = [["1", "0", "0", "0.5", "1", "0"]] * 4
    series = only(write_series(tmp_path, (0, 1, 2, 3), ImageOrientationPatient=crooked))
    assert series.geometry.verdict == "rejected:bad_orientation"
    with pytest.raises(IrregularSeries, match="not two perpendicular unit vectors"):
        read_series(series)
    mixed = only(write_series(tmp_path, (0, 1, 2, 3), RescaleType=["HU", "US", "HU", "HU"]))
    with pytest.raises(InputError, match=r"different units: HU and modality_lut"):
        read_series(mixed)


# --- row 3: localizers ---


@pytest.mark.traps(row=3)
def test_the_scouts_are_localizers():
    assert only(SCOUTS).geometry == Geometry("rejected:localizer", {"slices": 2})
    with pytest.raises(IrregularSeries, match=r"a localizer, which plans other scans \(slices 2\)"):
        read_series(only(SCOUTS), on_irregular="resample")


@pytest.mark.traps(row=3)
def test_a_scout_in_the_series_of_its_scan_stays_out_of_the_stack(tmp_path):
    paths = write_series(tmp_path, (0, 2.5, 5, 7.5))
    scout = write_slice(
        tmp_path / "scout.dcm", 9, (0.0, 0.0, 3.0), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]
    )
    stacks = {len(series.slices): series.geometry.verdict for series in find_series([scout, *paths])}
    assert stacks == {4: "ok", 1: "rejected:localizer"}


# --- row 17: what cannot be read costs itself ---


@pytest.mark.traps(row=17)
def test_unreadable_files_are_told_and_left_out(tmp_path):
    paths = write_series(tmp_path, (0, 2.5, 5, 7.5))
    (tmp_path / "bad.dcm").write_bytes(b"")
    told = []
    found = find_series([tmp_path / "bad.dcm", *paths], on_error=lambda path, error: told.append(error.rule))
    assert told == ["NotDicom"] and [len(series.slices) for series in found] == [4]
    with pytest.raises(InputError, match=r"empty \(0 bytes\)"):
        find_series([tmp_path / "bad.dcm", *paths])


# --- row 19: several series ---


@pytest.mark.traps(row=19)
def test_two_series_in_one_folder_stay_two(tmp_path):
    paths = write_series(tmp_path / "a", (0, 2.5, 5, 7.5)) + write_series(
        tmp_path / "b", (1.25, 3.75, 6.25, 8.75), series=2
    )
    found = find_series(paths)
    assert [len(series.slices) for series in found] == [4, 4]
    assert {series.paths for series in found} == {tuple(paths[:4]), tuple(paths[4:])}
    assert all(series.geometry.verdict == "ok" for series in found)


@pytest.mark.traps(row=19)
def test_acquisitions_part_where_they_repeat_and_join_where_they_continue(tmp_path):
    twice = (0, 2.5, 5, 7.5, 0, 2.5, 5, 7.5)
    phases = write_series(tmp_path / "a", twice, AcquisitionNumber=[1, 1, 1, 1, 2, 2, 2, 2])
    found = find_series(phases)
    assert [series.geometry.verdict for series in found] == ["ok", "ok"]
    assert {read_series(series)[0].array[0, 0, 0, 0] for series in found} == {0, 400}
    numbers = {pydicom.dcmread(path).AcquisitionNumber for path in CT5N}
    assert numbers == {1, 2} and len(find_series(CT5N)) == 1  # one table step each, one stack


@pytest.mark.traps(row=19)
def test_matrices_of_two_sizes_are_two_series(tmp_path):
    paths = write_series(tmp_path, (0, 2.5, 5, 7.5))
    write_slice(paths[3], 3, (-72.2, -143.0, 7.5), stored=np.zeros((8, 8)))
    assert sorted(len(series.slices) for series in find_series(paths)) == [1, 3]


def test_a_volume_beyond_the_limit_takes_no_memory(tmp_path):
    series = only(write_series(tmp_path, (0, 2.5, 5, 7.5)))
    with pytest.raises(PixelLimit, match=r"4 × 16 × 16 voxels, 1,024 in all; the limit is 1,000"):
        read_series(series, limits=Limits(max_voxels=1000))
    far = only(write_series(tmp_path, (0, 2.5, 5, 1e7)))
    with pytest.raises(PixelLimit, match=r"4,000,001 × 16 × 16 voxels"):
        read_series(far, allow_gaps=True)


def test_slices_travel_between_processes_and_objects_without_pixels_are_none(tmp_path):
    pieces = [piece for path in CT5N for piece in slices_of(path)]
    again = pickle.loads(pickle.dumps(pieces))  # noqa: S301 - our own bytes
    assert find_series(again) == find_series(CT5N)
    assert slices_of(golden("reportsi.dcm")) == ()


def test_the_polarity_of_a_series_is_kept_for_the_spec(tmp_path):
    paths = write_series(tmp_path, (0, 2.5, 5, 7.5), PhotometricInterpretation="MONOCHROME1")
    assert read_series(only(paths))[0].photometric is Photometric.MONOCHROME1
