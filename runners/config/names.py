"""Names that become parts of paths: the sweep's name, and a cell's label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runners.errors import ConfigError

LABEL_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


def safe_name(name: object) -> str:
    """The sweep's name, safe as part of a folder's name; raises ConfigError."""
    text = str(name)
    if not 0 < len(text) <= 80 or not set(text) <= LABEL_CHARACTERS:
        raise ConfigError(
            f"name={text!r}: allowed are 1 to 80 letters, digits, '_' and '-'; rename the sweep"
        )
    return text


def label_of(config: Mapping[str, Any]) -> str:
    """A cell's label, safe as part of a folder's name; raises ConfigError."""
    value = config.get("label", "")
    text = "" if value is None else str(value)
    if len(text) > 40 or not set(text) <= LABEL_CHARACTERS:
        raise ConfigError(
            f"label={text!r}: allowed are up to 40 letters, digits, '_' and '-'; rename the label"
        )
    return text
