"""How near a cell is to what its machine can do: limits from the calibration in its record."""

from __future__ import annotations

import pandas as pd


def wrong(cells: pd.DataFrame) -> list[str]:
    return []


def rows(cells: pd.DataFrame) -> list[list[str]]:
    return []
