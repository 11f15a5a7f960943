"""Each public layout of volumes, slides and figures, read from a miniature tree: every item and the rest."""

from __future__ import annotations

from pathlib import Path

import layoutfiles
import layouttrees
import pytest
from layouttrees import picture, reasons

from medvl.preprocess.sources.layouts import pair_layout
from medvl.preprocess.sources.pairing import Pairing


@pytest.fixture
def read(tmp_path):
    """Write a tree and read it; return its folder and the pairing."""

    def write_and_read(tree: str) -> tuple[Path, Pairing]:
        name, write = layouttrees.TREES[tree]
        root = write(tmp_path / "source")
        return root, pair_layout(root, name)

    return write_and_read


# --- CT -----------------------------------------------------------------------------------------------------


def test_ct_rate(read):
    root, pairing = read("ct_rate")
    data = root / "dataset"
    states = dict.fromkeys((name.lower().replace(" ", "_") for name in layouttrees.CT_FINDINGS), "absent")
    scan = {
        "patient": "train_1",
        "study": "train_1_a",
        "report": "CLINICAL INFORMATION: Cough.\nTECHNIQUE: 1.5 mm slices.\n"
        "FINDINGS: Trachea open.\nNodule of 4.2 mm.\nIMPRESSION: Nodule.",
        "method": "layout",
        "split": "train",
        "labels": states | {"lung_nodule": "present"},
        "modality": "CT",
        "kind": "nifti",
    }
    folder = data / "train_fixed" / "train_1" / "train_1_a"
    assert pairing.items == (
        picture(path=folder / "train_1_a_1.nii.gz", line=2, **scan),
        picture(
            path=folder / "train_1_a_2.nii.gz", **scan
        ),  # its own row is missing: the scan's report counts
        picture(
            path=data / "valid" / "valid_1" / "valid_1_a" / "valid_1_a_1.nii.gz",
            line=2,
            patient="valid_1",
            study="valid_1_a",
            report="FINDINGS: No effusion.\nIMPRESSION: Normal.",
            method="layout",
            split="val",
            labels=states,
            modality="CT",
            kind="nifti",
        ),
    )
    assert reasons(pairing) == {"second_copy_of_image": 1, "not_a_chest": 1, "report_without_image": 1}
    assert pairing.notes[1].startswith("1 volumes do not lie in train_fixed or valid_fixed")


# --- pathology and figures ----------------------------------------------------------------------------------


def test_quilt_1m(read):
    root, pairing = read("quilt_1m")
    images = root / "images" / "quilt_1m"
    frames = {"patient": "-0ZKVTI86Cs", "method": "layout"}  # on both sides: the video loses its split
    assert pairing.items == (
        picture(
            path=images / "-0ZKVTI86Cs_image_01.jpg",
            line=2,
            study="-0ZKVTI86Cs_image_01.jpg",
            report="Glands.",
            **frames,
        ),
        picture(
            path=images / "-0ZKVTI86Cs_image_02.jpg",
            line=3,
            study="-0ZKVTI86Cs_image_02.jpg",
            report="Stroma.",
            **frames,
        ),
        picture(
            path=images / "tweet7.jpg",
            line=4,
            patient="tweet7.jpg",
            study="tweet7.jpg",
            report="Mitoses, 3 per field.\nAtypia.",
            method="layout",
            split="val",
        ),
    )
    assert reasons(pairing) == {"path_outside_source": 1, "row_without_image": 1, "not_histology": 1}
    assert (
        "the official split tears 1 videos or articles apart: theirs is drawn by the shares" in pairing.notes
    )


def test_pmc_oa(read):
    root, pairing = read("pmc_oa")
    images = root / "caption_T060_filtered_top4_sep_v0_subfigures"
    first = {
        "patient": "PMC212319",
        "study": "PMC212319_Fig3_0.jpg",  # two parts of one figure, one caption
        "report": "Frontal film.",
        "method": "layout",
    }
    assert pairing.items == (
        picture(path=images / "PMC212319_Fig3_0.jpg", line=1, **first),
        picture(path=images / "PMC212319_Fig3_1.jpg", line=2, **first),
        picture(
            path=images / "PMC212319_Fig4_0.jpg",
            line=3,
            patient="PMC212319",
            study="PMC212319_Fig4_0.jpg",
            report="CT.",
            method="layout",
        ),
        picture(
            path=images / "PMC3_Fig1_0.jpg",
            line=4,
            patient="PMC3",
            study="PMC3_Fig1_0.jpg",
            report="MRI.",
            method="layout",
        ),
        picture(
            path=images / "own.jpg",
            line=5,
            patient="own.jpg",
            study="own.jpg",
            report="No article.",
            method="layout",
        ),
    )
    assert reasons(pairing) == {"path_outside_source": 1, "report_without_image": 1}
    assert pairing.notes == (
        "the article stands for the patient",
        "no article is known for 1 figures: each counts as one of its own",
    )


def test_lists_of_figures_are_found_by_folder_and_name(read):
    root, pairing = read("biomedclip")
    folder = root / "pubmed_open_access_files"
    assert pairing.items == tuple(
        picture(
            path=folder / article / f"{name}.jpg",
            patient=article,
            study=f"{article}/{name}.jpg",
            report=f"{article} {name}.",
            method="layout",
            line=int(article[3:]),
        )
        for article, name in (("PMC1", "gr1"), ("PMC1", "gr2"), ("PMC2", "gr1"))
    )
    assert pairing.unpaired == ()


def test_a_table_of_figures_and_captions(tmp_path):
    layoutfiles.table(
        tmp_path / "pmc_fig.csv",
        ("image", "caption", "pmcid", "split"),
        [("a.png", "Film.", "77", "train"), ("b.png", "Film.", "PMC77", ""), ("c.png", "Other.", "", "test")],
    )
    for name in "abc":
        layoutfiles.grey(tmp_path / "figures" / f"{name}.png")
    pairing = pair_layout(tmp_path, "auto")
    assert [(item.path.name, item.patient, item.study, item.split) for item in pairing.items] == [
        ("a.png", "PMC77", "a.png", "train"),
        ("b.png", "PMC77", "a.png", "train"),  # the article is in one split
        ("c.png", "c.png", "c.png", "test"),
    ]


def test_tcga_reports(read):
    root, pairing = read("tcga_reports")
    uuid = "25c0b433-5557-4165-922e-2c1eac9c26f0"
    tumour = {
        "patient": "TCGA-BP-5195",
        "study": "TCGA-BP-5195",
        "report": "Date of Receipt: Clear cell carcinoma, 4.2 cm.",
        "method": "layout",
        "kind": "slide",
        "line": 2,
    }
    normal = f"TCGA-BP-5195-11A-01-TS1.{uuid}.svs"
    assert pairing.items == (
        picture(path=root / "11aa" / f"TCGA-BP-5195-01Z-00-DX1.{uuid}.svs", **tumour),
        picture(path=root / "22bb" / f"TCGA-BP-5195-01A-01-TS1.{uuid}.svs", **tumour),
        picture(kind="slide", path=root / "33cc" / normal, patient="TCGA-BP-5195", study=normal),
        picture(
            kind="slide",
            path=root / "55ee" / f"TCGA-ZZ-0000-01Z-00-DX1.{uuid}.svs",
            patient="TCGA-ZZ-0000",
            study="TCGA-ZZ-0000",
        ),
    )
    assert [(entry.reason, entry.line) for entry in pairing.unpaired] == [
        ("row_without_barcode", 6),
        ("report_without_image", 5),
        ("conflicting_reports", 3),
        ("image_without_report", 0),
        ("image_without_report", 0),
    ]
    assert (
        pairing.notes[1] == "1 slides are of normal tissue: the report, of the tumour, is not given to them"
    )
