"""Our Hydra launcher under Hydra's own conformance suite."""

from __future__ import annotations

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.test_utils.launcher_common_tests import IntegrationTestSuite, LauncherTestSuite

from hydra_plugins.moe_launcher import MoeLauncher


def test_hydra_discovers_it() -> None:
    assert MoeLauncher.__name__ in [x.__name__ for x in Plugins.instance().discover(Launcher)]


@pytest.mark.parametrize("launcher_name, overrides", [("moe", ["hydra.job.chdir=true"])])
class TestMoeLauncher(LauncherTestSuite):
    """Jobs that are not the bench's run serially."""


@pytest.mark.parametrize(
    "task_launcher_cfg, extra_flags",
    [({}, ["-m", "hydra/job_logging=hydra_debug", "hydra/job_logging=disabled",
           "hydra/launcher=moe"])],
)  # fmt: skip
class TestMoeLauncherIntegration(IntegrationTestSuite):
    """The same through a real application."""
