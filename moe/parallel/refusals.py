"""Checks of single values; each raises Unsupported. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable

from moe.spec import Unsupported


def one_of(name: str, value: object, allowed: Iterable[object]) -> None:
    """Requires one of `allowed`. `name` is the field, then words that say what the choice depends
    on: "tokens for strategy=serial"."""
    choices, (field, _, why) = tuple(allowed), name.partition(" ")
    if value not in choices:
        listed = "|".join(str(one) or "null" for one in choices)
        raise Unsupported(field, value, f"{listed} {why}".strip(), "choose one of these")


def whole(name: str, value: object, least: int) -> None:
    """Requires an int of at least `least`; True and False are refused."""
    if type(value) is not int or value < least:
        raise Unsupported(name, value, f"whole numbers from {least}", f"set {name} to one")


def at_least_0(name: str, value: float) -> None:
    """Requires a finite number of at least 0."""
    if not 0 <= value < float("inf"):
        raise Unsupported(name, value, "finite numbers from 0", f"set {name} to one")
