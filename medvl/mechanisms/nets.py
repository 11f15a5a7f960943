"""The small model of the experiments on films: a four-layer CNN, a bag-of-words text side, a loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor, nn

from medvl.mechanisms.films import Films

__all__ = ["ImageOutput", "ImageSide", "TextOutput", "TextSide", "Towers", "Words", "align", "fit", "pixels"]


class Words:
    """Words as whole numbers from 1; 0 is padding, and a word that no training report has is left out.

    Examples:
        >>> words = Words([("no nodule", "small nodule")])
        >>> words.encode([("no nodule",), ("small big nodule", "no")]).tolist()
        [[[1, 2], [0, 0]], [[3, 2], [1, 0]]]
    """

    def __init__(self, reports: Iterable[Sequence[str]]) -> None:
        said = dict.fromkeys(word for report in reports for text in report for word in text.split())
        self.index = {word: number for number, word in enumerate(said, start=1)}

    def __len__(self) -> int:
        """Return the number of entries of an embedding table, padding included."""
        return len(self.index) + 1

    def encode(self, reports: Sequence[Sequence[str]]) -> Int[Tensor, "reports sentences words"]:
        """Return the word numbers of each sentence of each report."""
        rows = [
            [[self.index[word] for word in text.split() if word in self.index] for text in report]
            for report in reports
        ]
        sentences = max((len(report) for report in rows), default=0)
        words = max((len(text) for report in rows for text in report), default=0)
        numbers = np.zeros((len(rows), sentences, words), np.int64)
        for i, report in enumerate(rows):
            for j, text in enumerate(report):
                numbers[i, j, : len(text)] = text
        return torch.from_numpy(numbers)


@dataclass(frozen=True)
class ImageOutput:
    """One vector an image and one a region, both in the space of the texts."""

    pooled: Float[Tensor, "batch dim"]
    regions: Float[Tensor, "batch regions dim"]
    region_mask: Bool[Tensor, "batch regions"]


@dataclass(frozen=True)
class TextOutput:
    """One vector a report, a sentence and a word, all in the space of the images."""

    pooled: Float[Tensor, "batch dim"]
    sentences: Float[Tensor, "batch sentences dim"]
    sentence_mask: Bool[Tensor, "batch sentences"]
    words: Float[Tensor, "batch words dim"]
    word_mask: Bool[Tensor, "batch words"]


class ImageSide(nn.Module):
    """Four convolutions, the first three halving the grid; pooled and regions share the backbone alone."""

    def __init__(self, *, dim: int, widths: Sequence[int] = (24, 48, 96, 96)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for depth, width in enumerate(widths):
            layers += [
                nn.Conv2d(before, width, 3, stride=2 if depth < 3 else 1, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            before = width
        self.backbone = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.pooled = nn.Linear(before, dim)
        self.regions = nn.Linear(before, dim)

    def forward(self, images: Float[Tensor, "batch 1 height width"]) -> ImageOutput:
        """Return pooled and region vectors."""
        maps = self.backbone(images.contiguous(memory_format=torch.channels_last))
        cells = maps.flatten(2).transpose(1, 2)
        mask = torch.ones(cells.shape[:2], dtype=torch.bool)
        return ImageOutput(self.pooled(cells.mean(dim=1)), self.regions(cells), mask)


class TextSide(nn.Module):
    """Each sentence a bag of words through an MLP; a report is the mean of its sentences.

    A word's vector is its own with its sentence's, so that "left" beside "nodule" is another than beside
    "effusion".
    """

    def __init__(self, *, words: int, dim: int, width: int = 128) -> None:
        super().__init__()
        self.table = nn.Embedding(words, width, padding_idx=0)
        nn.init.normal_(self.table.weight, std=0.5)
        self.sentence = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.pooled = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, dim))
        self.sentences = nn.Linear(width, dim)
        self.words = nn.Linear(2 * width, dim)

    def forward(self, tokens: Int[Tensor, "batch sentences words"]) -> TextOutput:
        """Return report, sentence and word vectors."""
        real = tokens > 0
        embedded = self.table(tokens) * real[..., None]
        sentences = self.sentence(embedded.sum(dim=2))
        mask = real.any(dim=2)
        weight = mask[..., None] / mask.sum(dim=1).clamp_min(1)[:, None, None]
        context = sentences[:, :, None].expand_as(embedded)
        return TextOutput(
            self.pooled((sentences * weight).sum(dim=1)),
            self.sentences(sentences),
            mask,
            self.words(torch.cat([embedded, context], dim=-1)).flatten(1, 2),
            real.flatten(1, 2),
        )


class Towers(nn.Module):
    """Both sides."""

    def __init__(self, *, words: int, dim: int = 96, widths: Sequence[int] = (24, 48, 96, 96)) -> None:
        super().__init__()
        self.image = ImageSide(dim=dim, widths=widths)
        self.text = TextSide(words=words, dim=dim)

    @torch.no_grad()
    def embed_images(
        self, images: Float[Tensor, "films 1 height width"], *, regions: bool = False
    ) -> Float32[np.ndarray, "..."]:
        """Return the pooled vectors of all films, or their region vectors."""
        self.eval()
        outputs = [self.image(part) for part in images.split(256)]
        return torch.cat([output.regions if regions else output.pooled for output in outputs]).numpy()

    @torch.no_grad()
    def embed_texts(
        self, tokens: Int[Tensor, "reports sentences words"]
    ) -> Float32[np.ndarray, "reports dim"]:
        """Return the pooled vectors of reports."""
        self.eval()
        return self.text(tokens).pooled.numpy()


def pixels(films: Films) -> Float[Tensor, "films 1 height width"]:
    """Return the films as a tensor."""
    return torch.from_numpy(films.images)


def align(
    towers: Towers,
    films: Films,
    *,
    words: Words,
    term: Callable[[Int[Tensor, " batch"], ImageOutput, TextOutput], Float[Tensor, ""]],
    heads: Sequence[nn.Module] = (),
    seed: int,
    steps: int,
    batch: int = 96,
    lr: float = 3e-3,
) -> Towers:
    """Train the towers on films and their reports; ``term`` is the loss of the rows of a step.

    ``heads`` are the loss's own parameters.
    """
    images, tokens = pixels(films), words.encode(films.reports)

    def loss(rows: Int[Tensor, " batch"], generator: torch.Generator) -> Float[Tensor, ""]:
        return term(rows, towers.image(images[rows]), towers.text(tokens[rows]))

    fit([towers, *heads], loss, rows=len(films), steps=steps, batch=batch, lr=lr, seed=seed)
    return towers


def fit(
    modules: Sequence[nn.Module],
    loss: Callable[[Int[Tensor, " batch"], torch.Generator], Float[Tensor, ""]],
    *,
    rows: int,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    weight_decay: float = 0.01,
) -> None:
    """Train with AdamW on a one-cycle rate; an epoch visits every row once, in an order of the seed.

    Args:
        modules: whose parameters train.
        loss: of the rows of one step; the generator is for its augmentation.
        rows: how many rows there are.
        steps: of the optimiser.
        batch: rows of a step; a short rest of an epoch is left out.
        lr: the highest rate.
        seed: of order and augmentation.
        weight_decay: of AdamW.
    """
    parameters = [value for module in modules for value in module.parameters() if value.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=lr, total_steps=steps, pct_start=0.2)
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    batch = min(batch, rows)
    for module in modules:
        module.train()
    for _ in range(steps):
        if len(order) < batch:
            order = torch.randperm(rows, generator=generator)
        chosen, order = order[:batch], order[batch:]
        optimiser.zero_grad()
        loss(chosen, generator).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        for module in modules:
            if hasattr(module, "clamp_"):
                module.clamp_()  # type: ignore[operator]
