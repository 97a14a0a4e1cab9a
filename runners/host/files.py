"""Reading small files: those that a user names, bounded, and the kernel's. Torch-free."""

from __future__ import annotations

import re
from pathlib import Path

LIMIT_BYTES = 16 << 20


def small_text(path: str | Path, limit_bytes: int = LIMIT_BYTES) -> str:
    """The text of a regular file; raises OSError for what is none (a device or pipe may never end)
    or is larger, ValueError for a name or content that is not text."""
    found = Path(path)
    if not found.is_file():
        raise OSError(f"{found}: no such regular file")
    if found.stat().st_size > limit_bytes:
        raise OSError(f"{found}: larger than {limit_bytes} bytes")
    with found.open("rb") as file:
        return file.read(limit_bytes).decode("utf-8")


def text(path: str | Path) -> str | None:
    """A file of the kernel's, stripped; None where it is empty or cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def number(text: str | None) -> int | None:
    """None for what is not a whole number of 64 bits."""
    return int(text) if text and re.fullmatch(r"-?[0-9]{1,19}", text) else None
