"""What a run computes with, built from recipe and store alone."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from medvl.alignment import AlignmentModel, TowerRecipe, build_model
from medvl.data import BatchOrder, PairDataset
from medvl.encoders.image import IMAGE_ENCODERS
from medvl.encoders.text import text_tokeniser
from medvl.errors import ConfigError, UsageError
from medvl.objectives import OBJECTIVES
from medvl.specs import InputSpec, VolumeInput, VolumeSpec
from medvl.store import Store
from medvl.tokens import ReportTokeniser
from medvl.training.recipe import Recipe
from medvl.training.start import Start, start_of

__all__ = ["Setup", "fitted", "set_up"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setup:
    """What a run computes with.

    Attributes:
        train, validation: the splits; None without a validation split.
        order: which items make up each batch.
        steps: of the whole run.
        tokeniser: of the text encoder.
        model, objective: with the weights that training starts from.
        names: of the findings, in words; for an objective that reads their vectors, else empty.
        body_parts: anatomical parts that the objective tells apart; 0 for one that asks for none.
    """

    train: PairDataset
    validation: PairDataset | None
    order: BatchOrder
    steps: int
    tokeniser: ReportTokeniser
    model: AlignmentModel
    objective: Any
    names: tuple[str, ...] = ()
    body_parts: int = 0


def set_up(store: Store, recipe: Recipe) -> Setup:
    """Read the splits and build model and objective.

    Raises:
        ConfigError: a value of the recipe does not fit the encoders, the objective or the weights.
        UsageError: there is nothing to train on.
    """
    aim = OBJECTIVES.factory(recipe.objective.name)
    common: dict[str, Any] = {
        "input": recipe.input,
        "view": recipe.data.view,
        "split_seed": recipe.data.split_seed,
        "cache_mb": recipe.machine.cache_mb,
        "views": getattr(aim, "views", 1),
        **_extras(aim, recipe),
    }
    pairs = PairDataset(
        store,
        "train",
        augment=recipe.augment.build(volumes=isinstance(recipe.input, VolumeInput)),
        place="random",
        order=recipe.data.order,
        most=recipe.data.most_sentences,
        seed=recipe.loop.seed,
        **common,
    )
    try:
        validation = PairDataset(store, "val", **common)
    except UsageError as error:
        log.warning("no validation: %s", error.message)
        validation = None
    order = BatchOrder(len(pairs), size=recipe.data.batch, seed=recipe.loop.seed)
    steps = recipe.schedule.steps or max(1, math.ceil(recipe.schedule.epochs * order.steps_per_epoch))
    starts = _starts(recipe)
    tokeniser = _tokeniser(recipe, pairs, starts)
    torch.manual_seed(recipe.loop.seed)
    model = build_model(
        image=recipe.image.model_copy(
            update={"options": fitted(recipe.image.name, recipe.image.options, recipe.input)}
        ),
        text=recipe.text,
        tokeniser=tokeniser,
        projection=recipe.projection,
        local=bool(getattr(aim, "needs_local", True)),
        weights={side: start.tensors for side, start in starts.items()},
    )
    options = dict(recipe.objective.options)
    if "findings" in OBJECTIVES.options(recipe.objective.name):
        options.setdefault("findings", pairs.label_names)
    if "finding_parts" in OBJECTIVES.options(recipe.objective.name):
        from medvl.anatomy import PARTS, finding_parts

        options.setdefault("finding_parts", finding_parts(pairs.label_names, modality=recipe.modality))
        options.setdefault("parts", len(PARTS[recipe.modality]))
        _require_numbers(store, PARTS[recipe.modality])
    objective = OBJECTIVES.build(recipe.objective.name, options, recipe.projection.dim)
    names = tuple(name.replace("_", " ") for name in pairs.label_names)
    if not getattr(objective, "needs_attributes", False):
        names = ()
    return Setup(
        pairs,
        validation,
        order,
        steps,
        tokeniser,
        model,
        objective,
        names,
        int(options.get("parts", 0)) if getattr(aim, "needs_parts", False) else 0,
    )


def _require_numbers(store: Store, parts: Sequence[str]) -> None:
    """Refuse voxels whose numbers mean other parts than those of the sentences."""
    spec = store.pixel_spec
    if isinstance(spec, VolumeSpec) and spec.parts != tuple(parts[: len(spec.parts)]):
        raise ConfigError(
            f"the store numbers the parts {', '.join(spec.parts)}, sentences {', '.join(parts)}.",
            hint="Prepare the store again with the parts of this version.",
        )


def _extras(aim: Any, recipe: Recipe) -> dict[str, Any]:
    """Return what this objective and these positives read besides pictures, words and labels."""
    extras: dict[str, Any] = {}
    if getattr(aim, "needs_parts", False):
        from medvl.anatomy import sentence_parts

        extras["parts"] = functools.partial(sentence_parts, modality=recipe.modality)
        if isinstance(recipe.input, VolumeInput):  # labels of CT leave most parts of the abdomen out
            from medvl.preprocess.reports.organs import state_numbers

            extras["states"] = state_numbers
    if recipe.objective.positives == "bank":
        from medvl.training.bank import bank_vectors

        extras["bank"] = functools.partial(bank_vectors, encoder=recipe.objective.bank)
    return extras


def _starts(recipe: Recipe) -> dict[str, Start]:
    towers: dict[Literal["image", "text"], TowerRecipe] = {"image": recipe.image, "text": recipe.text}
    return {
        side: start_of(Path(tower.weights), side=side, name=tower.name, inside=tower.options.get("encoder"))
        for side, tower in towers.items()
        if tower.weights is not None
    }


def _tokeniser(recipe: Recipe, pairs: PairDataset, starts: dict[str, Start]) -> ReportTokeniser:
    """Return the tokeniser of the weights that the text tower starts from, or that of its encoder."""
    if "text" in starts and starts["text"].tokeniser is not None:
        return starts["text"].tokeniser
    return text_tokeniser(
        recipe.text.name,
        recipe.text.options,
        texts=[sentence for record in pairs.records for sentence in getattr(record, recipe.data.view)],
        vocab_size=recipe.text.vocab_size,
        max_tokens=recipe.text.max_tokens,
    )


def fitted(name: str, options: Mapping[str, Any], spec: InputSpec | VolumeInput) -> dict[str, Any]:
    """Return an image encoder's options with channels, axes and size of the input spec where it asks.

    Examples:
        >>> fitted("resnet", {"widths": [8, 16]}, VolumeInput())
        {'channels': 2, 'axes': 3, 'widths': [8, 16]}
    """
    asked = IMAGE_ENCODERS.options(name)
    known: dict[str, Any] = {"channels": spec.channels, "size_px": spec.size_px}
    if isinstance(spec, VolumeInput):
        known["axes"] = len(spec.size_px)
    return {key: value for key, value in known.items() if key in asked} | dict(options)
