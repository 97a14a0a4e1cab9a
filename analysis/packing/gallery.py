"""The gallery: pages on the packed files of a folder.

    python -m analysis.packing.gallery [FOLDER] [-o docs/results]

writes gallery.md, a table of the files in docs/results/packed (or FOLDER), and gallery.html, a
page with the strategy that is fastest by model, batch size and machine.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from analysis.errors import InputError
from analysis.output import harmless
from analysis.packing import gallery_page
from analysis.packing.gallery_entries import Entry, entries
from analysis.text import render
from runners.host.streams import reader_may_leave
from runners.packed.container import SUFFIX

FOLDER, PAGES = Path("docs/results/packed"), Path("docs/results")
INDEX, PAGE = "gallery.md", "gallery.html"
HEADER = ("file", "machine", "what", "cells", "measured", "commit", "size", "look at it")
MARKUP = re.compile(r"([\[\]`*])")  # of Markdown, beside what `render.cell_text` escapes
HEADING = f"""<!-- Written by `python -m analysis.packing.gallery`: do not edit. -->

# Gallery

Packed files: each has the records of a sweep, from which every figure is computed anew. The page
[{PAGE}]({PAGE}) shows which strategy is fastest by model, batch size and machine; open it in a
browser, from a clone. `make gallery` writes both;
[CONTRIBUTING](../../CONTRIBUTING.md#submitting-a-measurement) says how to submit a file.
"""


def index(files: Sequence[Entry]) -> str:
    """gallery.md."""
    if not files:
        return f"{HEADING}\nThere is no file yet.\n"
    rows = [_index_row(one) for one in files]
    table = [f"| {' | '.join(row)} |" for row in (HEADER, ["---"] * len(HEADER), *rows)]
    return "\n".join([HEADING, *table, ""])


def _index_row(one: Entry) -> list[str]:
    """Cells in Markdown, in which every text of a file is only text."""
    facts = (one.machine, one.what, one.cells, one.date, one.commit, one.size)
    link = f"[{_plain(one.name)}]({one.link})"
    return [link, *map(_plain, facts), f"<code>{_plain(one.command('show'))}</code>"]


def _plain(text: str) -> str:
    return MARKUP.sub(r"\\\1", render.cell_text(text))


def texts(folder: Path, pages: Path) -> dict[str, str]:
    """The text of each page by its name, for the packed files in a folder; warns of one that is
    left out. Raises InputError for one that cannot be used, OSError for the folder."""
    files = entries([path for path in folder.iterdir() if path.suffix == SUFFIX], pages)
    return {INDEX: index(files), PAGE: gallery_page.html(files)}


@reader_may_leave()
def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 2 for folders and files that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.packing.gallery", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, metavar="FOLDER")
    parser.add_argument("-o", "--output", type=Path, default=PAGES, help="folder of the pages")
    options = parser.parse_args(arguments)
    try:
        if not options.folder.is_dir():
            raise InputError(f"{options.folder}: no such folder; give one with files *{SUFFIX}")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pages = texts(options.folder, options.output)
        for warning in caught:
            _say(f"warning: {warning.message}")
        options.output.mkdir(parents=True, exist_ok=True)
        for name, text in pages.items():
            (options.output / name).write_text(text, "utf-8")
            print(options.output / name)
    except InputError as error:
        _say(str(error))
        return 2
    except OSError as error:
        where = error.filename or options.output
        _say(f"{where}: {error.strerror}; give folders that can be read and written (-o)")
        return 2
    return 0


def _say(text: str) -> None:
    print(harmless(f"gallery: {' '.join(text.split())}"), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
