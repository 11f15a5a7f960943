"""German reports: the examples of the rules "de-1"."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvl.preprocess.reports import parse_report
from medvl.preprocess.reports.languages import guess_language
from medvl.specs import ReportSpec

sys.path.insert(0, str(Path(__file__).parent))
import reportchecks

SPEC = ReportSpec(parser="de-1")
REPORT = """Klinische Angaben: Husten seit 3 Tagen.
Fragestellung: Pneumonie?
Technik: Röntgen Thorax in 2 Ebenen.
Befund: Keine Voraufnahmen zum Vergleich. Ca. 4,2 cm große Raumforderung im li. Oberlappen.
Z. n. Sternotomie. V. a. Fraktur der 3. Rippe rechts. Kein Pleuraerguss.
Beurteilung:
1. Raumforderung links.
2. CT empfohlen.
Befundet durch Dr. Muster."""


def test_a_whole_report():
    report = parse_report(REPORT, parser="de-1")
    assert [section.name for section in report.sections] == [
        "history",
        "indication",
        "technique",
        "findings",
        "impression",
    ]
    assert SPEC.render(report, "retrieval") == (
        "Husten seit 3 Tagen.",
        "Pneumonie?",
        "Röntgen Thorax in 2 Ebenen.",
        "Keine Voraufnahmen zum Vergleich.",
        "Ca. 4,2 cm große Raumforderung im li. Oberlappen.",
        "Z. n. Sternotomie.",
        "V. a. Fraktur der 3. Rippe rechts.",
        "Kein Pleuraerguss.",
        "Raumforderung links.",
        "CT empfohlen.",
    )
    assert SPEC.render(report, "generation") == (
        "Ca. 4,2 cm große Raumforderung im li. Oberlappen.",
        "V. a. Fraktur der 3. Rippe rechts.",
        "Kein Pleuraerguss.",
        "Raumforderung links.",
    )
    reportchecks.check_spans(report)
    reportchecks.check_changes(report, SPEC)
    reportchecks.check_medicine(REPORT, SPEC)


HEADINGS = {
    "BEFUND: Frei. BEURTEILUNG: Frei.": ["findings", "impression"],
    "Befund\nFrei.\nBeurteilung\nFrei.": ["findings", "impression"],
    "Befumd: Frei.\nBeurteliung: Frei.": ["findings", "impression"],
    "Rechtfertigende Indikation: Husten. Befund: Frei.": ["indication", "findings"],
    "BEFUND Die Lunge ist frei. BEURTEILUNG Frei.": ["findings", "impression"],
    "Herz: normal. Lunge: frei.": ["body"],
}


@pytest.mark.parametrize("text", HEADINGS)
def test_headings(text):
    assert [section.name for section in parse_report(text, parser="de-1").sections] == HEADINGS[text]


SENTENCES = [
    ["Fraktur der 3. Rippe.", "Kein Erguss."],
    ["Im 2. und 3. ICR Verdichtung.", "Frei."],
    ["Aufnahme vom 12.03.2015.", "Erguss."],
    ["Am 5. März 2015 Tubus.", "Erguss."],
    ["Rundherd, z. B. Granulom.", "Frei."],
    ["Erguss bds.", "Keine Stauung."],
    ["Verdichtung bds. Oberlappen."],
    ["Erguss bzw. Pneumonie, ggf. Stauung.", "Sonst frei."],
    ["Nach i. v. Kontrastmittel keine Embolie.", "Herz normal."],
    ["Masse von 1,5 x 2,0 cm.", "Narbe."],
    ["Beurteilung durch Prof. Dr. med. Muster.", "Ende."],
    ["Erguss re. basal.", "Masse."],
]


@pytest.mark.parametrize("parts", SENTENCES)
def test_sentences(parts):
    report = parse_report(" ".join(parts), parser="de-1")
    assert [report.sentence_text(sentence) for sentence in report.sentences] == parts


TAGS = {
    "Kein Pleuraerguss.": (),
    "Keine Befundänderung im Vergleich zur Voraufnahme.": ("prior",),
    "Unveränderter Pleuraerguss rechts.": ("prior-mixed",),
    "Zunehmende Stauung.": ("prior-mixed",),
    "CT empfohlen.": ("recommendation",),
    "Rundherd, CT empfohlen.": ("recommendation-mixed",),
    "Telefonisch mitgeteilt.": ("communication",),
    "Röntgen Thorax pa.": ("technique",),
    "Z. n. Sternotomie.": ("history",),
    "67-jähriger Patient mit Fieber.": ("history",),
    "Befundet durch Frau Muster.": ("identity",),
    "Pulmonale Hypertonie.": (),
    "___": ("empty", "placeholder"),
}


@pytest.mark.parametrize("text", TAGS)
def test_tags(text):
    (sentence,) = parse_report(text, parser="de-1").sentences
    assert sentence.tags == TAGS[text]


VIEWS = {
    "Im Vergleich zur Voruntersuchung vom ___ kleiner Erguss rechts.": (
        "Kleiner Erguss rechts.",
        "Kleiner Erguss rechts.",
    ),
    "Der Rundherd misst ___ cm.": ("Der Rundherd misst [number] cm.", ""),
    "Unveränderter kleiner Pleuraerguss rechts.": (
        "Unveränderter kleiner Pleuraerguss rechts.",
        "Kleiner Pleuraerguss rechts.",
    ),
    "Pleuraerguss im Vergleich zur Voraufnahme größer als 2 cm.": (
        "Pleuraerguss im Vergleich zur Voraufnahme größer als 2 cm.",
        "Pleuraerguss größer als 2 cm.",
    ),
    "Kein neuer Erguss.": ("Kein neuer Erguss.", "Kein neuer Erguss."),
    "Erguss gegenüber der Voraufnahme vom 3.4.2015 größer.": (
        "Erguss gegenüber der Voraufnahme vom 3.4.2015 größer.",
        "Erguss gegenüber der Voraufnahme vom 3.4.2015 größer.",
    ),
}


@pytest.mark.parametrize("text", VIEWS)
def test_views(text):
    report = reportchecks.check_medicine(text, SPEC)
    assert tuple(" ".join(SPEC.render(report, view)) for view in reportchecks.VIEWS) == VIEWS[text]
    reportchecks.check_changes(report, SPEC)


WORDS = st.sampled_from(
    "kein keine nicht ohne links rechts li. re. bds. Erguss Pleuraerguss Raumforderung 4,2 cm 3. Rippe < > "
    "Befund: Beurteilung: unverändert unveränderter neuer Im Vergleich zur Voruntersuchung vom ___ "
    "am 12.03.2015 ca. bzw. V. a. Z. n. . , ( ) Der eine ist mit größer als bis "
    "2. und XXXX gegenüber der Voraufnahme".split()
)


@settings(max_examples=200, deadline=None)
@given(st.lists(WORDS, max_size=25))
def test_numbers_comparators_negations_and_sides_survive(words):
    text = " ".join(words)
    report = reportchecks.check_medicine(text, SPEC)
    reportchecks.check_spans(report)
    reportchecks.check_changes(report, SPEC)


def test_the_language_is_noticed():
    assert guess_language(REPORT) == "de"
    assert guess_language("Kein Erguss.") == ""
