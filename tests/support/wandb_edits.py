"""Runs of ours with a value that somebody has set to something else, in W&B's page, say."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from runners.track.run import EXACT_FIELD, ROWS_FIELD, Run

SECRET = "5" * 40  # has the shape of an API key
# Of every type of JSON, and what Python's and W&B's JSON have beside it.
VALUES: list[Any] = [
    *(None, True, False, 0, -3, 1.5, 2**63, 10**400, float("nan"), float("-inf"), "", "2,4"),
    *("auto", "\x1b[31mred", "\ud800", SECRET, "x" * 5000, [], [2, 4], [None], [[1], {}], {}),
    *({"a": 1}, {"a": {"b": [None]}}, {"\x1b[2J": "\x07"}),
]


def where_of(run: Run, name: str) -> str:
    """Config or summary, whichever holds the name, as it is or in its exact JSON."""
    known = {*run.config, *json.loads(run.config[EXACT_FIELD])}
    return "config" if name in known else "summary"


def names(run: Run) -> list[str]:
    """Every name of a row that the run holds."""
    found = {*run.config, *run.summary}
    for part in (run.config, run.summary):
        found |= set(json.loads(part[EXACT_FIELD]))
    return sorted(found - {EXACT_FIELD, ROWS_FIELD})


def value_of(run: Run, name: str) -> Any:
    part = getattr(run, where_of(run, name))
    return json.loads(part[EXACT_FIELD]).get(name, part.get(name))


def edited(run: Run, name: str, value: Any) -> Run:
    """The run with this value, wherever it is read."""
    part = dict(getattr(run, where_of(run, name)))
    exact = json.loads(part[EXACT_FIELD])
    if name in exact:
        part[EXACT_FIELD] = json.dumps({**exact, name: value})
    part[name] = value
    return dataclasses.replace(run, **{where_of(run, name): part})


def fits(truth: Any, value: Any) -> bool:
    """Whether the value is of the type of the true one, as JSON knows types."""
    if isinstance(truth, bool) or isinstance(value, bool):
        return isinstance(truth, bool) and isinstance(value, bool)
    if isinstance(truth, int | float):
        return isinstance(value, int | float) and abs(value) < 2**1023  # also not NaN
    if isinstance(truth, str):
        return isinstance(value, str) and "\ud800" not in value
    return type(truth) is type(value)
