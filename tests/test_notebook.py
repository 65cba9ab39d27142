"""docs/helloworld.ipynb runs from its first cell to its last."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent


def run_cell(source: str, names: dict[str, object]) -> object:
    """Run a cell as a notebook does, and return what it would show: the value of a last line that is a value."""
    tree = ast.parse(source)
    last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(last, "cell", "eval"), names) if last else None


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NOTEBOOK_OUT", str(tmp_path / "out"))
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "docs" / "helloworld.ipynb").read_text("utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell.get("outputs") for cell in notebook["cells"])  # nothing of a run is committed
    names: dict[str, object] = {}
    shown = [run_cell(cell, names) for cell in cells]
    photograph, pair = shown[1], shown[3]
    assert isinstance(photograph, Image.Image) and photograph.size == (256, 256)
    assert pair.size == (512, 256) and pair.crop((0, 0, 256, 256)).tobytes() == photograph.convert("RGB").tobytes()
    assert len(pair.crop((256, 0, 512, 256)).getcolors()) == 2  # background and buildings
    assert names["found"].iou > 0.3
    assert f"IoU {names['found'].iou:.3f}" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
