"""`check --submission`: whether a packed file may go into the gallery.

Problems refuse a file; remarks are shown beside it. Every figure is computed anew from the records.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

from analysis.errors import InputError
from analysis.output import write_output
from analysis.packing import submission_rules
from analysis.text import render
from runners.packed.container import SUFFIX, PackedError
from runners.packed.download import is_address
from runners.packed.packed_file import Packed, read_packed

MOST_BYTES = 5_000_000
NAME = re.compile(rf"[a-z0-9][a-z0-9.-]*{re.escape(SUFFIX)}")
EXAMPLE = f"python -m analysis check docs/results/packed/NAME{SUFFIX} --submission"


@dataclass(frozen=True)
class Review:
    """What is to be said of a file, a line each."""

    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def lines(self, name: str) -> list[str]:
        """All of it, then the outcome."""
        count = len(self.problems)
        outcome = f"{count} problem{'s' * (count != 1)}" if count else "may be submitted"
        return [
            *(f"problem: {text}" for text in self.problems),
            *(f"remark: {text}" for text in self.remarks),
            f"{name}: {outcome}",
        ]


def run(options: argparse.Namespace) -> int:
    """Writes a review of every source; exit code 1 where one has problems, as what is no packed
    file has. Raises InputError for what is no file on this machine, and for filters."""
    sources = options.sources
    if options.filter:
        raise InputError(
            f"--filter {options.filter[0]}: not with --submission; a file is submitted whole; "
            f"pack fewer cells with {submission_rules.PACK} and --filter"
        )
    if not sources:
        raise InputError(f"check --submission: no file; allowed are packed files; {EXAMPLE}")
    for source in sources:
        if is_address(source) or Path(source).is_dir():
            raise InputError(
                f"check --submission {source}: allowed are files NAME{SUFFIX} on this machine; "
                f"make one of a sweep with {submission_rules.PACK}"
            )
        if not Path(source).exists():
            raise InputError(
                f"check --submission {source}: no such file; allowed are files NAME{SUFFIX}; "
                f"{EXAMPLE}"
            )
    reviews = {source: of_file(Path(source)) for source in sources}
    lines = [line for source, review in reviews.items() for line in review.lines(source)]
    write_output(render.lines(lines, options.format), options.output)
    return 1 if any(review.problems for review in reviews.values()) else 0


def of_file(path: Path) -> Review:
    """A packed file: its name, its size, what is in it."""
    problems = []
    if not NAME.fullmatch(path.name):
        problems.append(
            f"name {path.name}: allowed are lowercase letters, digits, dots and hyphens, then "
            f"{SUFFIX}; next: rename the file"
        )
    try:
        packed, size = read_packed(path), path.stat().st_size
    except (PackedError, OSError) as error:
        return Review((*problems, str(error)))
    if size > MOST_BYTES:
        problems.append(
            f"{size:,} bytes: allowed are {MOST_BYTES:,}; next: pack fewer cells (--filter)"
        )
    inside = of_packed(packed)
    return Review((*problems, *inside.problems), inside.remarks)


def of_packed(packed: Packed) -> Review:
    """What is in a packed file."""
    contents = submission_rules.contents(packed)
    return Review(
        tuple(submission_rules.problems(contents)), tuple(submission_rules.remarks(contents))
    )
