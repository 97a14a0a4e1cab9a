"""What stays of a command line where it is handed on: knobs of what is measured."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from moe.knob import knobs
from moe.spec import LayerSpec, RankLayout, RouterSpec, StrategySpec, WorkloadSpec
from runners.packed.guard import Guard, guard_of
from runners.packed.texts import WITHHELD
from runners.plan import Measure

GROUPS = ("model", "strategy", "workload", "measure", "experiment")
# Knobs of the sweep and its hosts that say what is measured and how (runners/config/schema.py).
FURTHER = (
    "topk", "num_experts", "topk_overflow", "label", "on_invalid", "on_error", "isolation",
    "report", "resume_mode", "model.name", "model.scale", "hosts.nnodes", "hosts.ranks_per_node",
    "hosts.shared_folder", "tracker", "tracker.mode",
)  # fmt: skip
LONGEST = 10_000  # characters of a command line
PROGRAMS = ("runners/bench.py", "benchmarks.emulate", "runners.bench", "moe-bench")
OPTIONS = ("-m", "--multirun", "--dilation", "--ranks-per-node", "--intra", "--inter", "--mtu",
           "--cells")  # fmt: skip
_VALUE = re.compile(r"(?!.*[A-Za-z]\.[A-Za-z])[A-Za-z0-9_.,()+-]{0,200}")
_PYTHON = re.compile(r"python[0-9.]{0,8}")
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")
_OVERRIDE = re.compile(r"([+]{0,2})([A-Za-z0-9_.@]{1,60})=(.*)", re.DOTALL)


def _keys(kinds: Iterable[type]) -> frozenset[str]:
    return frozenset(
        known.path(field.name)
        for kind in kinds
        for field, known in knobs(kind)
        if known.at is not None
    )


KNOBS = (
    _keys((WorkloadSpec, RankLayout, LayerSpec, RouterSpec, StrategySpec, Measure))
    | {*GROUPS, *FURTHER}
)  # fmt: skip


def portable_override(word: str) -> str:
    """KEY=VALUE where the key is a knob of what is measured and the value a list of plain words
    and numbers; else "KEY=(withheld)", or "(withheld)" for another key."""
    match = _OVERRIDE.fullmatch(word)
    if not match or match[2] not in KNOBS:
        return WITHHELD
    return word if _VALUE.fullmatch(match[3]) else f"{match[1]}{match[2]}={WITHHELD}"


def portable_command(command: str, names: Iterable[str] | None = None) -> str:
    """A command line of the bench or of an emulated cluster, with every other word as "(withheld)":
    "python runners/bench.py -m strategy=tp,ep topk=2,4". Words with one of `names`, or with what
    looks like a key, are withheld, too; None: those of this machine and its user."""
    if len(command) > LONGEST:
        return WITHHELD
    try:
        words = shlex.split(command)
    except ValueError:  # an open quote
        return WITHHELD
    guard = guard_of(names)
    return " ".join(_portable_word(word, guard) for word in words)


def _portable_word(word: str, guard: Guard) -> str:
    if " " in word:  # the overrides of --cells
        return shlex.quote(" ".join(_portable_word(one, guard) for one in word.split()))
    if word.endswith("/bench.py"):
        return PROGRAMS[0]
    if _PYTHON.fullmatch(word.rsplit("/", 1)[-1]):
        return "python"
    if word in (*PROGRAMS, *OPTIONS) or _NUMBER.fullmatch(word):
        return word
    kept = portable_override(word)
    return _quoted(kept) if guard.harmless(kept) else WITHHELD


def _quoted(word: str) -> str:
    """For a shell, where nothing of it is withheld."""
    return word if word.endswith(WITHHELD) else shlex.quote(word)
