"""What a model does on the validation split: its loss, and whether pairs find each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from medvl.features import Batch, ImageFeatures, LossTerms, TextFeatures

__all__ = ["recall_at", "validate"]

Encoded = tuple[ImageFeatures, TextFeatures]


@torch.no_grad()
def validate(
    batches: Iterable[Batch],
    *,
    encode: Callable[[Batch], Encoded],
    loss: Callable[[ImageFeatures, TextFeatures, Batch], LossTerms],
) -> dict[str, float]:
    """Return ``val/loss``, its terms and ``val/recall@5``.

    The loss depends on how many pairs are compared, so only batches as large as the first one count.
    The recall is the mean of both directions over the whole split; a text of another case with the
    same words is a right answer.

    Args:
        batches: the split, in order.
        encode: a batch to the features of its images and texts.
        loss: features and batch to the terms of the loss.
    """
    totals: dict[str, float] = {}
    counted = size = 0
    images, texts, studies, reports = [], [], [], []
    for batch in batches:
        image, text = encode(batch)
        size = size or len(batch.study)
        if len(batch.study) == size:
            terms = loss(image, text, batch)
            for name, value in {"loss": terms.total, **terms.terms}.items():
                totals[name] = totals.get(name, 0.0) + float(value)
            counted += 1
        images.append(F.normalize(image.pooled.float(), dim=1))
        texts.append(F.normalize(text.pooled.float(), dim=1))
        studies.append(batch.study)
        reports.append(batch.report)
    study, report = torch.cat(studies), torch.cat(reports)
    similarity = torch.cat(images) @ torch.cat(texts).T
    relevant = (study[:, None] == study) | (report[:, None] == report)
    recall = (recall_at(similarity, relevant, k=5) + recall_at(similarity.T, relevant.T, k=5)) / 2
    return {f"val/{name}": value / counted for name, value in totals.items()} | {"val/recall@5": recall}


def recall_at(
    similarity: Float[Tensor, "queries items"], relevant: Bool[Tensor, "queries items"], *, k: int
) -> float:
    """Return the share of queries with a relevant item among the first k; ties count against it.

    Examples:
        >>> recall_at(torch.zeros(9, 9), torch.eye(9) > 0, k=5)  # a constant encoder finds nothing
        0.0
    """
    best = similarity.masked_fill(~relevant, -torch.inf).amax(1, keepdim=True)
    ahead = ((similarity >= best) & ~relevant).sum(1)
    return float((ahead < k).double().mean())
