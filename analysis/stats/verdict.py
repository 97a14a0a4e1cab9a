"""Which of two durations is shorter, by an interval: pure functions, no frames, no files.

A comparison is an interval of the ratio of two durations, by Student's t on logarithms: paired
differences where the two were measured side by side (same launch, same round), Welch's unpaired
form where they were not. The unit is the launch where both have five or more; else it is the
round, and what is said holds "in this launch", since between-launch variation is not in it.

Multiple comparisons are corrected by Bonferroni: with m comparisons made together every interval
is taken at 1 - (1 - confidence)/m, so that all of them hold at once with the stated confidence.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runners.records.stats import CONFIDENCE

NOISE_THRESHOLD = 0.02  # effects smaller than this are never called a difference
MIN_LAUNCHES = 5
MOST_LOG = 700.0  # exp of it and of its negative are floats
FASTER, SLOWER, SAME, UNDECIDED = "faster", "slower", "same", "undecided"
OPPOSITE = {FASTER: SLOWER, SLOWER: FASTER, SAME: SAME, UNDECIDED: UNDECIDED}


@dataclass(frozen=True)
class Estimate:
    """A mean on the log scale with its interval."""

    center: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """A against B. `ratio` is A's duration over B's, `low` and `high` its simultaneous interval."""

    word: str  # what A is: faster, slower, same (shown to be), undecided
    ratio: float
    low: float
    high: float
    confidence: float
    basis: str  # launches | rounds
    count: int  # launches the data come from
    paired: bool
    comparisons: int

    def inverted(self) -> Verdict:
        """B against A."""
        return dataclasses.replace(
            self, word=OPPOSITE[self.word], ratio=1 / self.ratio, low=1 / self.high,
            high=1 / self.low,
        )  # fmt: skip


def t_quantile(probability: float, degrees: float) -> float:
    """Quantile of Student's t; scipy is imported here since it is slow to import."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))


def level(confidence: float, comparisons: int) -> float:
    """Bonferroni: the confidence of each of `comparisons` intervals that shall hold together."""
    return 1 - (1 - confidence) / max(1, comparisons)


def paired_interval(differences: Sequence[float], confidence: float) -> Estimate | None:
    """t-interval of the mean of paired differences; None with fewer than two."""
    n = len(differences)
    if n < 2:
        return None
    center = statistics.fmean(differences)
    half = t_quantile((1 + confidence) / 2, n - 1) * statistics.stdev(differences) / math.sqrt(n)
    return Estimate(center, center - half, center + half)


def contrast_interval(
    weights: Sequence[float], groups: Sequence[Sequence[float]], confidence: float
) -> Estimate | None:
    """t-interval of sum(weight * mean(group)) over independent groups of unequal variances.

    Degrees of freedom by Welch and Satterthwaite. None where a group has fewer than two values.
    With weights (1, -1) this is Welch's interval of a difference of means.
    """
    if any(len(group) < 2 for group in groups):
        return None
    center = sum(w * statistics.fmean(g) for w, g in zip(weights, groups, strict=True))
    parts = [w * w * statistics.variance(g) / len(g) for w, g in zip(weights, groups, strict=True)]
    total = sum(parts)
    if total == 0:
        return Estimate(center, center, center)
    inverse = sum(p * p / (len(g) - 1) for p, g in zip(parts, groups, strict=True))
    half = t_quantile((1 + confidence) / 2, total * total / inverse) * math.sqrt(total)
    return Estimate(center, center - half, center + half)


def factor(log: float) -> float:
    """exp, clipped to what a float can hold: few and scattered values give intervals as wide."""
    return math.exp(max(-MOST_LOG, min(MOST_LOG, log)))


def word_for(estimate: Estimate, threshold: float) -> str:
    """The word for an interval of a log ratio: FASTER, SLOWER or SAME only if all of it is."""
    bound = math.log1p(threshold)
    if estimate.high < -bound:
        return FASTER
    if estimate.low > bound:
        return SLOWER
    if -bound <= estimate.low and estimate.high <= bound:
        return SAME
    return UNDECIDED


def logs(values: Sequence[float]) -> list[float]:
    """Natural logarithms."""
    return [math.log(value) for value in values]


def compare(
    a: Sequence[float],
    b: Sequence[float],
    *,
    paired: bool,
    basis: str,
    launches: int,
    comparisons: int = 1,
    threshold: float = NOISE_THRESHOLD,
    confidence: float = CONFIDENCE,
) -> Verdict | None:
    """Durations of A against those of B, pair by pair if `paired`; None for fewer than two."""
    each = level(confidence, comparisons)
    if paired:
        differences = [x - y for x, y in zip(logs(a), logs(b), strict=True)]
        estimate = paired_interval(differences, each)
    else:
        estimate = contrast_interval((1.0, -1.0), (logs(a), logs(b)), each)
    if estimate is None:
        return None
    ratio, low, high = factor(estimate.center), factor(estimate.low), factor(estimate.high)
    word = word_for(estimate, threshold)
    return Verdict(word, ratio, low, high, confidence, basis, launches, paired, comparisons)


def ranks(names: Sequence[str], faster: Callable[[str, str], bool]) -> dict[str, int]:
    """1 + how many are shown to be faster; names without a shown difference may share a rank."""
    return {a: 1 + sum(faster(b, a) for b in names if b != a) for a in names}


def scope(verdict: Verdict) -> str:
    """Text: the launches that the verdict holds for."""
    if verdict.basis == "launches":
        return f"over {verdict.count} launches"
    return "in this launch" if verdict.count == 1 else f"in these {verdict.count} launches"


def sentence(a: str, b: str, verdict: Verdict | None, threshold: float = NOISE_THRESHOLD) -> str:
    """Text: which of A and B is how many times as fast; `verdict` is A's against B."""
    if verdict is None:
        return "too few samples to tell"
    if verdict.word == SLOWER:
        return sentence(b, a, verdict.inverted(), threshold)
    if verdict.word == FASTER:
        return f"{a} is {1 / verdict.ratio:.2f} times as fast"
    return f"the same (within {threshold:.0%})" if verdict.word == SAME else "no difference shown"
