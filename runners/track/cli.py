"""Records into Weights & Biases: `python -m runners.track [SOURCE ...]`, at any time, repeatedly.

One W&B run per attempt, below SWEEP/wandb. A run that is already there is skipped, one that an
interruption left unfinished is written again. Records are the truth; this is a sink. The last
line on stdout is one JSON object: mode, runs, rows, skipped, warnings, sync_command.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from runners.host import project_paths
from runners.host.isolation import die_with_parent
from runners.host.streams import reader_may_leave
from runners.records import record
from runners.records.sealed import RecordError
from runners.track import check, ledger
from runners.track.client import LAUNCHER, MODES, redact, resolve_mode
from runners.track.run import ROWS_FIELD, Run, run_of
from runners.track.settings import defaults, own_files_in, project_name, replace_environment
from runners.track.signals import Interrupted, Interruption
from runners.track.summary import NoSummary, packed_file, summary_id, summary_run
from runners.track.writer import Gap, OnServer, Writer

CLIENT = ".client"  # below SWEEP/wandb: own files of W&B's client, such as its log
ENDED = ("finished", "failed")  # a server's states of a run that has ended


@dataclass
class Report:
    """Counts and warnings of one call, over all its sources."""

    mode: str
    runs: int = 0
    rows: int = 0
    skipped: int = 0
    failed: int = 0
    warnings: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    replay: str = ""  # the command that completes partly uploaded runs

    def warn(self, text: str) -> None:
        text = redact(" ".join(text.split()))  # W&B's messages may have several lines
        self.warnings.append(text)
        print(f"warning: {text}", file=sys.stderr)

    def fail(self, text: str) -> None:
        """A warning of something that is not tracked."""
        self.failed += 1
        self.warn(text)

    def as_json(self) -> str:
        names = ("mode", "runs", "rows", "skipped", "warnings")
        values = {name: getattr(self, name) for name in names}
        return json.dumps({**values, "sync_command": sync_command(self)})


class Written(NamedTuple):
    """A run that this call has written, not yet read back."""

    run: Run
    log: Path
    rows: int  # written by this call


def sync_command(report: Report) -> str:
    """The command that uploads every run that no server has yet; empty if there is none.

    W&B's own sync would append to a run that was uploaded in part, so then it is a replay.
    """
    if any(ledger.unsynced(folder, ledger.ONLINE) for folder in report.folders):
        return report.replay
    waiting = [folder for folder in report.folders if ledger.unsynced(folder)]
    paths = [f"{shlex.quote(str(folder))}/wandb/{ledger.OFFLINE}*" for folder in waiting]
    return " ".join(["wandb sync", *paths]) if paths else ""


def _replay_command(options: argparse.Namespace) -> str:
    words = ["python", "-m", "runners.track", *options.source, "--mode", "online"]
    words += ["--project", options.project]
    words += ["--entity", options.entity] if options.entity else []
    words += ["--dir", str(options.dir)] if options.dir else []
    words += ["--summary"] if options.summary else []
    return shlex.join(words)


@reader_may_leave()
def main(argv: Sequence[str] | None = None) -> int:
    """0: all is tracked; 1: something is not, and a warning says what; 2: usage."""
    options = _parse(argv)
    report = Report(options.mode, replay=_replay_command(options))
    if options.mode != "disabled":
        sources = [
            Path(s).resolve()
            for s in options.source or [project_paths.OUTPUTS / project_paths.LATEST]
        ]
        _replace_settings(options, report)
        interruption = Interruption(lambda: _interrupted(report))
        interruption.listen()
        if launcher := os.environ.get(LAUNCHER):
            die_with_parent(int(launcher), signal.SIGTERM)
        try:
            with tempfile.TemporaryDirectory(prefix="tracker-") as empty, chdir(empty):
                for source in sources:
                    _track(source, options, report, interruption)
        except Interrupted:
            _interrupted(report)
            return 1
    print(report.as_json(), flush=True)
    return 1 if report.failed else 0


def _replace_settings(options: argparse.Namespace, report: Report) -> None:
    """Replaces the process's W&B settings. (W&B reads files of the working folder too: `main` makes
    that an empty one.) Where a server cannot be asked safely, none is."""
    settings = replace_environment()
    for fault in settings.faults:
        report.warn(fault)
    if options.mode == "online" and not settings.server:
        report.fail("tracker: no server is asked; writing offline instead")
        options.mode = report.mode = "offline"


def _interrupted(report: Report) -> None:
    report.fail("tracker: interrupted; run it again for the rest")
    print(report.as_json(), flush=True)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m runners.track", description=__doc__)
    parser.add_argument("source", nargs="*", help="sweep folders; the newest by default")
    parser.add_argument("--mode", choices=MODES, help="default: WANDB_MODE, else offline")
    parser.add_argument("--project", help="default: WANDB_PROJECT, else conf/tracker/wandb.yaml's")
    parser.add_argument("--entity", help="default: WANDB_ENTITY, else the account's own")
    parser.add_argument("--dir", type=Path, help="where wandb/ goes; default: the sweep folder")
    parser.add_argument(
        "--summary",
        action="store_true",
        help="one more run, with the sweep's report, plots and packed file",
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="ATTEMPT_ID")
    options = parser.parse_args(argv)
    for name in ("mode", "project", "entity"):
        if not getattr(options, name):
            setattr(options, name, defaults()[name])
    options.dir = options.dir and options.dir.resolve()
    try:
        options.mode = resolve_mode(options.mode)
    except ValueError as error:
        parser.error(f"WANDB_MODE: {error}")
    try:
        options.project = project_name(options.project)
    except ValueError as error:
        parser.error(f"--project {error}")
    return options


def _track(
    sweep: Path, options: argparse.Namespace, report: Report, interruption: Interruption
) -> None:
    """Tracks one sweep; failures become warnings."""
    folder = options.dir or sweep
    report.folders += [folder] if folder not in report.folders else []
    runs = _runs(sweep, set(options.only), report)
    if not runs:
        return
    with tempfile.TemporaryDirectory(prefix="summary-") as scratch:
        if options.summary:
            runs += _summary(sweep, folder, runs, Path(scratch), report)
        online = options.mode == "online"
        writer = Writer(folder, options.project, options.entity, online, interruption)
        with own_files_in(folder / "wandb" / CLIENT):
            _track_runs(writer, runs, report)


def _summary(
    sweep: Path, folder: Path, runs: list[Run], scratch: Path, report: Report
) -> list[Run]:
    """The summary run; none where it is there already, as making it is slow."""
    if report.mode == "offline" and ledger.is_tracked(folder, summary_id(runs), 1):
        report.skipped += 1
        return []
    try:
        run = summary_run(sweep, runs, scratch)
    except (NoSummary, OSError) as error:
        report.fail(f"no summary of {sweep}: {error}")
        return []
    try:
        return [dataclasses.replace(run, packed=packed_file(sweep, run.group, scratch))]
    except (NoSummary, OSError) as error:
        report.fail(f"no packed file in the summary of {sweep}: {error}")
        return [run]


def _track_runs(writer: Writer, runs: list[Run], report: Report) -> None:
    try:
        with ledger.locked(writer.folder):
            written: list[Written] = []
            try:
                _write_all(writer, runs, written, report)
            finally:
                try:
                    writer.close()
                finally:
                    _read_back(writer, written, report)
                    for fault in writer.faults:
                        report.fail(f"{writer.folder}: {fault}")
    except ledger.Unusable as error:
        report.failed += len(runs)
        report.warn(str(error))


def _runs(sweep: Path, only: set[str], report: Report) -> list[Run]:
    """The attempts asked for, in the order they were made."""
    runs = {}
    for path in record.paths(sweep):
        try:
            one = record.read(path)
            if not only or one.attempt_id in only:
                runs[one.created, one.attempt_id] = run_of(one, sweep.name)
        except (RecordError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            report.fail(str(error) if str(path) in str(error) else f"{path}: {error}")
    missing = sorted(only - {attempt for _, attempt in runs})
    if missing or not runs:
        report.fail(f"{sweep}: no record of {', '.join(missing) or 'any attempt'}")
    return [runs[order] for order in sorted(runs)]


def _write_all(writer: Writer, runs: list[Run], written: list[Written], report: Report) -> None:
    """Writes all runs; appends each to `written`, which is then complete after an interrupt."""
    stored = _on_server(writer, runs, report) if writer.online else {}
    for run in runs:
        if run.id in stored and _is_delivered(run, stored[run.id]):
            report.skipped += 1
            ledger.mark_synced(writer.folder, run.id)
        elif not writer.online and ledger.is_tracked(writer.folder, run.id, len(run.history)):
            report.skipped += 1
        else:
            log = _write(writer, run, stored.get(run.id), report)
            sent_before = stored[run.id].lines if writer.online and run.id in stored else 0
            written += [Written(run, log, len(run.history) - sent_before)] if log else []


def _on_server(writer: Writer, runs: list[Run], report: Report) -> dict[str, OnServer]:
    try:
        return writer.on_server([run.id for run in runs])
    except Exception as error:
        _go_offline(writer, error, report)
        return {}


def _is_delivered(run: Run, stored: OnServer) -> bool:
    rows = len(run.history)
    ended = stored.state in ENDED and stored.summary.get(ROWS_FIELD) == rows
    return ended and stored.lines == rows


def _send(writer: Writer, run: Run, stored: OnServer | None) -> Path:
    """A run whose summary arrived before its rows continues too late at first. As that writes the
    summary again, the second attempt continues where the rows end."""
    try:
        return writer.write(run, stored)
    except Gap:
        return writer.write(run, stored)


def _go_offline(writer: Writer, error: Exception, report: Report) -> None:
    """Switches to offline; closes first, or W&B refuses the run's id as still in use."""
    report.fail(f"tracker: no answer from the server ({error}); writing offline instead")
    writer.close()
    writer.online = False
    report.mode = "offline"


def _write(writer: Writer, run: Run, stored: OnServer | None, report: Report) -> Path | None:
    """The log of the run; a failing server costs a warning, and all later runs go offline."""
    if writer.online:
        try:
            log = _send(writer, run, stored)
            ledger.mark_synced(writer.folder, run.id)
            return log
        except Gap as error:
            report.fail(f"W&B did not take {error}; the records and tables have them")
            return None
        except Exception as error:
            _go_offline(writer, error, report)
            for log in ledger.complete_logs(writer.folder, run.id, len(run.history)):
                return log  # the online run's log is complete and can be synced later
    try:
        ledger.drop_unfinished(writer.folder, run.id, len(run.history))
        return writer.write(run)
    except Exception as error:
        report.fail(f"{writer.folder}: run {run.id} could not be written: {error}")
        return None


def _read_back(writer: Writer, written: list[Written], report: Report) -> None:
    """Counts only what is on disk. W&B's process must have ended: it writes after `finish`. A run
    that differs from its record is removed, as `wandb sync` would send it."""
    for run, log, rows in written:
        if lacking := ledger.fault(log, rows):
            report.fail(f"{log}: run {run.id} is not whole: {lacking}")
        elif wrong := check.fault(log, run, writer.project, writer.entity):
            sent = log.with_suffix(".wandb.synced").exists()
            ledger.drop(log)
            report.failed += 1
            where = "; it was sent: delete it on the server" if sent else ""
            report.warn(f"{log}: run {run.id} is not as its record, and removed: {wrong}{where}")
        else:
            report.runs += 1
            report.rows += rows
