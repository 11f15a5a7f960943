"""The text tower: hidden states of a transformer pooled to a text, its words and its sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from medvl.encoders.configs import position_offset
from medvl.encoders.textpool import LatentPool, membership, pool_tokens, word_weights
from medvl.encoders.tower import Tower
from medvl.features import TextFeatures

__all__ = ["TextTower"]


class TextTower(Tower):
    """A transformer over report tokens: :class:`medvl.features.TextEncoder` with a training policy.

    With h_i the last hidden states and m_i the token mask (0 padding, k sentence k, -1 special):

    * pooled: ``mean``, ``cls``, ``last`` or ``weighted`` (:func:`~medvl.encoders.textpool.pool_tokens`), or
      ``latent``, a :class:`~medvl.encoders.textpool.LatentPool`;
    * a word is the *sum* of its pieces, ``w_j = Σ_{i in j} h_i`` (METHODS of MGCA, arXiv 2210.06044, A.2);
    * a sentence is the mean of its tokens;
    * ``word_weights``, if asked for: attention of the first token to the pieces of a word in the last layer,
      mean over heads, summed per word, scaled to sum 1 and detached.

    Positions count real tokens only, so padding on either side changes nothing.
    """

    continuation: Tensor

    def __init__(
        self,
        model: Any,
        *,
        name: str,
        architecture: Mapping[str, Any],
        continuation: Bool[Tensor, " vocab"] | None = None,
    ) -> None:
        super().__init__(name=name, architecture=architecture)
        self.model = model
        config = architecture["config"]
        self.pooling: str = architecture["pooling"]
        self.with_weights: bool = architecture["word_weights"]
        self.width = self.word_width = int(model.config.hidden_size)
        self.pooler = LatentPool(self.width) if self.pooling == "latent" else None
        self.offset = position_offset(config)
        vocab = torch.zeros(int(config["vocab_size"]), dtype=torch.bool)
        if continuation is not None:
            vocab[: len(continuation)] = continuation
        # Saved with the weights: which ids continue a word is part of how this encoder reads.
        self.register_buffer("continuation", vocab)

    def forward(
        self, tokens: Int[Tensor, "batch tokens"], token_mask: Int[Tensor, "batch tokens"]
    ) -> TextFeatures:
        """Return pooled, word and sentence vectors; a batch without words gets one masked column."""
        hidden, attention = self._hidden(tokens, token_mask)
        words = self._word_numbers(tokens, token_mask)
        to_word = membership(words).to(hidden.dtype)
        to_sentence = membership(token_mask).to(hidden.dtype)
        pieces = to_sentence.sum(1)
        summed = torch.einsum("bts,btd->bsd", to_sentence, hidden)
        return TextFeatures(
            pooled=self._pool(hidden, token_mask != 0),
            words=torch.einsum("btw,btd->bwd", to_word, hidden),
            word_mask=to_word.sum(1) > 0,
            sentences=summed / pieces.clamp(min=1)[..., None],
            sentence_mask=pieces > 0,
            word_weights=None if attention is None else word_weights(attention, token_mask, to_word),
        )

    def pool(
        self, tokens: Int[Tensor, "batch tokens"], token_mask: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch width"]:
        """Return the pooled vector alone; all shapes are static, so this is the part to export."""
        return self._pool(self._hidden(tokens, token_mask)[0], token_mask != 0)

    def set_policy(self, policy: str) -> TextTower:
        """Set how far this tower trains; a latent pooling is too new to be adapted and trains as a whole."""
        super().set_policy(policy)
        if self.pooler is not None:
            self.pooler.requires_grad_(policy != "frozen")
        return self

    def states(
        self, tokens: Int[Tensor, "batch tokens"], token_mask: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Return the last hidden state of each token, zero where a row is padding."""
        return self._hidden(tokens, token_mask)[0]

    def _pool(self, hidden: Tensor, real: Tensor) -> Tensor:
        if self.pooler is not None:
            return self.pooler(hidden, real)
        return pool_tokens(hidden, real, pooling=self.pooling)

    def _hidden(self, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor | None]:
        real = token_mask != 0
        positions = (real.cumsum(1) - 1).clamp(min=0) + self.offset
        extra = {"output_attentions": True} if self.with_weights else {}
        output = self.model(input_ids=tokens, attention_mask=real.long(), position_ids=positions, **extra)
        # Where a row is padding a masked softmax may leave anything, and 0 · NaN is NaN.
        hidden = output.last_hidden_state.float().masked_fill(~real[..., None], 0.0)
        return hidden, output.attentions[-1] if self.with_weights else None

    def _word_numbers(self, tokens: Tensor, token_mask: Tensor) -> Int[Tensor, "batch tokens"]:
        """Return the word number of each token, from 1; 0 is no word."""
        before = torch.cat([torch.zeros_like(token_mask[:, :1]), token_mask[:, :-1]], 1)
        inside = token_mask > 0
        starts = inside & ((before != token_mask) | ~self.continuation[tokens])
        return starts.cumsum(1) * inside
