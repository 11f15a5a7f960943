"""Adapting a decoder: what trains, what comes out, and that a stopped run ends as an uninterrupted one."""

import json
import os
import signal

import numpy as np
import pytest
import torch

from medvl.corpus import ReportCase, Wording
from medvl.encoders.causal import DECODERS
from medvl.errors import CheckpointError, ConfigError, UsageError
from medvl.language.adapt import adapt
from medvl.language.decoder import Decoder, dropout, from_scratch, load_decoder, save_decoder
from medvl.language.embed import TextEmbedder
from medvl.language.loop import StepOrder
from medvl.language.options import AdaptOptions, Scratch, Supervised
from medvl.language.stages import ContrastTask, SupervisedTask, parts

SIDES, FINDINGS = ("left", "right"), ("effusion", "opacity", "nodule", "edema", "fracture")
TINY = {"scratch": {"layers": 1, "width": 32, "heads": 4, "hidden": 32, "vocab_size": 400}, "max_tokens": 48}
QUICK = {**TINY, "device": "cpu", "precision": "32", "every_steps": 2, "log_every": 1} | {
    "causal": {"steps": 3, "batch": 8},
    "masked": {"steps": 3, "batch": 8},
    "contrast": {"steps": 2, "batch": 8, "lr": 1e-3},
    "supervised": {"steps": 4, "batch": 8, "lr": 1e-3},
}


def case(number: int, split: str) -> ReportCase:
    side, finding = SIDES[number % 2], FINDINGS[number // 2 % 5]
    sentences = (f"there is {finding} on the {side}", f"the lesion measures {number} mm", "heart is normal")
    return ReportCase(f"c{number}", f"p{number}", split, sentences)


CASES = [case(number, "train" if number < 20 else "val") for number in range(26)]


def variants(case, *, seed):
    first, *rest = case.sentences
    finding, side = first.split()[2], first.split()[-1]
    return (
        Wording("paraphrase", (f"{side} {finding} is seen", *rest)),
        Wording("shuffle", (*rest[::-1], first)),
    )


def hard_negatives(case, *, seed):
    first, *rest = case.sentences
    other = first.replace("left", "RIGHT").replace("right", "left").lower()
    return (Wording("side", (other, *rest)),)


def go(out, cases=CASES, progress=None, **changes):
    options = AdaptOptions.model_validate({**QUICK, **changes})
    return adapt(
        cases, out, options=options, variants=variants, hard_negatives=hard_negatives, progress=progress
    )


def weights(out):
    return (out / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("adapt") / "out"
    summary = go(out)
    return out, summary


class TestRun:
    def test_what_it_leaves(self, finished):
        out, summary = finished
        assert summary.status == "finished" and summary.exit_code == 0
        assert {name: values["steps"] for name, values in summary.stages.items()} == {
            "causal": 3,
            "masked": 3,
            "contrast": 2,
            "supervised": 4,
        }
        record = json.loads((out / "adapt.json").read_text())
        assert record["pooling"] == "mean" and record["bidirectional"] is True
        assert record["cases"] == {"train": 20, "val": 6}
        assert set(record["unadapted"]) == {"model.safetensors"} and len(record["data"]) == 24
        assert "Research use only" in record["notice"] and str(out) not in json.dumps(record)
        assert not (out / "work").exists() and not list(out.rglob("*.tmp"))
        rows = (out / "metrics.csv").read_text().splitlines()
        assert len(rows) == 1 + 3 + 3 + 2 + 4
        assert any("held-out reports" in line for line in summary.lines())
        assert json.loads(json.dumps(summary.to_json()))["status"] == "finished"

    def test_called_again_it_does_nothing(self, finished):
        out, summary = finished
        before = weights(out)
        again = go(out)
        assert again.status == "complete" and again.stages == summary.stages
        assert weights(out) == before

    def test_the_encoder_sees_ahead_and_its_unadapted_self_does_not(self, finished):
        out, _ = finished
        for folder, sees in (
            (out, True),
            (out / "stages" / "causal", False),
            (out / "stages" / "start", False),
        ):
            tower = TextEmbedder.load(folder).tower
            tokens, mask = torch.tensor([[2, 40, 41, 42, 3]]), torch.tensor([[-1, 1, 1, 1, -1]])
            other = tokens.clone()
            other[0, 3] = 50
            moved = not torch.equal(tower.states(tokens, mask)[0, 0], tower.states(other, mask)[0, 0])
            assert moved == sees

    def test_only_the_training_split_trains(self, finished, tmp_path):
        out, _ = finished
        others = [*CASES[:20], *(case(number, "val") for number in range(90, 94)), case(99, "test")]
        go(tmp_path / "b", others)
        assert weights(tmp_path / "b") == weights(out)
        assert (tmp_path / "b" / "tokenizer.json").read_bytes() == (out / "tokenizer.json").read_bytes()
        go(tmp_path / "c", [case(50, "train"), *CASES])
        assert weights(tmp_path / "c") != weights(out)

    @pytest.mark.parametrize("halt", [("causal", 1), ("masked", 3), ("contrast", 1), ("supervised", 3)])
    def test_stopped_by_a_signal_it_ends_as_if_it_had_not_been(self, finished, tmp_path, halt):
        """The same weights and the same log, to the byte."""

        def interrupt(done, total, message):
            if (message, done) == halt:
                os.kill(os.getpid(), signal.SIGINT)

        out, _ = finished
        first = go(tmp_path / "a", progress=interrupt)
        if halt != ("masked", 3):  # a signal in the last step of a stage lets the next one take its first
            assert first.signal == signal.SIGINT and first.exit_code == 130
            assert "Run the same command again" in "".join(first.lines())
        assert first.status == "interrupted"
        assert not (tmp_path / "a" / "adapt.json").exists()
        assert go(tmp_path / "a").status == "finished"
        assert weights(tmp_path / "a") == weights(out)
        assert (tmp_path / "a" / "metrics.csv").read_bytes() == (out / "metrics.csv").read_bytes()

    @pytest.mark.parametrize("halt", [("causal", 3), ("supervised", 3)])
    def test_killed_it_goes_on_from_its_newest_checkpoint(self, finished, tmp_path, halt):
        class Killed(BaseException):
            """As sudden as SIGKILL: nothing of ours catches it."""

        def kill(done, total, message):
            if (message, done) == halt:
                raise Killed

        out, _ = finished
        with pytest.raises(Killed):
            go(tmp_path / "a", progress=kill)
        assert list((tmp_path / "a" / "work" / halt[0] / "checkpoints").glob("step-*2"))  # every 2 steps
        assert go(tmp_path / "a").status == "finished"
        assert weights(tmp_path / "a") == weights(out)
        assert (tmp_path / "a" / "metrics.csv").read_bytes() == (out / "metrics.csv").read_bytes()

    @pytest.mark.parametrize(
        ("pooling", "lora"),
        [("latent", None), ("weighted", {"rank": 2, "dora": True}), ("last", {"rank": 2})],
    )
    def test_poolings_and_adapters(self, tmp_path, pooling, lora):
        go(tmp_path / "a", pooling=pooling, lora=lora, stages=["masked", "supervised"])
        embed = TextEmbedder.load(tmp_path / "a")
        assert embed.tower.pooling == pooling
        names = set(embed.tower.state_dict())
        assert not any("lora" in name for name in names)
        start = TextEmbedder.load(tmp_path / "a" / "stages" / "start").tower.state_dict()
        moved = {name for name in start if not torch.equal(start[name], embed.tower.state_dict()[name])}
        if lora:  # all-linear: embedding and norms stay
            assert moved and all(name.endswith("_proj.weight") for name in moved)
        else:
            assert "model.embed_tokens.weight" in moved

    def test_an_adapted_directory_is_a_model_to_adapt(self, finished, tmp_path):
        out, _ = finished
        summary = go(tmp_path / "a", model=str(out), stages=["supervised"])
        assert summary.status == "finished"
        start = json.loads((tmp_path / "a" / "adapt.json").read_text())["unadapted"]["model.safetensors"]
        assert len(start) == 64 and not (tmp_path / "a" / "stages" / "start").exists()

    def test_it_learns_what_it_is_taught(self, tmp_path):
        """Wordings of a held-out report are nearer to it than the report with the other side."""
        go(
            tmp_path / "a",
            stages=["supervised"],
            supervised={"steps": 120, "batch": 20, "lr": 3e-3},
            every_steps=1000,
        )
        embed = TextEmbedder.load(tmp_path / "a")
        held = [item for item in CASES if item.split == "val"]
        own = embed([item.sentences for item in held])
        near = embed([variants(item, seed=0)[0].sentences for item in held])
        far = embed([hard_negatives(item, seed=0)[0].sentences for item in held])
        assert ((own * near).sum(1) > (own * far).sum(1)).all()
        untaught = TextEmbedder.load(tmp_path / "a" / "stages" / "start")
        own, near, far = (
            untaught([f(item) for item in held])
            for f in (
                lambda item: item.sentences,
                lambda item: variants(item, seed=0)[0].sentences,
                lambda item: hard_negatives(item, seed=0)[0].sentences,
            )
        )
        assert ((own * near).sum(1) < (own * far).sum(1)).all()  # one word of ten is changed


class TestRefusals:
    def test_no_training_case(self, tmp_path):
        with pytest.raises(UsageError, match="none of the 6 cases is in the split 'train'"):
            go(tmp_path / "a", CASES[20:])

    def test_a_folder_of_something_else(self, tmp_path):
        (tmp_path / "letter.txt").write_text("x")
        with pytest.raises(UsageError, match="holds something else than an adaptation"):
            go(tmp_path)

    def test_other_options_or_cases(self, finished):
        out, _ = finished
        with pytest.raises(ConfigError, match="started with other options: pooling, seed"):
            go(out, pooling="last", seed=3)
        with pytest.raises(CheckpointError, match=r"started with other cases: digest [0-9a-f]{24} then"):
            go(out, CASES[:-1])

    def test_a_rate_that_explodes(self, tmp_path):
        with pytest.raises(ConfigError, match=r"loss of stage 'causal' is nan at step \d"):
            go(tmp_path / "a", causal={"steps": 9, "lr": 1e30, "warmup": 0.0, "clip": 0.0})

    def test_a_model_without_texts(self, tmp_path):
        def nothing(case, *, seed):
            return ()

        options = AdaptOptions.model_validate({**QUICK, "stages": ["supervised"]})
        with pytest.raises(ConfigError, match="stage 'supervised' has no text to train on"):
            adapt(CASES, tmp_path / "a", options=options, variants=nothing, hard_negatives=nothing)


@pytest.fixture(scope="module")
def texts():
    return [tuple(item.sentences) for item in CASES]


@pytest.mark.parametrize("family", DECODERS)
class TestFamilies:
    def decoder(self, family, texts) -> Decoder:
        torch.manual_seed(0)
        shape = Scratch(family=family, layers=2, width=32, heads=4, hidden=32, vocab_size=400)
        return from_scratch([line for text in texts for line in text], shape=shape, max_tokens=48)

    def test_saved_and_loaded_it_sees_ahead(self, family, texts, tmp_path):
        save_decoder(self.decoder(family, texts), tmp_path, record={})
        kinds = {True: "latent", False: "mean"}
        for bidirectional, pooling in kinds.items():
            decoder = load_decoder(tmp_path, max_tokens=48, pooling=pooling, bidirectional=bidirectional)
            decoder.tower.eval()
            tokens, mask = (torch.from_numpy(part) for part in decoder.tokeniser.encode(texts[:1]))
            other = tokens.clone()
            other[0, -2] = 45
            before, after = decoder.tower.states(tokens, mask), decoder.tower.states(other, mask)
            assert torch.equal(before[0, 0], after[0, 0]) != bidirectional

    def test_dropout_makes_two_views_and_none_makes_one(self, family, texts):
        decoder = self.decoder(family, texts)
        task = ContrastTask(texts[:8], tokeniser=decoder.tokeniser, scale=20.0)
        tokens, mask = (torch.from_numpy(part) for part in decoder.tokeniser.encode(texts[:2]))
        decoder.tower.train()
        for probability in (0.3, 0.0):
            with dropout(decoder.lm, probability):
                one, two = decoder.tower.pool(tokens, mask), decoder.tower.pool(tokens, mask)
                loss = task.loss(decoder, range(8), rng=np.random.default_rng(0))
            assert torch.equal(one, two) == (probability == 0.0)
            assert torch.isfinite(loss)

    def test_every_parameter_of_the_backbone_learns_to_tell_hidden_tokens(self, family, texts):
        from medvl.language.stages import MaskedTask

        decoder = self.decoder(family, texts)
        MaskedTask(texts, tokeniser=decoder.tokeniser, rate=0.5).loss(
            decoder, range(8), rng=np.random.default_rng(0)
        ).backward()
        still = [name for name, value in decoder.tower.named_parameters() if value.grad is None]
        assert still == []

    def test_dropout_acts_on_token_vectors_alone_and_leaves_no_trace(self, family, texts):
        """A vector that comes without passing the embedding is read alike twice."""
        decoder = self.decoder(family, texts)
        tokens, _ = (torch.from_numpy(part) for part in decoder.tokeniser.encode(texts[:2]))
        vectors = decoder.lm.get_input_embeddings()(tokens).detach()
        decoder.tower.train()
        with dropout(decoder.lm, 0.5):
            dropped = decoder.lm.get_input_embeddings()(tokens)
            one, two = (decoder.lm.base_model(inputs_embeds=vectors)[0] for _ in range(2))
        assert torch.equal(one, two)
        kept = dropped != 0
        assert 0.3 < kept.double().mean() < 0.7
        torch.testing.assert_close(dropped[kept], 2 * vectors[kept])  # what stays is divided by 1 − p
        torch.testing.assert_close(decoder.lm.get_input_embeddings()(tokens), vectors)


class TestPieces:
    def test_a_step_sees_each_text_once_an_epoch(self):
        lengths = np.random.default_rng(0).integers(3, 90, 103)
        order = StepOrder(lengths, size=10, seed=1)
        assert order.steps_per_epoch == 10
        for epoch in range(3):
            seen = [row for step in range(10 * epoch, 10 * epoch + 10) for row in order.rows(step)]
            assert len(seen) == len(set(seen)) == 100
        assert order.rows(3) == StepOrder(lengths, size=10, seed=1).rows(3) != order.rows(13)
        assert StepOrder(lengths[:4], size=10, seed=1).steps_per_epoch == 1
        # sorted by eights of batches, a batch holds like lengths: far below the spread of a random one
        spread = np.mean([np.ptp(lengths[order.rows(step)]) for step in range(8)])
        assert spread < 0.5 * np.ptp(lengths)

    def test_long_texts_are_cut_between_sentences(self, texts):
        shape = Scratch(layers=1, width=32, heads=4, hidden=32, vocab_size=400)
        tokeniser = from_scratch(
            [line for text in texts for line in text], shape=shape, max_tokens=12
        ).tokeniser
        made = parts([texts[0] * 3, (), ("heart is normal",)], tokeniser=tokeniser)
        assert [line for part in made for line in part] == [*(texts[0] * 3), "heart is normal"]
        assert (tokeniser.lengths(made) <= 12).all()
        assert tokeniser.lengths([made[0] + made[1]])[0] > 12  # no part could have taken the next sentence

    def test_a_drawn_pair_says_the_same_in_other_words(self):
        shape = Scratch(layers=1, width=32, heads=4, hidden=32, vocab_size=400)
        tokeniser = from_scratch(["there is"], shape=shape, max_tokens=48).tokeniser
        twin = ReportCase("twin", "q", "train", CASES[0].sentences)
        task = SupervisedTask(
            [*CASES[:5], twin],
            tokeniser=tokeniser,
            variants=variants,
            hard_negatives=hard_negatives,
            options=Supervised(hard=1),
            seed=0,
        )
        kinds = set()
        for seed in range(20):
            anchors, positives, negatives, same = task.draw(range(6), rng=np.random.default_rng(seed))
            assert len(negatives) == 6 and same.shape == (6, 12)
            for row, (anchor, positive) in enumerate(zip(anchors, positives, strict=True)):
                own = [case.sentences for case in (*CASES[:5], twin)][row]
                allowed = {own, *(wording.sentences for wording in variants(CASES[row % 5], seed=0))}
                assert anchor != positive and {anchor, positive} <= allowed
                kinds.add((anchor == own, positive == own))
            # The twin's texts are none of its brother's negatives, and nobody else's are left out.
            assert same[:, :6].tolist() == [[i == j or {i, j} == {0, 5} for j in range(6)] for i in range(6)]
            assert not same[:, 6:].any()
        assert kinds == {(True, False), (False, True), (False, False)}

    def test_long_reports_are_also_taught_in_parts(self):
        shape = Scratch(layers=1, width=32, heads=4, hidden=32, vocab_size=400)
        tokeniser = from_scratch(["there is"], shape=shape, max_tokens=48).tokeniser
        task = SupervisedTask(
            CASES[:2],
            tokeniser=tokeniser,
            variants=lambda case, seed: (Wording("shuffle", case.sentences[::-1]),),
            hard_negatives=lambda case, seed: (),
            options=Supervised(window=2),
            seed=0,
        )
        # three sentences: the whole and its first two; the last alone says too little
        assert [len(report) for report, _, _ in task.texts] == [3, 2, 3, 2]


class TestEmbedder:
    def test_rows_are_the_tower_one_by_one(self, finished):
        embed = TextEmbedder.load(finished[0], batch=4)
        reports = [item.sentences for item in CASES] + [CASES[3].sentences, ()]
        together = embed(reports)
        assert together.dtype == np.float32 and together.shape == (28, embed.width)
        np.testing.assert_array_equal(together[3], together[26])  # equal texts are read once
        for row, report in enumerate(reports):
            tokens, mask = (torch.from_numpy(part) for part in embed.tokeniser.encode([report]))
            alone = torch.nn.functional.normalize(embed.tower.pool(tokens, mask), dim=1)[0]
            np.testing.assert_allclose(together[row], alone.detach().numpy(), atol=1e-5)
        np.testing.assert_allclose((together**2).sum(1), 1.0, atol=1e-5)

    def test_the_side_of_padding_changes_nothing(self, finished):
        embed = TextEmbedder.load(finished[0])
        tokens, mask = (torch.from_numpy(part) for part in embed.tokeniser.encode([CASES[0].sentences]))
        empty = torch.zeros(1, 7, dtype=torch.int64)
        right = embed.tower.pool(torch.cat([tokens, empty], 1), torch.cat([mask, empty], 1))
        left = embed.tower.pool(torch.cat([empty, tokens], 1), torch.cat([empty, mask], 1))
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(left, embed.tower.pool(tokens, mask), atol=1e-5, rtol=1e-5)
