"""From an effect on each seed to a verdict: mean, interval, sign test, and the rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from medvl.mechanisms.claim import Effect, Mechanism

__all__ = ["VERDICTS", "Judged", "Verdict", "judge", "overall"]

Verdict = Literal["reproduced", "direction only", "not reproduced"]
VERDICTS: tuple[Verdict, ...] = ("reproduced", "direction only", "not reproduced")


@dataclass(frozen=True)
class Judged:
    """One effect over the seeds.

    Attributes:
        effect: what is compared.
        values: the effect of each seed.
        mean: over seeds.
        low, high: its 95 % interval by Student's t; None with one seed.
        right: seeds with the predicted sign.
        sign_p: chance of at least so many right seeds if either sign were as likely; None where the
            claim predicts no difference.
        verdict: see :func:`judge`.
    """

    effect: Effect
    values: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None
    right: int
    sign_p: float | None
    verdict: Verdict


def judge(effect: Effect, runs: Sequence[Mapping[str, float]]) -> Judged:
    r"""Judge one effect by its seeds.

    With the margin $m_s$ of a seed, positive where its sign is right, mean $\bar m$ and standard error
    $\mathrm{SE} = s / \sqrt n$: *reproduced* if every $m_s > 0$ and $\bar m > 2\,\mathrm{SE}$; *direction
    only* if $\bar m > 0$ otherwise; else *not reproduced*. The margin is the effect in the predicted
    direction plus the slack, and where no difference is predicted the slack less the size of the effect.
    One seed reproduces nothing.

    Args:
        effect: what is compared.
        runs: the numbers of each seed.

    Examples:
        >>> runs = [{"old": 0.5, "new": new} for new in (0.6, 0.7, 0.8)]
        >>> judged = judge(Effect("gain", "new", "old"), runs)
        >>> judged.right, judged.sign_p, judged.verdict
        (3, 0.125, 'reproduced')
    """
    values = np.array([effect.of(run) for run in runs])
    right = sum(effect.right(float(value)) for value in values)
    sign = {"up": 1.0, "down": -1.0}.get(effect.wanted)
    margins = effect.slack - np.abs(values) if sign is None else sign * values + effect.slack
    n, low, high, verdict = len(values), None, None, "not reproduced"
    if n > 1:
        reach = float(stats.t.ppf(0.975, n - 1)) * float(values.std(ddof=1)) / math.sqrt(n)
        low, high = float(values.mean()) - reach, float(values.mean()) + reach
    if margins.mean() > 0:
        two_errors = 2 * margins.std(ddof=1) / math.sqrt(n) if n > 1 else math.inf
        verdict = "reproduced" if right == n and margins.mean() > two_errors else "direction only"
    sign_p = None if sign is None else float(stats.binomtest(right, n, alternative="greater").pvalue)
    return Judged(
        effect, tuple(map(float, values)), float(values.mean()), low, high, right, sign_p, _known(verdict)
    )


def overall(mechanism: Mechanism, judged: Sequence[Judged]) -> Verdict:
    """Return the worst verdict of the effects on which the mechanism's rests."""
    return max(
        (one.verdict for one in judged if one.effect.main), key=VERDICTS.index, default="not reproduced"
    )


def _known(verdict: str) -> Verdict:
    return next(one for one in VERDICTS if one == verdict)
