"""How a sweep was scheduled: which cells shared processes, and how many were interleaved."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from analysis.packing.environment_facts import CELLS_IN_WAVE, ISOLATION


def with_schedule(frame: pd.DataFrame, isolations: Mapping[str, str]) -> pd.DataFrame:
    """The frame of whole sweeps with two columns more: its sweep's isolation, None where its plan
    does not say, and the number of cells that were measured in its wave."""
    waves = frame.groupby(["sweep", "launch", "wave"], dropna=False)["cell_id"]
    return frame.assign(**{
        ISOLATION: pd.Series([isolations.get(str(name)) for name in frame["sweep"]],
                             index=frame.index, dtype="object"),
        CELLS_IN_WAVE: waves.transform("nunique").where(frame["wave"].notna()),
    })  # fmt: skip
