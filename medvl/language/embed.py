"""Report texts to unit vectors, with any text encoder: a directory, MiniLM, a tower in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32

from medvl.encoders.configs import model_directory
from medvl.encoders.text import TextTower, build_text_encoder, text_tokeniser
from medvl.progress import Progress
from medvl.tokens import ReportTokeniser

__all__ = ["TextEmbedder"]


class TextEmbedder:
    """A text tower and its tokeniser as one function: lists of sentences to unit rows.

    Args:
        tower: put into eval mode.
        tokeniser: of the tower.
        name: how tables call it.
        batch: texts a pass.

    Examples:
        >>> from medvl.tokens import train_tokeniser
        >>> tokeniser = train_tokeniser(["no effusion"] * 2)
        >>> embed = TextEmbedder(build_text_encoder("bert", {"width": 32, "layers": 1}, tokeniser), tokeniser)
        >>> embed([["no effusion"], ["effusion"]]).shape
        (2, 32)
    """

    def __init__(
        self, tower: TextTower, tokeniser: ReportTokeniser, *, name: str = "", batch: int = 32
    ) -> None:
        self.tower: TextTower = tower.eval()
        self.tokeniser, self.name, self.batch = tokeniser, name or tower.name, batch

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        max_tokens: int | None = None,
        batch: int = 32,
        device: str = "cpu",
        allow_download: bool = False,
    ) -> TextEmbedder:
        """Load ``minilm``, or a directory or hub name as the text encoder ``huggingface`` does.

        Args:
            source: a directory that ``text adapt`` wrote is read as it was adapted.
            max_tokens: longest text; None takes what the tokeniser's file says, MiniLM its 256.
            batch: texts a pass.
            device: where it runs.
            allow_download: let a hub name be downloaded.

        Raises:
            ConfigError: see :func:`medvl.encoders.text.huggingface`.
        """
        if str(source) == "minilm":
            tokeniser = text_tokeniser("minilm", {}, texts=(), max_tokens=max_tokens or 256)
            tower = build_text_encoder("minilm", {}, tokeniser)
            return cls(_moved(tower, device), tokeniser, name="minilm", batch=batch)
        directory = model_directory(str(source), allow_download=allow_download)
        tokeniser = ReportTokeniser.from_directory(directory, max_tokens=max_tokens)
        tower = build_text_encoder("huggingface", {"path": str(directory)}, tokeniser)
        return cls(_moved(tower, device), tokeniser, name=Path(source).name, batch=batch)

    @property
    def width(self) -> int:
        """The size of a vector."""
        return self.tower.width

    @torch.inference_mode()
    def __call__(
        self, texts: Sequence[Sequence[str]], *, progress: Progress | None = None
    ) -> Float32[np.ndarray, "texts width"]:
        """Return a unit vector for each text; equal texts are read once, texts of like length together.

        Args:
            texts: each a list of sentences.
            progress: told about each pass.
        """
        keys = [tuple(text) for text in texts]
        distinct = list(dict.fromkeys(keys))
        order = np.argsort(self.tokeniser.lengths(distinct), kind="stable")
        device = next(self.tower.parameters()).device
        rows = np.zeros((len(distinct), self.width), np.float32)
        for first in range(0, len(order), self.batch):
            chosen = order[first : first + self.batch]
            tokens, mask = self.tokeniser.encode([distinct[k] for k in chosen])
            pooled = self.tower.pool(torch.from_numpy(tokens).to(device), torch.from_numpy(mask).to(device))
            rows[chosen] = F.normalize(pooled.float(), dim=1).cpu().numpy()
            if progress is not None:
                progress(min(first + self.batch, len(order)), len(order), "embedding")
        place = {key: index for index, key in enumerate(distinct)}
        return rows[[place[key] for key in keys]]


def _moved(tower: TextTower, device: str) -> TextTower:
    tower.to(device)
    return tower
