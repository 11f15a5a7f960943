"""Hard negatives: each changes one clinical fact, in English, and the fact really moves."""

from __future__ import annotations

import pytest

from medvl.corpus import ReportCase
from medvl.errors import UsageError
from medvl.preprocess.reports.facts import facts_of, moved
from medvl.preprocess.reports.negatives import ERRORS, HELD_OUT_ERRORS, hard_negatives


def made(*sentences: str, seed: int = 0) -> dict[str, tuple[str, ...]]:
    case = ReportCase("c", "p", "train", sentences)
    return {
        wording.kind: wording.sentences
        for part in ("train", "test")
        for wording in hard_negatives(case, seed=seed, part=part)
    }


@pytest.mark.parametrize(
    ("kind", "sentence", "wrong"),
    [
        ("negation", "There is no effusion.", "There is an effusion."),
        ("negation", "Pericardial effusion was not observed.", "There is a pericardial effusion."),
        ("negation", "Heart size is normal.", "The heart is enlarged."),
        ("negation", "The lungs are clear.", "There are opacities in the lungs."),
        ("negation", "Mild cardiomegaly.", "No cardiomegaly."),
        ("negation", "There is a left effusion.", "There is no left effusion."),
        ("side", "Left-sided effusion.", "Right-sided effusion."),
        ("severity", "There is a small effusion.", "There is a large effusion."),
        ("location", "Nodule in the right upper lobe.", "Nodule in the right lower lobe."),
        ("unit", "A 4 mm nodule.", "A 4 cm nodule."),
        ("change", "Stable pneumothorax.", "Worsening pneumothorax."),
        ("count", "There is a calcified granuloma.", "There are multiple calcified granulomas."),
        ("count", "Several nodules are seen.", "A single nodule is seen."),
        ("finding", "There is a pneumothorax.", "There is a pleural effusion."),
        ("certainty", "There is atelectasis.", "There may be atelectasis."),
        ("certainty", "Possible pneumonia.", "Pneumonia."),
    ],
)
def test_one_error(kind, sentence, wrong):
    assert made(sentence)[kind] == (wrong,)


def test_of_a_list_one_thing_is_claimed():
    for seed in range(6):
        [said] = made("No pneumothorax or effusion.", seed=seed)["negation"]
        assert said in (
            "There is a pneumothorax but no effusion.",
            "There is an effusion but no pneumothorax.",
        )


def test_a_measurement_is_scaled_and_keeps_its_unit_and_digits():
    # factors are one half, two and three; what would vanish is doubled
    said = {made("A 4 mm nodule.", seed=seed)["measurement"][0] for seed in range(12)}
    assert said == {"A 2 mm nodule.", "A 8 mm nodule.", "A 12 mm nodule."}
    twice = {made("A mass of 1.5 x 3.0 cm.", seed=seed)["measurement"][0] for seed in range(12)}
    assert twice <= {"A mass of 0.8 x 1.5 cm.", "A mass of 3.0 x 6.0 cm.", "A mass of 4.5 x 9.0 cm."}


def test_an_inserted_finding_is_new():
    sentences = ("Left pneumothorax.", "The heart is enlarged.")
    for seed in range(8):
        wrong = made(*sentences, seed=seed)["insertion"]
        assert len(wrong) == 3
        assert moved(facts_of(sentences), facts_of(wrong))


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("side", "Nodule in the middle lobe of the right lung."),  # there is no left one
        ("side", "Left and right effusions."),  # swapping both says the same
        ("severity", "No large effusion."),
        ("location", "Frontal and lateral views of the chest show no change."),
        ("unit", "A 35 mm mass."),  # nobody would believe 35 cm
        ("change", "Stable normal heart size."),
        ("count", "There is no evidence of a mass."),  # "no multiple masses" says nearly the same
        ("finding", "No pleural effusion or pneumothorax."),  # "pneumothorax or pneumothorax" is no English
        ("negation", "No acute findings."),  # names no finding that the labeller knows
    ],
)
def test_what_would_be_no_error_is_not_made(kind, sentence):
    assert kind not in made(sentence)


def test_a_negation_must_change_the_report_as_a_whole():
    # one sentence turned still leaves the effusion that the other claims
    assert "negation" not in made("There is a left effusion.", "Left effusion is seen.")


def test_parts_are_apart_and_the_seed_decides():
    case = ReportCase("c", "p", "train", ("There is a small 4 mm left nodule.", "No effusion."))
    train = {wording.kind for wording in hard_negatives(case, seed=0)}
    test = {wording.kind for wording in hard_negatives(case, seed=0, part="test")}
    assert train and test and not train & HELD_OUT_ERRORS and test <= HELD_OUT_ERRORS
    assert set(ERRORS) >= train | test and len(ERRORS) == 11
    assert hard_negatives(case, seed=4) == hard_negatives(case, seed=4)


def test_an_unknown_part_is_refused():
    with pytest.raises(UsageError, match="unknown part 'dev'"):
        hard_negatives(ReportCase("c", "p", "train", ("No effusion.",)), seed=0, part="dev")


@pytest.mark.data
@pytest.mark.parametrize("name", ["iu_xray", "ct_chest_labelled"])
def test_errors_in_real_reports_change_one_sentence(shared_data, name):
    from medvl.preprocess.reports.corpus import read_corpus

    cases = read_corpus(shared_data / "reports" / name, limit=12)
    kinds = set()
    for case in cases:
        for part in ("train", "test"):
            for wording in hard_negatives(case, seed=2, part=part):
                kinds.add(wording.kind)
                extra = wording.kind == "insertion"
                assert len(wording.sentences) == len(case.sentences) + extra
                changed = [s for s in wording.sentences if s not in case.sentences]
                assert len(changed) == 1
                assert moved(facts_of(case.sentences), facts_of(wording.sentences)) or wording.kind in (
                    "severity",
                    "location",
                    "change",
                    "count",
                )
    assert len(kinds) >= 8
