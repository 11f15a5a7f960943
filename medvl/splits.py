"""Patient-wise splits that never move a patient when data are added."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from medvl.errors import UsageError

SPLITS = ("train", "val", "test")


def split_of(patient_id: str, *, seed: int = 0, fractions: Sequence[float] = (0.8, 0.1, 0.1)) -> str:
    """Return the split of a patient: a function of the id and the seed alone.

    The id is hashed to u in [0, 1); the split is the first whose cumulated fraction exceeds u.
    All records of a patient therefore share a split, and adding patients moves nobody.

    Args:
        patient_id: any stable id of the patient or group.
        seed: another seed gives another split.
        fractions: shares of train, val and test; they sum to 1.

    Raises:
        UsageError: the fractions are not three non-negative numbers that sum to 1.

    Examples:
        >>> split_of("p1"), split_of("p1", seed=0)
        ('train', 'train')
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
        raise UsageError(
            f"split fractions are {tuple(fractions)}; allowed are three numbers >= 0 that sum to 1.",
            hint="For example 0.8 0.1 0.1.",
        )
    digest = hashlib.blake2b(f"{seed}:{patient_id}".encode(), digest_size=8).digest()
    u = int.from_bytes(digest, "big") / 2**64
    if u < fractions[0]:
        return "train"
    return "val" if u < fractions[0] + fractions[1] else "test"
