"""The bank: what each report means, by a frozen text encoder, so that reports can be compared by meaning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32

from medvl.encoders.text import TEXT_ENCODERS, build_text_encoder, text_tokeniser
from medvl.errors import ConfigError, nearest
from medvl.progress import Progress

__all__ = ["bank_vectors"]


def bank_vectors(
    texts: Sequence[Sequence[str]],
    *,
    encoder: str = "minilm",
    max_tokens: int = 256,
    batch: int = 64,
    progress: Progress | None = None,
) -> Float32[np.ndarray, "texts width"]:
    """Return the unit vector of each report from a frozen text encoder.

    Equal reports are embedded once. The encoder is pretrained and never trains, so a vector is a function of
    its own report alone: no row learns anything of another, in whichever split that one is.

    Args:
        texts: reports as lists of sentences.
        encoder: ``minilm``, or a directory that the text encoder ``huggingface`` reads (an adapted one, say).
        max_tokens: longer reports lose their last words.
        batch: reports embedded at once.
        progress: told how many different reports are done.

    Raises:
        ConfigError: an encoder with random weights, whose vectors would mean nothing, or no such directory.

    Examples:
        >>> reports = [["No effusion."], ["Large mass."], ["No effusion."]]
        >>> vectors = bank_vectors(reports)  # doctest: +SKIP
        >>> (vectors[0] == vectors[2]).all(), vectors.shape  # doctest: +SKIP
        (True, (3, 384))
    """
    if encoder in ("bert", "huggingface"):
        raise ConfigError(
            f"'{encoder}' alone is no pretrained encoder for the bank.",
            hint="Give minilm, or the directory of a text encoder.",
        )
    if encoder not in TEXT_ENCODERS and not Path(encoder).is_dir():
        raise ConfigError(
            f"'{encoder}' is neither a pretrained encoder for the bank nor a directory.",
            hint=f"{nearest(encoder, ('minilm',))} Or the directory of a text encoder.",
        )
    name, options = (encoder, {}) if encoder in TEXT_ENCODERS else ("huggingface", {"path": encoder})
    unique = {text: row for row, text in enumerate(dict.fromkeys(tuple(text) for text in texts))}
    # Building a network draws random numbers, which must not move those of a run.
    with torch.random.fork_rng(devices=[]):
        tokeniser = text_tokeniser(name, options, texts=(), max_tokens=max_tokens)
        tower = build_text_encoder(name, options, tokeniser).eval()
    # Reports of like length side by side, so that little of a batch is padding.
    order = sorted(unique, key=lambda text: sum(map(len, text)))
    vectors = np.zeros((len(unique), tower.width), np.float32)
    for first in range(0, len(order), batch):
        chosen = order[first : first + batch]
        tokens, mask = (torch.from_numpy(part) for part in tokeniser.encode(chosen))
        with torch.inference_mode():
            found = F.normalize(tower.pool(tokens, mask), dim=1).numpy()
        vectors[[unique[text] for text in chosen]] = found
        if progress is not None:
            progress(first + len(chosen), len(order), "bank")
    return vectors[[unique[tuple(text)] for text in texts]]
