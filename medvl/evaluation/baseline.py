"""The frozen-tower baseline of an evaluation: features before any alignment, and ridge between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped

from medvl.encoders.image import build_image_encoder
from medvl.encoders.text import build_text_encoder
from medvl.errors import UsageError
from medvl.evaluation.cases import Cases
from medvl.evaluation.ridge import Ridge, fit_ridge
from medvl.evaluation.subject import Subject
from medvl.modeldir import LoadedModel
from medvl.progress import Progress
from medvl.records import Record
from medvl.store import Store
from medvl.training.recipe import Recipe
from medvl.training.setup import fitted

__all__ = ["ridge_baseline", "tower_features"]

_BATCH = 32
_RIDGE_PAIRS = 4000


def ridge_baseline(
    subject: Subject, store: Store, cases: Cases, *, seed: int, progress: Progress | None
) -> tuple[Ridge, Float[np.ndarray, "images texts"]]:
    """Fit ridge regression between the unaligned towers on the training split, and score the cases with it.

    Args:
        subject: the model, whose recipe names the towers.
        store: where the pixels are.
        cases: the evaluated cases and the training pairs (at most 4,000 of them, drawn at random).
        seed: of the draw and of the folds.
        progress: called as batches are done.

    Returns:
        The fitted map, and scores of films with a report against texts.

    Raises:
        UsageError: no recipe lies beside the model, or there are too few training pairs.
    """
    if subject.recipe is None:
        raise UsageError(f"no recipe lies beside this {subject.kind}, so its towers cannot be built anew.")
    train = list(cases.train)
    if len(train) > _RIDGE_PAIRS:
        chosen = np.random.default_rng([seed, 4]).choice(len(train), _RIDGE_PAIRS, replace=False)
        train = [train[row] for row in sorted(chosen)]
    told = [cases.images[row] for row in cases.with_text]
    view = subject.view
    words = [tuple(getattr(record, view)) for record in train] + [text.sentences for text in cases.texts]
    distinct = sorted(set(words))
    place = {sentences: row for row, sentences in enumerate(distinct)}
    films, reports = tower_features(
        subject.loaded, subject.recipe, store, [*train, *told], distinct, progress=progress
    )
    rows = np.asarray([place[sentences] for sentences in words])
    fitted = fit_ridge(
        films[: len(train)],
        reports[rows[: len(train)]],
        groups=[record.patient_id for record in train],
        seed=seed,
    )
    return fitted, fitted.scores(films[len(train) :], reports[rows[len(train) :]])


def tower_features(
    loaded: LoadedModel,
    recipe: Recipe,
    store: Store,
    records: Sequence[Record],
    texts: Sequence[Sequence[str]],
    *,
    progress: Progress | None = None,
) -> tuple[Float[np.ndarray, "records image_width"], Float[np.ndarray, "texts text_width"]]:
    """Return pooled features of the towers as the recipe builds them: pretrained where they are, unaligned.

    No adapter, no projection and no step of training is in them. A tower without pretrained weights has
    random ones, drawn with seed 0. Of a volume that is larger than the tensor its middle is read.

    Args:
        loaded: the trained model; its specs and tokeniser are used, not its weights.
        recipe: names and options of the towers.
        store: where the pixels are.
        records: films.
        texts: reports as lists of sentences.
        progress: called as batches are done.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = fitted(recipe.image.name, recipe.image.options, recipe.input)
        image = build_image_encoder(recipe.image.name, options).eval()
        text = build_text_encoder(recipe.text.name, recipe.text.options, loaded.tokeniser).eval()

    def images(chunk: Sequence[Any]) -> torch.Tensor:
        pixels, masks = loaded.image_tensors([store.pixels(record) for record in chunk])
        return image(pixels.cpu(), masks.cpu()).pooled

    def reports(chunk: Sequence[Any]) -> torch.Tensor:
        tokens, mask = loaded.text_tensors([list(sentences) for sentences in chunk])
        return text(tokens.cpu(), mask.cpu()).pooled

    return (
        _in_batches(images, records, progress, "ridge baseline: films"),
        _in_batches(reports, texts, progress, "ridge baseline: reports"),
    )


@torch.inference_mode()
def _in_batches(
    encode: Callable[[Sequence[Any]], torch.Tensor],
    items: Sequence[Any],
    progress: Progress | None,
    message: str,
) -> Shaped[np.ndarray, "items width"]:
    parts = []
    for start in range(0, len(items), _BATCH):
        chunk = items[start : start + _BATCH]
        parts.append(encode(chunk).float().numpy())
        if progress is not None:
            progress(start + len(chunk), len(items), message)
    return np.concatenate(parts)
