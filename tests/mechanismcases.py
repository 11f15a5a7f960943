"""Mechanisms of the tests: one that appears, one that does not, one that fails, one whose process dies."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from medvl.mechanisms.claim import Effect, Mechanism

COUNTER = "MEDVL_TEST_COUNTER"


def run(seed: int, *, quick: bool) -> dict[str, float]:
    """Numbers of the seed; leaves a line in the file that the environment names."""
    with Path(os.environ[COUNTER]).open("a") as stream:
        stream.write(f"{seed} {quick}\n")
    if seed == 7:
        raise ValueError("seed 7 is refused")
    if seed == 8:
        sys.stderr.flush()
        os._exit(9)
    return {"old": 0.5, "new": 0.6 + 0.01 * seed}


MECHANISM = Mechanism(
    key="T1",
    title="a gain",
    claim="New is better | than old.",
    source="nobody 2000",
    setting="Numbers of the seed.",
    run=run,
    effects=(Effect("gain", "new", "old"), Effect("loss", "new", "old", "down", main=False)),
    tried="Nothing else.",
)
