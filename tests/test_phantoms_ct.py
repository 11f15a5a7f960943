"""CT phantom sets on disk: fixed bytes, headers and tables that agree with the truth, traps as promised."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter, defaultdict

import nibabel
import numpy as np
import pydicom
import pytest
import yaml

from medvl.anatomy import PARTS
from medvl.errors import MedvlError, UsageError
from medvl.phantoms import CT_FINDINGS, STRUCTURES, write_ct_phantoms, write_phantoms
from medvl.phantoms.ct_study import CtPhantoms, _Study
from medvl.phantoms.ct_traps import TRAPS
from medvl.phantoms.ct_truth import STRUCTURE_PARTS, draw_ct_body
from medvl.phantoms.radiograph import Person
from medvl.phantoms.truth import LEVELS
from medvl.preprocess.reading.nifti import read_nifti
from medvl.preprocess.reading.series import find_series, read_series
from medvl.preprocess.structures import Structures

PINNED = {
    "easy": "726c3d2b5b96d830fb305d9bc3f8a580afcbbf1fa740a21ba352eea6fd7f6826",
    "middle": "e233aa96d89ef08cf4bfff150700ae63d9632c5d5e65f9461b2849377ea1adc6",
    "hard": "43ef9c3212afefebc6f68fb559b21b4763e1deea2a09dcc7a95f2367a02e8c7d",
}

BODY = draw_ct_body(np.random.default_rng(0), female=0)
PERSON = Person("DOE^JANE", "MRN1", "19500101", "F", "1 OAK STREET")


def table(folder, name):
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A set of 30 sound studies of 32 pixels: one of them with a segmentation object."""
    folder = tmp_path_factory.mktemp("ct") / "set"
    return folder, write_ct_phantoms(folder, n=30, seed=3, size_px=32, traps=0.0, workers=1)


@pytest.fixture(scope="module")
def trapped(tmp_path_factory):
    """As many studies as there are traps, each of them one."""
    folder = tmp_path_factory.mktemp("ct") / "traps"
    write_ct_phantoms(folder, n=len(TRAPS), seed=8, size_px=32, traps=1.0, workers=1)
    return folder


def canonical(image):
    """Return the voxels along right, front and top, and the affine, by nibabel."""
    turned = nibabel.as_closest_canonical(
        nibabel.Nifti1Image(image.array[0].astype(np.float64), image.affine_ras)
    )
    return np.asarray(turned.dataobj), turned.affine


def volume_of(folder, row):
    """Read the volume of a row of series.csv with the readers of prepare."""
    if row["kind"] == "nifti":
        return read_nifti(folder / row["place"])
    found = find_series(sorted((folder / row["place"]).glob("*.dcm")))
    mine = [series for series in found if series.slices[0].series_uid == row["series_instance_uid"]]
    assert len(mine) == 1
    return read_series(mine[0])[0]


@pytest.mark.parametrize("level", sorted(PINNED))
def test_the_hash_of_a_set_is_frozen(level, tmp_path):
    summary = write_ct_phantoms(tmp_path / "set", n=3, seed=11, level=level, size_px=32, workers=1)
    assert summary.hash == PINNED[level]


def test_the_number_of_workers_changes_no_byte(tmp_path):
    seen = []
    one = write_ct_phantoms(tmp_path / "one", n=5, seed=4, size_px=32, traps=0.4, workers=1)
    two = write_ct_phantoms(
        tmp_path / "two", n=5, seed=4, size_px=32, traps=0.4, workers=2,
        progress=lambda *step: seen.append(step[:2]),
    )  # fmt: skip
    assert one == two
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert seen[-1] == (5, 5) and seen == sorted(seen)


def test_another_seed_level_or_share_of_traps_is_another_set(tmp_path):
    sets = [{"seed": 0}, {"seed": 1}, {"seed": 0, "level": "hard"}]
    hashes = {
        write_ct_phantoms(tmp_path / str(index), n=1, size_px=32, workers=1, **values).hash
        for index, values in enumerate(sets)
    }
    assert len(hashes) == len(sets)


def test_a_complete_folder_is_not_written_again(made, monkeypatch):
    folder, summary = made
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_ct_phantoms(folder, n=30, seed=3, size_px=32, traps=0.0) == summary
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(UsageError, match=r"another phantom set \(seed 3, level middle, 30 studies\)"):
        write_ct_phantoms(folder, n=30, seed=3, size_px=32, traps=0.5)


def test_a_folder_of_films_is_not_taken_for_volumes(tmp_path):
    write_phantoms(tmp_path / "films", n=1, seed=0, size_px=64, workers=1)
    with pytest.raises(UsageError, match=r"another phantom set \(cxr, seed 0"):
        write_ct_phantoms(tmp_path / "films", n=1, seed=0, size_px=64)
    write_ct_phantoms(tmp_path / "volumes", n=1, seed=0, size_px=48, workers=1)
    with pytest.raises(UsageError, match=r"another phantom set \(ct, seed 0"):
        write_phantoms(tmp_path / "volumes", n=1, seed=0, size_px=48)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n": 0}, "n is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"size_px": 20}, "size_px is 20"),
        ({"unobservable": 1.5}, "unobservable is 1.5"),
        ({"traps": -0.5}, "traps is -0.5"),
        ({"workers": 0}, "workers is 0"),
        ({"level": "meddle"}, "Did you mean 'middle'"),
    ],
)
def test_numbers_out_of_range_are_refused(values, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        write_ct_phantoms(tmp_path / "set", **{"n": 1, "seed": 0, "size_px": 32, **values})


def test_every_volume_reads_back_as_it_was_drawn(made):
    folder, _ = made
    rows = table(folder, "truth/series.csv")
    for row in rows[::2]:
        voxels, affine = canonical(volume_of(folder, row))
        assert voxels.shape == tuple(map(int, row["shape"].split()))
        drawn = np.array([float(value) for value in row["affine_ras"].split()]).reshape(4, 4)
        # positions are written with four decimals, spacings with six digits: 0.01 mm over the whole scan
        np.testing.assert_allclose(affine, drawn, atol=1e-2)
        if row["stored"] == "padded":
            # padding lies beyond the circle of the field and is raised to -1024 by the reader
            assert voxels.min() == -1024
            continue
        assert hashlib.sha256(voxels.astype("<i2").tobytes()).hexdigest() == row["hu_sha256"]
    assert {row["stored"] for row in rows[::2]} >= {"padded", "unsigned"}


def test_the_set_shows_the_variety_of_real_exports(made):
    folder, summary = made
    rows = table(folder, "truth/series.csv")
    seen = {name: {row[name] for row in rows} for name in rows[0]}
    assert seen["kind"] == {"classic", "enhanced", "nifti"}
    assert seen["kernel"] == {"soft", "lung"} and seen["contrast"] == {"0", "1"}
    assert seen["names"] == {"ordered", "random"} and seen["mask"] == {"nifti", "seg"}
    assert len(seen["syntax"] - {""}) >= 3 and len(seen["stored"] - {""}) >= 3
    assert len(seen["shape"]) > 3 and len(seen["spacing_mm"]) > 20
    assert summary.images == len(rows) > summary.studies == 30
    splits = defaultdict(set)
    for row in table(folder, "reports.csv"):
        splits[row["patient_id"]].add(row["split"])
    assert all(len(each) == 1 for each in splits.values())
    assert set().union(*splits.values()) == {"train", "val", "test"}


def test_reconstructions_share_study_and_report(made):
    folder, _ = made
    series = Counter(row["accession"] for row in table(folder, "truth/series.csv"))
    assert set(series.values()) == {1, 2}
    assert len(table(folder, "reports.csv")) == len(series)
    pairs = [row for row in table(folder, "truth/series.csv") if series[row["accession"]] == 2]
    assert {row["kernel"] for row in pairs} == {"soft", "lung"}
    depth = {row["series_instance_uid"]: float(row["spacing_mm"].split()[2]) for row in pairs}
    thick, thin = list(depth.values())[:2]
    assert thin == pytest.approx(0.6 * thick, rel=0.01)


def test_headers_say_what_the_tables_say(made):
    folder, _ = made
    reports = {row["accession"]: row for row in table(folder, "reports.csv")}
    rows = [row for row in table(folder, "truth/series.csv") if row["kind"] != "nifti"]
    for row in rows:
        path = sorted((folder / row["place"]).glob("*.dcm"))[0]
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        report = reports[row["accession"]]
        assert ds.Modality == "CT" and ds.PatientID == report["patient_id"]
        assert (ds.AccessionNumber, ds.StudyInstanceUID) == (row["accession"], report["study_instance_uid"])
        assert ds.SeriesInstanceUID == row["series_instance_uid"]
        assert ("ContrastBolusAgent" in ds) == (row["contrast"] == "1")
    for row in reports.values():
        assert bool(row["image"]) == ("nifti" in {r["kind"] for r in table(folder, "truth/series.csv")
                                                  if r["accession"] == row["accession"]})  # fmt: skip
        assert not row["image"] or (folder / row["image"]).is_file()


def test_labels_truth_and_boxes_agree(made):
    folder, summary = made
    truth, labels = table(folder, "truth/truth.csv"), table(folder, "labels.csv")
    stated = {(row["accession"], kind) for row in labels for kind in CT_FINDINGS if row[kind] == "1"}
    assert stated == {(row["accession"], row["label"]) for row in truth}
    boxes = defaultdict(list)
    for row in table(folder, "boxes.csv"):
        boxes[row["accession"], row["label"]].append(
            [float(row[f"{edge}_mm"]) for edge in ("x0", "y0", "z0", "x1", "y1", "z1")]
        )
    assert set(boxes) == stated
    for row in truth:
        mine = boxes[row["accession"], row["label"]]
        assert len(mine) == (2 if row["side"] == "bilateral" else 1)
        for x0, y0, z0, x1, y1, z1 in mine:
            assert x0 < x1 and y0 < y1 and z0 < z1
            # right is +x in RAS
            if row["side"] in ("left", "right") and row["label"] != "medical_material":
                assert (x0 + x1 > 0) == (row["side"] == "right"), row
    assert json.loads((folder / "phantom.json").read_text())["modality"] == "ct"
    assert summary.prevalence == {
        kind: round(sum(row[kind] == "1" for row in labels) / 30, 4) for kind in CT_FINDINGS
    }


def test_boxes_hold_the_voxels_of_their_finding_in_every_reconstruction(made):
    folder, _ = made
    series = table(folder, "truth/series.csv")
    truth = defaultdict(list)
    for row in table(folder, "truth/truth.csv"):
        truth[row["accession"]].append(row)
    for row in series:
        with np.load(
            folder / "truth" / "findings" / f"{row['series_instance_uid'] or row['accession']}.npz"
        ) as held:
            voxels, affine = held["findings"], held["affine_ras"]
        for number, finding in enumerate(truth[row["accession"]], 1):
            places = np.argwhere(voxels == number) @ affine[:3, :3].T + affine[:3, 3]
            boxes = [np.array(box.split(), float).reshape(2, 3) for box in finding["boxes_mm"].split(";")]
            # a later finding may take voxels; another reconstruction may fill one voxel more
            rim = 1.01 * np.diag(affine)[:3]
            inside = np.any(
                [((places >= low - rim) & (places <= high + rim)).all(1) for low, high in boxes], 0
            )
            assert inside.all(), finding


def test_label_maps_lie_on_their_volumes_and_name_their_numbers(made):
    folder, _ = made
    names = yaml.safe_load((folder / "masks" / "labels.yaml").read_text())
    assert names == {number: name for name, number in STRUCTURES.items()}
    assert set(STRUCTURE_PARTS.values()) <= set(PARTS["ct"])
    # the map that prepare uses says the same of every structure
    known = Structures.read(parts=PARTS["ct"])
    assert {name: PARTS["ct"][known.number(name) - 1] for name in STRUCTURES} == dict(STRUCTURE_PARTS)
    for row in table(folder, "truth/series.csv")[:6]:
        if row["mask"] == "seg":
            continue
        mask = nibabel.load(folder / "masks" / f"{row['series_instance_uid'] or row['accession']}.nii.gz")
        voxels, affine = canonical(volume_of(folder, row))
        np.testing.assert_allclose(mask.affine, affine, atol=1e-2)
        numbers = np.asarray(mask.dataobj)
        assert numbers.shape == voxels.shape

        def mean(*wanted, numbers=numbers, voxels=voxels):
            return voxels[np.isin(numbers, [STRUCTURES[name] for name in wanted])].mean()

        assert mean(*(name for name in STRUCTURES if name.startswith("lung_"))) < -650
        assert 20 < mean("heart") < 260 and 30 < mean("liver") < 140
        assert mean("vertebrae") > 150 and mean("trachea") < -700


def test_a_segmentation_object_holds_the_label_map(made):
    seg = pytest.importorskip("highdicom").seg
    folder, _ = made
    rows = [row for row in table(folder, "truth/series.csv") if row["mask"] == "seg"]
    assert len(rows) == 1  # study 3
    for row in rows:
        home = (folder / row["place"]).parent
        assert not (folder / "masks" / f"{row['series_instance_uid']}.nii.gz").exists()
        held = seg.segread(home / "SEG" / "S1.dcm")
        assert held.ReferencedSeriesSequence[0].SeriesInstanceUID == row["series_instance_uid"]
        labels = {item.SegmentNumber: item.SegmentLabel for item in held.SegmentSequence}
        volume = held.get_volume(combine_segments=True)
        source, _ = canonical(volume_of(folder, row))
        assert sorted(volume.array.shape) == sorted(source.shape)
        seen = {labels[number] for number in np.unique(volume.array) if number}
        assert {"heart", "liver", "aorta", "lung_upper_lobe_left"} <= seen <= set(STRUCTURES)
        heart = np.array(
            [
                number == next(k for k, name in labels.items() if name == "heart")
                for number in volume.array.ravel()
            ]
        )
        slices = sorted((folder / row["place"]).glob("*.dcm"))
        pixels = {}
        for path in slices:
            ds = pydicom.dcmread(path)
            pixels[float(ds.ImagePositionPatient[2])] = ds.pixel_array * float(ds.RescaleSlope) + float(
                ds.RescaleIntercept
            )
        # highdicom orders slices from high to low or low to high; its affine says which
        heights = [float(volume.affine[2, 3] + volume.affine[2, 0] * k) for k in range(volume.array.shape[0])]
        stack = np.stack([pixels[min(pixels, key=lambda z, h=h: abs(z - h))] for h in heights])
        assert 0 < stack.ravel()[heart].mean() < 260


@pytest.mark.parametrize("trap", sorted(TRAPS))
def test_a_trap_gets_the_verdict_that_its_truth_promises(trap, trapped):
    row = next(row for row in table(trapped, "truth/traps.csv") if row["trap"] == trap)
    series = [each for each in table(trapped, "truth/series.csv") if each["accession"] == row["accession"]]
    assert row["expected"] == TRAPS[trap].expected == series[0]["expected"]
    if TRAPS[trap].kind == "nifti":
        got, others = verdict(lambda: (read_nifti(trapped / series[0]["place"]), None)), []
    else:
        found = find_series(sorted((trapped / series[0]["place"]).parent.rglob("*.dcm")))
        verdicts = [(each, verdict(lambda each=each: read_series(each))) for each in found]
        mine = [v for each, v in verdicts if each.slices[0].series_uid == row["series_instance_uid"]]
        got = max(mine, key=lambda v: v == row["expected"])
        others = [v for _, v in verdicts]
        assert others.count("ok") == int(row["records"])
    assert got == row["expected"]
    if trap == "localizer":
        assert sorted(others) == ["ok", "rejected:localizer"]
    if trap == "mixed_orientation":
        assert sorted(others) == ["ok", "rejected:mixed_orientation"]


def verdict(read):
    try:
        _, geometry = read()
    except MedvlError as error:
        return getattr(error, "verdict", "") or f"failure:{type(error).__name__}"
    return "ok" if geometry is None else geometry.verdict


def test_traps_without_harm_read_back_as_they_were_drawn(trapped):
    rows = {row["trap"]: row for row in table(trapped, "truth/series.csv")}
    for trap in (
        "feet_first",
        "sagittal",
        "reversed_numbers",
        "random_names",
        "duplicate_instance",
        "dose_report",
    ):
        row = rows[trap]
        voxels, affine = canonical(volume_of(trapped, row))
        drawn = np.array([float(value) for value in row["affine_ras"].split()]).reshape(4, 4)
        np.testing.assert_allclose(affine, drawn, atol=1e-2)
        if row["stored"] != "padded":
            assert hashlib.sha256(voxels.astype("<i2").tobytes()).hexdigest() == row["hu_sha256"], trap
    raw = read_nifti(trapped / rows["nifti_no_intercept"]["place"]).array
    assert raw.min() >= 0  # air at 24 and not at −1000
    assert np.asarray(raw - 1024).min() >= -1024
    oblique = volume_of(trapped, rows["oblique"]).affine_ras[:3, :3]
    steps = np.sort(np.abs(oblique), axis=0)
    # 9 degrees: sin(9°) of a step lies along another axis
    assert (steps[1] / np.linalg.norm(oblique, axis=0)).max() == pytest.approx(
        np.sin(np.radians(9)), abs=0.003
    )


def test_normal_reports_repeat_as_the_level_says(made, tmp_path):
    folder, summary = made
    texts = [" ".join(row["report"].split()).casefold() for row in table(folder, "reports.csv")]
    assert summary.duplicates == pytest.approx(1 - len(set(texts)) / len(texts), abs=1e-4)
    # the report of a study is written before anything is drawn
    phantoms = CtPhantoms(400, 5, LEVELS["middle"], 32, 0.3, 0.0)
    studies = [_Study(phantoms, tmp_path, "P0", BODY, PERSON, number) for number in range(400)]
    reports = [(bool(study.findings), study._report().text) for study in studies]
    normal = Counter(text for ill, text in reports if not ill)
    assert len({text for ill, text in reports if ill}) == sum(ill for ill, _ in reports)
    # binomial(400, 0.3) are normal; of these 0.7 repeat one of 12 texts for each of contrast and dial
    assert normal.total() == pytest.approx(120, abs=37)
    repeated = sum(count for count in normal.values() if count > 1)
    assert repeated / normal.total() == pytest.approx(0.7, abs=0.2)


def test_every_trap_comes_once_before_any_comes_twice(tmp_path):
    write_ct_phantoms(tmp_path / "set", n=4, seed=1, size_px=32, traps=0.5, workers=1)
    rows = table(tmp_path / "set", "truth/traps.csv")
    assert sorted(row["trap"] for row in rows) == sorted(list(TRAPS)[:2])
