"""Which algorithm serves an all-reduce or an all-gather on gloo. Torch-free.

gloo's own are rings: n ranks pass parts round in n-1 turns (an all-reduce in 2 (n-1)), and every
turn waits for the rank before. A small message arrives sooner in one exchange: each rank sends all
it has to every other, and adds up, or keeps, what comes. That sends (n-1) x bytes of x, where the
ring of an all-reduce sends 2 (n-1)/n x, so large messages stay with the rings.

Among all ranks of a launch a calibration has timed both, and says up to which size messages are
exchanged; without one, and in smaller groups, it is TABLE_BYTES over the ranks. Other engines
choose for themselves.
"""

from __future__ import annotations

from collections.abc import Mapping

CHOSEN = ("all_reduce", "all_gather")  # collectives that have two algorithms
LIBRARY, EXCHANGE = "library", "exchange"
SIZES_BYTES = (64 << 10, 16 << 10, 256 << 10, 1 << 10)  # of messages; a calibration's order
UNTIMED = 1.1  # how much slower the algorithm counts that the table does not take
TABLE_BYTES = 512 << 10  # of what a rank receives from all others and itself
Limits = Mapping[str, int]  # by collective, the largest message in bytes that is exchanged


def table(ranks: int) -> dict[str, int]:
    """Limits without a calibration."""
    return dict.fromkeys(CHOSEN, TABLE_BYTES // ranks)


def algorithm(
    collective: str, size: float, ranks: int, *, backend: str, calibrated: Limits | None = None
) -> str:
    """LIBRARY or EXCHANGE for `size` bytes on each of `ranks` ranks; "" for a collective that has
    one algorithm. `calibrated` are the limits for that number of ranks, None for the table's."""
    if collective not in CHOSEN:
        return ""
    if backend != "gloo":
        return LIBRARY
    limits = table(ranks) if calibrated is None else calibrated
    return EXCHANGE if size <= limits[collective] else LIBRARY


def choose(times: Mapping[str, Mapping[int, tuple[float, float]]], ranks: int) -> dict[str, int]:
    """Limits from {collective: {bytes: (library's seconds, exchange's)}}: those with which the
    times, relative to the better of both, are least together. Of sizes that were not timed the
    table is believed."""
    expected = TABLE_BYTES // ranks
    limits = {}
    for collective in CHOSEN:
        both = {
            size: (UNTIMED, 1.0) if size <= expected else (1.0, UNTIMED) for size in SIZES_BYTES
        } | dict(times.get(collective, {}))
        limits[collective] = min((0, *sorted(SIZES_BYTES)), key=lambda limit: _cost(limit, both))
    return limits


def _cost(limit: int, times: Mapping[int, tuple[float, float]]) -> float:
    """Of times by size; those up to the limit by exchange."""
    return sum(both[size <= limit] / min(both) for size, both in times.items())


def fit_name(collective: str, algorithm_name: str) -> str:
    """The collective of a calibration by which a call's time is told: an exchange is an
    all-to-all."""
    return "all_to_all" if algorithm_name == EXCHANGE else collective
