"""A built wheel, installed away from the clone, does what the clone does, from any folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from runners.host import environment, project_paths
from runners.records import record
from tests.support import started

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 240
QUICK = [*started.QUICK, "tracker.mode=offline", "world_size=2", "measure.calibrate=false"]
OURS = ("moe", "runners", "analysis", "runners.config.hydra_plugins", "runners.worker")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the clone, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, with a space in its name, that holds the project and nothing of the clone."""
    folder = tmp_path_factory.mktemp("packages") / "site packages"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    done = subprocess.run(
        [*install, "--disable-pip-version-check", "--target", str(folder), str(wheel)],
        capture_output=True, text=True, timeout=LIMIT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A current folder with packages and a conf/ of its own that bear the names of ours."""
    for name in ("moe", "analysis", "runners", "conf"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise SystemExit('not our {name}')\n")
    return tmp_path


def ask(installed: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """`python ...`, or one of the installed commands, with the packages of this test only."""
    own = installed / "bin" / command[0]
    words = [sys.executable, *([str(own)] if own.exists() else [command[0]]), *command[1:]]
    return subprocess.run(
        words, cwd=folder, env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True, text=True, timeout=LIMIT_S,
    )  # fmt: skip


def test_the_wheel_has_every_config_and_no_package_that_is_anybodys(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    configs = {str(path.relative_to(ROOT)) for path in (ROOT / "conf").rglob("*.yaml")}
    assert {f"runners/{name}" for name in configs} <= set(names)
    own = {name.split("/")[0] for name in names}
    assert {name for name in own if not name.endswith(".dist-info")} == {
        "moe", "runners", "analysis"
    }  # fmt: skip


def test_everything_is_imported_from_where_it_is_installed(installed: Path, tmp_path: Path) -> None:
    code = f"""
import importlib
from runners.host import project_paths
for module in {OURS}:
    print(importlib.import_module(module).__file__)
print(project_paths.CONF, project_paths.CLONE, project_paths.BENCH, sep=chr(10))
"""
    done = ask(installed, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    *files, conf, clone, bench = done.stdout.splitlines()
    assert all(installed in Path(found).parents for found in [*files, conf])
    assert (clone, bench) == ("None", "moe-bench")  # whatever repository it is installed below


@pytest.mark.dist
def test_the_sweep_runs_from_a_folder_with_packages_of_the_same_names(
    installed: Path, elsewhere: Path
) -> None:
    quick = [word for word in QUICK if not word.startswith("report")]
    done = ask(installed, elsewhere, "moe-bench", "-m", "strategy=simple,ep", *quick)
    assert done.returncode == 0, done.stderr
    end = json.loads(done.stdout.splitlines()[-1])
    assert (end["measured"], end["tracked"], end["sweep_dir"][:8]) == (2, 2, "outputs/")
    assert "warning" not in done.stderr
    sweep = elsewhere / end["sweep_dir"]
    assert list(sweep.glob("plots/*.png")) and list(sweep.glob("tables/*.md"))
    found = [record.read(path) for path in record.paths(sweep)]
    assert [one.environment["git"] for one in found] == [None, None]
    plan = json.loads((sweep / "plan.json").read_text())
    assert plan["command"].startswith("moe-bench -m strategy=simple,ep")
    for command in (["moe-bench-analysis", "show"], ["moe-bench-analysis", "status"],
                    ["moe-bench-analysis", "advise", "--cluster", "h100", "--model", "olmoe_1b_7b"],
                    ["moe-bench", "resume=latest", "report=false"]):  # fmt: skip
        again = ask(installed, elsewhere, *command)
        assert again.returncode == 0, (command, again.stderr)


@pytest.mark.dist
def test_the_modules_run_as_the_commands_do(installed: Path, tmp_path: Path) -> None:
    done = ask(installed, tmp_path, "-m", "runners.bench", "strategy=tp", *QUICK)
    assert done.returncode == 0, done.stderr
    done = ask(installed, tmp_path, "-m", "analysis", "show", "--format", "csv")
    assert done.returncode == 0 and "tp" in done.stdout, done.stderr
    done = ask(installed, tmp_path, "-m", "runners.track", "--dir", "copy")
    assert json.loads(done.stdout.splitlines()[-1])["runs"] == 1, done.stderr
    assert list(tmp_path.glob("copy/wandb/*/run-*.wandb"))


@pytest.mark.parametrize("words", [["topk=11"], ["-m", "nope=1"], ["strategy=glob(x*)"]])
def test_what_is_refused_names_the_installed_command(
    installed: Path, tmp_path: Path, words: list[str]
) -> None:
    done = ask(installed, tmp_path, "moe-bench", *words)
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1 and "bench.py" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_processes_of_a_clone_take_nothing_from_the_current_folder(elsewhere: Path) -> None:
    for module in ("analysis", "runners.track"):
        done = subprocess.run(
            [sys.executable, "-m", module, "--help"], cwd=elsewhere, timeout=LIMIT_S,
            env={**os.environ, **project_paths.module_variables(os.environ)},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_a_clone_asks_git_and_keeps_the_users_path() -> None:
    found = project_paths.module_variables({"PYTHONPATH": "/mine"})
    assert found["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "/mine"]
    assert project_paths.module_variables({})["PYTHONPATH"] == str(ROOT)
    assert project_paths.CLONE == ROOT and environment.git_state(None) is None
