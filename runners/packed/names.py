"""What a sweep is called in a packed file, and so what the file is called."""

from __future__ import annotations

import re

from runners.packed.guard import guard_of

MOST = 60  # characters
NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MOST - 1}}}")
ALLOWED_NAME = f"allowed are 1 to {MOST} letters, digits, '.', '_' and '-', a letter or digit first"
NO_NAME = "sweep"  # where nothing of a name is left
_OTHERS = re.compile(r"[^A-Za-z0-9._-]")


def file_name(text: str) -> str:
    """The nearest allowed name: other characters are "-", and what may not come first, dots and
    hyphens at the end, and what is too long, are cut off. "sweep" where nothing is left, and where
    the text names this machine or its user."""
    kept = NAME.search(_OTHERS.sub("-", text))
    return kept[0].rstrip(".-") if kept and guard_of().harmless(text) else NO_NAME
