"""Names of packed files, which their sweeps have inside them."""

from __future__ import annotations

import re

from runners.packed.guard import guard_of

MOST = 60  # characters
NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MOST - 1}}}")
ALLOWED_NAME = f"allowed are 1 to {MOST} letters, digits, '.', '_' and '-', a letter or digit first"
USUAL = "sweep"


def file_name(text: str) -> str:
    """The nearest allowed name; "sweep" where nothing is left, and where the text names this
    machine or its user."""
    if not guard_of().harmless(text):
        return USUAL
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", text).lstrip("._-")
    return plain[:MOST].rstrip(".-") or USUAL
