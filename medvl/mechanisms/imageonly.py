"""P1: films alone teach what reports never say; reports teach better what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int, UInt8
from torch import Tensor

from medvl.data.augment import Augment
from medvl.encoders.regions import ConvTower, ImageTower
from medvl.evaluation.probe import linear_probe
from medvl.mechanisms.claim import Effect, Mechanism
from medvl.mechanisms.films import Films, draw_films
from medvl.mechanisms.nets import Towers, Words, align, fit
from medvl.objectives.contrast import LogitScale, clip_loss
from medvl.phantoms.truth import FINDINGS
from medvl.specs import InputSpec
from medvl.training.selfdistil.model import Distiller, teacher_momentum, teacher_temperature
from medvl.training.selfdistil.views import Cut, draw_views

__all__ = ["MECHANISM", "run"]

_SIZE = 48
_SAID = FINDINGS.index("pleural_effusion")
_SHARE = 0.1


def run(
    seed: int, *, quick: bool, films: int = 1500, held: int = 600, steps: int = 250, distil_steps: int = 200
) -> dict[str, float]:
    """Train one tower with reports and one without; probe both, and a random one, for two attributes."""
    if quick:
        steps, distil_steps = steps // 2, distil_steps // 2
    train, lined = _with_lines(draw_films(films, seed=[seed, 1], size_px=_SIZE), seed=[seed, 3])
    test, test_lined = _with_lines(draw_films(held, seed=[seed, 2], size_px=_SIZE), seed=[seed, 4])
    words = Words(train.reports)
    torch.manual_seed(seed)
    fresh = Towers(words=len(words))
    towers = {
        "random": _tower(fresh),
        "text": _tower(_aligned(train, words, seed=seed, steps=steps)),
        "films": _distilled(train, words, seed=seed, steps=distil_steps),
    }
    values: dict[str, float] = {}
    for arm, tower in towers.items():
        vectors, others = _vectors(tower, train), _vectors(tower, test)
        for what, truth, test_truth in (
            ("unsaid", lined, test_lined),
            ("said", train.labels[:, _SAID] > 0, test.labels[:, _SAID] > 0),
        ):
            probed = linear_probe(
                vectors,
                truth,
                range(len(truth)),
                test=others,
                test_truth=test_truth,
                test_groups=range(-len(test_truth), 0),
                shares=(_SHARE,),
                draws=3,
                resamples=2,
                seed=seed,
            )
            values[f"{arm}/{what} AUROC"] = probed.numbers[_SHARE].value
    return values


def _with_lines(films: Films, *, seed: list[int]) -> tuple[Films, Bool[np.ndarray, " films"]]:
    """Lay a thin bright line, as of a catheter, over half of the films; no report speaks of it."""
    rng = np.random.default_rng(seed)
    lined = rng.random(len(films)) < 0.5
    images = films.images.copy()
    rows = np.arange(_SIZE)
    for film in np.flatnonzero(lined):
        top, end = rng.integers(0, _SIZE // 4), rng.integers(_SIZE // 2, 3 * _SIZE // 4)
        start, slope, bow = rng.uniform(0.25, 0.75) * _SIZE, rng.uniform(-0.3, 0.3), rng.uniform(-3, 3)
        part = rows[top:end]
        along = (part - top) / max(1, end - top)  # type: ignore[operator]
        columns = np.clip(np.rint(start + slope * (part - top) + bow * np.sin(np.pi * along)), 0, _SIZE - 1)
        images[film, 0, part, columns.astype(int)] += 0.9
    return replace(films, images=images), lined


def _tower(towers: Towers) -> ImageTower:
    """Return the backbone of the image side as a tower: the mean of its map, before any projection."""
    return ConvTower(towers.image.backbone, width=96, channels=1, name="small", architecture={})


def _aligned(films: Films, words: Words, *, seed: int, steps: int) -> Towers:
    torch.manual_seed(seed)
    towers, scale = Towers(words=len(words)), LogitScale()
    return align(
        towers,
        films,
        words=words,
        term=lambda rows, image, text: clip_loss(
            image.pooled, text.pooled, torch.eye(len(rows)), scale=scale()
        ),
        heads=[scale],
        seed=seed,
        steps=steps,
    )


def _distilled(films: Films, words: Words, *, seed: int, steps: int) -> ImageTower:
    torch.manual_seed(seed)
    net = Distiller(_tower(Towers(words=len(words))), prototypes=256, hidden=192, bottleneck=48)
    canvas, mask = _grey(films), np.ones((len(films), _SIZE, _SIZE), bool)
    cut = Cut(
        input=_INPUT,
        grid=(_SIZE // 8, _SIZE // 8),
        large=2,
        large_share=(0.5, 1.0),
        small=2,
        small_share=(0.2, 0.5),
        small_px=(_SIZE // 2, _SIZE // 2),
        aspect=4 / 3,
        hidden_films=0.5,
        hidden=(0.1, 0.5),
        augment=Augment(rotate_deg=0, shift=0, zoom=0, brightness=0.05, contrast=0.1, noise=0.02),
    )
    step = 0

    def loss(rows: Int[Tensor, " batch"], generator: torch.Generator) -> Tensor:
        nonlocal step
        if step:
            net.follow(momentum=teacher_momentum(step - 1, total=steps, start=0.98))
        chosen = rows.numpy()
        views = draw_views(
            canvas[chosen], mask[chosen], cut=cut, keys=[(seed, step, int(row)) for row in chosen]
        )
        temperature = teacher_temperature(step, warmup=steps // 3, between=(0.04, 0.07))
        step += 1
        total: Tensor = net(views, temperature=temperature).total
        return total

    fit([net], loss, rows=len(films), steps=steps, batch=64, lr=3e-3, seed=seed)
    return net.teacher


_INPUT = InputSpec(size_px=(_SIZE, _SIZE), mean=(0.5,), std=(0.25,))
"""Displayed brightness as the films have it: 4 (x − ½)."""


def _grey(films: Films) -> UInt8[np.ndarray, "films height width"]:
    return np.rint(255 * np.clip(films.images[:, 0] / 4 + 0.5, 0, 1)).astype(np.uint8)


@torch.no_grad()
def _vectors(tower: ImageTower, films: Films) -> Float32[np.ndarray, "films width"]:
    tower.eval()
    images = torch.from_numpy(np.stack([_INPUT.normalise(film) for film in _grey(films)]))
    mask = torch.ones(images.shape[0], _SIZE, _SIZE, dtype=torch.bool)
    parts = zip(images.split(256), mask.split(256), strict=True)
    return torch.cat([tower(image, inside).pooled for image, inside in parts]).numpy()


MECHANISM = Mechanism(
    key="P1",
    title="films alone teach what reports do not mention",
    claim="A tower trained on images alone (RAD-DINO) matches or beats text-supervised ones on what reports "
    "do not say, and falls short on what they name; text supervision drops what no report mentions.",
    source="Pérez-García et al. 2024, RAD-DINO, arXiv 2401.10815",
    setting="1,500 drawn films of 48 pixels, half with a thin bright line that no report mentions; the same "
    "CNN of four layers trained with reports (CLIP, 250 steps of 96), with films alone (two large and two "
    "small views, hidden regions, 200 steps of 64; quick: half as many) or left random. A linear probe on a "
    "tenth of the films reads the mean of the last map: is there a line (unsaid), is there an effusion "
    "(said); AUROC on 600 other films.",
    run=run,
    effects=(
        Effect("AUROC of the unsaid, films over text", "films/unsaid AUROC", "text/unsaid AUROC"),
        Effect("AUROC of the said, text over films", "text/said AUROC", "films/said AUROC"),
        Effect("AUROC of the unsaid, films over random", "films/unsaid AUROC", "random/unsaid AUROC"),
        Effect("AUROC of the said, films over random", "films/said AUROC", "random/said AUROC", main=False),
    ),
)
