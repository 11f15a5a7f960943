"""Miniature trees of the public data sets of volumes, slides and figures; and the list of all trees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from layoutfiles import empty, grey, lines, table, text
from layoutfilms import chexpert, chexpert_plus, iu_kaggle, iu_xray, mimic_cxr, mimic_cxr_jpg, padchest

from medvl.preprocess.sources.pairing import Item, Pairing

CT_FINDINGS = (
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
)


# --- CT -----------------------------------------------------------------------------------------------------


def ct_rate(root: Path) -> Path:
    """Two reconstructions of one scan, a copy of one in ``train``, a validation patient, a brain scan."""
    data = root / "dataset"
    columns = ("VolumeName", "ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN")
    table(
        data / "radiology_text_reports" / "train_reports.csv",
        columns,
        [
            ("train_1_a_1.nii.gz", "Cough.", "1.5 mm slices.", "Trachea open.\nNodule of 4.2 mm.", "Nodule."),
            ("train_2_a_1.nii.gz", "", "", "Brain.", ""),
            ("train_3_a_1.nii.gz", "", "", "Not on this disk.", ""),
        ],
    )
    table(
        data / "radiology_text_reports" / "validation_reports.csv",
        columns,
        [("valid_1_a_1.nii.gz", "", "", "No effusion.", "Normal.")],
    )
    on, off = [0] * 18, [0] * 18
    on[9] = 1
    table(
        data / "multi_abnormality_labels" / "train_predicted_labels.csv",
        ("VolumeName", *CT_FINDINGS),
        [("train_1_a_1.nii.gz", *on), ("train_1_a_2.nii.gz", *on)],
    )
    table(
        data / "multi_abnormality_labels" / "valid_predicted_labels.csv",
        ("VolumeName", *CT_FINDINGS),
        [("valid_1_a_1.nii.gz", *off)],
    )
    table(
        data / "metadata" / "train_metadata.csv",
        ("VolumeName", "Manufacturer", "RescaleIntercept", "RescaleSlope", "XYSpacing", "ZSpacing"),
        [("train_1_a_1.nii.gz", "SIEMENS", -8192, 1, "[0.7, 0.7]", 1.5)],
    )
    text(data / "metadata" / "no_chest_train.txt", "train_2_a_1.nii.gz\n")
    for name in ("train_fixed/train_1/train_1_a/train_1_a_1", "train_fixed/train_1/train_1_a/train_1_a_2"):
        empty(data / f"{name}.nii.gz")
    for name in ("train/train_1/train_1_a/train_1_a_1", "train/train_2/train_2_a/train_2_a_1"):
        empty(data / f"{name}.nii.gz")
    empty(data / "valid" / "valid_1" / "valid_1_a" / "valid_1_a_1.nii.gz")
    return root


# --- pathology and figures ----------------------------------------------------------------------------------


def quilt_1m(root: Path) -> Path:
    """Frames of a video on both sides of the split, a picture with two captions, one that is no tissue."""
    table(
        root / "quilt_1M_lookup.csv",
        (
            "",
            "caption",
            "image_path",
            "subset",
            "split",
            "pathology",
            "roi_text",
            "magnification",
            "not_histology",
        ),
        [
            (0, "Glands.", "-0ZKVTI86Cs_image_01.jpg", "quilt", "train", "['Renal']", "['glands']", 2.0, 0),
            (1, "Stroma.", "-0ZKVTI86Cs_image_02.jpg", "quilt", "val", "['Renal']", "[]", 1.0, 0),
            (2, "Mitoses, 3 per field.", "tweet7.jpg", "openpath", "val", "", "", "", 0),
            (3, "Atypia.", "tweet7.jpg", "openpath", "val", "", "", "", 0),
            (4, "A lecture hall.", "hall.jpg", "laion", "train", "", "", "", 1),
            (5, "Not on disk.", "gone.jpg", "laion", "train", "", "", "", 0),
            (6, "Elsewhere.", "../secret.jpg", "laion", "train", "", "", "", 0),
        ],
    )
    for name in ("-0ZKVTI86Cs_image_01", "-0ZKVTI86Cs_image_02", "tweet7", "hall"):
        grey(root / "images" / "quilt_1m" / f"{name}.jpg")
    return root


def pmc_oa(root: Path) -> Path:
    """Subfigures of two articles, and one figure without an article."""
    folder = root / "caption_T060_filtered_top4_sep_v0_subfigures"
    lines(
        root / "pmc_oa.jsonl",
        [
            {"image": "PMC212319_Fig3_0.jpg", "caption": "Frontal film.", "alignment_type": "ocr"},
            {"image": "PMC212319_Fig3_1.jpg", "caption": "Frontal film.", "alignment_score": 0.9},
            {"image": "PMC212319_Fig4_0.jpg", "caption": "CT."},
            {"image": "PMC3_Fig1_0.jpg", "caption": "MRI."},
            {"image": "own.jpg", "caption": "No article."},
            {"image": "PMC3_Fig9_0.jpg", "caption": "Not on disk."},
            {"image": "../PMC3_Fig8_0.jpg", "caption": "Elsewhere."},
        ],
    )
    for name in ("PMC212319_Fig3_0", "PMC212319_Fig3_1", "PMC212319_Fig4_0", "PMC3_Fig1_0", "own"):
        grey(folder / f"{name}.jpg")
    return root


def biomedclip(root: Path) -> Path:
    """Articles with lists of figures, whose paths are those of another machine; two share a file name."""
    figures = {"PMC1": ["gr1", "gr2"], "PMC2": ["gr1"]}
    lines(
        root / "pubmed_parsed_data.jsonl",
        [
            {
                "pmid": article[3:],
                "pmc": article[3:],
                "figures": [
                    {
                        "fig_caption": f"{article} {name}.",
                        "fig_id": name,
                        "graphic_ref": f"/data/pubmed/{article}/{name}.jpg",
                        "pair_id": name,
                    }
                    for name in names
                ],
            }
            for article, names in figures.items()
        ],
    )
    for article, names in figures.items():
        for name in names:
            grey(root / "pubmed_open_access_files" / article / f"{name}.jpg")
    return root


def tcga_reports(root: Path) -> Path:
    """Two slides of a patient, one of normal tissue, a patient with two reports, one without a slide."""
    uuid = "25c0b433-5557-4165-922e-2c1eac9c26f0"
    table(
        root / "TCGA_Reports.csv",
        ("patient_filename", "text"),
        [
            (f"TCGA-BP-5195.{uuid}", "Date of Receipt: Clear cell carcinoma, 4.2 cm."),
            (f"TCGA-D7-8573.{uuid}", "One."),
            (f"TCGA-D7-8573.{uuid}", "Another."),
            (f"TCGA-EI-7004.{uuid}", "Not on disk."),
            ("no barcode", "Who?"),
        ],
    )
    for folder, name in (
        ("11aa", "TCGA-BP-5195-01Z-00-DX1"),
        ("22bb", "TCGA-BP-5195-01A-01-TS1"),
        ("33cc", "TCGA-BP-5195-11A-01-TS1"),
        ("44dd", "TCGA-D7-8573-01Z-00-DX1"),
        ("55ee", "TCGA-ZZ-0000-01Z-00-DX1"),
    ):
        grey(root / folder / f"{name}.{uuid}.svs")
    return root


TREES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "iu_xray": ("iu-xray", iu_xray),
    "iu_kaggle": ("iu-xray", iu_kaggle),
    "mimic_cxr": ("mimic-cxr", mimic_cxr),
    "mimic_cxr_jpg": ("mimic-cxr-jpg", mimic_cxr_jpg),
    "chexpert": ("chexpert", chexpert),
    "chexpert_plus": ("chexpert-plus", chexpert_plus),
    "padchest": ("padchest", padchest),
    "ct_rate": ("ct-rate", ct_rate),
    "quilt_1m": ("quilt-1m", quilt_1m),
    "pmc_oa": ("pmc-oa", pmc_oa),
    "biomedclip": ("pmc-oa", biomedclip),
    "tcga_reports": ("tcga-reports", tcga_reports),
}
"""Tree to the name of its layout and the function that writes it. A new layout adds a line here."""


def picture(**fields) -> Item:
    """Return an item of a PNG or JPEG file."""
    return Item(**({"kind": "raster"} | fields))


def reasons(pairing: Pairing) -> dict[str, int]:
    """Return reason to number of what has no partner."""
    return dict(Counter(entry.reason for entry in pairing.unpaired))
