"""Which algorithm serves an all-reduce or an all-gather on gloo. Torch-free.

gloo's own algorithms are rings: n ranks pass parts round in n-1 turns (an all-reduce in 2 (n-1)),
and each turn waits for the rank before. A small message arrives sooner by an exchange: each rank
sends its whole message to every other, and sums or keeps what it receives. That sends (n-1) x bytes
of x, where the ring of an all-reduce sends 2 (n-1)/n x, so large messages stay with the rings.

For the group of all ranks, a calibration times both and sets the largest size that is exchanged. In
smaller groups and without a calibration the limit is TABLE_BYTES over the ranks. Other backends
choose their algorithms themselves.
"""

from __future__ import annotations

from collections.abc import Mapping

CHOSEN = ("all_reduce", "all_gather")  # collectives that have two algorithms
LIBRARY, EXCHANGE = "library", "exchange"
SIZES_BYTES = (64 << 10, 16 << 10, 256 << 10, 1 << 10)  # of messages, in a calibration's order
UNTIMED = 1.1  # assumed relative time of the algorithm that the table does not choose
TABLE_BYTES = 512 << 10  # of what a rank receives, its own part included
Limits = Mapping[str, int]  # by collective, the largest message in bytes that is exchanged


def table(ranks: int) -> dict[str, int]:
    """Limits without a calibration."""
    return dict.fromkeys(CHOSEN, TABLE_BYTES // ranks)


def algorithm(
    collective: str, size: float, ranks: int, *, backend: str, calibrated: Limits | None = None
) -> str:
    """LIBRARY or EXCHANGE for a message of `size` bytes on each of `ranks` ranks; "" for a
    collective with one algorithm. `calibrated` are the limits for that number of ranks; None takes
    the table's."""
    if collective not in CHOSEN:
        return ""
    if backend != "gloo":
        return LIBRARY
    limits = table(ranks) if calibrated is None else calibrated
    return EXCHANGE if size <= limits[collective] else LIBRARY


def choose(times: Mapping[str, Mapping[int, tuple[float, float]]], ranks: int) -> dict[str, int]:
    """Limits from {collective: {bytes: (seconds by the library, by exchange)}}: those that minimise
    the summed times, each relative to the faster algorithm. Sizes that were not timed follow the
    table."""
    expected = TABLE_BYTES // ranks
    limits = {}
    for collective in CHOSEN:
        both = {
            size: (UNTIMED, 1.0) if size <= expected else (1.0, UNTIMED) for size in SIZES_BYTES
        } | dict(times.get(collective, {}))
        limits[collective] = min((0, *sorted(SIZES_BYTES)), key=lambda limit: _cost(limit, both))
    return limits


def _cost(limit: int, times: Mapping[int, tuple[float, float]]) -> float:
    """Summed relative time when sizes up to `limit` are exchanged."""
    return sum(both[size <= limit] / min(both) for size, both in times.items())


def fit_name(collective: str, algorithm_name: str) -> str:
    """The collective whose calibrated fit gives a call's time: all_to_all for an exchange."""
    return "all_to_all" if algorithm_name == EXCHANGE else collective
