"""The verdict's arithmetic, its symmetry, and its error rates on data whose truth is known."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.stats import verdict
from analysis.stats.findings import slope_weights
from analysis.stats.verdict import FASTER, OPPOSITE, SAME, SLOWER, UNDECIDED

durations = st.lists(st.floats(0.01, 1e4), min_size=5, max_size=12)


def judged(a: list[float], b: list[float], paired: bool = True, **options: float) -> str:
    found = verdict.compare(a, b, paired=paired, basis="launches", launches=len(a), **options)  # type: ignore[arg-type]
    assert found is not None
    return found.word


def test_paired_interval_by_hand() -> None:
    """Mean 2, standard deviation 1, n 3: half-width t(0.975, 2) / sqrt(3) = 4.3027 / 1.7321."""
    found = verdict.paired_interval([1.0, 2.0, 3.0], 0.95)
    assert found is not None
    assert found.center == 2.0
    assert found.high - found.center == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)


def test_welch_by_hand() -> None:
    """Equal variances 1 and n 3 each: standard error sqrt(2/3), 4 degrees of freedom."""
    found = verdict.contrast_interval((1.0, -1.0), ([4.0, 5.0, 6.0], [1.0, 2.0, 3.0]), 0.95)
    assert found is not None
    assert found.center == pytest.approx(3.0)
    assert found.high - found.center == pytest.approx(2.776445 * math.sqrt(2 / 3), rel=1e-5)


def test_words_need_the_interval_wholly_past_or_within_the_noise() -> None:
    past = math.log(1.05)
    for low, high, word in (
        (-past, -math.log(1.03), FASTER),
        (math.log(1.03), past, SLOWER),
        (-math.log(1.01), math.log(1.01), SAME),
        (-past, -math.log(1.01), UNDECIDED),
        (-past, past, UNDECIDED),
    ):
        assert verdict.word_for(verdict.Estimate((low + high) / 2, low, high), 0.02) == word


def test_too_few_are_no_verdict() -> None:
    assert verdict.compare([1.0], [2.0], paired=True, basis="rounds", launches=1) is None
    assert verdict.compare([1.0], [2.0, 3.0], paired=False, basis="rounds", launches=1) is None
    assert "too few" in verdict.sentence("a", "b", None)


@settings(max_examples=150)
@given(durations, durations, st.booleans(), st.integers(1, 40))
def test_swapping_inverts(a: list[float], b: list[float], paired: bool, many: int) -> None:
    if paired:
        a, b = a[: len(b)], b[: len(a)]
    options = {"paired": paired, "basis": "rounds", "launches": 1, "comparisons": many}
    one, other = verdict.compare(a, b, **options), verdict.compare(b, a, **options)  # type: ignore[arg-type]
    assert one is not None and other is not None
    assert other.word == OPPOSITE[one.word]
    assert other.ratio == pytest.approx(1 / one.ratio)
    assert other.low == pytest.approx(1 / one.high)
    assert verdict.sentence("a", "b", one) == verdict.sentence("b", "a", other) or one.word in (
        SAME, UNDECIDED,
    )  # fmt: skip


@settings(max_examples=60)
@given(durations, st.floats(0.1, 10.0))
def test_units_do_not_matter(a: list[float], unit: float) -> None:
    b = [value * 1.1 for value in reversed(a)]
    assert judged(a, b) == judged([v * unit for v in a], [v * unit for v in b])


@settings(max_examples=60)
@given(durations, durations)
def test_more_comparisons_only_widen(a: list[float], b: list[float]) -> None:
    a, b = a[: len(b)], b[: len(a)]
    widths = []
    for many in (1, 10, 100):
        found = verdict.compare(a, b, paired=True, basis="rounds", launches=1, comparisons=many)
        assert found is not None
        widths.append(math.log(found.high / found.low))
    assert widths == sorted(widths)


def launches(rng: random.Random, count: int, center: float) -> tuple[list[float], list[float]]:
    """Pairs with an effect of the launch that both share, and noise of each its own."""
    shared = [rng.lognormvariate(0, 0.1) for _ in range(count)]
    a = [center * s * rng.lognormvariate(0, 0.03) for s in shared]
    return a, [s * rng.lognormvariate(0, 0.03) for s in shared]


@pytest.mark.parametrize("count", [5, 8])
def test_error_rate_is_as_stated(count: int) -> None:
    """Without a noise threshold, A/A ends in a difference in 5% of 4,000, within 1.5 points."""
    rng = random.Random(count)
    wrong = sum(
        judged(*launches(rng, count, 1.0), threshold=0.0) in (FASTER, SLOWER) for _ in range(4000)
    )
    assert wrong / 4000 == pytest.approx(0.05, abs=0.015)


def test_family_error_rate_is_at_most_as_stated() -> None:
    """Of 500 families of 10 A/A comparisons at most 6.5% hold any difference."""
    rng = random.Random(1)
    wrong = 0
    for _ in range(500):
        words = [judged(*launches(rng, 6, 1.0), threshold=0.0, comparisons=10) for _ in range(10)]
        wrong += any(word in (FASTER, SLOWER) for word in words)
    assert wrong / 500 <= 0.05 + 0.025


def test_the_threshold_keeps_same_from_being_called_faster() -> None:
    rng = random.Random(2)
    words = [judged(*launches(rng, 5, 1.0)) for _ in range(1000)]
    assert sum(word in (FASTER, SLOWER) for word in words) / 1000 <= 0.05
    found = [judged(*launches(rng, 10, 1.2)) for _ in range(200)]
    assert found.count(SLOWER) / 200 >= 0.95


def test_ranking_has_ties() -> None:
    """c beaten by a only; b beats nobody and is beaten by nobody: it shares the first rank."""
    beats = {("a", "c")}
    assert verdict.ranks("abc", lambda x, y: (x, y) in beats) == {"a": 1, "b": 1, "c": 2}  # type: ignore[arg-type]


def test_sentences_claim_no_more_than_they_hold() -> None:
    one = verdict.compare(
        [1.0, 1.01, 0.99, 1.0], [2.0, 2.02, 1.98, 2.0], paired=True, basis="rounds", launches=1
    )
    assert verdict.sentence("tp", "ep", one) == "tp is 2.00 times as fast"
    assert one is not None and verdict.scope(one) == "in this launch"
    many = verdict.compare(
        [1.0, 1.1] * 3, [2.0, 2.2] * 3, paired=True, basis="launches", launches=6
    )
    assert verdict.sentence("ep", "tp", many) == "ep is 2.00 times as fast"
    assert many is not None and verdict.scope(many) == "over 6 launches"


def test_slope_weights_are_least_squares() -> None:
    x, y = [0.0, 1.0, 3.0], [1.0, 2.5, 6.0]
    found = sum(w * v for w, v in zip(slope_weights(x), y, strict=True))
    assert found == pytest.approx(statistics.linear_regression(x, y).slope)
