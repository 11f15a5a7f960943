"""Spanish reports: the examples of the rules "es-1"."""

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

SPEC = ReportSpec(parser="es-1")
REPORT = """MOTIVO DE CONSULTA: Tos y fiebre.
TÉCNICA: Radiografía de tórax PA y lateral.
HALLAZGOS: Nódulo de 4,2 cm en el lóbulo superior izquierdo. No se observa derrame pleural.
Derrame derecho estable. Sin cambios respecto al estudio previo.
IMPRESIÓN DIAGNÓSTICA:
1. Nódulo pulmonar izquierdo.
2. Se recomienda TC.
Firmado por la Dra. Ejemplo."""
# As the public reports of PadChest are written: stems, small letters, a full stop between blanks.
STEMMED = (
    "derram pleural izquierd . sin hallazg patolog . sin cambi respect a estudi previ . cardiomegali establ ."
)


def test_a_whole_report():
    report = parse_report(REPORT, parser="es-1")
    assert [section.name for section in report.sections] == [
        "indication",
        "technique",
        "findings",
        "impression",
    ]
    assert SPEC.render(report, "retrieval") == (
        "Tos y fiebre.",
        "Radiografía de tórax PA y lateral.",
        "Nódulo de 4,2 cm en el lóbulo superior izquierdo.",
        "No se observa derrame pleural.",
        "Derrame derecho estable.",
        "Sin cambios respecto al estudio previo.",
        "Nódulo pulmonar izquierdo.",
        "Se recomienda TC.",
    )
    assert SPEC.render(report, "generation") == (
        "Nódulo de 4,2 cm en el lóbulo superior izquierdo.",
        "No se observa derrame pleural.",
        "Derrame derecho.",
        "Nódulo pulmonar izquierdo.",
    )
    reportchecks.check_spans(report)
    reportchecks.check_changes(report, SPEC)
    reportchecks.check_medicine(REPORT, SPEC)


def test_a_stemmed_line_of_padchest():
    report = parse_report(STEMMED, parser="es-1")
    assert [(report.sentence_text(s), s.tags) for s in report.sentences] == [
        ("derram pleural izquierd .", ()),
        ("sin hallazg patolog .", ()),
        ("sin cambi respect a estudi previ .", ("prior",)),
        ("cardiomegali establ .", ("prior-mixed",)),
    ]
    assert SPEC.render(report, "generation")[-1] == "cardiomegali ."
    reportchecks.check_medicine(STEMMED, SPEC)


HEADINGS = {
    "HALLAZGOS: Normal. CONCLUSIÓN: Normal.": ["findings", "impression"],
    "Hallazgos: Normal.\nConclusion: Normal.": ["findings", "impression"],
    "hallasgos: normal.\nimpresíon: normal.": ["findings", "impression"],
    "Hallazgos\nNormal.\nImpresión diagnóstica\nNormal.": ["findings", "impression"],
    "Datos clínicos: Tos. Hallazgos: Normal.": ["history", "findings"],
    "Corazón: normal. Pulmón: libre.": ["body"],
}


@pytest.mark.parametrize("text", HEADINGS)
def test_headings(text):
    assert [section.name for section in parse_report(text, parser="es-1").sections] == HEADINGS[text]


SENTENCES = [
    ["Masa de aprox. 3 cm.", "No hay derrame."],
    ["Nódulo de 4,2 cm.", "Otro de 1.5 cm."],
    ["Informe de la Dra. Ejemplo.", "Fin."],
    ["Derrame izdo. moderado.", "Sin neumotórax."],
    ["¿Derrame?", "No."],
    ["1.500 ml de derrame.", "Ángulos libres."],
]


@pytest.mark.parametrize("parts", SENTENCES)
def test_sentences(parts):
    report = parse_report(" ".join(parts), parser="es-1")
    assert [report.sentence_text(sentence) for sentence in report.sentences] == parts


TAGS = {
    "No se observa derrame pleural.": (),
    "Sin cambios respecto al estudio previo.": ("prior",),
    "Derrame estable.": ("prior-mixed",),
    "Se recomienda TC de control.": ("recommendation",),
    "Nódulo, se recomienda TC.": ("recommendation-mixed",),
    "Se comunica por teléfono.": ("communication",),
    "Radiografía de tórax PA y lateral.": ("technique",),
    "Paciente de 60 años con tos.": ("history",),
    "Firmado por la Dra. Ejemplo.": ("identity",),
    "___": ("empty", "placeholder"),
}


@pytest.mark.parametrize("text", TAGS)
def test_tags(text):
    (sentence,) = parse_report(text, parser="es-1").sentences
    assert sentence.tags == TAGS[text]


VIEWS = {
    "Comparado con la radiografía de fecha ___, derrame derecho.": ("Derrame derecho.", "Derrame derecho."),
    "Paciente de ___ años con nódulo.": ("Paciente de [age] años con nódulo.", ""),
    "Derrame pleural izquierdo estable.": (
        "Derrame pleural izquierdo estable.",
        "Derrame pleural izquierdo.",
    ),
    "Derrame mayor de 2 cm con respecto al estudio previo.": (
        "Derrame mayor de 2 cm con respecto al estudio previo.",
        "Derrame mayor de 2 cm.",
    ),
    "No hay derrame estable.": ("No hay derrame estable.", "No hay derrame estable."),
    "El derrame es estable.": ("El derrame es estable.", "El derrame es estable."),
    "Derrame, sin cambios respecto a estudio previo.": (
        "Derrame, sin cambios respecto a estudio previo.",
        "Derrame, sin cambios.",
    ),
    "Derrame respecto al estudio previo de 3/4/2015.": (
        "Derrame respecto al estudio previo de 3/4/2015.",
        "Derrame respecto al estudio previo de 3/4/2015.",
    ),
}


@pytest.mark.parametrize("text", VIEWS)
def test_views(text):
    report = reportchecks.check_medicine(text, SPEC)
    assert tuple(" ".join(SPEC.render(report, view)) for view in reportchecks.VIEWS) == VIEWS[text]
    reportchecks.check_changes(report, SPEC)


WORDS = st.sampled_from(
    "no sin ni izquierdo derecho izquierd bilateral derrame nódulo cardiomegali establ estable 4,2 cm 1.5 < "
    "> HALLAZGOS: Impresión: cambios respecto al estudio previo comparado con la radiografía de fecha ___ "
    "XXXX Dra. aprox. . , ( ) El un es y o mayor de persistente Sin No se informa por Dr. años".split()
)


@settings(max_examples=200, deadline=None)
@given(st.lists(WORDS, max_size=25))
def test_numbers_comparators_negations_and_sides_survive(words):
    text = " ".join(words)
    report = reportchecks.check_medicine(text, SPEC)
    reportchecks.check_spans(report)
    reportchecks.check_changes(report, SPEC)


def test_the_language_is_noticed():
    assert guess_language(REPORT) == guess_language(STEMMED * 2) == "es"
    assert guess_language("FINDINGS: There is no effusion in the left lung.") == "en"
