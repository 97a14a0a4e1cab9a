"""The sweep: python runners/bench.py -m strategy=simple,tp,ep topk=2,4,8

The only Hydra program of the project. It validates all cells before anything starts, passes them to
the launches, and shows tables and plots at the end. Exit codes: 0 all measured (or checked, where
nothing is to be timed), 1 some cell failed or was wrong, 2 bad input, 3 a host for which node 0 did
not come, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

if not __package__:  # started as a file: do not search runners/ itself for modules
    _own = Path(__file__).resolve().parent
    sys.path[:] = [str(_own.parent), *(p for p in sys.path if Path(p or ".").resolve() != _own)]

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runners.config import hydra_plugins
from runners.config.refusal import one_line, told
from runners.config.resolution import Composed, plain
from runners.config.schema import safe_name
from runners.errors import ConfigError
from runners.host import project_paths
from runners.host.streams import reader_may_leave
from runners.records.record import GOOD
from runners.sweep import resume
from runners.sweep.entry import run_composed
from runners.sweep.result import SweepResult
from runners.track.client import redact
from runners.track.settings import drop_empty

REPORT_LIMIT_S = 300
RUN_KEYS = ("resume", "resume_mode", "report", "tracker", "on_error")  # not of any cell


def sweep_dir_of(resumed: str | None, name: str, run: str | None = None) -> str:
    """The folder to resume, or one in outputs/: a new one, or the one that several hosts share."""
    if resumed:
        return str(resume.folder_of(str(resumed), project_paths.OUTPUTS))
    return str(project_paths.OUTPUTS / (name if run is None else safe_name(run)))


hydra_plugins.register()
OmegaConf.register_new_resolver("safe_name", safe_name, replace=True)
OmegaConf.register_new_resolver("sweep_dir", sweep_dir_of, replace=True)


class Bench:
    """State of this program, and the call for a single run (task) and a multirun (launcher)."""

    def __init__(self) -> None:
        self.result: SweepResult | None = None
        self.error: Exception | None = None
        self.report = True
        self.early_report: Report | None = None
        self.composed = False  # from then on an unexpected error is ours
        self.began = False  # from then on no error is the user's

    def run_all(
        self, configs: Sequence[Composed], sweep_dir: Path, launcher: Mapping[str, Any]
    ) -> list[str]:
        """Measures the cells of the configs; returns the outcome of each."""
        self.composed = True
        self.report = bool(configs[0].config.get("report", True))
        command = redact(f"{project_paths.BENCH} {shlex.join(sys.argv[1:])}".strip())
        self.result, outcomes = run_composed(
            configs, sweep_dir, command, self.mark_begun, launcher,
            lambda: self.begin_report(sweep_dir),
        )  # fmt: skip
        self.report = self.report and not self.result.joined
        return outcomes

    def begin_report(self, sweep_dir: Path) -> None:
        """Starts the report while the tracker writes; if it fails, `show_report` tries again."""
        if self.report:
            with contextlib.suppress(OSError):
                self.early_report = Report(sweep_dir)

    def mark_begun(self) -> None:
        self.began = True


BENCH = Bench()


def task(config: DictConfig) -> None:
    """A run without -m: one cell, or all cells of a resumed folder."""
    typed = OmegaConf.to_container(HydraConfig.get().overrides.task)  # unresolved
    overrides = [str(word) for word in typed or []]
    sweep_dir = Path(HydraConfig.get().runtime.output_dir)
    try:
        configs = [Composed(plain(config), overrides)]
        if config.resume and all(key.split("=")[0].split(".")[0] in RUN_KEYS for key in overrides):
            configs = planned_cells(sweep_dir, configs[0].config)
        BENCH.run_all(configs, sweep_dir, plain(HydraConfig.get().launcher))
    except Exception as error:
        if BENCH.began:
            raise
        BENCH.error = error  # Hydra would print lines of its own around it
        with contextlib.suppress(OSError):
            sweep_dir.rmdir()  # Hydra made it


task.moe_bench = BENCH  # type: ignore[attr-defined]  # by this our launcher recognises the bench


def planned_cells(sweep_dir: Path, config: Mapping[str, Any]) -> list[Composed]:
    """Every cell of the folder's plan, as it was configured, with RUN_KEYS of `config`."""
    now = {key: config[key] for key in RUN_KEYS}
    return [
        Composed({**known, **now}, overrides) for known, overrides in resume.configs_of(sweep_dir)
    ]


class Report:
    """Tables on screen and on disk, plots on disk; made by the analysis in a process of its own."""

    def __init__(self, sweep_dir: Path) -> None:
        command = [sys.executable, "-m", "analysis", "finish", str(sweep_dir.resolve())]
        variables = {**os.environ, **project_paths.module_variables(os.environ)}
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  # see wait
        self.process = subprocess.Popen(command, env=variables, stderr=self.errors)

    def wait(self) -> str:
        """Waits REPORT_LIMIT_S at most; returns what went wrong, else ""."""
        with self.errors:
            try:
                code = self.process.wait(REPORT_LIMIT_S)
            except subprocess.TimeoutExpired as error:
                return f"analysis: {one_line(error)}"
            finally:
                self.process.kill()
            self.errors.seek(0)
            last = self.errors.read().strip().splitlines()[-1:] or ["no message"]
        return f"analysis ended with {code}: {last[0]}" if code else ""


def show_report(result: SweepResult, early: Report | None) -> None:
    """Waits for the report that was started when all was measured, or makes one now."""
    if not set(GOOD) & set(result.outcomes.values()):
        return
    try:
        warning = (early or Report(result.sweep_dir)).wait()
    except OSError as error:
        warning = f"analysis: {one_line(error)}"
    if warning:
        result.warnings.append(warning)


def print_result(result: SweepResult) -> None:
    counts = result.counts()
    total = sum(counts.values()) + result.skipped
    parts = [f"{counts['measured']} of {total} cells correct and measured"]
    counts |= {"skipped": result.skipped}
    parts += [f"{n} {outcome}" for outcome, n in counts.items() if n and outcome != "measured"]
    print(f"\n{', '.join(parts)}; {result.sweep_dir}", file=sys.stderr)
    for cell, message, log in result.failures:
        print(f"failed: {cell}: {message}; log: {log}", file=sys.stderr)
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if result.sync_command:
        print(f"{result.tracked} W&B runs; to upload: {result.sync_command}", file=sys.stderr)
    if not sys.stdout.isatty():
        print(json.dumps(summary(result)))


def summary(result: SweepResult) -> dict[str, Any]:
    """The last line of stdout when it is not a terminal, as a dict."""
    return {
        "sweep_dir": str(result.sweep_dir),
        **result.counts(),
        "skipped": result.skipped,
        "wall_s": round(result.wall_s, 3),
        "timed_s": round(result.timed_s, 3),
        "tracked": result.tracked,
        "exit_code": result.exit_code,
    }


def print_refusal(error: Exception) -> int:
    text = told(error, sys.argv[1:]).encode("utf-8", "backslashreplace").decode()
    print(f"error: {''.join(c if c.isprintable() else '?' for c in text)}", file=sys.stderr)
    return 2


def unknown_option(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    raise ConfigError(f"{message}; `{project_paths.BENCH} --help` lists the options")


def raise_interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def process_settings() -> Iterator[None]:
    """Signals, option parser and Hydra's error output while `run` runs; restored at its end."""
    handlers: dict[signal.Signals, Any] = {}
    full_error, parser_error = os.environ.get("HYDRA_FULL_ERROR"), argparse.ArgumentParser.error
    for number in (signal.SIGTERM, signal.SIGHUP):  # launches set their own handlers
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup's choice is the user's
            handlers[number] = signal.signal(number, raise_interrupt)
    argparse.ArgumentParser.error = unknown_option  # type: ignore  # one line
    os.environ["HYDRA_FULL_ERROR"] = "1"  # its errors are raised, not printed by it
    try:
        yield
    finally:
        argparse.ArgumentParser.error = parser_error  # type: ignore
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error
        for number, handler in handlers.items():
            signal.signal(number, handler)


@reader_may_leave()
@process_settings()
def run() -> int:
    """The whole program; returns its exit code."""
    hydra_plugins.register()  # again: the caller may have reset Hydra
    drop_empty()  # before conf reads W&B's variables
    program = hydra.main(
        version_base="1.3", config_path=str(project_paths.CONF), config_name="config"
    )
    had_outputs = project_paths.OUTPUTS.exists()
    try:
        program(task)()
        if BENCH.error:
            raise BENCH.error
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        return print_refusal(error)
    except Exception as error:  # not expected by Hydra either
        if BENCH.composed:
            raise
        return print_refusal(error)
    except KeyboardInterrupt:
        print("interrupted; nothing was being measured", file=sys.stderr)
        return 130
    finally:
        if not had_outputs:
            with contextlib.suppress(OSError):
                project_paths.OUTPUTS.rmdir()  # only if it is empty
    if BENCH.result is None:
        return 0  # --help, --cfg and the like
    if BENCH.report and not BENCH.result.broken:
        try:
            show_report(BENCH.result, BENCH.early_report)
        except KeyboardInterrupt:
            BENCH.result.warnings.append(
                "tables and plots were interrupted; python -m analysis show, or plot, makes them"
            )
    if not BENCH.result.joined:
        print_result(BENCH.result)
    return BENCH.result.exit_code


if __name__ == "__main__":
    sys.exit(run())
