"""docs/tour.ipynb runs from a clean kernel, and is committed with what it showed."""

import os

import pytest
from documents import ROOT

NOTEBOOK = ROOT / "docs" / "tour.ipynb"
nbformat = pytest.importorskip("nbformat")


def shown(notebook) -> str:
    """The text that its cells printed."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def test_it_is_committed_with_its_outputs():
    assert NOTEBOOK.stat().st_size < 300_000
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert shown(notebook).count(" is taken for ") == 5
    assert "/tmp/" not in str(notebook.cells), "a path of the machine it ran on"


@pytest.mark.slow
def test_it_runs_from_a_clean_kernel(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    before = [cell.source for cell in notebook.cells]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    client.execute()
    assert [cell.source for cell in notebook.cells] == before
    accuracy = float(shown(notebook).partition("% of the test images")[0].rpartition("\n")[2])
    assert accuracy > 90
    assert shown(notebook).count(" is taken for ") == 5
