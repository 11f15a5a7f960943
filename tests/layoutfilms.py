"""Miniature trees of the public data sets of chest radiographs: a few patients each, with the real quirks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from layoutfiles import FINDINGS, codes, dicom, grey, lines, table, text

IU_XML = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><meta type="rr"/><uId id="CXR{n}"/><pmcId id="{n}"/>
<MedlineCitation><Article><Abstract>
<AbstractText Label="COMPARISON">{comparison}</AbstractText>
<AbstractText Label="INDICATION">{indication}</AbstractText>
<AbstractText Label="FINDINGS">{findings}</AbstractText>
<AbstractText Label="IMPRESSION">{impression}</AbstractText>
</Abstract></Article></MedlineCitation>
<MeSH>{mesh}</MeSH>{images}</eCitation>
"""


def iu_report(path: Path, n: int, *, images: Sequence[str], mesh: Sequence[str], **sections: str) -> Path:
    words = dict.fromkeys(("comparison", "indication", "findings", "impression"), "") | sections
    return text(
        path / f"{n}.xml",
        IU_XML.format(
            n=n,
            images="".join(
                f'<parentImage id="{image}"><figureId>F1</figureId></parentImage>' for image in images
            ),
            mesh="".join(f"<major>{term}</major>" for term in mesh),
            **words,
        ),
    )


def iu_xray(root: Path) -> Path:
    """Three reports with images (one of two views, one whose second image is missing), one without."""
    reports, images = root / "ecgen-radiology", root / "NLMCXR_png"
    iu_report(
        reports,
        1,
        images=["CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"],
        mesh=["normal"],
        comparison="None.",
        indication="Positive TB test",
        findings="Lungs are clear &amp; expanded.",
        impression="Normal chest x-XXXX.",
    )
    iu_report(
        reports,
        2,
        images=["CXR2_IM-0652-1001", "CXR2_IM-0652-2001"],
        mesh=["Cardiomegaly/borderline", "Pulmonary Artery/enlarged", "Pleural Effusion/left/small"],
        impression="No acute findings.",
    )
    iu_report(reports, 3, images=["CXR3_IM-1384-1001"], mesh=["No Indexing"])
    iu_report(reports, 4, images=[], mesh=["normal"], findings="Clear.")
    text(reports / "5.xml", '<!DOCTYPE x [<!ENTITY a "b">]><eCitation>&a;</eCitation>')
    for name in ("CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001", "CXR2_IM-0652-1001", "CXR3_IM-1384-1001"):
        grey(images / f"{name}.png")
    return root


def iu_kaggle(root: Path) -> Path:
    """The two tables of the Kaggle copy; the second image of the second report is missing."""
    table(
        root / "indiana_reports.csv",
        ("uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression"),
        [
            (
                1,
                "normal",
                "normal",
                "Xray Chest PA and Lateral",
                "TB test",
                "None.",
                "Lungs are clear.",
                "Normal.",
            ),
            (2, "Pulmonary Edema;Pneumonia/borderline", "x", "Chest", "", "", "", "Edema, 4.2 cm heart."),
            (9, "normal", "normal", "Chest", "", "", "Clear.", ""),
        ],
    )
    table(
        root / "indiana_projections.csv",
        ("uid", "filename", "projection"),
        [
            (1, "1_IM-0001-4001.dcm.png", "Frontal"),
            (1, "1_IM-0001-3001.dcm.png", "Lateral"),
            (2, "2_IM-0652-1001.dcm.png", "Frontal"),
            (2, "2_IM-0652-2001.dcm.png", "Lateral"),
            (2, "../../2_IM-0652-9001.dcm.png", "Lateral"),
        ],
    )
    for name in ("1_IM-0001-4001", "1_IM-0001-3001", "2_IM-0652-1001"):
        grey(root / "images" / "images_normalized" / f"{name}.dcm.png")
    return root


MIMIC_IMAGES = (
    ("10000032", "50414267", "02aa804e-bde0afdd"),
    ("10000032", "50414267", "174413ec-4ec4c1f7"),
    ("10000032", "53189527", "2a2277a9-b0ded155"),
    ("10000764", "57375967", "096052b7-d256dc40"),
    ("11000183", "51967845", "d1f3a6b2-77c0e4aa"),
)
MIMIC_GONE = ("11000183", "51967846", "ffffffff-00000000")
"""In the tables, and not on disk."""
MIMIC_REPORT = "                                 FINAL REPORT\n FINDINGS: {words}\n\n IMPRESSION: Stable.\n"


def _mimic(root: Path, *, suffix: str, write: Callable[[Path], Path], reports: str) -> Path:
    for subject, study, image in MIMIC_IMAGES:
        write(root / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{study}" / f"{image}.{suffix}")
    said = {"10000032": ["50414267", "53189527"], "10000764": ["57375967"], "12000001": ["59999999"]}
    for subject, studies in said.items():
        for study in studies:
            folder = root / reports / f"p{subject[:2]}" / f"p{subject}"
            text(folder / f"s{study}.txt", MIMIC_REPORT.format(words=f"No effusion in study {study[-2:]}."))
    return root


def mimic_tables(root: Path) -> None:
    """The tables of MIMIC-CXR-JPG 2.1.0; the last patient is in no split."""
    views = ("PA", "LATERAL", "AP", "", "LL", "PA")
    rows = [*MIMIC_IMAGES, MIMIC_GONE]
    table(
        root / "mimic-cxr-2.0.0-metadata.csv.gz",
        (
            "dicom_id",
            "subject_id",
            "study_id",
            "PerformedProcedureStepDescription",
            "ViewPosition",
            "StudyDate",
        ),
        [(i, p, s, "CHEST (PA AND LAT)", v, "21800506") for (p, s, i), v in zip(rows, views, strict=True)],
    )
    official = {"10000032": "validate", "10000764": "test"}
    table(
        root / "mimic-cxr-2.0.0-split.csv.gz",
        ("dicom_id", "study_id", "subject_id", "split"),
        [(i, s, p, official[p]) for p, s, i in rows if p in official],
    )
    table(
        root / "mimic-cxr-2.0.0-chexpert.csv.gz",
        ("subject_id", "study_id", *FINDINGS),
        [
            ("10000032", "50414267", *codes(No_Finding=1.0)),
            ("10000032", "53189527", *codes(Edema=-1.0, Pneumothorax=0.0, Pleural_Effusion=1.0)),
        ],
    )


def mimic_cxr_jpg(root: Path) -> Path:
    """Five images of four studies and three patients, reports in ``mimic-cxr-reports``."""
    _mimic(root, suffix="jpg", write=grey, reports="mimic-cxr-reports/files")
    mimic_tables(root)
    return root


def mimic_cxr(root: Path) -> Path:
    """The same studies as DICOM, reports beside the folders of the studies, and the record list."""
    _mimic(root, suffix="dcm", write=dicom, reports="files")
    names = [(p, s, i, f"files/p{p[:2]}/p{p}/s{s}/{i}.dcm") for p, s, i in (*MIMIC_IMAGES, MIMIC_GONE)]
    outside = ("1", "5", "0a", "../elsewhere/0a.dcm")
    table(root / "cxr-record-list.csv.gz", ("subject_id", "study_id", "dicom_id", "path"), [*names, outside])
    table(root / "cxr-study-list.csv.gz", ("subject_id", "study_id", "path"), [])
    return root


CHEXPERT_ROWS = (
    ("train", "patient00001/study1/view1_frontal", "Frontal", "AP"),
    ("train", "patient00002/study1/view1_frontal", "Frontal", "PA"),
    ("train", "patient00002/study1/view2_lateral", "Lateral", ""),
    ("train", "patient00002/study2/view1_frontal", "Frontal", "AP"),
    ("valid", "patient64541/study1/view1_frontal", "Frontal", "PA"),
)
"""The image of the second study of patient00002 is not on disk."""


def chexpert(root: Path) -> Path:
    """Train, valid and test tables with the prefix of the release in each path."""
    names = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS)
    states = (
        codes(No_Finding=1.0, Support_Devices=1.0),
        codes(Edema=-1.0, Fracture=0.0),
        codes(Edema=-1.0, Fracture=0.0),
        codes(),
        codes(**{name.replace(" ", "_"): 0.0 for name in FINDINGS}),
    )
    for split in ("train", "valid"):
        table(
            root / f"{split}.csv",
            names,
            [
                (f"CheXpert-v1.0-small/{part}/{key}.jpg", "Female", 68, plane, side, *row)
                for (part, key, plane, side), row in zip(CHEXPERT_ROWS, states, strict=True)
                if part == split
            ],
        )
    table(
        root / "test_labels.csv",
        ("Path", *FINDINGS),
        [("test/patient64741/study1/view1_frontal.jpg", *codes(Edema=1))],
    )
    for part, key, _, _ in CHEXPERT_ROWS:
        if "study2" not in key:
            grey(root / part / f"{key}.jpg")
    grey(root / "test/patient64741/study1/view1_frontal.jpg")
    return root


def chexpert_plus(root: Path) -> Path:
    """PNG files in ``PNG/PNG``, one of them also as JPEG; labels as JSON lines."""
    report = "NARRATIVE:\nCHEST 1 VIEW\n\nFINDINGS:\nHeart is 4.2 cm.\n\nIMPRESSION:\n1. Edema."
    said = (
        (report, "", ""),
        ("", "No effusion.", "1. Clear."),
        ("", "No effusion.", "1. Clear."),
        ("Late.", "", ""),
        ("", "", ""),
    )
    table(
        root / "df_chexpert_plus_240401.csv",
        (
            "path_to_image",
            "path_to_dcm",
            "frontal_lateral",
            "ap_pa",
            "deid_patient_id",
            "patient_report_date_order",
            "report",
            "section_findings",
            "section_impression",
            "age",
            "sex",
            "split",
        ),
        [
            (
                f"{part}/{key}.jpg",
                f"{part}/{key}.dcm",
                plane,
                side,
                key.split("/")[0],
                1,
                *words,
                60,
                "Male",
                part,
            )
            for (part, key, plane, side), words in zip(CHEXPERT_ROWS, said, strict=True)
        ],
    )
    for part, key, _, _ in CHEXPERT_ROWS:
        if "study2" not in key:
            grey(root / "PNG" / "PNG" / part / f"{key}.png")
    grey(root / "train" / "patient00001/study1/view1_frontal.jpg")
    blank = dict.fromkeys(FINDINGS)
    lines(
        root / "chexbert_labels" / "impression_fixed.json",
        [
            {"path_to_image": "train/patient00001/study1/view1_frontal.jpg", **blank, "Edema": 1.0},
            {"path_to_image": "train/patient00002/study1/view1_frontal.jpg", **blank, "Pneumonia": -1.0},
            {"path_to_image": "train/patient00002/study1/view2_lateral.jpg", **blank, "Pneumonia": -1.0},
        ],
    )
    lines(root / "chexbert_labels" / "report_fixed.json", [{"path_to_image": "a/b/c.jpg", "Fracture": 1.0}])
    return root


def padchest(root: Path) -> Path:
    """16-bit PNG files in numbered folders; labels with blanks, capitals, "exclude" and narrower kinds."""
    names = ("ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "Projection", "Pediatric")
    rows = [
        ("a1.png", 0, 20140915, "s1", "p1", "PA", "No", "sin hallazgos .", "['Normal']", "MONOCHROME2"),
        ("a2.png", 0, 20140915, "s1", "p1", "L", "No", "sin hallazgos .", "['Normal']", "MONOCHROME1"),
        (
            "b1.png",
            54,
            20150102,
            "s2",
            "p2",
            "AP_horizontal",
            "No",
            "edema de pulmon , fractura costal .",
            "['pulmonary edema', ' rib fracture', '', ' Unchanged', 'NSG tube']",
            "MONOCHROME2",
        ),
        ("b2.png", 54, 20150103, "s3", "p2", "PA", "No", "no valorable .", "['exclude', 'cardiomegaly']", ""),
        ("c1.png", 1, 20150104, "s4", "p3", "EXCLUDE", "No", "rodilla .", "['normal']", ""),
        ("c2.png", 1, 20150105, "s5", "", "PA", "PED", "", "", ""),
        ("gone.png", 1, 20150106, "s6", "p4", "PA", "No", "x .", "['normal']", ""),
        ("../../etc.png", 1, 20150106, "s6", "p4", "PA", "No", "x .", "['normal']", ""),
    ]
    table(
        root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz",
        ("", *names, "Report", "Labels", "PhotometricInterpretation_DICOM", "Localizations"),
        [(k, *row, "['loc right']") for k, row in enumerate(rows)],
    )
    for name, folder in (("a1", 0), ("a2", 0), ("b1", 54), ("b2", 54), ("c1", 1), ("c2", 1), ("unknown", 1)):
        grey(root / str(folder) / f"{name}.png", bits=16)
    grey(root / "copy" / "a1.png", bits=16)
    return root
