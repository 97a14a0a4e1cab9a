"""Our Hydra launchers under Hydra's own conformance suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.test_utils.launcher_common_tests import IntegrationTestSuite, LauncherTestSuite

from runners.config.hydra_plugins import MoeLauncher, RayLauncher, SlurmLauncher, register

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def every_program_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process, which forgets what was registered after each of Hydra's tests; and programs
    other than the bench, which find plugins in a package `hydra_plugins` only."""
    register()
    folder = tmp_path / "path" / "hydra_plugins"
    folder.mkdir(parents=True)
    (folder / "moe.py").write_text("from runners.config.hydra_plugins import *\n")
    path = [str(folder.parent), str(ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))


NAMES = ["moe", "ray", "slurm"]


def test_hydra_discovers_them() -> None:
    classes = Plugins.instance().discover(Launcher)
    assert {MoeLauncher, RayLauncher, SlurmLauncher} <= set(classes)


@pytest.mark.parametrize(
    "launcher_name, overrides", [(name, ["hydra.job.chdir=true"]) for name in NAMES]
)
class TestLaunchers(LauncherTestSuite):
    """Jobs that are not the bench's run serially, without Ray or Slurm."""


@pytest.mark.parametrize(
    "task_launcher_cfg, extra_flags",
    [({}, ["-m", "hydra/job_logging=hydra_debug", "hydra/job_logging=disabled",
           f"hydra/launcher={name}"]) for name in NAMES],
)  # fmt: skip
class TestLaunchersIntegration(IntegrationTestSuite):
    """The same through a real application."""
