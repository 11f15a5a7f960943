"""Organs: the closed forms of the loss, a loop over it, and what takes part in it."""

import math
from dataclasses import replace

import oracles
import pytest
import torch
from lossfeatures import DIM, D, build, features, positives

from medvl.errors import ConfigError
from medvl.features import ImageFeatures, TextFeatures
from medvl.objectives import OBJECTIVES
from medvl.objectives.contrast import clip_loss
from medvl.objectives.organs import organ_loss
from medvl.objectives.parts import OrganPool, normal_parts, text_parts

NAN = float("nan")
FINDING_PARTS = [1, 1, 2, 3]


def loss_of(
    images, texts, *, normal=None, keys=None, eligible=None, matrix=None, scale=1 / 0.07, mode="multi"
):
    """One part or several; everything eligible, distinct and abnormal unless said otherwise."""
    batch, parts = images.shape[:2]
    return organ_loss(
        images,
        texts,
        torch.ones(batch, parts, dtype=torch.bool) if eligible is None else eligible,
        torch.eye(batch) if matrix is None else matrix,
        keys=torch.arange(batch)[:, None].expand(-1, parts) if keys is None else keys,
        normal=torch.zeros(batch, parts, dtype=torch.bool) if normal is None else normal,
        scale=scale,
        false_negatives=mode,
    )


def random_parts(batch, parts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, parts, 5, dtype=D, generator=generator) for _ in range(2)]


def test_distinct_abnormal_texts_are_clip_for_each_part():
    images, texts = random_parts(6, 3)
    expected = sum(clip_loss(images[:, o], texts[:, o], torch.eye(6), scale=1 / 0.07) for o in range(3))
    assert loss_of(images, texts).item() == pytest.approx(expected.item(), abs=1e-10)


TWO_NORMALS = torch.tensor([[True], [True], [False]])


def test_two_normals_of_three_with_constant_embeddings_give_ln_3():
    constant = torch.ones(3, 1, 4, dtype=D)
    assert loss_of(constant, constant, normal=TWO_NORMALS).item() == pytest.approx(math.log(3), abs=1e-12)


def test_two_normals_of_three_have_their_floor_at_two_thirds_of_ln_2():
    # Rows 0 and 1 have the target (½, ½, 0), entropy ln 2; row 2 has (0, 0, 1), entropy 0. Mean ⅔ ln 2 =
    # 0.462098, reached where the two normals are one point and the third is far away.
    best = torch.eye(2, dtype=D)[[0, 0, 1]][:, None]
    assert loss_of(best, best, normal=TWO_NORMALS, scale=100.0).item() == pytest.approx(0.462098, abs=1e-6)
    others = random_parts(3, 1)
    assert loss_of(*others, normal=TWO_NORMALS, scale=100.0).item() > 0.462098


def test_equal_sentences_count_as_two_normals_do():
    images, texts = random_parts(3, 1)
    said = loss_of(images, texts, keys=torch.tensor([[7], [7], [8]]))
    assert said == loss_of(images, texts, normal=TWO_NORMALS)
    assert said != loss_of(images, texts)


def test_a_study_with_itself_is_right_whatever_its_sentences():
    # Each epoch may draw other sentences of a report; two views of one study are still of one study.
    images, texts = random_parts(3, 1)
    twins = torch.eye(3)
    twins[0, 1] = twins[1, 0] = 1.0
    assert loss_of(images, texts, matrix=twins) == loss_of(images, texts, normal=TWO_NORMALS)
    twins[0, 1] = twins[1, 0] = 0.5
    assert loss_of(images, texts, matrix=twins) == loss_of(images, texts)
    assert loss_of(images, texts, matrix=twins, mode="soft") != loss_of(images, texts)


@pytest.mark.parametrize("mode", ["multi", "soft", "mask"])
def test_a_part_with_equal_targets_contributes_nothing(mode):
    images, texts = random_parts(4, 2)
    normal = torch.tensor([[True, False]]).expand(4, 2)
    ours = loss_of(images, texts, normal=normal, mode=mode)
    assert ours == loss_of(images[:, 1:], texts[:, 1:], mode=mode)
    assert loss_of(images, texts, normal=normal, mode="none") == loss_of(images, texts, mode="none")


@pytest.mark.parametrize("eligible", [torch.zeros(3, 2, dtype=torch.bool), torch.eye(3)[:, :2] > 0])
def test_without_an_eligible_part_the_loss_is_a_zero_with_a_gradient(eligible):
    # The public loss is the number 0 there, and its backward pass fails.
    images, texts = (x.requires_grad_() for x in random_parts(3, 2))
    loss = loss_of(images, texts, eligible=eligible)
    assert isinstance(loss, torch.Tensor) and loss.item() == 0.0 and loss.requires_grad
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, (images, texts)))


@pytest.mark.parametrize("rows", [[0, 2, 3], [1, 4]])
def test_only_eligible_rows_take_part(rows):
    images, texts = random_parts(5, 1)
    kept = torch.zeros(5, dtype=torch.bool).index_fill(0, torch.tensor(rows), True)
    eligible = kept[:, None]
    if len(rows) == 2:  # fewer cannot be contrasted
        plain = clip_loss(images[kept, 0], texts[kept, 0], torch.eye(2), scale=1 / 0.07)
        assert loss_of(images, texts, eligible=eligible).item() == pytest.approx(plain.item(), abs=1e-10)
    matrix = positives(5).double()
    assert loss_of(images, texts, eligible=eligible, matrix=matrix) == loss_of(
        images[kept], texts[kept], matrix=matrix[kept][:, kept]
    )


def test_positives_of_a_part_are_read_a_block_at_a_time():
    from medvl.objectives.organs import PartPositives
    from medvl.objectives.targets import as_positives

    matrix = torch.rand(9, 9, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([0, 3, 4, 8])
    keys, normal = torch.tensor([1, 2, 1, 3]), torch.tensor([False, True, False, True])
    equal = PartPositives(as_positives(matrix), index, keys, normal)
    whole = matrix[index][:, index].clone()
    whole[0, 0] = whole[1, 1] = whole[2, 2] = whole[3, 3] = 1.0
    whole[0, 2] = whole[2, 0] = whole[1, 3] = whole[3, 1] = 1.0
    assert torch.equal(equal.rows(0, 4), whole) and torch.equal(equal.rows(1, 3), whole[1:3])
    assert torch.equal(equal.columns(1, 3), whole[:, 1:3].T)
    assert not equal.all_equal(block_rows=3)


def unit(vector):
    return torch.stack(oracles.normalised(list(vector)))


def attended(pool, o, regions):
    """The vector of part o (from 1) over a list of regions, head by head."""
    x = [unit(region) * math.sqrt(DIM) for region in regions]
    size = DIM // pool.heads
    seen = []
    for h in range(pool.heads):
        part = slice(h * size, (h + 1) * size)
        query = pool.query[o - 1][part]
        shares = oracles.softmax([(query @ (pool.key.weight @ y)[part]) / math.sqrt(size) for y in x])
        seen.append(sum(a * y[part] for a, y in zip(shares, x, strict=True)))
    return torch.cat(seen)


def cases_of(image, text, o, pool):
    """What each case that shows and names part o brings to its contrast."""
    for b in range(len(image.pooled)):
        sentences, regions = range(text.sentences.shape[1]), range(image.regions.shape[1])
        said = [s for s in sentences if text.sentence_mask[b, s] and text.sentence_parts[b, s] == o]
        seen = [r for r in regions if image.region_mask[b, r]]
        if image.region_parts is not None:
            seen = [r for r in seen if image.region_parts[b, r, o - 1]]
        known = [float(text.findings[b, f]) for f, part in enumerate(FINDING_PARTS) if part == o]
        known = [value for value in known if not math.isnan(value)]
        if said and seen:
            yield {
                "row": b,
                "image": attended(pool, o, [image.regions[b, r] for r in seen]),
                "text": sum(unit(text.sentences[b, s]) for s in said) / len(said),
                "words": sorted(int(text.sentence_keys[b, s]) for s in said),
                "normal": bool(known) and not any(known),
            }


def oracle(image, text, matrix, objective, mode):
    """METHODS §3.1 on features, in loops."""
    total = torch.zeros((), dtype=D)
    for o in range(1, objective.organs.parts + 1):
        cases = list(cases_of(image, text, o, objective.organs.pool))
        right = [
            [
                1.0
                if a["words"] == c["words"] or (a["normal"] and c["normal"])
                else float(matrix[a["row"]][c["row"]])
                for c in cases
            ]
            for a in cases
        ]
        if len(cases) < 2 or (mode != "none" and all(value == 1.0 for line in right for value in line)):
            continue
        images, texts = ([case[side] for case in cases] for side in ("image", "text"))
        total = total + oracles.clip_loss(images, texts, right, 1 / objective.organs.temperature, mode)
    return total


@pytest.mark.parametrize("mode", ["none", "mask", "multi", "soft"])
@pytest.mark.parametrize("segmented", [False, True])
def test_value_and_gradient_equal_the_loop(mode, segmented):
    objective = build("organs", false_negatives=mode, parts=3, finding_parts=FINDING_PARTS)
    image, text = features(7, sentences=4)
    if segmented:
        inside = torch.rand(7, 9, 3, generator=torch.Generator().manual_seed(1)) < 0.4
        image = replace(image, region_parts=inside)
    image = replace(image, regions=image.regions.requires_grad_())
    text = replace(text, sentences=text.sentences.requires_grad_())
    leaves = [image.regions, text.sentences, *objective.organs.parameters()]
    loss = objective.organs(image, text, positives(7))
    expected = oracle(image, text, positives(7), objective, mode)
    assert expected > 1 and loss.item() == pytest.approx(expected.item(), abs=1e-9)
    for ours, theirs in zip(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-7)


def test_the_order_of_sentences_changes_nothing():
    objective = build("organs", parts=3, finding_parts=FINDING_PARTS)
    image, text = features(6, sentences=4)
    order = torch.tensor([2, 0, 3, 1])
    names = ("sentences", "sentence_mask", "sentence_keys", "sentence_parts")
    other = replace(text, **{name: getattr(text, name)[:, order] for name in names})
    same = objective(image, text, positives(6)).total.item()
    assert objective(image, other, positives(6)).total.item() == pytest.approx(same, abs=1e-10)


def test_keys_of_a_part_are_sets_of_sentences():
    sentence = torch.ones(3, 2, 4, dtype=D)
    mask, parts = torch.ones(3, 2, dtype=torch.bool), torch.ones(3, 2, dtype=torch.long)
    text = replace(
        features(3, sentences=2)[1], sentences=sentence, sentence_mask=mask, sentence_parts=parts,
        words=torch.ones(3, 7, 4, dtype=D), sentence_keys=torch.tensor([[1, 4], [4, 1], [2, 3]]),
    )  # fmt: skip
    keys = text_parts(text, parts=1).keys[:, 0]
    assert keys[0] == keys[1] != keys[2]  # 1 + 4 = 2 + 3: a bare sum would confuse them
    unknown = text_parts(replace(text, sentence_keys=None), parts=2).keys
    assert unknown[:, 0].tolist() == [0, 1, 2]


def test_which_parts_are_normal():
    # Part 1 has two findings, part 2 one, part 3 none that is listed.
    findings = torch.tensor([[0.0, 0.0, 1.0], [0.0, NAN, NAN], [0.0, 1.0, 0.0], [NAN, NAN, 0.0]])
    found = normal_parts(findings, torch.tensor([1, 1, 2]), parts=3).int().tolist()
    assert found == [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]]
    assert not normal_parts(findings, torch.empty(0, dtype=torch.long), parts=3).any()
    with pytest.raises(ConfigError, match=r"finding_parts is for 2 findings, the batch has 3\."):
        normal_parts(findings, torch.tensor([1, 2]), parts=3)


def test_what_reports_say_completes_what_labels_know():
    """Part 1 is absent by its label, part 2 present, part 3 has none; rows: said normal, not, neither."""
    findings = torch.tensor([[0.0, 1.0]]).expand(3, 2)
    states = torch.tensor([[1, 1, 1], [-1, -1, -1], [0, 0, 0]])
    found = normal_parts(findings, torch.tensor([1, 2]), parts=3, states=states).int().tolist()
    assert found == [[1, 0, 1], [0, 0, 0], [1, 0, 0]]
    alone = normal_parts(findings[:, :0], torch.empty(0, dtype=torch.long), parts=3, states=states)
    assert torch.equal(alone, states > 0)


def test_one_abnormal_sentence_decides_for_its_part():
    """Parts 1, 1, 2, 3, 0: normal, not normal, normal, neither, normal; the last sentence is padding."""
    text = features(1, sentences=6)[1]
    mask = torch.tensor([[True] * 5 + [False]])
    parts, states = torch.tensor([[1, 1, 2, 3, 0, 4]]), torch.tensor([[1, -1, 1, 0, 1, 1]])
    text = replace(text, sentence_mask=mask, sentence_parts=parts, sentence_states=states)
    assert text_parts(text, parts=4).states.tolist() == [[-1, 1, 0, 0]]
    assert text_parts(replace(text, sentence_states=None), parts=4).states is None


def test_statements_make_normal_cases_positives_of_each_other():
    """Three reports speak of one part in other words, two call it normal, no label knows it: what a label
    that makes the same two normal gives.
    """
    image, text = features(3, sentences=1)
    one = torch.ones(3, 1, dtype=torch.long)
    keys = torch.arange(3)[:, None]
    text = replace(text, sentence_mask=one > 0, sentence_parts=one, sentence_keys=keys, attributes=None)
    labelled = replace(text, findings=torch.tensor([[0.0], [0.0], [1.0]]))
    told = replace(text, findings=None, sentence_states=torch.tensor([[1], [1], [-1]]))
    by_label = build("organs", parts=1, finding_parts=[1])(image, labelled, torch.eye(3)).terms["organs"]
    by_text = build("organs", parts=1)(image, told, torch.eye(3)).terms["organs"]
    by_none = build("organs", parts=1)(image, replace(told, sentence_states=None), torch.eye(3))
    assert by_label == by_text != by_none.terms["organs"]


def test_a_segmentation_keeps_the_query_inside_the_part():
    pool = OrganPool(parts=2, dim=DIM).double()
    regions = torch.randn(1, 6, DIM, dtype=D)
    inside = torch.zeros(1, 6, 2, dtype=torch.bool)
    inside[:, 1:3, 0] = True
    changed = regions.clone()
    changed[:, 4] += 1.0
    assert torch.equal(pool(regions, inside)[:, 0], pool(changed, inside)[:, 0])
    assert pool(regions, inside)[:, 1].isfinite().all()
    alone = pool(regions[:, 1:3], torch.ones(1, 2, 2, dtype=torch.bool))
    torch.testing.assert_close(pool(regions, inside)[:, 0], alone[:, 0])


def test_the_query_of_one_region_is_that_region():
    pool = OrganPool(parts=2, dim=DIM).double()
    region = torch.randn(3, 1, DIM, dtype=D)
    asked = pool(region, torch.ones(3, 1, 2, dtype=torch.bool))
    ratio = asked / region  # so a sentence is looked for region by region in the space of the parts
    torch.testing.assert_close(ratio, ratio[:, :1, :1].expand_as(ratio))
    assert (ratio > 0).all()


def test_a_part_outside_the_image_does_not_count():
    objective = build("organs", parts=3)
    image, text = features(6)
    inside = torch.ones(6, 9, 3, dtype=torch.bool)
    inside[..., 1] = False
    without = text.sentence_parts.masked_fill(text.sentence_parts == 2, 0)
    assert (
        objective(replace(image, region_parts=inside), text, positives(6)).total
        == objective(image, replace(text, sentence_parts=without), positives(6)).total
    )


def test_the_temperature_is_learned_and_kept_in_range():
    objective = build("organs")
    for value, kept in ((3.0, 0.5), (1e-5, 0.002), (0.1, 0.1)):
        with torch.no_grad():
            objective.organs.temperature.fill_(value)
        objective.clamp_()
        assert objective.organs.temperature.item() == pytest.approx(kept)
    # At the lowest temperature the logits reach 500: still finite.
    objective = build("organs", organ_temperature=0.002).float()
    image, text = features(6, dtype=torch.float32)
    text.sentence_keys.copy_(torch.arange(18).view(6, 3))
    regions = image.regions.requires_grad_()
    total = objective(image, text, positives(6)).total
    assert total.isfinite() and torch.autograd.grad(total, regions)[0].isfinite().all()


def test_weights_and_terms():
    parts = features(6), positives(6)
    loss = build("organs", instance_weight=0.5, organ_weight=2.0)(*parts[0], parts[1])
    plain = build("organs")(*parts[0], parts[1])
    assert loss.terms["instance"] == 0.5 * plain.terms["instance"]
    assert loss.terms["organs"] == 2 * plain.terms["organs"]
    clip = build("clip", false_negatives="multi")(*parts[0], parts[1])
    assert plain.terms["instance"] == clip.total


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, r"heads is 3, which does not divide the width 8"),
        ({"organ_temperature": 0.7}, r"organ_temperature is 0\.7\. Allowed: 0\.002 to 0\.5"),
        ({"organ_temperature": 0.001}, r"organ_temperature is 0\.001\. Allowed: 0\.002 or more"),
        ({"parts": 0}, r"parts is 0\. Allowed: 1 or more"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ConfigError, match=message):
        OBJECTIVES.build("organs", options, DIM)


def test_refuses_features_without_parts_or_of_other_parts():
    image, text = features(3)
    with pytest.raises(ConfigError, match=r"sentence_parts is None\..*medvl.anatomy.sentence_parts"):
        build("organs")(image, replace(text, sentence_parts=None), torch.eye(3))
    with pytest.raises(ConfigError, match=r"assigned to 2 parts, the objective has 7\."):
        inside = torch.ones(3, 9, 2, dtype=torch.bool)
        build("organs")(replace(image, region_parts=inside), text, torch.eye(3))


def test_queries_learn_where_their_part_is_without_a_segmentation():
    # Each image has three regions, one of each part in an order of its own: signature of the part + code of
    # its state, 1 of 4. A report says each state in one sentence. Of the image side only the pool learns.
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    signature, code = torch.randn(3, 16, generator=generator), torch.randn(4, 16, generator=generator)
    words = torch.nn.Parameter(torch.randn(3, 4, 16, generator=generator))
    objective = OBJECTIVES.build("organs", {"parts": 3, "instance_weight": 0.0}, 16)
    optimiser = torch.optim.Adam([words, *objective.parameters()], lr=0.01)

    def batch(size):
        states = torch.randint(0, 4, (size, 3), generator=generator)
        order = torch.rand(size, 3, generator=generator).argsort(dim=1)
        regions = (signature + code[states]).gather(1, order[..., None].expand(-1, -1, 16))
        real, parts = torch.ones(size, 3, dtype=torch.bool), torch.arange(3).expand(size, -1)
        image = ImageFeatures(regions.mean(dim=1), regions, (3,), real)
        said = words[parts, states]
        known = {"sentence_keys": parts * 4 + states, "sentence_parts": parts + 1}
        return states, image, TextFeatures(said.mean(dim=1), said, real, said, real, **known)

    for _ in range(120):
        _, image, text = batch(24)
        optimiser.zero_grad()
        objective(image, text, torch.eye(24)).total.backward()
        optimiser.step()
        objective.clamp_()
    states, image, _ = batch(200)
    with torch.no_grad():
        found = objective.organs.pool(image.regions, image.region_mask[..., None].expand(-1, -1, 3))
    guess = torch.einsum("bod,ocd->boc", found, torch.nn.functional.normalize(words, dim=-1)).argmax(dim=-1)
    right = (guess == states).float().mean(dim=0)
    assert (right > 0.95).all(), right  # chance 0.25
