"""Each public layout of radiographs, read from a miniature tree: every item, and all that is none."""

from __future__ import annotations

from pathlib import Path

import layoutfiles
import layoutfilms
import layouttrees
import pytest
from layouttrees import picture, reasons

from medvl.preprocess.sources.layouts import pair_layout
from medvl.preprocess.sources.pairing import Item, Pairing


@pytest.fixture
def read(tmp_path):
    """Write a tree and read it; return its folder and the pairing."""

    def write_and_read(tree: str) -> tuple[Path, Pairing]:
        name, write = layouttrees.TREES[tree]
        root = write(tmp_path / "source")
        return root, pair_layout(root, name)

    return write_and_read


def absent(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "absent")


NORMAL = {"no_finding": "present"} | absent(
    "atelectasis",
    "cardiomegaly",
    "consolidation",
    "edema",
    "fracture",
    "pleural_effusion",
    "pneumonia",
    "pneumothorax",
)
"""What "normal" says where findings are listed: the eight that the list shares with CheXpert are absent."""


def test_iu_xray(read):
    root, pairing = read("iu_xray")
    first = (
        "INDICATION: Positive TB test\nCOMPARISON: None.\nFINDINGS: Lungs are clear & expanded.\n"
        "IMPRESSION: Normal chest x-XXXX."
    )
    images = root / "NLMCXR_png"
    one = {"patient": "CXR1", "study": "CXR1", "report": first, "method": "layout", "labels": NORMAL}
    assert pairing.items == (
        picture(path=images / "CXR1_1_IM-0001-3001.png", **one),
        picture(path=images / "CXR1_1_IM-0001-4001.png", **one),
        picture(
            path=images / "CXR2_IM-0652-1001.png",
            patient="CXR2",
            study="CXR2",
            report="IMPRESSION: No acute findings.",
            method="layout",
            # "Cardiomegaly/borderline" is uncertain; "Pulmonary Artery/enlarged" is no finding of CheXpert.
            labels={"cardiomegaly": "uncertain", "pleural_effusion": "present"},
        ),
        picture(path=images / "CXR3_IM-1384-1001.png", patient="CXR3", study="CXR3", method="layout"),
    )
    assert reasons(pairing) == {
        "named_image_missing": 1,
        "report_without_image": 1,
        "text_unreadable": 1,  # it declares entities
        "image_without_report": 1,
    }
    assert pairing.columns["text"] == "indication + comparison + findings + impression"


def test_iu_xray_as_tables(read):
    root, pairing = read("iu_kaggle")
    images = root / "images" / "images_normalized"
    one = {
        "patient": "CXR1",
        "study": "CXR1",
        "report": "INDICATION: TB test\nCOMPARISON: None.\nFINDINGS: Lungs are clear.\nIMPRESSION: Normal.",
        "method": "layout",
        "labels": NORMAL,
    }
    assert pairing.items == (
        picture(path=images / "1_IM-0001-3001.dcm.png", line=3, view="Lateral", **one),
        picture(path=images / "1_IM-0001-4001.dcm.png", line=2, view="Frontal", **one),
        picture(
            path=images / "2_IM-0652-1001.dcm.png",
            line=4,
            patient="CXR2",
            study="CXR2",
            report="IMPRESSION: Edema, 4.2 cm heart.",
            method="layout",
            view="Frontal",
            labels={"edema": "present", "pneumonia": "uncertain"},
        ),
    )
    assert [(entry.reason, entry.line) for entry in pairing.unpaired] == [
        ("path_outside_source", 6),
        ("report_without_image", 4),
        ("row_without_image", 5),
    ]


def mimic_text(study: str) -> str:
    return f"FINAL REPORT\n FINDINGS: No effusion in study {study[-2:]}.\n\n IMPRESSION: Stable."


def mimic_item(root: Path, image: tuple[str, str, str], suffix: str, **fields) -> Item:
    patient, study, name = image
    reported = patient != "11000183"
    return Item(
        kind="dicom" if suffix == "dcm" else "raster",
        path=root / "files" / f"p{patient[:2]}" / f"p{patient}" / f"s{study}" / f"{name}.{suffix}",
        patient=f"p{patient}",
        study=f"s{study}",
        report=mimic_text(study) if reported else "",
        method="layout" if reported else "none",
        **fields,
    )


def test_mimic_cxr(read):
    root, pairing = read("mimic_cxr")
    assert pairing.items == tuple(mimic_item(root, image, "dcm") for image in layoutfilms.MIMIC_IMAGES)
    assert [(entry.reason, entry.line) for entry in pairing.unpaired] == [
        ("path_outside_source", 8),
        ("row_without_image", 7),
        ("report_without_image", 0),
        ("image_without_report", 0),
    ]
    assert pairing.notes == (
        "the table of the official split is not here: splits are drawn by the given shares",
        "no label table is here",
    )


def mimic_details() -> list[dict[str, object]]:
    """View, split and labels of the five images; the last patient is in no official split."""
    day, normal = {"study_date": "21800506"}, {"no_finding": "present"}
    edema = {"edema": "uncertain", "pneumothorax": "absent", "pleural_effusion": "present"}
    return [
        {"view": "PA", "split": "val", "labels": normal, **day},
        {"view": "LATERAL", "split": "val", "labels": normal, **day},
        {"view": "AP", "split": "val", "labels": edema, **day},
        {"view": None, "split": "test", **day},
        {"view": "LL", **day},
    ]


@pytest.mark.parametrize(("tree", "suffix"), [("mimic_cxr_jpg", "jpg"), ("mimic_cxr", "dcm")])
def test_mimic_cxr_jpg_and_its_tables_beside_the_dicom_files(tmp_path, tree, suffix):
    name, write = layouttrees.TREES[tree]
    root = write(tmp_path / "source")
    layoutfilms.mimic_tables(root)
    pairing = pair_layout(root, name)
    assert pairing.items == tuple(
        mimic_item(root, image, suffix, **details)
        for image, details in zip(layoutfilms.MIMIC_IMAGES, mimic_details(), strict=True)
    )
    assert [(entry.reason, entry.line) for entry in pairing.unpaired] == [
        ("row_without_image", 7),
        ("report_without_image", 0),
        ("image_without_report", 0),
    ]
    assert pairing.notes == (
        "labels are those of the chexpert labeller",
        "1 patients are in no official split: theirs is drawn by the given shares",
    )


def test_mimic_without_any_table_or_report_still_gives_patients_and_studies(tmp_path):
    root = tmp_path / "source"
    patient, study, name = layoutfilms.MIMIC_IMAGES[0]
    layoutfiles.empty(root / f"files/p10/p{patient}/s{study}/{name}.jpg")
    pairing = pair_layout(root, "auto")
    assert [(item.patient, item.study, item.report) for item in pairing.items] == [
        (f"p{patient}", f"s{study}", "")
    ]
    assert pairing.notes == (
        "no metadata table is here: what was expected and is missing cannot be told",
        "no report file is here: unpack mimic-cxr-reports.zip below the source",
        "the table of the official split is not here: splits are drawn by the given shares",
        "no label table is here",
    )


def test_mimic_leaves_out_an_image_in_the_folder_of_another_study(tmp_path):
    root = layoutfilms.mimic_cxr_jpg(tmp_path / "source")
    patient, study, name = layoutfilms.MIMIC_IMAGES[0]
    folder = root / "files" / "p10" / f"p{patient}"
    (folder / f"s{study}" / f"{name}.jpg").rename(folder / "s53189527" / f"{name}.jpg")
    layoutfiles.grey(folder / "s53189527" / "stranger.jpg")
    pairing = pair_layout(root, "auto")
    found = {(entry.reason, entry.line) for entry in pairing.unpaired if "table" in entry.reason}
    assert found == {("path_contradicts_table", 2)}
    assert "1 images are in no table: their path tells patient and study" in pairing.notes
    # The stranger stays: its path tells the patient, who is in the official validation set.
    assert [item.split for item in pairing.items if item.path.name == "stranger.jpg"] == ["val"]
    assert len(pairing.items) == 5


def test_chexpert(read):
    root, pairing = read("chexpert")
    edema = {"edema": "uncertain", "fracture": "absent"}
    everything = absent(*(name.lower().replace(" ", "_") for name in layoutfiles.FINDINGS))

    def item(line: int, key: str, split: str, view: str | None, labels: dict[str, str]) -> Item:
        _, patient, study, _ = key.split("/")
        return picture(
            path=root / f"{key}.jpg",
            line=line,
            patient=patient,
            study=f"{patient}/{study}",
            method="layout",
            view=view,
            split=split,
            labels=labels,
        )

    assert pairing.items == (
        item(2, "test/patient64741/study1/view1_frontal", "test", None, {"edema": "present"}),
        item(
            2,
            "train/patient00001/study1/view1_frontal",
            "train",
            "AP",
            {"no_finding": "present", "support_devices": "present"},
        ),
        item(3, "train/patient00002/study1/view1_frontal", "train", "PA", edema),
        item(4, "train/patient00002/study1/view2_lateral", "train", "Lateral", edema),
        item(2, "valid/patient64541/study1/view1_frontal", "val", "PA", everything),
    )
    assert reasons(pairing) == {"row_without_image": 1}
    assert pairing.notes == ("this data set has no reports: its images serve evaluation by labels",)
    layoutfiles.grey(root / "train" / "patient00007" / "study1" / "view1_frontal.jpg")
    assert pair_layout(root, "auto").notes[1] == "1 images are in no table: they have no labels"


def test_chexpert_plus(read):
    root, pairing = read("chexpert_plus")
    images = root / "PNG" / "PNG"
    report = "NARRATIVE:\nCHEST 1 VIEW\n\nFINDINGS:\nHeart is 4.2 cm.\n\nIMPRESSION:\n1. Edema."
    second = {
        "patient": "patient00002",
        "study": "patient00002/study1",
        "report": "FINDINGS: No effusion.\nIMPRESSION: 1. Clear.",  # assembled: the column "report" is blank
        "method": "layout",
        "split": "train",
        "labels": {"pneumonia": "uncertain"},
    }
    assert pairing.items == (
        picture(
            path=images / "train/patient00001/study1/view1_frontal.png",
            line=2,  # its JPEG is the second copy
            patient="patient00001",
            study="patient00001/study1",
            report=report,
            method="layout",
            view="AP",
            split="train",
            labels={"edema": "present"},
        ),
        picture(path=images / "train/patient00002/study1/view1_frontal.png", line=3, view="PA", **second),
        picture(
            path=images / "train/patient00002/study1/view2_lateral.png", line=4, view="Lateral", **second
        ),
        picture(
            path=images / "valid/patient64541/study1/view1_frontal.png",
            line=6,
            patient="patient64541",
            study="patient64541/study1",
            view="PA",
            split="val",
        ),
    )
    assert reasons(pairing) == {
        "second_copy_of_image": 1,
        "report_without_image": 1,
        "image_without_report": 1,
    }
    assert pairing.notes == ("labels are those that CheXbert gave the text of the impression",)


def test_chexpert_plus_takes_the_labels_of_the_reports_if_those_of_the_impressions_are_not_there(tmp_path):
    root = layoutfilms.chexpert_plus(tmp_path / "source")
    (root / "chexbert_labels" / "impression_fixed.json").unlink()
    pairing = pair_layout(root, "auto")
    assert pairing.notes == ("labels are those that CheXbert gave the text of the report",)
    (root / "chexbert_labels" / "report_fixed.json").unlink()
    pairing = pair_layout(root, "auto")
    assert pairing.notes == ("no label file is here: unpack chexbert_labels.zip below the source",)
    assert not any(item.labels for item in pairing.items)


def test_padchest(read):
    root, pairing = read("padchest")
    normal = {
        "patient": "p1",
        "study": "s1",
        "report": "sin hallazgos .",
        "study_date": "20140915",
        "method": "layout",
        "labels": NORMAL,
    }
    assert pairing.items == (
        picture(path=root / "0/a1.png", line=2, view="PA", **normal),
        picture(path=root / "0/a2.png", line=3, view="L", **normal),
        # Without a patient the study stands for one.
        picture(
            path=root / "1/c2.png",
            line=7,
            patient="s5",
            study="s5",
            method="layout",
            view="PA",
            study_date="20150105",
        ),
        picture(
            path=root / "54/b1.png",
            line=4,
            patient="p2",
            study="s2",
            report="edema de pulmon , fractura costal .",
            study_date="20150102",
            method="layout",
            view="AP_horizontal",
            # "pulmonary edema" is CheXpert's edema; a rib fracture is a fracture; "unchanged" is no finding.
            labels={
                "edema": "present",
                "rib_fracture": "present",
                "fracture": "present",
                "nsg_tube": "present",
            },
        ),
        picture(
            path=root / "54/b2.png",
            line=5,
            patient="p2",
            study="s3",
            report="no valorable .",
            study_date="20150103",
            method="layout",
            view="PA",
        ),
    )
    assert reasons(pairing) == {
        "path_outside_source": 1,
        "second_copy_of_image": 1,
        "report_without_image": 1,
        "image_without_row": 1,
        "excluded_by_the_data_set": 1,
        "image_without_report": 1,
    }
    assert pairing.notes == (
        "the reports are in Spanish: read them with --report parser=es-1",
        "1 images are marked exclude and have no labels",
        "1 images are said to be unchanged, which is no finding",
        "1 images were MONOCHROME1 before they became PNG, which states no polarity: "
        "look at them on the quality page",
    )
