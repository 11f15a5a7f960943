"""The typographic attack: words painted where the truth says, in every encoding; the wrong ones are wrong."""

from __future__ import annotations

import csv
import filecmp
import json
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

import medvl
from medvl.errors import UsageError
from medvl.phantoms import FINDINGS
from medvl.phantoms.typographic import paint_words, write_attack
from medvl.preprocess.reading import read_image
from medvl.specs import PixelSpec

SHOWN = PixelSpec(longest_px=256)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    medvl.phantom(folder, n=40, seed=11, size_px=128, workers=1)
    return folder


@pytest.fixture(scope="module")
def wrong(films) -> Path:
    out = films.parent / "wrong"
    write_attack(films, out, mode="wrong", share=1.0, seed=3)
    return out


@pytest.fixture(scope="module")
def right(films) -> Path:
    out = films.parent / "right"
    write_attack(films, out, mode="right", share=1.0, seed=3)
    return out


def findings(films: Path) -> dict[str, set[str]]:
    """Findings of each study by its accession, from the labels and not from the truth table."""
    return {
        row["accession"]: {name for name in FINDINGS if row[name] == "1"}
        for row in table(films / "labels.csv")
    }


def accessions(films: Path) -> dict[str, str]:
    return {row["sop_instance_uid"]: row["accession"] for row in table(films / "truth.csv")}


def test_wrong_words_name_what_the_study_does_not_show(films, wrong):
    present, study = findings(films), accessions(films)
    rows = table(wrong / "painted.csv")
    assert len(rows) == len(study)  # every film lacks some finding, so every film can be painted
    assert all(row["finding"] not in present[study[row["sop_instance_uid"]]] for row in rows)
    assert {row["shown"] for row in rows} == {"0"}
    assert {row["words"] for row in rows} <= {name.replace("_", " ").upper() for name in FINDINGS}


def test_right_words_name_what_the_film_shows_and_spare_films_without_findings(films, right):
    shown: dict[str, set[str]] = {}
    for row in table(films / "truth.csv"):
        shown.setdefault(row["sop_instance_uid"], set()).add(row["label"])
    rows = {row["sop_instance_uid"]: row for row in table(right / "painted.csv")}
    assert set(rows) == {uid for uid, labels in shown.items() if labels != {""}}
    assert all(row["finding"] in shown[uid] for uid, row in rows.items())
    for row in table(films / "truth.csv"):
        if row["sop_instance_uid"] not in rows:
            assert filecmp.cmp(films / row["file"], right / row["file"], shallow=False)


def test_pixels_change_inside_the_box_alone_and_are_black_or_white_on_display(films, wrong):
    encodings = set()
    for row in table(wrong / "painted.csv"):
        before, after = (SHOWN.apply(read_image(folder / row["file"])) for folder in (films, wrong))
        x0, y0, x1, y1 = (int(row[edge]) for edge in ("x0", "y0", "x1", "y1"))
        inside = np.zeros(before.shape, bool)
        inside[y0:y1, x0:x1] = True
        data = dcmread(wrong / row["file"], stop_before_pixels=True)
        encodings.add((data.PhotometricInterpretation, data.file_meta.TransferSyntaxUID))
        if "WindowCenter" not in data and "VOILUTSequence" not in data:
            continue  # shown between percentiles, which the words move
        np.testing.assert_array_equal(before[~inside], after[~inside])
        changed = after[inside & (before != after)]
        assert changed.size > 20
        # A sigmoid window five half-widths wide shows 0.7 % to 99.3 % of white: 2 to 253.
        assert set(np.unique(changed)) <= {0, 1, 2, 253, 254, 255}
    assert {photometric for photometric, _ in encodings} == {"MONOCHROME1", "MONOCHROME2"}
    assert len({syntax for _, syntax in encodings}) >= 4


def test_headers_and_tables_are_those_of_the_source(films, wrong):
    for row in table(wrong / "painted.csv"):
        before, after = (dcmread(folder / row["file"]) for folder in (films, wrong))
        assert before.file_meta.TransferSyntaxUID == after.file_meta.TransferSyntaxUID
        changed = {
            element.keyword
            for element in before
            if element.keyword != "PixelData" and element != after[element.tag]
        }
        assert changed <= {"BurnedInAnnotation"}
        assert after.get("BurnedInAnnotation", "YES") == "YES"
    for name in ("reports.csv", "labels.csv", "boxes.csv", "truth.csv", "sentences.csv"):
        assert filecmp.cmp(films / name, wrong / name, shallow=False)


def test_the_set_is_prepared_like_any_other(wrong, tmp_path):
    summary = medvl.prepare(wrong, tmp_path / "store", pixels={"longest_px": 64}, workers=1, key=b"k" * 32)
    assert summary.records == len(table(wrong / "painted.csv"))


def test_the_same_arguments_give_the_same_bytes(films, wrong, tmp_path):
    write_attack(films, tmp_path / "again", mode="wrong", share=1.0, seed=3)
    names = [path.relative_to(wrong) for path in sorted(wrong.rglob("*")) if path.is_file()]
    same, different, missing = filecmp.cmpfiles(wrong, tmp_path / "again", names, shallow=False)
    assert (different, missing) == ([], []) and len(same) == len(names)


def test_another_seed_says_something_else(films, wrong, tmp_path):
    write_attack(films, tmp_path / "other", mode="wrong", share=1.0, seed=4)
    first, second = (
        [row["finding"] for row in table(folder / "painted.csv")] for folder in (wrong, tmp_path / "other")
    )
    assert first != second


def test_a_share_of_the_films_is_painted_and_none_paints_none(films, tmp_path):
    total = len(accessions(films))
    half = write_attack(films, tmp_path / "half", mode="wrong", share=0.5, seed=1)
    # 99.9 % of binomial draws with p = ½ lie within 3.3 standard deviations.
    assert abs(half.painted - total / 2) < 3.3 * np.sqrt(total) / 2
    assert half.painted == sum(half.words.values()) == len(table(tmp_path / "half" / "painted.csv"))
    none = write_attack(films, tmp_path / "none", mode="none", seed=1)
    assert (none.images, none.painted) == (total, 0)
    assert none.lines()[-1] == f"0 of {total} films say a finding (none): none"
    card = json.loads((tmp_path / "half" / "attack.json").read_text())
    assert card == json.loads(json.dumps(half.to_json())) and "Research use only" in card["notice"]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shape", [(256, 256), (256, 200), (64, 300)])
def test_words_lie_inside_their_box_and_off_the_side_marker(seed, shape):
    film = np.full(shape, 90, np.uint8)
    painted, box = paint_words(film, "PLEURAL EFFUSION", seed=seed, height_px=0.05 * max(shape))
    rows, columns = np.nonzero(painted != film)
    assert box.x0 <= columns.min() and columns.max() < box.x1 <= shape[1]
    assert box.y0 <= rows.min() and rows.max() < box.y1 <= shape[0]
    assert set(np.unique(painted)) <= {0, 90, 255}
    assert film.min() == film.max() == 90
    if shape[0] == shape[1]:  # markers lie in the upper fifth, in the right eighth
        assert (painted[: shape[0] // 5, -shape[1] // 8 :] == 90).all()


def test_plate_and_values_can_be_chosen():
    film = np.full((200, 200), 500, np.uint16)
    bare, _ = paint_words(film, "NODULE", seed=0, height_px=12, black=4000, white=100, plate=False)
    assert set(np.unique(bare)) == {100, 500}
    plate, _ = paint_words(film, "NODULE", seed=0, height_px=12, black=4000, white=100, plate=True)
    assert set(np.unique(plate)) == {100, 500, 4000}
    assert (plate == 100).sum() > (plate == 4000).sum()


def test_capitals_are_as_high_as_asked():
    film = np.zeros((400, 400), np.uint8)
    painted, _ = paint_words(film, "H", seed=0, height_px=40, plate=False)
    rows = np.flatnonzero(painted.any(1))
    assert abs(len(rows) - 40) <= 3


def test_an_unknown_mode_is_refused(films, tmp_path):
    from medvl.phantoms.typographic import _check  # the public function's type already forbids it here

    with pytest.raises(UsageError, match=r"the mode is 'rong'.*Did you mean 'wrong'"):
        _check(films, tmp_path, mode="rong", share=1.0, height=0.05)


@pytest.mark.parametrize(
    ("asked", "message"),
    [({"share": 1.5}, r"share is 1\.5, .* 0 to 1"), ({"height": 0.5}, r"height is 0\.5, .* 0 to 0\.2")],
)
def test_shares_out_of_range_are_refused(films, tmp_path, asked, message):
    with pytest.raises(UsageError, match=message):
        write_attack(films, tmp_path / "out", mode="wrong", **asked)


def test_folders_that_do_not_fit_are_refused(films, wrong, tmp_path):
    with pytest.raises(UsageError, match=r"no phantom set: phantom\.json is missing"):
        write_attack(tmp_path, tmp_path / "out", mode="wrong")
    with pytest.raises(UsageError, match="output folder is not empty"):
        write_attack(films, wrong, mode="wrong")
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "phantom.json").write_text('{"complete": false}')
    with pytest.raises(UsageError, match="source folder is not finished"):
        write_attack(begun, tmp_path / "out", mode="wrong")


def test_words_and_height_are_checked():
    film = np.zeros((64, 64), np.uint8)
    with pytest.raises(UsageError, match="the words are '  ', but a letter is needed"):
        paint_words(film, "  ", seed=0, height_px=9)
    with pytest.raises(UsageError, match="height_px is -1"):
        paint_words(film, "NODULE", seed=0, height_px=-1)
