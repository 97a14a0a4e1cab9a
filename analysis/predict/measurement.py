"""The cheapest measurement that tells two predicted forms apart, as a command of bench.py, or of
benchmarks.emulate where the records are of an emulated cluster.

A measurement on fewer ranks, or of fewer experts on as many ranks fewer, settles the same question
where the model predicts the same ratio of times there (within SAME_RATIO), and by the same phases:
their shares of each time differ by at most SAME_SHARE.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.predict import candidates
from analysis.predict.model import Prediction
from analysis.predict.problem import PredictionProblem
from moe.build import supports
from moe.spec import Cell, LayerSpec, StrategySpec, Unsupported
from moe.strategies import degrees
from runners.host.project_paths import BENCH

MORE_CELLS = 1  # that a command may measure beside the forms that were asked about
KNOBS = ("ep", "tp", "overlap", "placement", "hot_replicas")  # beside name and dispatcher
SAME_RATIO = 1.1  # between a ratio of times on few ranks and on all
SAME_SHARE = 0.1  # of a phase in a time


@dataclass(frozen=True)
class Measurement:
    """`cells` is how many all `commands` measure; `experts` those of a reduced layer, 0 for all."""

    commands: tuple[str, ...]
    cells: int
    ranks: int
    nodes: int
    experts: int = 0

    def where(self, setup: PredictionProblem, ranks: int) -> str:
        """ "2 cells on 8 GPUs, where the model ...", for a question about `ranks` ranks."""
        unit = "GPU" if setup.fixed else "rank"
        text = f"{_number(self.cells, 'cell')} on {_number(self.ranks, unit)}"
        if self.nodes > 1:
            text += f" of {self.nodes} nodes"
            text += "" if setup.emulation else " (docs/clusters.md)"
        if self.experts:
            text += f", with {self.experts} experts"
        if self.ranks < ranks:
            text += ", where the model predicts the same ratios within "
            text += f"{SAME_RATIO - 1:.0%}, by the same phases"
        return text


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def cheapest(
    setup: PredictionProblem, contestants: Sequence[Prediction], file: str = ""
) -> Measurement:
    """The fewest ranks that settle it, with all experts or else with as many on a rank as before;
    all ranks where none do. `contestants`: the best form, then its rivals; `file` has the order of
    experts of those with an explicit placement."""
    if setup.whole:  # bench.py measures one layer
        setup = dataclasses.replace(setup, whole=None)
        contestants = [setup.predict(one.cell) for one in contestants]
    for setting, ranks in _smaller(setup, contestants[0].cell):
        here = _predict_there(setting, ranks, contestants)
        if here and _same(contestants, here):
            return _measurement(setup, setting.layer, here, file)
    return _measurement(setup, setup.layer, contestants, file)


def _smaller(setup: PredictionProblem, cell: Cell) -> Iterator[tuple[PredictionProblem, int]]:
    """The problem with every smaller number of ranks, and with a reduced layer on them."""
    whole, layer = cell.placement.world_size, setup.layer
    for ranks in (n for n in range(2, whole) if whole % n == 0):
        work = setup.workload(ranks)
        if not setup.per_rank and work.tokens == "sharded":
            work = dataclasses.replace(work, batch_size=max(1, work.batch_size * ranks // whole))
        smaller = dataclasses.replace(setup, work=work)
        yield smaller, ranks
        experts = layer.num_experts * ranks // whole
        even = experts * whole == layer.num_experts * ranks
        if even and experts > layer.topk and setup.routing is None:  # a trace has all ids
            reduced = dataclasses.replace(layer, num_experts=experts)
            yield dataclasses.replace(smaller, layer=reduced), ranks


def _predict_there(
    setup: PredictionProblem, ranks: int, contestants: Sequence[Prediction]
) -> list[Prediction]:
    """The contestants at `ranks` ranks; empty where one cannot run, does not fit, or would be the
    same as another."""
    place, work, predicted = setup.placement(ranks), setup.workload(ranks), []
    for contestant in contestants:
        strategy = contestant.cell.strategy
        each = strategy.hot_replicas // degrees(contestant.cell).ep  # copies on a rank stay as many
        cell = Cell(setup.layer, strategy, work, place)
        copies = each * degrees(cell).ep
        cell = dataclasses.replace(
            cell, strategy=dataclasses.replace(strategy, hot_replicas=copies)
        )
        if not _runs(cell):
            return []
        pairs = zip(degrees(contestant.cell), degrees(cell), strict=True)
        if any(now == 1 < before for before, now in pairs):  # another form
            return []
        predicted.append(setup.predict(cell))
    return predicted if all(p.fits for p in predicted) else []


def _runs(cell: Cell) -> bool:
    try:
        supports(cell)
    except Unsupported:
        return False
    return True


def _same(there: Sequence[Prediction], here: Sequence[Prediction]) -> bool:
    """Whether times have the same ratios and the same phases, as the model has them."""
    if any(_difference(far, near) > SAME_SHARE for far, near in zip(there, here, strict=True)):
        return False
    return all(
        abs(math.log(far.total_ms / there[0].total_ms * here[0].total_ms / near.total_ms))
        <= math.log(SAME_RATIO)
        for far, near in zip(there[1:], here[1:], strict=True)
    )


def _difference(one: Prediction, other: Prediction) -> float:
    """The largest difference of a phase's shares of two times."""
    shares = [
        {name: ms / sum(p.phases_ms.values()) for name, ms in p.phases_ms.items()}
        for p in (one, other)
    ]
    return max(abs(shares[0].get(n, 0) - shares[1].get(n, 0)) for n in {*shares[0], *shares[1]})


def _measurement(
    setup: PredictionProblem, layer: LayerSpec, forms: Sequence[Prediction], file: str
) -> Measurement:
    cell, strategies = forms[0].cell, [p.cell.strategy for p in forms]
    ranks = cell.placement.world_size
    nodes = -(-ranks // setup.machine(ranks).ranks_per_node)
    experts = layer.num_experts if layer.num_experts != setup.layer.num_experts else 0
    settings = _setting_words(setup, [p.cell for p in forms], experts)
    cells = len(_product(cell, strategies))
    if cells <= len(strategies) + MORE_CELLS:
        groups = [strategies]
    else:  # their product has forms that nobody asked about
        groups, cells = [[one] for one in strategies], len(strategies)
    commands = [" ".join([_program(setup), *strategy_words(g, file), *settings]) for g in groups]
    return Measurement(tuple(commands), cells, ranks, nodes, experts)


def _program(setup: PredictionProblem) -> str:
    if not (cluster := setup.emulation):
        return f"{BENCH} -m"
    return (
        f"python -m benchmarks.emulate --dilation {cluster.dilation:g} "
        f"--ranks-per-node {cluster.ranks_per_node} --intra {cluster.intra_mbit_s:g} "
        f"--inter {cluster.inter_mbit_s:g} --mtu {cluster.mtu}"
    )


def _word(key: str, values: Sequence[object]) -> str:
    """An override of these values as one word of a shell, with quotes for Hydra where a value has
    other characters than names and paths have."""
    texts = [str(value) for value in values]
    if all(re.fullmatch(r"[\w./-]+", text) for text in texts):
        return f"{key}={','.join(texts)}"
    escaped = [text.replace("'", "\\'") for text in texts]
    return shlex.quote(f"{key}=" + ",".join(f"'{text}'" for text in escaped))


def _values(forms: Sequence[StrategySpec], key: str) -> list[Any]:
    return list(dict.fromkeys(getattr(form, key) for form in forms))


def _splitting(forms: Sequence[StrategySpec]) -> list[StrategySpec]:
    return [form for form in forms if form.name in candidates.EXPERT_PARALLEL]


def strategy_words(forms: Sequence[StrategySpec], file: str = "") -> list[str]:
    """Overrides whose product has every form; what it has beyond them and cannot run is skipped.

    `file` has the order of experts of the forms with an explicit placement.
    """
    words = [f"strategy={','.join(_values(forms, 'name'))}"]
    if splitting := _splitting(forms):
        words.append(f"strategy.dispatcher={','.join(_values(splitting, 'dispatcher'))}")
    for key in KNOBS:
        values = _values(forms, key)
        if values != [getattr(StrategySpec(), key)]:
            words.append(_word(f"strategy.{key}", [file if v == "explicit" else v for v in values]))
    return [*words, "on_invalid=skip"] if len(words) > 1 else words


def _product(cell: Cell, forms: Sequence[StrategySpec]) -> set[StrategySpec]:
    """The forms that bench.py measures for `strategy_words`."""
    orders = {form.placement: form.expert_order for form in forms}
    measured = set()
    for name, dispatcher, *values in itertools.product(
        _values(forms, "name"), _values(_splitting(forms), "dispatcher") or ["local"],
        *(_values(forms, key) for key in KNOBS),
    ):  # fmt: skip
        used = dispatcher if name in candidates.EXPERT_PARALLEL else "local"
        knobs = dict(zip(KNOBS, values, strict=True))
        form = StrategySpec(name, used, expert_order=orders[knobs["placement"]], **knobs)
        if _runs(dataclasses.replace(cell, strategy=form)):
            measured.add(form)
    return measured


def _setting_words(setup: PredictionProblem, cells: Sequence[Cell], experts: int) -> list[str]:
    """Overrides of the layer, the ranks, the batch and the experts that its tokens choose."""
    cell = cells[0]
    layer, work, place = cell.layer, cell.workload, cell.placement
    words = [*_layer_words(setup, layer), f"dtype={layer.dtype}", f"topk={layer.topk}"]
    if experts:
        words.append(f"num_experts={experts}")
    words += [f"world_size={place.world_size}", f"batch_size={work.batch_size}",
              f"tokens={work.tokens}", f"mode={work.mode}"]  # fmt: skip
    if setup.fixed and place.world_size > setup.fixed.ranks_per_node:
        words.append(f"hosts.ranks_per_node={setup.fixed.ranks_per_node}")
    if setup.routing is None and setup.skew == 1 and not experts:
        return words
    # The file's router may choose among groups of experts, which a prescribed choice does not.
    words += ["model.router.groups=1", "model.router.group_topk=1",
              "model.router.selection_bias=none"]  # fmt: skip
    if setup.routing:
        words += ["workload=trace", _word("workload.trace", [setup.routing.path])]
    elif setup.skew > 1:
        splits = max(degrees(one).ep for one in cells)
        words += ["workload=imbalance", f"workload.parameter={setup.skew:g}",
                  f"workload.nominal_ep={splits if splits > 1 else place.world_size}"]  # fmt: skip
    return words


def _layer_words(setup: PredictionProblem, layer: LayerSpec) -> list[str]:
    if setup.model:
        scale = candidates.model_layer(setup.model).dim // layer.dim
        return [f"model={setup.model}", f"model.scale={scale}"]
    usual = LayerSpec()
    words = [f"num_experts={layer.num_experts}"] if layer.num_experts != usual.num_experts else []
    for key in ("dim", "hidden", "dim_out", "activation", "bias", "shared_experts"):
        if getattr(layer, key) != getattr(usual, key):
            words.append(f"model.{key}={getattr(layer, key)}")
    return words
