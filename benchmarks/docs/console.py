"""The commands of a page, run in a copy of the project, and their outputs written into the page.

    python -m benchmarks.docs.console README.md docs/getting-started.md

A fenced block of the kind `console` holds one command after `$ ` and what it prints. Its first line
may say which part is shown and where a picture goes:

    ```console start="In short" paragraphs=1 picture=plots/speed_vs_batch.png:docs/crossover.png

`start`: from the first line that begins so; `lines` or `paragraphs`: so many, with `...` for the
rest; `picture`: a file of the newest sweep, copied to a path of the project. Blocks of the kind
`sh` hold commands whose output is not shown; they are not run here. Nothing else of the page is
touched.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("moe", "runners", "analysis", "benchmarks", "conf", "docs")
FILES = ("Makefile", "pyproject.toml", "constraints.txt", "README.md")
LIMIT_S = 1200.0
WIDTH = 100
KEPT = ("PATH", "HOME", "USER", "LANG", "TMPDIR")  # of the surroundings
BLOCK = re.compile(r"^```(console|sh)\b[ ]*([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"\s{2,}#.*$")


@dataclass(frozen=True)
class Block:
    """One fenced block: its commands, what is shown below them, and its options."""

    commands: list[str]
    output: list[str] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)
    text: str = ""  # as it stands in the page


def blocks(page: str) -> Iterator[Block]:
    """Every block of commands, in order."""
    for match in BLOCK.finditer(page):
        kind, options, body = match.groups()
        words = dict(word.split("=", 1) for word in shlex.split(options))
        lines = body.replace("\\\n", " ").splitlines()
        if kind == "console":
            command = " ".join(lines[0].removeprefix("$ ").split())
            yield Block([command], lines[1:], words, match[0])
        else:
            commands = [" ".join(COMMENT.sub("", line).split()) for line in lines]
            yield Block([c for c in commands if c and not c.startswith("#")], [], words, match[0])


def copy_project(
    folder: Path, folders: Sequence[str] = COPIED, files: Sequence[str] = FILES
) -> Path:
    """A part of the project, by default what the commands of a page need, in a new folder."""
    copy = folder / "moe-bench"
    for name in folders:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in files:
        shutil.copy(ROOT / name, copy / name)
    (copy / "outputs").mkdir()
    return copy


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command in this folder, as a user would run it there; paths below it are relative in the
    output."""
    words = shlex.split(command)
    settings = {
        **{name: os.environ[name] for name in KEPT if name in os.environ},
        "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": str(WIDTH),
        "WANDB_MODE": "offline",
    }  # fmt: skip
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        name, _, value = words.pop(0).partition("=")
        settings[name] = value
    program = Path(words[0]).name
    if program == "python":
        words[0] = sys.executable
    elif program != "make":
        words[0] = str(Path(sys.executable).parent / program)
    done = subprocess.run(
        words, cwd=folder, env=settings, text=True, check=False, timeout=LIMIT_S,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    done.stdout = done.stdout.replace(f"{folder}/", "")
    return done


def shown(output: str, options: dict[str, str]) -> list[str]:
    """The lines that the page shows, `...` where lines are left out."""
    lines = [line.rstrip() for line in output.rstrip().splitlines()]
    start = options.get("start", "")
    first = next((n for n, line in enumerate(lines) if line.strip().startswith(start)), 0)
    last = first + int(options.get("lines", len(lines)))
    if "paragraphs" in options:
        ends = [n for n in range(first, len(lines)) if not lines[n]]
        last = [*ends, len(lines)][min(int(options["paragraphs"]) - 1, len(ends))]
    return ["..."] * (first > 0) + lines[first:last] + ["..."] * (last < len(lines))


def record(page: Path, folder: Path) -> None:
    """Runs the page's commands in the copy and writes what they print into the page; raises
    SystemExit where one fails."""
    text = page.read_text("utf-8")
    for block in blocks(text):
        if not block.text.startswith("```console"):
            continue
        print(f"$ {block.commands[0]}", file=sys.stderr, flush=True)
        done = run(block.commands[0], folder)
        finds_limits = " check" in block.commands[0]  # exit code 1: there is something to say
        if done.returncode not in ((0, 1) if finds_limits else (0,)):
            raise SystemExit(f"{block.commands[0]}: exit code {done.returncode}\n{done.stdout}")
        before = block.text.splitlines()
        command = before[1 : _after_command(before)]
        lines = [before[0], *command, *shown(done.stdout, block.options), "```"]
        text = text.replace(block.text, "\n".join(lines))
        if picture := block.options.get("picture"):
            source, _, target = picture.partition(":")
            shutil.copy(folder / "outputs" / "latest" / source, ROOT / target)
    page.write_text(text, "utf-8")


def _after_command(lines: list[str]) -> int:
    """Index of the first line after the command, which `\\` continues."""
    end = 1
    while lines[end].endswith("\\"):
        end += 1
    return end + 1


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.docs.console", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("pages", nargs="+", type=Path, help="Markdown files")
    for page in parser.parse_args().pages:
        with tempfile.TemporaryDirectory() as folder:
            record(page.resolve(), copy_project(Path(folder)))
        print(page)


if __name__ == "__main__":
    main()
