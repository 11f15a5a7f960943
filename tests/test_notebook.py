"""The notebook runs from top to bottom as its reader would run it, on fewer studies."""

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "deploy" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "a notebook is committed without outputs"
    settings = next(cell for cell in notebook.cells if "STUDIES = 600" in cell.source)
    settings.source = settings.source.replace("STUDIES = 600", "STUDIES = 60").replace(
        "EPOCHS = 12", "EPOCHS = 1"
    )
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    printed = "".join(
        output.get("text", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    )
    assert "zero-shot AUROC" in printed and "R@5" in printed
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 1 and (tmp_path / "first-model/run/evaluation/report.html").is_file()
