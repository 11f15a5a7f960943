"""Masks of volumes: found, named, mapped to parts, brought onto the stored grid; odd ones are said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ctcases import AFFINE, UID, axial_hu, write_nifti, write_series
from maskcases import HEART, LUNG, NUMBER, expected, label_map, planned, shown

from medvl.anatomy import PARTS
from medvl.errors import BadAffine, BadImage, BadTable, UsageError
from medvl.preprocess.structures import TOTAL, Structures
from medvl.preprocess.structures_masks import Mask, Structure, read_parts


def test_every_class_of_totalsegmentator_is_known():
    known = Structures.read(parts=PARTS["ct"])
    assert not known.unknown(TOTAL.values()) and len(TOTAL) == 117
    numbers = {name: known.number(name) for name in TOTAL.values()}
    assert numbers["lung_lower_lobe_left"] == NUMBER["lungs"]
    assert numbers["trachea"] == NUMBER["airways"]
    assert numbers["atrial_appendage_left"] == NUMBER["heart"]
    assert numbers["inferior_vena_cava"] == NUMBER["vessels"]
    assert numbers["vertebrae_T7"] == numbers["rib_left_12"] == numbers["hip_left"] == NUMBER["bones"]
    assert numbers["adrenal_gland_right"] == NUMBER["adrenals"]
    assert numbers["urinary_bladder"] == NUMBER["pelvis"]
    assert numbers["autochthon_left"] == numbers["spinal_cord"] == numbers["brain"] == 0
    # muscles, cord and brain are the only ones without a part
    without = {name.removesuffix("_left").removesuffix("_right") for name, n in numbers.items() if not n}
    muscles = {"gluteus_maximus", "gluteus_medius", "gluteus_minimus", "autochthon", "iliopsoas"}
    assert without == muscles | {"spinal_cord", "brain"}


def test_structures_of_a_user_go_before_the_table(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("lungs: [Pulmo]\nnone: [heart]\n")
    known = Structures.read(path, parts=PARTS["ct"])
    assert known.number("pulmo_right") == NUMBER["lungs"] and known.number("heart") == 0
    assert known.unknown(["heart", "aorta", "hart"]) == [
        "structure 'hart' is not known: its voxels belong to no part; is it 'heart'?"
    ]


@pytest.mark.parametrize("named", [f"{UID}.1.1", f"{UID}.1", f"{UID}.1.1_total"])
def test_a_label_map_by_series_or_study(tmp_path, named):
    write_series(tmp_path / "dicom", study=1, series=1)
    write_nifti(tmp_path / f"masks/{named}.nii.gz", label_map(), AFFINE)
    (tmp_path / "masks/labels.yaml").write_text("# mine\n4: lung_left\n9: heart  # with its sac\n")
    (job,), paired = planned(tmp_path)
    volume = shown(job)
    assert (volume.parts == expected(volume.stored.shape, (LUNG, "lungs"), (HEART, "heart"))).all()
    assert volume.about["part_voxels"] == {"lungs": 5 * 9 * 5, "heart": 4 * 5 * 3}
    assert not [entry for entry in paired.unpaired if "mask" in entry.reason]


def test_a_mask_on_another_grid_and_orientation(tmp_path):
    write_series(tmp_path / "dicom", study=1, series=1)
    # twice as fine along z, turned to RAS+ and with the axes in the order (z, x, y)
    fine = np.repeat(label_map()[::-1, ::-1], 2, axis=2).transpose(2, 0, 1)
    affine = np.array([[0, 3.0, 0, -21], [0, 0, 2, -10], [2, 0, 0, 99], [0, 0, 0, 1]])
    write_nifti(tmp_path / "elsewhere.nii.gz", fine, affine)
    folder = tmp_path / "out_of_the_source"
    folder.mkdir()
    (tmp_path / "elsewhere.nii.gz").rename(folder / f"{UID}.1.1.nii.gz")
    (folder / "labels.json").write_text('{"labels": {"background": 0, "lung": 4, "heart": 9}}')
    (job,), _ = planned(tmp_path / "dicom", masks=folder)
    volume = shown(job)
    assert (volume.parts == expected(volume.stored.shape, (LUNG, "lungs"), (HEART, "heart"))).all()


def test_a_mask_named_after_its_volume_and_totalsegmentators_numbers(tmp_path):
    values = label_map()
    values[values == 9] = 51  # heart in TotalSegmentator
    values[values == 4] = 10  # upper lobe of the left lung
    hu = axial_hu([100.0 + 4 * k for k in range(6)]).transpose(2, 1, 0)
    write_nifti(tmp_path / "case.nii.gz", hu, AFFINE)
    write_nifti(tmp_path / "case_seg.nii.gz", values, AFFINE)
    (job,), paired = planned(tmp_path)
    assert job.path.endswith("case.nii.gz")
    assert any("read as those of TotalSegmentator" in note for note in paired.notes)
    assert shown(job).about["part_voxels"] == {"lungs": 225, "heart": 60}


def test_a_table_beside_the_mask_names_its_numbers(tmp_path):
    hu = axial_hu([100.0 + 4 * k for k in range(6)]).transpose(2, 1, 0)
    write_nifti(tmp_path / "case.nii.gz", hu, AFFINE)
    write_nifti(tmp_path / "case_structures.nii.gz", label_map(), AFFINE)
    (tmp_path / "case_structures.csv").write_text(
        "group,original_idx,structure,id\no,1,heart,4\no,2,humpf,9\n"
    )
    (job,), paired = planned(tmp_path)
    assert "structure 'humpf' is not known" in " ".join(paired.notes)
    assert shown(job).about["part_voxels"] == {"heart": 225}
    # a table of names is no table of reports
    assert not paired.columns


def binary(folder: Path, name: str, *regions: tuple[slice, ...]) -> None:
    values = np.zeros((12, 10, 6), np.uint8)
    for region in regions:
        values[region] = 1
    write_nifti(folder / f"{name}.nii.gz", values, AFFINE)


def test_a_folder_of_binary_maps_and_the_smaller_structure_wins(tmp_path):
    hu = axial_hu([100.0 + 4 * k for k in range(6)]).transpose(2, 1, 0)
    write_nifti(tmp_path / "s0001/ct.nii.gz", hu, AFFINE)
    folder = tmp_path / "s0001/segmentations"
    inner = (slice(7, 9), slice(2, 4), slice(1, 3))
    binary(folder, "lung_upper_lobe_left", LUNG)
    binary(folder, "aorta", inner)  # inside of the lung
    binary(folder, "heart", HEART)
    (job,), _ = planned(tmp_path)
    volume = shown(job)
    truth = expected(volume.stored.shape, (LUNG, "lungs"), (inner, "vessels"), (HEART, "heart"))
    assert (volume.parts == truth).all()
    # in the other order of names as well
    (folder / "aorta.nii.gz").rename(folder / "pulmonary_vein.nii.gz")
    (job,), _ = planned(tmp_path)
    assert (shown(job).parts == truth).all()


def mask_of(path: Path, *named: tuple[int, str]) -> Mask:
    known = Structures.read(parts=PARTS["ct"])
    structures = tuple(Structure(name, known.number(name), number) for number, name in named)
    return Mask(path, "labels", structures)


def test_left_and_right_on_the_wrong_sides_are_said(tmp_path):
    values = np.zeros((20, 8, 8), np.int16)
    values[2:6], values[14:18] = 1, 2  # x grows to the right in this affine
    path = write_nifti(tmp_path / "a.nii", values, np.diag([2.0, 2, 2, 1]))
    right = read_parts(mask_of(path, (1, "lung_left"), (2, "lung_right")))[1]
    wrong = read_parts(mask_of(path, (1, "kidney_right"), (2, "kidney_left")))[1]
    assert not right
    assert "of 1 paired structures of the mask, the left one lies to the patient's right" in wrong[0]
    # the same voxels under a flipped affine
    path = write_nifti(tmp_path / "b.nii", values, np.diag([-2.0, 2, 2, 1]))
    assert read_parts(mask_of(path, (1, "lung_left"), (2, "lung_right")))[1][0].startswith("sides:")


def test_a_lung_of_soft_tissue_is_said(tmp_path):
    values = np.full((12, 12, 12), 40, np.int16)
    write_nifti(tmp_path / "a.nii.gz", values, np.eye(4))
    write_nifti(tmp_path / "a_seg.nii.gz", np.ones((12, 12, 12), np.uint8) * 10, np.eye(4))
    (job,), _ = planned(tmp_path)
    assert any("lungs of the mask have a mean of 40 HU" in note for note in shown(job).about["notes"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((4, 4, 4), -3, np.int16), "values from -3 to -3"),
        (np.full((4, 4, 4), 1.5, np.float32), "values from 1.5 to 1.5, not all whole"),
        (np.full((4, 4, 4), 40000, np.int32), "values from 40000 to 40000"),
    ],
)
def test_what_is_no_label_map_is_refused(tmp_path, values, message):
    path = write_nifti(tmp_path / "a.nii", values, np.eye(4))
    with pytest.raises(BadImage, match=message):
        read_parts(mask_of(path, (1, "heart")))


def test_numbers_without_a_name_are_told(tmp_path):
    values = np.zeros((4, 4, 4), np.uint8)
    values[0], values[1], values[2] = 1, 7, 9
    path = write_nifti(tmp_path / "a.nii", values, np.eye(4))
    image, notes = read_parts(mask_of(path, (1, "heart")))
    assert notes == ("numbers of the mask without a name: 7, 9",)
    assert int((image.array > 0).sum()) == 16


def test_binary_maps_on_different_grids_are_refused(tmp_path):
    binary(tmp_path, "heart", HEART)
    write_nifti(tmp_path / "aorta.nii.gz", np.zeros((3, 3, 3), np.uint8), AFFINE)
    files = [Structure(name, 1, file=tmp_path / f"{name}.nii.gz") for name in ("heart", "aorta")]
    with pytest.raises(BadImage, match=r"different grids: \(12, 10, 6\) and \(3, 3, 3\)"):
        read_parts(Mask(tmp_path, "folder", tuple(files)))
    with pytest.raises(BadImage, match="holds no file"):
        read_parts(Mask(tmp_path, "folder", ()))


def test_a_mask_without_a_place_is_refused(tmp_path):
    import nibabel

    image = nibabel.Nifti1Image(np.ones((3, 3, 3), np.uint8), None)
    nibabel.save(image, tmp_path / "a.nii")
    with pytest.raises(BadAffine, match="a mask does not say how it lies"):
        read_parts(mask_of(tmp_path / "a.nii", (1, "heart")))


def test_masks_that_nobody_asks_for_are_listed(tmp_path):
    write_series(tmp_path / "dicom", study=1, series=1)
    for name in (f"{UID}.1.1", f"{UID}.1.1_seg", "someone_else"):
        write_nifti(tmp_path / f"masks/{name}.nii.gz", label_map(), AFFINE)
    _, paired = planned(tmp_path)
    reasons = sorted(entry.reason for entry in paired.unpaired if "mask" in entry.reason)
    assert reasons == ["mask_without_volume", "second_mask"]


def own_masks(source: Path, mask_of: str, volume: str = "{}/ct.nii.gz") -> dict[str, dict[str, int]]:
    """Write two patients whose files have equal names; return the parts that each of them gets."""
    hu = axial_hu([100.0 + 4 * k for k in range(6)]).transpose(2, 1, 0)
    names = {"patient1": "heart", "patient2": "aorta"}
    for patient, structure in names.items():
        write_nifti(source / volume.format(patient), hu, AFFINE)
        mask = source / mask_of.format(patient)
        if mask.suffix:
            write_nifti(
                mask, (label_map() == 9).astype(np.uint8) * (51 if structure == "heart" else 52), AFFINE
            )
        else:
            binary(mask, structure, HEART)
            binary(mask, "lung", LUNG)
    jobs, _ = planned(source)
    found = {}
    for job in jobs:
        patient = next(part for part in Path(job.path).parts if part in names)
        found[patient] = {} if job.mask is None else shown(job).about["part_voxels"]
    return found


@pytest.mark.parametrize(
    ("mask", "volume"),
    [
        ("{}/ct_seg.nii.gz", "{}/ct.nii.gz"),
        ("{}/masks/ct.nii.gz", "{}/ct.nii.gz"),
        ("masks/{}/ct.nii.gz", "images/{}/ct.nii.gz"),
        ("{}/segmentations", "{}/ct.nii.gz"),
        ("{}/a/segmentations", "{}/a/ct.nii.gz"),
        ("masks/{}/ct", "images/{}/ct.nii.gz"),
    ],
)
def test_a_mask_of_another_patient_is_never_used(tmp_path, mask, volume):
    found = own_masks(tmp_path, mask, volume)
    lungs = {} if ".nii" in mask else {"lungs": 225}
    assert found == {"patient1": lungs | {"heart": 60}, "patient2": lungs | {"vessels": 60}}


def test_a_mask_whose_name_several_volumes_have_is_left_out(tmp_path):
    assert own_masks(tmp_path, "masks/ct.nii.gz") == {"patient1": {}, "patient2": {}}


def test_the_name_of_a_slice_names_no_mask(tmp_path):
    for study in (1, 2):
        first = sorted(write_series(tmp_path / f"dicom/{study}", study=study, series=1))[0]
    write_nifti(tmp_path / f"masks/{first.stem}.nii.gz", label_map(), AFFINE)
    jobs, paired = planned(tmp_path)
    assert [job.mask for job in jobs] == [None, None]
    assert [entry.reason for entry in paired.unpaired if "mask" in entry.reason] == ["mask_without_volume"]


def test_bad_names_of_numbers_are_refused(tmp_path):
    write_series(tmp_path / "dicom", study=1, series=1)
    write_nifti(tmp_path / "masks/x.nii.gz", label_map(), AFFINE)
    (tmp_path / "masks/labels.txt").write_text("nothing here\n")
    with pytest.raises(BadTable, match="names no number of a structure"):
        planned(tmp_path)
    (tmp_path / "masks/labels.txt").unlink()
    (tmp_path / "masks/labels.csv").write_text("a,b\nx,y\n")
    with pytest.raises(BadTable, match="does not name the numbers of structures"):
        planned(tmp_path)
    with pytest.raises(UsageError, match="folder of masks is not a folder"):
        planned(tmp_path / "dicom", masks=tmp_path / "nowhere")
