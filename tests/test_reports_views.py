"""What the views do inside a sentence: placeholders, phrases about priors, abbreviations."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvl.preprocess.reports import all_changes, changes, parse_report
from medvl.preprocess.reports.rules import PARSERS
from medvl.records import Change, Report
from medvl.specs import RAW_PLACEHOLDER, ReportSpec
from medvl.specs.abbreviations import contract, expansions, load_abbreviations

sys.path.insert(0, str(Path(__file__).parent))
import reportchecks

SPEC = ReportSpec()


def shown(text: str, *, view: str = "retrieval", **options: str) -> str:
    """Render one view of a text of findings, after the checks that hold for every text."""
    spec = ReportSpec(**options)
    report = parse_report(text, parser=spec.parser)
    reportchecks.check_spans(report)
    reportchecks.check_changes(report, spec)
    if spec.abbreviations == "keep":
        reportchecks.check_medicine(text, spec)
    return " ".join(spec.render(report, view))


# --- placeholders -----------------------------------------------------------------------------------------

TYPED = {
    "Seen by Dr. ___ today.": "Seen by Dr. [name] today.",
    "Interpreted by ___.": "",  # identity
    "CT dated XXXX shows a nodule.": "CT dated [date] shows a nodule.",
    "Nodule seen on ___.": "Nodule seen on [date].",
    "A XXXX-year-old man with cough.": "A [age]-year-old man with cough.",
    "The mass measures ___ cm.": "The mass measures [number] cm.",
    "The mass measures ___.": "The mass measures [number].",
    "Tube placed at ___ p.m. today.": "Tube placed at [time] p.m. today.",
    "There is a XXXX catheter.": "There is a [redacted] catheter.",
    "Nodule on XXXX view.": "Nodule on [redacted] view.",
    "Nodule described by [**Last Name (un) 123**].": "Nodule described by [name].",
    "Nodule on [**2150-3-4**].": "Nodule on [date].",
    "Nodule at [**Hospital1 18**].": "Nodule at [hospital].",
    "Nodule, [**MD Number(1) 34**].": "Nodule, [name].",
    "Transferred from ___ Hospital with nodule.": "Transferred from [hospital] Hospital with nodule.",
    "Pager ___ for nodule.": "Pager [phone] for nodule.",
    "Seen by Dr. [name] on [date], nodule.": "Seen by Dr. [name] on [date], nodule.",
    "Nodule [redacted] here.": "Nodule [redacted] here.",
    "No xxxx effusion.": "No [redacted] effusion.",
    "XXX and XXXXXX seen.": "[redacted] and [redacted] seen.",
    "Nodule XX and _ here.": "Nodule XX and _ here.",
}


@pytest.mark.parametrize("text", TYPED)
def test_a_placeholder_gets_the_type_that_its_context_tells(text):
    assert shown(text) == TYPED[text]


CLAUSES = {
    "No effusion compared to ___.": "No effusion.",
    "Compared to ___, there is a small right effusion.": "There is a small right effusion.",
    "As compared with the prior study of ___, the effusion is larger.": "The effusion is larger.",
    "In comparison with study of ___, there is no pneumothorax.": "There is no pneumothorax.",
    "Left effusion since ___ and right edema.": "Left effusion and right edema.",
    "Left effusion (compared to ___) is small.": "Left effusion is small.",
    "Mass, compared to [date], in the left lung.": "Mass, in the left lung.",
    "A 5 mm nodule, discussed with Dr. ___ at ___ p.m. on ___.": "A 5 mm nodule.",
    "A 5 mm nodule; findings were discussed with Dr. [name] by phone at [time].": "A 5 mm nodule.",
    "Unchanged from the prior CT of ___.": "Unchanged.",
    "Discussed with Dr. ___ at ___.": "",
    "Compared to ___.": "",
    "Compared to the\nprior study of\n___, no effusion.": "No effusion.",
    # The clause holds more than the placeholder, so only the placeholder gives way.
    "Compared to ___, where the left mass was 4 cm, no change.": "Where the left mass was 4 cm, no change.",
    "Pneumothorax was discussed with Dr. ___ in detail.": "",  # communication, as a whole
    "Effusion compared to the study of 3/4/2015.": "Effusion compared to the study of 3/4/2015.",
}


@pytest.mark.parametrize("text", CLAUSES)
def test_a_clause_that_says_nothing_but_its_placeholder_goes_with_it(text):
    assert shown(text) == CLAUSES[text]


def test_a_dropped_clause_is_a_change_with_its_span_and_reason():
    text = "Compared to ___, no effusion."
    found = changes(parse_report(text), SPEC)
    assert found == (
        Change(0, 17, "placeholder clause", "", "retrieval"),
        Change(17, 18, "placeholder clause", "N", "retrieval"),
    )
    assert text[:17] == "Compared to ___, "


def test_a_finding_beside_a_dropped_clause_reaches_the_generation_view():
    assert shown("No effusion compared to ___.", view="generation") == "No effusion."
    assert shown("The mass measures ___ cm.", view="generation") == ""  # nothing to learn from [number]
    assert shown("A 5 mm nodule, discussed with Dr. ___.", view="generation") == "A 5 mm nodule."


def test_a_placeholder_that_is_hidden_by_invisible_letters_is_found():
    assert shown("No XX\u200bXX seen.") == "No [redacted] seen."
    assert shown("No [**Name\u00ad 1**] seen.") == "No [name] seen."


def test_the_token_of_the_spec_stands_for_what_has_no_type():
    assert shown("A XXXX catheter of ___ cm.", placeholder="[?]") == "A [?] catheter of [number] cm."


def test_a_report_without_marks_shows_no_raw_placeholder_either():
    report = parse_report("Seen by Dr. ___ with XXXX.")
    bare = Report(report.text, report.sections, report.sentences)
    assert SPEC.render(bare, "retrieval") == ("Seen by Dr. [redacted] with [redacted].",)
    reportchecks.check_changes(bare)


# --- phrases about priors ---------------------------------------------------------------------------------

PHRASES = {
    "Stable small left effusion.": "Small left effusion.",
    "Unchanged cardiomegaly.": "Cardiomegaly.",
    "There is an unchanged right nodule.": "There is a right nodule.",
    "There is a new opacity.": "There is an opacity.",
    "A stable calcified granuloma.": "A calcified granuloma.",
    "Stable 4.2 cm mass in the RLL.": "4.2 cm mass in the RLL.",
    "Stable 4. 2 cm mass.": "Stable 4. 2 cm mass.",
    "Small effusion, unchanged.": "Small effusion.",
    "Small effusion, unchanged from prior.": "Small effusion.",
    "Left effusion, unchanged compared to the prior study.": "Left effusion.",
    "Cardiomegaly is mild as compared to the prior study.": "Cardiomegaly is mild.",
    "As compared to the prior study, stable left effusion.": "Left effusion.",
    "Right effusion is again seen.": "Right effusion is seen.",
    "Again seen is a left mass.": "Seen is a left mass.",
    "The previously seen nodule measures 4 mm.": "The nodule measures 4 mm.",
    "Effusion has increased in the interval.": "Effusion has increased.",
    "Edema has decreased since the prior exam.": "Edema has decreased.",
    "Effusion is no longer seen compared with the prior exam.": "Effusion is no longer seen.",
    "\u200bStable left effusion.": "Left effusion.",
    # Not touched: the phrase is all that is said, or a negation, a number or a side is in it.
    "No change in the right effusion.": "No change in the right effusion.",
    "No interval change in cardiomegaly.": "No interval change in cardiomegaly.",
    "No increase in the nodule.": "No increase in the nodule.",
    "Not significantly changed opacity.": "Not significantly changed opacity.",
    "No new effusion.": "No new effusion.",
    "No effusion or new consolidation.": "No effusion or new consolidation.",
    "Without new or stable nodule.": "Without new or stable nodule.",
    "Effusion is no longer seen.": "Effusion is no longer seen.",
    "Effusion is unchanged.": "Effusion is unchanged.",
    "Effusion is unchanged from prior.": "Effusion is unchanged from prior.",
    "Effusion is small and unchanged from prior.": "Effusion is small and unchanged from prior.",
    "Stable or increased effusion.": "Stable or increased effusion.",
    "Stable appearance of the mass.": "Stable appearance of the mass.",
    "Small, stable effusion.": "Small, stable effusion.",
    "The nodule is larger than on the prior study.": "The nodule is larger than on the prior study.",
    "Effusion compared to the prior study of 3/4/2015.": "Effusion compared to the prior study of 3/4/2015.",
    "Resolved edema.": "Resolved edema.",
    "Worsening edema.": "Worsening edema.",
    "Left effusion since the right was tapped, new.": "Left effusion since the right was tapped, new.",
}


@pytest.mark.parametrize("text", PHRASES)
def test_phrases_about_priors_leave_the_generation_view_alone(text):
    assert shown(text, view="generation") == PHRASES[text]
    plain = text.replace("\u200b", "")
    assert shown(text, view="generation", generation_priors="keep") == plain
    assert shown(text, view="retrieval") == plain


def test_a_sentence_that_only_compares_is_still_dropped_as_a_whole():
    report = parse_report("No change compared to the prior study. Stable 4 mm nodule.")
    assert SPEC.render(report, "generation") == ("4 mm nodule.",)
    assert [(c.reason, c.shown, c.view) for c in all_changes(report, SPEC)] == [
        ("prior", "", "generation"),
        ("prior phrase", "", "generation"),
    ]


WORDS = st.sampled_from(
    "stable unchanged an a the new no not left right bilateral effusion nodule mass is are seen again and or "
    ", . compared to since from the prior study in interval 4 cm > ___ small without previously seen larger "
    "than 1.5 of with dated there previous exam XXXX [date] Dr. discussed XX\u200bXX Stable As".split()
)


@settings(max_examples=500, deadline=None)
@given(st.lists(WORDS, min_size=3, max_size=18), st.sampled_from(["keep", "phrase"]))
def test_no_order_of_words_loses_medicine_or_shows_a_placeholder(words, priors):
    text, spec = " ".join(words), ReportSpec(generation_priors=priors)
    report = reportchecks.check_medicine(text, spec)
    reportchecks.check_spans(report)
    reportchecks.check_changes(report, spec)
    for view in reportchecks.VIEWS:
        rest = " ".join(spec.render(report, view)).replace("[redacted]", "")
        assert not RAW_PLACEHOLDER.search(rest)


def test_time_stays_linear_on_long_runs_of_phrases():
    runs = (
        "compared to ",
        "compared to ___, ",
        "since the prior ",
        "stable nodule ",
        "the ct of ___ and ",
        "Dr. ___ at ",
    )
    for run in (*runs, "[**", "reported by ___ at ", "s/p ", "an PTX ", "unchanged from the the "):
        text = run * (60_000 // len(run))
        start = time.process_time()
        report = parse_report(text)
        ReportSpec(abbreviations="expand").render(report, "generation")
        assert time.process_time() - start < 3  # a quadratic pattern takes minutes


# --- abbreviations ----------------------------------------------------------------------------------------

EXPANDED = {
    "No PTX.": "No pneumothorax.",
    "PTX is seen.": "Pneumothorax is seen.",
    "NO PTX IS SEEN.": "NO PNEUMOTHORAX IS SEEN.",
    "An RLL opacity, a GGO.": "A right lower lobe opacity, a ground-glass opacity.",
    "s/p TAVR w/o edema": "Status post transcatheter aortic valve replacement without edema",
    "Mass w/ CHF, b/l.": "Mass with congestive heart failure, bilateral.",
    "PE, LAD and PA view.": "PE, LAD and PA view.",  # ambiguous
    "RLL-based, CXR/CT, PTXs, w/out": "RLL-based, CXR/CT, PTXs, w/out",  # no whole words
    "ETT, NGT and PICC.": "Endotracheal tube, nasogastric tube and peripherally inserted central catheter.",
    "Mass c/w PNA.": "Mass consistent with pneumonia.",
    "op and cap and mac": "op and cap and mac",  # other words in small letters
}


@pytest.mark.parametrize("text", EXPANDED)
def test_abbreviations_are_written_out_when_asked(text):
    assert shown(text, abbreviations="expand") == EXPANDED[text]
    assert shown(text) == text


def test_each_language_has_its_own_table():
    assert shown("V. a. Pneumonie bds.", parser="de-1", abbreviations="expand") == (
        "Verdacht auf Pneumonie beidseits"
    )
    assert (
        shown("Nódulo en LSD.", parser="es-1", abbreviations="expand") == "Nódulo en lóbulo superior derecho."
    )
    assert not load_abbreviations("xx").exact and not load_abbreviations("../rules_en").exact


def test_the_english_table_is_large_clean_and_never_expands_what_is_ambiguous():
    table = load_abbreviations("en")
    assert len(table.exact) + len(table.any_case) >= 120
    assert len(table.ambiguous) >= 20 and all(len(readings) > 1 for readings in table.ambiguous.values())
    for name in (
        "CXR",
        "PTX",
        "RLL",
        "LLL",
        "RUL",
        "LUL",
        "RML",
        "GGO",
        "ETT",
        "NGT",
        "PICC",
        "CHF",
        "COPD",
        "SOB",
    ):
        assert name in table.exact
    for name in ("s/p", "w/", "w/o", "h/o", "r/o", "c/w"):
        assert name in table.any_case
    for name in ("PE", "LAD", "PA", "CT"):
        assert name in table.ambiguous
    known = {key.lower() for key in (*table.exact, *table.any_case)}
    assert known.isdisjoint(key.lower() for key in table.ambiguous)
    for key, meaning in (table.exact | table.any_case).items():
        assert expansions(f"the {key} here", language="en") == [(4, 4 + len(key), meaning)]
        assert not expansions(f"the {meaning} here", language="en")  # no meaning holds an abbreviation


def restored(text: str, listed: tuple[Change, ...], original: str) -> str:
    """Undo changes: put the original letters back where a change shows others."""
    for change in sorted(listed, key=lambda c: c.start):
        assert text[change.start : change.start + len(change.shown)] == change.shown
        text = (
            text[: change.start]
            + original[change.start : change.end]
            + text[change.start + len(change.shown) :]
        )
    return text


OTHERS = ["An", "a", "no", "mass", "PE", "LAD", ",", "and", "left", "ST", "CT"]
ABBREVIATED = st.lists(
    st.sampled_from([*load_abbreviations("en").exact, *load_abbreviations("en").any_case, *OTHERS]),
    min_size=1,
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(ABBREVIATED)
def test_expansion_is_reversible(words):
    text, spec = " ".join(words), ReportSpec(abbreviations="expand", retrieval_drop=())
    report = parse_report(text)
    listed = tuple(c for c in changes(report, spec) if c.reason in ("abbreviation", "list marker"))
    assert restored(reportchecks.made(text, listed, "retrieval"), listed, text) == text
    reportchecks.check_changes(report, spec)


def test_contraction_is_the_other_way_round():
    assert contract("Right lower lobe opacity without pneumothorax.") == "RLL opacity w/o PTX."
    assert contract("Mass in the lower lobe.") == "Mass in the lower lobe."
    table = load_abbreviations("en")
    for meaning, key in table.contractions.items():
        assert contract(f"a {meaning} b") == f"a {key} b"
    assert contract("Raumforderung, Verdacht auf Tumor.", language="de") == "Raumforderung, v. a. Tumor."


# --- the spec ---------------------------------------------------------------------------------------------


def test_every_option_is_in_the_digest():
    specs = [
        SPEC,
        ReportSpec(generation_priors="keep"),
        ReportSpec(abbreviations="expand"),
        ReportSpec(placeholder="[?]"),
        *(ReportSpec(parser=parser) for parser in PARSERS if parser != "en-1"),
    ]
    assert len({spec.digest for spec in specs}) == len(specs)


def test_the_examples_of_the_page_run():
    page = (Path(__file__).parents[1] / "docs" / "reports.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "docs/reports.md", "exec"), {})
