"""Token vectors to start from: MiniLM's vector of each token's spelling, less what all of them share."""

from __future__ import annotations

import re

import torch
from jaxtyping import Float32
from torch import Tensor

from medvl.errors import ConfigError
from medvl.language.embed import TextEmbedder
from medvl.tokens import ReportTokeniser

__all__ = ["common_words", "word_vectors"]

_PLAIN = re.compile(r"[a-z]{3,}")
_RMS = 0.05  # what the 384 numbers of a unit vector have


def common_words(count: int) -> tuple[str, ...]:
    """Return the first ``count`` plain English words of MiniLM's vocabulary, which is sorted by frequency.

    Raises:
        MissingDependency: the extra ``starter`` is not installed.
    """
    vocabulary = TextEmbedder.load("minilm").tokeniser.vocabulary()
    return tuple(word for word in vocabulary if _PLAIN.fullmatch(word))[:count]


def word_vectors(tokeniser: ReportTokeniser, *, width: int) -> Float32[Tensor, "ids width"]:
    """Return one row an id: MiniLM's vector of its spelling read alone, centred, at one scale.

    ``(x_i − mean_j x_j) · 0.05 / rms``: words of like meaning start near each other, which a few thousand
    reports cannot teach.

    Args:
        tokeniser: whose tokens.
        width: of the rows; MiniLM's 384.

    Raises:
        ConfigError: another width.
        MissingDependency: the extra ``starter`` is not installed.
    """
    embed = TextEmbedder.load("minilm", batch=256)
    if width != embed.width:
        raise ConfigError(
            f"width is {width}; the word vectors have {embed.width}.",
            hint=f"Set scratch.width: {embed.width}, or scratch.words: 0 for random vectors.",
        )
    rows = torch.from_numpy(embed([[piece.removeprefix("##")] for piece in tokeniser.vocabulary()]))
    rows = rows - rows.mean(0)
    return rows * (_RMS / rows.square().mean().sqrt())
