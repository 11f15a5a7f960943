"""A recipe: every value that decides what a training run computes, checked, merged and printed.

A recipe is values only. It names encoders and objectives by their names in our catalogues; their
options are the keyword arguments of those functions. ``extends: NAME`` starts from another recipe.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from medvl.alignment import ProjectionConfig, TowerRecipe
from medvl.catalogue import Catalogue
from medvl.config import dump_yaml, parse_yaml, read_config
from medvl.data.augment import Augment, VolumeAugment
from medvl.data.positives import PositivesMode
from medvl.encoders.image import IMAGE_ENCODERS
from medvl.encoders.text import TEXT_ENCODERS
from medvl.errors import ConfigError, nearest
from medvl.objectives import OBJECTIVES
from medvl.specs import InputSpec, VolumeInput

__all__ = ["Recipe", "Section", "Whole", "load_recipe", "merge", "read_values"]

W = TypeVar("W", bound="Whole")
_OF_NAME = ("options", "lora", "train", "freeze_layers", "weights")
"""What a recipe says of one encoder or objective and would not mean of another."""


def _kind(values: Any) -> Any:
    return values.get("kind", "film") if isinstance(values, Mapping) else getattr(values, "kind", "film")


Input: TypeAlias = Annotated[
    Annotated[InputSpec, Tag("film")] | Annotated[VolumeInput, Tag("volume")], Discriminator(_kind)
]
"""How a stored film, or with ``kind: volume`` a stored volume, becomes a tensor."""


class Section(BaseModel):
    """A frozen group of values; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Data(Section):
    """Which pairs are read, and how many at once."""

    batch: int = Field(default=96, ge=2)
    """Pairs of a step over all devices; the loss compares each with all others."""
    chunk: int | None = Field(default=None, ge=1)
    """Rows that a device encodes at once, with the exact gradients of the whole batch; null for all."""
    view: Literal["retrieval", "generation", "rewritten"] = "retrieval"
    """Which sentences of a report; rewritten ones are made by ``medvl data rewrite``."""
    order: Literal["report", "shuffled"] = "shuffled"
    """Order of a report's sentences: as written, or another one each epoch."""
    most_sentences: int | None = Field(default=None, ge=1)
    """Sentences of a report read at a time in training, drawn anew each epoch; null for all."""
    split_seed: int | None = None
    """Splits the patients anew; null keeps the splits of the store."""


class Augmentation(Section):
    """Largest random change of a picture; all zero for none.

    On a film brightness and noise are shares of the range from black to white (:class:`medvl.data.Augment`).
    A volume is turned about the long axis of the body; its brightness and noise are shares of 1,000 HU, and
    its contrast is a gain of the HU (:class:`medvl.data.VolumeAugment`).
    """

    rotate_deg: float = Field(default=5.0, ge=0, le=45)
    shift: float = Field(default=0.05, ge=0, le=0.5)
    zoom: float = Field(default=0.1, ge=0, le=0.5)
    brightness: float = Field(default=0.05, ge=0, le=1)
    contrast: float = Field(default=0.1, ge=0, le=0.9)
    noise: float = Field(default=0.02, ge=0, le=1)

    def build(self, *, volumes: bool = False) -> Augment | VolumeAugment | None:
        """Return the augmentation of films or of volumes, or None where nothing changes."""
        values = self.model_dump()
        if not any(values.values()):
            return None
        if not volumes:
            return Augment(**values)
        return VolumeAugment(
            rotate_deg=self.rotate_deg,
            shift=self.shift,
            zoom=self.zoom,
            gain=self.contrast,
            offset_hu=1000 * self.brightness,
            noise_hu=1000 * self.noise,
        )


class TextTower(TowerRecipe):
    """The text encoder and its tokenizer."""

    vocab_size: int = Field(default=2000, ge=300)
    """Size of the vocabulary learnt on the training split, for an encoder without a tokenizer."""
    max_tokens: int = Field(default=128, ge=8)
    """Longer reports lose their last words."""


class Aim(Section):
    """The objective, by name, and which pairs count as positives."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    positives: PositivesMode = "similar"
    similar_weight: float = Field(default=0.5, gt=0, le=1)
    """Value of a text with the very same findings or meaning in other words; 1 where ``mask`` and ``multi``
    shall act on it; see :func:`medvl.data.positives`."""
    bank: str = "minilm"
    """The frozen text encoder whose vectors say which reports mean the same, for positives of the bank."""
    neighbours: int = Field(default=8, ge=1)
    """Nearest reports of each that count as positives of the bank."""
    least: float = 0.8
    """The least similarity of a positive of the bank."""


class Optimiser(Section):
    """AdamW (arXiv 1711.05101) with a learning rate for each group of layers."""

    lr: float = Field(default=1e-3, gt=0)
    image: float = Field(default=1.0, ge=0)
    """Factor of the learning rate of the image encoder."""
    text: float = Field(default=1.0, ge=0)
    """Factor of the learning rate of the text encoder."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor of the learning rate from one block of an encoder to the one before it; 1 for none."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Of matrices only: biases, norms and scales do not decay."""
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = Field(default=1.0, ge=0)
    """Largest gradient norm; 0 for no clipping."""


class Schedule(Section):
    """How long, and the learning rate over time: linear warm-up, then a cosine."""

    epochs: float = Field(default=30, gt=0)
    steps: int | None = Field(default=None, ge=1)
    """Steps instead of epochs."""
    warmup: float = Field(default=0.1, ge=0, le=1)
    """Share of the steps."""
    floor: float = Field(default=0.01, ge=0, le=1)
    """Last learning rate as a share of the largest."""


class Loop(Section):
    """What the loop does besides stepping."""

    seed: int = Field(default=0, ge=0)
    precision: Literal["32", "bf16-mixed"] = "32"
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the average of the weights that is validated and kept as the model; 0 for the last weights."""
    every_steps: int = Field(default=100, ge=1)
    """Steps between validations, each of which ends with a checkpoint."""
    log_every: int = Field(default=10, ge=1)
    monitor: Literal["loss", "recall"] = "loss"
    """What makes a checkpoint the best: validation loss, or recall@5 both ways."""
    patience: int = Field(default=0, ge=0)
    """Validations without improvement before the run stops; 0 for never."""
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints kept, besides the best."""


class Machine(Section):
    """Where a run computes, not what: these values may change when it resumes."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = Field(default=1, ge=1)
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How devices share the work: each holds the model (ddp, also auto), or each a share of the towers."""
    workers: int = Field(default=0, ge=0)
    """Processes that read pictures; of no use while all of them fit into ``cache_mb``."""
    cache_mb: int = Field(default=2048, ge=0)
    tensorboard: bool = True


class Whole(Section):
    """A whole recipe: it can be printed, changed, checked and compared."""

    what: ClassVar[str] = "recipe"
    modality: Literal["cxr", "ct", "pathology"]
    about: str = ""
    """One line for ``medvl recipes``."""

    def to_yaml(self) -> str:
        """Return the recipe with every value, as YAML that reads back as the same recipe."""
        return dump_yaml(self.model_dump(mode="json"))

    def with_overrides(self: W, overrides: Sequence[str]) -> W:
        """Return a recipe with some values replaced, each given as ``section.key=value``.

        Raises:
            ConfigError: an override that is not of this form, an unknown key or a refused value.
        """
        values = self.model_dump(mode="json")
        for override in overrides:
            values = merge(values, _parse_override(override))
        return type(self).from_values(values)

    @classmethod
    def from_values(cls: type[W], values: Any) -> W:
        """Check plain values.

        Raises:
            ConfigError: an unknown key, which names the nearest one, or a refused value.
        """
        if not isinstance(values, dict):
            raise ConfigError(
                f"a recipe is a mapping, got {type(values).__name__}.", hint="Write 'key: value' lines."
            )
        _check_keys(values, cls, ())
        try:
            recipe = cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"] if part not in ("film", "volume"))
            got = "" if first["type"] == "missing" else f" is {first['input']!r}"
            raise ConfigError(f"recipe: {where}{got}: {first['msg']}.") from error
        _check_names(recipe.named())
        return recipe

    def named(self) -> Sequence[tuple[str, Catalogue[Any], str, Mapping[str, Any]]]:
        """Return section, catalogue, name and options of all that is named from a catalogue."""
        return ()

    def differences(self, other: Whole) -> list[str]:
        """Return the keys, with both values, in which two recipes compute something else."""
        ours, theirs = (_flat(r.model_dump(mode="json", exclude={"machine", "about"})) for r in (self, other))
        keys = sorted(ours.keys() | theirs.keys())
        return [
            f"{key}: {ours.get(key)} / {theirs.get(key)}" for key in keys if ours.get(key) != theirs.get(key)
        ]


class Recipe(Whole):
    r"""All values of a training run.

    Examples:
        >>> text = "modality: cxr\nimage: {name: resnet}\ntext: {name: bert}\nobjective: {name: clip}"
        >>> recipe = load_recipe(text)
        >>> recipe.with_overrides(["optimiser.lr=3e-4"]).optimiser.lr
        0.0003
    """

    data: Data = Data()
    input: Input = InputSpec()
    augment: Augmentation = Augmentation()
    image: TowerRecipe
    text: TextTower
    projection: ProjectionConfig = ProjectionConfig()
    objective: Aim
    optimiser: Optimiser = Optimiser()
    schedule: Schedule = Schedule()
    loop: Loop = Loop()
    machine: Machine = Machine()

    def named(self) -> Sequence[tuple[str, Catalogue[Any], str, Mapping[str, Any]]]:
        """Return the encoders and the objective."""
        return (
            ("image", IMAGE_ENCODERS, self.image.name, self.image.options),
            ("text", TEXT_ENCODERS, self.text.name, self.text.options),
            ("objective", OBJECTIVES, self.objective.name, self.objective.options),
        )


def load_recipe(source: Path | str, *, folder: Path | None = None) -> Recipe:
    """Read a recipe from a file, or from YAML text.

    Args:
        source: a path, or the text itself.
        folder: where ``extends: NAME`` finds ``NAME.yaml``; a recipe file's own folder comes first.

    Raises:
        ConfigError: see :meth:`Recipe.from_values` and :func:`read_values`.
    """
    return Recipe.from_values(read_values(source, folder=folder))


def read_values(source: Path | str, *, folder: Path | None = None) -> Any:
    """Return the plain values of a recipe, laid over those that it extends; see :func:`load_recipe`.

    Raises:
        ConfigError: not YAML, or a base that is missing or extends itself.
    """
    if isinstance(source, Path):
        folders = [source.parent, *([folder] if folder else [])]
        return _with_bases(read_config(source), folders, (source.stem,))
    return _with_bases(parse_yaml(source, what="the recipe"), [folder] if folder else [], ())


def merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` with ``changes`` laid over them, key by key.

    Naming another encoder or objective drops the old one's options, which would mean nothing to it, and so
    does another kind of input.

    Examples:
        >>> multi = {"objective": {"name": "multi", "options": {"prototypes": 9}}}
        >>> merge(multi, {"objective": {"name": "clip"}})
        {'objective': {'name': 'clip'}}
    """
    merged = copy.deepcopy(dict(values))
    if "name" in changes and merged.get("name") != changes["name"]:
        merged = {key: value for key, value in merged.items() if key not in _OF_NAME}
    if _kind(merged) != _kind(changes) and "kind" in changes:
        merged = {}
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def _with_bases(values: Any, folders: Sequence[Path], seen: tuple[str, ...]) -> Any:
    if not isinstance(values, dict) or "extends" not in values:
        return values
    name = str(values["extends"])
    own = {key: value for key, value in values.items() if key != "extends"}
    found = {path.stem: path for folder in reversed(folders) for path in sorted(folder.glob("*.yaml"))}
    found = {stem: path for stem, path in found.items() if stem not in seen}
    if name not in found:
        raise ConfigError(f"the recipe extends '{name}', which is not there.", hint=nearest(name, found))
    base = _with_bases(read_config(found[name]), folders, (*seen, name))
    return merge(base, own)


def _parse_override(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(
            f"the override '{override}' is not of the form section.key=value.", hint="optimiser.lr=3e-4"
        )
    value = parse_yaml(text, what=f"the value of {key}")
    for part in reversed(parts):
        value = {part: value}
    return value


def _check_keys(values: Mapping[str, Any], model: type[BaseModel], where: tuple[str, ...]) -> None:
    for key, value in values.items():
        if key not in model.model_fields:
            path = ".".join((*where, str(key)))
            raise ConfigError(f"recipe: unknown key '{path}'.", hint=nearest(str(key), model.model_fields))
        if isinstance(value, Mapping):
            inner = _section_of(model.model_fields[key].annotation, kind=_kind(value))
            if inner is not None:
                _check_keys(value, inner, (*where, key))


def _section_of(annotation: Any, *, kind: Any) -> type[BaseModel] | None:
    """Return the section that an annotation names; of several, the one of that kind."""
    named = [(annotation, None)]
    for choice in getattr(annotation, "__args__", ()):
        marks = getattr(choice, "__metadata__", (None,))
        named.append((getattr(choice, "__origin__", choice), getattr(marks[0], "tag", None)))
    sections = {tag: c for c, tag in reversed(named) if isinstance(c, type) and issubclass(c, BaseModel)}
    return sections.get(kind, next(iter(sections.values()), None))


def _check_names(named: Iterable[tuple[str, Catalogue[Any], str, Mapping[str, Any]]]) -> None:
    for path, catalogue, name, options in named:
        allowed = catalogue.options(name)
        for key in options:
            if key not in allowed:
                raise ConfigError(
                    f"recipe: unknown key '{path}.options.{key}' of {catalogue.kind} '{name}'.",
                    hint=nearest(key, allowed),
                )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
