"""Other wordings of reports: English that agrees, rules that are told apart, facts that do not move."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import pytest

from medvl.corpus import ReportCase
from medvl.errors import UsageError
from medvl.preprocess.reports.facts import contradicts, expanded, facts_of, moved
from medvl.preprocess.reports.variants import HELD_OUT, KINDS, prompted_variants, variants
from medvl.preprocess.reports.wording import (
    articles,
    fill,
    load_wordings,
    plural,
    telegraphic,
    with_article,
)

FINDINGS = (
    "The heart is normal in size.",
    "No pneumothorax or pleural effusion.",
    "There is a 4 mm nodule in the right upper lobe.",
)
CASE = ReportCase("c1", "p1", "train", (*FINDINGS, "Stable scoliosis."), FINDINGS, ("Stable scoliosis.",))


@pytest.mark.parametrize(
    ("before", "after", "fact"),
    [
        ("A 4 mm nodule.", "A 40 mm nodule.", "number"),
        ("A 4 mm nodule.", "A 4 cm nodule.", "number"),
        ("Two nodules.", "Three nodules.", "number"),
        ("A left effusion.", "A right effusion.", "side"),
        ("Bilateral effusions.", "Left effusions.", "side"),
        ("Nodes less than 1 cm.", "Nodes greater than 1 cm.", "comparator"),
        ("Seen on [date].", "Seen before.", "placeholder"),
        ("No effusion.", "There is an effusion.", "ct.pleural_effusion"),
        ("No emphysema.", "Emphysema.", "ct.emphysema"),
        ("Possible pneumonia.", "Pneumonia.", "cxr.pneumonia"),
        ("No PTX.", "There is no pneumothorax.", ""),
        ("Nodule in the RUL.", "Nodule in the right upper lobe.", ""),
        ("A 4 mm left-sided nodule.", "On the left a nodule of 4mm.", ""),
    ],
)
def test_a_fact_that_moves_is_named(before, after, fact):
    assert moved(facts_of([before]), facts_of([after])) == fact


def test_of_several_sentences_present_wins():
    # "present" in one sentence and "absent" in another: the report has the finding
    assert facts_of(["No effusion.", "Left effusion."]).states["cxr.pleural_effusion"] == "present"
    assert facts_of(["Left effusion.", "No effusion."]).states["cxr.pleural_effusion"] == "present"


def test_a_part_contradicts_only_what_it_names():
    whole = facts_of(["Left effusion.", "No pneumothorax."])
    assert contradicts(whole, facts_of(["No pneumothorax."])) == ""
    assert contradicts(whole, facts_of(["There is a pneumothorax."])) == "cxr.pneumothorax"


def test_expanding_writes_out_every_abbreviation():
    assert expanded("RLL opacity, no PTX.") == "Right lower lobe opacity, no pneumothorax."


@pytest.mark.parametrize(
    ("noun", "many", "named"),
    [
        ("effusion", False, "an effusion"),
        ("atelectasis", False, "atelectasis"),
        ("opacities in the base", True, "opacities in the base"),
        ("unchanged mass", False, "an unchanged mass"),
        ("unilateral effusion", False, "a unilateral effusion"),
        ("several nodules", True, "several nodules"),
        ("organs included in the study", True, "organs included in the study"),
        ("heart and mediastinum", True, "a heart and mediastinum"),
        ("abscess", False, "an abscess"),
        ("costophrenic sulci", True, "costophrenic sulci"),
    ],
)
def test_nouns_agree(noun, many, named):
    assert plural(noun) is many
    assert with_article(noun) == named


def test_forms_agree_with_their_noun():
    assert fill("{a} {x} {is} seen", "opacities") == "Opacities are seen"
    assert fill("the {x} {appear} normal", "Lungs") == "The lungs appear normal"
    assert fill("the {x} {is} normal", "both lungs") == "Both lungs are normal"
    assert articles("a RUL mass and an CT") == "an RUL mass and a CT"


def test_the_two_parts_share_no_rule():
    # A rule is what may be written for what was read; neither part may write what the other does.
    train, test = load_wordings("train"), load_wordings("test")
    shared = {
        (phrase, other)
        for phrase, others in train.phrases.items()
        for other in others
        if phrase != other and other in test.phrases.get(phrase, ())
    }
    assert shared == set()
    forms = [{form for _, _, written in rules.sentences for form in written} for rules in (train, test)]
    assert not forms[0] & forms[1]


def test_the_table_is_large():
    train, test = load_wordings("train"), load_wordings("test")
    assert len(train.phrases) >= 250
    assert len(test.phrases) >= 100


@pytest.mark.parametrize("part", ["train", "test"])
def test_every_phrase_can_be_said_otherwise(part):
    rules = load_wordings(part)
    alone = [phrase for phrase, others in rules.phrases.items() if not set(others) - {phrase}]
    assert alone == []


def test_a_clause_takes_the_place_of_a_whole_sentence_only():
    # "heart is normal in size and the heart size is normal contour" is what a blind replacement would write
    rules = load_wordings("train")
    for seed in range(20):
        said = rules.rephrase("The heart is normal in size and contour.", draw=random.Random(seed), chance=1)
        assert said.startswith("The heart is normal in")


@pytest.mark.parametrize(
    ("sentence", "short"),
    [
        ("There is a small effusion.", "Small effusion."),
        ("The lungs are clear.", "Lungs clear."),
        ("There is no pneumothorax.", "No pneumothorax."),
        ("An opacity is seen in the left base.", "Opacity in left base."),
        ("No effusion.", "No effusion."),
    ],
)
def test_telegraphic(sentence, short):
    assert telegraphic(sentence) == short


def test_every_kind_is_made_and_keeps_the_facts():
    case = dataclasses.replace(
        CASE,
        sentences=(*CASE.sentences, "Opacity in the RLL."),
        impression=(*CASE.impression, "Opacity in the RLL."),
    )
    made = {
        part: {wording.kind: wording.sentences for wording in variants(case, seed=3, part=part)}
        for part in ("train", "test")
    }
    assert set(made["train"]) == set(KINDS) - HELD_OUT
    assert set(made["test"]) == HELD_OUT | {"paraphrase", "mixed"}
    assert made["train"]["paraphrase"] != made["test"]["paraphrase"]
    assert made["train"]["impression"] == case.impression
    assert made["train"]["expansion"][-1] == "Opacity in the right lower lobe."
    assert sorted(made["train"]["shuffle"]) == sorted(case.sentences)
    assert made["test"]["headings"][0].lower().startswith("findings: the heart")
    whole = facts_of(case.sentences)
    for kind in ("paraphrase", "mixed", "telegraphic", "sentences", "contraction", "capitals"):
        assert moved(whole, facts_of(made["train"][kind])) == ""


def test_the_seed_decides():
    first, again = variants(CASE, seed=1), variants(CASE, seed=1)
    assert first == again
    assert variants(CASE, seed=1) != variants(CASE, seed=2)


def test_a_contradicting_impression_is_refused_and_counted():
    case = ReportCase(
        "c", "p", "train", ("No effusion.", "Left effusion."), ("No effusion.",), ("Left effusion.",)
    )
    refused: Counter[str] = Counter()
    kinds = {wording.kind for wording in variants(case, seed=0, refused=refused)}
    # the report as a whole has the effusion, so its impression may stand alone, and its findings may not
    assert "impression" in kinds
    assert "findings" not in kinds
    assert refused["findings: ct.pleural_effusion"] == 1


def test_an_unknown_part_is_refused():
    with pytest.raises(UsageError, match="unknown part 'dev'"):
        variants(CASE, seed=0, part="dev")


class Writer:
    """A generator that turns each prompt's sentence with a function."""

    digest = "writer-1"

    def __init__(self, turn):
        self.turn = turn

    def __call__(self, prompts):
        return [self.turn(prompt.split("DATA: ")[1].split("\nREWRITTEN")[0].strip('"')) for prompt in prompts]


def test_prompted_wordings_pass_the_fact_check(tmp_path):
    safe = Writer(lambda sentence: sentence.replace("There is a", "We see a"))
    [made] = prompted_variants([CASE], safe, cache=tmp_path / "a.jsonl")
    assert [wording.kind for wording in made] == ["prompted"]
    assert made[0].sentences[2] == "We see a 4 mm nodule in the right upper lobe."
    refused: Counter[str] = Counter()
    liar = Writer(lambda sentence: sentence.replace("right", "left"))
    [made] = prompted_variants([CASE], liar, cache=tmp_path / "b.jsonl", refused=refused)
    assert made == ()
    assert refused == {"sentence: side": 1}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("There is mild edema.", "There is severe edema."),
        ("There is a stable nodule in the upper lobe.", "There is a stable nodule in the lower lobe."),
        ("There is an increasing effusion.", "There is a decreasing effusion."),
        ("There is a nodule at the apex.", "There is a nodule at the base."),
        ("There is a single nodule.", "There are multiple nodules."),
    ],
)
def test_a_model_may_not_move_degree_place_change_or_number(tmp_path, before, after):
    """The labeller knows none of these, so the words themselves are compared."""
    case = ReportCase("c", "p", "train", (before, "No pneumothorax."))
    refused: Counter[str] = Counter()
    wrong = Writer(lambda sentence: {before: after}.get(sentence, "There is no pneumothorax."))
    [(made,)] = prompted_variants([case], wrong, cache=tmp_path / "a.jsonl", refused=refused)
    assert made.sentences == (before, "There is no pneumothorax.")
    assert refused == {"sentence: degree": 1}


@pytest.mark.data
@pytest.mark.parametrize("part", ["train", "test"])
def test_real_reports_keep_their_facts(shared_data, part):
    from medvl.preprocess.reports.corpus import read_corpus

    cases = read_corpus(shared_data / "reports" / "iu_xray", limit=25)
    made = 0
    for case in cases:
        whole = facts_of(case.sentences)
        for wording in variants(case, seed=5, part=part):
            made += 1
            if wording.kind in ("paraphrase", "mixed", "telegraphic", "sentences", "shuffle"):
                assert moved(whole, facts_of(wording.sentences)) == ""
            assert not any("{" in sentence or " ." in sentence for sentence in wording.sentences)
    assert made > 2.5 * len(cases)
