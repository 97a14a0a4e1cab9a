"""Which package of moe may import which; no circle between them, nor between modules."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
GROUND = ("spec", "phases", "weights")
BELOW = {
    "spec": (),
    "phases": (),
    "weights": ("spec",),
    "parallel": ("spec", "phases"),
    "workload": ("parallel", "spec", "weights"),
    "layer": ("workload", "parallel", *GROUND),
    "strategies": ("layer", "workload", "parallel", *GROUND),
    "cost": ("strategies", "workload", "parallel", "spec"),
    "step": ("layer", "workload", *GROUND),
    "peers": ("layer", "strategies", "cost", "parallel", *GROUND),
    "build": ("peers", "cost", "strategies", "layer", "workload", "parallel", *GROUND),
}
BELOW["verify"] = tuple(BELOW)


def modules() -> dict[str, Path]:
    files = sorted((ROOT / "moe").rglob("*.py"))
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in files
    }


MODULES = modules()


def imports(path: Path) -> set[str]:
    """Modules of moe that a file imports, wherever in it and for whatever purpose."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inner & MODULES.keys() or {node.module}
    return {name for name in names if name.split(".")[0] == "moe"}


def package(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_every_package_imports_only_those_below_it() -> None:
    assert {package(name) for name in MODULES} == {"", *BELOW}
    wrong = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        for name in imports(path)
        if package(name) not in (package(module), *BELOW.get(package(module), ()))
    ]
    assert wrong == []


def test_no_module_needs_itself() -> None:
    needs = {module: imports(path) & MODULES.keys() for module, path in MODULES.items()}
    left = dict(needs)
    while free := [module for module, names in left.items() if not names & left.keys()]:
        for module in free:
            del left[module]
    assert left == {}


def test_packages_that_others_start_from_are_light() -> None:
    for name in ("layer", "parallel", "workload"):
        assert (ROOT / "moe" / name / "__init__.py").read_text("utf-8") == ""
