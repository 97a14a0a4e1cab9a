"""Single fields of a resolved config, read and checked. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MAX_SIZE = 2**31 - 1
LABEL_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


class ConfigError(ValueError):
    """Bad input, found before anything is started: one line, exit code 2."""


def integer(config: Mapping[str, Any], name: str, minimum: int = 1, key: str = "") -> int:
    """config[key or name] as an int of at least `minimum`; raises ConfigError naming `name`."""
    value = config[key or name.rsplit(".", 1)[-1]]
    if type(value) is not int or not minimum <= value <= MAX_SIZE:
        raise ConfigError(
            f"{name}={value!r}: allowed are whole numbers from {minimum} to {MAX_SIZE}; "
            f"set {name} to one of them"
        )
    return value


def number(config: Mapping[str, Any], name: str, minimum: float = 0.0) -> float:
    """A finite float of at least `minimum`; raises ConfigError."""
    value = config[name.rsplit(".", 1)[-1]]
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not minimum <= value < float("inf"):
        raise ConfigError(
            f"{name}={value!r}: allowed are finite numbers of at least {minimum}; "
            f"set {name} to one of them"
        )
    return float(value)


def choice(config: Mapping[str, Any], name: str, allowed: Sequence[str]) -> str:
    value = config[name.rsplit(".", 1)[-1]]
    if value not in allowed:
        raise ConfigError(
            f"{name}={value!r}: allowed are {', '.join(allowed)}; set {name} to one of them"
        )
    return str(value)


def boolean(config: Mapping[str, Any], name: str, *others: str) -> bool:
    """`others` are words that the caller takes care of, for the error."""
    value = config[name.rsplit(".", 1)[-1]]
    if not isinstance(value, bool):
        allowed = ", ".join(("true", "false", *others))
        raise ConfigError(f"{name}={value!r}: allowed are {allowed}; set {name} to one of them")
    return value


def only_keys(config: Mapping[str, Any], name: str, known: str) -> None:
    """Raises ConfigError for a key that nothing would read."""
    node: Any = config
    for part in filter(None, name.split(".")):
        node = node[part]
    unknown = sorted(set(node) - set(known.split()))
    if unknown:
        where = f"{name}." if name else ""
        raise ConfigError(
            f"{where}{unknown[0]}={node[unknown[0]]!r}: no such key; allowed are "
            f"{', '.join(known.split())}; leave it out"
        )


def safe_name(name: object) -> str:
    """The sweep's name as part of a folder's: nothing that could lead elsewhere."""
    text = str(name)
    if not 0 < len(text) <= 80 or not set(text) <= LABEL_CHARACTERS:
        raise ConfigError(
            f"name={text!r}: allowed are 1 to 80 letters, digits, '_' and '-'; rename the sweep"
        )
    return text


def label_of(config: Mapping[str, Any]) -> str:
    value = config.get("label", "")
    text = "" if value is None else str(value)
    if len(text) > 40 or not set(text) <= LABEL_CHARACTERS:
        raise ConfigError(
            f"label={text!r}: allowed are up to 40 letters, digits, '_' and '-'; rename the label"
        )
    return text
