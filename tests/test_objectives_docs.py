"""The pages on objectives: their code runs, their tables name every option with its default."""

import re
from pathlib import Path

import pytest

from medvl.objectives import OBJECTIVES

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "objectives.md").read_text(encoding="utf-8")


def test_code_runs():
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "docs/objectives.md", "exec"), {})


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_tables_name_every_option(name):
    page = (DOCS / "objectives" / f"{name}.md").read_text(encoding="utf-8")
    section = page.split("\n| option | default | |\n")[1]
    documented = {}
    for names, values in re.findall(r"^\| (`.+?`) \| (.+?) \|", section, flags=re.MULTILINE):
        names, values = re.findall(r"`(\w+)`", names), values.replace("`", "").split(", ")
        documented |= dict(zip(names, values, strict=True))
    assert documented == {
        option: f"{value:g}" if isinstance(value, (int, float)) else str(value)
        for option, value in OBJECTIVES.options(name).items()
    }


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_overview_and_site_link_every_page(name):
    assert f"(objectives/{name}.md)" in PAGE
    assert f"objectives/{name}.md" in (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
