"""Every knob of the config, by section: its default, its check, its line of help.

A knob is defined once, as a field of a dataclass: those of a cell in moe/spec.py, those of timing
in runners/plan.py, all others here. Hydra gets them as the base config of conf/
(runners/config/hydra_plugins.py), `value` and `values` read and check them in a resolved config,
`help_text` is what `--help` shows, and

    python -m runners.config.schema

writes docs/configuration.md.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from moe.knob import Knob, knob, knobs
from moe.spec import (
    MEASURE,
    MODEL,
    ROUTER,
    STRATEGY,
    TOP,
    WORKLOAD,
    LayerSpec,
    RankLayout,
    RouterSpec,
    StrategySpec,
    WorkloadSpec,
)
from runners.errors import ConfigError
from runners.host.project_paths import BENCH, CODE, CONF
from runners.plan import ISOLATIONS, Measure
from runners.records.record import current_name

MAX_SIZE = 2**31 - 1
LABEL_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
TRACKER, HOSTS = "tracker", "hosts"


@dataclass(frozen=True)
class SweepKnobs:
    """Knobs of the sweep as a whole, and those whose default is conf/model's."""

    topk: int = knob(2, "experts per token K", TOP, conf="${model.topk}", least=1)
    num_experts: int = knob(8, "experts E", TOP, conf="${model.num_experts}", least=1)
    topk_overflow: str = knob(
        "error",
        "for top-k over num_experts",
        TOP,
        allowed=("error", "clamp"),
    )
    label: str = knob("", "tells apart deliberate repeats of one cell", TOP)
    name: str = knob("sweep", "ends the folder's name in outputs/", TOP)
    isolation: str = knob(
        ISOLATIONS[0], "one launch for many cells, or each", TOP, allowed=ISOLATIONS
    )
    on_invalid: str = knob("stop", "for cells that cannot run", TOP, allowed=("stop", "skip"))
    on_error: str = knob("continue", "after a failed cell", TOP, allowed=("continue", "stop"))
    report: bool = knob(True, "tables and plots at the end", TOP)
    cells: str = knob(
        "", "measures the cells of FILE.moebench, of its https:// address or of a sweep's folder",
        TOP, conf=None,
    )  # fmt: skip
    resume: str = knob("", "folder to go on with: DIR or latest", TOP, conf=None)
    resume_mode: str = knob(
        "missing",
        "which of its cells are measured",
        TOP,
        allowed=("missing", "failed", "stale", "force"),
    )


@dataclass(frozen=True)
class ModelKnobs:
    """Knobs of conf/model beside the layer's own."""

    name: str = knob("reference", "name of the model, for tables", MODEL)
    scale: int = knob(1, "divides D, H and O; 1 is the full size", MODEL, least=1)


@dataclass(frozen=True)
class WorkloadKnobs:
    """Knobs of conf/workload beside the cell's own."""

    trace: str = knob("", "file of recorded choices, for workload=trace", WORKLOAD, conf=None)
    trace_sha256: str = knob("", "sha256 that its choices must have", WORKLOAD, conf=None)


@dataclass(frozen=True)
class TrackerKnobs:
    """Where W&B runs go (docs/wandb.md)."""

    mode: str = knob(
        "offline", "mode of W&B", TRACKER, allowed=("offline", "online", "disabled", "dryrun")
    )
    project: str = knob("moe-bench", "W&B project", TRACKER)
    entity: str = knob("", "W&B entity; null: the account's own", TRACKER, conf=None)
    limit_s: float = knob(120.0, "the tracker is ended after this long", TRACKER, least=1, unit="s")


@dataclass(frozen=True)
class HostsKnobs:
    """One machine or many (docs/clusters.md)."""

    nnodes: int = knob(1, "hosts that run the same command", HOSTS, least=1)
    node_rank: int = knob(0, "number of this host", HOSTS)
    ranks_per_node: int = knob(
        0,
        "auto: world_size / nnodes",
        HOSTS,
        conf="auto",
        least=1,
        words={"auto": 0},
    )
    rdzv_endpoint: str = knob("", "address:port of node 0, for the others", HOSTS, conf=None)
    interface: str = knob("auto", "network interface; auto: the one to node 0", HOSTS)
    run: str = knob("", "name of the folder that all hosts share", HOSTS, conf=None)
    shared_folder: bool = knob(
        True, "all hosts see the sweep's folder; false: files are sent to node 0", HOSTS
    )
    convention: str = knob("", "of hosts=auto: the variables that are set", HOSTS)
    wait_s: float = knob(600.0, "how long a host waits for the others", HOSTS, least=1, unit="s")
    cores: int = knob(
        0, "cores of a node; auto: as found", HOSTS,
        conf="auto", least=1, words={"auto": None},
    )  # fmt: skip
    gpus: int = knob(0, "GPUs of a node; auto: as found", HOSTS, conf="auto", words={"auto": None})
    memory_gib: float = knob(
        0, "memory of a node; auto: as found", HOSTS, conf="auto", unit="GiB", words={"auto": None}
    )
    pass_env: tuple[str, ...] = knob(
        (), "variables that ranks inherit, too: [UCX_*]", HOSTS, conf=[]
    )


KINDS = (WorkloadSpec, SweepKnobs, RankLayout, ModelKnobs, LayerSpec, RouterSpec, StrategySpec,
         WorkloadKnobs, Measure, TrackerKnobs, HostsKnobs)  # fmt: skip
ABOUT = {
    TOP: "The axes that people sweep, and the sweep itself",
    MODEL: "The layer's sizes and function",
    ROUTER: "How tokens choose experts",
    STRATEGY: "How the layer is spread over ranks (docs/strategies.md)",
    WORKLOAD: "Which experts the tokens choose (docs/workloads.md)",
    MEASURE: "How a cell is timed (docs/methodology.md)",
    TRACKER: "Where runs are logged",
    HOSTS: "One machine or many (docs/clusters.md)",
}
NODES = {TOP: (MODEL, STRATEGY, WORKLOAD, MEASURE, TRACKER, HOSTS), MODEL: ("router",)}
HEADING = """<!-- Written by `python -m runners.config.schema`: do not edit. -->

# Configuration

Every key that a sweep can set, as `KEY=VALUE` on the command line or in a file of `conf/`, with its
default. Several values (`topk=2,4,8`, with `-m`) are a sweep.
"""


@dataclass(frozen=True)
class Entry:
    """A knob at its place in the config."""

    path: str
    type: str
    known: Knob


@cache
def sections() -> dict[str, dict[str, Entry]]:
    """Entries by section and name."""
    tree: dict[str, dict[str, Entry]] = {section: {} for section in ABOUT}
    for kind in KINDS:
        for field, known in knobs(kind):
            if known.at is not None:
                tree[known.at][field.name] = Entry(known.path(field.name), str(field.type), known)
    return tree


def defaults() -> dict[str, Any]:
    """The base config of conf/: every knob with its default."""
    tree: dict[str, Any] = {}
    for section, entries in sections().items():
        node = tree
        for part in filter(None, section.split(".")):
            node = node.setdefault(part, {})
        node |= {name: entry.known.default for name, entry in entries.items()}
    return tree


def up_to_date(config: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved config of an earlier version: former names become the present ones, and knobs that
    it does not have yet get their default."""
    whole: dict[str, Any] = copy.deepcopy(dict(config))
    for section, entries in sections().items():
        node = section_of(whole, section)
        for name, entry in entries.items():
            node.setdefault(name, entry.known.default)
    for section in (MODEL, STRATEGY):
        whole[section]["name"] = current_name(str(whole[section]["name"]))
    return whole


def section_of(config: Mapping[str, Any], section: str) -> Any:
    node: Any = config
    for part in filter(None, section.split(".")):
        node = node[part]
    return node


def check_shape(config: Mapping[str, Any]) -> None:
    """Raises ConfigError where a section is not a group, or a key is unknown or missing."""
    for section, entries in sections().items():
        node = section_of(config, section)
        names = [*entries, *NODES.get(section, ())]
        if not isinstance(node, Mapping):
            raise ConfigError(
                f"{section}={node!r}: allowed is a group of {', '.join(names)}; "
                f"set {section}.KEY=VALUE instead"
            )
        dot = f"{section}." if section else ""
        if missing := [name for name in names if name not in node]:
            raise ConfigError(f"{dot}{missing[0]}: missing; leave out the override that deletes it")
        if unknown := sorted(set(node) - {*names, "experiment"}):
            raise ConfigError(
                f"{dot}{unknown[0]}={node[unknown[0]]!r}: no such key; allowed are "
                f"{', '.join(names)}; leave it out"
            )


def values(config: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """The checked knobs of a dataclass, as its keyword arguments. Raises ConfigError."""
    return {
        field.name: value(config, known.path(field.name))
        for field, known in knobs(kind)
        if known.at is not None
    }


def value(config: Mapping[str, Any], path: str) -> Any:
    """The checked value of one knob in a resolved config. Raises ConfigError naming the field, its
    value, what is allowed and what to do."""
    section, _, name = path.rpartition(".")
    return checked(sections()[section][name], section_of(config, section)[name])


def checked(entry: Entry, raw: Any) -> Any:
    """Checks and converts a value as written in the config. Raises ConfigError."""
    known = entry.known
    if known.words and isinstance(raw, str | None) and raw in known.words:
        return known.words[raw]
    if entry.type == "int":
        return integer(raw, entry.path, int(known.least))
    if entry.type == "float":
        return number(raw, entry.path, known.least)
    if entry.type == "bool":
        further = ["null" if word is None else str(word) for word in known.words or {}]
        if not isinstance(raw, bool):
            raise _not_one_of(entry.path, raw, ("true", "false", *further))
        return raw
    if isinstance(raw, bool) and "on" in known.allowed:
        raw = "on" if raw else "off"  # as YAML reads these words
    if known.allowed and raw not in known.allowed:
        raise _not_one_of(entry.path, raw, known.allowed)
    return raw


def integer(raw: Any, path: str, least: int = 1) -> int:
    """A whole number from `least` to MAX_SIZE. Raises ConfigError."""
    if type(raw) is not int or not least <= raw <= MAX_SIZE:
        raise ConfigError(
            f"{path}={raw!r}: allowed are whole numbers from {least} to {MAX_SIZE}; "
            f"set {path} to one of them"
        )
    return raw


def number(raw: Any, path: str, least: float = 0.0) -> float:
    """A finite number of at least `least`. Raises ConfigError."""
    good = isinstance(raw, int | float) and not isinstance(raw, bool)
    if not good or not least <= raw < float("inf"):
        raise ConfigError(
            f"{path}={raw!r}: allowed are finite numbers of at least {float(least)}; "
            f"set {path} to one of them"
        )
    return float(raw)


def _not_one_of(path: str, raw: Any, allowed: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"{path}={raw!r}: allowed are {', '.join(allowed)}; set {path} to one of them"
    )


def safe_name(name: object) -> str:
    """The sweep's name, safe as part of a folder's name; raises ConfigError."""
    text = str(name)
    if not 0 < len(text) <= 80 or not set(text) <= LABEL_CHARACTERS:
        raise ConfigError(
            f"name={text!r}: allowed are 1 to 80 letters, digits, '_' and '-'; rename the sweep"
        )
    return text


def label_of(config: Mapping[str, Any]) -> str:
    """A cell's label, safe as part of a folder's name; raises ConfigError."""
    label = config.get("label", "")
    text = "" if label is None else str(label)
    if len(text) > 40 or not set(text) <= LABEL_CHARACTERS:
        raise ConfigError(
            f"label={text!r}: allowed are up to 40 letters, digits, '_' and '-'; rename the label"
        )
    return text


# Help.


def _default(entry: Entry) -> str:
    raw = entry.known.default
    return '""' if raw == "" else json.dumps(raw).strip('"')


def kind_of(entry: Entry) -> str:
    """The allowed values, in words."""
    known = entry.known
    further = " or ".join(
        "null" if word is None else str(word) for word in known.words or {} if word != ""
    )
    kinds = {
        "int": f"whole number from {known.least:g}",
        "float": f"number from {known.least:g}",
        "bool": "true or false",
    }
    text = kinds.get(entry.type) or (" | ".join(known.allowed) if known.allowed else "text")
    text = "list" if entry.type.startswith("tuple") else text
    return f"{text}, {further}" if further else text


def help_text() -> str:
    """What `--help` shows: how to sweep, groups and their choices, every knob."""
    lines = [
        f"usage: {BENCH} [-m] [GROUP=CHOICE ...] [KEY=VALUE ...]",
        "",
        "Measures a Mixture-of-Experts layer under every strategy and setting that is named.",
        "With -m, several values of a key are a sweep:",
        f"  {BENCH} -m strategy=simple,tp,ep topk=2,4,8",
        "",
        "groups, each a folder of conf/:",
        *(f"  {group}={'|'.join(choices)}" for group, choices in groups().items()),
    ]
    for section, entries in sections().items():
        lines += ["", f"{ABOUT[section]}:"]
        lines += [
            f"  {entry.path}={_default(entry)}  {describe(entry)}" for entry in entries.values()
        ]
    more = "--cfg job prints the composed config, --info more about it, --hydra-help Hydra's flags"
    return "\n".join([*lines, "", more, ""])


OF_PREDICTIONS = ("cluster", "software")  # folders of conf/ that analysis reads, and no sweep


def groups() -> dict[str, list[str]]:
    """Choices by group: the files of the folders of conf/ that the bench reads."""
    folders = sorted(
        path for path in CONF.iterdir() if path.is_dir() and path.name not in OF_PREDICTIONS
    )
    return {one.name: sorted(path.stem for path in one.glob("*.yaml")) for one in folders}


def describe(entry: Entry) -> str:
    unit = f" [{entry.known.unit}]" if entry.known.unit else ""
    return f"{entry.known.about}{unit} ({kind_of(entry)})"


def markdown() -> str:
    """docs/configuration.md."""
    lines = [HEADING]
    for section, entries in sections().items():
        lines += [f"## {section or 'top level'}", "", f"{ABOUT[section]}.", ""]
        lines += ["| key | default | allowed | meaning |", "|---|---|---|---|"]
        for entry in entries.values():
            unit = f", in {entry.known.unit}" if entry.known.unit else ""
            allowed = kind_of(entry).replace("|", "\\|")
            about = entry.known.about.replace("|", "\\|")
            lines.append(f"| `{entry.path}` | `{_default(entry)}` | {allowed} | {about}{unit} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    path = CODE / "docs" / "configuration.md"
    path.write_text(markdown(), "utf-8")
    print(path)
