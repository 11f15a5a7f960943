"""The project itself: layers, surface, no stray paths, size of files, honest example code."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SOURCES = sorted(
    path
    for folder in ("medvl", "preprocess", "recipes", "deploy", "tests")
    for path in (REPOSITORY / folder).rglob("*.py")
)
TRACKED = (
    subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        check=False,
    )
    .stdout.decode()
    .split("\0")
)


def test_the_shape_checker_is_on():
    """A deliberately wrong call must raise, so that the hook cannot be off without notice."""
    import numpy as np

    from medvl.specs import InputSpec

    with pytest.raises(Exception, match=r"(?i)type-check|beartype|violates"):
        InputSpec().letterbox(np.zeros((4, 4, 4), np.uint8))


def test_the_network_guard_is_on():
    import socket

    with (
        socket.socket() as probe,
        pytest.raises(AssertionError, match=r"a test tried to reach '192\.0\.2\.1'"),
    ):
        probe.connect(("192.0.2.1", 80))  # TEST-NET-1 of RFC 5737: routed nowhere


def test_layers(tmp_path):
    """Import-linter reads one package folder, so the four top-level folders are laid together first."""
    shutil.copytree(REPOSITORY / "medvl", tmp_path / "medvl")
    for room in ("preprocess", "recipes", "deploy"):
        shutil.copytree(REPOSITORY / room, tmp_path / "medvl" / room)
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run(
        [linter, "--config", REPOSITORY / "pyproject.toml", "--no-cache"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kept, 0 broken" in done.stdout


def test_no_file_is_long():
    long = {
        str(path.relative_to(REPOSITORY)): n
        for path in SOURCES
        if (n := len(path.read_text().splitlines())) > 400
    }
    assert long == {}


def test_no_path_of_a_machine_in_the_tree():
    pattern = re.compile(r"(?<![\w.])/(home|root|mnt|work|farm|opt|Users)/\w")
    found = [
        f"{name}:{number}"
        for name in TRACKED
        if name
        and (REPOSITORY / name).suffix in {".py", ".md", ".toml", ".yaml", ".yml", ".ipynb", ".html", ""}
        for number, line in enumerate((REPOSITORY / name).read_text("utf-8", "replace").splitlines(), 1)
        if pattern.search(line) and "/usr/bin/env" not in line
    ]
    assert found == []


def test_every_module_says_its_one_idea_first():
    missing = [
        str(path.relative_to(REPOSITORY))
        for path in SOURCES
        if "tests" not in path.parts and not path.read_text().lstrip().startswith(('"""', 'r"""'))
    ]
    assert missing == []


def test_every_error_class_is_public_and_in_the_drawn_tree():
    import medvl.errors as errors

    classes = {n for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, Exception)}
    assert classes <= set(errors.__all__)
    assert all(name in errors.__doc__ for name in classes)


def test_pickle_is_never_loaded():
    """One exception: the weights that an installed package ships as a .pth, read with weights_only."""
    pattern = re.compile(r"torch\.load\(|pickle\.load|allow_pickle=True|joblib\.load|\beval\(|yaml\.unsafe")
    found = {
        f"{path.name}: {line.strip()}"
        for path in SOURCES
        if "tests" not in path.parts
        for line in path.read_text().splitlines()
        if pattern.search(line) and ".eval(" not in line
    }
    shipped = 'net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))'
    assert found == {f"efficientnet.py: {shipped}"}


def test_the_two_commands_of_the_readme_exist():
    makefile = (REPOSITORY / "Makefile").read_text()
    readme = (REPOSITORY / "README.md").read_text()
    for target in ("demo", "test"):
        assert f"make {target}" in readme and re.search(rf"^{target}:", makefile, re.M)
    assert "Research use only. Not a medical device." in readme


def _documented_commands():
    pages = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    for page in pages:
        for line in page.read_text().splitlines():
            if line.startswith("    medvl "):
                yield pytest.param(line.split("#")[0].strip(), id=f"{page.name}: {line.strip()[:50]}")


@pytest.mark.parametrize("command", list(_documented_commands()))
def test_every_command_in_the_documentation_is_accepted(command):
    from medvl.cli import build_parser

    words = shlex.split(command)[1:]
    if "--help" not in words and "doctor" not in words:
        build_parser().parse_args(words)


def test_the_python_of_the_readme_calls_what_exists():
    import inspect

    import medvl
    from medvl.model import Model

    block = re.search(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.S)
    calls = [node for node in ast.walk(ast.parse(block[1])) if isinstance(node, ast.Call)]
    assert len(calls) >= 9
    for call in calls:
        owner = medvl if call.func.value.id == "medvl" else Model
        function = getattr(owner, call.func.attr)
        arguments = [None] * (len(call.args) + (owner is Model))
        inspect.signature(function).bind(*arguments, **{k.arg: None for k in call.keywords})


def _doctest_modules():
    packages = {"preprocess": "medvl.preprocess", "recipes": "medvl.recipes", "medvl": "medvl"}
    for path in SOURCES:
        relative = path.relative_to(REPOSITORY)
        if relative.parts[0] in packages and ">>>" in path.read_text():
            parts = [packages[relative.parts[0]], *relative.with_suffix("").parts[1:]]
            yield ".".join(parts).removesuffix(".__init__")


@pytest.mark.parametrize("module", list(_doctest_modules()))
def test_examples_in_docstrings(module):
    import doctest
    import importlib

    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0 and result.failed == 0
