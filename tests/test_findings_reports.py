"""The report labeller on whole reports: evidence, aggregation, judged sentences, limits, baselines."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from medvl.errors import ConfigError
from medvl.preprocess.reports import parse_report
from medvl.preprocess.reports.findings import VOCABULARIES, findings_of, mentions, said, sentence_states
from medvl.preprocess.reports.findings_lexicon import load_lexicon

sys.path.insert(0, str(Path(__file__).parent))
import baselines

SUITE = Path(__file__).parent / "sentences" / "findings.yaml"


def test_judged_sentences_keep_their_score():
    """Micro F1 over (sentence, finding, state); the suite leaves out ``no_finding``, a conclusion."""
    hit, wrong, missed = Counter(), Counter(), Counter()
    cases = yaml.safe_load(SUITE.read_text("utf-8"))
    for case in cases:
        states = sentence_states(case["text"], vocabulary=case["set"])
        found = {(f, s) for f, s in states.items() if f != "no_finding"}
        truth = set((case["states"] or {}).items())
        hit.update(s for _, s in found & truth)
        wrong.update(s for _, s in found - truth)
        missed.update(s for _, s in truth - found)
    assert len(cases) >= 300
    total = [count.total() for count in (hit, wrong, missed)]
    assert 2 * total[0] / (2 * total[0] + total[1] + total[2]) >= 0.99
    for state in ("present", "absent", "uncertain", "unchanged"):
        assert 2 * hit[state] / (2 * hit[state] + wrong[state] + missed[state]) >= 0.98, state


# Evidence


def test_a_mention_points_at_its_words_and_at_the_words_that_decide():
    text = "Heart size is stable. The cardiac silhouette is not enlarged.\nPossible  left effusion."
    found = [
        (m.finding, m.state, text[m.start : m.end], text[slice(*m.cue)])
        for m in mentions(text, vocabulary="cxr")
    ]
    assert found == [
        ("cardiomegaly", "absent", "cardiac silhouette is not enlarged", "not"),
        ("pleural_effusion", "uncertain", "effusion", "Possible"),
    ]


def test_what_is_merely_named_has_no_cue():
    [mention] = mentions("Pneumothorax.", vocabulary="cxr")
    assert (mention.state, mention.cue, mention.start, mention.end) == ("present", None, 0, 12)


def test_spans_index_the_text_where_lower_case_changes_its_length():
    text = "İİİ effusion İ"  # each İ is two characters in lower case
    [mention] = mentions(text, vocabulary="cxr")
    assert text[mention.start : mention.end] == "effusion"


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_every_finding_can_be_named(vocabulary):
    lexicon = load_lexicon(vocabulary)
    nodes, names = [lexicon.tree], set()
    while nodes:
        node = nodes.pop()
        if "" in node:
            entry = node[""]
            names.update(entry.findings, *(sign.default for sign in entry.signs))
            names.update(f for sign in entry.signs for states in sign.sites.values() for f in states)
        nodes += [after for word, after in node.items() if word]
    assert names == set(findings_of(vocabulary))


def test_an_unknown_vocabulary_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown vocabulary 'cxrs'.*Did you mean 'cxr'"):
        sentence_states("No effusion.", vocabulary="cxrs")


@pytest.mark.parametrize(
    "typo", ["pnuemothorax", "pneumothroax", "pneumothorx", "pneumotthorax", "pneumathorax"]
)
def test_one_wrong_letter_is_read(typo):
    assert sentence_states(f"No {typo}.", vocabulary="cxr") == {"pneumothorax": "absent"}


def test_a_real_word_is_no_misspelling():
    assert sentence_states("No injection, perfusion or diffusion defect.", vocabulary="cxr") == {}


# Reports


def report_states(text: str, vocabulary: str = "cxr") -> dict[str, str]:
    return said(parse_report(text), vocabulary=vocabulary)


def test_only_sections_that_describe_the_image_count():
    text = (
        "INDICATION: Pneumonia? Edema.\nHISTORY: Pneumothorax.\nTECHNIQUE: Chest tube position check.\n"
        "COMPARISON: Film with effusion.\nFINDINGS: Mild cardiomegaly.\n"
        "RECOMMENDATION: CT for the nodule.\nIMPRESSION: Cardiomegaly."
    )
    assert report_states(text) == {"cardiomegaly": "present"}


def test_a_sentence_that_compares_still_counts():
    text = "FINDINGS: Compared with the prior study, the right effusion is unchanged."
    assert report_states(text) == {"pleural_effusion": "unchanged"}


def test_an_impression_confirms_what_the_findings_doubt():
    text = "FINDINGS: Possible pneumonia. No edema.\nIMPRESSION: Right lower lobe pneumonia."
    assert report_states(text) == {"edema": "absent", "pneumonia": "present"}


def test_one_effusion_is_enough():
    text = "FINDINGS: Small left effusion. No right effusion."
    assert report_states(text) == {"pleural_effusion": "present"}


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("FINDINGS: Cardiomegaly. Stable cardiomegaly.", "unchanged"),
        ("FINDINGS: Stable cardiomegaly. Worsened cardiomegaly.", "present"),
        ("FINDINGS: Worsened cardiomegaly.\nIMPRESSION: Stable cardiomegaly.", "unchanged"),
        ("IMPRESSION: Stable cardiomegaly.\nFINDINGS: Cardiomegaly.", "unchanged"),
    ],
)
def test_present_or_unchanged_is_the_last_word_of_the_impression(text, state):
    assert report_states(text) == {"cardiomegaly": state}


def test_no_finding():
    clear = "FINDINGS: The heart is normal in size. No effusion."
    assert report_states(clear)["no_finding"] == "present"
    assert report_states("FINDINGS: PICC line in place. No effusion.")["no_finding"] == "present"
    assert report_states("IMPRESSION: Normal chest.") == {"no_finding": "present"}
    assert "no_finding" not in report_states(clear + " Possible nodule.")
    assert "no_finding" not in report_states("FINDINGS: Tortuous aorta.")
    assert report_states("IMPRESSION: No acute cardiopulmonary disease. Stable cardiomegaly.") == {
        "cardiomegaly": "unchanged"
    }


def test_states_come_in_the_order_of_the_vocabulary():
    states = report_states("FINDINGS: Hiatal hernia, consolidation, cardiomegaly, port catheter.", "ct")
    assert list(states) == [finding for finding in findings_of("ct") if finding in states]
    assert len(states) == 4


def test_a_report_without_sentences_says_nothing():
    assert report_states("") == {}


# Limits

WORDS = st.sampled_from(
    "no not effusion heart enlarged and or , . ; ? : unchanged stable possible with aorta calcification "
    "nodule thyroid is are was seen new cannot be excluded normal the which pneumothorax resolved".split()
)


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(st.text(max_size=300), st.lists(WORDS, max_size=40).map(" ".join)),
    st.sampled_from(VOCABULARIES),
)
def test_any_text_gives_states_and_spans_in_it(text, vocabulary):
    states = sentence_states(text, vocabulary=vocabulary)
    assert set(states) <= set(findings_of(vocabulary))
    for mention in mentions(text, vocabulary=vocabulary):
        assert 0 <= mention.start < mention.end <= len(text)
        assert mention.cue is None or 0 <= mention.cue[0] < mention.cue[1] <= len(text)
        assert mention.finding in states or mention.finding == "no_finding"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["pneumonia", "effusion", "edema"]), min_size=1, max_size=3, unique=True))
def test_white_space_and_case_do_not_matter(names):
    text = f"No {' or '.join(names)} is seen."
    assert sentence_states(text.upper().replace(" ", "\n  "), vocabulary="cxr") == sentence_states(
        text, vocabulary="cxr"
    )


LONG = ("effusion ", "no effusion ", "heart enlarged ", ",", "effusion or ", "not significantly ", "\n ", "?",
        "nodule thyroid ", "calcification aorta and coronary arteries ", "mediastinal and hilar ",
        "pnuemothorax ", "İ", "effusion is , ", "history ")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("piece", LONG)
def test_the_longest_text_takes_seconds_at_most(piece):
    """200,000 characters of the worst kinds: some 0.8 CPU-s without the shape checks of the tests."""
    text = (piece * (200_000 // len(piece)))[:200_000]
    start = time.process_time()
    sentence_states(text, vocabulary="cxr")
    assert time.process_time() - start < 10


def test_work_grows_with_length_and_not_faster():
    def seconds(count: int) -> float:
        start = time.process_time()
        sentence_states("no effusion and heart enlarged " * count, vocabulary="cxr")
        return time.process_time() - start

    seconds(20)
    assert seconds(1200) < 12 * max(seconds(300), 0.01)  # 4 times the text; quadratic: 16 times


# Baselines


def test_keywords_take_every_name():
    text = "No effusion, but calcific plaques in the coronary arteries."
    assert baselines.keywords(text, vocabulary="ct") == {
        "pleural_effusion",
        "coronary_artery_wall_calcification",
    }


@pytest.mark.parametrize(
    ("text", "affirmed"),
    [
        ("No evidence of pneumothorax.", False),
        ("No one two three four five six pneumothorax.", True),  # NegEx 2001 reaches five words
        ("No one two three four five pneumothorax.", False),
        ("Pneumothorax was ruled out.", False),
        ("No change in the pneumothorax.", True),  # a pseudo-negation
        ("No effusion but pneumothorax.", True),  # "but" ends the scope
        ("Pneumothorax was not detected.", True),  # the list of 2001 does not know it
        ("Cannot exclude pneumothorax.", False),  # its known error
    ],
)
def test_negex_is_the_algorithm_of_2001(text, affirmed):
    assert baselines.negex(text, vocabulary="cxr")["pneumothorax"] is affirmed


def test_negex_adapted_knows_translated_negations():
    states = baselines.negex(
        "Pleural effusion was not detected.", vocabulary="ct", rules=baselines.NEGEX_ADAPTED
    )
    assert states == {"pleural_effusion": False}
