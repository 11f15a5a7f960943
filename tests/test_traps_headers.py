"""Character sets of the standard's own examples, and resolutions of raster files that mean nothing."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow
from readingcases import PYDICOM

from medvl.preprocess.reading import read_image
from medvl.preprocess.reading.dicom import read_header

# PS3.5 Annexes H to K print these names beside their bytes.
NAMES = {
    "chrArab": "قباني^لنزار",
    "chrFren": "Buc^Jérôme",
    "chrFrenMulti": "Buc^Jérôme",
    "chrGerm": "Äneas^Rüdiger",
    "chrGreek": "Διονυσιος",
    "chrH31": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "chrH32": "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
    "chrHbrw": "שרון^דבורה",
    "chrI2": "Hong^Gildong=洪^吉洞=홍^길동",
    "chrJapMulti": "やまだ^たろう",
    "chrJapMultiExplicitIR6": "やまだ^たろう",
    "chrKoreanMulti": "김희중",
    "chrRuss": "Люкceмбypг",
    "chrSQEncoding": "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",  # inside a sequence with a character set of its own
    "chrSQEncoding1": "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
    "chrX1": "Wang^XiaoDong=王^小東",
    "chrX2": "Wang^XiaoDong=王^小东",
}


def test_every_packaged_character_set_has_its_name():
    folder = PYDICOM / "charset_files"
    assert sorted(NAMES) == sorted(path.stem for path in folder.glob("*.dcm"))


@pytest.mark.traps(row=15)
@pytest.mark.parametrize("stem", sorted(NAMES))
def test_names_are_decoded_by_their_character_set(stem):
    header = read_header(PYDICOM / "charset_files" / f"{stem}.dcm")
    assert NAMES[stem] in [name.rstrip("=") for name in header.names]
    assert not any("character set not as declared" in note for note in header.notes)


@pytest.mark.traps(row="tiff resolution")
@pytest.mark.parametrize(
    "about",
    [
        {},
        {"resolution": (40_000.0, 40_000.0)},  # no unit: an inch by default, which would be 0.635 µm
        {"resolution": (40.0, 40.0)},  # the same, as 0.635 mm
        {"resolution": (40_000.0, 40_000.0), "resolutionunit": "CENTIMETER"},
        {"resolution": (72.0, 72.0), "resolutionunit": "INCH"},
        {"resolution": (40_000.0, 20_000.0), "resolutionunit": "CENTIMETER"},
        {"resolution": (1.0, 1.0), "resolutionunit": "NONE"},
    ],
)
def test_a_tiff_states_no_spacing(tmp_path, about):
    tifffile.imwrite(tmp_path / "a.tif", np.arange(64, dtype=np.uint8).reshape(8, 8), **about)
    image = read_image(tmp_path / "a.tif")
    assert (image.spacing_mm, image.spacing_frame, image.affine_ras) == (None, None, None)


@pytest.mark.traps(row="tiff resolution")
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_dots_per_inch_are_no_spacing(tmp_path, name):
    Pillow.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / name, dpi=(40, 40))
    assert read_image(tmp_path / name).spacing_mm is None
