"""Bounded reads of small files: the user's and the kernel's. Torch-free."""

from __future__ import annotations

import re
from pathlib import Path

LIMIT_BYTES = 16 << 20


def small_text(path: str | Path, limit_bytes: int = LIMIT_BYTES) -> str:
    """Text of a regular file. Raises OSError where it is not one (a device or pipe may never end)
    or is larger than `limit_bytes`, ValueError where the name or content is not text."""
    source = Path(path)
    if not source.is_file():
        raise OSError(f"{source}: no such regular file")
    if source.stat().st_size > limit_bytes:
        raise OSError(f"{source}: larger than {limit_bytes} bytes")
    with source.open("rb") as file:
        return file.read(limit_bytes).decode("utf-8")


def text(path: str | Path) -> str | None:
    """Stripped text of a kernel file; None where it is empty or unreadable."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def number(text: str | None) -> int | None:
    """The whole number of up to 19 digits in a text, else None."""
    return int(text) if text and re.fullmatch(r"-?[0-9]{1,19}", text) else None
