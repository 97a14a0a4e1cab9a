"""What every run of the tests ends with: its wall time beside the budget of `make test`."""

from __future__ import annotations

import os
import time

import pytest

BUDGET_S = 360  # of `make test` on two quiet cores
BEGAN_S = time.monotonic()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    wall_s = time.monotonic() - BEGAN_S
    terminalreporter.write_line(f"wall time {wall_s:.0f} s; budget of make test: {BUDGET_S} s")
