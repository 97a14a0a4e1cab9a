"""Offline W&B runs as rows: no server, no W&B process, only what is asked for is decoded.

W&B itself cannot be asked about runs that were never synced. Their logs hold one message per
history row and several per row for the summary, so decoding everything is what takes the time:
here a run's summary updates are joined as bytes and decoded at once (concatenated protobuf
messages are their merge), values are parsed as JSON only where no later one replaces them,
records that hold nothing but W&B's own clock are passed over, and history is left alone unless
samples are asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.errors import SourceError, SourceWarning
from analysis.sources.wandb_rows import NoAttempt, NoRow, row_of, sample_columns
from runners.track import log_file
from runners.track.decode import Key, build, decoded, fold, last_values
from runners.track.log_file import CONFIG, EXIT, HISTORY, RUN, SUMMARY, Log


@dataclass
class OfflineRun:
    """One log. `damage` says why nothing after it is known; `finished` that the run has ended."""

    path: Path
    id: str = ""
    name: str = ""
    project: str = ""
    group: str = ""
    job_type: str = ""
    tags: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None
    finished: bool = False
    damage: str = ""


def load(source: Path, samples: bool = False) -> list[dict[str, Any]]:
    """Rows of every run at or below `source` (a log, a run's folder, `wandb`, or a sweep), the
    oldest log first; with `samples` also the columns of `flat_row.sample_columns`.

    Damage, unfinished runs and what gives no row are SourceWarnings naming the file.
    """
    rows = []
    for path in sorted(find(source), key=lambda path: (path.stat().st_mtime_ns, path)):
        run = read_run(path, history=samples)
        for text in _state(run):
            _warn(path, text)
        try:
            row = row_of(run.config, run.summary)
            if samples:
                row.update(sample_columns(run.history, run.summary))
            rows.append(row)
        except NoAttempt:
            continue
        except NoRow as error:
            _warn(path, f"left out: {error}")
    return rows


def find(source: Path) -> list[Path]:
    """Logs of runs, wherever in W&B's layout `source` is; raises SourceError for none."""
    if source.is_file():
        return [source]
    for pattern in ("run-*.wandb", "*run-*/run-*.wandb", "wandb/*run-*/run-*.wandb"):
        logs = [path for path in source.glob(pattern) if not path.parent.is_symlink()]
        if logs:
            return sorted(logs)
    raise SourceError(f"{source}: no W&B run (run-*.wandb) at or below it; name another folder")


def _warn(path: Path, text: str) -> None:
    warnings.warn(f"{path}: {text}", SourceWarning, stacklevel=3)


def _state(run: OfflineRun) -> list[str]:
    if run.damage:
        return [f"{run.damage}; what precedes it is used"]
    return [] if run.finished else ["no exit record: the run crashed or is still alive"]


def read_run(path: Path, history: bool = False) -> OfflineRun:
    """Config, summary and identity of one log, history too if asked; never raises for a file."""
    log = log_file.read(path)
    run = OfflineRun(path, finished=log.finished, damage=log.damage)
    try:
        _decode_identity(log, run)
        run.config = fold(log, CONFIG, run.config)
        run.summary = fold(log, SUMMARY, {})
        if history:
            run.history = [_history_row(data) for data in log.of(HISTORY)]
    except (RecursionError, ValueError) as error:  # what W&B did not write like this
        run.damage = run.damage or f"a record cannot be decoded: {error}"
    return run


def _decode_identity(log: Log, run: OfflineRun) -> None:
    for data in log.of(RUN):
        message = decoded(data).run
        run.id, run.name, run.project = message.run_id, message.display_name, message.project
        run.group, run.job_type = message.run_group, message.job_type
        run.tags = tuple(message.tags)
        run.config = build(last_values(message.config, {}), run.config)
        run.config.pop("_wandb", None)
    for data in log.of(EXIT):
        run.exit_code = decoded(data).exit.exit_code


def _history_row(data: bytes) -> dict[str, Any]:
    return build(_items(decoded(data).history.item), {})


def _items(items: Iterable[Any]) -> dict[Key, str | None]:
    return {tuple(item.nested_key) or (item.key,): item.value_json for item in items}
