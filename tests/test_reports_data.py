"""Reports of real hospitals: what the parser finds in them, and that the retrieval view alters nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from medvl.preprocess.reports import all_changes, changes, parse_report
from medvl.preprocess.reports.languages import guess_language
from medvl.preprocess.sources.columns import guess_columns
from medvl.preprocess.sources.tables import read_table
from medvl.records import Report
from medvl.specs import ReportSpec

sys.path.insert(0, str(Path(__file__).parent))
import reportchecks

pytestmark = pytest.mark.data
SPEC = ReportSpec()
# Reports with words; 21 of the 2,888 rows of IU X-ray and 75 of the 274 notes have none.
SETS = {
    "iu_xray": ("reports/iu_xray/reports.csv", 2867),
    "ct_chest_labelled": ("reports/ct_chest_labelled/reports.csv", 753),
    "clinical_notes": ("cxr/clinical_notes/images.csv", 199),
}


@pytest.fixture(scope="module", params=SETS)
def real(request, shared_data) -> tuple[str, list[Report]]:
    path, size = SETS[request.param]
    frame = read_table(shared_data / path)
    columns = guess_columns(frame)
    texts = [text for row in frame.to_dict("records") if (text := columns.report_text(row))]
    assert len(texts) == size
    return request.param, [parse_report(text) for text in texts[:: 1 if size < 1000 else 4]]


@pytest.mark.parametrize("name", SETS)
def test_nothing_is_altered_in_any_report(shared_data, name):
    """Spans, changes, numbers, comparators, negations, sides and placeholders of every report and both views.

    In a process without shape checks, which are five times as slow; :func:`reportchecks.summary` asserts too.
    """
    path, size = SETS[name]
    command = [sys.executable, str(Path(reportchecks.__file__)), str(shared_data / path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert (found["reports"], found["altered"], found["raw placeholders"]) == (size, 0, 0)
    assert min(found["counted in the views"][kind] for kind in ("number", "negation", "side")) > 100


def test_spans_changes_and_medicine_hold_with_shape_checks(real):
    _, reports = real
    for report in reports[::8]:
        reportchecks.check_spans(report)
        reportchecks.check_changes(report)


def test_expanded_abbreviations_are_listed_and_can_be_undone(real):
    _, reports = real
    spec = ReportSpec(abbreviations="expand")
    expanded = 0
    for report in reports[::8]:
        reportchecks.check_changes(report, spec)
        expanded += sum(change.reason == "abbreviation" for change in all_changes(report, spec))
    assert expanded > 0


def test_no_real_report_seems_to_be_in_another_language(real):
    _, reports = real
    assert {guess_language(report.text) for report in reports[::4]} <= {"en", ""}


def test_a_sentence_leaves_the_retrieval_view_for_a_listed_reason_only(real):
    _, reports = real
    reasons = Counter(change.reason for report in reports for change in changes(report, SPEC))
    tags = {tag for reason in reasons for tag in reason.split("+")}
    inside = {"placeholder", "placeholder clause", "invisible character"}
    assert tags <= {"heading", "list marker", *inside, *SPEC.retrieval_drop}


def test_most_of_what_is_said_reaches_the_views(real):
    name, reports = real
    sentences = sum(len(report.sentences) for report in reports)
    retrieval = sum(len(SPEC.kept(report, "retrieval")) for report in reports)
    without = sum(not SPEC.kept(report, "generation") for report in reports)
    assert retrieval / sentences > {"iu_xray": 0.85, "ct_chest_labelled": 0.99, "clinical_notes": 0.95}[name]
    assert without / len(reports) < 0.02


def test_iu_xray_sections_are_those_of_its_columns(shared_data):
    frame = read_table(shared_data / SETS["iu_xray"][0])
    columns = guess_columns(frame)
    for row in frame.iloc[::3].to_dict("records"):
        report = parse_report(columns.report_text(row))
        found = {section.name for section in report.sections}
        assert found >= {name for name in ("indication", "comparison", "findings", "impression") if row[name]}


TIMING = """
import sys, time
from pathlib import Path
from medvl.preprocess.sources.columns import guess_columns
from medvl.preprocess.reports.marks import read_sentence
from medvl.preprocess.reports import all_changes, parse_report
from medvl.preprocess.sources.tables import read_table
from medvl.specs import ReportSpec
spec = ReportSpec()
frame = read_table(Path(sys.argv[1]))
columns = guess_columns(frame)
texts = [columns.report_text(row) for row in frame.to_dict("records")]
best = float("inf")
for _ in range(3):
    read_sentence.cache_clear()
    start = time.process_time()
    for text in texts:
        report = parse_report(text)
        spec.render(report, "retrieval"), spec.render(report, "generation"), all_changes(report, spec)
    best = min(best, time.process_time() - start)
sys.stdout.write(str(len(texts) / best))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_five_hundred_reports_a_second(shared_data, name):
    """Parse, views and changes: CPU time without shape checks, no sentence seen before, best of three."""
    command = [sys.executable, "-c", TIMING, str(shared_data / SETS[name][0])]
    rate = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert rate >= 500, f"{rate:.0f} reports per CPU second"
