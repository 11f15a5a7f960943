"""A recipe of image-only pre-training: films or volumes, crops, one tower, and no text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from medvl.catalogue import Catalogue
from medvl.encoders.image import IMAGE_ENCODERS
from medvl.errors import ConfigError
from medvl.specs import InputSpec
from medvl.training.recipe import Augmentation, Input, Machine, Schedule, Section, Whole
from medvl.training.selfdistil.loss import Centring

__all__ = ["Crops", "PretrainRecipe", "Terms", "is_pretraining"]


class Films(Section):
    """Which films are read, and how many at once; a report is not needed and never read."""

    batch: int = Field(default=64, ge=2)
    """Films of a step over all devices."""
    split_seed: int | None = None
    """Splits the patients anew; null keeps the splits of the store."""


class Crops(Section):
    """The views of a film: parts of it, enlarged or reduced to one size, and which patches are hidden.

    Nothing is flipped: side matters.
    """

    large: int = Field(default=2, ge=1)
    """Views of the size of the input, which the teacher sees too."""
    large_share: tuple[float, float] = (0.5, 1.0)
    """Least and largest share of the film's area, or the volume's, in a large view."""
    small: int = Field(default=4, ge=0)
    """Smaller views, which only the student sees."""
    small_share: tuple[float, float] = (0.2, 0.5)
    small_px: tuple[int, ...] | None = None
    """Sides of a small view, height and width or x, y and z; null for half of the input's."""
    aspect: float = Field(default=4 / 3, ge=1, le=2)
    """Largest ratio of two sides of a part, both ways, over that of the film or volume."""
    hidden_films: float = Field(default=0.5, ge=0, le=1)
    """Share of the large views in which patches are hidden from the student."""
    hidden: tuple[float, float] = (0.1, 0.5)
    """Least and largest share of their patches that is hidden, in blocks."""

    @model_validator(mode="after")
    def _in_order(self) -> Crops:
        for name in ("large_share", "small_share", "hidden"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} is {(low, high)}; allowed is 0 < least <= largest <= 1")
        if self.large + self.small < 2:
            raise ValueError("one view of a film has nothing to agree with; give at least 2")
        return self


class PretrainTower(Section):
    """The image encoder, all of which trains."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None
    """A run, a bundle or an earlier pre-training that student and teacher start from."""
    activation_checkpointing: bool = False


class Terms(Section):
    """The head, and the weights of the loss's terms."""

    prototypes: int = Field(default=4096, ge=2)
    hidden: int = Field(default=2048, ge=1)
    """Width of the two hidden layers of the head."""
    bottleneck: int = Field(default=256, ge=1)
    centring: Centring = "sinkhorn"
    centre_momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of the centre, with ``centring: moving``."""
    student_temperature: float = Field(default=0.1, gt=0)
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    """At the first step, and from the end of its warm-up on."""
    teacher_warmup: float = Field(default=0.3, ge=0, le=1)
    """Share of the steps."""
    momentum: float = Field(default=0.992, ge=0, le=1)
    """How much of the teacher stays at the first step; a cosine takes it to 1 at the last."""
    patches: float = Field(default=1.0, ge=0)
    """Weight of the hidden patches."""
    koleo: float = Field(default=0.1, ge=0)
    """Weight of the term that keeps films apart."""


class PretrainAim(Section):
    """The objective; its name is what tells a recipe of pre-training from one of alignment."""

    name: Literal["dino"] = "dino"
    options: Terms = Terms()


class PretrainOptimiser(Section):
    """AdamW (arXiv 1711.05101)."""

    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    """Of matrices only."""
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = Field(default=3.0, ge=0)
    """Largest gradient norm; 0 for no clipping."""


class PretrainLoop(Section):
    """What the loop does besides stepping."""

    seed: int = Field(default=0, ge=0)
    precision: Literal["32", "bf16-mixed"] = "32"
    every_steps: int = Field(default=200, ge=1)
    """Steps between checkpoints."""
    log_every: int = Field(default=10, ge=1)
    keep: int = Field(default=2, ge=1)


class PretrainRecipe(Whole):
    r"""All values of image-only pre-training.

    Examples:
        >>> recipe = PretrainRecipe.from_values({"modality": "cxr", "image": {"name": "resnet"}})
        >>> recipe.with_overrides(["crops.small=2"]).crops.small
        2
    """

    data: Films = Films()
    input: Input = InputSpec()
    crops: Crops = Crops()
    augment: Augmentation = Augmentation(shift=0.0, zoom=0.0)
    image: PretrainTower
    objective: PretrainAim = PretrainAim()
    optimiser: PretrainOptimiser = PretrainOptimiser()
    schedule: Schedule = Schedule()
    loop: PretrainLoop = PretrainLoop()
    machine: Machine = Machine()

    def named(self) -> Sequence[tuple[str, Catalogue[Any], str, Mapping[str, Any]]]:
        """Return the encoder."""
        return (("image", IMAGE_ENCODERS, self.image.name, self.image.options),)

    @property
    def small_px(self) -> tuple[int, ...]:
        """Sides of a small view.

        Raises:
            ConfigError: as many sides as the input does not have.
        """
        sides: tuple[int, ...] = self.input.size_px
        small = self.crops.small_px or tuple(side // 2 for side in sides)
        if len(small) != len(sides):
            raise ConfigError(f"crops.small_px is {small}; the input has {len(sides)} axes, {sides}.")
        return small


def is_pretraining(values: Any) -> bool:
    """Say whether plain values are those of pre-training: the objective is ``dino``.

    Examples:
        >>> is_pretraining({"objective": {"name": "dino"}}), is_pretraining({"objective": {"name": "clip"}})
        (True, False)
    """
    aim = values.get("objective") if isinstance(values, Mapping) else None
    return isinstance(aim, Mapping) and aim.get("name") == "dino"
