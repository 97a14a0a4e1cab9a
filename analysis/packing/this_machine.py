"""Programs that `reproduce` starts here: which cells can run, and the sweep that measures them.

Both know Hydra and may import torch, which the analysis does not.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.errors import InputError
from runners.host import project_paths

CHECK = "runners.config.cells_here"
CHECK_LIMIT_S = 300.0
PLAIN = re.compile(r"[A-Za-z0-9_./:@%+-]+")
INTERRUPTED, BAD_INPUT = 130, 2


@dataclass(frozen=True)
class Possible:
    """`refusals` say why a cell cannot run here, by its id, None where it can; `environment` is
    what a record here would have before any rank runs."""

    refusals: Mapping[str, str | None]
    environment: Mapping[str, Any]

    @property
    def count(self) -> int:
        """Cells that can run here."""
        return sum(reason is None for reason in self.refusals.values())


def possible(source: str, overrides: Sequence[str]) -> Possible:
    """Asks which cells of the source can run here; raises InputError for a source that has none."""
    command = [sys.executable, "-m", CHECK, source, *overrides]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=CHECK_LIMIT_S, env=_variables()
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"reproduce {source}: its cells were not checked within {CHECK_LIMIT_S:g} s; try again"
        ) from error
    lines = done.stderr.strip().splitlines()
    if done.returncode:
        text = lines[-1] if lines else f"{CHECK} ended with {done.returncode}"
        raise InputError(f"reproduce: {text.removeprefix('error: ').removeprefix('cells=')}")
    answer = json.loads(done.stdout.splitlines()[-1])
    return Possible(answer["cells"], answer["environment"])


def word(key: str, value: str) -> str:
    """KEY=VALUE as Hydra reads it; a value with other than plain characters is quoted."""
    if PLAIN.fullmatch(value):
        return f"{key}={value}"
    text = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{text}'"


def measure(words: Sequence[str]) -> tuple[int, Path | None]:
    """Runs the sweep with its progress on this screen; its exit code and folder, None where it was
    not begun. Ctrl-C reaches the sweep, which is waited for."""
    command = [sys.executable, "-m", "runners.bench", *words]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_variables()) as process,
        _ended_with_this(process),
    ):
        output = _output(process)
    return process.returncode, _folder(output)


def _output(process: subprocess.Popen[str]) -> str:
    """All that it prints until it ends; Ctrl-C interrupts only the sweep, which ends by itself."""
    while True:
        try:
            return process.communicate()[0]
        except KeyboardInterrupt:
            continue


@contextlib.contextmanager
def _ended_with_this(process: subprocess.Popen[str]) -> Iterator[None]:
    """A signal that ends this program ends the sweep first, as does an error."""

    def end(number: int, frame: object) -> None:
        process.terminate()

    numbers = (signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.signal(number, end) for number in numbers
                if signal.getsignal(number) == signal.SIG_DFL}  # fmt: skip
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()
        for number in handlers:
            signal.signal(number, signal.SIG_DFL)


def _folder(output: str) -> Path | None:
    """The sweep's folder, of the last line of its standard output."""
    for line in reversed(output.splitlines()):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return Path(json.loads(line)["sweep_dir"])
    return None


def _variables() -> dict[str, str]:
    return {**os.environ, **project_paths.module_variables(os.environ)}
