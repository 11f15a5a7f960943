"""C1: a local term beside the global one finds where a finding is."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from medvl.mechanisms.claim import Effect, Mechanism
from medvl.mechanisms.films import Films, draw_films
from medvl.mechanisms.nets import ImageOutput, TextOutput, Towers, Words, align
from medvl.mechanisms.scores import grounding_scores, retrieval_scores, zero_shot_auroc
from medvl.objectives.contrast import LogitScale, clip_loss
from medvl.objectives.sentences import sentence_region_loss
from medvl.objectives.tokens import token_alignment

__all__ = ["MECHANISM", "run"]


def run(
    seed: int, *, quick: bool, films: int = 2000, tested: int = 400, steps: int | None = None
) -> dict[str, float]:
    """Train the same model with and without a local term and point with its maps."""
    train, test = draw_films(films, seed=[seed, 1]), draw_films(tested, seed=[seed, 2])
    words = Words(train.reports)
    steps = steps or (200 if quick else 400)
    values: dict[str, float] = {}
    for arm in ("global", "sentences") if quick else ("global", "sentences", "tokens"):
        towers = _trained(arm, train, words, seed=seed, steps=steps)
        scores = grounding_scores(towers, test, words=words)
        scores |= {"AUROC": zero_shot_auroc(towers, test, words=words)}
        scores |= retrieval_scores(towers, test, words=words)
        values |= {f"{arm}/{name}": value for name, value in scores.items()}
        if arm == "global":
            activation = grounding_scores(towers, test, words=words, pooled_head=True)
            values |= {f"activation map/{name}": value for name, value in activation.items()}
    return values


def _trained(arm: str, films: Films, words: Words, *, seed: int, steps: int) -> Towers:
    torch.manual_seed(seed)
    towers, scale, local_scale = Towers(words=len(words)), LogitScale(), LogitScale()

    def term(rows: Int[Tensor, " batch"], image: ImageOutput, text: TextOutput) -> Float[Tensor, ""]:
        own = torch.eye(len(rows))
        total = clip_loss(image.pooled, text.pooled, own, scale=scale())
        if arm == "sentences":
            return total + sentence_region_loss(
                text.sentences,
                image.regions,
                text.sentence_mask,
                image.region_mask,
                own,
                scale=local_scale(),
                false_negatives="none",
            )
        if arm == "tokens":
            return total + token_alignment(text.words, image.regions, text.word_mask, image.region_mask)
        return total

    return align(towers, films, words=words, term=term, heads=[scale, local_scale], seed=seed, steps=steps)


MECHANISM = Mechanism(
    key="C1",
    title="a local term finds where a finding is",
    claim="Local alignment beside the global one localises better and classifies no worse (GLoRIA, MGCA); "
    "in a pilot pointing game 0.17 to 0.62 with chance 0.15, AUROC 0.93 to 0.95.",
    source="Huang et al. 2021, GLoRIA; Wang et al. 2022, MGCA, arXiv 2210.06044",
    setting="2,000 drawn films of 64 pixels, half of them normal, 400 to test; a CNN of four layers with 8 "
    "× 8 regions, 400 steps of 96 (quick: 200). Arms: CLIP alone; CLIP + sentence–region contrast over the "
    "batch; CLIP + MGCA's token alignment inside a pair (full run). A global model points in two ways: "
    "with its untrained region head, and with an activation map, which scores each region by the head of "
    "the whole image.",
    run=run,
    effects=(
        Effect("pointing, sentences over activation map", "sentences/pointing", "activation map/pointing"),
        Effect("pointing, sentences over global regions", "sentences/pointing", "global/pointing"),
        Effect("CNR, sentences over global regions", "sentences/CNR", "global/CNR"),
        Effect("AUROC, sentences over global", "sentences/AUROC", "global/AUROC", main=False),
        Effect("CNR, sentences over activation map", "sentences/CNR", "activation map/CNR", main=False),
    ),
    tried="A global model is not blind: the activation map of its pooled head already points far above "
    "chance, and its smooth maps have as much contrast to noise as the sharper ones of the local term; the "
    "gain over untrained regions, which papers print, is the larger one. MGCA's token alignment compares "
    "words and regions of one pair alone and does not localise here.",
)
