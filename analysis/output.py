"""Text for the user: to standard output without control characters, or to a file."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from analysis.errors import InputError


def harmless(text: str) -> str:
    """The text with control characters as "?", which steer a terminal; a record's names may hold
    them."""
    return "".join(
        "?" if unicodedata.category(c).startswith("C") and c not in "\n\t" else c for c in text
    )


def write_output(text: str, output: str) -> None:
    """Writes to the file `output` and prints its path; prints the text where `output` is empty.
    Raises InputError for a file that cannot be written."""
    if not output:
        print(harmless(text))
        return
    print(write_file(text, output))


def write_file(text: str, output: str | Path) -> Path:
    """The path; raises InputError for a file that cannot be written."""
    path = Path(output)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise cannot_write(output, error) from error
    return path


def cannot_write(output: str | Path, error: Exception) -> InputError:
    """The error for a file that cannot be written, and why."""
    why = getattr(error, "strerror", None) or error
    return InputError(f"-o {output}: cannot be written ({why}); name another file")
