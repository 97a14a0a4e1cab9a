"""What a user sees of a sweep in a terminal: real ranks, under a pseudo-terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.support.started import QUICK

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 120
COLUMNS = 60
CODE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")


class Terminal:
    """As much of a terminal as the display uses: lines, and codes that move and erase."""

    def __init__(self, columns: int) -> None:
        self.columns, self.lines, self.row, self.column = columns, [""], 0, 0
        self.seen: list[str] = []  # the screen, each time a line of it is erased

    def write(self, text: str) -> None:
        at = 0
        for code in CODE.finditer(text):
            self._print(text[at : code.start()])
            self._obey(code[1], code[2])
            at = code.end()
        self._print(text[at:])

    def _obey(self, value: str, letter: str) -> None:
        assert letter in "mhlAK", f"{value}{letter}: no code that this terminal knows"
        if letter == "A":
            self.row = max(0, self.row - int(value or 1))
        elif letter == "K":
            assert value == "2"
            self.seen.append("\n".join(self.lines))
            self.lines[self.row] = ""

    def _print(self, text: str) -> None:
        for character in text:
            if character == "\r":
                self.column = 0
            elif character == "\n":
                self._next_line()
            else:
                if self.column == self.columns:
                    self._next_line()
                    self.column = 0
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
                self.column += 1

    def _next_line(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")


def on_terminal(command: list[str], columns: int, cwd: Path) -> tuple[int, Terminal]:
    """Runs the command with its standard error on a terminal."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    env = {**os.environ, "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    env = {name: value for name, value in env.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=its, cwd=cwd, env=env)
    os.close(its)
    read, ends_at = b"", time.monotonic() + LIMIT_S
    try:
        with contextlib.suppress(OSError):  # it has ended
            while time.monotonic() < ends_at:
                if select.select([ours], [], [], 1)[0]:
                    read += os.read(ours, 65536)
        code = process.wait(timeout=10)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    terminal = Terminal(columns)
    terminal.write(read.decode())
    return code, terminal


@pytest.mark.dist
def test_a_sweep_in_a_terminal_says_what_it_does_and_how_long_and_what_is_best(
    tmp_path: Path,
) -> None:
    command = [sys.executable, str(ROOT / "runners" / "bench.py"), "-m", "strategy=simple,tp"]
    command += ["topk=2,4", "world_size=2", "tracker=none", *QUICK]
    command += ["measure.block_gloo_ms=50", f"hydra.sweep.dir={tmp_path}/sweep"]
    code, terminal = on_terminal(command, COLUMNS, tmp_path)
    seen = "\n".join(terminal.seen)
    assert code == 0, seen
    assert re.search(r"^4 cells in 1 launch: about \d+ s, perhaps \d+ (s|min)$", seen, re.M)
    assert "starting 2 ranks on gloo" in seen
    assert re.search(r"^round [1-6] of 6$", seen, re.M)
    assert re.search(r"^[━─]+ 0/4 done  0:\d\d  (about|longer than expected)", seen, re.M)
    assert re.search(r"about [1-9]\d* s left", seen)
    assert re.search(r"^best so far:$", seen, re.M)
    assert re.search(r"^  k=4: \w+ [\d.]+ ms \(next \w+ [\d.]+ ms\)$", seen, re.M)
    stays = [line for line in terminal.lines if line and not line.startswith("note: ")]
    left = [line for line in stays if re.search(r"[━─]|so far| left|^round|^  k=", line)]
    assert left == []  # the display has gone; cells and the last line stay
    assert [line[:5] for line in stays if line.startswith("[")] == [f"[{n}/4]" for n in range(1, 5)]
    assert "4 of 4 cells correct and measured" in "".join(terminal.lines)
