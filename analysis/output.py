"""Text for the user: to standard output without control characters, or to a file."""

from __future__ import annotations

import unicodedata
from pathlib import Path


def harmless(text: str) -> str:
    """The text with control characters as "?", which steer a terminal; a record's names may hold
    them."""
    return "".join(
        "?" if unicodedata.category(c).startswith("C") and c not in "\n\t" else c for c in text
    )


def write_output(text: str, output: str) -> None:
    """Writes to the file `output` and prints its path; prints the text where `output` is empty."""
    if not output:
        print(harmless(text))
        return
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    print(path)
