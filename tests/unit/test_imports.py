"""Imports only point down, and each floor stays free of what it must not need."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TORCH_FREE = ["moe", "moe.spec", "moe.peers", "moe.cost", "moe.strategies", "moe.build",
              "runners.records.record", "runners.records.stats",
              "runners.plan", "runners.sweep.sweep", "runners.track.client",
              "analysis"]  # fmt: skip


def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def roots(package: str) -> dict[str, set[str]]:
    return {
        str(path.relative_to(ROOT)): {name.split(".")[0] for name in imported(path)}
        for path in (ROOT / package).rglob("*.py")
    }


def test_moe_knows_no_hydra_no_wandb_and_nothing_above() -> None:
    banned = {"hydra", "omegaconf", "wandb", "runners", "analysis", "pandas", "json", "pickle"}
    files = roots("moe")
    assert len(files) > 10
    assert {path: found & banned for path, found in files.items() if found & banned} == {}


def test_moe_opens_no_files() -> None:
    for path in (ROOT / "moe").rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert not names & {"open", "Path"}, path


def test_analysis_takes_only_the_agreed_modules_from_below() -> None:
    allowed = {
        "runners.records.record",
        "runners.records.stats",
        "runners.records.flat_row",
        "runners.track.run",
    }
    allowed |= {"runners.track.log_file", "runners.track.client", "moe.spec", "moe.cost"}
    allowed |= {"moe.parallel.algorithms", "moe.parallel.rules", "runners.host.hardware"}
    allowed |= {"runners.track.decode", "runners.track.settings", "runners.host.project_paths"}
    allowed |= {"runners.sweep.resume", "runners.host.streams"}
    allowed |= {"moe.build", "moe.strategies", "moe.peers"}
    for path in (ROOT / "analysis").rglob("*.py"):
        below = {n for n in imported(path) if n.split(".")[0] in ("runners", "moe", "torch")}
        whole = {name for name in below if not any(n.startswith(f"{name}.") for n in below)}
        assert {n for n in whole if not n.startswith(tuple(allowed))} == set(), path
        assert "torch" not in below, path


def test_runners_do_not_import_analysis() -> None:
    assert all("analysis" not in found for found in roots("runners").values())


def test_no_file_in_runners_bears_the_name_of_another_module() -> None:
    taken = set(sys.stdlib_module_names) | {"torch", "hydra", "wandb", "numpy", "pandas"}
    assert not {path.stem for path in (ROOT / "runners").rglob("*.py")} & (taken - {"__main__"})


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("module", TORCH_FREE)
def test_modules_that_must_start_fast_load_no_torch(module: str) -> None:
    assert not loaded_by(f"import {module}") & {"torch", "wandb"}


def test_the_worker_loads_no_hydra_and_no_wandb() -> None:
    found = loaded_by("import runners.worker")
    assert "torch" in found
    assert not found & {"hydra", "omegaconf", "wandb", "pandas", "matplotlib", "scipy", "rich"}


def test_hydras_plugin_is_light() -> None:
    assert "torch" not in loaded_by("import runners.config.hydra_plugins")
