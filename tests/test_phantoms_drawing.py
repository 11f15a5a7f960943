"""Phantom pictures: every encoding displays the same anatomy, findings lie where their boxes say."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from medvl.phantoms.chest import Frame
from medvl.phantoms.lesions import draw_chest
from medvl.phantoms.radiograph import Encoding, Person, Shot, to_dataset, uid, write_dicom
from medvl.phantoms.study import expose
from medvl.phantoms.truth import FINDINGS, LEVELS, Finding, draw_body, draw_findings

PERSON = Person("NOBODY^NINA", "MRN1", "19500101", "F", "1 OAK STREET")
SHOT = Shot(
    "2.25.1", "2.25.2", "2.25.3", "A000001", "20200101", "101500", 0, "PA", 1.4, "Aster", 120, "WHO^DR"
)


@pytest.fixture(scope="module")
def levels():
    body = draw_body(np.random.default_rng(0), female=1)
    plane, _ = draw_chest(body, (), Frame(96, 80, 3.75), view="PA", contrast=1.0, clutter=1.0)
    return expose(plane, np.random.default_rng(1), noise=0.03, clutter=1.0)


def displayed(path):
    """The standard's chain by pydicom alone (PS3.4 N.2): modality LUT, VOI, polarity; 0…1."""
    ds = pydicom.dcmread(path)
    modality = apply_modality_lut(ds.pixel_array, ds)
    if "VOILUTSequence" in ds:
        modality = np.rint(modality).astype(np.int64)  # a table is indexed by integers
        white = 2 ** ds.VOILUTSequence[0].LUTDescriptor[2] - 1
        shown = apply_voi_lut(modality, ds, index=0) / white
    elif "WindowWidth" in ds:
        # pydicom scales a window to the full range of the modality values: slope·(2^bits − 1), from intercept
        slope, intercept = float(ds.get("RescaleSlope", 1)), float(ds.get("RescaleIntercept", 0))
        shown = (apply_voi_lut(modality, ds, index=0) - intercept) / (slope * (2**ds.BitsStored - 1))
    else:
        slope, intercept = float(ds.get("RescaleSlope", 1)), float(ds.get("RescaleIntercept", 0))
        shown = (modality - intercept) / (slope * (2**ds.BitsStored - 1))
    return 1 - shown if ds.PhotometricInterpretation == "MONOCHROME1" else shown


ENCODINGS = [
    Encoding(photometric=polarity, bits_stored=bits, voi=voi, slope=slope, intercept=intercept)
    for polarity, bits, voi, (slope, intercept) in itertools.product(
        ("MONOCHROME1", "MONOCHROME2"),
        (12, 16),
        ("window", "windows", "exact", "sigmoid", "lut", "none"),
        ((None, None), (0.684, 200.0), (2.0, 0.0), (1.0, -1024.0)),
    )
    if voi != "lut" or (bits == 12 and slope in (None, 2.0))
]


@pytest.mark.parametrize(
    "encoding", ENCODINGS, ids=lambda item: "-".join(map(str, dataclasses.astuple(item)[1:6]))
)
def test_every_encoding_displays_the_drawn_levels(encoding, levels, tmp_path):
    dataset, stored = to_dataset(levels, encoding, PERSON, SHOT)
    write_dicom(dataset, tmp_path / "a.dcm", encoding=encoding)
    # the sigmoid cannot reach black and white: 1/(1 + e^5) = 0.0067 is left; rounding adds 1/3000
    tolerance = 0.0072 if encoding.voi == "sigmoid" else 0.001
    np.testing.assert_allclose(displayed(tmp_path / "a.dcm"), levels / 4095, atol=tolerance)
    assert stored.max() < 2**encoding.bits_stored


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("sop_class", ["DX", "CR"])
@pytest.mark.parametrize("syntax", ["explicit", "implicit", "rle", "jpegls", "jpeg2000"])
def test_every_syntax_is_lossless(syntax, sop_class, bits, levels, tmp_path):
    encoding = Encoding(syntax=syntax, sop_class=sop_class, bits_stored=bits)
    dataset, stored = to_dataset(levels, encoding, PERSON, SHOT)
    write_dicom(dataset, tmp_path / "a.dcm", encoding=encoding)
    read = pydicom.dcmread(tmp_path / "a.dcm")
    np.testing.assert_array_equal(read.pixel_array, stored)
    assert read.SOPInstanceUID == SHOT.sop_uid == read.file_meta.MediaStorageSOPInstanceUID
    assert read.file_meta.TransferSyntaxUID.is_compressed == (syntax in ("rle", "jpegls", "jpeg2000"))
    assert read.Modality == sop_class


def test_spacing_attributes(levels):
    spacing = {}
    for kind in ("pixel", "imager", "both", "none"):
        dataset, _ = to_dataset(levels, Encoding(spacing=kind), PERSON, SHOT)
        spacing[kind] = [float(dataset.get(name, [0])[0]) for name in ("PixelSpacing", "ImagerPixelSpacing")]
    # the detector lies behind the patient: magnified by 1.1
    assert spacing == {"pixel": [1.4, 0], "imager": [0, 1.54], "both": [1.4, 1.54], "none": [0, 0]}


def test_uid_follows_the_standard():
    made = uid(3, "study", 1)
    assert made.startswith("2.25.")
    assert len(made) <= 64  # PS3.5 section 9
    assert pydicom.uid.UID(made).is_valid
    assert made != uid(3, "study", 2)


def sample_findings():
    for kind in FINDINGS:
        for side in ("left", "right", "bilateral", "none"):
            fits = {"cardiomegaly": "none", "interstitial_edema": "bilateral"}.get(kind, side)
            if side != fits or (side == "none" and kind != "cardiomegaly"):
                continue
            if side == "bilateral" and kind in ("nodule", "pneumothorax"):
                continue
            zones = {"nodule": ("upper", "middle", "lower"), "consolidation": ("upper", "middle", "lower")}
            zone_of = {"pleural_effusion": "lower", "pneumothorax": "upper"}
            for zone in zones.get(kind, (zone_of.get(kind, "none"),)):
                yield Finding(kind, side, zone, "medium", "moderate", (0.3, -0.5, 0.2), 11)


@pytest.mark.parametrize("shape", [(256, 256), (256, 213), (218, 256), (64, 64)], ids=str)
@pytest.mark.parametrize("view", ["PA", "LL"])
def test_a_finding_changes_its_box_and_nothing_else(view, shape):
    body = draw_body(np.random.default_rng(5), female=0)
    frame = Frame(*shape, 360 / min(shape), (4.0, -3.0))
    without, _ = draw_chest(body, (), frame, view=view, contrast=1.0, clutter=1.0)
    seen = 0
    for finding in sample_findings():
        plane, (drawn,) = draw_chest(body, (finding,), frame, view=view, contrast=1.0, clutter=1.0)
        change = np.abs(plane - without)
        inside = np.zeros(shape, bool)
        for box in drawn.boxes:
            assert 0 <= box.x0 < box.x1 <= shape[1] and 0 <= box.y0 < box.y1 <= shape[0]
            assert change[int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)].max() > 0.03
            inside[int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)] = True
        if not drawn.boxes:
            assert view == "LL" and finding.kind == "pneumothorax"
            assert change.max() == 0
            continue
        seen += 1
        assert change[inside].sum() > 0.85 * change.sum(), finding
        assert change[~inside].max() <= 0.6 * change[inside].max(), finding
    assert seen >= 11


def test_laterality_follows_the_convention_of_films():
    body = draw_body(np.random.default_rng(2), female=1)
    frame = Frame(256, 213, 1.7, (8.0, 0.0))
    middle_px, _ = frame.pixel(0, 0)
    checked = 0
    for finding in sample_findings():
        _, (drawn,) = draw_chest(body, (finding,), frame, view="PA", contrast=1.0, clutter=1.0)
        centres = [(box.x0 + box.x1) / 2 for box in drawn.boxes]
        if finding.side == "left":
            assert centres[0] > middle_px  # the patient's left is the image's right
        elif finding.side == "right":
            assert centres[0] < middle_px
        elif finding.side == "bilateral":
            assert centres[0] < middle_px < centres[1]
        checked += 1
    # nodules 2 sides × 3 zones, consolidations 3 × 3, effusions 3, pneumothoraces 2, heart 1, edema 1
    assert checked == 6 + 9 + 3 + 2 + 1 + 1


def test_zones_go_down_and_sizes_grow():
    body = draw_body(np.random.default_rng(2), female=1)
    frame = Frame(256, 256, 1.4)

    def box(**changes):
        finding = dataclasses.replace(
            Finding("consolidation", "left", "middle", "small", "severe"), **changes
        )
        _, (drawn,) = draw_chest(body, (finding,), frame, view="PA", contrast=1.0, clutter=1.0)
        return drawn.boxes[0]

    tops = [box(zone=zone).y0 for zone in ("upper", "middle", "lower")]
    assert tops == sorted(tops) and len(set(tops)) == 3
    for kind, zone in (("nodule", "middle"), ("consolidation", "middle"), ("pleural_effusion", "lower")):
        boxes = [box(kind=kind, zone=zone, size=size) for size in ("small", "medium", "large")]
        areas = [(item.x1 - item.x0) * (item.y1 - item.y0) for item in boxes]
        assert areas == sorted(areas) and areas[2] > 1.4 * areas[0]


def test_a_nodule_measures_what_its_report_says():
    body = draw_body(np.random.default_rng(2), female=1)
    for size in ("small", "medium", "large"):
        finding = Finding("nodule", "right", "middle", size, "severe")
        _, (drawn,) = draw_chest(body, (finding,), Frame(512, 512, 0.7), view="PA", contrast=1.0, clutter=1.0)
        box = drawn.boxes[0]
        # the box holds the pixels above a quarter of the peak, 2.2·(1 − r²) > 0.25, r < 0.94
        assert (box.x1 - box.x0) * 0.7 == pytest.approx(0.94 * finding.diameter_mm, abs=1.5)


def test_cardiomegaly_widens_the_heart_by_severity():
    body = draw_body(np.random.default_rng(2), female=1)
    widths = []
    for severity in ("mild", "moderate", "severe"):
        finding = Finding("cardiomegaly", "none", "none", "small", severity)
        _, (drawn,) = draw_chest(body, (finding,), Frame(256, 256, 1.4), view="PA", contrast=1.0, clutter=1.0)
        widths.append(drawn.boxes[0].x1 - drawn.boxes[0].x0)
    assert widths == sorted(widths) and widths[2] > 1.1 * widths[0]


def test_exposure_hides_the_amount_of_disease():
    """Two pictures that differ by a constant and a patch are exposed to the same mean grey."""
    plane = np.full((128, 128), 0.4, np.float32)
    brighter = plane + 0.2
    means = [
        expose(item, np.random.default_rng(3), noise=0.01, clutter=0.0).mean() for item in (plane, brighter)
    ]
    assert means[0] == pytest.approx(means[1], abs=1.0)


def test_a_study_has_no_more_findings_than_are_allowed():
    for seed in range(40):  # one study in eight or so would have three
        (found,) = draw_findings(np.random.default_rng(seed), level=LEVELS["middle"], only=("nodule",))
        assert found.kind == "nodule"


def test_findings_of_one_study_do_not_hide_each_other():
    for seed in range(300):
        found = draw_findings(np.random.default_rng(seed), level=LEVELS["middle"])
        assert 1 <= len(found) <= 3
        assert len({item.kind for item in found}) == len(found)
        places = [
            (side, item.zone)
            for item in found
            if item.kind not in ("cardiomegaly", "interstitial_edema")
            for side in item.sides
        ]
        assert len(set(places)) == len(places)
