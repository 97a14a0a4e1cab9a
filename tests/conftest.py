"""How hypothesis draws, whatever else keeps the machine busy; and what `make test` ends with: its
wall time beside its budget."""

from __future__ import annotations

import sys
import time

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "shared machine",
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("shared machine")
BEGAN_S = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--budget", type=float, help="seconds that the whole run may take")


def pytest_collection_finish() -> None:
    """One thread for torch here: the cores have other tests and their ranks."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if budget_s := config.getoption("--budget"):
        wall_s = time.monotonic() - BEGAN_S
        terminalreporter.write_line(f"wall time {wall_s:.0f} s; budget {budget_s:.0f} s")
