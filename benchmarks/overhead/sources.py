"""How fast sources become rows: `python -m benchmarks.overhead.sources [--runs 1000] [--rows 100]`.

Records: `--records 10000` files through `analysis.load` against reading their bytes and parsing
their JSON alone, in one process, files in the page cache for both, the better of two passes each.
Offline: `analysis.sources.wandb_file` against decoding every record with wandb.proto, in one
process over the same files. Server: a project of as many runs over the loopback stand-in of the
tests, counted in requests. The last line is one JSON object. Files are timed by the process's own
processor time, so that their ratios mean something on a busy machine too; the server by the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import analysis
from analysis.sources import wandb_api, wandb_file
from runners.records import record, sealed
from runners.track import log_file
from runners.track.run import Run, run_of
from tests.support import wandb_frames, wandb_records, wandb_server

T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=100, help="history rows of a run")
    options = parser.parse_args()
    runs = [
        run_of(wandb_records.record(index, count=options.rows - 1), "speed")
        for index in range(options.runs)
    ]
    with tempfile.TemporaryDirectory() as name:
        result = {**offline(Path(name), runs), **server(runs)}
    with tempfile.TemporaryDirectory() as name:
        result |= records(Path(name), options.records, options.rows)
    asked = {name: getattr(options, name) for name in ("records", "runs", "rows")}
    print(json.dumps({**asked, **result}))


def records(folder: Path, count: int, rows: int) -> dict[str, float]:
    """Seconds of `analysis.load`, and of reading and parsing the same files."""
    for index in range(count):
        made = wandb_records.record(index, count=rows - 1)
        path = record.record_path(folder, made)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(sealed.sealed(record.to_dict(made)), encoding="utf-8")
    paths = list(record.paths(folder))
    assert len(paths) == count
    parse_s = min(timed(lambda: [json.loads(p.read_bytes()) for p in paths])[0] for _ in "ab")
    passes = [timed(lambda: analysis.load(folder)) for _ in "ab"]
    assert all(len(frame) == count for _, frame in passes)
    load_s = min(seconds for seconds, _ in passes)
    return {
        "parse_records_s": round(parse_s, 2),
        "load_records_s": round(load_s, 2),
        "load_over_parse": round(load_s / parse_s, 2),
    }


def offline(folder: Path, runs: list[Run]) -> dict[str, float]:
    """Seconds of one pass each, after a first file that loads wandb itself."""
    for run in runs:
        below = folder / f"offline-run-{run.id}"
        below.mkdir()
        log = wandb_frames.frame(wandb_frames.payloads(run))
        (below / f"run-{run.id}.wandb").write_bytes(log)
    paths = wandb_file.find(folder)
    naive(paths[:1])
    slow_s, decoded = timed(lambda: naive(paths))
    fast_s, rows = timed(lambda: wandb_file.load(folder))
    samples_s, _ = timed(lambda: wandb_file.load(folder, samples=True))
    medians = sorted(row["median_duration_ms"] for row in rows)
    assert medians == sorted(one["median_duration_ms"] for one in decoded)
    return {
        "naive_s": round(slow_s, 2),
        "load_s": round(fast_s, 2),
        "load_samples_s": round(samples_s, 2),
        "times_faster": round(slow_s / fast_s, 1),
    }


def naive(paths: list[Path]) -> list[dict[str, Any]]:
    """Every record of every file, decoded to Python values; returns the summaries."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for path in paths:
        summary: dict[str, Any] = {}
        history = []
        for data in log_file.frames(path.read_bytes()):
            record = Record.FromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                values(record.run.config.update)
            elif kind == "summary":
                summary.update(values(record.summary.update))
            elif kind == "history":
                history.append(values(record.history.item))
        found.append(summary)
    return found


def values(items: Any) -> dict[str, Any]:
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def server(runs: list[Run]) -> dict[str, float]:
    """Requests and seconds for the rows of a whole project."""
    with wandb_server.StandIn(seconds=600) as stand_in:
        os.environ.update({**stand_in.environment(), "WANDB_SILENT": "true"})
        for run in runs:
            stored = stand_in.stored(run.id, entity=wandb_server.ENTITY, project="speed")
            stored.config = {key: {"value": value} for key, value in run.config.items()}
            stored.summary = dict(run.summary)
            stored.state = "finished"
        load = lambda: wandb_api.load(f"wandb:{wandb_server.ENTITY}/speed")  # noqa: E731
        seconds, rows = timed(load, time.perf_counter)
        assert len(rows) == len(runs)
        return {"server_requests": len(stand_in.requests), "server_s": round(seconds, 2)}


def timed(call: Callable[[], T], clock: Callable[[], float] = time.process_time) -> tuple[float, T]:
    start = clock()
    result = call()
    return clock() - start, result


if __name__ == "__main__":
    main()
