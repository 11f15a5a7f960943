"""The reader truth table: what medvl makes of each case, and that one rule judges all readers."""

from __future__ import annotations

import numpy as np
import pytest
from studies.readers import READERS, Case, cases, holds, judge, outcome, table

EXPECTED = {
    "hole of 202 mm": (2, "refuses (gap)"),
    "two scouts": (3, "refuses (localizer)"),
    "radial MR": (2, "refuses (mixed_orientation)"),
    "MONOCHROME1 film": (8, "right (values kept)"),
    "13-bit J2K with a wrong sign flag": (7, "right, says so"),  # its padding is raised, with a note
    "enhanced multi-frame MR": (10, "right (z spacing 1)"),
    "one slice 5 mm thick": (4, "right (z spacing 5), says so"),
    "one slice, SpacingBetweenSlices 20": (4, "right (z spacing 5), says so"),
    "InstanceNumber swapped": (1, "right"),
    "InstanceNumber missing once": (1, "right"),
    "two slices at one position": (2, "refuses (duplicate_position)"),
    "a slope of each slice's own": (5, "right"),
    "gantry tilt of 22 degrees": (2, "refuses (tilt)"),
    "two series in one folder": (19, "right (2 volumes)"),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, Case]:
    return {case.name: case for case in cases(tmp_path_factory.mktemp("readers"))}


@pytest.mark.parametrize(
    "name, expected",
    [
        pytest.param(name, expected, marks=pytest.mark.traps(row=row))
        for name, (row, expected) in EXPECTED.items()
    ],
)
def test_what_medvl_makes_of_a_case(found, name, expected):
    assert outcome(found[name], "medvl") == expected


def test_every_case_is_expected_and_printed(found, tmp_path):
    assert set(found) == set(EXPECTED)
    lines = table(tmp_path, ["medvl"])
    assert len(lines) == 2 + len(EXPECTED) and all(
        verdict in "\n".join(lines) for _, verdict in EXPECTED.values()
    )


@pytest.mark.parametrize("reader", ["SimpleITK", "highdicom"])
def test_other_readers_are_judged_by_the_same_rule(found, reader):
    """SimpleITK stacks scouts without a word and inverts the film; highdicom refuses both, and CT2."""
    pytest.importorskip(READERS[reader][0])
    for name in ("two scouts", "gantry tilt of 22 degrees"):
        judged = outcome(found[name], reader)
        assert (
            judged.startswith("wrong") and judged.endswith("silent")
            if reader == "SimpleITK"
            else (judged == "refuses (ValueError)")
        )
    assert outcome(found["a slope of each slice's own"], reader) == "right"


def test_a_shifted_volume_is_wrong(found):
    case = found["InstanceNumber swapped"]
    volumes = READERS["medvl"][1](case.folder)
    ((array, affine),) = volumes
    assert judge(case, volumes) == "right"
    moved = affine.copy()
    moved[2, 3] += 2.5
    assert judge(case, [(array, moved)]) == "wrong (5 of 5 slices not where they lie)"
    assert judge(case, [(array[::-1], affine)]).startswith("wrong (4 of 5")  # the middle one stays
    place, value = case.slices[0][0]
    assert holds((array, affine), place, value) and not holds((array, affine), place + 0.1, value)
    assert not holds((array, np.zeros((4, 4))), place, value)
