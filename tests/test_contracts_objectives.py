"""The contract of every objective in the catalogue."""

import math
from dataclasses import replace

import pytest
import torch
from lossfeatures import (
    DIM,
    EXEMPT,
    NAMES,
    OPTIONS,
    SOFT,
    D,
    build,
    change,
    even,
    features,
    positives,
    rows,
    tensors,
)

from medvl.errors import ConfigError
from medvl.features import LossTerms, Objective
from medvl.objectives import OBJECTIVES, Clip


@pytest.mark.parametrize("name", NAMES)
def test_protocol(name):
    objective = build(name)
    assert isinstance(objective, Objective) and isinstance(objective, torch.nn.Module)
    parts = change(features(n := even(name, 5)), lambda x: x.requires_grad_())
    loss = objective(*parts, positives(n))
    assert isinstance(loss, LossTerms) and loss.total.requires_grad
    assert not any(term.requires_grad for term in loss.terms.values())
    assert loss.total.item() == pytest.approx(sum(term.item() for term in loss.terms.values()), abs=1e-12)


@pytest.mark.parametrize(("name", "mode"), SOFT)
@pytest.mark.parametrize("weights", [False, True])
def test_t1_t2_t3(name, mode, weights):
    objective = build(name, false_negatives=mode)
    parts, matrix = features(6, weights=weights), positives(6)
    same = pytest.approx(objective(*parts, matrix).total.item(), abs=1e-9)
    exempt = EXEMPT.get(name, {})
    lengths = torch.rand(6, 1, dtype=D) + 0.1
    scaled = change(parts, lambda x: x * (lengths[: len(x)] if x.ndim == 2 else lengths[..., None]))
    if "T1" not in exempt:
        assert objective(*scaled, matrix).total.item() == same
    # Studies change places; the two views of one stay together, where there are two.
    order = torch.tensor([4, 5, 0, 1, 2, 3] if objective.views == 2 else [3, 0, 5, 1, 4, 2])
    shuffled = [rows(part, order) for part in parts]
    assert objective(*shuffled, matrix[order][:, order]).total.item() == same  # T2
    rotation = torch.linalg.qr(torch.randn(DIM, DIM, dtype=D)).Q
    if hasattr(objective, "prototypes"):
        with torch.no_grad():
            objective.prototypes.weight.copy_(objective.prototypes.weight @ rotation)
    if "T3" not in exempt:
        assert objective(*change(parts, lambda x: x @ rotation), matrix).total.item() == same


@pytest.mark.parametrize("name", NAMES)
def test_t4_gathered_parts_are_the_whole(name):
    # What two ranks gather: their rows, padded to the longer of the two; value and gradient of each part.
    objective = build(name)
    ours, theirs = even(name, 3), even(name, 4)
    n = ours + theirs
    first = features(ours, seed=1, words=4, sentences=2)
    second = features(theirs, seed=2, words=7, sentences=3)
    second = (second[0], replace(second[1], attributes=first[1].attributes))

    def pad(x, length):
        return torch.cat([x, x.new_zeros(x.shape[0], length - x.shape[1], *x.shape[2:])], dim=1)

    def joined(a, b):
        merged = {}
        for key, value in vars(a).items():
            if isinstance(value, torch.Tensor):
                other = getattr(b, key)
                length = 0 if value.ndim == 1 else max(value.shape[1], other.shape[1])
                if key != "attributes":
                    merged[key] = torch.cat([pad(value, length), pad(other, length)])
        return replace(a, **merged)

    leaves = [x.requires_grad_() for x in tensors(*first, *second)]
    whole = objective(*(joined(a, b) for a, b in zip(first, second, strict=True)), positives(n))
    gathered = torch.autograd.grad(whole.total, [*leaves, *objective.parameters()], allow_unused=True)

    detached = change(
        [joined(a, b) for a, b in zip(first, second, strict=True)], lambda x: x.detach().requires_grad_()
    )
    single = objective(*detached, positives(n))
    expected = torch.autograd.grad(
        single.total, [*tensors(*detached), *objective.parameters()], allow_unused=True
    )
    assert single.total.item() == pytest.approx(whole.total.item(), abs=1e-12)
    for a, b in zip(gathered[len(leaves) :], expected[len(leaves) // 2 :], strict=True):
        torch.testing.assert_close(a, b)
    # leaves: pooled, regions, pooled, words, sentences, attributes of the first rank, then of the second.
    for place in (0, 2):
        if expected[place] is None:
            assert gathered[place] is None and gathered[place + 6] is None
        else:
            both = torch.cat([gathered[place], gathered[place + 6]])
            torch.testing.assert_close(both, expected[place])


@pytest.mark.parametrize(("name", "mode"), SOFT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_t5_finite_at_scale_100_under_autocast(name, mode, dtype):
    objective = build(name, false_negatives=mode).float()
    with torch.no_grad():
        for parameter_name, parameter in objective.named_parameters():
            if parameter_name.endswith("log_scale"):
                parameter.fill_(math.log(100))
    parts = change(features(6, dtype=dtype, weights=True), lambda x: (x * 100).requires_grad_())
    with torch.autocast("cpu", dtype=torch.bfloat16 if dtype == torch.float32 else dtype):
        loss = objective(*parts, positives(6))
    loss.total.backward()
    assert loss.total.dtype == torch.float32 and loss.total.isfinite()
    for tensor in tensors(*parts):
        assert tensor.grad is None or tensor.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_t5_autocast_changes_nothing(name):
    # Half-precision products would be off by some 1e-2; single precision is within 1e-5 of double.
    parts = features(6, dtype=torch.float32)
    exact = build(name)(*change(parts, lambda x: x.double()), positives(6)).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = build(name).float()(*parts, positives(6)).total
    assert total.item() == pytest.approx(exact.item(), abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_t5_gradcheck(name):
    objective = build(name)
    # The assignments of Sinkhorn are constants by definition, which a finite difference would not see;
    # test_objectives_prototypes checks that term; test_objectives_villa checks the mapping, which does
    # not move what it maps.
    for constant in {"prototype", "mapping"} & set(getattr(objective, "weights", {})):
        objective.weights[constant] = 0.0
    image, text = features(n := {1: 3, 2: 4}[objective.views], words=3, sentences=2, regions=4)

    def loss(pooled, regions, text_pooled, words, sentences, attributes):
        return objective(
            replace(image, pooled=pooled, regions=regions),
            replace(text, pooled=text_pooled, words=words, sentences=sentences, attributes=attributes),
            positives(n),
        ).total

    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in tensors(image, text)])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_t6_padding(name, side):
    objective = build(name)
    image, text = features(n := even(name, 5), weights=True)

    def pad(x, value):
        extra = torch.full((n, 50, *x.shape[2:]), value, dtype=x.dtype)
        return torch.cat([extra, x] if side == "left" else [x, extra], dim=1)

    longer = replace(
        text,
        words=pad(text.words, 1.5),
        word_mask=pad(text.word_mask, False),
        word_weights=pad(text.word_weights, 0.1),
        sentences=pad(text.sentences, 1.5),
        sentence_mask=pad(text.sentence_mask, False),
        sentence_keys=pad(text.sentence_keys, 2),
        sentence_parts=pad(text.sentence_parts, 1),
    )
    wider = replace(
        image,
        regions=pad(image.regions, 1.5),
        region_mask=pad(image.region_mask, False),
        region_weights=pad(image.region_weights, 0.1),
        region_grid=(59,),
    )
    same = pytest.approx(objective(image, text, positives(n)).total.item(), abs=1e-10)
    assert objective(image, longer, positives(n)).total.item() == same
    assert objective(wider, text, positives(n)).total.item() == same


@pytest.mark.parametrize(("name", "mode"), SOFT)
@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("empty", ["nothing", "one", "all"])
def test_t7_odd_sizes_and_empty_groups(name, mode, batch, empty):
    batch = even(name, batch)
    image, text = features(batch, weights=True)
    if empty != "nothing":
        index = slice(0, 1) if empty == "one" else slice(None)
        for mask in (text.word_mask, text.sentence_mask, image.region_mask):
            mask[index] = False
        text.word_weights[index] = 0.0
    image, text = change((image, text), lambda x: x.requires_grad_())
    objective = build(name, false_negatives=mode)
    loss = objective(image, text, positives(batch))
    assert isinstance(loss.total, torch.Tensor) and loss.total.isfinite()
    loss.total.backward()
    for tensor in [*tensors(image, text), *objective.parameters()]:
        assert tensor.grad is None or tensor.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_t8_no_process_group(name):
    assert not torch.distributed.is_initialized()
    assert build(name)(*features(2), positives(2)).total.isfinite()


@pytest.mark.parametrize("name", NAMES)
def test_identity_positives_are_the_plain_formula(name):
    parts = features(6)
    parts[1].sentence_keys.copy_(torch.arange(18).view(6, 3))
    plain = build(name, false_negatives="none")(*parts, torch.zeros(6, 6)).total
    for mode in ("mask", "multi") if "identity" in EXEMPT.get(name, {}) else ("mask", "multi", "soft"):
        assert build(name, false_negatives=mode)(*parts, torch.eye(6)).total == plain


@pytest.mark.parametrize("name", NAMES)
def test_each_rule_for_false_negatives_is_another_loss(name):
    # Studies 0 and 1 are equally right, 0 and 2 partly; no two reports share a sentence.
    parts = features(n := even(name, 4))
    parts[1].sentence_keys.copy_(torch.arange(3 * n).view(n, 3))
    studies = torch.eye(4)
    studies[0, 1] = studies[1, 0] = 1.0
    studies[0, 2] = studies[2, 0] = 0.5
    views = OBJECTIVES.factory(name).views
    matrix = studies.repeat_interleave(views, 0).repeat_interleave(views, 1)
    losses = [
        build(name, false_negatives=mode)(*parts, matrix).total.item()
        for mode in ("none", "mask", "multi", "soft")
    ]
    assert len({round(loss, 9) for loss in losses}) == 4, losses


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns(name):
    objective = build(name)
    parts = change(features(n := even(name, 5)), lambda x: x.requires_grad_())
    objective(*parts, positives(n)).total.backward()
    fixed = [key for key, value in objective.named_parameters() if value.grad is None or not value.grad.any()]
    assert fixed == []


@pytest.mark.parametrize("name", NAMES)
def test_clamp_brings_parameters_back(name):
    objective = build(name)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.mul_(3).add_(3)
    objective.clamp_()
    for key, parameter in objective.named_parameters():
        if key.endswith("log_scale"):
            assert parameter.item() == pytest.approx(math.log(100))
        elif key == "prototypes.weight":
            torch.testing.assert_close(parameter.norm(dim=1), torch.ones(len(parameter), dtype=D))


@pytest.mark.parametrize("name", NAMES)
def test_state_travels(name):
    parts = features(n := even(name, 5))
    objective = build(name)
    other = OBJECTIVES.build(name, OPTIONS.get(name, {}), DIM).double()
    other.load_state_dict(objective.state_dict())
    assert other(*parts, positives(n)).total == objective(*parts, positives(n)).total


@pytest.mark.parametrize("name", NAMES)
def test_unknown_option_and_mode(name):
    with pytest.raises(ConfigError, match=r"has no option 'false_negative'.*Did you mean 'false_negatives'"):
        OBJECTIVES.build(name, {"false_negative": "soft"}, DIM)
    with pytest.raises(ConfigError, match=r"false_negatives is 'softt'\..*Did you mean 'soft'"):
        OBJECTIVES.build(name, {"false_negatives": "softt"}, DIM)


@pytest.mark.parametrize("name", NAMES)
def test_impossible_numbers(name):
    for option, value in OBJECTIVES.options(name).items():
        if isinstance(value, (int, float)):
            with pytest.raises(ConfigError, match=rf"{option} is -1.* Allowed: \S+ or more\."):
                OBJECTIVES.build(name, {option: type(value)(-1)}, DIM)
    with pytest.raises(ConfigError, match="temperature is nan"):
        Clip(DIM, temperature=math.nan)


def test_unknown_rule_for_shared_sentences():
    with pytest.raises(ConfigError, match=r"shared_sentences is 'masked'\. Allowed: ignore, mask, positive"):
        OBJECTIVES.build("multi", {"shared_sentences": "masked"}, DIM)


@pytest.mark.parametrize("rule", ["mask", "positive"])
def test_multi_reads_sentence_keys(rule):
    image, text = features(6)
    matrix = torch.eye(6)
    plain = build("multi")(image, text, matrix).terms["sentence"]
    objective = build("multi", shared_sentences=rule)
    assert objective(image, text, matrix).terms["sentence"] != plain
    assert objective(image, replace(text, sentence_keys=None), matrix).terms["sentence"] == plain


def test_unknown_patch_context():
    with pytest.raises(ConfigError, match="patch_context is 'cnn'"):
        OBJECTIVES.build("mgca", {"patch_context": "cnn"}, DIM)


@pytest.mark.parametrize("name", NAMES)
def test_free_embeddings_find_each_other(name):
    if "pairs" in EXEMPT.get(name, {}):
        return
    # Twelve pairs without an encoder: the loss alone must bring partners together.
    generator = torch.Generator().manual_seed(0)
    parts = change(
        features(12, dtype=torch.float32),
        lambda x: torch.randn(x.shape, generator=generator).requires_grad_(),
    )
    objective = build(name).float()
    optimiser = torch.optim.Adam(
        [x for x in [*tensors(*parts), *objective.parameters()] if x.requires_grad], lr=0.1
    )
    parts[1].sentence_keys.copy_(torch.arange(36).view(12, 3))
    for _ in range(40):
        optimiser.zero_grad()
        objective(*parts, torch.eye(12)).total.backward()
        optimiser.step()
        objective.clamp_()
    image, text = parts
    similarity = (
        torch.nn.functional.normalize(image.pooled, dim=1)
        @ torch.nn.functional.normalize(text.pooled, dim=1).T
    )
    study = torch.arange(12) // objective.views
    assert torch.equal(study[similarity.argmax(dim=1)], study)
    assert torch.equal(study[similarity.argmax(dim=0)], study)
