"""`export`: the whole frame as CSV, Parquet, JSON or Markdown; lists and dicts become JSON text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.errors import InputError
from analysis.text import render

KINDS = (".csv", ".parquet", ".json", ".md")
BRIEF = (
    *("sweep", "strategy", "dispatcher", "batch_size", "topk", "topk_requested", "world_size"),
    *("num_experts", "dtype", "tokens", "outcome", "median_duration_ms", "median_low_ms"),
    *("median_high_ms", "avg_duration_ms", "avg_throughput", "flags", "attempt_id"),
)


def write(frame: pd.DataFrame, output: str) -> Path:
    """Writes the format of the file's ending; raises InputError for another ending or without
    Parquet's library."""
    path = Path(output)
    if path.suffix not in KINDS:
        raise InputError(f"-o {output}: allowed endings are {', '.join(KINDS)}; rename the file")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        _parquet(flat(frame), path)
    elif path.suffix == ".csv":
        flat(frame).to_csv(path, index=False)
    elif path.suffix == ".json":
        path.write_text(frame.to_json(orient="records", indent=1) + "\n", encoding="utf-8")
    else:
        path.write_text(markdown(frame) + "\n", encoding="utf-8")
    return path


def flat(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with lists and dicts as JSON texts."""
    return frame.assign(
        **{str(n): frame[n].map(_text) for n in frame if frame[n].dtype == "object"}
    )


def _text(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, (list, dict)) else value


def _parquet(frame: pd.DataFrame, path: Path) -> None:
    try:
        frame.to_parquet(path, index=False)
    except ImportError as error:
        raise InputError(
            f"-o {path}: Parquet needs pyarrow; allowed without it are .csv, .json, .md; "
            "pip install pyarrow"
        ) from error


def markdown(frame: pd.DataFrame) -> str:
    """The columns BRIEF as a Markdown table."""
    rows = [
        ["" if pd.isna(v) else str(v) for v in row] for row in flat(frame)[list(BRIEF)].to_numpy()
    ]
    return render.simple(BRIEF, rows, "markdown")
