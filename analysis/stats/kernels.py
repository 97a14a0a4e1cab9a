"""Expert kernels and other systems' layers, setting by setting: the facts of `kernels`.

An entrant is a kernel of `simple`, or a peer; its steps run one by one, or as a CUDA graph. A
setting is a value of everything else: layer, tokens, workload, mode.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from analysis.data.cell_summary import CellSummary, measured, summaries
from analysis.data.facets import DESCRIBED, grouped, sort_key
from analysis.data.frame import hashable, plain, varying
from analysis.data.schema import CONFIG
from analysis.data.series import VARIANT, series_order
from analysis.errors import InputError
from analysis.stats import roofline
from analysis.stats.comparisons import Place, Standings
from analysis.stats.verdict import NOISE_THRESHOLD, SLOWER, Verdict
from moe.spec import PEER, LayerSpec, StrategySpec
from runners.records import forced_balance

OURS = "simple"  # the strategy that is nothing but its kernel
ALWAYS = ("model", "batch_size", "load", "mode")  # columns of a setting, whether they vary or not
LAYER = {*LayerSpec.__dataclass_fields__, *(n for n in CONFIG if n.startswith("router_"))}
FORM = ("label", "slowdown")  # further settings that make an entrant of its own
UNITS = ((1e12, "TFLOP/s"), (1e9, "GFLOP/s"))
RIVAL = 0.03  # a peer beats ours where it is surely faster by more than this


@dataclass(frozen=True, eq=False)
class Entrant:
    """One kernel or peer at one setting. `name` is the kernel, or the peer with its variant."""

    name: str
    cell: CellSummary
    host_waits: int | None  # of one step, the most of any rank; None where there is no GPU

    @property
    def is_peer(self) -> bool:
        return self.cell.strategy.startswith(PEER)

    @property
    def graph(self) -> bool:
        return self.cell.cell.strategy.graph == "on"

    @property
    def series(self) -> str:
        """The name, and whether its steps are a CUDA graph."""
        return f"{self.name} (graph)" if self.graph else self.name

    @property
    def fraction(self) -> float:
        """Of the roofline (`analysis.stats.roofline`); nan without a calibration."""
        limit = roofline.bound(alone(self.cell))
        return limit.compute_fraction if limit else math.nan


def alone(cell: CellSummary) -> CellSummary:
    """Of one rank: the same work as a cell of ours, whoever computes it, so that the figures of a
    peer do not depend on what is installed where they are read."""
    if cell.world_size > 1 or not cell.strategy.startswith(PEER):
        return cell
    ours = dataclasses.replace(cell.cell, strategy=StrategySpec())
    return dataclasses.replace(cell, cell=ours)


@dataclass(frozen=True, eq=False)
class Setting:
    """Everything but the entrant, by columns, and its entrants: fastest first, then those without a
    time."""

    fixed: dict[str, Any]
    entrants: tuple[Entrant, ...]

    @property
    def forced(self) -> bool:
        return any(forced_balance.is_forced(e.cell.cell.workload.kind) for e in self.entrants)

    @property
    def timed(self) -> list[Entrant]:
        return [e for e in self.entrants if e.cell.measured]

    @cached_property
    def place(self) -> Place:
        return Place(id(self), {e.series: e.cell for e in self.timed}, tuple(self.fixed.items()))


@dataclass(frozen=True, eq=False)
class Uneven:
    """An entrant with an uneven workload, and the same with forced balance. `verdict.ratio` is the
    uneven time over the balanced one; None for too few samples."""

    entrant: Entrant
    setting: Setting
    even: Entrant
    verdict: Verdict | None


@dataclass(frozen=True)
class Rival:
    """The fastest peer at a setting that has both sides. `beats`: surely over RIVAL faster than
    each of ours; `may`: the intervals leave that open. `ratio` is its time over our fastest's."""

    setting: Setting
    entrant: Entrant
    ratio: float
    beats: bool
    may: bool


class Kernels:
    """All settings of a sweep with verdicts whose intervals hold together.

    Raises InputError where no cell is a kernel's or a peer's.
    """

    def __init__(
        self, frame: pd.DataFrame, cells: pd.DataFrame, threshold: float = NOISE_THRESHOLD
    ) -> None:
        own = [cell.strategy == OURS or cell.strategy.startswith(PEER) for cell in summaries(cells)]
        self.cells = cells[own]
        self.left_out = len(cells) - len(self.cells)
        if self.cells.empty:
            raise InputError(
                "kernels: no cell is of one expert kernel or of a peer; allowed are sweeps with "
                "strategy=simple strategy.kernel=grouped,loop,... or of peers, such as "
                "experiment=kernels_cpu"
            )
        self.settings = _settings(frame, self.cells)
        self.varied = [n for n in self.settings[0].fixed
                       if len({s.fixed[n] for s in self.settings}) > 1]  # fmt: skip
        pairs = list(_uneven_pairs(self.settings))
        self.standings = Standings(
            frame, [], threshold, also=len(pairs), meetings=[s.place for s in self.settings]
        )
        self.uneven = [
            Uneven(one, setting, even, self.standings.verdict(one.cell, even.cell))
            for one, setting, even in pairs
        ]

    @property
    def graphs(self) -> bool:
        """Whether steps of some cell are a CUDA graph."""
        return any(e.graph for s in self.settings for e in s.entrants)

    @property
    def compared(self) -> list[Setting]:
        """The settings with two times or more."""
        return [s for s in self.settings if len(s.timed) > 1]

    def leaders(self, setting: Setting) -> list[str]:
        """The entrants, by `series`, that none is shown to be faster than: ours first."""
        return sorted(self.standings.leaders(setting.place), key=order)

    def rivals(self) -> list[Rival]:
        """One for every setting where ours and peers have a time: eager ones beside eager ones, and
        graphs beside graphs."""
        parts = [part for s in self.settings for part in self._by_graph(s)]
        return [rival for part in parts if (rival := self._rival(part))]

    def _by_graph(self, setting: Setting) -> list[Setting]:
        """The setting, in a sweep with graphs as two settings with this further column."""
        if not self.graphs:
            return [setting]
        return [
            Setting(
                {**setting.fixed, "graph": "on" if graph else "off"},
                tuple(e for e in setting.entrants if e.graph == graph),
            )
            for graph in (False, True)
        ]

    def _rival(self, setting: Setting) -> Rival | None:
        ours = [e for e in setting.timed if not e.is_peer]
        peers = [e for e in setting.timed if e.is_peer]
        if not ours or not peers:
            return None
        known = {
            peer: [self.standings.verdict(peer.cell, own.cell) for own in ours] for peer in peers
        }
        bar = 1 / (1 + RIVAL)
        beating = [p for p, vs in known.items() if all(v and v.high < bar for v in vs)]
        may = any(all(v is None or v.low < bar for v in vs) for vs in known.values())
        shown = (beating or peers)[0]
        first = known[shown][0]
        ratio = first.ratio if first else shown.cell.median_ms / ours[0].cell.median_ms
        return Rival(setting, shown, ratio, bool(beating), may and not beating)


def order(name: str) -> tuple[bool, tuple[int, str]]:
    """Sorts entrants by name or series: kernels of ours, then peers."""
    return name.startswith(PEER), series_order(name)


def rate(cell: CellSummary) -> tuple[float, float, float]:
    """FLOP/s of a step and the ends of their interval: the FLOPs that the routing needs
    (`roofline.flops`), the same for every kernel, over the median time. nan where unknown."""
    try:
        work = roofline.flops(alone(cell))
    except ValueError:  # a peer on several ranks whose module is not here
        work = math.nan
    ends = (cell.median_ms, cell.high_ms, cell.low_ms)
    middle, low, high = (work / ms * 1e3 if ms > 0 else math.nan for ms in ends)
    return middle, low, high


def rate_unit(entrants: Sequence[Entrant]) -> tuple[float, str]:
    """TFLOP/s, or GFLOP/s where none of them reaches one of these."""
    rates = [rate(e.cell)[0] for e in entrants]
    most = max((r for r in rates if math.isfinite(r)), default=UNITS[0][0])
    return next((unit for unit in UNITS if most >= unit[0]), UNITS[-1])


def limit_rate(cell: CellSummary) -> float:
    """The roofline in FLOP/s: the same FLOPs over the least time; nan without a calibration."""
    limit = roofline.bound(alone(cell))
    return rate(cell)[0] / limit.compute_fraction if limit else math.nan


def _settings(frame: pd.DataFrame, cells: pd.DataFrame) -> list[Setting]:
    names = _setting_names(cells)
    cells = cells.assign(entrant=_names(cells))
    settings = []
    for fixed, part in grouped(cells, names):
        named = zip(part["entrant"], summaries(part), strict=True)
        entrants = [Entrant(name, cell, _host_waits(frame, cell)) for name, cell in named]
        entrants.sort(key=lambda e: (e.cell.median_ms if e.cell.measured else math.inf, e.series))
        settings.append(Setting(dict(fixed), tuple(entrants)))
    return sorted(settings, key=lambda s: [sort_key(value) for value in s.fixed.values()])


def _setting_names(cells: pd.DataFrame) -> list[str]:
    """Columns that tell settings apart: ALWAYS, and what else varies. Sizes that follow from the
    model's name are left out."""
    timed = measured(cells)
    names = [n for n in varying(cells, DESCRIBED) if n not in ("strategy", "topk", *VARIANT)]
    names += [n for n in varying(timed, ("host", "metric")) if n not in names]
    always = ALWAYS if cells["model"].all() else ALWAYS[1:]
    if always == ALWAYS:
        models = cells.groupby("model")
        names = [
            n for n in names
            if n not in LAYER or models[n].agg(lambda c: len({hashable(v) for v in c})).max() > 1
        ]  # fmt: skip
    return [*always, *(n for n in names if n not in always)]


def _names(cells: pd.DataFrame) -> list[str]:
    """The entrant of every row, told apart by all of FORM that varies in the sweep."""
    forms = varying(cells, FORM)
    names = []
    columns = ["strategy", "variant", "kernel", *forms]
    for row in cells[columns].to_dict("records"):
        peer = str(row["strategy"]).startswith(PEER)
        words = [row["strategy"], row["variant"]] if peer else [row["kernel"]]
        words += [f"{n}={row[n]}" for n in forms if row[n]]
        names.append(" ".join(filter(None, words)))
    return names


def _host_waits(frame: pd.DataFrame, cell: CellSummary) -> int | None:
    counts = [plain(value) for value in frame["host_waits_max"].iloc[cell.index]]
    return max((int(c) for c in counts if c is not None), default=None)


def _uneven_pairs(settings: Sequence[Setting]) -> list[tuple[Entrant, Setting, Entrant]]:
    """Every entrant with an uneven workload beside itself with forced balance, all else equal."""

    def others(setting: Setting) -> tuple[Any, ...]:
        return tuple(v for n, v in setting.fixed.items() if n != "load")

    even = {(others(s), e.series): e for s in reversed(settings) if s.forced for e in s.timed}
    return [
        (e, s, even[others(s), e.series])
        for s in settings if not s.forced
        for e in s.timed if (others(s), e.series) in even
    ]  # fmt: skip


def shown_slower(uneven: Sequence[Uneven]) -> list[Uneven]:
    """Those whose uneven time is shown to be longer."""
    return [one for one in uneven if one.verdict and one.verdict.word == SLOWER]


def by_series(uneven: Sequence[Uneven]) -> dict[str, list[Uneven]]:
    """Uneven pairs that have a ratio, by their entrant's series."""
    ordered = sorted((u for u in uneven if u.verdict), key=lambda u: u.entrant.series)
    return {name: list(group) for name, group in
            itertools.groupby(ordered, key=lambda u: u.entrant.series)}  # fmt: skip
