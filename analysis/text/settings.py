"""Words for settings: one of them, and which of many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.data.facets import title_of

BARE = ("model", "load", "mode", "dtype")  # columns whose values say what they are
NAMED = 3  # settings, or parts of them, that are written out
Fixed = Mapping[str, Any]  # a setting: a value by column


def value(name: str, one: Any) -> str:
    """ "qwen3_30b_a3b", "4,096 tokens", "forced balance", "sharded tokens", "ranks 8"."""
    if name in BARE:
        return str(one)
    if name == "batch_size":
        return f"{one:,} token{'s' * (one != 1)}"
    return f"{one} tokens" if name == "tokens" else f"{title_of(name)} {one}"


def words(fixed: Fixed, names: Sequence[str]) -> str:
    """The values of these columns, but for texts that are empty: "1 token, zipf 1, forward"."""
    return ", ".join(value(n, fixed[n]) for n in names if fixed[n] != "")


def some(chosen: Sequence[Fixed], every: Sequence[Fixed], names: Sequence[str]) -> str:
    """Which of all settings these are: "at 4 of 16 settings (1 token, forward)"; empty for the
    only one. `names` are the columns that vary."""
    if len(every) == 1:
        return ""
    if len(chosen) == len(every):
        return "at both settings" if len(every) == 2 else f"at all {len(every)} settings"
    which = _which(chosen, every, names)
    return f"at {len(chosen)} of {len(every)} settings" + (f" ({which})" if which else "")


def _which(chosen: Sequence[Fixed], every: Sequence[Fixed], names: Sequence[str]) -> str:
    """By the values that they alone have; else by those of each value of one column; else, for few,
    one by one; else empty."""
    product = _product(chosen, every, names)
    if product is not None:
        return _joined(product, names)
    divisions = [parts for name in names if (parts := _split(chosen, every, names, name))]
    best = min(divisions, key=len, default=[])
    if best and len(best) <= NAMED and len(best) < len(chosen):
        return "; ".join(best)
    return "; ".join(words(c, names) for c in chosen) if len(chosen) <= NAMED else ""


def _product(
    chosen: Sequence[Fixed], every: Sequence[Fixed], names: Sequence[str]
) -> dict[str, str] | None:
    """By column the values that these settings have and no other; None where there are none."""
    values = {name: list(dict.fromkeys(c[name] for c in chosen)) for name in names}
    inside = [e for e in every if all(e[name] in values[name] for name in names)]
    if len(inside) != len(chosen):
        return None
    narrow = [n for n in names if len(values[n]) < len({e[n] for e in every})]
    return {name: _list(name, values[name]) for name in narrow}


def _joined(texts: Mapping[str, str], names: Sequence[str]) -> str:
    return ", ".join(texts[name] for name in names if name in texts)


def _list(name: str, values: Sequence[Any]) -> str:
    """ "1 and 128 tokens", "zipf 1 and forced balance"."""
    texts = [value(name, one) for one in values]
    if name == "batch_size" and len(values) > 1:
        texts = [f"{one:,}" for one in values[:-1]] + texts[-1:]
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


def _split(
    chosen: Sequence[Fixed], every: Sequence[Fixed], names: Sequence[str], axis: str
) -> list[str]:
    """For each value of a column the values of the others; those alike together. Empty where one
    has none."""
    rest = [name for name in names if name != axis]
    alike: dict[tuple[tuple[str, str], ...], list[Any]] = {}
    for one in dict.fromkeys(c[axis] for c in chosen):
        part = [c for c in chosen if c[axis] == one]
        product = _product(part, [e for e in every if e[axis] == one], rest)
        if product is None:
            return []
        alike.setdefault(tuple(product.items()), []).append(one)
    return [_joined({**dict(p), axis: _list(axis, v)}, names) for p, v in alike.items()]
