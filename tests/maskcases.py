"""A lung and a heart on the series of ctcases, and the road from a folder to the parts of a volume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ctcases import PLAIN

from medvl.anatomy import PARTS
from medvl.preprocess.pictures import Shown, show_volume
from medvl.preprocess.plan import Job
from medvl.preprocess.planning import Tables, pair_source, plan_jobs, volume_source
from medvl.preprocess.pseudonyms import Pseudonyms
from medvl.preprocess.sources.pairing import Pairing

NUMBER = {part: number for number, part in enumerate(PARTS["ct"], start=1)}


def planned(folder: Path, *, masks: Path | None = None) -> tuple[list[Job], Pairing]:
    volumes = volume_source(PLAIN, "ct", masks=masks, structures=None)
    paired, _ = pair_source(folder, Tables(), modality="ct", volumes=volumes)
    return plan_jobs(folder, paired, ids=Pseudonyms(bytes(32)), split=(0.8, 0.1, 0.1), seed=0), paired


def shown(job: Job) -> Shown:
    return show_volume(job, PLAIN, allow_gaps=False, on_irregular="reject")


def expected(stored_shape: tuple[int, int, int], *regions: tuple[tuple[slice, ...], str]) -> np.ndarray:
    """Return parts on the stored grid of ctcases: (column, row, slice) turned to (right, front, top)."""
    parts = np.zeros(stored_shape, np.uint8)
    for region, part in regions:
        parts[region] = NUMBER[part]
    return parts[::-1, ::-1]


HEART = (slice(2, 6), slice(3, 8), slice(1, 4))
LUNG = (slice(6, 11), slice(0, 9), slice(0, 5))


def label_map() -> np.ndarray:
    values = np.zeros((12, 10, 6), np.uint8)
    values[LUNG] = 4
    values[HEART] = 9
    return values
