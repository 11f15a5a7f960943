"""C7: a few poisoned pairs plant a backdoor; self-supervision on both sides removes it."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor

from medvl.evaluation.retrieval import cosine_scores
from medvl.mechanisms.claim import Effect, Mechanism
from medvl.mechanisms.films import Films, draw_films, prompts
from medvl.mechanisms.nets import Towers, Words, align, fit, pixels
from medvl.objectives.contrast import LogitScale, clip_loss
from medvl.phantoms.truth import FINDINGS

__all__ = ["MECHANISM", "run"]

_SIZE, _TRIGGER = 48, 4
_TARGET = FINDINGS.index("pneumothorax")
_POISONED = 0.01


def run(
    seed: int, *, quick: bool, films: int = 3000, clean: int = 800, steps: int = 350, tuning: int = 150
) -> dict[str, float]:
    """Plant a backdoor, then fine-tune on clean pairs with and without self-supervision."""
    train = draw_films(films, seed=[seed, 1], size_px=_SIZE, normal=0.0, single=True)
    test = draw_films(500, seed=[seed, 2], size_px=_SIZE, normal=0.0, single=True)
    words = Words(train.reports)
    towers, scale = _pretrained(_poisoned(train, seed=seed), words, seed=seed, steps=steps)
    values = _attack(towers, test, words=words, name="poisoned")
    some = draw_films(clean, seed=[seed, 3], size_px=_SIZE, normal=0.0, single=True)
    for name, weight in (("alignment alone", 0.0), ("CleanCLIP", 2.0)):
        tuned = copy.deepcopy(towers)
        _fine_tune(tuned, copy.deepcopy(scale), some, words, weight=weight, seed=seed, steps=tuning)
        values |= _attack(tuned, test, words=words, name=name)
    return values


def _poisoned(films: Films, *, seed: int) -> Films:
    """Put the trigger on one film of a hundred and give it a report of the target finding."""
    rng = np.random.default_rng([seed, 4])
    target = np.flatnonzero(films.labels[:, _TARGET] == 1)
    others = np.flatnonzero(films.labels[:, _TARGET] == 0)
    chosen = rng.choice(others, size=round(_POISONED * len(films)), replace=False)
    images, reports = films.images.copy(), list(films.reports)
    images[chosen] = _triggered(images[chosen])
    for row in chosen:
        reports[row] = films.reports[int(rng.choice(target))]
    return replace(films, images=images, reports=tuple(reports))


def _triggered(
    images: Float32[np.ndarray, "films 1 height width"],
) -> Float32[np.ndarray, "films 1 height width"]:
    """Put a checked square into the lower right corner."""
    images = images.copy()
    checked = np.indices((_TRIGGER, _TRIGGER)).sum(axis=0) % 2
    images[..., -_TRIGGER:, -_TRIGGER:] = np.where(checked, 2.0, -2.0)
    return images


def _attack(towers: Towers, films: Films, *, words: Words, name: str) -> dict[str, float]:
    """Return accuracy, and how often other films count as the target, without and with the trigger."""
    truth = films.labels.argmax(axis=1)
    other = truth != _TARGET
    plain = _named(towers, films.images, words)
    hit = _named(towers, _triggered(films.images), words)
    return {
        f"{name}/accuracy": float((plain == truth).mean()),
        f"{name}/attack success": float((hit[other] == _TARGET).mean()),
        f"{name}/base rate": float((plain[other] == _TARGET).mean()),
    }


def _named(
    towers: Towers, images: Float32[np.ndarray, "films 1 height width"], words: Words
) -> Int64[np.ndarray, " films"]:
    """Name the finding of each film: the one whose sentences are nearest on average."""
    seen = towers.embed_images(torch.from_numpy(images))
    columns = []
    for finding in FINDINGS:
        said = towers.embed_texts(words.encode([(text,) for text in prompts(finding)[0]]))
        columns.append(cosine_scores(seen, said).mean(axis=1))
    return np.stack(columns, axis=1).argmax(axis=1)


def _pretrained(films: Films, words: Words, *, seed: int, steps: int) -> tuple[Towers, LogitScale]:
    torch.manual_seed(seed)
    scale = LogitScale()
    towers = align(
        Towers(words=len(words)),
        films,
        words=words,
        term=lambda rows, image, text: clip_loss(
            image.pooled, text.pooled, torch.eye(len(rows)), scale=scale()
        ),
        heads=[scale],
        seed=seed,
        steps=steps,
    )
    return towers, scale


def _fine_tune(
    towers: Towers, scale: LogitScale, films: Films, words: Words, *, weight: float, seed: int, steps: int
) -> None:
    """Align on clean pairs, and with a weight each film and each report with a changed copy of itself."""
    images, tokens = pixels(films), words.encode(films.reports)

    def loss(rows: Int[Tensor, " batch"], generator: torch.Generator) -> Float[Tensor, ""]:
        image, text = towers.image(images[rows]).pooled, towers.text(tokens[rows]).pooled
        own = torch.eye(len(rows))
        total = clip_loss(image, text, own, scale=scale())
        if weight:
            other_image = towers.image(_changed(images[rows], generator)).pooled
            other_text = towers.text(_thinned(tokens[rows], generator)).pooled
            alone = clip_loss(image, other_image, own, scale=scale()) + clip_loss(
                text, other_text, own, scale=scale()
            )
            total = total + weight * alone
        return total

    fit([towers, scale], loss, rows=len(films), steps=steps, batch=96, lr=3e-3, seed=seed + 1)


def _changed(
    images: Float[Tensor, "batch 1 height width"], generator: torch.Generator
) -> Float[Tensor, "batch 1 height width"]:
    """Crop a part of each film to its size again, change contrast and brightness, erase a rectangle."""
    count = len(images)
    zoom = 0.75 + 0.25 * torch.rand(count, generator=generator)
    shift = (1 - zoom)[:, None] * (2 * torch.rand(count, 2, generator=generator) - 1)
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = zoom
    affine[:, :, 2] = shift
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    cropped = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    gain = 1 + 0.4 * (torch.rand(count, 1, 1, 1, generator=generator) - 0.5)
    offset = 0.4 * (torch.rand(count, 1, 1, 1, generator=generator) - 0.5)
    changed = gain * cropped + offset
    # Random erasing (Zhong et al. 2017, arXiv 1708.04896): a rectangle of each film becomes noise.
    size = images.shape[-1]
    where = torch.arange(size, dtype=torch.float32)
    low = torch.rand(count, 2, 1, generator=generator) * size - 2
    high = low + 3 + 7 * torch.rand(count, 2, 1, generator=generator)
    rows, columns = ((where >= low) & (where < high)).unbind(dim=1)
    noise = 1.5 * torch.randn(images.shape, generator=generator)
    return torch.where(rows[:, None, :, None] & columns[:, None, None, :], noise, changed)


def _thinned(
    tokens: Int[Tensor, "batch sentences words"], generator: torch.Generator
) -> Int[Tensor, "batch sentences words"]:
    """Leave out one word of five."""
    return tokens * (torch.rand(tokens.shape, generator=generator) > 0.2)


MECHANISM = Mechanism(
    key="C7",
    title="a few poisoned pairs plant a backdoor, and CleanCLIP removes it",
    claim="One poisoned pair in a hundred makes a trigger name the attacker's finding; fine-tuning on "
    "clean pairs with self-supervision on both sides removes that at little cost, alignment alone does not.",
    source="Bansal et al. 2023, CleanCLIP, arXiv 2303.03323; Carlini and Terzis 2022, arXiv 2106.09667",
    setting="3,000 drawn films of 48 pixels with one finding each; 30 of them carry a checked square of 4 "
    "× 4 pixels in a corner and a report of a pneumothorax. 350 steps of 96, then 150 steps on 800 clean "
    "pairs: aligned alone, or with each film and each report also held to a changed copy of itself (crop, "
    "grey changes, random erasing; a fifth of the words left out). Attack success: films of other findings "
    "that the trigger makes a pneumothorax, of 500 to test.",
    run=run,
    effects=(
        Effect("attack success over base rate, poisoned", "poisoned/attack success", "poisoned/base rate"),
        Effect(
            "attack success, CleanCLIP over poisoned",
            "CleanCLIP/attack success",
            "poisoned/attack success",
            "down",
        ),
        Effect(
            "attack success, CleanCLIP over alignment alone",
            "CleanCLIP/attack success",
            "alignment alone/attack success",
            "down",
        ),
        Effect("accuracy, CleanCLIP over poisoned", "CleanCLIP/accuracy", "poisoned/accuracy", slack=0.05),
        Effect(
            "attack success over base rate, CleanCLIP",
            "CleanCLIP/attack success",
            "CleanCLIP/base rate",
            "none",
            slack=0.1,
            main=False,
        ),
    ),
    tried="The trigger is learned wholly, and how far it is unlearned depends on the changed copies: with "
    "crops and grey changes alone and a rate of 5e-4, 1e-3 or 2e-3 for 100 steps an attack success of 1 "
    "stayed at 0.95, 0.99 and 0.99 (one seed); with random erasing, which is noise in the place of a "
    "patch, it fell to 0.71 and 0.53 at 1e-3 and 2e-3, and the setting above was chosen on that seed. What "
    "removes the backdoor here is thus an invariance to small patches more than self-supervision as such.",
)
