"""What stays of a command line where it is handed on: knobs of what is measured."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from moe.knob import knobs
from moe.spec import LayerSpec, RankLayout, RouterSpec, StrategySpec, WorkloadSpec
from runners.packed.guard import Guard
from runners.packed.texts import WITHHELD
from runners.plan import Measure

GROUPS = ("model", "strategy", "workload", "measure", "experiment")
# Knobs of the sweep and its hosts that say what is measured and how (runners/config/schema.py).
FURTHER = (
    "topk", "num_experts", "topk_overflow", "label", "on_invalid", "on_error", "isolation",
    "report", "resume_mode", "model.name", "model.scale", "hosts.nnodes", "hosts.ranks_per_node",
    "hosts.shared_folder", "tracker", "tracker.mode",
)  # fmt: skip
EMULATE = "benchmarks.emulate"
PROGRAMS = ("runners/bench.py", EMULATE, "runners.bench", "moe-bench")
OPTIONS = ("-m", "--multirun", "--dilation", "--ranks-per-node", "--intra", "--inter", "--mtu",
           "--cells")  # fmt: skip
_VALUE = re.compile(r"(?!.*[A-Za-z]\.[A-Za-z])[A-Za-z0-9_.,()+-]{0,200}")
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")
_OVERRIDE = re.compile(r"([+]{0,2})([A-Za-z0-9_.@]{1,60})=(.*)", re.DOTALL)


def _keys(kinds: Iterable[type]) -> frozenset[str]:
    return frozenset(
        known.path(field.name)
        for kind in kinds
        for field, known in knobs(kind)
        if known.at is not None
    )


KEYS = (
    _keys((WorkloadSpec, RankLayout, LayerSpec, RouterSpec, StrategySpec, Measure))
    | {*GROUPS, *FURTHER}
)  # fmt: skip


def portable_override(word: str, guard: Guard | None = None) -> str:
    """KEY=VALUE where the key is a knob of what is measured and the value a list of plain words
    and numbers; else "KEY=(withheld)", or "(withheld)" for another key."""
    match = _OVERRIDE.fullmatch(word)
    if not match or match[2] not in KEYS:
        return WITHHELD
    kept = _VALUE.fullmatch(match[3]) and (guard or Guard()).harmless(match[3])
    return word if kept else f"{match[1]}{match[2]}={WITHHELD}"


def portable_command(command: str, guard: Guard | None = None) -> str:
    """A command line of the bench or of an emulated cluster, with every other word as "(withheld)":
    "python runners/bench.py -m strategy=tp,ep topk=2,4"."""
    try:
        words = shlex.split(command)
    except ValueError:  # an open quote
        return WITHHELD
    return " ".join(_portable_word(word, guard) for word in words)


def _portable_word(word: str, guard: Guard | None) -> str:
    if " " in word:  # of --cells
        return shlex.quote(" ".join(_portable_word(one, guard) for one in word.split()))
    name = word.rsplit("/", 1)[-1]
    if re.fullmatch(r"python[0-9.]*", name):
        return "python"
    if word.endswith("/bench.py"):
        return "runners/bench.py"
    if word in (*PROGRAMS, *OPTIONS) or _NUMBER.fullmatch(word):
        return word
    return portable_override(word, guard)
