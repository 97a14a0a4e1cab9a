"""Tables as text, Markdown or CSV."""

from __future__ import annotations

import csv
import io
import re
import shutil
import textwrap
from collections.abc import Sequence

from tabulate import tabulate

from analysis.text.tables import Table, long_rows

# A table with fewer rows than columns is transposed from this many characters or columns on.
WIDEST, MOST_COLUMNS = 120, 6
PIPED_WIDTH = 100  # of sentences where there is no terminal
LEAST_WIDTH = 40
COMMAND = " " * 4  # starts a line that is a command
SHELL_WORDS = re.compile(r"""(?:'[^']*'|"[^"]*"|[^\s'"])+""")


def tables(shown: Sequence[Table], style: str) -> str:
    """All tables in one style."""
    if style == "csv":
        return as_csv(shown)
    return "\n\n".join(_one(table, style) for table in shown)


def grid(table: Table) -> list[list[str]]:
    """Row label, then the entry of every column; empty where the sweep has no cell."""
    return [
        [
            row,
            *(entry.text if (entry := table.entries.get((row, c))) else "" for c in table.columns),
        ]
        for row in table.rows
    ]


def _one(table: Table, style: str) -> str:
    """Transposed where it is wider than a terminal and has fewer rows than columns."""
    heading = f"**{cell_text(table.title)}**" if style == "markdown" else table.title
    header, rows = [table.corner, *table.columns], grid(table)
    body = simple(header, rows, style)
    wide = len(body.split("\n", 1)[0]) > WIDEST or len(table.columns) >= MOST_COLUMNS
    if wide and len(rows) < len(table.columns):
        turned = [list(column) for column in zip(header, *rows, strict=True)]
        body = simple(turned[0], turned[1:], style)
    return "\n".join([heading, "", body, *table.notes])


def simple(header: Sequence[str], rows: Sequence[Sequence[str]], style: str) -> str:
    """Any small table of texts."""
    if style == "csv":
        return _csv(header, rows)
    if style == "markdown":
        header = [cell_text(h) for h in header]
        rows = [[cell_text(value) for value in row] for row in rows]
    form = "pipe" if style == "markdown" else "simple"
    return str(tabulate(rows, headers=header, tablefmt=form, disable_numparse=True))


def cell_text(text: str) -> str:
    """On one line; what would end a Markdown cell or start HTML is escaped."""
    clean = " ".join(str(text).split()).replace("\\", "\\\\").replace("|", "\\|")
    return clean.replace("<", "&lt;").replace(">", "&gt;")


def as_csv(shown: Sequence[Table]) -> str:
    """Long form: one entry a line at full precision."""
    rows = long_rows(list(shown))
    header = list(dict.fromkeys(name for row in rows for name in row))
    # Two tables may have different axes: the axis columns of the others stay empty.
    return _csv(header, [[str(row.get(name, "")) for name in header] for row in rows])


def _csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue().rstrip("\n")


def lines(texts: Sequence[str], style: str) -> str:
    """Lines wrapped to the terminal's width; in Markdown a list; in CSV they are comments."""
    if style == "markdown":
        return "\n".join(f"- {cell_text(line)}" for line in texts)
    if style == "csv":
        return "\n".join(f"# {' '.join(line.split())}" for line in texts)
    width = shutil.get_terminal_size((PIPED_WIDTH, 0)).columns
    return "\n".join(part for line in texts for part in wrapped(line, width))


def commands(texts: Sequence[str], style: str) -> str:
    """As `lines`, where a line that starts with COMMAND is a command of a shell: in text its parts
    end with a backslash, so that it can be copied; in Markdown it is code."""
    parts = []
    for line in texts:
        command = line.removeprefix(COMMAND)
        if command == line or style == "csv":
            parts.append(lines([line], style))
        elif style == "markdown":
            parts.append(f"  `{command}`")
        else:
            parts += _typed(command, shutil.get_terminal_size((PIPED_WIDTH, 0)).columns)
    return "\n".join(parts)


def _typed(command: str, width: int) -> list[str]:
    """The command's words in lines of at most this width, all but the last with a backslash."""
    parts = [COMMAND]
    for word in SHELL_WORDS.findall(command):
        if len(parts[-1]) + len(word) > max(width, LEAST_WIDTH) - 3 and parts[-1].strip():
            parts.append(COMMAND + "  ")
        parts[-1] += f" {word}" if parts[-1].strip() else word
    return [*(f"{part} \\" for part in parts[:-1]), parts[-1]]


def wrapped(line: str, width: int) -> list[str]:
    """The line in parts of at most this width, split at blanks; later parts are indented by two
    more than the first. A word that is longer keeps a line of its own."""
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.wrap(
        line, max(width, LEAST_WIDTH), subsequent_indent=indent, break_long_words=False,
        break_on_hyphens=False, drop_whitespace=True,
    ) or [""]  # fmt: skip
