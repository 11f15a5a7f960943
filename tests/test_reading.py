"""Real files read as the standard says: golden values, colours, geometry, and a sweep over all fixtures."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.sr._snomed_dict import mapping as snomed_retired

from medvl.errors import MedvlError, MultiFrame
from medvl.images import Photometric, Unit, Window
from medvl.preprocess.decoders import DECODERS, plugins
from medvl.preprocess.dicom import VIEW_CODES, read_dicom, read_header
from medvl.preprocess.limits import DEFAULT_LIMITS, Limits
from medvl.preprocess.reading import kind_of, read_image
from medvl.specs import PixelSpec

PYDICOM = Path(pydicom.__file__).parent / "data"
FIXTURES = sorted(p for p in PYDICOM.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc"))
NICOM = Path(nibabel.__file__).parent / "nicom" / "tests" / "data"


def golden(name: str) -> Path:
    found = [p for p in FIXTURES if p.as_posix().endswith("/" + name)]
    assert len(found) == 1, (name, found)
    return found[0]


def quiet(path: Path) -> pydicom.Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(path, force=True)


# --- golden facts (STYLE.md): each number comes from the header's formula by hand ---


def test_ct_small_in_hounsfield_units_with_its_place():
    image = read_image(golden("test_files/CT_small.dcm"))
    assert (image.unit, image.array.dtype, image.array.shape) == (Unit.HU, np.int16, (1, 128, 128))
    assert image.array[0, 64, 64] == 1928 - 1024 and image.array[0, 0, 0] == 175 - 1024
    assert (image.array.min(), image.array.max()) == (-896, 1167)
    assert image.spacing_mm == (0.661468, 0.661468) and image.spacing_frame == "patient"
    # RAS = LPS with x and y negated; the first voxel's centre is ImagePositionPatient
    np.testing.assert_allclose(image.affine_ras[:3, 3], [158.135803, 179.035797, -75.699997])
    # rows run down the patient's back (+y in LPS), columns to the left (+x in LPS)
    np.testing.assert_allclose(image.affine_ras[:3, :2], [[0, -0.661468], [-0.661468, 0], [0, 0]])
    assert image.windows == ()


@pytest.mark.parametrize(
    "number, z, hu", [("17136", 103.019997, 905), ("17166", 104.269997, 1304), ("17196", 105.519997, 622)]
)
def test_ct2_value_at_a_world_point(number, z, hu):
    image = read_image(golden(f"77654033/CT2/{number}"))
    ras = np.array([125.0, 128.100006, z, 1.0])
    row, column, depth, _ = np.linalg.solve(image.affine_ras, ras)
    assert abs(depth) < 1e-4
    assert image.array[0, round(row), round(column)] == hu


def test_monochrome1_film_keeps_its_values_and_is_shown_the_right_way_round():
    path = golden("77654033/CR1/6154")
    image = read_image(path)
    assert image.photometric is Photometric.MONOCHROME1 and image.unit is Unit.MODALITY_LUT
    # slope 0.684, intercept 200: 1994 → 1563.896, 2515 → 1920.26
    assert image.array[0, 0, 0] == pytest.approx(1563.896, abs=1e-3)
    assert image.array[0, 8, 8] == pytest.approx(1920.26, abs=1e-3)
    assert image.array.dtype == np.float32
    assert image.windows[0] == Window(1600.0, 2800.0)
    assert image.spacing_mm == (0.1, 0.1) and image.spacing_frame == "detector"
    shown = PixelSpec(longest_px=8192).apply(image)
    assert shown[8, 8] < shown[0, 0]


def test_decimal_rescale_of_nibabel_is_integral():
    image = read_image(NICOM / "decimal_rescale.dcm", lenient=True)  # it lost its SOP UIDs
    dataset = pydicom.dcmread(NICOM / "decimal_rescale.dcm")
    assert (float(dataset.RescaleSlope), float(dataset.RescaleIntercept)) == (2.0, -4096.0)
    assert image.array.dtype.kind == "i"
    np.testing.assert_array_equal(image.array[0], dataset.pixel_array.astype(np.int64) * 2 - 4096)


def test_j2k_with_the_wrong_sign_flag():
    image = read_image(golden("J2K_pixelrep_mismatch.dcm"))
    assert (image.array.min(), image.array.max()) == (-2000, 1896)
    assert [window.width for window in image.windows] == [100, 100, 200]


def test_padding_is_known_in_modality_values():
    image = read_image(golden("693_J2KI.dcm"))
    dataset = pydicom.dcmread(golden("693_J2KI.dcm"), stop_before_pixels=True)
    expected = dataset.PixelPaddingValue * dataset.RescaleSlope + dataset.RescaleIntercept
    assert image.padding == (expected, expected)
    assert any("padding" in note for note in image.notes)


# --- colour (PREPROCESS §1.4, trap 9) ---


@pytest.mark.parametrize(
    "name, place, rgb",
    [
        ("SC_rgb_dcmtk_+eb+cy+np.dcm", (5, 5), (253, 1, 0)),
        ("SC_rgb_rle.dcm", (5, 5), (255, 0, 0)),
        ("SC_ybr_full_422_uncompressed.dcm", (5, 5), (254, 0, 0)),
    ],
)
def test_colour_becomes_rgb(name, place, rgb):
    image = read_image(golden(name))
    assert image.unit is Unit.RGB8 and image.photometric is Photometric.RGB
    assert image.array.shape[0] == 3 and image.array.dtype == np.uint8
    assert tuple(int(v) for v in image.array[:, *place]) == rgb


def colour_fixtures() -> list[Path]:
    """Single-frame colour fixtures that pydicom itself decodes."""
    found = []
    for path in FIXTURES:
        dataset = quiet(path)
        if (
            "PixelData" in dataset
            and dataset.get("SamplesPerPixel") == 3
            and dataset.get("NumberOfFrames", 1) == 1
        ):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found += [path] if dataset.pixel_array.ndim == 3 else []
            except (AttributeError, ValueError, RuntimeError, TypeError, NotImplementedError):
                continue
    return found


COLOUR = colour_fixtures()


@pytest.mark.parametrize("path", COLOUR, ids=lambda p: p.name)
def test_colour_is_that_of_pydicom(path):
    dataset = quiet(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = dataset.pixel_array >> (dataset.BitsStored - 8)
    got = read_image(path, lenient=True).array
    assert got.dtype == np.uint8
    # two inverse cosine transforms may differ by 1 a channel, and by twice that after YBR → RGB
    assert np.abs(np.moveaxis(got, 0, -1).astype(int) - expected).max() <= 3


def test_palette_is_looked_up():
    path = golden("examples_palette.dcm")
    image = read_image(path)
    dataset = pydicom.dcmread(path)
    stored = dataset.pixel_array
    red, green, blue = (
        np.frombuffer(dataset[f"{name}PaletteColorLookupTableData"].value, "<u2")
        for name in ("Red", "Green", "Blue")
    )
    first = dataset.RedPaletteColorLookupTableDescriptor[1]
    for channel, table in enumerate((red, green, blue)):
        index = np.clip(stored.astype(int) - first, 0, len(table) - 1)
        np.testing.assert_array_equal(image.array[channel], table[index] >> 8)


# --- frames ---


def test_many_frames_need_a_choice():
    path = golden("examples_ybr_color.dcm")
    with pytest.raises(MultiFrame, match=r"30 frames\. Choose one with frame=0 … 29"):
        read_image(path)
    with pytest.raises(MultiFrame, match="frame 30 was asked for; the file holds frames 0 … 29"):
        read_image(path, frame=30)
    assert read_image(path, frame=29).array.shape == (3, 240, 320)


@pytest.mark.parametrize("name", ["rtdose.dcm", "rtdose_rle.dcm", "rtdose_expb.dcm"])
def test_a_frame_is_the_frame_that_pydicom_decodes(name):
    path = golden(name)
    pixels = pydicom.dcmread(path).pixel_array
    last = len(pixels) - 1
    np.testing.assert_array_equal(read_image(path, frame=last).array[0], pixels[last])


def test_frame_macros_of_an_enhanced_object(tmp_path):
    source = NICOM / "philips_mprage.dcm.gz"
    path = tmp_path / "enhanced.dcm"
    path.write_bytes(gzip.decompress(source.read_bytes()))
    dataset = pydicom.dcmread(path)
    image = read_image(path, frame=175)
    own = dataset.PerFrameFunctionalGroupsSequence[175]
    expected = tuple(own.PixelMeasuresSequence[0].PixelSpacing)
    assert image.spacing_mm == expected
    position = np.array(own.PlanePositionSequence[0].ImagePositionPatient, float)
    np.testing.assert_allclose(image.affine_ras[:3, 3], position * [-1, -1, 1])


# --- the whole corpus ---


@pytest.mark.parametrize("lenient", [False, True])
def test_every_fixture_reads_or_gives_a_typed_error(lenient):
    read, refused = 0, 0
    for path in FIXTURES:
        try:
            image = read_image(path, lenient=lenient)
            read += 1
            assert image.array.ndim == 3 and image.array.size > 0
            PixelSpec(longest_px=64).apply(image)
        except MedvlError as error:
            refused += 1
            assert path.name not in str(error)
        try:
            read_header(path, lenient=lenient)
        except MedvlError:
            pass
    assert read >= (85 if lenient else 80) and refused > 0


def test_every_dicom_of_nibabel_reads_or_gives_a_typed_error(tmp_path):
    outcome = {}
    for path in sorted(NICOM.glob("*.dcm*")):
        if path.suffix == ".gz":
            path = tmp_path / path.stem
            path.write_bytes(gzip.decompress((NICOM / f"{path.name}.gz").read_bytes()))
        try:
            outcome[path.name] = read_image(path).array.shape
        except MedvlError as error:
            outcome[path.name] = error.rule
    assert outcome["siemens_dwi_0.dcm"] == (1, 896, 896)
    assert outcome["philips_mprage.dcm"] == "MultiFrame"
    assert outcome["csa_slice_norm.dcm"] == "IncompleteDicom"


def grey_fixtures() -> list[Path]:
    """Single-frame grey fixtures that pydicom itself decodes."""
    found = []
    for path in FIXTURES:
        dataset = quiet(path)
        if (
            "PixelData" not in dataset
            or dataset.get("SamplesPerPixel") != 1
            or "SOPInstanceUID" not in dataset
        ):
            continue
        if dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if dataset.pixel_array.ndim == 2:
                    found.append(path)
        except (AttributeError, ValueError, RuntimeError, TypeError, NotImplementedError):
            continue
    return found


GREY = grey_fixtures()


@pytest.mark.parametrize("path", GREY, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_modality_values_are_those_of_pydicom(path):
    dataset = quiet(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = apply_modality_lut(dataset.pixel_array, dataset)
    got = read_image(path)
    np.testing.assert_allclose(got.array[0], expected, rtol=1e-6)
    integral = all(float(dataset.get(k, 0)).is_integer() for k in ("RescaleSlope", "RescaleIntercept"))
    fits = expected.min() >= -(2**15) and expected.max() < 2**15
    wide = expected.min() < -(2**31) or expected.max() >= 2**31
    assert got.array.dtype == (np.float32 if wide or not integral else np.int16 if fits else np.int32)


def test_the_oracle_sees_many_files():
    assert len(GREY) >= 55 and len(COLOUR) >= 20


# --- header, view, laterality ---


def test_header_holds_what_pairing_needs():
    path = golden("77654033/CR1/6154")
    header, dataset = read_header(path), pydicom.dcmread(path)
    assert header.patient_id == dataset.PatientID and header.sop_uid == dataset.SOPInstanceUID
    assert header.study_uid == dataset.StudyInstanceUID and header.series_uid == dataset.SeriesInstanceUID
    assert (header.modality, header.rows, header.columns, header.frames) == (
        "CR",
        dataset.Rows,
        dataset.Columns,
        1,
    )
    assert header.transfer_syntax == dataset.file_meta.TransferSyntaxUID and header.has_pixels
    assert header.burned_in is None
    names = {field for field in type(header).__dataclass_fields__}
    assert not names & {"patient_name", "birth_date", "institution", "study_date"}


def test_header_of_an_object_without_pixels():
    header = read_header(golden("reportsi.dcm"))
    assert (header.modality, header.rows, header.has_pixels) == ("SR", 0, False)


@pytest.mark.parametrize(
    "position, code, expected",
    [
        ("PA", None, "PA"),
        ("ap ", None, "AP"),
        ("LL", None, "LATERAL"),
        ("RLD", None, "RLD"),
        (None, "272479007", "PA"),
        (None, "R-10206", "AP"),
        (None, "399198007", "LATERAL"),
        (None, "399110001", None),
        ("PA", "399348003", "PA"),
        (None, None, None),
    ],
)
def test_view_from_position_or_code(tmp_path, position, code, expected):
    dataset = pydicom.dcmread(golden("test_files/CT_small.dcm"))
    if position is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lower case is not allowed, and that is the test
            dataset.ViewPosition = position
    if code is not None:
        item = pydicom.Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code, "SCT", "x"
        dataset.ViewCodeSequence = [item]
    dataset.save_as(tmp_path / "a.dcm")
    assert read_header(tmp_path / "a.dcm").view == expected
    assert read_image(tmp_path / "a.dcm").view == expected


def test_retired_view_codes_are_those_of_pydicoms_table():
    table = snomed_retired["SCT"]
    for new in ("399348003", "272479007", "399067008", "399173006", "399198007"):
        assert VIEW_CODES[table[new]] == VIEW_CODES[new]


@pytest.mark.parametrize(
    "image, series, expected", [("R", "L", "R"), ("", "L", "L"), ("U", "", None), ("b", "", "B")]
)
def test_laterality_of_the_image_before_that_of_the_series(tmp_path, image, series, expected):
    dataset = pydicom.dcmread(golden("test_files/CT_small.dcm"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "b" is not a defined term, and that is the test
        dataset.ImageLaterality, dataset.Laterality = image, series
        dataset.save_as(tmp_path / "a.dcm")
    assert read_header(tmp_path / "a.dcm").laterality == expected


@pytest.mark.parametrize(
    "patient, detector, film, calibration, expected",
    [
        ([0.2, 0.3], None, None, None, ((0.2, 0.3), "patient")),
        ([0.1, 0.1], [0.1, 0.1], None, None, ((0.1, 0.1), "detector")),  # PS3.3 10.7.1: equal is uncorrected
        ([0.1, 0.1], [0.1, 0.1], None, "GEOMETRY", ((0.1, 0.1), "patient")),
        ([0.09, 0.09], [0.1, 0.1], None, None, ((0.09, 0.09), "patient")),
        (None, [0.14, 0.15], None, None, ((0.14, 0.15), "detector")),
        (None, None, [0.175, 0.175], None, ((0.175, 0.175), "detector")),
        (None, None, None, None, (None, None)),
    ],
)
def test_which_spacing_is_meant(tmp_path, patient, detector, film, calibration, expected):
    dataset = pydicom.dcmread(golden("test_files/CT_small.dcm"))
    del dataset.PixelSpacing
    for keyword, value in (
        ("PixelSpacing", patient),
        ("ImagerPixelSpacing", detector),
        ("NominalScannedPixelSpacing", film),
        ("PixelSpacingCalibrationType", calibration),
    ):
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.save_as(tmp_path / "a.dcm")
    image = read_image(tmp_path / "a.dcm")
    assert (image.spacing_mm, image.spacing_frame) == expected


# --- decoders ---


def test_every_default_syntax_has_a_decoder_installed():
    opt_in = {"1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203"}
    for syntax in DECODERS:
        if syntax not in opt_in:
            assert plugins(syntax), syntax
    assert plugins("1.2.840.10008.1.2.4.80")[0] == "pyjpegls"
    assert plugins("1.2.840.10008.1.2.4.50")[0] == "pillow"
    assert plugins("1.2.3") == ()


def test_deflated_reads_as_its_inflated_twin(tmp_path):
    path = golden("image_dfl.dcm")
    np.testing.assert_array_equal(read_image(path).array[0], pydicom.dcmread(path).pixel_array)
    dataset = pydicom.dcmread(golden("test_files/CT_small.dcm"))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "deflated.dcm")
    np.testing.assert_array_equal(
        read_image(tmp_path / "deflated.dcm").array, read_image(golden("test_files/CT_small.dcm")).array
    )


@pytest.mark.parametrize("signed, high_bit", [(0, 11), (1, 11), (0, 15), (1, 15), (0, 13)])
def test_unused_bits_mean_nothing(tmp_path, signed, high_bit):
    """PS3.5 8.1.1: what lies outside BitsStored is ignored; the sign is that of the highest stored bit."""
    rng = np.random.default_rng(0)
    value = rng.integers(-2048 if signed else 0, 2048 if signed else 4096, (16, 16))
    low_bits = high_bit - 11
    noise = rng.integers(0, 2**16, value.shape)
    mask = ((1 << 12) - 1) << low_bits
    stored = ((value & 0xFFF) << low_bits) | (noise & ~mask & 0xFFFF)
    dataset = pydicom.dcmread(golden("test_files/CT_small.dcm"))
    dataset.Rows = dataset.Columns = 16
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, high_bit, signed
    dataset.RescaleIntercept = 0
    dataset.PixelData = stored.astype("<u2").tobytes()
    dataset.save_as(tmp_path / "a.dcm")
    np.testing.assert_array_equal(read_image(tmp_path / "a.dcm").array[0], value)


def test_encapsulated_pixels_under_a_missing_transfer_syntax(tmp_path):
    dataset = pydicom.dcmread(golden("MR_small_jpeg_ls_lossless.dcm"))
    expected = read_image(golden("MR_small_jpeg_ls_lossless.dcm")).array
    path = tmp_path / "a.dcm"
    dataset.save_as(path)
    content = path.read_bytes().replace(b"1.2.840.10008.1.2.4.80", b"\0" * 22)
    path.write_bytes(content)
    image = read_image(path)
    np.testing.assert_array_equal(image.array, expected)
    assert any("TransferSyntaxUID missing" in note for note in image.notes)
    assert any("read as JPEG-LS" in note for note in image.notes)


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "rtdose.dcm"])
def test_missing_transfer_syntax_of_native_pixels(tmp_path, name):
    path = golden(f"test_files/{name}")
    dataset = pydicom.dcmread(path)
    syntax = str(dataset.file_meta.TransferSyntaxUID).encode()
    syntax += b"\0" * (len(syntax) % 2)
    content = path.read_bytes()
    assert content.count(b"UI" + len(syntax).to_bytes(2, "little") + syntax) == 1
    (tmp_path / "a.dcm").write_bytes(content.replace(syntax, b"\0" * len(syntax), 1))
    frame = 3 if name == "rtdose.dcm" else None
    got, expected = read_image(tmp_path / "a.dcm", frame=frame), read_image(path, frame=frame)
    np.testing.assert_array_equal(got.array, expected.array)
    assert got.notes[0].startswith("TransferSyntaxUID missing, taken as")


def test_lenient_reads_bare_data_sets():
    for name in ("ExplVR_LitEndNoMeta.dcm", "ExplVR_BigEndNoMeta.dcm"):
        path = golden(name)
        assert kind_of(path) in ("bare dicom", "unknown")
        assert read_header(path, lenient=True).notes


# --- overlays, presentation, polarity ---


def test_overlays_are_not_burned_in():
    path = golden("examples_overlay.dcm")
    dataset = pydicom.dcmread(path)
    assert np.count_nonzero(dataset.overlay_array(0x6000)) == 222
    np.testing.assert_array_equal(read_image(path).array[0], apply_modality_lut(dataset.pixel_array, dataset))


@pytest.mark.parametrize(
    "photometric, shape, noted",
    [
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", "INVERSE", False),
        ("MONOCHROME1", "IDENTITY", True),
        ("MONOCHROME2", "INVERSE", True),
    ],
)
def test_presentation_lut_shape_against_photometric(tmp_path, photometric, shape, noted):
    dataset = pydicom.dcmread(golden("test_files/CT_small.dcm"))
    dataset.PhotometricInterpretation, dataset.PresentationLUTShape = photometric, shape
    dataset.save_as(tmp_path / "a.dcm")
    image = read_image(tmp_path / "a.dcm")
    assert image.photometric.value == photometric
    assert any(f"{shape} contradicts {photometric}" in note for note in image.notes) == noted


def test_inverting_pixels_and_photometric_gives_one_picture(tmp_path):
    dataset = pydicom.dcmread(golden("test_files/MR_small.dcm"))
    stored = dataset.pixel_array.astype(np.int32)
    dataset.WindowCenter, dataset.WindowWidth = 800, 1001
    dataset.save_as(tmp_path / "two.dcm")
    # LINEAR: inverting x → K − x maps the centre c to K − c + 1, as (c − 0.5) is the middle of the ramp
    dataset.PhotometricInterpretation = "MONOCHROME1"
    dataset.PixelData = (4000 - stored).astype("<i2").tobytes()
    dataset.WindowCenter = 4000 - 800 + 1
    dataset.save_as(tmp_path / "one.dcm")
    spec = PixelSpec(longest_px=8192)
    one, two = (spec.apply(read_image(tmp_path / f"{n}.dcm")).astype(int) for n in ("one", "two"))
    assert np.abs(one - two).max() <= 1 and (one != two).mean() < 0.02  # a tie may round either way


# --- VOI against pydicom as the oracle ---


def display_oracle(dataset: pydicom.Dataset) -> np.ndarray:
    """Apply modality LUT, VOI and polarity with pydicom and NumPy; return display values 0…255."""
    values = apply_modality_lut(dataset.pixel_array, dataset)
    shown = apply_voi_lut(values, dataset, index=0).astype(np.float64)
    if "VOILUTSequence" in dataset:
        low, high = 0.0, 2.0 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    else:  # pydicom spreads a window over the output range of the modality LUT
        bits, signed = dataset.BitsStored, dataset.PixelRepresentation
        low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
        slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
        low, high = low * slope + intercept, high * slope + intercept
    display = (shown - low) / (high - low) * 255
    return 255 - display if dataset.PhotometricInterpretation == "MONOCHROME1" else display


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("name", ["77654033/CR1/6154", "test_files/CT_small.dcm", "test_files/MR_small.dcm"])
def test_windows_as_pydicom_applies_them(tmp_path, name, function):
    dataset = pydicom.dcmread(golden(name))
    if "WindowCenter" not in dataset:
        dataset.WindowCenter, dataset.WindowWidth = 40, 400
    dataset.VOILUTFunction = function
    dataset.save_as(tmp_path / "a.dcm")
    expected = display_oracle(dataset)
    got = PixelSpec(longest_px=8192).apply(read_image(tmp_path / "a.dcm"))
    assert np.abs(got - expected).max() <= 0.5 + 2e-3  # rounded to 8 bits


@pytest.mark.parametrize("first, signed", [(0, 0), (100, 0), (-300, 1)])
@pytest.mark.parametrize("implicit", [False, True])
def test_a_modality_lut_as_pydicom_applies_it(tmp_path, first, signed, implicit):
    dataset = pydicom.dcmread(golden("test_files/MR_small.dcm"))
    rng = np.random.default_rng(first & 7)
    stored = rng.integers(-500 if signed else 0, 1500, (64, 64)).astype("<i2")
    dataset.PixelData, dataset.PixelRepresentation = stored.tobytes(), signed
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "SS" if signed else "US", [700, first, 16])
    item.add_new("LUTData", "US", rng.integers(0, 2**16, 700).tolist())
    item.ModalityLUTType = "US"
    dataset.ModalityLUTSequence = [item]
    if implicit:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    dataset.save_as(tmp_path / "a.dcm")
    expected = apply_modality_lut(stored, dataset)
    np.testing.assert_array_equal(read_image(tmp_path / "a.dcm").array[0], expected)


@pytest.mark.parametrize("bits, dtype", [(8, "u1"), (12, "<u2"), (16, "<u2")])
def test_a_voi_lut_goes_before_the_window(tmp_path, bits, dtype):
    dataset = pydicom.dcmread(golden("test_files/MR_small.dcm"))
    rng = np.random.default_rng(bits)
    table = np.sort(rng.integers(0, 2**bits, 1000)).astype(dtype)
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "SS", [1000, 200, bits])
    item.add_new("LUTData", "OW", table.tobytes())
    dataset.VOILUTSequence = [item]
    dataset.WindowCenter, dataset.WindowWidth = 1, 1
    dataset.save_as(tmp_path / "a.dcm")
    got = PixelSpec(longest_px=8192).apply(read_image(tmp_path / "a.dcm"))
    index = np.clip(dataset.pixel_array.astype(int) - 200, 0, 999)  # PS3.3 C.11.2.1.1
    expected = table[index] / (2**bits - 1) * 255
    assert np.abs(got - expected).max() <= 0.5 + 1e-3


# --- real radiographs ---


@pytest.mark.data
def test_shared_radiograph_lossless_and_lossy(shared_data):
    images = []
    for name in ("chest_cr_j2k_lossless.dcm", "chest_cr_j2k_lossy.dcm"):
        path = shared_data / "cxr" / "dicom" / name
        image, dataset = read_image(path), pydicom.dcmread(path, stop_before_pixels=True)
        images.append(image)
        assert image.photometric is Photometric.MONOCHROME1
        assert image.array.shape == (1, 1955, 1841)
        words = repr(image)
        for element in dataset.iterall():
            if element.VR in ("PN", "LO", "SH", "DA", "UI", "TM") and len(str(element.value)) > 4:
                assert str(element.value) not in words, element.keyword
        shown = PixelSpec().apply(image)
        assert shown.shape == (512, 482)  # 1841 · 512 / 1955 = 482.1
    lossless, lossy = (PixelSpec().apply(image).astype(int) for image in images)
    assert np.abs(lossless - lossy).mean() < 1.0
    corner, middle = lossless[:20, :20].mean(), lossless[150:350, 150:330].mean()
    assert corner != pytest.approx(middle, abs=5)


@pytest.mark.parametrize("keyword, bits", [("FloatPixelData", 32), ("DoubleFloatPixelData", 64)])
def test_float_pixels(tmp_path, keyword, bits):
    values = np.linspace(-2, 3, 64 * 64).reshape(64, 64).astype(f"<f{bits // 8}")
    dataset = pydicom.dcmread(golden("test_files/MR_small.dcm"))
    for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue"):
        if name in dataset:
            del dataset[name]
    dataset.BitsAllocated = bits
    setattr(dataset, keyword, values.tobytes())
    dataset.save_as(tmp_path / "a.dcm")
    image = read_image(tmp_path / "a.dcm")
    assert image.array.dtype == np.float32
    np.testing.assert_allclose(image.array[0], values, rtol=1e-6)


def test_limits_are_values():
    assert DEFAULT_LIMITS == Limits() and Limits(max_depth=3).max_depth == 3
    assert read_dicom(golden("test_files/CT_small.dcm"), limits=Limits(max_depth=1)).array.shape == (
        1,
        128,
        128,
    )


def test_get_testdata_file_is_the_packaged_one():
    assert Path(get_testdata_file("CT_small.dcm", download=False)) == golden("test_files/CT_small.dcm")
