"""Imports only point down, and each floor stays free of what it must not need."""

from __future__ import annotations

import ast
import functools
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TORCH_FREE = ["moe", "moe.spec", "moe.peers", "moe.cost", "moe.strategies", "moe.build",
              "runners.records.record", "runners.records.stats",
              "runners.plan", "runners.sweep.sweep", "runners.track.client",
              "analysis"]  # fmt: skip
TOPS = ("moe", "runners", "analysis")
# What each package may import beside itself; `moe` stands for all of it.
MAY_IMPORT = {
    "moe": "", "moe.knob": "", "moe.phases": "", "moe.waits": "",
    "moe.spec": "moe.knob",
    "moe.weights": "moe.spec",
    "moe.parallel": "moe.spec moe.phases moe.waits",
    "moe.workload": "moe.parallel moe.spec moe.weights",
    "moe.layer": "moe.workload moe.parallel moe.spec moe.weights moe.phases moe.waits",
    "moe.strategies": "moe.layer moe.workload moe.parallel moe.spec moe.weights moe.phases "
                      "moe.knob moe.waits",
    "moe.cost": "moe.strategies moe.workload moe.parallel moe.spec",
    "moe.peers": "moe.strategies moe.layer moe.parallel moe.spec moe.weights moe.phases moe.cost",
    "moe.build": "moe",
    "moe.step": "moe.layer moe.workload moe.parallel moe.spec moe.phases moe.waits",
    "moe.verify": "moe",
    "runners": "", "runners.errors": "",
    "runners.host": "runners.errors moe.spec",
    "runners.records": "runners.host moe.spec moe.knob moe.parallel",
    "runners.mpi": "runners.host",
    "runners.plan": "runners.records runners.errors moe.spec moe.knob",
    "runners.packed": "runners.plan runners.records runners.host runners.errors moe",
    "runners.config": "runners.packed runners.plan runners.mpi runners.records runners.host "
                      "runners.errors moe",
    "runners.launch": "runners.config runners.mpi runners.plan runners.records runners.host "
                      "runners.errors moe.spec",
    "runners.rank": "runners.launch runners.mpi runners.plan runners.records runners.host moe",
    "runners.track": "runners.packed runners.records runners.host moe.strategies",
    "runners.sweep": "runners.packed runners.launch runners.track runners.config runners.plan "
                     "runners.records runners.host runners.errors moe",
    "runners.bench": "runners", "runners.worker": "runners.rank",
    "runners.calibrate": "runners.rank",
    "analysis": "analysis", "analysis.errors": "", "analysis.numbers": "",
    "analysis.output": "analysis.errors",
    "analysis.data": "analysis.errors runners.records moe.spec moe.knob",
    "analysis.sources": "analysis.data analysis.errors runners.packed runners.records "
                        "runners.track runners.host moe.spec",
    "analysis.stats": "analysis.data analysis.errors analysis.numbers runners.records moe",
    "analysis.text": "analysis.stats analysis.data analysis.errors analysis.numbers "
                     "runners.packed runners.records runners.host moe",
    "analysis.plots": "analysis.text analysis.stats analysis.data analysis.errors "
                      "analysis.numbers analysis.output runners.host",
    "analysis.predict": "analysis.plots analysis.text analysis.stats analysis.data "
                        "analysis.errors analysis.numbers analysis.output runners.records "
                        "runners.host moe",
    "analysis.publish": "analysis.predict analysis.plots analysis.text analysis.stats "
                        "analysis.data analysis.errors analysis.output runners.packed "
                        "runners.track",
    "analysis.packing": "analysis.publish analysis.predict analysis.plots analysis.text "
                        "analysis.stats analysis.sources analysis.data analysis.errors "
                        "analysis.numbers analysis.output runners.packed runners.records "
                        "runners.host runners.track moe",
    "analysis.notebook": "analysis", "analysis.verbs": "analysis",
    "analysis.cli": "analysis runners.host",
    "analysis.__main__": "analysis",
}  # fmt: skip


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


def package(module: str) -> str:
    """moe.layer of moe.layer.base; a module that lies at the top is its own package."""
    return ".".join(module.split(".")[:2])


@functools.cache
def arrows() -> dict[str, set[str]]:
    """Modules of the project that each module imports, wherever in it, by name."""
    files = [path for top in TOPS for path in (ROOT / top).rglob("*.py")]
    names = {
        str(path.relative_to(ROOT).with_suffix(""))
        .replace("/", ".")
        .removesuffix(".__init__"): path
        for path in files
    }
    return {name: imported(path) & set(names) - {name} for name, path in names.items()}


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Nodes of a circle, or nothing."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_every_import_is_allowed_by_the_table() -> None:
    assert len(arrows()) > 150
    refused = []
    for module, below in arrows().items():
        allowed = set(MAY_IMPORT[package(module)].split())
        tops = {name for name in allowed if "." not in name}
        for other in below:
            own = package(other) in (package(module), package(module).split(".")[0])
            if not own and package(other) not in allowed and other.split(".")[0] not in tops:
                refused.append(f"{module} -> {other}")
    assert refused == []


def test_packages_import_each_other_in_one_direction() -> None:
    graph: dict[str, set[str]] = {}
    for module, below in arrows().items():
        graph.setdefault(package(module), set()).update(map(package, below))
    for name, below in graph.items():
        below -= {name, *TOPS}  # `analysis` itself is its public load()
    assert cycle(graph) == []


def test_no_module_is_in_a_circle() -> None:
    """Also by imports inside functions and under TYPE_CHECKING."""
    graph = {
        name: {other for other in below if not name.startswith(f"{other}.")}  # its own package
        for name, below in arrows().items()
    }
    assert cycle(graph) == []


@pytest.mark.parametrize("top", TOPS)
def test_few_files_lie_at_the_top(top: str) -> None:
    assert len(list((ROOT / top).glob("*.py"))) <= 8


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
