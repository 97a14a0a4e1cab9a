"""What `make test` ends with: its wall time beside its budget."""

from __future__ import annotations

import time

import pytest

BEGAN_S = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--budget", type=float, help="seconds that the whole run may take")


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if budget_s := config.getoption("--budget"):
        wall_s = time.monotonic() - BEGAN_S
        terminalreporter.write_line(f"wall time {wall_s:.0f} s; budget {budget_s:.0f} s")
