"""The packages of the analysis import only those below them, and the top holds few files."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ANALYSIS = Path(__file__).resolve().parents[3] / "analysis"
GROUND = {"errors", "numbers", "output"}
BELOW = {
    "data": set(),
    "sources": {"data"},
    "stats": {"data"},
    "text": {"data", "stats"},
    "plots": {"data", "stats", "text"},
    "predict": {"data", "stats", "plots"},
    "publish": {"data", "sources", "stats", "text", "plots", "predict"},
}  # type: dict[str, set[str]]
TOP = {"__init__", "__main__", "cli", "verbs", "errors", "numbers", "notebook", "output"}


def imported(path: Path) -> set[str]:
    """First names below `analysis` that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "analysis":
            names |= {f"analysis.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module))
    return {name.split(".")[1] for name in names if name.startswith("analysis.")}


@pytest.mark.parametrize("package", sorted(BELOW))
def test_a_package_imports_only_those_below_it(package: str) -> None:
    files = list((ANALYSIS / package).glob("*.py"))
    assert len(files) > 1
    for path in files:
        assert imported(path) <= {package} | BELOW[package] | GROUND, path


def test_ground_modules_import_nothing_of_the_analysis() -> None:
    for name in GROUND:
        assert imported(ANALYSIS / f"{name}.py") <= GROUND, name


def test_few_files_are_at_the_top() -> None:
    assert {path.stem for path in ANALYSIS.glob("*.py")} <= TOP
