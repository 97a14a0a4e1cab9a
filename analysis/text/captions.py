"""The lines under every table and plot: which machine, engine, cache state, flags, command."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.data.frame import hashable, plain
from analysis.text import flag_legend
from moe.strategies import rules_of
from runners.records.stats import DRIFT_THRESHOLD

BASES = {"one launch": "within one launch", "launches": "over launches"}


def banners(frame: pd.DataFrame) -> list[str]:
    """What stands above everything else: the machine drifted, or cells were wrong."""
    found = []
    moved = frame[frame["drift"] > DRIFT_THRESHOLD]
    if not moved.empty:
        waves = {(r.sweep, r.launch, r.wave) for r in moved.itertuples()}
        found.append(
            f"DRIFT: the anchor cell changed by {moved['drift'].max():.0%} within a wave "
            f"({len(waves)} of {_waves(frame)} waves past {DRIFT_THRESHOLD:.0%}): times within a "
            "wave stay comparable since rounds are in random order; times of different waves do not"
        )
    wrong = frame[frame["outcome"] == "wrong"]
    if not wrong.empty:
        found.append(
            f"WRONG: {len(wrong)} of {len(frame)} attempts disagree with the oracle; "
            "they have no time anywhere"
        )
    return found


def _waves(frame: pd.DataFrame) -> int:
    return len(frame[["sweep", "launch", "wave"]].drop_duplicates())


def lines(frame: pd.DataFrame, cells: pd.DataFrame, command: str) -> list[str]:
    """Machine, engine, statistics, flags and the command, one line each."""
    found = [machine(frame), engine(frame), statistics(cells)]
    flagged = flag_counts(cells)
    if flagged:
        found.append(f"Flags: {flagged}.")
    found.append(f"Source: {', '.join(sweeps(frame))}. Again: {command}")
    return found


def machine(frame: pd.DataFrame) -> str:
    """Processor, cores, GPU and software; more than one machine is said."""
    texts = []
    for _, row in frame.drop_duplicates(["host", "cpu_model", "gpu_model", "cores"]).iterrows():
        cores = plain(row["cores"])
        words = [row["cpu_model"] or "processor not recorded"]
        words += [f"{cores} cores"] if cores else []
        words += [row["gpu_model"]] if row["gpu_model"] else []
        texts.append(", ".join(words))
    software = {f"torch {v}" for v in frame["torch_version"] if v}
    commits = sorted({_commit(row) for _, row in frame.iterrows() if row["git_sha"]})
    tail = [*sorted(software), *(f"commit {c}" for c in commits[:3])]
    return f"Machine: {' | '.join(texts)}" + (f"; {', '.join(tail)}" if tail else "") + "."


def _commit(row: pd.Series[Any]) -> str:
    return str(row["git_sha"])[:10] + ("+changes" if row["git_dirty"] else "")


def engine(frame: pd.DataFrame) -> str:
    """Backend, device, threads a rank, dtype, cache state, and the dispatcher where a strategy has
    a choice."""
    backends = _values(frame, "backend")
    words = [f"Engine: {backends} on {_values(frame, 'device')}"]
    words.append(f"{_values(frame, 'threads')} thread(s) a rank")
    words.append(_values(frame, "dtype"))
    words.append(f"{_values(frame, 'cache')} cache")
    words.append(f"mode {_values(frame, 'mode')}")
    words.append(f"tokens {_values(frame, 'tokens')}")
    for strategy, part in frame.groupby("strategy", sort=False):
        if rules_of(str(strategy)).dispatchers:
            words.append(f"{strategy!s} with dispatcher {_values(part, 'dispatcher')}")
    return ", ".join(words) + "." + across_nodes(frame)


def across_nodes(frame: pd.DataFrame) -> str:
    """How times of several nodes were taken, which share no clock."""
    many = sorted({int(n) for n in frame.get("nodes", ()) if n is not None and n > 1})
    if not many:
        return ""
    return (
        f" On {'/'.join(map(str, many))} nodes a sample ends with a barrier of its own, on the "
        "slowest node's clock; the floor has the same barrier in it."
    )


def _values(frame: pd.DataFrame, name: str) -> str:
    present = dict.fromkeys(str(hashable(v)) for v in frame[name])
    return "/".join(present)


def statistics(cells: pd.DataFrame) -> str:
    """What the intervals are, which depends on the launches there are."""
    bases = sorted({str(b) for b in cells["basis"] if b})
    words = {
        "one launch": "median of round medians, 95% order-statistic interval within one launch "
        "(variation between launches is not in it)",
        "launches": "median over launches, 95% t-interval of log medians",
    }
    texts = [words.get(b, f"median, with the {b}: all they cover, not a confidence") for b in bases]
    kinds = "/".join(dict.fromkeys(str(m) for m in cells["metric"]))
    mean = "Averages and throughput are from the mean over rounds (the seed's definition)"
    return f"Durations of a step, {kinds}: {'; or '.join(texts) or 'none measured'}. {mean}."


def flag_counts(cells: pd.DataFrame) -> str:
    """ "oversubscribed in 9 of 9 cells, clamped in 1"."""
    counts = Counter(flag for flags in cells["flags"] for flag in flags)
    return ", ".join(f"{flag} in {n} of {len(cells)} cells" for flag, n in counts.most_common())


def sweeps(frame: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(str(s) for s in frame["sweep"])) or ["unnamed"]


def command(verb: str, sources: Sequence[str], *options: str) -> str:
    """The command line that makes this output again; paths below this folder are relative."""
    return shlex.join(["python", "-m", "analysis", verb, *map(_near, sources), *options])


def _near(source: str) -> str:
    path = Path(source)
    near = path.is_absolute() and path.is_relative_to(Path.cwd())
    return str(path.relative_to(Path.cwd())) if near else source


def attempts(frame: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """The rows of the frame that these cells were made from."""
    positions = sorted({int(i) for index in cells["index"] for i in index})
    return frame.iloc[positions]


def of_part(cells: pd.DataFrame, part: pd.DataFrame) -> list[str]:
    """What one table says of its own cells: drift; where several sweeps are shown, which of them
    they are from; and what their intervals are, where these are not all of a kind."""
    measured = part[part["outcome"] == "measured"]
    moved = measured[["drift" in flags for flags in measured["flags"]]]
    found = []
    if not moved.empty:
        found.append(
            f"DRIFT: the machine changed by up to {moved['drift'].max():.0%} while {len(moved)} "
            f"of these {len(measured)} cells were measured."
        )
    if len({s for names in cells["sweeps"] for s in names}) > 1:
        found.append(f"From {', '.join(dict.fromkeys(s for n in part['sweeps'] for s in n))}.")
    bases = Counter(str(basis) for basis in measured["basis"])
    if len(bases) > 1:
        kinds = [f"{BASES.get(b, f'the {b}')} in {n} cells" for b, n in bases.most_common()]
        found.append(f"Intervals: {'; '.join(kinds)}.")
    return found


def legend(cells: pd.DataFrame, more: Sequence[str] = ()) -> list[str]:
    return flag_legend.legend([*(flag for flags in cells["flags"] for flag in flags), *more])
