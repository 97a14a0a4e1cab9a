"""Reading small files that a user names: bounded, and never one that does not end. Torch-free."""

from __future__ import annotations

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
