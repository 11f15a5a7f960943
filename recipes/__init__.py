"""The choices that are clinical: one module and a few YAML files a modality."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medvl.errors import ConfigError, nearest

if TYPE_CHECKING:
    from medvl.training.recipe import Recipe
    from medvl.training.selfdistil.recipe import PretrainRecipe

__all__ = ["default", "names", "path", "resolve"]

_NOT_RECIPES = ("prompts",)


def names(modality: str) -> list[str]:
    """Return the names of the recipes of a modality.

    Raises:
        ConfigError: an unknown modality.

    Examples:
        >>> "multi" in names("cxr")
        True
    """
    files = sorted(_folder(modality).glob("*.yaml"))
    return [file.stem for file in files if file.stem not in _NOT_RECIPES]


def default(modality: str) -> str:
    """Return the name of the recipe that a modality is trained with where none is asked for.

    Raises:
        ConfigError: an unknown modality.

    Examples:
        >>> default("cxr")
        'multi'
    """
    _folder(modality)
    name: str = importlib.import_module(f"{__name__}.{modality}").DEFAULT
    return name


def path(modality: str, name: str) -> Path:
    """Return the file of a recipe.

    Raises:
        ConfigError: an unknown modality or recipe; the message names the nearest one.
    """
    allowed = names(modality)
    if name not in allowed:
        raise ConfigError(f"unknown {modality} recipe '{name}'.", hint=nearest(name, allowed))
    return _folder(modality) / f"{name}.yaml"


def resolve(
    name_or_path: str | Path, overrides: Sequence[str] = (), *, modality: str = "cxr"
) -> Recipe | PretrainRecipe:
    """Return the recipe of a name or a file with some values replaced.

    Where ``objective.name`` is ``dino``, it is a recipe of image-only pre-training.

    Args:
        name_or_path: one of :func:`names`, or a ``.yaml`` file, which may say ``extends: NAME``.
        overrides: ``section.key=value``, the value in YAML.
        modality: where a name is looked up.

    Raises:
        ConfigError: an unknown recipe or key, naming the nearest one, or a refused value.

    Examples:
        >>> resolve("clip", ["schedule.epochs=3"]).schedule.epochs
        3.0
    """
    from medvl.training.recipe import Recipe, read_values
    from medvl.training.selfdistil.recipe import PretrainRecipe, is_pretraining

    given = Path(name_or_path)
    is_file = given.suffix in (".yaml", ".yml", ".json")
    file = given if is_file else path(modality, str(name_or_path))
    values = read_values(file, folder=_folder(modality))
    kind = PretrainRecipe if is_pretraining(values) else Recipe
    return kind.from_values(values).with_overrides(overrides)


def _folder(modality: str) -> Path:
    here = Path(__file__).parent
    allowed = sorted(folder.name for folder in here.iterdir() if any(folder.glob("*.yaml")))
    if modality not in allowed:
        raise ConfigError(f"there is no recipe for '{modality}'.", hint=nearest(modality, allowed))
    return here / modality
