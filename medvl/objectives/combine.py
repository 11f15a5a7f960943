"""The weighted sum of an objective's terms."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from medvl.features import LossTerms

__all__ = ["weighted"]


def weighted(terms: Mapping[str, Float[Tensor, ""]], weights: Mapping[str, float]) -> LossTerms:
    """Sum terms by their weights; the log gets each as it enters the sum.

    Examples:
        >>> weighted({"instance": torch.tensor(2.0)}, {"instance": 0.5}).total.item()
        1.0
    """
    parts = {name: weights[name] * value for name, value in terms.items()}
    return LossTerms(
        torch.stack(list(parts.values())).sum(), {name: part.detach() for name, part in parts.items()}
    )
