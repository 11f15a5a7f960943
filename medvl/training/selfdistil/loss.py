"""The terms of self-distillation: views of one film agree, hidden patches are guessed, films keep apart."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from medvl.objectives.contrast import unit
from medvl.objectives.prototypes import sinkhorn

__all__ = [
    "Centring",
    "cross_view_loss",
    "hidden_patch_loss",
    "koleo_loss",
    "mean_of_ranks",
    "teacher_targets",
]

Centring = Literal["sinkhorn", "moving"]


@torch.no_grad()
def teacher_targets(
    scores: Float[Tensor, "rows prototypes"],
    *,
    temperature: float,
    centring: Centring = "sinkhorn",
    centre: Float[Tensor, " prototypes"] | None = None,
) -> Float[Tensor, "rows prototypes"]:
    """Turn the teacher's scores into what the student must predict; rows of all ranks count as one batch.

    ``moving``: ``q_i = softmax((z_i − c)/τ)``. ``sinkhorn``: :func:`medvl.objectives.prototypes.sinkhorn`
    of z at ``ε = τ``, so that every prototype is used about equally in the batch; what is added to all scores
    of one prototype changes nothing.

    Notation: ``z`` is ``scores``, ``τ`` is ``temperature``, ``c`` is ``centre``.

    Args:
        scores: of the teacher; ranks may have different numbers of rows.
        temperature: below the student's, which sharpens the targets.
        centring: what keeps the teacher from saying the same of every film.
        centre: for ``moving``; zero without.

    Examples:
        >>> teacher_targets(torch.zeros(2, 4), temperature=0.04).tolist()
        [[0.25, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25]]

    Source: Caron et al. 2021 (DINO), arXiv 2104.14294, eq. 4; Sinkhorn-Knopp as in Oquab et al. 2023
    (DINOv2), arXiv 2304.07193, §4.
    """
    with torch.autocast(scores.device.type, enabled=False):
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if centring == "moving":
            return ((scores if centre is None else scores - centre) / temperature).softmax(dim=-1)
        joined, first = _all_rows(scores)
        if not len(joined):
            return scores
        return sinkhorn(joined, epsilon=temperature)[first : first + len(scores)]


def cross_view_loss(
    student: Float[Tensor, "views batch prototypes"],
    targets: Float[Tensor, "large batch prototypes"],
    *,
    temperature: float = 0.1,
) -> Float[Tensor, ""]:
    """Every view of a film predicts what the teacher says of every other large view of it.

    ``L = −1/(G(V − 1)) Σ_{g≤G} Σ_{v≠g} mean_i Σ_k q_gik log softmax_k(z_vi/τ)``

    Notation: ``z`` is ``student``, whose first G views are the large ones that the teacher saw; ``q`` is
    ``targets``, without gradient; ``τ`` is ``temperature``.

    Examples:
        >>> q = torch.full((2, 3, 8), 1 / 8)
        >>> round(cross_view_loss(torch.zeros(4, 3, 8), q).item(), 4)  # ln 8
        2.0794

    Source: Caron et al. 2021 (DINO), arXiv 2104.14294, eq. 3.
    """
    with torch.autocast(student.device.type, enabled=False):
        log_p = _log_softmax(student, temperature)
        q = targets.detach().to(log_p.dtype)
        both = -torch.einsum("gbk,vbk->gv", q, log_p) / max(1, student.shape[1])
        own = torch.eye(*both.shape, dtype=torch.bool, device=both.device)
        pairs = len(targets) * (len(student) - 1)
        return both.masked_fill(own, 0.0).sum() / max(1, pairs)


def hidden_patch_loss(
    student: Float[Tensor, "patches prototypes"],
    targets: Float[Tensor, "patches prototypes"],
    film: Int[Tensor, " patches"],
    *,
    films: int,
    temperature: float = 0.1,
) -> Float[Tensor, ""]:
    """The student, to whom some patches were hidden, predicts what the teacher sees in them.

    ``L = −1/N Σ_n 1/|M_n| Σ_{p∈M_n} Σ_k q_npk log softmax_k(z_npk/τ)``

    Notation: ``z`` is ``student`` and ``q`` is ``targets`` at the hidden patches of all films, ``M_n`` those
    with ``film = n``, ``N`` is ``films``; a film without a hidden patch adds nothing.

    Examples:
        >>> q = torch.full((3, 8), 1 / 8)
        >>> film = torch.tensor([0, 0, 2])
        >>> round(hidden_patch_loss(torch.zeros(3, 8), q, film, films=4).item(), 4)  # 2/4 ln 8
        1.0397

    Source: Zhou et al. 2022 (iBOT), arXiv 2111.07832, eq. 2; the weights as in Oquab et al. 2023 (DINOv2).
    """
    with torch.autocast(student.device.type, enabled=False):
        log_p = _log_softmax(student, temperature)
        each = -torch.einsum("pk,pk->p", targets.detach().to(log_p.dtype), log_p)
        share = 1 / torch.bincount(film, minlength=films).clamp(min=1)[film].to(each.dtype)
        return (each * share).sum() / max(1, films)


def koleo_loss(vectors: Float[Tensor, "rows dim"]) -> Float[Tensor, ""]:
    """The differential entropy of the vectors on the sphere, by nearest neighbours, with the sign of a loss.

    ``L = −1/n Σ_i ln min_{j≠i} ‖x_i − x_j‖``, the distance at least 1e-4

    Notation: ``x`` is ``vectors``, each divided by its length; 0 for a single row.

    Examples:
        >>> apart = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> round(koleo_loss(apart).item(), 4)  # -ln 2
        -0.6931

    Source: Sablayrolles et al. 2019, arXiv 1806.03198, eq. 3; in Oquab et al. 2023 (DINOv2), §4.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        x = unit(vectors)
        if len(x) < 2:
            return x.sum() * 0.0
        own = torch.eye(len(x), dtype=torch.bool, device=x.device)
        # The neighbour is found without a gradient: a distance of 0 has none.
        nearest = (x.detach() @ x.detach().T).masked_fill(own, -torch.inf).argmax(dim=1)
        squared = (x - x[nearest]).square().sum(dim=1)
        return -squared.clamp(min=1e-8).log().mean() / 2


@torch.no_grad()
def mean_of_ranks(rows: Float[Tensor, "rows dim"]) -> tuple[Float[Tensor, " dim"], int]:
    """Return the mean over the rows of all ranks, and how many there are; without any the mean is zero."""
    several = dist.is_available() and dist.is_initialized()
    total = torch.cat([rows.sum(dim=0), rows.new_tensor([float(len(rows))])])
    if several:
        dist.all_reduce(total)
    return total[:-1] / total[-1].clamp(min=1), int(total[-1])


def _log_softmax(scores: Float[Tensor, "*rows prototypes"], temperature: float) -> Tensor:
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return (scores / temperature).log_softmax(dim=-1)


def _all_rows(rows: Float[Tensor, "rows dim"]) -> tuple[Float[Tensor, "all_rows dim"], int]:
    """Return the rows of all ranks, of which each may have another number, and where the own ones begin."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows, 0
    counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    numbers = [int(count) for count in counts]
    padded = rows.new_zeros(max(numbers), rows.shape[1])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in numbers]
    dist.all_gather(parts, padded)
    joined = torch.cat([part[:number] for part, number in zip(parts, numbers, strict=True)])
    return joined, sum(numbers[: dist.get_rank()])
