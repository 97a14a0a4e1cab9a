"""The example notebook: its code still runs (without Jupyter), and its outputs name no machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import analysis
from analysis import notebook
from analysis.errors import InputError
from tests.support import analysis_factory as factory

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "docs" / "example.ipynb"


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    forms = ("serial", "simple", "tp", "ep")
    records = [factory.measured(factory.cell(s, topk=k)) for s in forms for k in (2, 4)]
    factory.write_all(tmp_path / "outputs", records)
    (tmp_path / "outputs" / "sweep").rename(tmp_path / "outputs" / "latest")
    return tmp_path / "outputs" / "latest"


def code_cells() -> list[dict[str, Any]]:
    content = json.loads(EXAMPLE.read_text("utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


def test_the_examples_code_runs(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sweep.parents[1] / "docs"
    folder.mkdir()
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    for number, cell in enumerate(code_cells()):
        exec(compile("".join(cell["source"]), f"example cell {number}", "exec"), names)
    assert isinstance(names["frame"], pd.DataFrame) and len(names["frame"]) == 8


def test_the_example_was_executed_and_names_no_machine() -> None:
    outputs = [output for cell in code_cells() for output in cell["outputs"]]
    assert len(outputs) >= 5 and not any(o["output_type"] == "error" for o in outputs)
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 2
    text = EXAMPLE.read_text("utf-8")
    assert not any(word in text for word in ("/home/", "/tmp/", "/root/", str(ROOT)))
    assert EXAMPLE.stat().st_size < 200_000


def test_tables_pictures_and_words(sweep: Path) -> None:
    frame = analysis.load(sweep)
    found = notebook.table(frame, "topk_requested")
    assert list(found.columns) == ["serial", "simple", "tp", "ep"]
    assert found.index.tolist() == ["2", "4"] and "[" in found.loc["2", "ep"]
    picture = notebook.picture(frame, "speed_vs_top_k")
    assert isinstance(picture, notebook.Picture)
    assert picture._repr_png_().startswith(b"\x89PNG")
    assert notebook.verdict(frame).startswith("In short\n  serial is fastest")
    with pytest.raises(InputError, match="weak_scaling"):
        notebook.picture(frame, "weak_scaling")
