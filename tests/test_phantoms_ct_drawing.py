"""What a CT phantom draws and says: shapes by closed forms, organs in place, findings where they belong."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest

from medvl.anatomy import FINDING_PARTS, PARTS, sentence_parts
from medvl.errors import UsageError
from medvl.phantoms import write_ct_phantoms
from medvl.phantoms.ct_canvas import Canvas, Lattice
from medvl.phantoms.ct_lesions import draw_ct
from medvl.phantoms.ct_series import frames_of
from medvl.phantoms.ct_truth import CT_FINDINGS, STRUCTURES, CtFinding, draw_ct_body, draw_ct_findings
from medvl.phantoms.ct_volumes import draw_volumes, part_numbers
from medvl.phantoms.ct_wording import state_finding, write_ct_report
from medvl.phantoms.ct_words import ORGANS
from medvl.phantoms.truth import LEVELS
from medvl.preprocess.reports import parse_report
from medvl.preprocess.reports.findings import findings_of, said
from medvl.records import IS_PRESENT
from medvl.specs.volumes import VolumeGrid

EASY = LEVELS["easy"]
UPRIGHT = replace(draw_ct_body(np.random.default_rng(1), female=0), turn=0.0, lean=0.0, shift=(0.0, 0.0, 0.0))


def grid(spacing=7.0, shape=(54, 54, 44)):
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = [-spacing * (shape[0] - 1) / 2, -spacing * (shape[1] - 1) / 2 - 12, -196]
    return VolumeGrid(shape, affine)


def drawn(findings=(), *, contrast=0, level=EASY, seed=0, **values):
    rng = np.random.default_rng(seed)
    return draw_ct(UPRIGHT, findings, grid(**values), level=level, rng=rng, contrast=contrast)


def find(kind, *, seed=0):
    """Draw a finding of a kind: the first that the generator gives."""
    return draw_ct_findings(np.random.default_rng(seed), level=EASY, only=(kind,))[0]


@pytest.fixture(scope="module")
def healthy():
    return drawn()


def test_an_ellipsoid_and_a_tube_have_the_volume_of_their_formulas():
    canvas = Canvas(grid(spacing=2.0, shape=(60, 60, 60)), UPRIGHT)
    centre = (0.0, -12.0, -137.0)
    _, part = canvas.ellipsoid(centre, (30, 22, 26))
    # 4/3·π·abc; the soft edge is symmetric, so that the sum of coverages is the volume
    assert part.sum() * 8 == pytest.approx(4 / 3 * np.pi * 30 * 22 * 26, rel=0.02)
    _, slanted = canvas.ellipsoid(centre, (20, 20, 20), slant=(0.4, 0.0))
    assert slanted.sum() * 8 == pytest.approx(4 / 3 * np.pi * 20**3, rel=0.02)  # a shear keeps volumes
    ((_, capsule),) = canvas.tube(((0, -12, -160), (0, -12, -110)), 10.0)
    # a cylinder of 50 mm and two half balls
    assert capsule.sum() * 8 == pytest.approx(np.pi * 100 * 50 + 4 / 3 * np.pi * 1000, rel=0.03)


def test_lattice_noise_is_one_field_however_it_is_asked():
    lattice = Lattice([5], cell_mm=13.0)
    x, y, z = (np.linspace(-90, 80 + axis, 7 + axis, dtype=np.float32) for axis in range(3))
    thin = [x[:, None, None], y[None, :, None], z[None, None]]
    straight = lattice.at(*thin)
    whole = lattice.at(*(np.ascontiguousarray(np.broadcast_to(each, (7, 8, 9))) for each in thin))
    np.testing.assert_allclose(straight, whole, atol=1e-5)
    turned = lattice.at(x[None, None], y[None, :, None], z[:, None, None])
    np.testing.assert_allclose(turned, whole.transpose(2, 1, 0), atol=1e-5)
    # at its own points the field is what was drawn
    at = np.full((1, 1, 1), -260 + 13.0 * 4, np.float32)
    assert lattice.at(at, at, at).item() == pytest.approx(lattice.values[4, 4, 4], abs=1e-5)


def test_organs_lie_where_anatomy_puts_them(healthy):
    affine = healthy.grid.affine_ras

    def centre(name):
        return np.argwhere(healthy.structures == STRUCTURES[name]).mean(0) @ affine[:3, :3].T + affine[:3, 3]

    for name in STRUCTURES:
        if name != "device":
            assert (healthy.structures == STRUCTURES[name]).any(), name
    # x grows to the patient's right, y to the front, z to the top
    for one, other in (("lung_upper_lobe_right", "lung_upper_lobe_left"), ("kidney_right", "kidney_left"),
                       ("liver", "spleen"), ("rib_right", "rib_left"), ("scapula_right", "scapula_left"),
                       ("superior_vena_cava", "aorta")):  # fmt: skip
        assert centre(one)[0] > centre(other)[0] + 15
    assert centre("heart")[0] < -5
    for front, back in (("sternum", "heart"), ("heart", "esophagus"), ("trachea", "vertebrae"),
                        ("lung_middle_lobe_right", "lung_lower_lobe_right")):  # fmt: skip
        assert centre(front)[1] > centre(back)[1]
    for top, bottom in (("trachea", "heart"), ("heart", "liver"), ("liver", "kidney_right"),
                        ("lung_upper_lobe_left", "lung_lower_lobe_left")):  # fmt: skip
        assert centre(top)[2] > centre(bottom)[2]


def test_tissues_have_the_hu_of_tissues_and_contrast_lights_the_blood(healthy):
    def mean(volume, *names):
        return volume.hu[np.isin(volume.structures, [STRUCTURES[name] for name in names])].mean()

    enhanced = drawn(contrast=1)
    assert -900 < mean(healthy, "lung_upper_lobe_left", "lung_upper_lobe_right") < -780
    assert 35 < mean(healthy, "heart") < 60 and 45 < mean(healthy, "liver") < 70
    assert mean(healthy, "rib_left") > 180 and mean(healthy, "vertebrae") > 200
    assert mean(healthy, "trachea") < -750 and healthy.hu.min() >= -1024
    assert mean(enhanced, "aorta") > mean(healthy, "aorta") + 120
    assert mean(enhanced, "kidney_left") > mean(healthy, "kidney_left") + 80
    assert abs(mean(enhanced, "vertebrae") - mean(healthy, "vertebrae")) < 12
    corner = healthy.hu[:4, -4:, :]
    assert corner.mean() == pytest.approx(-1000, abs=15)


@pytest.mark.parametrize("kind", CT_FINDINGS)
def test_a_finding_changes_its_place_and_nothing_else(kind, healthy):
    finding = find(kind)
    with_it = drawn((finding,))
    (placed,) = with_it.findings
    assert placed.voxels > 0 and len(placed.boxes) == (2 if placed.side == "bilateral" else 1)
    # the noise is the same, so what differs was drawn; a cyst is 29 HU below its kidney
    changed = np.argwhere(np.abs(with_it.hu.astype(int) - healthy.hu) > 15)
    affine = with_it.grid.affine_ras
    places = changed @ affine[:3, :3].T + affine[:3, 3]
    # partial volume, the smoothing kernel and a collapsed lung's edge reach two voxels beyond
    rim = 15.0
    inside = np.zeros(len(places), bool)
    for box in placed.boxes:
        low, high = np.array([box.x0, box.y0, box.z0]), np.array([box.x1, box.y1, box.z1])
        inside |= ((places >= low - rim) & (places <= high + rim)).all(1)
    assert inside.mean() > 0.97
    assert len(changed) >= min(placed.voxels, 3) // 2
    if placed.side in ("left", "right") and kind != "medical_material":
        middle = (placed.boxes[0].x0 + placed.boxes[0].x1) / 2
        assert (middle > 0) == (placed.side == "right")


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [("lung_nodule", -250, 80), ("pleural_effusion", -120, 30), ("pneumothorax", -1000, -900),
     ("kidney_stone", 200, 1300), ("sclerotic_bone_lesion", 500, 1300), ("liver_lesion", -30, 40),
     ("kidney_cyst", -20, 30), ("emphysema", -1000, -930)],
)  # fmt: skip
def test_findings_have_the_hu_of_their_kind(kind, low, high):
    (placed,) = drawn((find(kind, seed=3),)).findings
    assert low <= placed.hu <= high


def test_a_nodule_is_as_wide_as_its_millimetres():
    nodule = CtFinding("lung_nodule", "right", "right upper lobe", "large", 28)
    (placed,) = drawn((nodule,), spacing=3.5, shape=(108, 108, 88)).findings
    (box,) = placed.boxes
    # a voxel counts where half of it is covered: ± one voxel
    assert box.x1 - box.x0 == pytest.approx(28, abs=3.6)
    assert (box.z1 or 0) - (box.z0 or 0) == pytest.approx(28, abs=3.6)


def test_cardiomegaly_widens_the_heart(healthy):
    large = drawn((CtFinding("cardiomegaly", "none", "heart", "large", 3),))
    heart = STRUCTURES["heart"]
    width = [np.ptp(np.argwhere(volume.structures == heart)[:, 0]) for volume in (healthy, large)]
    assert width[1] >= 1.2 * width[0]


def test_a_harder_level_shows_less():
    nodule = CtFinding("lung_nodule", "right", "right upper lobe", "medium", 20)
    hu = [drawn((nodule,), level=LEVELS[name]).findings[0].hu for name in ("easy", "middle", "hard")]
    assert hu[0] >= hu[1] > hu[2]
    air = [drawn(level=LEVELS[name]).hu[:6, -6:].std() for name in ("easy", "middle", "hard")]
    assert air[0] < air[1] < air[2]


def test_slices_lie_where_dicom_says(healthy):
    # PS3.3 C.7.6.2.1.1: P = S + Δr·(column cosines)·row + Δc·(row cosines)·column, in LPS
    affine = healthy.grid.affine_ras
    for plane, axis in (("axial", 2), ("feet_first", 2), ("sagittal", 0), ("coronal", 1)):
        uids = [str(index) for index in range(healthy.hu.shape[axis])]
        frames = frames_of(healthy.hu, healthy.grid, plane=plane, uids=uids)
        frame = frames[7]
        row, column = 11, 17
        across, down = np.array(frame.orientation[:3]), np.array(frame.orientation[3:])
        lps = (
            np.array(frame.position)
            + down * frame.spacing_mm[0] * row
            + across * frame.spacing_mm[1] * column
        )
        voxel = np.linalg.solve(affine[:3, :3], lps * [-1, -1, 1] - affine[:3, 3])
        assert frame.hu[row, column] == healthy.hu[tuple(np.rint(voxel).astype(int))]
    assert frames_of(healthy.hu, healthy.grid, plane="axial", uids=["0"] * 44)[0].orientation == (
        1,
        0,
        0,
        0,
        1,
        0,
    )


# --- reports ---


@pytest.fixture(scope="module")
def reports():
    made = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        findings = draw_ct_findings(rng, level=LEVELS["middle"]) if rng.random() < 0.7 else ()
        made.append((findings, write_ct_report(rng, findings, unobservable=0.3)))
    return made


def test_every_finding_is_stated_and_nothing_else(reports):
    for findings, writing in reports:
        present = {finding.kind for finding in findings}
        stated = {
            kind for item in writing.statements if item.said.kind == "finding" for kind in item.said.labels
        }
        denied = {
            kind for item in writing.statements if item.said.kind == "negation" for kind in item.said.labels
        }
        assert stated == present and not denied & present
        assert all(item.said.text in writing.text for item in writing.statements)


def test_sentences_speak_of_their_organ_as_anatomy_reads_them(reports):
    items = {
        item.said.text: item.organ for _, writing in reports for item in writing.statements if item.organ
    }
    texts = list(items)
    numbers = sentence_parts(texts, modality="ct")
    names = ["", *PARTS["ct"]]
    assert {text: names[number] for text, number in zip(texts, numbers, strict=True)} == items
    assert {organ for kind, organ in FINDING_PARTS["ct"].items() if kind in CT_FINDINGS} <= set(ORGANS)
    for kind in CT_FINDINGS:
        assert kind in ORGANS[FINDING_PARTS["ct"][kind]]


def test_the_labeller_never_reads_the_opposite(reports):
    known, spoken = set(findings_of("ct")) & set(CT_FINDINGS), 0
    for findings, writing in reports:
        present = {finding.kind for finding in findings}
        for kind, state in said(parse_report(writing.text), vocabulary="ct").items():
            if kind in known:
                assert IS_PRESENT[state] == (kind in present), (kind, writing.text)
                spoken += 1
    assert spoken > 0.3 * len(known) * len(reports)


def test_findings_are_said_with_side_place_and_size():
    for seed in range(120):
        rng = np.random.default_rng(seed)
        for finding in draw_ct_findings(rng, level=EASY):
            text = state_finding(rng, finding).lower()
            other = {"left": "right", "right": "left"}.get(finding.side)
            if finding.side in ("left", "right") and finding.kind not in ("medical_material",):
                assert finding.side in text and other not in text, text
            if finding.kind in ("lung_nodule", "kidney_stone", "lymphadenopathy"):
                sizes = (str(finding.mm), f"{finding.mm / 10:.1f}")
                assert any(size in text for size in sizes) and finding.place in text


def test_length_tells_nothing_of_disease(reports):
    lengths = np.array([len(writing.text.split()) for _, writing in reports])
    ill = np.array([bool(findings) for findings, _ in reports])
    # area under the curve by all pairs; 300 reports, 210 ill: the standard error is 0.036
    pairs = (lengths[ill][:, None] > lengths[~ill]).mean() + 0.5 * (
        lengths[ill][:, None] == lengths[~ill]
    ).mean()
    assert pairs == pytest.approx(0.5, abs=0.11)


def test_about_half_of_what_is_said_of_organs_is_normal(reports):
    ill = [writing for findings, writing in reports if len(findings) >= 2]
    shares = []
    for writing in ill:
        items = [item for item in writing.statements if item.organ and item.said.section != "impression"]
        organs = {item.organ for item in items}
        shares.append(1 - len({item.organ for item in items if item.said.kind == "finding"}) / len(organs))
    assert 0.35 < np.mean(shares) < 0.65


def test_unobservable_sentences_follow_the_dial():
    def share(unobservable):
        lines = [
            write_ct_report(np.random.default_rng(seed), (), unobservable=unobservable) for seed in range(200)
        ]
        return np.mean([any(item.said.kind == "unobservable" for item in each.statements
                            if item.said.section in ("findings", "body")) for each in lines])  # fmt: skip

    assert share(0.0) == 0.0
    assert share(0.4) == pytest.approx(0.4, abs=0.14)  # binomial(200, 0.4): 4 standard errors


# --- in memory ---


def test_volumes_in_memory_hold_one_truth():
    volumes = draw_volumes(6, seed=[2], size_px=40, normal=0.2)
    again = draw_volumes(6, seed=[2], size_px=40, normal=0.2)
    np.testing.assert_array_equal(volumes.hu, again.hu)
    assert volumes.sentences == again.sentences and len(volumes) == 6
    assert volumes.hu.shape == (6, 40, 40, 32) and volumes.parts.max() <= len(PARTS["ct"])
    assert (part_numbers() > 0).sum() == len(STRUCTURES)
    for row, findings in enumerate(volumes.findings):
        present = {CT_FINDINGS[index] for index in np.flatnonzero(volumes.labels[row])}
        assert present == {finding.kind for finding in findings}
        boxes = iter(volumes.boxes[row])
        for number, finding in enumerate(findings, 1):
            mine = [next(boxes) for _ in finding.boxes]
            places = np.argwhere(volumes.lesions[row] == number) + 0.5
            held = [((places > [b.x0, b.y0, b.z0]) & (places < [b.x1, b.y1, b.z1])).all(1) for b in mine]
            assert np.any(held, 0).all()
        assert int(volumes.key[row]) == sum(2**index for index in np.flatnonzero(volumes.labels[row]))


def test_volumes_in_memory_may_have_chosen_findings_alone():
    volumes = draw_volumes(8, seed=[4], size_px=24, normal=0.0, only=("lung_nodule", "emphysema"))
    assert {finding.kind for findings in volumes.findings for finding in findings} == {
        "lung_nodule",
        "emphysema",
    }
    assert volumes.labels.sum(1).min() >= 1


def test_every_finding_shows_even_in_small_volumes():
    volumes = draw_volumes(30, seed=[6], size_px=32, normal=0.0, level="hard")
    for findings in volumes.findings:
        for finding in findings:
            assert finding.voxels > 0, finding


def test_volumes_in_memory_refuse_what_they_cannot_draw():
    with pytest.raises(UsageError, match="size_px is 8"):
        draw_volumes(1, seed=[0], size_px=8)
    with pytest.raises(UsageError, match="no phantom has the finding 'nodule'"):
        draw_volumes(1, seed=[0], only=("nodule",))
    with pytest.raises(UsageError, match="Did you mean 'hard'"):
        draw_volumes(1, seed=[0], level="hardd")


def test_no_shortcut_tells_the_truth(tmp_path):
    # a probe needs ten normal studies, and of fifty some fifteen are
    summary = write_ct_phantoms(tmp_path / "set", n=50, seed=3, size_px=32, traps=0.0, workers=1)
    assert {probe.shortcut for probe in summary.probes} == {"report_length", "mean_intensity", "acquisition"}
    assert "any" in {probe.target for probe in summary.probes}
    for probe in summary.probes:
        # chance is ½ ± noise; one in 700 is beyond three standard errors, and some ten are asked
        assert probe.auroc <= 0.5 + 3 * probe.standard_error, probe


def test_a_set_may_be_asked_for_some_findings_only(tmp_path):
    few = ["pleural_effusion", "liver_lesion"]
    summary = write_ct_phantoms(tmp_path / "few", n=12, seed=3, size_px=32, workers=1, findings=few, traps=0)
    assert summary.findings == few == list(summary.prevalence)
    with (tmp_path / "few" / "truth" / "truth.csv").open(newline="") as file:
        assert {row["label"] for row in csv.DictReader(file)} == set(few)
    with (tmp_path / "few" / "labels.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["accession", *few]
    with pytest.raises(UsageError, match=r"no phantom has the finding 'liver'"):
        write_ct_phantoms(tmp_path / "x", n=2, seed=3, findings=["liver"])
