"""Burned-in text: found on real and drawn films, told from markers, painted over; its words kept nowhere."""

from __future__ import annotations

import logging
import socket
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import skimage
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont
from pydicom import dcmread
from pydicom.data import get_testdata_file

import medvl
from medvl.errors import BurnedInText, MissingDependency
from medvl.images import Image, Unit
from medvl.preprocess.reading import burned, read_image
from medvl.records import TextRegion
from medvl.specs import PixelSpec

NAME = "DOE^JANE 12.03.1954"


def shown(name: str) -> np.ndarray:
    path = Path(get_testdata_file(name, download=False))
    return PixelSpec(longest_px=2048).apply(read_image(path, frame=0))


def write(
    film: np.ndarray,
    words: str,
    *,
    at: tuple[int, int],
    height_px: float,
    grey: int = 250,
    lift: int = 0,
    plate: int = 0,
    turns: int = 0,
) -> tuple[np.ndarray, TextRegion]:
    """Write smooth letters whose capitals are height_px high (0.72 of the font's size) on a copy."""
    font = ImageFont.load_default(size=height_px / 0.72)
    left, top, right, bottom = (round(v) for v in font.getbbox(words))
    canvas = Pillow.new("L", (right - left + 2, bottom - top + 2))
    ImageDraw.Draw(canvas).text((1 - left, 1 - top), words, 255, font=font)
    mask = np.rot90(np.asarray(canvas) / 255, turns)
    painted = film.astype(float)
    (y, x), (rows, columns) = at, mask.shape
    if plate:
        edge = max(2, round(height_px / 3))
        painted[y - edge : y + rows + edge, x - edge : x + columns + edge] = plate
    patch = painted[y : y + rows, x : x + columns]
    patch[...] = patch + lift * mask if lift else patch * (1 - mask) + grey * mask
    return np.clip(np.rint(painted), 0, 255).astype(np.uint8), region(x, y, x + columns, y + rows)


def region(x0: float, y0: float, x1: float, y1: float, *, kind: str = "text") -> TextRegion:
    return TextRegion(x0, y0, x1, y1, kind, 1.0, False)


def covered(regions: tuple[TextRegion, ...], truth: TextRegion, shape: tuple[int, ...]) -> float:
    """Share of the truth that regions of text cover, counted pixel by pixel."""
    cover = np.zeros(shape, bool)
    for r in regions:
        if r.kind == "text":
            cover[int(r.y0) : int(np.ceil(r.y1)), int(r.x0) : int(np.ceil(r.x1))] = True
    return float(cover[int(truth.y0) : int(truth.y1), int(truth.x0) : int(truth.x1)].mean())


@pytest.fixture(scope="module")
def ocr():
    pytest.importorskip("rapidocr")


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> np.ndarray:
    """A phantom film of 2048 px with a lead L, as a radiograph is shown."""
    folder = tmp_path_factory.mktemp("films")
    medvl.phantom(folder, n=2, seed=3, size_px=2048, workers=1)
    return PixelSpec(longest_px=2048).apply(read_image(sorted(folder.rglob("*.dcm"))[1]))


@pytest.mark.traps
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("examples_rgb_color.dcm", {"BAPTIST MED CTR"}),
        ("examples_jpeg2k.dcm", {"BAPTIST MED CTR"}),
        ("examples_palette.dcm", {"5/25/2011", "2:56:22 PM"}),
    ],
)
def test_words_of_real_files_are_found(ocr, name, words):
    found = {text for region, text in burned.read_text(shown(name)) if region.kind == "text"}
    assert words <= found
    header = dcmread(get_testdata_file(name, download=False), stop_before_pixels=True)
    assert "BurnedInAnnotation" not in header  # so the header's word is never trusted


@pytest.mark.traps
@pytest.mark.parametrize("name", ["693_J2KI.dcm", "examples_overlay.dcm", "CT_small.dcm"])
def test_dicom_files_without_text_have_none(ocr, name):
    assert [r for r in burned.find_text(shown(name)) if r.kind == "text"] == []


@pytest.mark.parametrize("name", ["ihc.png", "camera.png"])
def test_pictures_without_text_have_none(ocr, name):
    picture = Pillow.open(Path(skimage.__file__).parent / "data" / name).convert("L")
    assert [r for r in burned.find_text(np.asarray(picture)) if r.kind == "text"] == []


@pytest.mark.parametrize(
    "look",
    [
        {"height_px": 10},
        {"height_px": 28},
        {"height_px": 10, "grey": 10, "plate": 240},
        {"height_px": 14, "turns": 1},
        {"height_px": 20, "turns": 3},
    ],
    ids=lambda look: " ".join(f"{k}={v}" for k, v in look.items()),
)
def test_small_text_on_a_large_film_is_found(ocr, film, look):
    painted, truth = write(film, NAME, at=(300, 40), **look)
    found = burned.find_text(painted)
    assert covered(found, truth, film.shape) >= 0.8


def test_text_thirty_grey_levels_above_its_surroundings_is_found(ocr, film):
    painted, truth = write(film, NAME, at=(1500, 700), height_px=20, lift=30)
    assert covered(burned.find_text(painted), truth, film.shape) >= 0.8


def test_text_at_the_very_edge_is_found(ocr, film):
    painted, truth = write(film, NAME, at=(2, 2), height_px=20)
    assert covered(burned.find_text(painted), truth, film.shape) >= 0.8


def test_clean_film_holds_its_marker_and_nothing_else(ocr, film):
    assert [r.kind for r in burned.find_text(film)] == ["marker"]


def test_marker_survives_masking_and_text_does_not(ocr, film):
    painted, truth = write(film, NAME, at=(1600, 60), height_px=24)
    found = burned.find_text(painted)
    masked = burned.mask_text(painted, found)
    [marker] = [r for r in found if r.kind == "marker"]
    place = np.s_[int(marker.y0) : int(marker.y1), int(marker.x0) : int(marker.x1)]
    np.testing.assert_array_equal(masked[place], film[place])
    assert [r.kind for r in burned.find_text(masked)] == ["marker"]
    # Painted pixels lie inside the dilated regions, so far from the words nothing changes.
    assert (masked != painted).mean() < 4 * truth_share(truth, film.shape)


def truth_share(truth: TextRegion, shape: tuple[int, ...]) -> float:
    return (truth.x1 - truth.x0) * (truth.y1 - truth.y0) / (shape[0] * shape[1])


@pytest.mark.parametrize("words", ["R", "LEFT", "PORTABLE", "AP ERECT", "SEMI-ERECT"])
def test_technologists_words_are_markers(ocr, words):
    painted, _ = write(np.full((512, 512), 60, np.uint8), words, at=(60, 60), height_px=26)
    assert [r.kind for r in burned.find_text(painted)] == ["marker"]


def test_markers_of_another_language_are_added(ocr):
    painted, _ = write(np.full((512, 512), 60, np.uint8), "STEHEND", at=(60, 60), height_px=26)
    assert [r.kind for r in burned.find_text(painted)] == ["text"]
    more = burned.MARKERS | {"STEHEND"}
    assert [r.kind for r in burned.find_text(painted, markers=more)] == ["marker"]


@pytest.mark.parametrize("sign", ["O", "I", "1"])
def test_a_single_sign_that_names_no_side_is_no_text(ocr, sign):
    painted, _ = write(np.full((256, 256), 60, np.uint8), sign, at=(60, 60), height_px=26)
    assert burned.find_text(painted) == ()


@pytest.mark.parametrize("shape", [(4, 4), (7, 300), (16, 4000)])
def test_pictures_too_small_for_letters_hold_none(ocr, shape):
    assert burned.find_text(np.full(shape, 90, np.uint8)) == ()


def image_of(film: np.ndarray) -> Image:
    return Image(film[None], Unit.GREY, bits_stored=8)


def test_regions_come_back_in_pixels_of_the_stored_array(ocr, film):
    painted, truth = write(film, NAME, at=(1700, 100), height_px=14)
    spec, spec_256 = PixelSpec(longest_px=512), PixelSpec(longest_px=256)
    found = burned.find_text_in(image_of(painted), spec)
    stored = spec.apply(image_of(painted))
    scale = stored.shape[0] / film.shape[0]
    assert scale == pytest.approx(0.25, abs=0.001)
    text = [r for r in found if r.kind == "text"]
    edges = [min(r.x0 for r in text), min(r.y0 for r in text)]
    edges += [max(r.x1 for r in text), max(r.y1 for r in text)]
    expected = scale * np.array([truth.x0, truth.y0, truth.x1, truth.y1])
    # The detector frames a line with up to a letter's height (14 film pixels, 3.5 stored ones) to spare.
    np.testing.assert_allclose(edges, expected, atol=4)
    # On a smaller stored array, with letters of 1.75 pixels, the words could not be found.
    assert [r for r in burned.find_text(spec_256.apply(image_of(painted))) if r.kind == "text"] == []
    assert [r for r in burned.find_text_in(image_of(painted), spec_256) if r.kind == "text"] != []


def test_each_policy_does_what_it_says(ocr, film):
    painted, _ = write(film, NAME, at=(1700, 100), height_px=24)
    spec = PixelSpec(longest_px=512)
    image = image_of(painted)
    stored = spec.apply(image)
    same, regions, share = burned.screen(image, stored, spec=spec, policy="off")
    assert (same is stored, regions, share) == (True, (), None)
    same, kept, share = burned.screen(image, stored, spec=spec, policy="keep")
    assert same is stored and not any(r.masked for r in kept)
    assert share == burned.text_fraction(kept, stored.shape) > 0
    masked, regions, again = burned.screen(image, stored, spec=spec, policy="mask")
    assert again == share and (masked != stored).any()
    assert [r.masked for r in regions] == [r.kind == "text" for r in regions]
    with pytest.raises(BurnedInText, match=r"text in \d places, 0\.\d% .* the policy is drop") as refused:
        burned.screen(image, stored, spec=spec, policy="drop")
    assert "DOE" not in str(refused.value)
    clean = image_of(film)
    _, regions, share = burned.screen(clean, spec.apply(clean), spec=spec, policy="drop")
    assert [r.kind for r in regions] == ["marker"] and share == 0


def test_words_go_to_no_log_no_stream_and_no_file(ocr, film, caplog, capfd, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    painted, _ = write(film[:700, :700].copy(), NAME, at=(300, 40), height_px=24)
    with caplog.at_level(logging.DEBUG):
        found = burned.find_text(painted)
        burned.find_text(np.zeros((64, 64), np.uint8))  # rapidocr warns of an empty result
    out, err = capfd.readouterr()
    assert len(found) >= 1 and "DOE" not in repr(found)
    assert (out, err, caplog.text, list(tmp_path.iterdir())) == ("", "", "", [])


def test_models_come_from_the_wheel_with_one_thread_and_load_once(ocr, monkeypatch):
    import rapidocr.utils.download_file as downloader

    def reached(*_: object) -> None:
        raise AssertionError("rapidocr tried to download a model")

    monkeypatch.setattr(downloader.DownloadFile, "run", reached)
    monkeypatch.setattr(socket, "getaddrinfo", reached)
    burned._reader.cache_clear()
    painted, _ = write(np.full((256, 256), 60, np.uint8), "NODULE", at=(60, 60), height_px=20)
    assert len(burned.find_text(painted)) == 1  # detector, classifier and recogniser all ran
    reader = burned._reader()
    assert reader is burned._reader()
    for part in (reader.text_det, reader.text_cls, reader.text_rec):
        options = part.session.session.get_session_options()
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)


@pytest.fixture
def forgotten():
    burned._reader.cache_clear()
    yield
    burned._reader.cache_clear()


@pytest.mark.parametrize("package", ["rapidocr", "onnxruntime"])
def test_a_missing_package_says_how_to_install_it(forgotten, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependency, match=rf"{package}.*pip install 'medvl\[ocr\]'"):
        burned.find_text(np.zeros((64, 64), np.uint8))


def test_a_wheel_without_the_models_is_refused_and_never_completed_from_the_network(
    ocr, forgotten, monkeypatch
):
    monkeypatch.setitem(burned._MODELS, "Det", "gone")
    with pytest.raises(MissingDependency, match=r"rapidocr 3\.10 with its models"):
        burned.find_text(np.zeros((64, 64), np.uint8))


def test_text_fraction_is_the_area_of_the_union():
    # 10×4 and 10×4, shifted by 5: the union is 15×4 = 60 of 20×30 = 600 pixels; the marker is not text.
    regions = [region(0, 0, 10, 4), region(5, 0, 15, 4), region(20, 10, 30, 20, kind="marker")]
    assert burned.text_fraction(regions, (20, 30)) == pytest.approx(0.1)
    assert burned.text_fraction([], (20, 30)) == 0.0


def test_paint_is_the_median_of_the_frame_around():
    picture = np.full((60, 80), 90, np.uint8)
    picture[:, 40:] = 30
    picture[20:30, 10:30] = 255
    picture[20:30, 50:70] = 255
    before = picture.copy()
    masked = burned.mask_text(picture, [region(10, 20, 30, 30), region(50, 20, 70, 30)])
    # Each region's own surroundings give its paint; dilation is 0.2 × 10 = 2 pixels.
    assert set(np.unique(masked[18:32, 8:32])) == {90} and set(np.unique(masked[18:32, 48:72])) == {30}
    np.testing.assert_array_equal(picture, before)
    assert masked is not picture


def test_neighbouring_words_do_not_colour_the_paint():
    picture = np.full((60, 80), 90, np.uint8)
    picture[20:30, 10:70] = 255
    words = [region(10, 20, 28, 30), region(30, 20, 48, 30), region(50, 20, 70, 30)]
    assert set(np.unique(burned.mask_text(picture, words))) == {90}


def test_markers_are_never_painted():
    picture = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(burned.mask_text(picture, [region(2, 2, 9, 9, kind="marker")]), picture)


def test_a_picture_that_is_all_text_becomes_black():
    assert not burned.mask_text(np.full((16, 16), 200, np.uint8), [region(0, 0, 16, 16)]).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32])
def test_native_frames_keep_type_and_are_painted_with_their_own_values(dtype):
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 120, (50, 60)).astype(dtype)
    if np.dtype(dtype).kind == "i":
        frame -= 50
    painted = burned.mask_native(frame, [region(20, 10, 40, 20)])
    [value] = np.unique(painted[8:22, 18:42])
    # Lower median of the ring of 6 pixels around the dilated region, by sorting.
    ring = sorted(
        int(frame[y, x]) for y in range(2, 28) for x in range(12, 48) if not (8 <= y < 22 and 18 <= x < 42)
    )
    assert painted.dtype == dtype and value == ring[(len(ring) - 1) // 2]
    np.testing.assert_array_equal(painted[30:], frame[30:])


def test_colour_frames_are_painted_sample_by_sample():
    frame = np.empty((50, 60, 3), np.uint8)
    frame[...] = (10, 120, 200)
    frame[10:20, 20:40] = 255
    assert {tuple(p) for p in burned.mask_native(frame, [region(20, 10, 40, 20)]).reshape(-1, 3)} == {
        (10, 120, 200)
    }


@pytest.mark.data
@pytest.mark.slow
def test_agreement_with_films_looked_at_by_eye(ocr, shared_data):
    folder = shared_data / "cxr" / "clinical_notes"
    rows = pd.read_csv(folder / "images.csv").sample(60, random_state=0)
    pairs = []
    for row in rows.itertuples():
        found = burned.read_text(PixelSpec(longest_px=2048).apply(read_image(folder / str(row.image))))
        # The column does not count a lone side letter, so neither does this comparison.
        said = any(sum(map(str.isalnum, words)) >= 2 for _, words in found)
        pairs.append((row.burned_in_text == "yes", said))
    both = sum(truth and said for truth, said in pairs)
    assert both / sum(truth for truth, _ in pairs) >= 0.9
    assert both / sum(said for _, said in pairs) >= 0.7
