"""Rows from a W&B server: `wandb:entity/project[?name=value[,value]&...]`.

Config and summary of all runs come in one request per 1,000 runs (asked run by run, as W&B's
client does by default, 1,000 runs take 1,000 requests). Samples are requested only when asked
for, by a few threads that wait and try again when the server says that it is too much.
"""

from __future__ import annotations

import json
import random
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl

from analysis.errors import SourceError, SourceWarning
from analysis.sources.wandb_rows import NoAttempt, NoRow, row_of, sample_columns
from runners.track.client import redact
from runners.track.settings import defaults, usable_environment

PREFIX = "wandb:"
PAGE = 1000
THREADS = 8
TRIES = 6
FIRST_WAIT_S = 0.5
TIMEOUT_S = 60
BUSY = ("429", "500", "502", "503", "504", "timeout", "timed out")  # words of a passing failure
# Short names of what W&B filters by; everything else is a config key.
FILTERS = {
    "group": "group",
    "sweep": "group",
    "job_type": "jobType",
    "tag": "tags",
    "state": "state",
    "id": "name",
    "name": "displayName",
}

T = TypeVar("T")


class Address(NamedTuple):
    """A project of W&B and the filters of its runs."""

    path: str  # entity/project, or project alone
    filters: dict[str, Any]


def parse(source: str) -> Address:
    """The address in "wandb:entity/project?name=value"; raises SourceError for another text."""
    path, _, query = source.removeprefix(PREFIX).partition("?")
    parts = path.split("/")
    if not source.startswith(PREFIX) or len(parts) > 2 or not all(parts):
        allowed = "wandb:entity/project, and ?group=...&topk=2,4 after it to filter"
        raise SourceError(f"{source}: not a W&B project; allowed is {allowed}")
    return Address(path, _filters(source, query))


def _filters(source: str, query: str) -> dict[str, Any]:
    """W&B's (MongoDB's) filter for `name=value[,value]`; `filters={...}` passes one as it is."""
    filters: dict[str, Any] = {}
    try:
        for name, text in parse_qsl(query, strict_parsing=True) if query else []:
            if name == "filters":
                filters.update(json.loads(text))
                continue
            values = [_value(word) for word in text.split(",")]
            dotted = name.startswith(("config.", "summary_metrics."))
            key = FILTERS.get(name) or (name if dotted else f"config.{name}")
            filters[key] = values[0] if len(values) == 1 else {"$in": values}
    except ValueError as error:
        allowed = "name=value[,value] joined by &, or filters={JSON}"
        raise SourceError(f"{source}: no filter ({error}); allowed is {allowed}") from error
    return filters


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


def load(source: str, *, samples: bool = False) -> list[dict[str, Any]]:
    """Rows of the project's runs, the oldest first; with `samples` also every sample.

    Raises SourceError when the server does not answer or has no such project. Runs that give no
    row are SourceWarnings.
    """
    address = parse(source)
    entity = str(defaults()["entity"] or "")
    try:
        with usable_environment() as faults:
            for fault in faults:
                warnings.warn(f"{source}: {redact(fault)}", SourceWarning, stacklevel=2)
            runs = _patiently(lambda: _runs(address, entity))
            pairs = _rows(source, runs)
            return _with_samples(source, pairs) if samples else [row for _, row in pairs]
    except Exception as error:
        text = redact(" ".join(str(error).split()))
        remedy = "check the name, `wandb login` and the network"
        raise SourceError(f"{source}: cannot be read ({text}); {remedy}") from error


def _runs(address: Address, entity: str) -> list[Any]:
    import wandb

    api = wandb.Api(timeout=TIMEOUT_S)
    path = address.path
    if "/" not in path:
        path = f"{entity or api.default_entity}/{path}"
    return list(api.runs(path, filters=address.filters, per_page=PAGE, lazy=False))


def _rows(source: str, runs: Iterable[Any]) -> list[tuple[Any, dict[str, Any]]]:
    pairs = []
    for run in runs:
        try:
            row = row_of(run.config, run.summary_metrics)
        except NoAttempt:
            continue
        except NoRow as error:
            _warn(source, run, f"left out: {error}")
            continue
        if run.state not in ("finished", "failed"):
            _warn(source, run, f"is {run.state}: it may be incomplete")
        pairs.append((run, row))
    return pairs


def _with_samples(source: str, pairs: list[tuple[Any, dict[str, Any]]]) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(THREADS) as pool:
        histories = list(pool.map(lambda pair: _patiently(lambda: _history(pair[0])), pairs))
    rows = []
    for (run, row), history in zip(pairs, histories, strict=True):
        try:
            rows.append({**row, **sample_columns(history, run.summary_metrics)})
        except NoRow as error:
            _warn(source, run, f"left out: {error}")
    return rows


def _history(run: Any) -> list[dict[str, Any]]:
    """Every row; W&B's `history()` would return a random 500 of them."""
    if not run.summary_metrics.get("tracked_rows"):
        return []
    return list(run.scan_history(page_size=PAGE, use_cache=False))


def _patiently(call: Callable[[], T]) -> T:
    """Calls again after a passing refusal, waiting twice as long each time; raises the last."""
    for attempt in range(TRIES):
        try:
            return call()
        except Exception as error:
            passing = any(word in str(error).lower() for word in BUSY)
            if not passing or attempt == TRIES - 1:
                raise
            time.sleep(FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable")


def _warn(source: str, run: Any, text: str) -> None:
    warnings.warn(f"{source}: run {run.id} {text}", SourceWarning, stacklevel=3)
