"""The contract of every objective in the catalogue, and what each adds to it."""

import math
from dataclasses import replace

import pytest
import torch

from medvl.errors import ConfigError
from medvl.features import ImageFeatures, LossTerms, Objective, TextFeatures
from medvl.objectives import OBJECTIVES, Clip, Mgca, Multi

DIM = 8
D = torch.float64
OPTIONS = {"clip": {}, "mgca": {"prototypes": 12}, "multi": {"prototypes": 12}}
NAMES = list(OBJECTIVES)
SOFT = [
    *((name, "none") for name in NAMES),
    *((name, mode) for name in NAMES for mode in ("mask", "multi", "soft")),
]


def build(name, **options):
    torch.manual_seed(0)
    objective = OBJECTIVES.build(name, OPTIONS[name] | options, DIM).double()
    objective.on_epoch(1)
    return objective


def features(batch, *, seed=0, words=7, sentences=3, regions=9, dtype=D, weights=False):
    """Random features with ragged masks; every row has a word, a sentence and a region."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=generator, dtype=D).to(dtype)

    def mask(length):
        return (torch.rand(batch, length, generator=generator) < 0.7).index_fill(1, torch.tensor([0]), True)

    image = ImageFeatures(rand(batch, DIM), rand(batch, regions, DIM), (regions,), mask(regions))
    text = TextFeatures(
        rand(batch, DIM),
        rand(batch, words, DIM),
        mask(words),
        rand(batch, sentences, DIM),
        mask(sentences),
        sentence_keys=torch.randint(1, 6, (batch, sentences), generator=generator),
    )
    if weights:
        image = replace(image, region_weights=rand(batch, regions).softmax(dim=1))
        text = replace(text, word_weights=rand(batch, words).softmax(dim=1))
    return image, text


def positives(batch):
    """Two rows of one study, one partly similar case."""
    matrix = torch.eye(batch)
    if batch > 2:
        matrix[0, 1] = matrix[1, 0] = 1.0
        matrix[0, 2] = matrix[2, 0] = 0.5
    return matrix


def tensors(*parts):
    """The tensors of features that carry a gradient."""
    return [
        getattr(part, name)
        for part in parts
        for name in ("pooled", "regions", "words", "sentences")
        if hasattr(part, name)
    ]


def change(parts, function):
    return tuple(
        replace(
            part,
            **{
                name: function(getattr(part, name))
                for name in ("pooled", "regions", "words", "sentences")
                if hasattr(part, name)
            },
        )
        for part in parts
    )


def rows(part, index):
    return replace(
        part, **{name: value[index] for name, value in vars(part).items() if isinstance(value, torch.Tensor)}
    )


# --- the contract -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_protocol(name):
    objective = build(name)
    assert isinstance(objective, Objective) and isinstance(objective, torch.nn.Module)
    assert objective.needs_local == (name != "clip")
    loss = objective(*features(5), positives(5))
    assert isinstance(loss, LossTerms) and loss.total.requires_grad
    assert not any(term.requires_grad for term in loss.terms.values())
    assert loss.total.item() == pytest.approx(sum(term.item() for term in loss.terms.values()), abs=1e-12)


@pytest.mark.parametrize(("name", "mode"), SOFT)
@pytest.mark.parametrize("weights", [False, True])
def test_t1_t2_t3(name, mode, weights):
    objective = build(name, false_negatives=mode)
    parts, matrix = features(6, weights=weights), positives(6)
    same = pytest.approx(objective(*parts, matrix).total.item(), abs=1e-9)
    lengths = torch.rand(6, 1, dtype=D) + 0.1
    scaled = change(parts, lambda x: x * (lengths if x.ndim == 2 else lengths[..., None]))
    assert objective(*scaled, matrix).total.item() == same  # T1
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = [rows(part, order) for part in parts]
    assert objective(*shuffled, matrix[order][:, order]).total.item() == same  # T2
    rotation = torch.linalg.qr(torch.randn(DIM, DIM, dtype=D)).Q
    if name != "clip":
        with torch.no_grad():
            objective.prototypes.weight.copy_(objective.prototypes.weight @ rotation)
    assert objective(*change(parts, lambda x: x @ rotation), matrix).total.item() == same  # T3


@pytest.mark.parametrize("name", NAMES)
def test_t4_gathered_parts_are_the_whole(name):
    # What two ranks gather: their rows, padded to the longer of the two; value and gradient of each part.
    objective = build(name)
    first = features(3, seed=1, words=4, sentences=2)
    second = features(4, seed=2, words=7, sentences=3)

    def pad(x, length):
        return torch.cat([x, x.new_zeros(x.shape[0], length - x.shape[1], *x.shape[2:])], dim=1)

    def joined(a, b):
        merged = {}
        for key, value in vars(a).items():
            if isinstance(value, torch.Tensor):
                other = getattr(b, key)
                length = 0 if value.ndim == 1 else max(value.shape[1], other.shape[1])
                merged[key] = torch.cat([pad(value, length), pad(other, length)])
        return replace(a, **merged)

    leaves = [x.requires_grad_() for x in tensors(*first, *second)]
    whole = objective(*(joined(a, b) for a, b in zip(first, second, strict=True)), positives(7))
    gathered = torch.autograd.grad(whole.total, [*leaves, *objective.parameters()], allow_unused=True)

    detached = change(
        [joined(a, b) for a, b in zip(first, second, strict=True)], lambda x: x.detach().requires_grad_()
    )
    single = objective(*detached, positives(7))
    expected = torch.autograd.grad(
        single.total, [*tensors(*detached), *objective.parameters()], allow_unused=True
    )
    assert single.total.item() == pytest.approx(whole.total.item(), abs=1e-12)
    for a, b in zip(gathered[len(leaves) :], expected[len(leaves) // 2 :], strict=True):
        torch.testing.assert_close(a, b)
    # leaves: pooled, regions, pooled, words, sentences of the first rank, then of the second.
    for place in (0, 2):
        torch.testing.assert_close(torch.cat([gathered[place], gathered[place + 5]]), expected[place])


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
    # test_objectives_prototypes checks that term.
    if name != "clip":
        objective.weights["prototype"] = 0.0
    image, text = features(3, words=3, sentences=2, regions=4)

    def loss(pooled, regions, text_pooled, words, sentences):
        return objective(
            replace(image, pooled=pooled, regions=regions),
            replace(text, pooled=text_pooled, words=words, sentences=sentences),
            positives(3),
        ).total

    inputs = [
        x.requires_grad_() for x in (image.pooled, image.regions, text.pooled, text.words, text.sentences)
    ]
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_t6_padding(name, side):
    objective = build(name)
    image, text = features(5, weights=True)

    def pad(x, value):
        extra = torch.full((5, 50, *x.shape[2:]), value, dtype=x.dtype)
        return torch.cat([extra, x] if side == "left" else [x, extra], dim=1)

    longer = replace(
        text,
        words=pad(text.words, 1.5),
        word_mask=pad(text.word_mask, False),
        word_weights=pad(text.word_weights, 0.1),
        sentences=pad(text.sentences, 1.5),
        sentence_mask=pad(text.sentence_mask, False),
        sentence_keys=pad(text.sentence_keys, 2),
    )
    wider = replace(
        image,
        regions=pad(image.regions, 1.5),
        region_mask=pad(image.region_mask, False),
        region_weights=pad(image.region_weights, 0.1),
        region_grid=(59,),
    )
    same = pytest.approx(objective(image, text, positives(5)).total.item(), abs=1e-10)
    assert objective(image, longer, positives(5)).total.item() == same
    assert objective(wider, text, positives(5)).total.item() == same


@pytest.mark.parametrize(("name", "mode"), SOFT)
@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("empty", ["nothing", "one", "all"])
def test_t7_odd_sizes_and_empty_groups(name, mode, batch, empty):
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
    for mode in ("mask", "multi", "soft"):
        assert build(name, false_negatives=mode)(*parts, torch.eye(6)).total == plain


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns(name):
    objective = build(name)
    objective(*features(5), positives(5)).total.backward()
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
        else:
            torch.testing.assert_close(parameter.norm(dim=1), torch.ones(len(parameter), dtype=D))


@pytest.mark.parametrize("name", NAMES)
def test_state_travels(name):
    parts = features(5)
    objective = build(name)
    other = OBJECTIVES.build(name, OPTIONS[name], DIM).double()
    other.load_state_dict(objective.state_dict())
    assert other(*parts, positives(5)).total == objective(*parts, positives(5)).total


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
    assert (similarity.argmax(dim=1) == torch.arange(12)).all()
    assert (similarity.argmax(dim=0) == torch.arange(12)).all()


# --- each objective -----------------------------------------------------------------------------------


def constant(batch, *, words=111, regions=196):
    one = torch.ones
    image = ImageFeatures(one(batch, DIM), one(batch, regions, DIM), (14, 14), one(batch, regions) > 0)
    text = TextFeatures(
        one(batch, DIM), one(batch, words, DIM), one(batch, words) > 0, one(batch, 4, DIM), one(batch, 4) > 0
    )
    return change((image, text), lambda x: x.double())


def test_clip_of_constants():
    assert Clip(DIM).double()(*constant(8), torch.eye(8)).total.item() == pytest.approx(2.079442, abs=1e-6)


def test_mgca_of_constants():
    # METHODS §2.2: ITA 2 ln B (a sum, not a mean), CTA ln 111 + ln 196, CPA ln 500 where all
    # prototypes see the same: here all are one vector.
    objective = Mgca(DIM).double()
    with torch.no_grad():
        objective.prototypes.weight.copy_(torch.full((500, DIM), DIM**-0.5))
    terms = objective(*constant(8), torch.eye(8)).terms
    assert terms["instance"].item() == pytest.approx(2 * math.log(8), abs=1e-6)
    assert terms["token"].item() == pytest.approx(9.987645, abs=1e-6)
    assert terms["prototype"].item() == pytest.approx(6.214608, abs=1e-6)


def test_mgca_defaults_are_the_published_ones():
    assert OBJECTIVES.options("mgca") == {
        "instance_weight": 1.0,
        "token_weight": 1.0,
        "prototype_weight": 1.0,
        "instance_temperature": 0.07,
        "token_temperature": 0.1,
        "prototype_temperature": 0.2,
        "prototypes": 500,
        "epsilon": 0.05,
        "iterations": 3,
        "frozen_epochs": 1,
        "patch_context": "auto",
        "false_negatives": "none",
    }


def test_multi_of_constants():
    # ln B for the instances, ln B for the sentences, λ₃ ln K for the prototypes.
    objective = Multi(DIM, prototypes=12, prototype_weight=0.5).double()
    with torch.no_grad():
        objective.prototypes.weight.copy_(torch.full((12, DIM), DIM**-0.5))
    terms = objective(*constant(8), torch.eye(8)).terms
    assert terms["instance"].item() == pytest.approx(math.log(8), abs=1e-6)
    assert terms["sentence"].item() == pytest.approx(math.log(8), abs=1e-6)
    assert terms["prototype"].item() == pytest.approx(0.5 * math.log(12), abs=1e-6)


@pytest.mark.parametrize("name", ["mgca", "multi"])
def test_weights_scale_the_terms(name):
    parts, matrix = features(5), positives(5)
    plain = build(name)(*parts, matrix).terms
    for term in plain:
        other = build(name, **{f"{term}_weight": 0.0})(*parts, matrix)
        assert other.terms[term].item() == 0.0
        expected = sum(value.item() for key, value in plain.items() if key != term)
        assert other.total.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["mgca", "multi"])
def test_prototypes_stand_still_in_epoch_0(name):
    objective = build(name)
    objective.on_epoch(0)
    objective(*features(5), positives(5)).total.backward()
    assert not objective.prototypes.weight.grad.any()
    before = objective.prototypes.weight.detach().clone()
    torch.optim.AdamW(objective.parameters(), lr=0.1, weight_decay=0.1).step()
    objective.clamp_()
    # Weight decay shortens all prototypes alike; the clamp takes it back.
    torch.testing.assert_close(objective.prototypes.weight, before)


def test_multi_learns_where():
    # Each image has 9 regions: one shows one of 6 findings, 8 are background shared by all images. A
    # linear map of the regions and one vector a finding learn, from sentences alone, which region it is.
    generator = torch.Generator().manual_seed(0)
    signatures = torch.randn(6, 16, generator=generator)
    finding = torch.arange(24) % 6
    place = torch.randint(0, 9, (24,), generator=generator)
    pixels = 0.5 * torch.randn(24, 9, 16, generator=generator) + torch.randn(16, generator=generator)
    pixels[torch.arange(24), place] += 2 * signatures[finding]
    matrix = 0.5 * (finding[:, None] == finding).float()
    matrix.fill_diagonal_(1.0)
    projection = torch.nn.Linear(16, DIM)
    words = torch.nn.Embedding(6, DIM)
    objective = build("multi", instance_weight=0.0, prototype_weight=0.0).float()
    parameters = [*projection.parameters(), *words.parameters(), *objective.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=0.03)

    def step():
        image, text = features(24, words=1, sentences=1, dtype=torch.float32)
        image = replace(image, regions=projection(pixels), region_mask=torch.ones(24, 9) > 0)
        text = replace(text, sentences=words(finding)[:, None], sentence_mask=torch.ones(24, 1) > 0)
        return image, text

    for _ in range(150):
        image, text = step()
        optimiser.zero_grad()
        objective(image, replace(text, sentence_keys=None), matrix).total.backward()
        optimiser.step()
        objective.clamp_()
    image, text = step()
    regions = torch.nn.functional.normalize(image.regions, dim=2)
    pointed = torch.einsum("brd,bd->br", regions, text.sentences[:, 0]).argmax(dim=1)
    assert (pointed == place).float().mean() > 0.9  # chance is 1/9
