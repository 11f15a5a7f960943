"""One marked cube in the left upper lung, followed from the scanner to the picture by world coordinates."""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
from ctcases import write_nifti, write_table
from PIL import Image as Pillow
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian
from volumecases import letters_around

from medvl.data import PairDataset, VolumeAugment
from medvl.data.augment import draw
from medvl.heads.grounding import heat_map
from medvl.planes import Montage
from medvl.preprocess.pipeline import prepare
from medvl.preprocess.quality_volumes import outlined_planes
from medvl.records import Box
from medvl.specs import VolumeInput, VolumeSpec
from medvl.store import Store

LOW, HIGH = np.array([-78.0, 6.0, 48.0]), np.array([-54.0, 30.0, 72.0])
"""The cube in RAS+ mm: x below 0 is the patient's left, y above 0 the front; z above 0 the upper half."""
CENTRE = (LOW + HIGH) / 2
LUNG, CUBE = -850.0, 1150.0
STEP = 3.0
EDGES = np.array([[-150.0, 150.0], [-96.0, 96.0], [-90.0, 102.0]])
"""Of the scan: an elliptic body with two lungs in it, in air; neither the cube nor the scan is central."""
UID = "1.2.826.0.1.3680043.8.498.77"


def world(points: np.ndarray) -> np.ndarray:
    """Return HU at RAS+ mm, axes last."""
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    hu = np.full(x.shape, -1000.0)
    hu[(x / 135) ** 2 + (y / 85) ** 2 < 1] = 40
    for middle in (-66, 66):
        hu[(np.abs(x - middle) < 42) & (np.abs(y - 10) < 45) & (np.abs(z - 10) < 80)] = LUNG
    hu[((points > LOW) & (points < HIGH)).all(-1)] = CUBE
    return hu


def grid(steps: tuple[float, float, float], order: tuple[int, ...], signs: tuple[int, ...]):
    """Return HU and RAS+ affine of a scan whose array axes run along ``signs`` of the world's ``order``.

    A voxel holds the mean over 2 × 2 × 2 points, so that its value is that of its middle.
    """
    affine, shape = np.eye(4), []
    affine[:3, :3] = 0
    for axis, (along, sign) in enumerate(zip(order, signs, strict=True)):
        step = steps[along]
        low, high = EDGES[along]
        shape.append(round((high - low) / step))
        affine[along, axis] = sign * step
        affine[along, 3] = low + step / 2 if sign > 0 else high - step / 2
    return sampled(shape, affine), affine


def sampled(shape, affine: np.ndarray) -> np.ndarray:
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1).astype(float)
    total = np.zeros(shape)
    for part in itertools.product((-0.25, 0.25), repeat=3):
        total += world((index + part) @ affine[:3, :3].T + affine[:3, 3])
    return np.rint(total / 8).astype(np.int16)


def dicom(folder: Path, name: str, hu: np.ndarray, affine: np.ndarray, *, enhanced: bool) -> None:
    """Write slices × rows × columns with a RAS+ affine, as one file or as one a slice, named at random."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    down, across = lps[:3, 1], lps[:3, 2]
    spacing = [float(np.linalg.norm(down)), float(np.linalg.norm(across))]
    cosines = [*(across / spacing[1]), *(down / spacing[0])]
    number = sum(map(ord, name))
    base = Dataset()
    base.StudyInstanceUID, base.SeriesInstanceUID = f"{UID}.{number}", f"{UID}.{number}.1"
    base.PatientID, base.Modality, base.ImageType = f"P{number}", "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    base.Rows, base.Columns = hu.shape[1:]
    base.SamplesPerPixel, base.PhotometricInterpretation = 1, "MONOCHROME2"
    base.BitsAllocated, base.BitsStored, base.HighBit, base.PixelRepresentation = 16, 16, 15, 0
    base.file_meta = FileMetaDataset()
    base.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    kind = EnhancedCTImageStorage if enhanced else CTImageStorage
    base.SOPClassUID = base.file_meta.MediaStorageSOPClassUID = kind
    stored = (hu.astype(np.int32) + 1024).astype("<u2")
    places = [[float(v) for v in lps[:3, 3] + k * lps[:3, 0]] for k in range(len(hu))]
    folder.mkdir(parents=True)
    shuffled = np.random.default_rng(number).permutation(len(hu))
    if enhanced:
        shared, measures, plane, values = (Dataset() for _ in range(4))
        measures.PixelSpacing, plane.ImageOrientationPatient = spacing, cosines
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 1, -1024, "HU"
        shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
        shared.PixelValueTransformationSequence = [values]
        base.SharedFunctionalGroupsSequence = [shared]
        frames = []
        for k in shuffled:
            group, place = Dataset(), Dataset()
            place.ImagePositionPatient = places[k]
            group.PlanePositionSequence = [place]
            frames.append(group)
        base.PerFrameFunctionalGroupsSequence, base.NumberOfFrames = frames, len(hu)
        base.SOPInstanceUID = base.file_meta.MediaStorageSOPInstanceUID = f"{UID}.{number}.1.1"
        base.PixelData = stored[shuffled].tobytes()
        base.save_as(folder / "volume.dcm", enforce_file_format=True)
        return
    base.ImageOrientationPatient, base.PixelSpacing = cosines, spacing
    base.RescaleSlope, base.RescaleIntercept, base.RescaleType = 1, -1024, "HU"
    for k, at in enumerate(shuffled):
        base.SOPInstanceUID = base.file_meta.MediaStorageSOPInstanceUID = f"{UID}.{number}.1.{k + 1}"
        base.ImagePositionPatient, base.InstanceNumber = places[k], int(at) + 1
        base.PixelData = stored[k].tobytes()
        base.save_as(folder / f"{at:04d}", enforce_file_format=True)


def oblique(degrees: float) -> np.ndarray:
    """Return an affine of 3 mm voxels turned about z and x, its middle at that of the scan."""
    turn, tip = np.deg2rad(degrees), np.deg2rad(degrees / 2)
    about_z = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(tip), -np.sin(tip)], [0, np.sin(tip), np.cos(tip)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x * STEP
    affine[:3, 3] = EDGES.mean(1) - affine[:3, :3] @ (np.array([100, 64, 64]) - 1) / 2
    return affine


SOURCES = ("axial", "feet", "sagittal", "coronal", "enhanced", "las", "oblique")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trace") / "source"
    # slices, rows, columns along the world's axes; rows run down the picture
    stacks = {
        "axial": ((3.0, 3.0, 6.0), (2, 1, 0), (1, -1, -1)),
        "feet": ((3.0, 3.0, 6.0), (2, 1, 0), (-1, -1, 1)),
        "sagittal": ((6.0, 3.0, 3.0), (0, 2, 1), (-1, -1, -1)),
        "coronal": ((3.0, 6.0, 3.0), (1, 2, 0), (-1, -1, -1)),
        "enhanced": ((3.0, 3.0, 6.0), (2, 1, 0), (1, -1, -1)),
    }
    rows = []
    for name, (steps, order, signs) in stacks.items():
        hu, affine = grid(steps, order, signs)
        dicom(folder / "images" / name, name, hu, affine, enhanced=name == "enhanced")
        series = f"{UID}.{sum(map(ord, name))}"
        write_nifti(folder / "masks" / f"{series}.1.nii.gz", (hu > 150).astype(np.uint8), affine)
        rows.append({"study_uid": series, "image": ""})
    hu, affine = grid((3.0, 3.0, 3.0), (0, 1, 2), (-1, 1, 1))
    assert nibabel.aff2axcodes(affine) == ("L", "A", "S")
    write_nifti(folder / "volumes" / "las.nii.gz", hu, affine)
    # a mask on a grid of its own: other axes, half the spacing along y
    other, turned = grid((3.0, 3.0, 1.5), (2, 0, 1), (-1, 1, -1))
    write_nifti(folder / "masks" / "las.nii.gz", (other > 150).astype(np.uint8), turned)
    affine = oblique(12)
    hu = sampled((100, 64, 64), affine)
    write_nifti(folder / "volumes" / "oblique.nii.gz", hu, affine)
    write_nifti(folder / "masks" / "oblique.nii.gz", (hu > 150).astype(np.uint8), affine)
    rows += [{"study_uid": "", "image": f"{name}.nii.gz"} for name in ("las", "oblique")]
    (folder / "masks" / "labels.yaml").write_text("1: lung_upper_lobe_left\n")
    ends = {
        f"{axis}{k}_mm": value
        for k, end in enumerate((LOW, HIGH))
        for axis, value in zip("xyz", end, strict=True)
    }
    write_table(folder / "boxes.csv", [{**row, "label": "lung_nodule", **ends} for row in rows])
    write_table(
        folder / "reports.csv",
        [
            {**row, "split": "train", "text": f"FINDINGS: A nodule in the left upper lobe, case {i}."}
            for i, row in enumerate(rows)
        ],
    )
    return folder


def prepared(source: Path, out: Path, spacing: tuple[float, float, float]) -> Store:
    summary = prepare(source, out, modality="ct", pixels=VolumeSpec(spacing_mm=spacing), workers=1)
    assert summary.records == len(SOURCES), summary
    return Store(out)


@pytest.fixture(scope="module")
def store(source, tmp_path_factory) -> Store:
    """Return a store whose voxels begin and end within those of the scans."""
    return prepared(source, tmp_path_factory.mktemp("trace") / "store", (4.0, 4.0, 5.0))


def middle(weights: np.ndarray) -> np.ndarray:
    """Return the centre of mass in voxels from the edge of the first one."""
    places = np.stack(np.meshgrid(*(np.arange(n) + 0.5 for n in weights.shape), indexing="ij"), -1)
    return (places * weights[..., None]).sum((0, 1, 2)) / weights.sum()


def to_voxels(record, points: np.ndarray) -> np.ndarray:
    affine = np.array(record.affine_ras).reshape(4, 4)
    return (points - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T + 0.5


def cube_of(hu: np.ndarray, around: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Return how much of each voxel near a place is cube, by its HU between lung and cube."""
    share = np.clip((hu.astype(float) - LUNG) / (CUBE - LUNG), 0, 1)
    near = np.zeros(hu.shape, bool)
    low, high = np.maximum(np.floor(around - reach), 0).astype(int), np.ceil(around + reach).astype(int)
    near[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return np.where(near, share, 0)


def box_middle(box) -> np.ndarray:
    return np.array([box.x0 + box.x1, box.y0 + box.y1, box.z0 + box.z1]) / 2


def check_store(store: Store) -> list[np.ndarray]:
    """Check all but the parts; return how far their middles lie from the cube's, in voxels."""
    assert sorted(record.source_kind for record in store.records) == ["dicom"] * 5 + ["nifti"] * 2
    off = []
    for record in store.records:
        place, reach = to_voxels(record, CENTRE), 15 / np.array(record.spacing_mm)
        assert np.abs(middle(cube_of(store.pixels(record), place, reach)) - place).max() < 0.05
        assert np.abs(box_middle(record.boxes[0]) - place).max() < 1e-6
        # the left side of the body is the first half of x, the head the last of z
        assert place[0] < record.shape[0] / 2
        assert place[2] > record.shape[2] / 2
        off.append(middle((store.parts(record) == 1).astype(float)) - place)
    return off


def test_image_parts_and_box_of_the_store_lie_where_the_cube_is(store, source, tmp_path):
    # a part is that of the nearest voxel, so a face may move by half a voxel of the store
    off = check_store(store)
    assert np.abs(off).max() < 0.55
    turned = [k for k, record in enumerate(store.records) if sorted(record.source_shape) == [32, 64, 100]]
    assert len(turned) == 4  # two of them coronal or upside down: they round as the others do
    assert np.ptp([off[k][0] for k in turned]) < 1e-6
    # on the grid of the scan nothing moves
    off = check_store(prepared(source, tmp_path / "same", (3.0, 3.0, 6.0)))
    assert sum(np.abs(each).max() < 1e-6 for each in off) >= 5


@pytest.mark.parametrize("fit", ["crop", "resize"])
@pytest.mark.parametrize("moving", [False, True])
def test_the_tensor_shows_the_cube_where_box_and_parts_are(store, fit, moving):
    # 80 × 48 × 40: cut along x and y, padded along z where cropped; the window takes lung to 0 and cube to 1
    input = VolumeInput(
        size_px=(80, 48, 40), windows=(((LUNG + CUBE) / 2, CUBE - LUNG),), fit=fit, mean=(0.0,), std=(1.0,)
    )
    augment = VolumeAugment(rotate_deg=20, shift=0.08, gain=0, offset_hu=0, noise_hu=0) if moving else None
    data = PairDataset(store, "train", input=input, augment=augment, parts=lambda said: [0] * len(said))
    for row, record in enumerate(data.records):
        pixels = data.space(1)
        data.paint([(3, row)], pixels)
        scale, offset = input.frame(record.shape)
        place = to_voxels(record, CENTRE) * scale + offset
        assert np.abs(box_middle(input.place_box(record.boxes[0], record.shape)) - place).max() < 1e-6
        zoom = 1.0
        if augment is not None:
            # p shows A(p − c) + c + s: what lies at q is shown at A⁻¹(q − c − s) + c
            motion = augment.motion(input.size_px, draw(0, "pixels", 3, record.record_id))
            c = np.array(input.size_px) / 2
            place = np.linalg.solve(motion.matrix, place - c - motion.shift) + c
            zoom = float(np.linalg.det(motion.matrix)) ** (-1 / 3)
        reach = 1.25 * zoom * scale * 15 / np.array(record.spacing_mm)
        seen = pixels.images[0, 0].astype(float)
        near = np.zeros(seen.shape, bool)
        low, high = np.maximum(np.floor(place - reach), 0), np.ceil(place + reach)
        near[tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))] = True
        assert np.abs(middle(np.where(near & (seen > 0.05), seen, 0)) - place).max() < 0.1
        # parts were rounded twice: on their way into the store, and here
        assert np.abs(middle((pixels.parts[0] == 1).astype(float)) - place).max() < 1.1
        assert pixels.mask[0][near].all()


@pytest.mark.parametrize("fit", ["crop", "resize"])
def test_a_heat_map_is_hottest_where_its_cell_lies(store, fit):
    input = VolumeInput(size_px=(80, 48, 40), fit=fit)
    for record in store.records:
        scale, offset = input.frame(record.shape)
        cell = np.floor((to_voxels(record, CENTRE) * scale + offset) / 8).astype(int)
        cells = np.zeros((10, 6, 5))
        cells[tuple(cell)] = 1
        heat = heat_map(cells, input=input, shape=record.shape, sigma=0.0)
        there = ((cell + 0.5) * 8 - offset) / scale
        top = np.argwhere(heat == np.nanmax(heat)) + 0.5
        assert np.abs(top.mean(0) - there).max() < 0.51
        # the cube lies in the cell, so that the cell's middle is at most half a cell from it
        assert np.abs(there - to_voxels(record, CENTRE)).max() <= (4 / scale).max() + 1e-6


def test_the_picture_hangs_it_on_the_right_above_and_in_front(store):
    for record in store.records:
        place = to_voxels(record, CENTRE)
        montage = Montage(record.shape, record.spacing_mm, at=tuple(place.tolist()), side_px=600)
        grey = np.asarray(montage.grey(store.pixels(record), ((LUNG + CUBE) / 2, CUBE - LUNG))).astype(float)
        x, y, z = np.array(record.shape) * record.spacing_mm
        px = 600 / max(x + 4 + y, y + 4 + z)
        wide, tall = int(x * px), int(y * px)
        panels = {
            "axial": (slice(0, tall), slice(0, wide)),
            "coronal": (slice(grey.shape[0] - int(z * px), None), slice(0, wide)),
            "sagittal": (slice(grey.shape[0] - int(z * px), None), slice(grey.shape[1] - tall, None)),
        }
        for (name, panel), mark in zip(panels.items(), montage.mark(place.tolist()), strict=True):
            shown = np.where(grey[panel] > 170, grey[panel], 0)
            rows, columns = np.nonzero(shown)
            found = np.array([rows.mean() + 0.5, columns.mean() + 0.5])
            # the patient's left is the viewer's right; the front is above, or on the left of a sagittal slice
            height, width = shown.shape
            assert found[0] < height / 2, name
            assert (found[1] < width / 2) == (name == "sagittal"), name
            corner = (panel[0].start, panel[1].start)
            marked = np.array([mark[1] * grey.shape[0], mark[0] * grey.shape[1]]) / 100 - corner
            assert np.abs(found - marked).max() < 2.5, name


# --- letters -----------------------------------------------------------------------------------


def test_letters_name_the_side_on_which_the_cube_is_seen(store):
    """The cube is to the left, in front and above: beside, over or under it stand L, A and S."""
    for record in store.records:
        # The scans are canonical once stored, by nibabel's account too.
        assert nibabel.aff2axcodes(np.reshape(record.affine_ras, (4, 4))) == ("R", "A", "S")
        place = to_voxels(record, CENTRE)
        montage = Montage(
            record.shape,
            record.spacing_mm,
            at=tuple(place.tolist()),
            side_px=600,
            affine_ras=record.affine_ras,
        )
        picture = np.asarray(
            montage.grey(store.pixels(record), (40.0, 4000.0))
        )  # bone is grey, letters white
        marks = montage.mark(place.tolist())
        for plane, (x, y) in zip(montage._planes, marks, strict=True):
            box = (plane.left, plane.top, plane.width, plane.height)
            left, right, top, bottom = letters_around(picture, box, 27)
            across = x / 100 * picture.shape[1] - plane.left < plane.width / 2
            down = y / 100 * picture.shape[0] - plane.top < plane.height / 2
            ends = {(left if across else right), (top if down else bottom)}
            expected = {"LRAP": {"L", "A"}, "LRSI": {"L", "S"}, "APSI": {"A", "S"}}
            axes = "".join(
                sorted({left, right}, key="LRAPSI".index) + sorted({top, bottom}, key="LRAPSI".index)
            )
            assert ends == expected[axes]


def test_letters_of_the_quality_page(store):
    for record in store.records:
        shown = outlined_planes(record, store.path / "shards")
        data = base64.b64decode(shown["src"].partition(",")[2])
        picture = np.asarray(Pillow.open(io.BytesIO(data)).convert("L"))
        # Three panels with 6 px between them: x wide, x wide, y wide.
        x, y, z = np.array(record.shape) * record.spacing_mm
        scale = 888 / (2 * x + y)
        wide, tall, high = round(x * scale), round(y * scale), round(z * scale)
        assert letters_around(picture, (0, 0, wide, tall), 18) == "RLAP"
        assert letters_around(picture, (wide + 6, 0, wide, high), 18) == "RLSI"
        assert letters_around(picture, (2 * wide + 12, 0, tall, high), 18) == "APSI"


def test_a_box_is_drawn_on_the_slice_that_it_cuts(store):
    """Slice k is of the voxels from k to k + 1: a box that ends at k or begins at k + 1 is not on it."""
    record = store.records[0]
    x, y, z = (size // 2 for size in record.shape)
    first = Box("first", x + 0.25, y + 0.25, x + 0.75, y + 0.75, z, z + 1)
    for low, high, planes in ((-1.0, 0.0, 2), (1.0, 2.0, 2), (-1.0, 0.5, 3), (0.5, 2.0, 3)):
        other = dataclasses.replace(first, label="other", z0=z + low, z1=z + high)
        shown = outlined_planes(dataclasses.replace(record, boxes=(first, other)), store.path / "shards")
        labels = [box["label"] for box in shown["boxes"]]
        assert (labels.count("first"), labels.count("other")) == (3, planes)
