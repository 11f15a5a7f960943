"""The labeller against the truth of phantoms, whose reports are drawn from what their films show."""

from __future__ import annotations

import csv

from medvl.phantoms.cxr import write_phantoms
from medvl.preprocess.reports import parse_report
from medvl.preprocess.reports.findings import said
from medvl.records import IS_PRESENT

NAMES = {
    "cardiomegaly": "cardiomegaly",
    "consolidation": "consolidation",
    "interstitial_edema": "edema",
    "nodule": "lung_lesion",
    "pleural_effusion": "pleural_effusion",
    "pneumothorax": "pneumothorax",
}


def test_no_report_of_a_phantom_says_the_opposite_of_its_film(tmp_path):
    write_phantoms(tmp_path, n=120, seed=3, level="hard", size_px=64, workers=1)
    with (tmp_path / "labels.csv").open() as stream:
        truth = {row["accession"]: row for row in csv.DictReader(stream)}
    spoken = 0
    with (tmp_path / "reports.csv").open() as stream:
        for row in csv.DictReader(stream):
            states = said(parse_report(row["report"]), vocabulary="cxr")
            for name, finding in NAMES.items():
                if finding in states:
                    assert IS_PRESENT[states[finding]] == (truth[row["accession"]][name] == "1"), row[
                        "report"
                    ]
                    spoken += 1
    assert spoken > 0.5 * 6 * len(truth)  # most reports speak of most findings
