"""Which runs are on disk below a `wandb` folder, and whether they are complete."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runners.track import log_file
from runners.track.run import ROWS_FIELD

OFFLINE, ONLINE = "offline-run-", "run-"


class Unusable(RuntimeError):
    """Nothing can be tracked here; the message names the folder and the remedy."""


def fault(log: Path, rows: int) -> str:
    """What a finished log of a run with `rows` history rows lacks; empty if it is complete."""
    content = log_file.read(log)
    if content.damage:
        return content.damage
    written = len(content.of(log_file.HISTORY))
    if written != rows:
        return f"{written} of {rows} rows are in it (is the disk full?)"
    marker = ROWS_FIELD.encode()
    if not any(marker in data for data in content.of(log_file.SUMMARY)):
        return "it has no summary"
    return "" if content.finished else "it has no exit record"


def logs(folder: Path, run_id: str) -> list[Path]:
    """Logs of a run below `folder`/wandb, of offline and online runs. Searched by file name: W&B
    adds a suffix to the second of two folders made within one second."""
    return sorted(folder.glob(f"wandb/*run-*/run-{glob.escape(run_id)}.wandb"))


def complete_logs(folder: Path, run_id: str, rows: int) -> list[Path]:
    """The complete logs of a run."""
    return [log for log in logs(folder, run_id) if not fault(log, rows)]


def is_tracked(folder: Path, run_id: str, rows: int) -> bool:
    """Whether a run needs no offline log: one is complete, or a server has confirmed the run."""
    synced = any(log.with_suffix(".wandb.synced").exists() for log in logs(folder, run_id))
    return synced or bool(complete_logs(folder, run_id, rows))


def drop_unfinished(folder: Path, run_id: str, rows: int) -> None:
    """Removes incomplete logs of a run that is written again: `wandb sync` would join them with the
    new one."""
    for log in logs(folder, run_id):
        if fault(log, rows):
            drop(log)


def drop(log: Path) -> None:
    """Removes the folder of a run that nothing may read or sync."""
    shutil.rmtree(log.parent, ignore_errors=True)


def mark_synced(folder: Path, run_id: str) -> None:
    """Keeps `wandb sync` from sending an offline run that a server already has."""
    for log in logs(folder, run_id):
        with suppress(OSError):
            log.with_suffix(".wandb.synced").touch()


def unsynced(folder: Path, pattern: str = OFFLINE) -> list[Path]:
    """Folders of runs that no server has confirmed, by W&B's own marker file."""
    paths = sorted(folder.glob(f"wandb/{pattern}*/run-*.wandb"))
    return [log.parent for log in paths if not log.with_suffix(".wandb.synced").exists()]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One tracker at a time per folder, which must be writable (W&B would silently fall back to the
    system's temporary folder). Raises Unusable."""
    path = folder / "wandb" / ".track.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        remedy = "choose another folder with --dir"
        raise Unusable(f"{path.parent}: cannot write ({error.strerror}); {remedy}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise Unusable(f"{path.parent}: another tracker is writing; wait for it") from error
    finally:
        os.close(handle)
