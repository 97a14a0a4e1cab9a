"""The pages of docs/results/: measured figures, each below the command that prints it.

    python -m benchmarks.docs.results                  # writes every page
    python -m benchmarks.docs.results --list           # names of the figures, with their commands
    python -m benchmarks.docs.results --measure NAME   # runs that figure's command and stores it

A page is a template in benchmarks/docs/pages/ with a line `{{ figure: NAME }}` for each figure. The
figures are files in benchmarks/results/, and figures.toml there says where each comes from.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "results"
TEMPLATES = ROOT / "benchmarks" / "docs" / "pages"
STORE = ROOT / "benchmarks" / "results"
TABLE = STORE / "figures.toml"
ELSEWHERE = PAGES / "gallery.md"  # written by python -m analysis.packing.gallery
MARKER = re.compile(r"^\{\{ figure: (\w+) \}\}$", re.MULTILINE)


@dataclass(frozen=True)
class Figure:
    """What a benchmark printed, and how to print it again."""

    name: str
    command: str  # in the project's root; of `a && b` the second prints the figure
    machine: str  # in words
    measured_on: datetime.date
    minutes: int = 0  # how long the command takes; 0: not noted
    by_hand: str = ""  # how the stored file differs from what the command prints
    text: bool = False  # whether the output is plain text, not Markdown

    @property
    def path(self) -> Path:
        return STORE / f"{self.name}.md"

    def markdown(self) -> str:
        """The command, when and where it ran, and what it printed."""
        output = self.path.read_text("utf-8").rstrip()
        lines = self.command.split(" && ")
        duration = f" Takes about {self.minutes} minutes." if self.minutes else ""
        difference = f" Put together by hand: {self.by_hand}." if self.by_hand else ""
        return "\n\n".join([
            "\n".join(f"    {line}" for line in lines),
            f"*{self.measured_on}, {self.machine}.{duration}{difference}*",
            textwrap.indent(output, "    ") if self.text else output,
        ])  # fmt: skip


@functools.cache
def figures() -> dict[str, Figure]:
    """Every figure by its name, as figures.toml has them."""
    table = tomllib.loads(TABLE.read_text("utf-8"))
    machines: dict[str, str] = table["machines"]
    return {
        name: Figure(name=name, **{**entry, "machine": machines[entry["machine"]]})
        for name, entry in table["figures"].items()
    }


def names_in(template: str) -> list[str]:
    """The figures that a template shows, in its order."""
    return MARKER.findall(template)


def filled(template: str) -> str:
    """A template with its figures; raises KeyError for one without an entry."""
    return MARKER.sub(lambda found: figures()[found[1]].markdown(), template)


def rendered(template: Path) -> str:
    """The page of a template, below a notice that it is generated."""
    source = template.relative_to(ROOT)
    notice = f"<!-- Written by `python -m benchmarks.docs.results` from {source}: do not edit. -->"
    return f"{notice}\n\n{filled(template.read_text('utf-8'))}"


def pages() -> Iterator[tuple[Path, str]]:
    """Every page: its path, and its text as it should be."""
    for template in sorted(TEMPLATES.glob("*.md")):
        yield PAGES / template.name, rendered(template)


def write() -> None:
    """Writes every page, and removes those without a template but the gallery's."""
    texts = dict(pages())
    for stale in set(PAGES.glob("*.md")) - {*texts, ELSEWHERE}:
        stale.unlink()
    for path, text in texts.items():
        path.write_text(text, "utf-8")
        print(path.relative_to(ROOT))


def dated(table: str, name: str, today: datetime.date) -> str:
    """The text of figures.toml with another date for one figure; the rest is as it was."""
    entry = re.compile(rf"(\[figures\.{name}\]\n(?:.+\n)*?measured_on = )\S+")
    changed, count = entry.subn(rf"\g<1>{today}", table)
    if count != 1:
        raise ValueError(f"{name}: {count} entries in {TABLE.name}; allowed is one")
    return changed


def measure(name: str) -> None:
    """Runs the figure's command and stores what it prints; raises SystemExit where it can't."""
    if name not in figures():
        raise SystemExit(f"--measure {name}: allowed are {', '.join(figures())}")
    figure = figures()[name]
    if figure.by_hand:
        raise SystemExit(
            f"--measure {name}: put together by hand ({figure.by_hand}); run\n"
            f"    {figure.command}\nand edit {figure.path.relative_to(ROOT)}"
        )
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    output = ""
    for command in figure.command.split(" && "):  # of several, the last one prints the figure
        done = subprocess.run(
            ["bash", "-c", command], cwd=ROOT, env={**os.environ, "PATH": search},
            stdout=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        output = done.stdout.strip("\n")
        if done.returncode or not output:
            raise SystemExit(f"{command}: exit code {done.returncode}; nothing was stored")
    figure.path.write_text(output + "\n", "utf-8")
    TABLE.write_text(dated(TABLE.read_text("utf-8"), name, datetime.date.today()), "utf-8")
    figures.cache_clear()
    print(f"{figure.path.relative_to(ROOT)}; the machine in {TABLE.name} may be another now")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.docs.results", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="names and commands")
    parser.add_argument("--measure", metavar="NAME", help="measure this figure first")
    arguments = parser.parse_args()
    if arguments.list:
        for figure in figures().values():
            print(f"{figure.name:24} {figure.command}")
        return
    if arguments.measure:
        measure(arguments.measure)
    write()


if __name__ == "__main__":
    main()
