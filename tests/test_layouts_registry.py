"""Which layout a folder has: its own and no other, by name, and in words when there is none."""

from __future__ import annotations

from pathlib import Path

import layoutfiles
import layoutfilms
import layouttrees
import pytest

from medvl.errors import BadTable, UsageError
from medvl.phantoms import write_phantoms
from medvl.preprocess.sources.layouts import all_layouts, find, pair_layout

DOCS = Path(__file__).resolve().parents[1] / "docs" / "layouts.md"


@pytest.mark.parametrize("tree", layouttrees.TREES)
def test_each_tree_has_its_layout_and_no_other(tmp_path, tree):
    name, write = layouttrees.TREES[tree]
    root = write(tmp_path / "source")
    assert [layout.name for layout in all_layouts().values() if layout.recognise(root)] == [name]
    assert find(root) is all_layouts()[name]
    assert pair_layout(root, "auto") == pair_layout(root, name)


def test_every_layout_has_a_tree_and_a_chapter():
    assert {name for name, _ in layouttrees.TREES.values()} == set(all_layouts())
    page = DOCS.read_text("utf-8")
    for layout in all_layouts().values():
        assert f"## {layout.name}\n" in page
        assert layout.modality in ("cxr", "ct", "pathology", "any")
        assert "\n" not in layout.about


def test_phantoms_and_folders_of_a_hospital_have_no_layout(tmp_path):
    write_phantoms(tmp_path / "phantoms", n=2, seed=0, size_px=64, workers=1)
    layoutfiles.table(tmp_path / "lab" / "train.csv", ("image", "report"), [("a.png", "Clear.")])
    layoutfiles.grey(tmp_path / "lab" / "a.png")
    layoutfiles.dicom(tmp_path / "files" / "files" / "p10" / "IM1.dcm")
    (tmp_path / "empty").mkdir()
    for folder in ("phantoms", "lab", "files", "empty", "missing", "lab/a.png"):
        assert find(tmp_path / folder) is None


def test_a_name_is_taken_whatever_the_folder_looks_like(tmp_path):
    assert find(tmp_path, name="padchest") is all_layouts()["padchest"]
    with pytest.raises(UsageError, match=r"'padchst' is not the layout.*Did you mean 'padchest'\?"):
        find(tmp_path, name="padchst")


def test_two_data_sets_in_one_folder_are_refused(tmp_path):
    layoutfilms.padchest(tmp_path)
    layouttrees.quilt_1m(tmp_path)
    with pytest.raises(UsageError, match=r"looks like padchest and quilt-1m.*--layout padchest"):
        find(tmp_path)
    # Named, each takes its own images; the other's have no row in its table.
    assert len(pair_layout(tmp_path, "padchest").items) == 5
    assert len(pair_layout(tmp_path, "quilt-1m").items) == 3


def test_a_source_that_is_no_folder_or_has_no_layout(tmp_path):
    with pytest.raises(UsageError, match="source is not a folder"):
        pair_layout(tmp_path / "missing", "auto")
    with pytest.raises(UsageError, match=r"not the layout of a known data set.*chexpert \| chexpert-plus"):
        pair_layout(tmp_path, "auto")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("chexpert", "no train.csv of CheXpert"),
        ("chexpert-plus", "no df_chexpert_plus_240401.csv"),
        ("ct-rate", "no report table of CT-RATE"),
        ("iu-xray", "no reports of IU X-ray"),
        ("mimic-cxr", "looks like mimic-cxr, but none of its images is there"),
        ("mimic-cxr-jpg", "looks like mimic-cxr-jpg, but none of its images is there"),
        ("padchest", "no table of PadChest"),
        ("pmc-oa", "no table of figures and captions"),
        ("quilt-1m", "no quilt_1M_lookup.csv"),
        ("tcga-reports", "no TCGA_Reports.csv"),
    ],
)
def test_a_named_layout_says_which_table_is_missing(tmp_path, name, says):
    with pytest.raises(BadTable, match=says):
        pair_layout(tmp_path, name)


@pytest.mark.parametrize("tree", layouttrees.TREES)
def test_tables_without_any_image_are_an_error(tmp_path, tree):
    name, write = layouttrees.TREES[tree]
    root = write(tmp_path / "source")
    for path in [*root.rglob("*")]:
        if path.name.endswith((".png", ".jpg", ".dcm", ".svs", ".nii.gz")):
            path.unlink()
    with pytest.raises(BadTable, match=f"looks like {name}, but none of its images is there"):
        pair_layout(root, name)
