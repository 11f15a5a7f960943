"""The experiments on films in their smallest form: films, the small model, each run twice the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medvl.mechanisms import backdoor, local, lora, merging, negatives, symile_xor
from medvl.mechanisms.films import TERMS, draw_films, prompts, statement
from medvl.mechanisms.nets import TextSide, Towers, Words, fit, pixels
from medvl.mechanisms.scores import grounding_scores, retrieval_scores, zero_shot_auroc
from medvl.phantoms.truth import FINDINGS


@pytest.fixture(scope="module")
def films():
    return draw_films(60, seed=[3], size_px=32)


def test_films_are_a_function_of_their_seed(films):
    again = draw_films(60, seed=[3], size_px=32)
    assert np.array_equal(films.images, again.images)
    assert films.reports == again.reports
    assert films.reports != draw_films(60, seed=[4], size_px=32).reports


def test_pixels_and_words_come_from_one_truth(films):
    for findings, report, labels in zip(films.findings, films.reports, films.labels, strict=True):
        present = {finding.kind for finding in findings}
        assert {name for name, value in zip(FINDINGS, labels, strict=True) if value} == present
        for finding in findings:
            assert any(statement(finding, term) in report for term in TERMS[finding.kind])
        for name in FINDINGS:
            said, denied = prompts(name)
            assert not (set(denied) & set(report)) or name not in present
            assert not (set(said) & set(report)) or name in present
    assert 0.2 < (films.key == 0).mean() < 0.8
    equal = films.key[:, None] == films.key
    assert np.array_equal(equal, (films.labels[:, None] == films.labels).all(axis=2))


def test_single_films_have_one_finding():
    assert (draw_films(20, seed=[1], size_px=16, normal=0.0, single=True).labels.sum(axis=1) == 1).all()


def test_the_text_side_ignores_padding_and_order():
    words = Words([("small nodule", "no edema")])
    side = TextSide(words=len(words), dim=4).eval()
    short = side(words.encode([("small nodule", "no edema")]))
    padded = side(torch.nn.functional.pad(words.encode([("no edema", "small nodule")]), (0, 3, 0, 2)))
    assert torch.allclose(short.pooled, padded.pooled, atol=1e-6)
    assert torch.allclose(short.sentences[0, 0], padded.sentences[0, 1], atol=1e-6)
    assert padded.sentence_mask.tolist() == [[True, True, False, False]]
    assert padded.word_mask.sum() == short.word_mask.sum() == 4


def test_an_epoch_visits_every_row_once():
    seen = []
    module = torch.nn.Linear(1, 1)

    def loss(rows, generator):
        seen.append(rows.tolist())
        return module(torch.ones(1, 1)).sum()

    fit([module], loss, rows=10, steps=4, batch=5, lr=0.1, seed=0)
    assert sorted(seen[0] + seen[1]) == sorted(seen[2] + seen[3]) == list(range(10))
    assert seen[0] + seen[1] != seen[2] + seen[3]


def test_scores_of_a_model_that_knows_nothing(films):
    # Constant vectors: AUROC 1/2, own R@1 1/60, label P@5 the share of equal keys, pointing at its chance.
    words = Words(films.reports)
    towers = Towers(words=len(words), dim=4, widths=(4, 4, 4, 4))
    with torch.no_grad():
        for head in (towers.image.pooled, towers.image.regions, towers.text.pooled[2], towers.text.sentences):
            head.weight.zero_()
            head.bias.fill_(1.0)
    assert zero_shot_auroc(towers, films, words=words) == pytest.approx(0.5)
    scores = retrieval_scores(towers, films, words=words)
    assert scores["own R@1"] == pytest.approx(1 / 60)
    assert scores["label P@5"] == pytest.approx((films.key[:, None] == films.key).mean())
    for pooled_head in (False, True):
        placed = grounding_scores(towers, films, words=words, pooled_head=pooled_head)
        assert placed["pointing"] == pytest.approx(placed["pointing chance"])
        assert placed["CNR"] == 0.0


def test_the_trigger_changes_a_corner_alone(films):
    changed = backdoor._triggered(films.images) != films.images
    assert changed[..., -4:, -4:].all() and changed.sum() == 60 * 16


def test_poison_is_one_pair_in_a_hundred():
    clean = draw_films(200, seed=[5], size_px=16, normal=0.0, single=True)
    poisoned = backdoor._poisoned(clean, seed=0)
    rows = np.flatnonzero((poisoned.images != clean.images).any(axis=(1, 2, 3)))
    assert len(rows) == 2
    others = {poisoned.reports[row] for row in rows}
    target = clean.labels[:, backdoor._TARGET] == 1
    assert not target[rows].any()
    assert others <= {report for report, is_target in zip(clean.reports, target, strict=True) if is_target}
    assert sum(a != b for a, b in zip(clean.reports, poisoned.reports, strict=True)) == 2


def test_abbreviations_of_two_sites_collide_and_expand():
    report = ("small nodule in left upper zone", "large pleural effusion in right lower zone")
    first, third = (merging.shortened(report, site=site) for site in (0, 2))
    assert first == ("sm nod l u", "lg pl eff r lw")
    assert third == ("sm ed l u", "lg pl cons r lw")
    for site, short in ((0, first), (2, third)):
        assert merging.expanded(short, site=site) == report


SMALLEST = {
    "C1": (local, {"films": 96, "tested": 60, "steps": 2}),
    "C2": (negatives, {"films": 96, "steps": 2}),
    "C7": (backdoor, {"films": 100, "clean": 96, "steps": 2, "tuning": 2}),
    "C12": (symile_xor, {"steps": 2}),
    "C13": (merging, {"films": 192, "steps": 2}),
    "C15": (lora, {"films": 192, "steps": 2, "tuning": 2}),
}


LONG = ("C2", "C13", "C15")


@pytest.mark.parametrize(
    "key", [pytest.param(key, marks=[pytest.mark.slow] * (key in LONG)) for key in SMALLEST]
)
def test_each_mechanism_runs_and_repeats_itself(key):
    module, options = SMALLEST[key]
    assert module.MECHANISM.key == key
    torch.set_num_threads(1)
    first = module.run(0, quick=False, **options)
    assert all(np.isfinite(value) for value in first.values())
    for effect in module.MECHANISM.effects:
        assert {effect.after, effect.before} - {None} <= set(first)
    assert module.run(0, quick=False, **options) == first
    if key != "C12":
        assert set(module.run(1, quick=True, **options)) <= set(first)


def test_merged_adapters_are_the_unmerged_ones():
    values = lora.run(0, quick=True, films=192, steps=2, tuning=2)
    assert values["LoRA/merged less unmerged"] < 1e-5
    assert 0 < values["LoRA/share of the model"] < values["LoRA/share of the tower"] < 0.1
    assert pixels(draw_films(2, seed=[0], size_px=16)).shape == (2, 1, 16, 16)
