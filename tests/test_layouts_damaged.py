"""Public data sets with damage: bombs, cut files, ragged rows, links, torn splits; messages name nothing."""

from __future__ import annotations

import gzip

import layoutfiles
import layoutfilms
import layouttrees
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouttrees import reasons

from medvl.errors import BadTable, DecompressionLimit, InputError
from medvl.preprocess.sources.layouts import find, pair_layout
from medvl.preprocess.sources.layouts._files import Listing, read_report
from medvl.preprocess.sources.layouts._tables import label_states, read_columns, read_json_lines

SECRET = "DOE_JOHN_19400101"


def mimic(tmp_path):
    return layoutfilms.mimic_cxr_jpg(tmp_path / "source")


# --- tables -------------------------------------------------------------------------------------------------


def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(tmp_path):
    path = tmp_path / f"{SECRET}.csv.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"image,report\n")
        for _ in range(80):
            file.write(b"a,b\n" * (1 << 18))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(DecompressionLimit, match="grows to more than 100 times its size") as caught:
        read_columns(path, need=("image",))
    assert SECRET not in str(caught.value)


def test_a_table_that_is_cut_or_no_gzip(tmp_path):
    whole = layoutfiles.table(tmp_path / "t.csv.gz", ("a", "b"), [(n, "word " * 9) for n in range(20_000)])
    data = whole.read_bytes()
    whole.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadTable, match="cannot be read to its end"):
        read_columns(whole, need=("a",))
    whole.write_bytes(b"a,b\n1,2\n")
    with pytest.raises(BadTable, match="no column 'a'"):
        read_columns(whole, need=("a",))


def test_a_ragged_row_is_named_by_its_number_alone(tmp_path):
    path = layoutfiles.text(tmp_path / f"{SECRET}.csv", f"a,b\n1,2\n{SECRET}\n3,4\n")
    with pytest.raises(BadTable, match="damaged: record 3: expected 2 columns, got 1") as caught:
        read_columns(path, need=("a",))
    assert SECRET not in str(caught.value)


def test_a_row_of_many_megabytes_is_no_row(tmp_path):
    path = layoutfiles.text(tmp_path / "t.csv", "a,b\n" + "x" * 40_000_000 + ",2\n")
    with pytest.raises(BadTable, match="is damaged: it cannot be cut into rows"):
        read_columns(path, need=("a",))


def test_a_missing_column_is_named_with_the_nearest(tmp_path):
    path = layoutfiles.table(tmp_path / "t.csv", ("image_pth", "caption"), [("a.png", "x")])
    with pytest.raises(BadTable, match=r"no column 'image_path'.*Did you mean 'image_pth'\?"):
        read_columns(path, need=("image_path",))


def test_cells_keep_leading_zeros_and_lose_blanks_and_nan(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("\ufeffid,text,rest\n007,' a\u00e9 ',nan\n008,\"two\nlines\",NULL\n".encode())
    frame = read_columns(path, need=("id", "text"), maybe=("rest", "none"))
    assert frame.to_dict("list") == {
        "id": ["007", "008"],
        "text": ["' a\u00e9 '", "two\nlines"],
        "rest": ["", ""],
        "none": ["", ""],
    }
    assert frame.index.tolist() == [2, 3]
    path.write_bytes("id,text,rest\n1,caf\u00e9,x\n".encode("cp1252"))
    assert read_columns(path, need=("text",))["text"].tolist() == ["caf\u00e9"]
    path.write_bytes(b"id,text\n1,\xff\x81\x8d\n")  # in neither encoding
    with pytest.raises(BadTable, match="is not UTF-8 text"):
        read_columns(path, need=("text",))


def test_labels_are_shared_and_a_cell_that_is_none_is_named_by_place(tmp_path):
    path = layoutfiles.table(
        tmp_path / "t.csv", ("Edema", "Lung Opacity"), [("1.0", ""), ("-1", "0"), ("1", "")]
    )
    frame = read_columns(path, need=("Edema", "Lung Opacity"))
    states = label_states(frame, ["Edema", "Lung Opacity"], path=path)
    assert states == [
        {"edema": "present"},
        {"edema": "uncertain", "lung_opacity": "absent"},
        {"edema": "present"},
    ]
    assert states[0] is states[2]
    layoutfiles.table(path, ("Edema", "Lung Opacity"), [("1", "0"), ("1", SECRET)])
    frame = read_columns(path, need=("Edema", "Lung Opacity"))
    with pytest.raises(
        BadTable, match=r"record 3 of .* 17 characters in the label column 'Lung Op"
    ) as caught:
        label_states(frame, ["Edema", "Lung Opacity"], path=path)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2 of .* is not JSON"),
        ("[1]", "line 2 of .* is not a JSON object"),
        ("[" * 100_000, "line 2 of .* is not JSON"),
    ],
)
def test_a_line_that_is_no_json_object(tmp_path, line, says):
    path = layoutfiles.text(tmp_path / "t.jsonl", f'{{"image": "a"}}\n{line}\n')
    with pytest.raises(BadTable, match=says):
        list(read_json_lines(path))


def test_json_lines_may_be_gzip_and_cut(tmp_path):
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n\n{"a": 2}\n'))
    assert list(read_json_lines(path)) == [(1, {"a": 1}), (3, {"a": 2})]
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(BadTable, match="cannot be read to its end"):
        list(read_json_lines(path))


def test_a_label_file_with_another_value(tmp_path):
    root = layoutfilms.chexpert_plus(tmp_path / "source")
    layoutfiles.lines(
        root / "chexbert_labels" / "impression_fixed.json",
        [{"path_to_image": "train/patient00001/study1/view1_frontal.jpg", "Edema": "perhaps"}],
    )
    with pytest.raises(BadTable, match="line 1 of the label file has a value of 7 characters in 'Edema'"):
        pair_layout(root, "auto")


# --- splits -------------------------------------------------------------------------------------------------


def test_a_patient_in_two_official_splits_is_refused(tmp_path):
    root = mimic(tmp_path)
    rows = [(i, s, p, "train" if k else "test") for k, (p, s, i) in enumerate(layoutfilms.MIMIC_IMAGES)]
    layoutfiles.table(
        root / "mimic-cxr-2.0.0-split.csv.gz", ("dicom_id", "study_id", "subject_id", "split"), rows
    )
    with pytest.raises(BadTable, match="official split puts 1 patients into more than one split"):
        pair_layout(root, "auto")


def test_an_image_without_split_follows_its_patient(tmp_path):
    root = mimic(tmp_path)
    patient, study, image = layoutfilms.MIMIC_IMAGES[0]
    layoutfiles.table(
        root / "mimic-cxr-2.0.0-split.csv.gz",
        ("dicom_id", "study_id", "subject_id", "split"),
        [(image, study, patient, "validate")],
    )
    pairing = pair_layout(root, "auto")
    assert {item.patient: item.split for item in pairing.items} == {
        f"p{patient}": "val",
        "p10000764": None,
        "p11000183": None,
    }


# --- files --------------------------------------------------------------------------------------------------


def test_links_stores_and_hidden_files_are_passed_over(tmp_path):
    root = mimic(tmp_path)
    study = root / "files" / "p10" / "p10000032" / "s50414267"
    outside = layoutfiles.grey(tmp_path / "outside" / "secret.jpg")
    (study / "secret.jpg").symlink_to(outside)
    (root / "more").symlink_to(outside.parent)
    layoutfiles.grey(study / ".hidden.jpg")
    layoutfiles.grey(study / "__MACOSX" / "x.jpg")
    for name in ("store.json", "index.parquet", "x.jpg"):
        layoutfiles.empty(root / "old" / name)
    listing = Listing.of(root)
    assert listing.outside == ("files/p10/p10000032/s50414267/secret.jpg", "more")
    assert not any(
        "hidden" in name or "__MACOSX" in name or name.startswith("old/") for name in listing.files
    )
    pairing = pair_layout(root, "auto")
    assert len(pairing.items) == 5
    assert reasons(pairing)["outside_file"] == 2


def test_a_linked_folder_of_images_is_not_followed_and_said(tmp_path):
    root = mimic(tmp_path)
    (root / "files").rename(tmp_path / "elsewhere")
    (root / "files").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadTable, match=r"none of its images is there.*links to folders elsewhere are not"):
        pair_layout(root, "mimic-cxr-jpg")


def test_a_picture_that_no_table_knows_is_told(tmp_path):
    for tree in ("iu_xray", "quilt_1m", "pmc_oa", "tcga_reports", "ct_rate"):
        name, write = layouttrees.TREES[tree]
        root = write(tmp_path / tree)
        before = pair_layout(root, name)
        layoutfiles.empty(root / "extra" / ("stranger.nii.gz" if tree == "ct_rate" else "stranger.tif"))
        after = pair_layout(root, name)
        assert after.items == before.items
        assert reasons(after) == reasons(before) | {"image_without_row": 1}
        strangers = [entry.path for entry in after.unpaired if entry.reason == "image_without_row"]
        assert [path and path.parent.name for path in strangers] == ["extra"]


def test_a_report_that_is_too_large_or_damaged_costs_one_report(tmp_path):
    root = mimic(tmp_path)
    folder = root / "mimic-cxr-reports" / "files" / "p10"
    (folder / "p10000764" / "s57375967.txt").write_bytes(b"x" * 900_000)
    (folder / "p10000032" / "s53189527.txt").write_bytes(b"caf\xe9 au lait")
    pairing = pair_layout(root, "auto")
    texts = {item.study: item.report for item in pairing.items}
    assert texts["s57375967"] == ""
    assert texts["s53189527"] == "caf\u00e9 au lait"
    assert reasons(pairing)["text_unreadable"] == 1
    with pytest.raises(InputError, match="has more than 800,000 bytes") as caught:
        read_report(layoutfiles.text(tmp_path / f"{SECRET}.txt", "x" * 900_000))
    assert SECRET not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_report(tmp_path / "missing.txt")


@pytest.mark.parametrize(
    "content", ["<eCitation>", "", "no XML", '<?xml version="1.0"?><!DOCTYPE a><a/>', "\x00"]
)
def test_an_xml_report_that_cannot_be_read(tmp_path, content):
    root = layoutfilms.iu_xray(tmp_path / "source")
    before = reasons(pair_layout(root, "auto"))["text_unreadable"]
    layoutfiles.text(root / "ecgen-radiology" / "77.xml", content)
    assert reasons(pair_layout(root, "auto"))["text_unreadable"] == before + 1


def test_rows_with_different_reports_for_one_image_are_refused(tmp_path):
    root = layoutfilms.padchest(tmp_path / "source")
    table = root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz"
    more = ",a1.png,0,20140915,s1,p1,PA,No,otro texto .,\"['normal']\",,\n"
    table.write_bytes(gzip.compress(gzip.decompress(table.read_bytes()) + more.encode()))
    pairing = pair_layout(root, "auto")
    assert "a1.png" not in {item.path.name for item in pairing.items}
    assert reasons(pairing)["conflicting_reports"] == 1


def test_no_message_names_a_file(tmp_path):
    root = layouttrees.quilt_1m(tmp_path / SECRET)
    (root / "quilt_1M_lookup.csv").write_text(f"image_path,caption\n{SECRET}\n", "utf-8")
    assert find(root) is not None  # by its header
    with pytest.raises(BadTable) as caught:
        pair_layout(root, "auto")
    assert SECRET not in str(caught.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=200)
    | st.text(alphabet='a,b"\n\r\t{}[]:0 \u00e9\ufeff\x00<!>&;', max_size=80).map(
        lambda words: words.encode("utf-8", "replace")
    ),
    packed=st.booleans(),
)
def test_no_content_of_a_table_escapes_as_another_error(tmp_path, content, packed):
    data = gzip.compress(b"image,caption\n" + content) if packed else b"image,caption\n" + content
    for name in ("t.csv", "t.csv.gz", "t.jsonl"):
        path = tmp_path / name
        path.write_bytes(data)
        for read in (
            lambda path: read_columns(path, need=("image",), maybe=("caption", "split")),
            lambda path: list(read_json_lines(path)),
        ):
            try:
                read(path)
            except InputError:
                continue
