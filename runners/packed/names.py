"""What a sweep is called in a packed file, and so what the file is called."""

from __future__ import annotations

import re

from runners.packed.packed_file import ALLOWED_NAME, NAME

__all__ = ["ALLOWED_NAME", "NAME", "file_name"]
_OTHERS = re.compile(r"[^A-Za-z0-9._-]")
NO_NAME = "sweep"  # where nothing of a name is left


def file_name(text: str) -> str:
    """The nearest allowed name: other characters are "-", and what may not come first, dots and
    hyphens at the end, and what is too long, are cut off. "sweep" where nothing is left."""
    kept = NAME.search(_OTHERS.sub("-", text))
    return kept[0].rstrip(".-") if kept else NO_NAME
