"""Stands in for the schema until it is here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def portable(content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    return {**content, "notes": [], "error": None}, []


def faults(content: Mapping[str, Any]) -> list[str]:
    return []


def portable_command(command: str) -> str:
    return command


def portable_overrides(words: Sequence[str]) -> list[str]:
    return list(words)
