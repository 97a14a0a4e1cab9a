"""Override lists as users, typing errors and attackers write them, through the bench's own path.

`ask` composes, validates and resolves in this process as `python runners/bench.py` does, with the
sweep itself replaced: whatever would start a process raises instead.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from hydra.core.global_hydra import GlobalHydra
from hypothesis import strategies as st
from omegaconf import OmegaConf

from runners import bench
from runners.sweep import entry
from runners.sweep.result import SweepResult

ROOT = Path(__file__).resolve().parents[2]
SENSIBLE = ["1", "2", "8", "float32", "ep", "tp", "simple", "true", "false", "null", "auto"]
STRANGE = [
    *("", "0", "-1", "1.5", "nan", "inf", "-inf", "1e400", "1_000", "0x10", "9" * 30, "9" * 400),
    *("9223372036854775808", "2147483648", "True", "none", "~", "''", '""', "'", '"', "\\", "="),
    *("[]", "[1,2]", "{}", "{a:1}", "{a:{b:[1]}}", "[[[", "}}", "a:b", "1,2", ",", "choice(1,2)"),
    *("range(1,3)", "glob(*)", "int(3)", "str(3)", "sort(3,1)", "f(x)", "range(0)"),
    *("${batch_size}", "${oops}", "${oc.env:HOME}", "${oc.env:NO_SUCH}", "${name}", "${", "???"),
    *("${oc.decode:'[1'}", "${sweep_dir:x,y}", "${safe_name:../up}", "${hydra:runtime.cwd}"),
    *("..", "../../up", "/", "/etc/passwd", "/dev/zero", "/dev/stdin", "/dev/null", "~root", "."),
    *("a/b", "a\\b", "CON", "x" * 81, "x" * 5000, "-rf", "--help", "; rm", "$(id)", "%s%n"),
    *("é", "日本語", "🙂", "\u202e", "\ufeff", "\t", " ", "\n", "\r\n", "\x1b[2J", "\udcff"),
    *("<script>", "{{7*7}}", "!!python/object/apply:os.system [id]", "&a *a", "<<: *a", "@x", "|"),
]  # fmt: skip
FORMS = [
    "{k}={v}",
    "+{k}={v}",
    "++{k}={v}",
    "~{k}",
    "~{k}={v}",
    "{k}",
    "{k}@x={v}",
    "{v}",
    "{v}={v}",
]


def keys() -> list[str]:
    """Every key of the config, its groups, and some that are none."""
    found = ["strategy", "model", "workload", "measure", "tracker", "experiment", "nope", "a.b.c"]
    for path in [ROOT / "conf" / "config.yaml", *sorted((ROOT / "conf").glob("*/*.yaml"))]:
        group = "" if path.parent.name == "conf" else f"{path.parent.name}."
        node = OmegaConf.to_container(OmegaConf.load(path))
        found += _leaves(node if isinstance(node, dict) else {}, group)
    return sorted({key for key in found if not key.startswith(("hydra", "defaults", "cluster"))})


def _leaves(node: dict[Any, Any], prefix: str) -> list[str]:
    found = []
    for name, value in node.items():
        found.append(f"{prefix}{name}")
        if isinstance(value, dict):
            found += _leaves(value, f"{prefix}{name}.")
    return found


def values() -> st.SearchStrategy[str]:
    anything = st.text(st.characters(blacklist_characters="\0"), max_size=20)
    numbers = st.one_of(st.integers().map(str), st.floats().map(str))
    return st.one_of(st.sampled_from(STRANGE), st.sampled_from(SENSIBLE), numbers, anything)


def override_lists() -> st.SearchStrategy[list[str]]:
    """One to four overrides, as a single run or a sweep."""
    named = st.sampled_from(["name", "label", "resume", "strategy.placement", "workload.trace"])
    key = st.one_of(st.sampled_from(keys()), named)
    form = st.one_of(st.just(FORMS[0]), st.sampled_from(FORMS))
    one = st.builds(lambda f, k, v: f.format(k=k, v=v), form, key, values())
    lists = st.lists(one, min_size=1, max_size=4)
    return st.builds(lambda flag, words: flag + words, st.sampled_from([[], ["-m"]]), lists)


class Answer(NamedTuple):
    code: int
    lines: list[str]  # on stderr
    would_run: bool


class Started(BaseException):
    """Something tried to start a process."""


@contextlib.contextmanager
def nothing_starts() -> Iterator[list[bool]]:
    ran: list[bool] = []

    class NoSweep:
        def __init__(self, found: Any, settings: Any, progress: Any, start: Any) -> None:
            self.result = SweepResult(settings.sweep_dir)

        def run(self) -> SweepResult:
            ran.append(True)
            return self.result

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise Started(str(arguments))

    with (
        mock.patch.object(entry, "Sweep", NoSweep),
        mock.patch.object(subprocess, "Popen", refuse),
        mock.patch.object(os, "fork", refuse),
        mock.patch.object(bench, "show_report", refuse_report),
    ):
        yield ran


def refuse_report(result: SweepResult, begun: bench.Report | None) -> None:
    """The analysis has nothing to show of a sweep that was not run."""


def ask(words: list[str], folder: Path) -> Answer:
    """What the bench says to these words; raises what would be a traceback."""
    GlobalHydra.instance().clear()
    bench.BENCH.__init__()  # type: ignore[misc]  # a new process has a new one
    before, err = Path.cwd(), io.StringIO()
    os.chdir(folder)
    try:
        with (
            mock.patch.object(sys, "argv", ["bench.py", *words]),
            contextlib.redirect_stderr(err),
            contextlib.redirect_stdout(io.StringIO()),
            nothing_starts() as ran,
        ):
            try:
                code = bench.run()
            except SystemExit as end:  # argparse, whose words begin with a dash
                code = end.code if isinstance(end.code, int) else 1
    finally:
        os.chdir(before)
    return Answer(code, err.getvalue().splitlines(), bool(ran))


def complaint(words: list[str], answer: Answer) -> str:
    """What is wrong with an answer: only 0 for what can run, or 2 with one line."""
    if answer.code == 0:
        return ""
    text = f"{words!r}: exit code {answer.code}, {answer.lines[:5]}"
    if answer.code != 2 or answer.would_run:
        return text
    return "" if len(answer.lines) == 1 and answer.lines[0].startswith("error: ") else text
