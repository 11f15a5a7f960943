"""ViLLA: its closed forms, loop oracles, the defects of its public code, and what is unknown."""

import math
from dataclasses import replace

import pytest
import torch
from lossfeatures import DIM, OPTIONS, D, build, features, positives

from medvl.errors import ConfigError
from medvl.objectives import OBJECTIVES
from medvl.objectives.villa import (
    AttributeHeads,
    best_region,
    map_regions,
    mapping_loss,
    region_attribute_loss,
)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def flags(*shape, seed=0, share=0.5):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share


def test_one_positive_and_one_negative_of_equal_score_give_ln_2():
    # e^s / (e^s + e^s) = 1/2 at any s. A denominator with an e^0 for each positive, as the public code has
    # it, would give ln(2 + e^-s): ln 3 = 1.0986 at s = 0.
    for s in (0.0, 3.0, -3.0):
        loss = mapping_loss(torch.full((2, 1), s, dtype=D), torch.tensor([[True], [False]]))
        assert loss.item() == pytest.approx(math.log(2), abs=1e-12)


@pytest.mark.parametrize("without", [1, 2, 7])
def test_equal_scores_give_the_log_of_the_images_without(without):
    # One image with the attribute among k without: 1 / (1 + k).
    present = torch.zeros(1 + without, 1, dtype=torch.bool)
    present[0] = True
    loss = mapping_loss(torch.zeros(1 + without, 1, dtype=D), present)
    assert loss.item() == pytest.approx(math.log(1 + without), abs=1e-12)


def mapping_oracle(scores, present, absent):
    losses = []
    for i, a in present.nonzero().tolist():
        below = sum(math.exp(scores[n, a]) for n in range(len(scores)) if absent[n, a])
        above = math.exp(scores[i, a])
        losses.append(-math.log(above / (above + below)))
    return sum(losses) / len(losses)


def test_mapping_loss_is_its_loop():
    scores, state = rand(9, 5), torch.randint(0, 3, (9, 5), generator=torch.Generator().manual_seed(3))
    present, absent = state == 1, state == 0
    expected = mapping_oracle(scores, present, absent)
    assert mapping_loss(scores, present, absent=absent).item() == pytest.approx(expected, abs=1e-12)
    expected = mapping_oracle(scores, present, ~present)
    assert mapping_loss(scores, present).item() == pytest.approx(expected, abs=1e-12)


def test_mapping_loss_at_the_edges():
    scores = rand(4, 3).requires_grad_()
    for present in (torch.zeros(4, 3) > 0, torch.ones(4, 3) > 0):  # nothing present; nothing absent
        loss = mapping_loss(scores, present)
        assert loss.item() == 0.0
        assert torch.equal(torch.autograd.grad(loss, scores)[0], torch.zeros(4, 3, dtype=D))
    # An attribute that everybody has contributes 0 and counts in the mean: (0 + 0 + ln 2) / 3.
    present = torch.tensor([[True, True], [True, False]])
    loss = mapping_loss(torch.zeros(2, 2, dtype=D), present)
    assert loss.item() == pytest.approx(math.log(2) / 3, abs=1e-12)
    # Far apart in single precision: nothing overflows, −log σ(−2000) = 2000.
    loss = mapping_loss(torch.tensor([[-1000.0], [1000.0]]), torch.tensor([[True], [False]]))
    assert loss.item() == 2000.0


def test_mapping_loss_gradient_and_direction():
    present = flags(6, 4)
    scores = rand(6, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: mapping_loss(s, present), [scores])
    gradient = torch.autograd.grad(mapping_loss(scores, present), scores)[0]
    assert (gradient[present] <= 0).all() and (gradient[~present] >= 0).all()


def test_heads_are_separate_perceptrons():
    torch.manual_seed(0)
    heads = AttributeHeads(DIM, count=3).double()
    regions, attributes = rand(2, 4, DIM), rand(3, DIM, seed=1)
    got = heads(regions, attributes)
    for i in range(2):
        for a in range(3):
            for r in range(4):
                x = regions[i, r] / regions[i, r].norm()
                hidden = (x @ heads.first[a] + heads.first_bias[a, 0]).relu()
                answer = hidden @ heads.second[a] + heads.second_bias[a, 0]
                expected = torch.cosine_similarity(answer, attributes[a], dim=0)
                torch.testing.assert_close(got[i, a, r], expected)


def test_map_regions_is_its_rule():
    cosines = rand(4, 3, 6).tanh()
    present, mask = flags(4, 3), flags(4, 6, seed=1, share=0.7)
    mask[0] = False
    got = map_regions(cosines, present, mask, margin=0.2)
    for i in range(4):
        seen = [r for r in range(6) if mask[i, r]]
        for a in range(3):
            best = max((cosines[i, a, r].item() for r in seen), default=None)
            for r in range(6):
                expected = bool(present[i, a]) and r in seen and cosines[i, a, r].item() >= best - 0.2
                assert got[i, a, r].item() == expected


def test_best_region_skips_what_sees_no_film():
    cosines = torch.tensor([[[0.1, 0.9]], [[0.1, 0.9]]])
    mask = torch.tensor([[True, False], [False, False]])
    assert best_region(cosines, mask)[:, 0].tolist() == pytest.approx([0.1, 0.9])


def region_oracle(regions, attributes, mapped, unknown, scale):
    """CLIP over pairs, each direction a softmax over itself and what it does not fit."""
    regions, attributes = (x / x.norm(dim=-1, keepdim=True) for x in (regions, attributes))
    pairs = mapped.any(-1).nonzero().tolist()
    shown = [regions[i][mapped[i, a]].mean(0) for i, a in pairs]
    shown = [x / x.norm() for x in shown]

    def fits(p, a):
        i, own = pairs[p]
        return a == own or bool((mapped[i, own] & mapped[i, a]).any()) or bool(unknown[i, a])

    total = 0.0
    for p, (_, own) in enumerate(pairs):
        z = [scale * (shown[p] @ attributes[a]).item() for _, a in pairs]
        others = [z[q] for q, (_, a) in enumerate(pairs) if q != p and not fits(p, a)]
        total += math.log(math.exp(z[p]) + sum(map(math.exp, others))) - z[p]
        z = [scale * (x @ attributes[own]).item() for x in shown]
        others = [z[q] for q in range(len(pairs)) if q != p and not fits(q, own)]
        total += math.log(math.exp(z[p]) + sum(map(math.exp, others))) - z[p]
    return total / (2 * len(pairs))


def test_region_attribute_loss_is_its_loop():
    regions, attributes = rand(5, 6, DIM), rand(4, DIM, seed=1)
    state = torch.randint(0, 3, (5, 4), generator=torch.Generator().manual_seed(2))
    mapped = flags(5, 4, 6, seed=3, share=0.3) & (state == 1)[..., None]
    unknown = state == 2
    got = region_attribute_loss(regions, attributes, mapped, scale=7.0, unknown=unknown)
    assert got.item() == pytest.approx(region_oracle(regions, attributes, mapped, unknown, 7.0), abs=1e-10)
    got = region_attribute_loss(regions, attributes, mapped, scale=7.0)
    nobody = torch.zeros_like(unknown)
    assert got.item() == pytest.approx(region_oracle(regions, attributes, mapped, nobody, 7.0), abs=1e-10)


def test_equal_attributes_are_no_negatives():
    # Every pair names the same attribute: nothing to contrast, the loss is exactly 0.
    mapped = torch.ones(5, 1, 3) > 0
    assert region_attribute_loss(
        rand(5, 3, DIM), rand(1, DIM, seed=1), mapped, scale=10.0
    ).item() == pytest.approx(0.0, abs=1e-12)


def test_attributes_of_one_region_are_no_negatives():
    # Image 0 shows both attributes: in one region they do not push each other away, in two they do.
    regions, attributes = rand(1, 2, DIM), rand(2, DIM, seed=1)
    together = torch.tensor([[[True, False], [True, False]]])
    apart = torch.tensor([[[True, False], [False, True]]])
    assert region_attribute_loss(regions, attributes, together, scale=10.0).item() == pytest.approx(
        0.0, abs=1e-12
    )
    assert region_attribute_loss(regions, attributes, apart, scale=10.0).item() > 0.0


def test_nothing_mapped_is_a_zero_with_a_gradient():
    regions = rand(3, 2, DIM).requires_grad_()
    loss = region_attribute_loss(regions, rand(4, DIM), torch.zeros(3, 4, 2) > 0, scale=10.0)
    assert loss.item() == 0.0
    assert torch.equal(torch.autograd.grad(loss, regions)[0], torch.zeros_like(regions))


def test_regions_join_after_the_mapping_epochs():
    image, text = features(6)
    image.regions.requires_grad_()
    objective = build("villa", mapping_epochs=2)
    for epoch, joined in ((0, False), (1, False), (2, True)):
        objective.on_epoch(epoch)
        loss = objective(image, text, positives(6))
        gradient = torch.autograd.grad(loss.total, image.regions)[0]
        assert bool(loss.terms["region"] > 0) == bool(gradient.any()) == joined


def test_the_mapping_moves_its_heads_alone():
    image, text = features(6)
    leaves = [image.regions.requires_grad_(), text.attributes.requires_grad_()]
    objective = build("villa", instance_weight=0.0, region_weight=0.0)
    loss = objective(image, text, positives(6)).total
    loss.backward()
    assert not any(leaf.grad.any() for leaf in leaves)
    assert all(parameter.grad.any() for parameter in objective.heads.parameters())


def test_an_unknown_finding_is_neither_present_nor_absent():
    image, text = features(6)
    text = replace(text, findings=torch.full((6, 4), math.nan))
    terms = build("villa")(image, text, positives(6)).terms
    assert terms["mapping"] == 0.0 and terms["region"] == 0.0 and terms["instance"] > 0.0


def test_the_terms_read_their_own_options():
    # States of three kinds: mapping and regions differ where an unknown finding is taken for an absent one.
    image, text = features(7)
    options = {"mapping_temperature": 0.2, "region_temperature": 0.4, "margin": 0.05, "temperature": 0.1}
    objective = build("villa", mapping_weight=0.5, region_weight=2.0, **options)
    terms = objective(image, text, positives(7)).terms
    present, absent, unknown = text.findings == 1, text.findings == 0, text.findings.isnan()
    assert present.any() and absent.any() and unknown.any()
    cosines = objective.heads(image.regions, text.attributes).detach()
    scores = best_region(cosines, image.region_mask, temperature=0.4) / 0.2
    assert terms["mapping"].item() == pytest.approx(0.5 * mapping_oracle(scores, present, absent), abs=1e-10)
    mapped = map_regions(cosines, present, image.region_mask, margin=0.05)
    region = region_oracle(image.regions, text.attributes, mapped, unknown, 10.0)
    assert terms["region"].item() == pytest.approx(2 * region, abs=1e-6)


def test_no_finding_has_no_place():
    image, text = features(6)
    named = [*OPTIONS["villa"]["findings"][:3], "no_finding"]
    unknown = text.findings.clone()
    unknown[:, 3] = math.nan
    terms = build("villa", findings=named)(image, text, positives(6)).terms
    assert terms == build("villa")(image, replace(text, findings=unknown), positives(6)).terms
    assert terms != build("villa")(image, text, positives(6)).terms


def found(seed, temperature):
    """Share of findings whose head comes to point at their regions; images alone are labelled."""
    torch.manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(16, 16)).Q[:4]
    present = torch.rand(96, 4) < 0.5
    place = torch.rand(96, 9).argsort(dim=1)[:, :4]  # where each finding would lie
    regions = 0.1 * torch.randn(96, 9, 16)
    truth = torch.zeros(96, 4, 9, dtype=torch.bool)
    for i, a in present.nonzero().tolist():
        regions[i, place[i, a]] += directions[a]
        truth[i, a, place[i, a]] = True
    heads, mask = AttributeHeads(16, count=4), torch.ones(96, 9, dtype=torch.bool)
    names = torch.randn(4, 16)
    optimiser = torch.optim.Adam(heads.parameters(), lr=0.01)
    for _ in range(100):
        scores = best_region(heads(regions, names), mask, temperature=temperature) / 0.07
        loss = mapping_loss(scores, present)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.01
    mapped = map_regions(heads(regions, names).detach(), present, mask)
    hits = (mapped & truth).sum((0, 2))
    return ((hits > 0.9 * mapped.sum((0, 2))) & (hits > 0.9 * truth.sum((0, 2)))).float().mean().item()


def test_the_mapping_finds_the_region():
    # A finding is a direction that one of nine regions carries. With a hard maximum a head may learn other
    # regions by heart, and its loss falls to nothing all the same.
    assert found(0, 0.3) == found(1, 0.3) == 1.0
    assert found(0, 0.0) < 1.0


def test_a_soft_best_region_comes_to_the_best():
    cosines, mask = rand(4, 3, 6).tanh(), flags(4, 6, seed=1, share=0.7)
    hard = best_region(cosines, mask)
    torch.testing.assert_close(best_region(cosines, mask, temperature=1e-4), hard, atol=1e-3, rtol=0)
    assert (best_region(cosines, mask, temperature=0.3) <= hard + 1e-12).all()


def test_refuses_to_be_built_without_findings():
    with pytest.raises(ConfigError, match=r"'villa' got no findings.*Label the store"):
        OBJECTIVES.build("villa", {}, DIM)


@pytest.mark.parametrize("missing", ["findings", "attributes"])
def test_refuses_a_batch_without_findings(missing):
    image, text = features(3)
    with pytest.raises(ConfigError, match="has 4 findings, and the batch none"):
        build("villa")(image, replace(text, **{missing: None}), positives(3))


def test_refuses_a_batch_of_other_findings():
    image, text = features(3)
    with pytest.raises(ConfigError, match="has 3 findings, and the batch 4"):
        build("villa", findings=OPTIONS["villa"]["findings"][:3])(image, text, positives(3))
