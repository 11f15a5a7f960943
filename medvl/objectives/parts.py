"""What is compared for each part of the body: its regions, its sentences, and whether it is normal."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from medvl.errors import ConfigError
from medvl.features import TextFeatures
from medvl.objectives.contrast import unit

__all__ = ["OrganPool", "TextParts", "normal_parts", "text_parts"]


class OrganPool(nn.Module):
    """One vector for each part of the body: a learned query that attends to the regions of the part.

    ``a_o = softmax_r(q_o·K x_r / √d)`` and ``u_o = Σ_r a_or x_r`` in each of ``heads`` slices of width d

    Notation: ``x`` are the regions at root-mean-square 1, ``q`` is ``query`` and ``K`` is ``key``, both
    learned. What is read are the regions themselves, not a projection of them: the query of a single region
    is that region, so regions learn the space of the sentences that the parts are compared with, and a
    sentence can be looked for region by region.

    Args:
        parts: how many.
        dim: width of the regions and of the result.
        heads: slices of the attention; they divide ``dim``.

    Raises:
        ConfigError: ``heads`` does not divide ``dim``.

    Examples:
        >>> pool = OrganPool(parts=3, dim=8)
        >>> pool(torch.randn(2, 9, 8), torch.ones(2, 9, 3) > 0).shape
        torch.Size([2, 3, 8])

    Source: Shui et al. 2025 (fVLM), arXiv 2501.14548: queries over the tokens inside the organ's mask; a
    projection of each organ's own follows there.
    """

    def __init__(self, *, parts: int, dim: int, heads: int = 4) -> None:
        super().__init__()
        if dim % heads:
            raise ConfigError(
                f"heads is {heads}, which does not divide the width {dim} of the features.",
                hint="Allowed: a divisor of projection.dim.",
            )
        self.heads = heads
        self.query = nn.Parameter(torch.randn(parts, dim))
        self.key = nn.Linear(dim, dim, bias=False)

    def forward(
        self, regions: Float[Tensor, "batch regions dim"], mask: Bool[Tensor, "batch regions parts"]
    ) -> Float[Tensor, "batch parts dim"]:
        """Return a vector for each part; it means nothing where ``mask`` has no region of the part."""
        x = unit(regions) * math.sqrt(regions.shape[-1])
        # h: head, d: width of a head, o: part, r: region
        query = self.query.unflatten(-1, (self.heads, -1))
        key = self.key(x).unflatten(-1, (self.heads, -1))
        scores = torch.einsum("ohd,brhd->bhor", query, key) / math.sqrt(query.shape[-1])
        # A softmax over no region is NaN: a part that the image lacks looks everywhere, and is not compared.
        empty = (~mask & mask.any(dim=1, keepdim=True)).transpose(1, 2)
        attention = scores.masked_fill(empty[:, None], -math.inf).softmax(dim=-1)
        return torch.einsum("bhor,brhd->bohd", attention, x.unflatten(-1, (self.heads, -1))).flatten(2)


@dataclass(frozen=True)
class TextParts:
    """What each report says of each part.

    Attributes:
        vectors: the mean of the unit vectors of its sentences about the part.
        said: True where it has such a sentence.
        keys: equal where two reports say the same sentences of the part, in whatever order.
        states: −1 where a sentence says that something of the part is not normal, 1 where one says that all
            is and none otherwise, 0 where none says either; None where nobody read them for it.
    """

    vectors: Float[Tensor, "batch parts dim"]
    said: Bool[Tensor, "batch parts"]
    keys: Int[Tensor, "batch parts"]
    states: Int[Tensor, "batch parts"] | None = None


def text_parts(text_features: TextFeatures, *, parts: int) -> TextParts:
    """Gather the sentences of each report by the part that they speak of.

    Args:
        text_features: with ``sentence_parts``; a part above ``parts`` is left out.
        parts: how many.

    Raises:
        ConfigError: the features have no ``sentence_parts``.

    Examples:
        >>> said, mask = torch.eye(2)[None], torch.ones(1, 2) > 0  # a report of two sentences
        >>> text = TextFeatures(said[:, 0], said, mask, said, mask, sentence_parts=torch.tensor([[2, 2]]))
        >>> found = text_parts(text, parts=3)
        >>> found.said.tolist(), found.vectors[0, 1].tolist()
        ([[False, True, False]], [0.5, 0.5])
    """
    numbers, sentences = text_features.sentence_parts, text_features.sentences
    if numbers is None:
        raise ConfigError(
            "the batch does not say which part of the body each sentence speaks of: sentence_parts is None.",
            hint="Give the data set parts=medvl.anatomy.sentence_parts.",
        )
    numbers = numbers.masked_fill(~text_features.sentence_mask, 0)
    member = numbers[..., None] == torch.arange(1, parts + 1, device=numbers.device)
    vectors = unit(sentences)
    summed = torch.einsum("bso,bsd->bod", member.to(vectors.dtype), vectors)
    keys = text_features.sentence_keys
    if keys is None:  # nobody knows what they say: each report says something of its own
        sums = torch.arange(len(member), device=member.device)[:, None].expand(-1, parts)
    else:
        # A sum does not know the order of the sentences; mixed first, or keys 1 and 4 would add up to what
        # 2 and 3 do. 64-bit integers wrap around.
        mixed = (keys + 1) * 0x2545F4914F6CDD1D
        mixed = (mixed ^ (mixed >> 29)) * 0x3C79AC492BA7B653
        sums = (member * (mixed ^ (mixed >> 32))[..., None]).sum(dim=1)
    states = text_features.sentence_states
    if states is not None:
        told = member * states[..., None]
        abnormal, normal = (told < 0).any(dim=1), (told > 0).any(dim=1)
        states = torch.where(abnormal, -1, normal.long())
    return TextParts(summed / member.sum(dim=1)[..., None].clamp_min(1), member.any(dim=1), sums, states)


def normal_parts(
    findings: Float[Tensor, "batch labels"],
    finding_parts: Int[Tensor, " parted"],
    *,
    parts: int,
    states: Int[Tensor, "batch parts"] | None = None,
) -> Bool[Tensor, "batch parts"]:
    """Return the parts that a label or the report calls normal, and neither calls anything else.

    A label calls a part normal where it says that a finding of the part is absent. Labels know few parts of
    CT, and few findings of a part; reports go through all of them.

    Args:
        findings: 1 present, 0 absent, NaN unknown.
        finding_parts: part of each finding, 0 for none; empty where nobody knows: labels then say nothing.
        parts: how many.
        states: what reports say, see :class:`TextParts`.

    Raises:
        ConfigError: ``finding_parts`` is for another number of findings.

    Examples:
        >>> findings = torch.tensor([[0.0, float("nan"), 1.0]])
        >>> normal_parts(findings, torch.tensor([1, 2, 3]), parts=3).tolist()
        [[True, False, False]]
        >>> said = torch.tensor([[-1, 1, 1]])
        >>> normal_parts(findings, torch.tensor([1, 2, 3]), parts=3, states=said).tolist()
        [[False, True, False]]
    """
    if states is None:
        states = torch.zeros(len(findings), parts, dtype=torch.long, device=findings.device)
    if len(finding_parts) == 0:
        return states > 0
    if findings.shape[1] != len(finding_parts):
        raise ConfigError(
            f"finding_parts is for {len(finding_parts)} findings, the batch has {findings.shape[1]}.",
            hint="Give the part of each label column; medvl.anatomy.finding_parts returns them.",
        )
    of_part = (finding_parts[:, None] == torch.arange(1, parts + 1, device=findings.device)).float()
    known = (~findings.isnan()).float() @ of_part
    there = (findings.nan_to_num(0.0) > 0).float() @ of_part
    return ((known > 0) | (states > 0)) & (there == 0) & (states >= 0)
