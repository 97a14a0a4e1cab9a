"""Reads records; makes tables, plots, verdicts and reports. Starts no ranks, never needs torch.

import analysis
frame = analysis.load("outputs/latest")     # one row per attempt, schema in docs/frame.md
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def load(sources: str | Path | Sequence[str | Path] = (), *, samples: bool = False) -> pd.DataFrame:
    """One row per attempt from sweep folders, .wandb files or "wandb:entity/project".

    No source means outputs/latest. With `samples`, columns of every sample come along. What is
    damaged is named in a SourceWarning and set aside; a source that is not there raises
    SourceError.
    """
    from analysis import sources as readers
    from analysis.data import frame

    names = [sources] if isinstance(sources, (str, Path)) else list(sources)
    return frame.to_frame(readers.load_rows(names, samples=samples), samples=samples)
