"""The text views against the phantoms, which say of each sentence whether an image can show it."""

from __future__ import annotations

import csv
from pathlib import Path

from medvl.phantoms.cxr import write_phantoms
from medvl.preprocess.reports import parse_report
from medvl.specs import ReportSpec


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_the_generation_view_keeps_what_an_image_can_show_and_little_else(tmp_path):
    write_phantoms(tmp_path / "set", n=80, seed=11, size_px=64)
    reports = {
        row["accession"]: parse_report(row["report"]) for row in rows(tmp_path / "set" / "reports.csv")
    }
    spec = ReportSpec()
    kept = {"0": 0, "1": 0}
    total = {"0": 0, "1": 0}
    for row in rows(tmp_path / "set" / "sentences.csv"):
        report = reports[row["accession"]]
        assert row["text"] in [report.sentence_text(sentence) for sentence in report.sentences]
        kept[row["observable"]] += row["text"] in spec.render(report, "generation")
        total[row["observable"]] += 1
    assert kept["1"] == total["1"] > 300
    assert kept["0"] <= 0.05 * total["0"]
    assert total["0"] > 30
