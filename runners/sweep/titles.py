"""Cells, strategies and settings in a few words. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from moe.spec import Cell, StrategySpec
from moe.strategies import rules_of
from runners.records import flat_row, forced_balance

SHORT = {"topk_requested": "k", "batch_size": "batch", "world_size": "ranks"}  # and come first
UNSAID = ("topk", "trace_sha256")  # of no use to people
UNSAID_OF_STRATEGY = ("name", "dispatcher", "expert_order", "variant")


def title(cell: Cell, label: str = "") -> str:
    """A cell's title in a few words."""
    work, place = cell.workload, cell.placement
    words = _named(cell.strategy)
    words += [f"k={cell.layer.topk_requested}", f"batch={work.batch_size}"]
    words += [f"ranks={place.world_size}", cell.layer.dtype]
    usual = Cell()
    for part, normal, names in (
        (work, usual.workload, ("tokens", "mode", "cache")),
        (cell.strategy, usual.strategy, ("variant",)),
    ):
        words += [getattr(part, n) for n in names if getattr(part, n) != getattr(normal, n)]
    if cell.strategy.kernel != usual.strategy.kernel:
        words.append(f"kernel={cell.strategy.kernel}")
    if work.kind != usual.workload.kind:
        words.append(flat_row.workload_name(work))
    if cell.strategy.graph == "on":
        words.append("graph")
    if cell.strategy.slowdown:
        words.append(f"slowdown={cell.strategy.slowdown}")
    return " ".join(words + ([f"[{label}]"] if label else []))


def _named(strategy: StrategySpec) -> list[str]:
    return [strategy.name] + ([strategy.dispatcher] if rules_of(strategy.name).dispatchers else [])


def strategy_title(cell: Cell, label: str = "") -> str:
    """A cell's strategy, with every option that is not the default."""
    own, usual = vars(cell.strategy), vars(StrategySpec())
    options = [n for n in own if n not in UNSAID_OF_STRATEGY and own[n] != usual[n]]
    words = _named(cell.strategy) + ([cell.strategy.variant] if cell.strategy.variant else [])
    words += [f"{name}={own[name]}" for name in options]
    return " ".join(words + ([f"[{label}]"] if label else []))


def setting_of(cell: Cell) -> Cell:
    """Everything but the strategy: cells with equal settings compete."""
    return replace(cell, strategy=StrategySpec())


class SettingTitles:
    """Titles of settings: the values by which they are told apart."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        flat = [flat_row.flat_config(setting) for setting in {setting_of(cell) for cell in cells}]
        names = flat_row.flat_config(Cell())
        kinds = 1
        self.varied: list[str] = []
        for name in [*SHORT, *(n for n in names if n not in SHORT and n not in UNSAID)]:
            longer = [*self.varied, name]
            apart = len({tuple(str(one[n]) for n in longer) for one in flat})
            if apart > kinds:  # otherwise it follows from the others
                self.varied, kinds = longer, apart

    def title(self, setting: Cell) -> str:
        """Empty where all settings are alike."""
        flat = flat_row.flat_config(setting)
        return " ".join(_pair(name, flat[name]) for name in self.varied)


def _pair(name: str, value: object) -> str:
    if name == "workload" and forced_balance.is_forced(str(value)):
        return forced_balance.LABEL
    return f"{SHORT.get(name, name)}={value}"
