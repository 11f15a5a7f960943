"""What the experiments on films measure: zero-shot findings, retrieval by label and by film, localisation."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from medvl.evaluation.classification import auroc
from medvl.evaluation.grounding import box_mask, cells_in_boxes, contrast_to_noise, pointing
from medvl.evaluation.retrieval import Ranking, cosine_scores
from medvl.mechanisms.films import TERMS, Films, prompts, statement
from medvl.mechanisms.nets import Towers, Words, pixels
from medvl.phantoms.truth import FINDINGS

__all__ = ["grounding_scores", "retrieval_scores", "zero_shot_auroc", "zero_shot_scores"]


def zero_shot_scores(
    towers: Towers, images: Float[Tensor, "films 1 height width"], *, words: Words
) -> Float[np.ndarray, "films labels"]:
    """Return, for each finding, the mean similarity to its prompts less that to their denials."""
    seen = towers.embed_images(images)
    columns = []
    for finding in FINDINGS:
        said, denied = (
            cosine_scores(seen, towers.embed_texts(words.encode([(text,) for text in texts]))).mean(axis=1)
            for texts in prompts(finding)
        )
        columns.append(said - denied)
    return np.stack(columns, axis=1)


def zero_shot_auroc(towers: Towers, films: Films, *, words: Words) -> float:
    """Return the mean AUROC of the findings."""
    scores = zero_shot_scores(towers, pixels(films), words=words)
    return float(np.mean([auroc(films.labels[:, k], scores[:, k]) for k in range(len(FINDINGS))]))


def retrieval_scores(towers: Towers, films: Films, *, words: Words) -> dict[str, float]:
    """Return the share of the five nearest reports with the film's very findings, and recall of its own.

    Both directions are averaged; ties count as their expectation.
    """
    images = towers.embed_images(pixels(films))
    scores = cosine_scores(images, towers.embed_texts(words.encode(films.reports)))
    same = films.key[:, None] == films.key[None, :]
    own = np.eye(len(films), dtype=bool)
    rankings = (Ranking(scores), Ranking(scores.T))
    return {
        "label P@5": float(np.mean([ranking.precision(same, k=5).mean() for ranking in rankings])),
        "own R@1": float(np.mean([ranking.hit(own, k=1).mean() for ranking in rankings])),
    }


def grounding_scores(
    towers: Towers, films: Films, *, words: Words, pooled_head: bool = False
) -> dict[str, float]:
    """Return pointing game, its chance and contrast to noise of each finding's own sentence.

    Args:
        towers: the model.
        films: with the boxes of their findings.
        words: of the model.
        pooled_head: score a region by the head of the whole image instead of the regions' own: a class
            activation map, the best that a model without a local term can give.
    """
    with torch.no_grad():
        towers.eval()
        if pooled_head:
            maps = [
                towers.image.backbone(part).flatten(2).transpose(1, 2) for part in pixels(films).split(256)
            ]
            regions = towers.image.pooled(torch.cat(maps)).numpy()
        else:
            regions = towers.embed_images(pixels(films), regions=True)
    asked = [(row, finding) for row, found in enumerate(films.findings) for finding in found]
    texts = [(statement(finding, TERMS[finding.kind][0]),) for _, finding in asked]
    phrases = _phrases(towers, words.encode(texts), pooled_head=pooled_head)
    size, side = films.images.shape[2:], round(regions.shape[1] ** 0.5)
    hits, chances, contrasts = [], [], []
    for (row, finding), phrase in zip(asked, phrases, strict=True):
        cells = cosine_scores(regions[row], phrase[None]).reshape(side, side)
        hit, chance = pointing(cells, cells_in_boxes(finding.boxes, grid=cells.shape, size_px=size))
        heat = np.kron(cells, np.ones((size[0] // side, size[1] // side)))
        hits.append(hit)
        chances.append(chance)
        contrasts.append(contrast_to_noise(heat, box_mask(finding.boxes, shape=size)) or 0.0)
    return {
        "pointing": float(np.mean(hits)),
        "pointing chance": float(np.mean(chances)),
        "CNR": float(np.mean(contrasts)),
    }


@torch.no_grad()
def _phrases(
    towers: Towers, texts: Int[Tensor, "phrases sentences words"], *, pooled_head: bool
) -> Float32[np.ndarray, "phrases dim"]:
    output = towers.text(texts)
    return (output.pooled if pooled_head else output.sentences[:, 0]).numpy()
