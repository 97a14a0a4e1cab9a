"""Checks that a prescribed workload is possible; refuses it by name otherwise. Torch-free.

E experts, K top-k, G nominal ranks: contiguous blocks of E/G experts, whatever the strategy is.
"""

from __future__ import annotations

import math

from moe.spec import WORKLOADS, Cell, Unsupported

FIT = "set workload.parameter to one, or change topk or workload.nominal_ep"
ROUNDING = 9  # decimals: K * share of 0.1, 0.3, ... is meant to be whole where it nearly is


def nominal_ranks(cell: Cell) -> int:
    """G: the number of ranks that the workloads balanced, hot_rank and imbalance are defined by."""
    return cell.workload.nominal_ep or cell.placement.world_size


def is_prescribed(cell: Cell) -> bool:
    """Whether the workload, not the router, chooses the K experts of every token."""
    return cell.workload.kind != "learned"


def check_workload(cell: Cell) -> None:
    """Raises Unsupported, naming field, value, what is allowed and what to do.

    Expects a layer and a placement that are valid for themselves: 1 <= K <= E, ranks >= 1.
    """
    work = cell.workload
    if work.kind not in WORKLOADS:
        raise Unsupported("workload.kind", work.kind, "|".join(WORKLOADS), "choose one of these")
    if type(work.nominal_ep) is not int or work.nominal_ep < 0:
        raise Unsupported("workload.nominal_ep", work.nominal_ep, "whole numbers from 0",
                          "set it to a number of ranks, or to 0 for world_size")  # fmt: skip
    if not math.isfinite(work.parameter):
        raise Unsupported("workload.parameter", work.parameter, "finite numbers", "set one")
    if is_prescribed(cell):
        _router(cell)
    {"zipf": _zipf, "k_hot": _k_hot, "hot_rank": _hot_rank, "imbalance": _imbalance}.get(
        work.kind, _no_parameter
    )(cell)
    if (work.kind == "trace") != bool(work.trace_sha256):
        raise Unsupported("workload.trace", work.trace_sha256 or None,
                          "a file of expert ids with workload=trace, and none without",
                          "set workload=trace workload.trace=FILE")  # fmt: skip


def _router(cell: Cell) -> None:
    rule = cell.layer.router
    for name, only in (("kind", "token_choice"), ("groups", 1), ("selection_bias", "none")):
        if getattr(rule, name) != only:
            raise Unsupported(f"router.{name}", getattr(rule, name),
                              f"{only} with workload={cell.workload.kind}, which already "
                              "prescribes the choice", f"set router.{name}={only} or "
                              "workload=learned")  # fmt: skip


def _bad(cell: Cell, allowed: str, remedy: str) -> Unsupported:
    work = cell.workload
    return Unsupported(
        "workload.parameter", work.parameter, f"{allowed} for workload={work.kind}", remedy
    )


def _no_parameter(cell: Cell) -> None:
    if cell.workload.parameter:
        raise _bad(cell, "0", "leave workload.parameter out: this workload has none")


def _zipf(cell: Cell) -> None:
    if cell.workload.parameter <= 0:
        raise _bad(cell, "an exponent above 0", "set workload.parameter=1, or workload=balanced")


def _k_hot(cell: Cell) -> None:
    hot, experts = cell.workload.parameter, cell.layer.num_experts
    if hot != int(hot) or not 1 <= hot <= experts:
        raise _bad(cell, f"a whole number of hot experts, 1 to num_experts={experts},",
                   "set workload.parameter to one")  # fmt: skip


def _places(cell: Cell) -> int:
    """E/G, the experts of a nominal rank; raises Unsupported where no rank can be hot."""
    ranks, experts = nominal_ranks(cell), cell.layer.num_experts
    name = "workload.nominal_ep" if cell.workload.nominal_ep else "world_size"
    if ranks == 1 or experts % ranks:
        raise Unsupported(name, ranks, f"divisors above 1 of num_experts={experts} for workload="
                          f"{cell.workload.kind}, which says how much of the work one rank gets",
                          "set workload.nominal_ep to one")  # fmt: skip
    return experts // ranks


def hot_slots(cell: Cell) -> float:
    """Expected slots of a token on the hot rank."""
    return round(cell.layer.topk * cell.workload.parameter, ROUNDING)


def _hot_rank(cell: Cell) -> None:
    places, topk, experts = _places(cell), cell.layer.topk, cell.layer.num_experts
    least, most = max(0.0, 1 - (experts - places) / topk), min(1.0, places / topk)
    share, slots = cell.workload.parameter, hot_slots(cell)
    if share <= 0 or share > 1 or slots > places or topk - slots > experts - places:
        above = f"from {least:.6g}" if least > 0 else "above 0"
        raise _bad(cell, f"a share {above} up to {most:.6g} (topk={topk} distinct experts, "
                   f"{places} of num_experts={experts} on a rank)",
                   FIT)  # fmt: skip


def most_imbalance(cell: Cell) -> float:
    """The largest possible ratio of busiest rank to mean: min(G, E/K), when every token has all the
    slots there that fit."""
    return min(float(nominal_ranks(cell)), cell.layer.num_experts / cell.layer.topk)


def _imbalance(cell: Cell) -> None:
    _places(cell)
    most = most_imbalance(cell)
    if not 1 <= cell.workload.parameter <= most + 10**-ROUNDING:
        raise _bad(cell, f"busiest rank over mean from 1 to {most:.6g} (the least of "
                   f"{nominal_ranks(cell)} nominal ranks and num_experts/topk)",
                   FIT)  # fmt: skip
