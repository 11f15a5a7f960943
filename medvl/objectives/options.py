"""Checks of the options that a recipe gives to an objective."""

from __future__ import annotations

from typing import Literal, cast, get_args

from medvl.errors import ConfigError, nearest

__all__ = [
    "FalseNegatives",
    "PatchContext",
    "SharedSentences",
    "check_choice",
    "check_numbers",
    "false_negatives_mode",
    "patch_context_mode",
    "shared_sentences_mode",
]

FalseNegatives = Literal["none", "mask", "multi", "soft"]
PatchContext = Literal["auto", "raw", "unit"]
SharedSentences = Literal["ignore", "mask", "positive"]


def false_negatives_mode(value: str) -> FalseNegatives:
    """Return ``value`` as a rule for false negatives.

    Raises:
        ConfigError: it is not one of ``none``, ``mask``, ``multi``, ``soft``.
    """
    check_choice("false_negatives", value, get_args(FalseNegatives))
    return cast(FalseNegatives, value)


def patch_context_mode(value: str) -> PatchContext:
    """Return ``value`` as a way to treat the context of a patch.

    Raises:
        ConfigError: it is not one of ``auto``, ``raw``, ``unit``.
    """
    check_choice("patch_context", value, get_args(PatchContext))
    return cast(PatchContext, value)


def shared_sentences_mode(value: str) -> SharedSentences:
    """Return ``value`` as a rule for sentences that several reports say.

    Raises:
        ConfigError: it is not one of ``ignore``, ``mask``, ``positive``.
    """
    check_choice("shared_sentences", value, get_args(SharedSentences))
    return cast(SharedSentences, value)


def check_numbers(least: float | int, **values: float | int) -> None:
    """Refuse options below the least value that makes sense.

    Raises:
        ConfigError: a value is smaller than ``least``.

    Examples:
        >>> check_numbers(1, prototypes=0)
        Traceback (most recent call last):
        medvl.errors.ConfigError: prototypes is 0. Allowed: 1 or more.
    """
    for name, value in values.items():
        # Written so that NaN is refused too.
        if not value >= least:
            raise ConfigError(f"{name} is {value}.", hint=f"Allowed: {least:g} or more.")


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a word that is not among those allowed.

    Raises:
        ConfigError: ``value`` is not in ``allowed``.

    Examples:
        >>> check_choice("aggregate", "men", ("mean", "sum"))
        Traceback (most recent call last):
        medvl.errors.ConfigError: aggregate is 'men'. Allowed: mean, sum. Did you mean 'mean'?
    """
    if value not in allowed:
        raise ConfigError(f"{name} is '{value}'.", hint=nearest(value, allowed))
