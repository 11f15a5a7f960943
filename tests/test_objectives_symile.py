"""Symile: its closed forms, a loop oracle, what is missing, and the problem that pairs cannot solve."""

import itertools
import math

import pytest
import torch
from lossfeatures import DIM, D, build, features
from oracles import log_softmax_at, normalised

from medvl.errors import ConfigError
from medvl.objectives import OBJECTIVES
from medvl.objectives.contrast import clip_loss
from medvl.objectives.symile import random_orders, symile_loss

BOTH = ("n", "n_squared")
XOR_STEPS = 200


def vectors(modalities=3, batch=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, DIM, generator=generator, dtype=D) for _ in range(modalities)]


def own_order(modalities, batch):
    return torch.arange(batch).repeat(modalities, 1)


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def product(parts):
    total = 0.0
    for values in zip(*parts, strict=True):
        total = total + math.prod(values)
    return total


def oracle(modalities, scale, negatives, present, orders, positives):
    """Loops over anchors, rows and tuples of the modalities that a row has; equal tuples leave."""
    x = [[[float(value) for value in normalised(list(row))] for row in modality] for modality in modalities]
    batch, anchors = len(x[0]), []
    for anchor in range(len(x)):
        losses = []
        for i in range(batch):
            kept = [m for m in range(len(x)) if m != anchor and present[m][i]]
            if not present[anchor][i] or not kept:
                continue
            tuples = [tuple(i for _ in kept)]
            if negatives == "n_squared" or len(kept) == 1:
                tuples += [t for t in itertools.product(range(batch), repeat=len(kept)) if t != tuples[0]]
            else:
                tuples += [tuple(int(orders[m][j]) for m in kept) for j in range(batch) if j != i]
            logits = []
            for place, chosen in enumerate(tuples):
                if not all(present[m][j] for m, j in zip(kept, chosen, strict=True)):
                    continue
                if place and min(float(positives[i][j]) for j in chosen) == 1:
                    continue
                parts = [x[anchor][i], *(x[m][j] for m, j in zip(kept, chosen, strict=True))]
                logits.append(torch.tensor(scale * product(parts), dtype=D))
            losses.append(-log_softmax_at(logits, 0).item())
        if losses:
            anchors.append(sum(losses) / len(losses))
    return sum(anchors) / len(anchors)


@pytest.mark.parametrize(("negatives", "expected"), [("n", math.log(8)), ("n_squared", 2 * math.log(8))])
def test_constant_vectors_give_ln_b_and_2_ln_b(negatives, expected):
    same = torch.ones(8, DIM, dtype=D)
    assert symile_loss([same] * 3, scale=14.3, negatives=negatives).item() == pytest.approx(
        expected, abs=1e-12
    )


def test_a_modality_of_ones_leaves_clip():
    # z = 1/√d everywhere: <x, y, z> = x·y / √d, so a scale of s√d makes the rows of x those of CLIP, and
    # those of y too. Anchor z sees x_j·y_j in every row: its own against those of the others.
    x, y, _ = vectors(batch=6)
    ones = torch.ones(6, DIM, dtype=D)
    total = symile_loss([x, y, ones], scale=3.0 * math.sqrt(DIM), orders=own_order(3, 6)).item()
    pair = clip_loss(x, y, torch.eye(6), scale=3.0).item()
    own = 3.0 * (torch.nn.functional.normalize(x) * torch.nn.functional.normalize(y)).sum(1)
    third = (own.logsumexp(0) - own).mean().item()
    assert 3 * total == pytest.approx(2 * pair + third, abs=1e-12)


@pytest.mark.parametrize("negatives", BOTH)
@pytest.mark.parametrize("missing", ["nothing", "some", "one everywhere", "a lone one"])
@pytest.mark.parametrize("mode", ["none", "mask"])
def test_is_the_formula_in_loops(negatives, missing, mode):
    x = vectors()
    present = torch.ones(3, 5, dtype=torch.bool)
    if missing == "some":
        present[0, 1] = present[2, 3] = present[2, 4] = False
    if missing == "one everywhere":
        present[1] = False
    if missing == "a lone one":
        present[:2, 0] = False
    positives = torch.eye(5)
    positives[0, 2] = positives[2, 0] = 1.0
    orders = random_orders(3, 5, generator=random(3))
    got = symile_loss(
        x,
        scale=4.0,
        negatives=negatives,
        present=present,
        positives=positives,
        false_negatives=mode,
        orders=orders,
    )
    alike = positives if mode == "mask" else torch.zeros(5, 5)
    assert got.item() == pytest.approx(oracle(x, 4.0, negatives, present, orders, alike), abs=1e-10)


def test_four_modalities_with_random_gaps_are_the_formula_in_loops():
    x = vectors(modalities=4, batch=6)
    present = torch.rand(4, 6, generator=random(1)) < 0.7
    orders = random_orders(4, 6, generator=random(2))
    got = symile_loss(x, scale=4.0, present=present, orders=orders).item()
    assert got == pytest.approx(oracle(x, 4.0, "n", present, orders, torch.zeros(6, 6)), abs=1e-10)


@pytest.mark.parametrize("negatives", BOTH)
def test_everything_present_is_said_or_not(negatives):
    x, orders = vectors(), random_orders(3, 5, generator=random())
    whole = torch.ones(3, 5, dtype=torch.bool)
    said = symile_loss(x, scale=4.0, negatives=negatives, present=whole, orders=orders)
    assert said == symile_loss(x, scale=4.0, negatives=negatives, orders=orders)


@pytest.mark.parametrize("negatives", BOTH)
def test_a_modality_absent_everywhere_leaves_clip(negatives):
    x = vectors(batch=7)
    present = torch.ones(3, 7, dtype=torch.bool)
    present[1] = False
    got = symile_loss(x, scale=4.0, negatives=negatives, present=present, generator=random())
    assert got.item() == pytest.approx(clip_loss(x[0], x[2], torch.eye(7), scale=4.0).item(), abs=1e-12)
    two = symile_loss([x[0], x[2]], scale=4.0, negatives=negatives, generator=random())
    assert two.item() == pytest.approx(got.item(), abs=1e-12)


@pytest.mark.parametrize("negatives", BOTH)
def test_what_is_missing_is_not_read(negatives):
    x = vectors()
    present = torch.ones(3, 5, dtype=torch.bool)
    present[1, 2] = False
    values = []
    for filler in (0.0, math.nan):
        x[1][2] = filler
        leaves = [part.clone().requires_grad_() for part in x]
        loss = symile_loss(leaves, scale=4.0, negatives=negatives, present=present, generator=random())
        loss.backward()
        values.append(loss.item())
        assert all(leaf.grad.isfinite().all() for leaf in leaves)
        assert not leaves[1].grad[2].any()
    assert values[0] == values[1]


@pytest.mark.parametrize("negatives", BOTH)
def test_nothing_to_compare_is_zero_with_a_gradient(negatives):
    x = [part.requires_grad_() for part in vectors()]
    present = torch.zeros(3, 5, dtype=torch.bool)
    present[0] = True
    loss = symile_loss(x, scale=4.0, negatives=negatives, present=present)
    loss.backward()
    assert loss.item() == 0.0 and not x[0].grad.any()


@pytest.mark.parametrize("negatives", BOTH)
@pytest.mark.parametrize("mode", ["none", "soft"])
def test_blocks_change_neither_value_nor_gradient(negatives, mode, monkeypatch):
    scale = torch.tensor(4.0, dtype=D)
    positives = torch.rand(7, 7, generator=random(1))
    present = torch.rand(3, 7, generator=random(2)) < 0.8
    results = []
    for logits in (2**22, 110):  # 110: blocks of 2 rows of 49 pairs, the last of 1; of 7 rows in "n"
        monkeypatch.setattr("medvl.objectives.symile._LOGITS", logits if negatives[1:] else logits // 7)
        leaves = [part.requires_grad_() for part in [*vectors(batch=7), scale.clone()]]
        loss = symile_loss(
            leaves[:3],
            scale=leaves[3],
            negatives=negatives,
            present=present,
            positives=positives,
            false_negatives=mode,
            generator=random(),
        )
        results.append([loss, *torch.autograd.grad(loss, leaves)])
    for plain, blocked in zip(*results, strict=True):
        torch.testing.assert_close(plain, blocked, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("negatives", BOTH)
def test_gradcheck(negatives):
    present = torch.ones(3, 3, dtype=torch.bool)
    present[1, 0] = False
    orders = random_orders(3, 3, generator=random())

    def loss(scale, *parts):
        return symile_loss(parts, scale=scale, negatives=negatives, present=present, orders=orders)

    leaves = [torch.tensor(5.0, dtype=D), *vectors(batch=3)]
    assert torch.autograd.gradcheck(loss, [leaf.requires_grad_() for leaf in leaves])


@pytest.mark.parametrize("negatives", BOTH)
def test_masked_equal_tuples_give_no_gradient(negatives):
    x = [part.requires_grad_() for part in vectors()]
    loss = symile_loss(x, scale=4.0, negatives=negatives, positives=torch.ones(5, 5), false_negatives="mask")
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-12) and x[0].grad.abs().max() < 1e-12


def test_the_order_of_the_cases_does_not_matter():
    x, order = vectors(), torch.tensor([3, 0, 4, 1, 2])
    plain = symile_loss(x, scale=4.0, negatives="n_squared").item()
    assert symile_loss([part[order] for part in x], scale=4.0, negatives="n_squared").item() == pytest.approx(
        plain
    )
    # The modalities may change places too: each is the anchor once.
    assert symile_loss(x[::-1], scale=4.0, negatives="n_squared").item() == pytest.approx(plain)


def test_a_rotation_changes_it():
    # METHODS §1.6: a sum of products of three coordinates is not invariant, as a product of two is.
    x = vectors()
    rotation = torch.linalg.qr(torch.randn(DIM, DIM, dtype=D, generator=random())).Q
    plain, turned = (
        symile_loss(parts, scale=4.0, negatives="n_squared").item()
        for parts in (x, [part @ rotation for part in x])
    )
    assert abs(plain - turned) > 1e-3


def test_drawn_orders_are_a_function_of_the_generator():
    x = vectors()
    one, two, other = (symile_loss(x, scale=4.0, generator=random(seed)).item() for seed in (1, 1, 2))
    assert one == two != other


def test_refuses_what_it_cannot_contrast():
    x = vectors(modalities=4)
    with pytest.raises(ConfigError, match=r"1 modalities with negatives 'n'\. Allowed: 2 or more"):
        symile_loss(x[:1], scale=1.0)
    with pytest.raises(ConfigError, match=r"4 modalities with negatives 'n_squared'\. Allowed: 2 or 3"):
        symile_loss(x, scale=1.0, negatives="n_squared")
    with pytest.raises(ConfigError, match=r"negatives is 'n_square'\..*Did you mean 'n_squared'"):
        OBJECTIVES.build("symile", {"negatives": "n_square"}, DIM)


def parts(present=None, studies=5):
    image, text = features(2 * studies)
    return type(image)(**{**vars(image), "present": present}), text


@pytest.mark.parametrize("negatives", BOTH)
def test_the_objective_reads_two_images_and_the_mean_text(negatives):
    image, text = parts()
    unit = torch.nn.functional.normalize(text.pooled, dim=1)
    objective = build("symile", negatives=negatives)
    expected = symile_loss(
        [image.pooled[0::2], image.pooled[1::2], (unit[0::2] + unit[1::2]) / 2],
        scale=objective.scale(),
        negatives=negatives,
        generator=random(0),
    )
    assert objective(image, text, torch.eye(10)).total.item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("negatives", BOTH)
def test_a_repeated_second_image_is_a_missing_one(negatives):
    # Without any second image: CLIP of the first image and the text.
    present = torch.tensor([True, False] * 5)
    image, text = parts(present)
    objective = build("symile", negatives=negatives)
    unit = torch.nn.functional.normalize(text.pooled, dim=1)
    pair = clip_loss(image.pooled[0::2], unit[0::2] + unit[1::2], torch.eye(5), scale=objective.scale())
    assert objective(image, text, torch.eye(10)).total.item() == pytest.approx(pair.item(), abs=1e-12)


def test_negatives_change_with_the_step_and_come_back_with_the_state():
    objective, (image, text) = build("symile", negatives="n"), parts()
    first = objective(image, text, torch.eye(10)).total.item()
    assert objective(image, text, torch.eye(10)).total.item() == first  # a step may look twice
    objective.clamp_()
    second = objective(image, text, torch.eye(10)).total.item()
    assert second != first
    resumed = build("symile", negatives="n")
    resumed.load_state_dict(objective.state_dict())
    assert resumed(image, text, torch.eye(10)).total.item() == second


def test_an_odd_row_is_refused():
    image, text = features(5)
    with pytest.raises(ConfigError, match="5 rows cannot be two views of each study"):
        build("symile")(image, text, torch.eye(5))


@pytest.mark.parametrize("negatives", BOTH)
def test_free_vectors_of_a_tuple_find_each_other(negatives):
    # Twelve tuples without an encoder: given two of its vectors, the third must be found by the product.
    x = [part.float().requires_grad_() for part in vectors(batch=12)]
    optimiser, generator = torch.optim.Adam(x, lr=0.1), random()
    for _ in range(60):
        optimiser.zero_grad()
        symile_loss(x, scale=20.0, negatives=negatives, generator=generator).backward()
        optimiser.step()
    unit = [torch.nn.functional.normalize(part.detach(), dim=1) for part in x]
    for third in range(3):
        first, second = (unit[m] for m in range(3) if m != third)
        assert torch.equal(((first * second) @ unit[third].T).argmax(dim=1), torch.arange(12))


def xor_accuracy(loss_of, *, seed, steps):
    """Train three small encoders on a, b and a XOR b (5 bits each); find the third from the other two."""
    torch.manual_seed(seed)
    bits = torch.cartesian_prod(*[torch.tensor([0, 1])] * 5)
    encoders = torch.nn.ModuleList(
        torch.nn.Sequential(torch.nn.Linear(5, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32))
        for _ in range(3)
    )
    parameters = [*encoders.parameters(), log_scale := torch.nn.Parameter(torch.tensor(2.0))]
    optimiser = torch.optim.Adam(parameters, lr=1e-2)
    signs = 2.0 * bits - 1
    for step in range(steps):
        a, b = torch.randint(32, (2, 96))
        c = (bits[a] ^ bits[b]) @ (1 << torch.arange(4, -1, -1))
        vectors = [encoder(signs[index]) for encoder, index in zip(encoders, (a, b, c), strict=True)]
        same = ((a[:, None] == a) & (b[:, None] == b)).float()
        optimiser.zero_grad()
        loss_of(vectors, log_scale.exp().clamp(max=100), same, step).backward()
        optimiser.step()
    a, b = torch.cartesian_prod(torch.arange(32), torch.arange(32)).T
    c = (bits[a] ^ bits[b]) @ (1 << torch.arange(4, -1, -1))
    x, y, z = (torch.nn.functional.normalize(encoder(signs), dim=1).detach() for encoder in encoders)
    by_tuple = (x[a] * y[b]) @ z.T
    by_pairs = x[a] @ z.T + y[b] @ z.T
    return ((by_tuple.argmax(1) == c).float().mean().item(), (by_pairs.argmax(1) == c).float().mean().item())


def test_xor_is_found_by_tuples_and_not_by_pairs():
    # Any two of a, b and a XOR b are independent, so pairs say nothing: chance is 1 / 32 = 0.031.
    def tuples(vectors, scale, same, step):
        return symile_loss(
            vectors, scale=scale, positives=same, false_negatives="mask", generator=random(step)
        )

    def pairs(vectors, scale, same, step):
        x, y, z = vectors
        return sum(
            clip_loss(one, other, same, scale=scale, false_negatives="mask")
            for one, other in ((x, y), (x, z), (y, z))
        )

    by_tuple, _ = xor_accuracy(tuples, seed=0, steps=XOR_STEPS)
    _, by_pairs = xor_accuracy(pairs, seed=0, steps=XOR_STEPS)
    assert by_tuple == 1.0
    assert by_pairs < 0.1
