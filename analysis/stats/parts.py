"""A difference of two times in parts that add up to it: pure functions, no frames, no files.

A phase that takes T although it needs I of the machine has the rate e = T / I. With I a sum of
terms, the difference of two phases is exactly

    T_A - T_B = sum over terms of (e_A + e_B) / 2 * (I_A - I_B)  +  (I_A + I_B) / 2 * (e_A - e_B)

(Bennet 1920: each factor's change at the mean of the other). The first are the parts of more work,
the last is the same work at another rate. docs/explain.md has all parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ARITHMETIC, READS, MEMORY, SKEW, RATE = "arithmetic", "reads", "memory", "skew", "rate"
ROUTER, ROWS, BYTES, LINK_RATE = "router", "rows", "bytes", "link_rate"
WAITING, HOST, CORES, UNEXPLAINED = "waiting", "host", "oversubscription", "unexplained"
# In the order of tables; parts named BYTES and a collective come before LINK_RATE.
BEFORE_LINKS = (ARITHMETIC, READS, MEMORY, SKEW, RATE, ROUTER, ROWS)
AFTER_LINKS = (LINK_RATE, WAITING, HOST, CORES, UNEXPLAINED)


@dataclass(frozen=True)
class State:
    """What a cell takes, in ms: a step in its samples, all phases of a pass, each of the rank that
    takes longest there (`total`), and single ones: of one rank for experts and backward, for links
    and outside of all phases; the mean of the ranks for the router and for moving rows."""

    step: float
    total: float
    experts: float = 0.0
    links: float = 0.0
    backward: float = 0.0
    router: float = 0.0
    rows: float = 0.0
    host: float = 0.0

    @property
    def waiting(self) -> float:
        """What the ranks wait for one that is late elsewhere than in the phases of one rank."""
        named = self.experts + self.links + self.backward + self.router + self.rows + self.host
        return self.total - named


@dataclass(frozen=True)
class Work:
    """What the rank that `State` shows needs of the machine: ms of it at its calibrated best, or,
    without a calibration, FLOPs and bytes, of which only ratios count.

    `experts` and `backward` have the terms ARITHMETIC, READS, MEMORY, SKEW; `links` and `backward`
    have a term named BYTES and the collective for each. `over` is threads for each core, at least
    1. `host_waits_ms` are the counted waits of the host for a GPU in a step.
    """

    experts: Mapping[str, float] = field(default_factory=dict)
    links: Mapping[str, float] = field(default_factory=dict)
    backward: Mapping[str, float] = field(default_factory=dict)
    over: float = 1.0
    host_waits_ms: float = 0.0
    kernel: str = ""


def decompose(a: State, work_a: Work, b: State, work_b: Work) -> dict[str, float]:
    """ms by part, A minus B; they add up to `a.step - b.step`."""
    parts = dict.fromkeys((*BEFORE_LINKS, *AFTER_LINKS), 0.0)
    for sign, state, work in ((1, a, work_a), (-1, b, work_b)):
        local, alone = state.total - state.links, _alone(state, work)
        shared = (1 - 1 / work.over) * max(0.0, state.step - state.links)
        waits = _waits(state, work)
        parts[CORES] += sign * shared
        parts[ROUTER] += sign * alone * state.router
        parts[ROWS] += sign * (alone * state.rows - (0.0 if state.links else waits))
        parts[HOST] += sign * (alone * state.host + waits)
        parts[WAITING] += sign * alone * state.waiting
        parts[UNEXPLAINED] += sign * (state.step - state.links - alone * local - shared)
    own, other = (
        (_alone(s, w) * s.experts, _alone(s, w) * s.backward, _sending(s, w))
        for s, w in ((a, work_a), (b, work_b))
    )
    for place, rate in enumerate((RATE, RATE, LINK_RATE)):
        needs_a, needs_b = _needs(work_a)[place], _needs(work_b)[place]
        alike = work_a.kernel == work_b.kernel and needs_a.keys() == needs_b.keys()
        terms, rest = split(own[place], needs_a, other[place], needs_b, alike)
        for key, value in terms.items():
            parts[key] = parts.get(key, 0.0) + value
        parts[rate] += rest
    return parts


def split(
    time_a: float,
    needs_a: Mapping[str, float],
    time_b: float,
    needs_b: Mapping[str, float],
    alike: bool = False,
) -> tuple[dict[str, float], float]:
    """(ms by term, ms of another rate), A minus B, by the formula above. A side that needs nothing
    is given the other's rate; what it takes all the same counts as another rate. `alike` phases
    (one kernel, the same collectives) may share fixed costs f >= 0 and a rate, T = f + e * I; where
    these explain both times, nothing is left for another rate."""
    sum_a, sum_b = sum(needs_a.values()), sum(needs_b.values())
    rates = [time / need for time, need in ((time_a, sum_a), (time_b, sum_b)) if need]
    rate = sum(rates) / len(rates) if rates else 0.0
    if alike and sum_a != sum_b and len(rates) == 2:
        slope = (time_a - time_b) / (sum_a - sum_b)
        rate = slope if 0 <= slope <= min(rates) else rate
    terms = {
        key: rate * (needs_a.get(key, 0.0) - needs_b.get(key, 0.0))
        for key in dict.fromkeys((*needs_a, *needs_b))
    }
    return terms, time_a - time_b - sum(terms.values())


def _alone(state: State, work: Work) -> float:
    """What a rank's own work is of its phases. Where ranks share a core, own work is the step
    without links over the threads of a core, whether the phases were interrupted or not."""
    local = state.total - state.links
    if work.over == 1 or local <= 0:
        return 1.0
    return min(1.0, max(0.0, state.step - state.links) / work.over / local)


def _needs(work: Work) -> tuple[Mapping[str, float], ...]:
    return work.experts, work.backward, work.links


def _waits(state: State, work: Work) -> float:
    """The host's counted waits, which lie in the links where there are any, else in moving rows."""
    return min(work.host_waits_ms, state.links or _alone(state, work) * state.rows)


def _sending(state: State, work: Work) -> float:
    return state.links - (_waits(state, work) if state.links else 0.0)
