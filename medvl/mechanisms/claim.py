"""What a mechanism experiment is: a claim, a run that measures it on a seed, and the effects it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

__all__ = ["Effect", "Mechanism", "Run"]


@runtime_checkable
class Run(Protocol):
    """Measures everything on one seed; a function of its arguments alone."""

    def __call__(self, seed: int, *, quick: bool) -> dict[str, float]:
        """Return one number for each measured quantity."""
        ...


@dataclass(frozen=True)
class Effect:
    """A difference that the claim predicts: ``value[after] − value[before]``.

    Attributes:
        name: what is compared, in words.
        before, after: keys of the run's numbers; without ``before`` the number itself is the effect.
        wanted: the sign that the claim predicts; ``none`` where it predicts that nothing is lost.
        slack: how far the effect may go the wrong way and still count as right.
        main: whether the verdict rests on it.
    """

    name: str
    after: str
    before: str | None = None
    wanted: Literal["up", "down", "none"] = "up"
    slack: float = 0.0
    main: bool = True

    def of(self, values: Mapping[str, float]) -> float:
        """Return the effect of one seed."""
        return values[self.after] - (values[self.before] if self.before else 0.0)

    def right(self, effect: float) -> bool:
        """Say whether one seed's effect has the predicted sign.

        Examples:
            >>> Effect("pointing", "local", "global").right(0.2)
            True
            >>> Effect("loss", "x", wanted="none").right(-0.1)
            False
        """
        if self.wanted == "up":
            return effect > -self.slack if self.slack else effect > 0
        if self.wanted == "down":
            return effect < self.slack if self.slack else effect < 0
        return abs(effect) <= self.slack


@dataclass(frozen=True)
class Mechanism:
    """One experiment.

    Attributes:
        key: short name, such as ``C1``.
        title: what it is about, in a few words.
        claim: the paper's claim with its figure.
        source: the paper.
        setting: what is trained on what, in a sentence.
        run: the measurement.
        effects: what the claim predicts of its numbers.
        tried: what was tried where an effect does not appear, and what its numbers do not show.
    """

    key: str
    title: str
    claim: str
    source: str
    setting: str
    run: Run
    effects: tuple[Effect, ...]
    tried: str = ""
