"""What the gallery asks of the contents of a packed file: problems, which refuse it, and remarks.

Each is one line: what is wrong, where, and what to do.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from analysis.data.cell_summary import CellSummary, summaries
from analysis.data.frame import to_frame
from analysis.packing import even_slots
from analysis.sources import packed as packed_source
from analysis.stats.summarize import summarize
from analysis.stats.verdict import MIN_LAUNCHES
from analysis.text.flag_legend import MARKS
from runners.packed.packed_file import Packed
from runners.records import emulation
from runners.records.record import SCHEMA, Record
from runners.records.stats import median_interval

ROUNDS = next(n for n in itertools.count(1) if median_interval(range(n)))  # for an interval
PACK = "python -m analysis pack"
MEASURE_AGAIN = f"measure again, then {PACK}"
LABEL = "measure with workload=balanced, which is labelled so"
NAMED = 4  # cells or attempts that a line names


class Rule(NamedTuple):
    """Whether a flag of a measured cell refuses its file, and why."""

    refuses: bool
    reason: str


FLAGS = {
    "oversubscribed": Rule(False, "part of the setting; shown beside the time"),
    "clamped": Rule(False, "part of the setting; shown beside the time"),
    "under_floor": Rule(True, "the clock and the barriers are too large a part of such a block"),
    "start_grows": Rule(False, "a bound on an error, which may be none; shown beside the time"),
    "no_steady_state": Rule(False, "what still changed is in the rounds, so in the interval"),
    "drift": Rule(True, "no interval covers a change of the machine"),
    "throttled": Rule(False, "what this GPU does at its power limit; shown beside the time"),
    "not_cold": Rule(True, "the setting says that the cache is cold"),
    "stopped_by_maximum": Rule(False, "the interval says how wide it is"),
    "stopped_by_wall": Rule(False, "the interval says how wide it is"),
    "stopped_by_interrupted": Rule(False, "the interval says how wide it is"),
    "some_attempts_failed": Rule(False, "the other attempts are whole"),
    "no_interval": Rule(True, "nothing says how sure the time is"),
}
REMEDIES = {
    "no_interval": f"measure.samples={ROUNDS} or more, or measure.launches={MIN_LAUNCHES}",
}


@dataclass(frozen=True)
class Contents:
    """A packed file with the figures that follow from its records."""

    packed: Packed
    frame: pd.DataFrame
    cells: list[CellSummary]
    unusable: list[str]  # a line for each attempt whose figures cannot be computed


def contents(packed: Packed) -> Contents:
    """Computes the figures of every record."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = packed_source.rows_of(packed, samples=False)
    frame = to_frame(rows)
    unusable = [str(warning.message) for warning in caught]
    return Contents(packed, frame, summaries(summarize(frame)) if rows else [], unusable)


def problems(of: Contents) -> Iterator[str]:
    """What refuses the file."""
    packed = of.packed
    for text in (*packed.damaged, *of.unusable):
        yield f"damaged: {text}; next: {PACK} again"
    if packed.rows:
        yield (
            "packed from W&B runs, from which no figure can be computed anew; next: pack the "
            "sweep's folder, which has the records"
        )
    elif not packed.records:
        yield f"no attempt; next: {MEASURE_AGAIN}"
    if packed.records and not any(cell.measured for cell in of.cells):
        yield f"no cell has a time; next: {MEASURE_AGAIN} (python -m analysis status says why)"
    yield from _of_plan(packed)
    yield from _of_records(packed.records)
    yield from _of_small_batches(packed.records)
    yield from _of_flags(of, refused=True)


def remarks(of: Contents) -> Iterator[str]:
    """What is to be known of the file."""
    packed = of.packed
    clusters = [emulation.of_environment(one.environment) for one in packed.records]
    for about in dict.fromkeys(cluster.about for cluster in clusters if cluster):
        yield f"emulated times, of ranks {about}; they never stand beside real ones"
    if equal := [_attempt(one) for one in packed.records if _is_equal(one)]:
        what = "all experts have equally many slots under a workload that draws them"
        yield _line(
            what, equal, "few tokens have them by chance; workload=balanced prescribes them"
        )
    timeless = [_name(cell) for cell in of.cells if not (cell.measured or cell.checked)]
    if timeless:
        yield _line("no time", timeless, "the gallery leaves them out", "cell")
    if changed := [_attempt(one) for one in packed.records if _git(one, "dirty")]:
        what = "measured by code with changes that are in no commit"
        yield _line(what, changed, "the gallery says so; better commit first (git status)")
    traces = [
        _attempt(one) for one in packed.records
        if one.cell.workload.kind == "trace" and even_slots.are_equal(one.cell, _slots(one))
    ]  # fmt: skip
    if traces:
        what = "a trace gives all experts equally many slots"
        yield _line(what, traces, "say so where it was made from forced balance")
    yield from _of_flags(of, refused=False)


def _of_plan(packed: Packed) -> Iterator[str]:
    """Planned cells of which no attempt has ended."""
    if packed.plan is None:
        if packed.records:
            yield f"no plan, so that missing cells cannot be seen; next: {PACK} the whole sweep"
        return
    ended = {one.cell_id for one in packed.records if one.outcome != "interrupted"}
    ended |= {str(row.get("cell_id")) for row in packed.rows}
    missing = [str(c["cell_id"]) for c in packed.plan["cells"] if c["cell_id"] not in ended]
    if missing:
        remedy = "resume the sweep (resume=FOLDER), or pack the others alone (--filter)"
        yield _line("planned, and no attempt has ended", missing, f"next: {remedy}", "cell")


def _of_records(records: Sequence[Record]) -> Iterator[str]:
    """Attempts that break one of these rules."""
    for is_broken, what, remedy in RULES:
        if broken := [_attempt(one) for one in records if is_broken(one)]:
            yield _line(what, broken, f"next: {remedy}")


def _git(one: Record, name: str) -> Any:
    return (one.environment.get("git") or {}).get(name)


def _is_unchecked(one: Record) -> bool:
    checks = _checks(one)
    return one.outcome == "measured" and any("ok" not in check for check in checks)


def _is_wrong(one: Record) -> bool:
    failed = any(check.get("ok", True) is not True for check in _checks(one))
    return one.outcome == "wrong" or (one.outcome == "measured" and failed)


def _checks(one: Record) -> tuple[dict[str, Any], dict[str, Any]]:
    """The checks before and after timing; empty where there was none."""
    gate = one.gate or {}
    return gate, gate.get("after") or {}


def _slots(one: Record) -> list[float]:
    return list((one.skew or {}).get("expert_slots") or [])


def _lacks_slots(one: Record) -> bool:
    return one.outcome == "measured" and even_slots.are_missing(one.cell, _slots(one))


def _is_equal(one: Record) -> bool:
    routing = even_slots.routing(one.cell, _slots(one))
    return routing is not None and routing.is_equal


def _is_forced(one: Record) -> bool:
    return even_slots.are_suspicious(one.cell, _slots(one))


def _of_small_batches(records: Sequence[Record]) -> Iterator[str]:
    """Equal slots that chance could make in one cell, and not in so many."""
    small = [one for one in records if not _is_forced(one)]
    routings = [even_slots.routing(one.cell, _slots(one)) for one in small]
    if even_slots.chance(filter(None, routings)) < even_slots.UNLIKELY:
        what = "so many cells have equally many slots for all experts, which is forced balance"
        equal = [_attempt(one) for one in small if _is_equal(one)]
        yield _line(what, equal, f"next: {LABEL}")


RULES: tuple[tuple[Callable[[Record], bool], str, str], ...] = (
    (lambda one: one.schema != SCHEMA, f"records of an older schema than {SCHEMA}", MEASURE_AGAIN),
    (
        lambda one: not _git(one, "sha"),
        "no commit, so that nobody knows which code ran",
        f"{MEASURE_AGAIN}, in a clone of the repository",
    ),
    (_is_wrong, "wrong results", "mend the strategy; python -m analysis status has the details"),
    (
        _is_unchecked,
        "correctness was not checked both before and after timing",
        f"{MEASURE_AGAIN}, with this version",
    ),
    (
        _is_forced,
        "all experts have equally many slots, which is forced balance under another name",
        LABEL,
    ),
    (
        _lacks_slots,
        "its slots were not recorded, or not of all tokens, so forced balance cannot be seen",
        f"{MEASURE_AGAIN}, with this version",
    ),
)


def _of_flags(of: Contents, refused: bool) -> Iterator[str]:
    """Flags of measured cells that refuse the file, or those that do not."""
    for flag, rule in FLAGS.items():
        flagged = [_name(cell) for cell in of.cells if flag in _flags(cell, of.frame)]
        if not flagged or rule.refuses != refused:
            continue
        remedy = f"next: {REMEDIES.get(flag, MARKS[flag].remedy)}"
        what = f"{MARKS[flag].about} ({rule.reason})" if refused else MARKS[flag].about
        yield _line(what, flagged, remedy if refused else rule.reason, "cell")


def _flags(cell: CellSummary, frame: pd.DataFrame) -> list[str]:
    """The flags of a measured cell, and whether an attempt lacks an interval that it needs."""
    if not cell.measured:
        return []
    attempts = frame.iloc[cell.index]
    timed = attempts[attempts["median_duration_ms"] > 0]
    lacks = cell.launches < MIN_LAUNCHES and bool(timed["median_low_ms"].isna().any())
    return [*cell.flags, *(["no_interval"] if lacks else [])]


def _attempt(one: Record) -> str:
    return f"{one.cell.strategy.name} {one.attempt_id}"


def _name(cell: CellSummary) -> str:
    return f"{cell.strategy} {cell.cell_id}"


def _line(what: str, which: Sequence[str], then: str, noun: str = "attempt") -> str:
    """ "WHAT: 2 cells (tp 1a2b, ep 3c4d); THEN"."""
    named = ", ".join(which[:NAMED]) + (" ..." if len(which) > NAMED else "")
    return f"{what}: {len(which)} {noun}{'s' * (len(which) != 1)} ({named}); {then}"
