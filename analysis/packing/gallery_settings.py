"""The settings of packed files: at each the strategy that is shown to be fastest, and by how much.

A setting is a value of everything but the strategy at which a file has two or more strategies, on
one machine, in real time or on one emulated cluster. Verdicts are corrected for the comparisons at
all settings of the file.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from analysis import numbers
from analysis.data.cell_summary import CellSummary
from analysis.data.facets import DESCRIBED, sort_key, title_of
from analysis.data.frame import filtered, hashable, normal, plain
from analysis.data.schema import LOAD_PARTS
from analysis.data.series import SERIAL, VARIANT
from analysis.errors import InputError
from analysis.stats import findings
from analysis.stats.comparisons import Place, Standings, runner_up
from analysis.text import captions, sentences
from analysis.text.flag_legend import MARKS

MODEL, MACHINE = "model", "machine"
FIRST = (MODEL, "batch_size", "world_size", "topk_requested", MACHINE)  # always columns
NAMED = ("dtype", "mode", "tokens", "load", "cache", "backend", "device", "metric")
# Columns that are named otherwise, or do not tell settings of a gallery apart.
LEFT_OUT = ("strategy", "topk", "seed", "weight_seed", *VARIANT, *FIRST)


@dataclass(frozen=True)
class Ahead:
    """By how much the leader is ahead of the second, or what is said of several leaders."""

    text: str
    second: str  # empty for several leaders
    sort: float


@dataclass(frozen=True)
class Time:
    """A leader's time in ms with its interval, and the flags of its cell."""

    text: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """A row of the gallery's table. `values` are the setting by column, as the cells have them."""

    file: str
    values: Mapping[str, Any]
    layer: str  # the model's sizes
    cluster: str  # the emulated one; empty for real ranks
    leaders: tuple[str, ...]  # no other is shown to be faster than one of these
    lead: Ahead
    times: tuple[Time, ...]  # of the leaders
    fastest_ms: float
    filters: tuple[str, ...] = field(default=(), compare=False)

    @property
    def strategies(self) -> list[str]:
        """The leaders without their forms: "ep" of "ep alltoall"."""
        return sorted({name.split(" ")[0] for name in self.leaders})

    @property
    def machine(self) -> str:
        """The machine, and that its times are not of real ranks."""
        return str(self.values[MACHINE]) + (", emulated" if self.cluster else "")


def of_file(
    name: str,
    frame: pd.DataFrame,
    places: Sequence[Place],
    standings: Standings,
    machines: Mapping[str, str],
) -> list[Setting]:
    """The settings of one file: its attempts, and where its strategies meet
    (`headline.meetings`), with verdicts on all of these places; names of machines by host."""
    return [_setting(name, place, standings, frame, machines) for place in places]


def machine_names(frames: Sequence[pd.DataFrame]) -> list[dict[str, str]]:
    """For each frame the names of its machines by host. Machines of one kind are numbered over all
    frames: "NVIDIA H200", "NVIDIA H200 (2)"."""
    alike: dict[str, list[str]] = {}  # hosts by kind
    named = []
    for frame in frames:
        names = {}
        for row in frame.drop_duplicates("host").to_dict("records"):
            host, kind = str(row["host"]), captions.short_machine(row)
            hosts = alike.setdefault(kind, [])
            if host not in hosts:
                hosts.append(host)
            number = hosts.index(host) + 1
            names[host] = kind if number == 1 else f"{kind} ({number})"
        named.append(names)
    return named


def _setting(
    file: str, place: Place, standings: Standings, frame: pd.DataFrame, machines: Mapping[str, str]
) -> Setting:
    cell = next(one for name, one in place.cells.items() if name != SERIAL)
    [lead] = findings.leads([place], standings)
    values = {name: hashable(cell.value(name)) for name in DESCRIBED}
    values |= {
        MODEL: model_name(cell, frame),
        "workload": cell.cell.workload.kind,
        MACHINE: machines[cell.host],
        "metric": cell.metric.removesuffix(f", {cell.cluster}") if cell.cluster else cell.metric,
    }
    return Setting(
        file=file,
        values=values,
        layer=_layer(cell),
        cluster=cell.cluster,
        leaders=lead.leaders,
        lead=_ahead(lead, place, standings),
        times=tuple(_time(name, place.cells[name], lead.leaders) for name in lead.leaders),
        fastest_ms=min(place.cells[name].median_ms for name in lead.leaders),
        filters=tuple(filters(frame, place)),
    )


def model_name(cell: CellSummary, frame: pd.DataFrame) -> str:
    """The layer as the user asked for it: "mixtral_8x7b at 1/16" for a divisor of 16."""
    scale = plain(frame["scale"].iloc[cell.index[0]]) or 1
    return (cell.model or "custom") + (f" at {numbers.ratio(1 / scale)}" if scale > 1 else "")


def _layer(cell: CellSummary) -> str:
    """ "8 experts, 32x128x64": their number and widths."""
    layer = cell.cell.layer
    return f"{layer.num_experts} experts, {layer.dim}x{layer.hidden}x{layer.dim_out}"


def _ahead(lead: findings.Lead, place: Place, standings: Standings) -> Ahead:
    if len(lead.leaders) > 1:
        return Ahead(sentences.tie_text(lead, standings), "", 1.0)
    leader = lead.leaders[0]
    second = runner_up(leader, place)
    result = standings.verdict(place.cells[second], place.cells[leader])
    return Ahead(sentences.interval(result), second, standings.lead(place, leader))


def _time(name: str, cell: CellSummary, leaders: Sequence[str]) -> Time:
    text = numbers.with_interval(cell.median_ms, cell.low_ms, cell.high_ms)
    flags = tuple(flag for flag in MARKS if flag in cell.flags)
    return Time(text if len(leaders) == 1 else f"{name} {text}", flags)


def filters(frame: pd.DataFrame, place: Place) -> list[str]:
    """Filters that leave the cells of this place, of all that were measured: by the setting where
    that says it, else by the cells' ids."""
    cells = list(place.cells.values())
    measured = frame.assign(position=range(len(frame)))
    measured = measured[measured["outcome"] == "measured"]
    wanted = {i for cell in cells for i in cell.index} & set(measured["position"])
    parts = (LOAD_PARTS if name == "load" else (name,) for name, _ in place.fixed)
    names = [n for n in itertools.chain(*parts) if n != "metric"]
    clocks = {bool(flag) for flag in frame["emulated"]}
    texts = [
        _filter(frame, name, cells) for name in names if frame[name].map(hashable).nunique() > 1
    ]
    texts += [f"emulated={normal(bool(cells[0].cluster))}"] if len(clocks) > 1 else []
    ids = [f"cell_id={','.join(dict.fromkeys(cell.cell_id for cell in cells))}"]
    machine = [_filter(frame, "host", cells)]
    for chosen in (texts, ids, [*ids, *machine]):
        if _positions(measured, chosen) == wanted:
            return chosen
    return [*ids, *machine]


def _filter(frame: pd.DataFrame, name: str, cells: Sequence[CellSummary]) -> str:
    """ "world_size=1,8": the values that the cells have in a column."""
    values = {normal(cell.value(name)) for cell in cells}
    return f"{name}={','.join(sorted(values, key=lambda v: (len(v), v)))}"


def _positions(measured: pd.DataFrame, texts: Sequence[str]) -> set[int]:
    try:
        return set(filtered(measured, texts)["position"])
    except InputError:
        return set()


def in_order(settings: Sequence[Setting]) -> list[Setting]:
    """By FIRST and NAMED, real times before emulated ones, then by file."""

    def key(one: Setting) -> list[Any]:
        values = [sort_key(one.values[name]) for name in (*FIRST, *NAMED)]
        return [*values, one.cluster, one.file]

    return sorted(settings, key=key)


def columns(settings: Sequence[Setting]) -> list[str]:
    """What tells the settings apart beside FIRST: those of NAMED that vary, and those of the others
    that do not follow from model, machine and ranks."""
    others = [n for n in DESCRIBED if n not in (*LEFT_OUT, *NAMED)]
    varied = [n for n in NAMED if len({one.values[n] for one in settings}) > 1]
    return [*varied, *(n for n in others if not _follows(n, settings))]


def _follows(name: str, settings: Sequence[Setting]) -> bool:
    """Whether model, machine and ranks say what the value of this column is."""
    known: dict[tuple[Any, ...], Any] = {}
    place = (MODEL, MACHINE, "world_size")
    return all(
        known.setdefault(tuple(one.values[n] for n in place), one.values[name]) == one.values[name]
        for one in settings
    )


def constant(settings: Sequence[Setting]) -> list[str]:
    """What of NAMED all settings have in common, in words: "dtype float32"."""
    shown = columns(settings)
    return [
        f"{title_of(name)} {settings[0].values[name]}"
        for name in NAMED if settings and name not in shown
    ]  # fmt: skip
