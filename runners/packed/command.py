"""What stays of a command line where it is handed on: knobs of what is measured."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterable

from moe import strategies
from moe.knob import knobs
from moe.peers import OWN
from moe.spec import PEER, LayerSpec, RankLayout, RouterSpec, StrategySpec, WorkloadSpec
from runners.host.project_paths import CONF
from runners.packed.guard import Guard, guard_of
from runners.packed.texts import LABEL, WITHHELD, WORD
from runners.plan import Measure
from runners.records.record import current_name

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


@functools.cache
def configs(group: str) -> frozenset[str]:
    """Values of an override of a group: names of the files of conf/<group>, and strategies."""
    words = {path.stem for path in (CONF / group).glob("*.yaml")}
    if group == "strategy":
        words |= {*strategies.names(), *(PEER + name for name in OWN)}
    return frozenset(words)


def is_model(text: str) -> bool:
    """Whether it is a model of conf/model, or was one by a former name."""
    return current_name(text) in configs("model")


def portable_override(word: str, guard: Guard | None = None) -> str:
    """KEY=VALUE where the key is a knob of what is measured and the value a list of plain words
    and numbers; else "KEY=(withheld)", or "(withheld)" for another key. Of a model, strategy,
    workload, measure or experiment the value stays if conf/ has it, or, where the guard is of what
    has come in a file, if it is a word: another version's conf/ may have it."""
    match = _OVERRIDE.fullmatch(word)
    if not match or match[2] not in KNOBS:
        return WITHHELD
    came_in = guard is not None and not guard.hands_on
    allowed = _VALUE.fullmatch(match[3]) and _names_nobody(match[2], match[3].split(","), came_in)
    return word if allowed else f"{match[1]}{match[2]}={WITHHELD}"


def _names_nobody(key: str, words: list[str], came_in: bool) -> bool:
    """Whether no word of the value can be a name that the user has made up, but for a label."""
    if key == "label":
        return all(re.fullmatch(LABEL, word) for word in words)
    if key not in (*GROUPS, "model.name"):
        return True
    if came_in:
        return all(re.fullmatch(WORD, word) for word in words)
    if key == "model.name":
        return all(map(is_model, words))
    return configs(key).issuperset(words)


def portable_command(command: str, names: Iterable[str] | None = None) -> str:
    """A command line of the bench or of an emulated cluster, with every other word as "(withheld)":
    "python runners/bench.py -m strategy=tp,ep topk=2,4". Words with one of `names`, or with what
    looks like a key, are withheld, too; None: those of this machine and its user."""
    return _portable(command, guard_of(names))


def is_portable(command: str) -> bool:
    """Whether a command that came in a file is as `portable_command` leaves one somewhere."""
    return _portable(command, Guard()) == command


def _portable(command: str, guard: Guard) -> str:
    if len(command) > LONGEST:
        return WITHHELD
    try:
        words = shlex.split(command)
    except ValueError:  # an open quote
        return WITHHELD
    kept = " ".join(_shell_word(word, guard) for word in words)
    return kept if len(kept) <= LONGEST else WITHHELD


def _shell_word(word: str, guard: Guard) -> str:
    """Quoted for a shell, where nothing of it is withheld."""
    if " " not in word:
        kept = _portable_word(word, guard)
        return kept if kept.endswith(WITHHELD) else shlex.quote(kept)
    words = word.split()  # the overrides of --cells
    if len(words) < 2:
        return _shell_word("".join(words), guard)
    return shlex.quote(" ".join(_portable_word(one, guard) for one in words))


def _portable_word(word: str, guard: Guard) -> str:
    if word.endswith("/bench.py"):
        return PROGRAMS[0]
    if _PYTHON.fullmatch(word.rsplit("/", 1)[-1]):
        return "python"
    if word in (*PROGRAMS, *OPTIONS) or _NUMBER.fullmatch(word):
        return word
    kept = portable_override(word, guard)
    return kept if guard.harmless(kept) else WITHHELD
