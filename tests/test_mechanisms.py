"""The runner of mechanism experiments: kept cells, shown failures, numbers that scipy confirms."""

from __future__ import annotations

import json
import math

import mechanismcases
import numpy as np
import pytest
from scipy import stats

from medvl.errors import UsageError
from medvl.mechanisms import cells, runner
from medvl.mechanisms.cells import cell_digest
from medvl.mechanisms.claim import Effect, Mechanism
from medvl.mechanisms.judge import judge, overall
from medvl.mechanisms.report import MechanismsSummary, summarise, write_report
from medvl.mechanisms.runner import CATALOGUE, QUICK, mechanisms

CASES = {"T1": "mechanismcases"}


def runs_of(*gains):
    return [{"old": 0.5, "new": 0.5 + gain} for gain in gains]


@pytest.fixture
def counter(tmp_path, monkeypatch):
    path = tmp_path / "counter.txt"
    monkeypatch.setenv(mechanismcases.COUNTER, str(path))
    return path


def test_interval_and_sign_test_are_scipys():
    gains = (0.10, 0.14, 0.05, 0.11, 0.02)
    judged = judge(Effect("gain", "new", "old"), runs_of(*gains))
    low, high = stats.t.interval(0.95, 4, loc=np.mean(gains), scale=stats.sem(gains))
    assert (judged.low, judged.high) == pytest.approx((low, high), abs=1e-12)
    assert judged.mean == pytest.approx(0.084)
    # Five of five by chance: 1/2 to the fifth.
    assert judged.sign_p == pytest.approx(1 / 32)
    mixed = judge(Effect("gain", "new", "old"), runs_of(0.1, 0.1, 0.1, -0.1, -0.1))
    assert mixed.sign_p == pytest.approx(stats.binomtest(3, 5, alternative="greater").pvalue)


@pytest.mark.parametrize(
    ("wanted", "slack", "gains", "verdict"),
    [
        ("up", 0.0, (0.10, 0.11, 0.12), "reproduced"),
        # 0.05 ± 0.049: all right, but the mean is below two standard errors (2 × 0.0285).
        ("up", 0.0, (0.001, 0.049, 0.1), "direction only"),
        ("up", 0.0, (0.10, 0.11, -0.01), "direction only"),
        ("up", 0.0, (0.0, 0.0, 0.0), "not reproduced"),
        ("up", 0.0, (-0.10, -0.11, 0.01), "not reproduced"),
        ("down", 0.0, (-0.10, -0.11, -0.12), "reproduced"),
        ("down", 0.0, (0.10, 0.11, 0.12), "not reproduced"),
        ("up", 0.05, (-0.01, -0.012, -0.011), "reproduced"),
        ("down", 0.05, (0.01, 0.012, 0.06), "direction only"),
        ("none", 0.05, (0.01, -0.012, 0.011), "reproduced"),
        ("none", 0.05, (0.01, -0.012, 0.06), "direction only"),
        ("none", 0.0, (0.01, -0.012, 0.06), "not reproduced"),
        ("up", 0.0, (0.3,), "direction only"),
    ],
)
def test_verdicts(wanted, slack, gains, verdict):
    assert judge(Effect("gain", "new", "old", wanted, slack), runs_of(*gains)).verdict == verdict


def test_two_standard_errors_are_the_border():
    # Gains m ± d, n = 2: SE = d, so the mean is above 2 SE if and only if m > 2 d.
    effect = Effect("gain", "new", "old")
    assert judge(effect, runs_of(0.20 - 0.099, 0.20 + 0.099)).verdict == "reproduced"
    assert judge(effect, runs_of(0.20 - 0.101, 0.20 + 0.101)).verdict == "direction only"


def test_a_claim_of_no_difference_has_no_sign_test():
    judged = judge(Effect("gap", "new", "old", "none", 0.1), runs_of(0.01, -0.02))
    assert judged.sign_p is None
    assert judged.right == 2


def test_an_effect_may_be_a_number_itself():
    assert Effect("loss", "x", wanted="none", slack=0.1).of({"x": 0.05}) == 0.05


def test_the_worst_main_effect_gives_the_verdict():
    def mechanism(*effects):
        return Mechanism("T2", "", "", "", "", mechanismcases.run, effects)

    gain, loss = Effect("gain", "new", "old"), Effect("loss", "new", "old", "down")
    beside = Effect("loss", "new", "old", "down", main=False)
    judged = [judge(effect, runs_of(0.1, 0.11)) for effect in (gain, loss, beside)]
    assert overall(mechanism(gain, loss), judged[:2]) == "not reproduced"
    assert overall(mechanism(gain, beside), [judged[0], judged[2]]) == "reproduced"
    assert overall(mechanism(beside), judged[2:]) == "not reproduced"


def test_cells_are_kept_and_a_run_goes_on(tmp_path, counter):
    out = tmp_path / "out"
    first = mechanisms(out, quick=True, seeds=1, workers=1, catalogue=CASES, only=["T1"])
    assert counter.read_text() == "0 True\n"
    assert (first.exit_code, first.rows[0].verdict) == (0, "direction only")
    told = []
    second = mechanisms(
        out,
        quick=True,
        seeds=2,
        workers=2,
        catalogue=CASES,
        only=["T1"],
        progress=lambda done, total, message: told.append((done, total, message)),
    )
    # Seed 0 is not measured again.
    assert counter.read_text() == "0 True\n1 True\n"
    assert told == [(1, 2, "cells"), (2, 2, "cells")]
    assert second.rows[0].judged[0].values == pytest.approx((0.10, 0.11))
    assert second.rows[0].verdict == "reproduced"
    assert len(list((out / "cells").glob("T1-*-quick-*.json"))) == 2
    page = (out / "mechanisms.md").read_text("utf-8")
    assert "New is better \\| than old." in page
    assert "| gain | > 0 | +0.105 |" in page
    assert "| loss (beside) | < 0 | +0.105 |" in page
    assert "| new | 0.600 | 0.610 | 0.605 |" in page
    stored = json.loads((out / "mechanisms.json").read_text("utf-8"))
    assert stored["mechanisms"][0]["effects"][0]["sign_p"] == 0.25
    html = (out / "mechanisms.html").read_text("utf-8")
    assert html.count("<svg") == 1 and "http://" not in html.split("</svg>")[1]


def test_failures_are_shown_and_tried_again(tmp_path, counter, monkeypatch):
    monkeypatch.setattr(runner, "_FIRST_SEED", 7)
    for _ in range(2):
        summary = mechanisms(tmp_path / "out", seeds=3, workers=2, catalogue=CASES)
        assert summary.exit_code == 3
        (row,) = summary.rows
        assert row.verdict == "failed"
        assert row.seeds == (9,)
        assert row.errors[0] == "seed 7: ValueError: seed 7 is refused"
        assert row.errors[1].startswith("seed 8: BrokenProcessPool")
        assert any("failed: seed 7" in line for line in summary.lines())
        assert "- failed, seed 7" in (tmp_path / "out" / "mechanisms.md").read_text("utf-8")
    # Seed 9 once, the failed ones twice.
    assert sorted(counter.read_text().split("\n"))[1:] == ["7 False"] * 2 + ["8 False"] * 2 + ["9 False"]


def test_a_missing_module_is_a_failure(tmp_path):
    summary = mechanisms(tmp_path, seeds=1, workers=1, catalogue={"T9": "medvl.mechanisms.nowhere"})
    assert summary.rows[0].verdict == "failed"
    assert summary.rows[0].errors == (
        "seed 0: UsageError: mechanism T9 has no module medvl.mechanisms.nowhere.",
    )
    assert summary.exit_code == 3


def test_the_digest_follows_code_and_not_words(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    base = (
        '"""Words."""\nfrom medvl.mechanisms.nets import fit\n\n\n'
        'def run(seed):\n    """Say."""\n    return seed\n'
    )

    def digest(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        return cell_digest(name)

    same = digest("digest_a", base)
    reworded = base.replace("Words.", "Other.").replace("Say.", "Tell.") + '\n\n# why\nMECHANISM = "claim"\n'
    assert digest("digest_b", reworded) == same
    assert digest("digest_c", base.replace("return seed", "return seed + 1")) != same
    # What the module imports from the room counts too.
    assert digest("digest_d", base.replace("from medvl.mechanisms.nets import fit", "fit = 1")) != same


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"only": ["C11"]}, r"unknown mechanism 'C11'.*'C1'"),
        ({"seeds": 0}, r"seeds is 0 and workers 2"),
        ({"workers": 0}, r"workers 0\. Allowed: 1 or more of each"),
    ],
)
def test_calls_that_make_no_sense(tmp_path, arguments, message):
    with pytest.raises(UsageError, match=message):
        mechanisms(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_the_quick_set_is_in_the_catalogue():
    assert set(QUICK) <= set(CATALOGUE)
    assert set(QUICK) == {"C1", "C2", "C3", "C7", "C12"}
    assert runner._wanted([], quick=True, catalogue=CATALOGUE) == list(QUICK)
    assert runner._wanted([], quick=False, catalogue=CATALOGUE) == list(CATALOGUE)
    assert runner._wanted(["C12", "C1"], quick=True, catalogue=CATALOGUE) == ["C1", "C12"]


@pytest.mark.parametrize("key", CATALOGUE)
def test_each_module_of_the_catalogue_is_its_mechanism(key):
    mechanism = cells.load(CATALOGUE[key])
    assert mechanism is not None
    assert mechanism.key == key
    assert any(effect.main for effect in mechanism.effects)
    assert mechanism.claim and mechanism.source and mechanism.setting


def test_a_report_without_any_number(tmp_path):
    row = summarise("T1", mechanismcases.MECHANISM, [], ["seed 0: ValueError: no"])
    machine = {"python": "3", "torch": "2", "processor": "x", "cores": 2}
    summary = MechanismsSummary(tmp_path, (row,), quick=False, seeds=1, wall_s=1.0, machine=machine)
    write_report(summary)
    assert "**failed**" in (tmp_path / "mechanisms.md").read_text("utf-8")
    assert math.isclose(summary.to_json()["cpu_s"], 0.0)
