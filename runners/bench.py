"""The sweep: python runners/bench.py -m strategy=simple,tp,ep topk=2,4,8

The only Hydra program of the project. It validates every cell before anything is started, hands
the cells to the launches, and shows tables and plots at the end. Exit codes: 0 all measured,
1 some cell failed or was wrong, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
if sys.path and Path(sys.path[0] or ".").resolve() == ROOT / "runners":
    sys.path[0] = str(ROOT)  # runners/ itself must not be searched: its names are not top-level
elif str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runners import resume
from runners.fields import ConfigError, safe_name
from runners.jobs import Asked, run_asked
from runners.streams import reader_may_leave
from runners.sweep import SweepResult
from runners.track_client import redact

REPORT_LIMIT_S = 300


OUTPUTS = Path("outputs")
OF_RUN = ("resume", "resume_mode", "report", "tracker", "on_error")  # no part of any cell


def sweep_dir_of(asked: str | None, name: str, run: str | None = None) -> str:
    """A new folder in outputs/, the one that several hosts share, or the one to go on with."""
    if asked:
        return str(resume.folder_of(str(asked), OUTPUTS))
    return str(OUTPUTS / (name if run is None else safe_name(run)))


OmegaConf.register_new_resolver("safe_name", safe_name, replace=True)
OmegaConf.register_new_resolver("sweep_dir", sweep_dir_of, replace=True)


class Bench:
    """What Hydra calls for a single run, and our launcher for a multirun."""

    def __init__(self) -> None:
        self.result: SweepResult | None = None
        self.error: Exception | None = None
        self.report = True
        self.began = False  # from here on an error is not the user's

    def run_all(
        self, asked: Sequence[Asked], sweep_dir: Path, cluster: Mapping[str, Any] | None = None
    ) -> dict[int, str]:
        """Runs the jobs; the outcome of each by its number."""
        command = redact(shlex.join(["python", "runners/bench.py", *sys.argv[1:]]))
        self.result, outcomes = run_asked(asked, sweep_dir, command, self.begins, cluster)
        self.report = bool(asked[0].config.get("report", True)) and not self.result.joined
        return outcomes

    def begins(self) -> None:
        self.began = True


BENCH = Bench()


def task(config: DictConfig) -> None:
    """A run without -m: the same path with one cell."""
    typed = OmegaConf.to_container(HydraConfig.get().overrides.task)  # interpolations as typed
    overrides = [str(word) for word in typed or []]
    sweep_dir = Path(HydraConfig.get().runtime.output_dir)
    try:
        asked = [Asked(0, resolve(config), overrides)]
        if config.resume and all(word.split("=")[0].split(".")[0] in OF_RUN for word in overrides):
            asked = all_of(sweep_dir, asked[0].config)
        BENCH.run_all(asked, sweep_dir, resolve(HydraConfig.get().launcher))
    except Exception as error:
        if BENCH.began:
            raise
        BENCH.error = error  # Hydra would print lines of its own around it
        with contextlib.suppress(OSError):
            sweep_dir.rmdir()  # made by Hydra, and empty


task.moe_bench = BENCH  # type: ignore[attr-defined]  # how our launcher knows whose jobs it has


def all_of(sweep_dir: Path, config: Mapping[str, Any]) -> list[Asked]:
    """Every cell that the folder set out to measure, as it was configured."""
    now = {key: config[key] for key in OF_RUN}
    return [
        Asked(number, {**known, **now}, overrides)
        for number, (known, overrides) in enumerate(resume.asked_before(sweep_dir))
    ]


def resolve(config: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, Mapping)
    return {str(key): value for key, value in plain.items() if key != "hydra"}


def one_line(error: BaseException) -> str:
    """Hydra's messages run over several lines, with its search path and inner keys behind."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"( Config search path:| full_key:).*", "", text)
    text = text.removeprefix("ConfigError raised while resolving interpolation: ")
    if unknown := re.match(r"Could not override '([^']*)'", text):
        return f"{unknown[1]}: no such key; `python runners/bench.py --cfg job` lists the keys"
    return text


def show_report(result: SweepResult) -> None:
    """Tables on screen and on disk, plots on disk, by the analysis as a process of its own."""
    measured = list(result.outcomes.values()).count("measured")
    if not measured:
        return
    folder = result.sweep_dir.resolve()
    (folder / "tables").mkdir(exist_ok=True)
    for verb, options in (
        ("show", []),
        ("show", ["--format", "markdown", "-o", str(folder / "tables" / "tables.md")]),
        ("show", ["--format", "csv", "-o", str(folder / "tables" / "tables.csv")]),
        *([("plot", [])] if measured > 1 else []),
    ):
        command = [sys.executable, "-m", "analysis", verb, str(folder), *options]
        try:
            done = subprocess.run(
                command, cwd=ROOT, timeout=REPORT_LIMIT_S, capture_output=True, text=True
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            result.warnings.append(f"analysis {verb}: {one_line(error)}")
            continue
        print(done.stdout, end="", flush=True)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            result.warnings.append(f"analysis {verb} ended with {done.returncode}: {last[0]}")


def say_end(result: SweepResult) -> None:
    counts = result.counts()
    total = sum(counts.values())
    said = [f"{counts['measured']} of {total} cells correct and measured"]
    said += [f"{n} {outcome}" for outcome, n in counts.items() if n and outcome != "measured"]
    print(f"\n{', '.join(said)}; {result.sweep_dir}", file=sys.stderr)
    for cell, message, log in result.failures:
        print(f"failed: {cell}: {message}; log: {log}", file=sys.stderr)
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if result.sync_command:
        print(f"{result.tracked} W&B runs; to upload: {result.sync_command}", file=sys.stderr)
    if not sys.stdout.isatty():
        print(json.dumps(summary(result)))


def summary(result: SweepResult) -> dict[str, Any]:
    """The last line of stdout when it is no terminal."""
    return {
        "sweep_dir": str(result.sweep_dir),
        **result.counts(),
        "wall_s": round(result.wall_s, 3),
        "timed_s": round(result.timed_s, 3),
        "tracked": result.tracked,
        "exit_code": result.exit_code,
    }


def refused(error: BaseException) -> int:
    text = one_line(error).encode("utf-8", "backslashreplace").decode()
    print(f"error: {''.join(c if c.isprintable() else '?' for c in text)}", file=sys.stderr)
    return 2


def unknown_option(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    raise ConfigError(f"{message}; `python runners/bench.py --help` lists the options")


@reader_may_leave()
def run() -> int:
    argparse.ArgumentParser.error = unknown_option  # type: ignore  # one line
    os.environ["HYDRA_FULL_ERROR"] = "1"  # its errors come to us, not through its own printer
    program = hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="config")
    try:
        program(task)()
        if BENCH.error:
            raise BENCH.error
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        return refused(error)
    except Exception as error:  # Hydra has more of its own for what it cannot compose
        if BENCH.began:
            raise
        return refused(error)
    except KeyboardInterrupt:
        print("interrupted; nothing was being measured", file=sys.stderr)
        return 130
    if BENCH.result is None:
        return 0  # --help, --cfg and the like
    if BENCH.report and not BENCH.result.broken:
        show_report(BENCH.result)
    if not BENCH.result.joined:
        say_end(BENCH.result)
    return BENCH.result.exit_code


if __name__ == "__main__":
    sys.exit(run())
