"""Intervals by resampling patients: the patient, not the image, is what varies between hospitals' days."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from medvl.errors import UsageError

__all__ = ["METHOD", "Bootstrap", "Number", "spread"]

METHOD = "percentile interval of a patient cluster bootstrap"
_CHUNK = 1 << 24  # weights held at once in a weighted median or AUROC


@dataclass(frozen=True)
class Number:
    """One figure with what it rests on.

    Attributes:
        value: the estimate on all rows.
        low, high: the interval, or None where nothing was resampled (a closed form).
        n: rows that count.
        patients: clusters that were resampled.
        undefined: resamples in which the figure had no value (one class missing) and which are left
            out of the interval.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0
    patients: int = 0
    undefined: int = 0

    def scaled(self, factor: float) -> Number:
        """Return the figure times a constant."""
        return Number(
            self.value * factor,
            None if self.low is None else self.low * factor,
            None if self.high is None else self.high * factor,
            self.n,
            self.patients,
            self.undefined,
        )

    def plain(self) -> dict[str, Any]:
        """Return JSON values; the interval is left out where there is none."""
        values: dict[str, Any] = {"value": self.value, "n": self.n}
        if self.low is not None:
            values |= {"low": self.low, "high": self.high, "patients": self.patients}
        if self.undefined:
            values["undefined_resamples"] = self.undefined
        return values


def spread(values: Sequence[float], *, n: int) -> Number:
    """Return the mean of repeated draws with the interval that holds 95 % of them; ``n`` rows each.

    Examples:
        >>> spread([0.0, 0.5, 1.0], n=10).value
        0.5
    """
    low, high = np.quantile(values, (0.025, 0.975))
    return Number(float(np.mean(values)), float(low), float(high), n)


class Bootstrap:
    r"""A patient cluster bootstrap with the percentile interval.

    Draw $P$ patients of $P$ with replacement, $B$ times; row $i$ then counts $w_{bi}$ times, as often as
    its patient was drawn. The interval is the $(1 \mp c)/2$ quantile of the $B$ re-computed figures
    (Efron 1979; Field and Welsh 2007 for clusters). All figures of one object share the draws, so their
    differences are paired.

    Args:
        patients: the patient of each row, any hashable values.
        resamples: $B$.
        seed: of the draws.
        level: $c$, the coverage.

    Raises:
        UsageError: no rows, fewer than one resample, or a level outside 0…1.

    Examples:
        >>> number = Bootstrap(["a", "a", "b", "c"], resamples=500, seed=1).mean(np.array([1.0, 1, 0, 0]))
        >>> number.value, number.low, number.high
        (0.5, 0.0, 1.0)
    """

    def __init__(
        self, patients: Collection[Any], *, resamples: int = 2000, seed: int = 0, level: float = 0.95
    ) -> None:
        if len(patients) == 0:
            raise UsageError("there are 0 rows to resample; at least 1 is needed.")
        if resamples < 1 or not 0 < level < 1:
            raise UsageError(
                f"resamples is {resamples} and level {level}; allowed are resamples >= 1 and 0 < level < 1."
            )
        names, codes = np.unique(np.asarray([str(patient) for patient in patients]), return_inverse=True)
        self.codes: Int[np.ndarray, " rows"] = codes
        self.count = len(names)
        self.resamples, self.seed, self.level = resamples, seed, level

    @functools.cached_property
    def draws(self) -> Float[np.ndarray, "resamples patients"]:
        """How often each resample drew each patient; every row sums to the number of patients."""
        random = np.random.default_rng(self.seed)
        share = np.full(self.count, 1 / self.count)
        return random.multinomial(self.count, share, size=self.resamples).astype(np.float64)

    def mean(self, values: Float[np.ndarray, " rows"]) -> Number:
        """Return the mean of per-row values with its interval."""
        self._check(values)
        sums = np.bincount(self.codes, weights=values, minlength=self.count)
        sizes = np.bincount(self.codes, minlength=self.count)
        return self.number(float(values.mean()), self.draws @ sums / (self.draws @ sizes))

    def median(self, values: Float[np.ndarray, " rows"]) -> Number:
        """Return the median of per-row values with its interval."""
        self._check(values)
        order = np.argsort(values, kind="stable")
        ranked = values[order]
        medians = np.empty(self.resamples)
        step = max(1, _CHUNK // len(values))
        for start in range(0, self.resamples, step):
            cumulated = np.cumsum(self.draws[start : start + step, self.codes[order]], axis=1)
            total = cumulated[:, -1]
            lower = (cumulated <= np.floor((total - 1) / 2)[:, None]).sum(1)
            upper = (cumulated <= np.floor(total / 2)[:, None]).sum(1)
            medians[start : start + step] = (ranked[lower] + ranked[upper]) / 2
        return self.number(float(np.median(values)), medians)

    def number(self, value: float, resampled: Float[np.ndarray, " resamples"]) -> Number:
        """Return ``value`` with the percentile interval of its resampled values; NaN ones are counted out."""
        known = resampled[~np.isnan(resampled)]
        undefined = len(resampled) - len(known)
        if len(known) == 0:
            return Number(value, None, None, len(self.codes), self.count, undefined)
        tail = (1 - self.level) / 2
        low, high = np.quantile(known, (tail, 1 - tail))
        return Number(value, float(low), float(high), len(self.codes), self.count, undefined)

    def _check(self, values: Float[np.ndarray, " rows"]) -> None:
        if len(values) != len(self.codes):
            raise UsageError(f"got {len(values)} values for {len(self.codes)} rows.")
        if np.isnan(values).any():
            raise UsageError(
                f"{int(np.isnan(values).sum())} of {len(values)} values are NaN; no figure can rest on them.",
                hint="Leave those rows out and count them.",
            )
