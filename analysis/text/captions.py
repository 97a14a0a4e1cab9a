"""The lines under every table and plot: which machine, engine, cache state, flags, command."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.data.cell_summary import measured, summaries
from analysis.data.frame import hashable, plain
from analysis.text import flag_legend
from moe.strategies import rules_of
from runners.packed import download
from runners.records import emulation
from runners.records.forced_balance import LABEL, is_forced, sentences
from runners.records.stats import DRIFT_THRESHOLD

STAMP = re.compile(r"^\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_(?=.)")  # before a sweep's name
MAKERS_WORDS = re.compile(r"\((?:R|TM)\)|\b(?:CPU|Processor|\d+-Core)\b|@.*", re.IGNORECASE)
BASES = {"one launch": "within one launch", "launches": "over launches"}


def banners(frame: pd.DataFrame) -> list[str]:
    """Warnings that stand above everything else: times are of an emulated cluster, the machine
    drifted, or cells were wrong."""
    lines = [f"{text}. No time here is one of real ranks." for text in emulated(frame)]
    if drift := _drift(frame):
        lines.append(
            f"{drift}. Cells of one wave can still be compared, because their rounds are in random "
            "order; cells of different waves cannot."
        )
    wrong = frame[frame["outcome"] == "wrong"]
    if not wrong.empty:
        lines.append(
            f"WRONG: {len(wrong)} of {len(frame)} attempts computed a wrong output; no time of "
            "theirs is used anywhere."
        )
    return lines


def short_banners(frame: pd.DataFrame) -> list[str]:
    """The banners in a few words, for the space above a picture."""
    lines = [*emulated(frame), *filter(None, [_drift(frame)])]
    wrong = int((frame["outcome"] == "wrong").sum())
    if wrong:
        lines.append(f"WRONG: {wrong} of {len(frame)} attempts, which have no time")
    return lines


def emulated(frame: pd.DataFrame) -> list[str]:
    """The emulated clusters of the frame, and how many samples were void; none of real ranks."""
    of_clusters = frame[[bool(values) for values in frame["emulation"]]]
    names = dict.fromkeys(
        cluster.about
        for values in of_clusters["emulation"]
        if (cluster := emulation.of_values(values))
    )
    void = int(of_clusters["void_samples"].sum())
    late = f"; {void} samples in which a rank was late are left out" if void else ""
    return [f"EMULATED: {name}{late}" for name in names]


def _drift(frame: pd.DataFrame) -> str:
    """How far and in which waves the machine drifted; empty where it did not."""
    moved = frame[frame["drift"] > DRIFT_THRESHOLD]
    if moved.empty:
        return ""
    count, total = _waves(moved), _waves(frame)
    waves = f"{count} of {total} waves"
    if count == total:
        waves = "the wave" if total == 1 else f"all {total} waves"
    largest = moved["drift"].max()
    return f"DRIFT: the machine's speed changed by up to {largest:.0%} during {waves}"


def _waves(frame: pd.DataFrame) -> int:
    return len(frame[["sweep", "launch", "wave"]].drop_duplicates())


def lines(frame: pd.DataFrame, cells: pd.DataFrame, command: str) -> list[str]:
    """Machine, engine, statistics, flags and the command, one line each."""
    flagged = flag_counts(cells)
    return [
        *(machine(frame), engine(frame), statistics(cells)),
        *([f"Flags: {flagged}."] if flagged else []),
        f"Source: {', '.join(sweeps(frame))}. Again: {command}",
    ]


def source(frame: pd.DataFrame) -> str:
    """Sweeps, without the time in their names, and machines: "Sweep smoke; AMD EPYC, 2 cores."."""
    names = [STAMP.sub("", name) for name in sweeps(frame)]
    if len(set(names)) < len(names):  # told apart by their time alone
        names = sweeps(frame)
    listed = f"Sweep {', '.join(names)}" if len(names) < 3 else f"{len(names)} sweeps"
    hosts = frame.drop_duplicates("host").to_dict("records")
    words = list(dict.fromkeys(short_machine(row) for row in hosts))
    more = f" and {len(words) - 1} more" if len(words) > 1 else ""
    return f"{listed}; {words[0]}{more}." if words else f"{listed}."


def short_machine(attempt: Mapping[Any, Any]) -> str:
    """What computed: the GPU, or the processor with its cores, without what its maker adds."""
    gpu, cpu, cores = (plain(attempt[n]) for n in ("gpu_model", "cpu_model", "cores"))
    if gpu and attempt["device"] == "cuda":
        return str(gpu)
    name = " ".join(MAKERS_WORDS.sub(" ", cpu or "").split()) or "a processor not recorded"
    return name + (f", {cores} cores" if cores else "")


def machine(frame: pd.DataFrame) -> str:
    """Processor, cores and GPU of every machine; the versions of torch and the commits."""
    software = {f"torch {v}" for v in frame["torch_version"] if v}
    tail = [*sorted(software), *(f"commit {c}" for c in commits(frame, digits=10)[:3])]
    text = f"Machine: {' | '.join(machines(frame))}"
    return text + (f"; {', '.join(tail)}" if tail else "") + "."


def machines(frame: pd.DataFrame) -> list[str]:
    """Processor, cores and GPU of every machine."""
    texts = []
    names = ["cpu_model", "cores", "gpu_model"]
    hosts = frame.drop_duplicates(["host", *names])
    for cpu, cores, gpu in zip(*(map(plain, hosts[n]) for n in names), strict=True):
        words = [cpu or "processor not recorded"]
        words += [f"{cores} cores"] if cores else []
        words += [gpu] if gpu else []
        texts.append(", ".join(words))
    return texts


def commits(frame: pd.DataFrame, digits: int = 40) -> list[str]:
    """The commits that ran, with "+changes" where not all was committed."""
    revisions = zip(frame["git_sha"], frame["git_dirty"], strict=True)
    marked = {s[:digits] + ("+changes" if dirty else "") for s, dirty in revisions if s}
    return sorted(marked)


def engine(frame: pd.DataFrame) -> str:
    """Backend, device, threads a rank, dtype, cache state, whether balance was forced, and the
    dispatcher where a strategy has a choice."""
    backends = _values(frame, "backend")
    words = [f"Engine: {backends} on {_values(frame, 'device')}"]
    words.append(f"{_values(frame, 'threads')} thread(s) a rank")
    words.append(_values(frame, "dtype"))
    words.append(f"{_values(frame, 'cache')} cache")
    words.append(f"mode {_values(frame, 'mode')}")
    words.append(f"tokens {_values(frame, 'tokens')}")
    words += [forced] if (forced := forced_part(frame)) else []
    for strategy, part in frame.groupby("strategy", sort=False):
        if rules_of(str(strategy)).dispatchers:
            words.append(f"{strategy!s} with dispatcher {_values(part, 'dispatcher')}")
    return ", ".join(words) + "." + across_nodes(frame)


def forced_part(frame: pd.DataFrame) -> str:
    """ "forced balance", "forced balance in part", or empty where no workload of the frame is."""
    forced = [is_forced(str(kind)) for kind in frame["workload"]]
    return f"{LABEL}{' in part' * (not all(forced))}" if any(forced) else ""


def forced_lines(frames: Sequence[pd.DataFrame]) -> list[str]:
    """What forced balance is, where one of the frames has some."""
    return sentences(str(kind) for frame in frames for kind in frame["workload"])


def labelled(about: str, frame: pd.DataFrame) -> str:
    """The sentence with the label of forced balance, where the frame has some and it lacks it."""
    forced = forced_part(frame)
    complete = not forced or LABEL in about
    return about if complete else f"{about.removesuffix('.')}; {forced}."


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
    bases = sorted({cell.basis for cell in summaries(cells) if cell.basis})
    words = {
        "one launch": "median of round medians, 95% order-statistic interval within one launch "
        "(variation between launches is not in it)",
        "launches": "median over launches, 95% t-interval of log medians",
    }
    texts = [words.get(b, f"median, with the {b}: all they cover, not a confidence") for b in bases]
    kinds = "/".join(dict.fromkeys(cell.metric for cell in summaries(cells)))
    mean = "Averages and throughput are from the mean over rounds (the reference's definition)"
    return f"Durations of a step, {kinds}: {'; or '.join(texts) or 'none measured'}. {mean}."


def flag_counts(cells: pd.DataFrame) -> str:
    """ "oversubscribed in 9 of 9 cells, clamped in 1"."""
    counts = Counter(flag for cell in summaries(cells) for flag in cell.flags)
    return ", ".join(f"{flag} in {n} of {len(cells)} cells" for flag, n in counts.most_common())


def sweeps(frame: pd.DataFrame) -> list[str]:
    """Names of the sweeps in order of appearance."""
    return list(dict.fromkeys(str(s) for s in frame["sweep"])) or ["unnamed"]


def command(verb: str, sources: Sequence[str], *options: str) -> str:
    """The command line that makes this output again; paths below this folder are relative."""
    return shlex.join(["python", "-m", "analysis", verb, *map(_relative, sources), *options])


def _relative(source: str) -> str:
    if download.is_address(source):
        return download.shown(source)  # a query may be a secret
    path = Path(source)
    near = path.is_absolute() and path.is_relative_to(Path.cwd())
    return str(path.relative_to(Path.cwd())) if near else source


def attempts(frame: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """The rows of the frame that these cells were made from."""
    positions = sorted({i for cell in summaries(cells) for i in cell.index})
    return frame.iloc[positions]


def table_notes(cells: pd.DataFrame, part: pd.DataFrame) -> list[str]:
    """Notes on the cells of one table, `part` of all `cells`: drift; their sweeps, where there are
    several in all; what their intervals cover, where that differs among them."""
    timed = summaries(measured(part))
    drifts = [cell.drift or 0.0 for cell in timed if "drift" in cell.flags]
    notes = []
    if drifts:
        notes.append(
            f"DRIFT: the machine changed by up to {max(drifts):.0%} while {len(drifts)} "
            f"of these {len(timed)} cells were measured."
        )
    if len({sweep for cell in summaries(cells) for sweep in cell.sweeps}) > 1:
        shown = dict.fromkeys(sweep for cell in summaries(part) for sweep in cell.sweeps)
        notes.append(f"From {', '.join(shown)}.")
    bases = Counter(cell.basis for cell in timed)
    if len(bases) > 1:
        kinds = [f"{BASES.get(b, f'the {b}')} in {n} cells" for b, n in bases.most_common()]
        notes.append(f"Intervals: {'; '.join(kinds)}.")
    return notes


def legend(cells: pd.DataFrame, more: Sequence[str] = ()) -> list[str]:
    """What the flags of the cells, and `more` flags, mean."""
    return flag_legend.legend([*(flag for cell in summaries(cells) for flag in cell.flags), *more])
