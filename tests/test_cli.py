"""The command: what it prints, how it ends, and that it starts in a blink."""

import json
import subprocess
import sys

import pytest

from medvl.cli import build_parser, main


def run(capsys, *words):
    status = main([str(word) for word in words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom medvl.cli import build_parser\nbuild_parser().format_help()\n"
        "heavy = ('torch', 'numpy', 'pandas', 'pydicom', 'pydantic', 'monai', 'rich')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and done.stderr == ""


def test_importing_medvl_warns_of_nothing_and_loads_no_torch():
    code = "import sys, medvl\nprint('torch' in sys.modules, sorted(medvl.__all__) == dir(medvl))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "True"] and done.stderr == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("cxr", "trian"), "unknown command 'trian'. Allowed: demo, prepare, train. Did you mean 'train'?"),
        (("phantom", "cxx", "out"), "unknown modality 'cxx'. Allowed: ct, cxr. Did you mean 'cxr'?"),
        (("evaluate", "run", "store", "--split", "train"), "unknown split 'train'. Allowed: test, val."),
        (("cxr", "prepare", "--column", "text", "a", "b"), "--column 'text' is not KEY=VALUE."),
        (("cxr", "train"), "train needs DATA and OUT."),
        (("index", "only"), "index needs BUNDLE, DATA and INDEX."),
        (("cxr", "train", "--recipe", "mutli", "--print-recipe"), "unknown cxr recipe 'mutli'."),
        (("search", "no-such-index", "--text", "x"), "there is no index at this path."),
        (("transfer", "a", "b", "--task", "parts", "out", "more"), "unrecognized arguments: more."),
        (("ct", "prepare", "a", "b", "--frame", "-1"), "frame is -1: Input should be greater than or equal"),
        (("phantom", "ct", "out", "--findings", "nodule"), "no phantom has the finding 'nodule'. Allowed: "),
    ],
)
def test_wrong_calls_say_what_is_allowed(capsys, words, message):
    status, out, err = run(capsys, *words)
    assert status == (4 if "no-such-index" in words else 2)
    assert err.startswith("medvl: ") and message in err and err.count("\n") == 1 and out == ""


@pytest.mark.parametrize(
    "words",
    [
        ("a", "b", "out", "--task", "labels"),
        ("a", "b", "--task", "labels", "out"),
        ("a", "--task", "labels", "b", "out"),
        ("--task", "labels", "a", "b", "out"),
        ("--task", "labels", "--", "a", "b", "out"),
    ],
)
def test_options_stand_before_between_and_after_arguments(words):
    found = build_parser().parse_args(["transfer", *words])
    assert (str(found.model), str(found.data), str(found.out), found.task) == ("a", "b", "out", "labels")


def test_what_follows_two_dashes_is_no_option():
    found = build_parser().parse_args(["transfer", "--task", "labels", "--", "-a", "--task"])
    assert (str(found.model), str(found.data), found.out, found.task) == ("-a", "--task", None, "labels")


def test_errors_as_json(capsys):
    status, out, _ = run(capsys, "search", "no-such-index", "--text", "x", "--json")
    assert status == 4
    assert json.loads(out) == {
        "code": "IndexFileError",
        "message": "there is no index at this path.",
        "hint": "Make one: medvl index BUNDLE STORE INDEX",
    }


def test_an_empty_column_name_turns_the_role_off(capsys, tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "reports.csv").write_text("image,split,text\na.png,train,Normal.\n", "utf-8")
    status, _, err = run(
        capsys, "cxr", "prepare", tmp_path / "source", tmp_path / "out", "--column", "image=", "--quiet"
    )
    assert status == 4 and "has no column that names an image or a study" in err


def test_a_refused_path_is_an_error_of_one_line_that_names_no_file(capsys, tmp_path):
    status, out, err = run(
        capsys, "cxr", "prepare", tmp_path, tmp_path / "out", "--key", tmp_path / "DOE_JOHN", "--json"
    )
    assert status == 2 and json.loads(out)["code"] == "UsageError"
    assert err.startswith("medvl: the system refused the file or folder file-")
    assert "No such file or directory." in err and "DOE_JOHN" not in err and err.count("\n") == 1


def test_print_recipe_shows_the_resolved_whole(capsys):
    import yaml

    status, out, _ = run(
        capsys, "cxr", "train", "--recipe", "clip", "--set", "schedule.epochs=7", "--print-recipe"
    )
    values = yaml.safe_load(out)
    assert status == 0 and values["schedule"]["epochs"] == 7 and values["objective"]["name"] == "clip"
    assert values["optimiser"]["betas"], "defaults are printed too"
    status, out, _ = run(
        capsys, "cxr", "train", "--recipe", "clip", "--set", "schedule.epochs=7", "--print-recipe", "--json"
    )
    assert status == 0 and json.loads(out) == values


def test_recipes_and_doctor(capsys):
    status, out, _ = run(capsys, "recipes")
    assert status == 0 and {line.split()[1] for line in out.splitlines()} >= {
        "clip",
        "mgca",
        "multi",
        "starter",
        "vit-b",
    }
    status, out, _ = run(capsys, "doctor", "--json")
    assert status == 0 and json.loads(out)["machine"]["python"] == sys.version.split()[0]


def test_the_road_by_command(capsys, tmp_path, tiny_bundle, tiny_store):
    films, store, index = tmp_path / "films", tmp_path / "store", tmp_path / "index"
    status, out, err = run(
        capsys, "phantom", "cxr", films, "--n", 6, "--seed", 1, "--size-px", 96, "--workers", 1
    )
    assert status == 0 and "Synthetic: no patient" in out and "drawing phantoms: 6" in err
    # A file that is not an image costs one item: exit status 3 and its rule in the list.
    next(films.rglob("*.dcm")).write_bytes(b"")
    status, out, _ = run(capsys, "cxr", "prepare", films, store, "--json", "--workers", 1, "--longest-px", 64)
    summary = json.loads(out)
    assert status == 3 and summary["failed"] == 1
    assert json.loads((store / "failures.jsonl").read_text())["rule"] == "NotDicom"
    status, out, _ = run(capsys, "index", tiny_bundle, tiny_store, index)
    assert status == 0 and "exact" in out
    status, out, _ = run(capsys, "search", index, "--text", "no pneumothorax", "--k", 2, "--json")
    assert status == 0 and len(json.loads(out)["hits"]) == 2
    status, out, _ = run(capsys, "search", index, "--text", "nodule", "--where", "wiew = 'PA'")
    assert status == 2
    status, out, _ = run(capsys, "index", index, "--delete-patient", "nobody")
    assert status == 0 and out.startswith("0 records erased")


def test_every_verb_has_help_and_the_notice(capsys):
    parser = build_parser()
    verbs = next(a for a in parser._actions if a.dest == "verb").choices
    assert {"cxr", "evaluate", "export", "index", "search", "phantom", "recipes", "doctor"} <= set(verbs)
    for verb in verbs.values():
        assert "Research use only" in verb.format_help()
