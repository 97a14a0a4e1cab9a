"""Numbers as text: three significant figures, and never less than the whole part."""

from __future__ import annotations

import math


def short(value: float, digits: int = 3) -> str:
    """0.137, 12.3, 1,234; a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    rounded = round(value, decimals)
    if rounded and math.floor(math.log10(abs(rounded))) > math.floor(math.log10(abs(value))):
        decimals = max(0, decimals - 1)
    return f"{value:,.{min(decimals, 9)}f}"


def counted(count: int, noun: str, several: str = "") -> str:
    """ "1 cell", "2 cells"; "2 launches" where `several` is launches."""
    return f"{count} {noun}" if count == 1 else f"{count} {several or noun + 's'}"


def like(value: float, model: str) -> str:
    """With as many decimals as `model`, so that an interval lines up with its estimate."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:,.{len(model.partition('.')[2])}f}"


def with_interval(value: float, low: float, high: float) -> str:
    """ "0.137 [0.131, 0.142]", or the value alone where there is no interval."""
    text = short(value)
    if not (math.isfinite(low) or math.isfinite(high)):
        return text
    return f"{text} [{like(low, text)}, {like(high, text)}]"


def bytes_text(value: float) -> str:
    """ "1.50 KiB", in GiB at most."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{short(value)} {unit}"


def ratio(value: float) -> str:
    """1/8 for an eighth; other numbers as they are."""
    part = 1 / value if 0 < value < 1 else 0.0
    return f"1/{part:.0f}" if part and abs(part - round(part)) < 1e-9 else f"{value:g}"
