"""The verdict in words: a table of situations, and what a reader is told in each."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from analysis.data.frame import to_frame
from analysis.stats import summarize
from analysis.text import captions, insights, phrases
from runners.records import flat_row
from tests.support import situations
from tests.support.situations import Records


def sentences_of(records: Records) -> str:
    """The lines of `show`, without its tables."""
    frame = to_frame([flat_row.row(record) for record in records])
    cells = summarize.summarize(frame)
    short, others = insights.headline_and_insights(frame, cells)
    lines = captions.banners(frame) + [line for one in (short, *others) for line in one.lines()]
    return "\n".join(line.strip() for line in lines)


SURE = (
    "How sure: {} with 95% confidence, with one launch of each cell (measure.launches=5 covers "
    "what changes from launch to launch); a difference counts only if it is surely over 2%."
)
NOT_VARIED = r"; next: python runners/bench.py (experiment=reference_\w+(, | or )?)+\.$"
# Times are in the functions of `situations`, sentences are written out here. "How sure" is short
# for SURE, and the commands after "Not varied" are left out.
SITUATIONS: dict[str, tuple[Callable[[], Records], str]] = {
    "one axis": (
        situations.one_axis,
        """
        In short
        simple is fastest at every top-k, 1.9 to 2.2 times ahead of tp.
        How sure: all 15 comparisons hold together.
        Not varied: batch size and ranks.
        Top-k (batch size 8, ranks 8, experts 8)
        tp is 1.2 times as fast at top-k 8 as at 2.
        simple: time does not depend on top-k between 2 and 8 (within 5%).
        ep: time does not depend on top-k between 2 and 8 (within 2%).
        """,
    ),
    "crossing": (
        situations.crossing,
        """
        In short
        tp is fastest at batch size 8 and 32, 1.5 to 3.0 times ahead of ep; ep is fastest at \
        batch \
        size 128, 2.0 times ahead of tp.
        How sure: all 7 comparisons hold together.
        Not varied: top-k and ranks.
        Batch size (top-k 2, ranks 8, experts 8)
        tp takes 6.0 times as long at batch size 128 as at 8.
        ep: time does not depend on the batch size between 8 and 128 (within 2%).
        """,
    ),
    "noisy tie": (
        situations.noisy_tie,
        """
        In short
        tp and ep are fastest at every top-k and not told apart.
        How sure: all 4 comparisons hold together.
        Not varied: batch size and ranks.
        Top-k (batch size 8, ranks 8, experts 8)
        tp: time changes by at most 20% with top-k between 2 and 4.
        ep: too noisy to say whether time depends on top-k (it may be 0.93 to 1.3 times that at \
        2).
        """,
    ),
    "exact tie": (
        situations.exact_tie,
        """
        In short
        tp and ep are fastest at every top-k and take the same time (within 2%).
        How sure: all 4 comparisons hold together.
        Not varied: batch size and ranks.
        Top-k (batch size 8, ranks 8, experts 8)
        tp and ep: time does not depend on top-k between 2 and 4 (within 2%).
        """,
    ),
    "tie behind": (
        situations.tie_behind,
        """
        In short
        simple is fastest at every top-k, 4.0 times ahead of the next (ep or tp); tp and ep \
        are not told apart at any top-k.
        How sure: all 9 comparisons hold together.
        Not varied: batch size and ranks.
        Top-k (batch size 8, ranks 8, experts 8)
        simple: time does not depend on top-k between 2 and 4 (within 2%).
        tp: time changes by at most 15% with top-k between 2 and 4.
        ep: time changes by at most 20% with top-k between 2 and 4.
        """,
    ),
    "proportional": (
        situations.proportional,
        """
        In short
        ep is fastest at every batch size, 2.0 times ahead of tp.
        How sure: all 7 comparisons hold together.
        Not varied: top-k and ranks.
        Batch size (top-k 2, ranks 8, experts 8)
        tp and ep take 4.0 times as long at batch size 32 as at 8.
        """,
    ),
    "faster on more ranks": (
        situations.faster_on_more_ranks,
        """
        In short
        tp is fastest at every number of ranks, 2.0 times ahead of ep.
        How sure: all 7 comparisons hold together.
        Not varied: top-k and batch size.
        Number of ranks (batch size 8, top-k 2, experts 8)
        tp and ep are 4.0 times as fast on 8 ranks as on 2.
        """,
    ),
    "peak": (
        situations.peak,
        """
        In short
        Only ep was measured, so there is no other strategy to compare it with.
        How sure: all 2 comparisons hold together.
        Not varied: top-k and ranks.
        Batch size (top-k 2, ranks 8, experts 8)
        ep takes 7.9 times as long at batch size 32 as at 8; at 128 no difference is shown.
        """,
    ),
    "peak and end": (
        situations.peak_and_end,
        """
        In short
        Only ep was measured, so there is no other strategy to compare it with.
        How sure: all 2 comparisons hold together.
        Not varied: top-k and ranks.
        Batch size (top-k 2, ranks 8, experts 8)
        ep takes 8.0 times as long at batch size 32 as at 8, and 2.0 times as long at 128.
        """,
    ),
    "noisy growth": (
        situations.noisy_growth,
        """
        In short
        Only ep was measured, so there is no other strategy to compare it with.
        How sure: all 2 comparisons hold together.
        Not varied: batch size and ranks.
        Top-k (batch size 8, ranks 8, experts 8)
        ep: too noisy to say whether time depends on top-k (it may be 0.70 to 2.3 times that at \
        2).
        """,
    ),
    "two axes, one wins": (
        lambda: situations.two_axes(lambda batch, topk: (1.0, 2.0)),
        """
        In short
        tp is fastest at all 4 settings, 2.0 times ahead of ep.
        How sure: all 12 comparisons hold together.
        Not varied: ranks.
        Top-k (batch size 8, ranks 8, experts 8)
        tp and ep: time does not depend on top-k between 2 and 4 (within 2%).
        Top-k (batch size 64, ranks 8, experts 8)
        tp and ep: time does not depend on top-k between 2 and 4 (within 2%).
        Batch size (top-k 2, ranks 8, experts 8)
        tp and ep: time does not depend on the batch size between 8 and 64 (within 2%).
        Batch size (top-k 4, ranks 8, experts 8)
        tp and ep: time does not depend on the batch size between 8 and 64 (within 2%).
        """,
    ),
    "two axes, crossing": (
        lambda: situations.two_axes(lambda batch, topk: (1.0, 2.0) if batch == 8 else (4.0, 2.0)),
        """
        In short
        Whatever the top-k, tp is fastest at batch size 8, 2.0 times ahead of ep; ep is fastest \
        at \
        batch size 64, 2.0 times ahead of tp.
        How sure: all 12 comparisons hold together.
        Not varied: ranks.
        Top-k (batch size 8, ranks 8, experts 8)
        tp is fastest at every top-k, 2.0 times ahead of ep.
        tp and ep: time does not depend on top-k between 2 and 4 (within 2%).
        Top-k (batch size 64, ranks 8, experts 8)
        ep is fastest at every top-k, 2.0 times ahead of tp.
        tp and ep: time does not depend on top-k between 2 and 4 (within 2%).
        Batch size (top-k 2, ranks 8, experts 8)
        tp is fastest at batch size 8, 2.0 times ahead of ep; ep is fastest at batch size 64, \
        2.0 \
        times ahead of tp.
        tp takes 4.0 times as long at batch size 64 as at 8.
        ep: time does not depend on the batch size between 8 and 64 (within 2%).
        Batch size (top-k 4, ranks 8, experts 8)
        tp is fastest at batch size 8, 2.0 times ahead of ep; ep is fastest at batch size 64, \
        2.0 \
        times ahead of tp.
        tp takes 4.0 times as long at batch size 64 as at 8.
        ep: time does not depend on the batch size between 8 and 64 (within 2%).
        """,
    ),
    "two axes, a tie": (
        lambda: situations.two_axes(lambda batch, topk: (1.0 + (batch + topk == 68), 2.0)),
        """
        In short
        tp is fastest at 3 of 4 settings (top-k 2, batch size 8; top-k 2, batch size 64; \
        top-k 4, batch size 8), 2.0 times ahead of ep; tp and ep are fastest at 1 of 4 settings \
        (top-k 4, batch size 64) and take the same time (within 2%).
        How sure: all 12 comparisons hold together.
        Not varied: ranks.
        Top-k (batch size 8, ranks 8, experts 8)
        tp is fastest at every top-k, 2.0 times ahead of ep.
        tp and ep: time does not depend on top-k between 2 and 4 (within 2%).
        Top-k (batch size 64, ranks 8, experts 8)
        tp is fastest at top-k 2, 2.0 times ahead of ep; tp and ep are fastest at top-k 4 and \
        take the same time (within 2%).
        tp takes 2.0 times as long at top-k 4 as at 2.
        ep: time does not depend on top-k between 2 and 4 (within 2%).
        Batch size (top-k 2, ranks 8, experts 8)
        tp is fastest at every batch size, 2.0 times ahead of ep.
        tp and ep: time does not depend on the batch size between 8 and 64 (within 2%).
        Batch size (top-k 4, ranks 8, experts 8)
        tp is fastest at batch size 8, 2.0 times ahead of ep; tp and ep are fastest at batch \
        size 64 and \
        take the same time (within 2%).
        tp takes 2.0 times as long at batch size 64 as at 8.
        ep: time does not depend on the batch size between 8 and 64 (within 2%).
        """,
    ),
    "one strategy": (
        situations.one_strategy,
        """
        In short
        Only ep was measured, so there is no other strategy to compare it with.
        How sure: the comparison holds.
        Not varied: batch size and ranks.
        Top-k (batch size 8, ranks 8, experts 8)
        ep takes 1.3 times as long at top-k 8 as at 2.
        """,
    ),
    "one cell": (
        situations.one_cell,
        """
        In short
        Only ep was measured, so there is no other strategy to compare it with.
        Not varied: top-k, batch size and ranks.
        """,
    ),
    "apart": (
        situations.apart,
        """
        In short
        ep and tp were not measured at the same setting, so they are not compared.
        Not varied: top-k and ranks.
        """,
    ),
    "strategies alone": (
        situations.strategies_alone,
        """
        In short
        simple is fastest, 2.0 times ahead of tp.
        How sure: all 3 comparisons hold together.
        Not varied: top-k, batch size and ranks.
        """,
    ),
    "oversubscribed": (
        situations.oversubscribed,
        """
        In short
        tp is fastest at every top-k, 2.0 times ahead of ep.
        How sure: all 4 comparisons hold together.
        Limit: all 4 cells have more threads than cores: waiting for a core is part of the time, \
        which says nothing about a machine with a core for every rank.
        Not varied: batch size and ranks.
        Top-k (batch size 8, ranks 8, experts 8)
        tp and ep: time does not depend on top-k between 2 and 4 (within 2%).
        """,
    ),
    "some oversubscribed": (
        situations.some_oversubscribed,
        """
        In short
        tp is fastest at top-k 2, 2.0 times ahead of ep.
        How sure: all 2 comparisons hold together.
        Limit: 1 of 3 cells has more threads than cores: waiting for a core is part of the time, \
        which says nothing about a machine with a core for every rank.
        Not varied: batch size and ranks.
        Top-k (batch size 8, ranks 8, experts 8)
        ep: time does not depend on top-k between 2 and 4 (within 2%).
        """,
    ),
    "drifting": (
        situations.drifting,
        """
        DRIFT: the machine's speed changed by up to 40% during the wave. Cells of one wave can \
        still be compared, because their rounds are in random order; cells of different waves \
        cannot.
        In short
        tp is fastest at every top-k, 2.0 times ahead of ep.
        How sure: all 4 comparisons hold together.
        Not varied: batch size and ranks.
        Top-k (batch size 8, ranks 8, experts 8)
        tp and ep: time does not depend on top-k between 2 and 4 (within 2%).
        """,
    ),
    "failed and wrong": (
        situations.failed_and_wrong,
        """
        WRONG: 1 of 6 attempts computed a wrong output; no time of theirs is used \
        anywhere.
        In short
        tp is fastest at every top-k, 2.0 times ahead of ep.
        How sure: all 4 comparisons hold together.
        Limit: 2 of 6 cells have no time (1 failed, 1 wrong): python -m analysis status says why.
        Not varied: batch size and ranks.
        Top-k (batch size 8, ranks 8, experts 8)
        tp and ep: time does not depend on top-k between 2 and 4 (within 2%).
        """,
    ),
    "one failed": (
        situations.one_failed,
        """
        In short
        simple is fastest, 2.0 times ahead of tp.
        How sure: all 3 comparisons hold together.
        Limit: 1 of 4 cells has no time (failed): python -m analysis status says why.
        Not varied: top-k, batch size and ranks.
        """,
    ),
    "all failed": (
        situations.all_failed,
        """
        In short
        No cell has a time, so there is nothing to compare.
        Limit: all 2 cells have no time (failed): python -m analysis status says why.
        """,
    ),
    "serial wins": (
        situations.serial_wins,
        """
        In short
        serial is fastest at every top-k, 4.0 times ahead of tp.
        Spreading the layer over ranks does not pay here: the fastest way, tp, takes 4.0 times \
        as \
        long as serial (one process with every core).
        How sure: all 8 comparisons hold together.
        Not varied: batch size and ranks.
        Top-k (batch size 8, ranks 8, experts 8)
        ep is 1.2 times as fast at top-k 4 as at 2.
        tp: time does not depend on top-k between 2 and 4 (within 2%).
        """,
    ),
    "spreading pays": (
        situations.spreading_pays,
        """
        In short
        tp is fastest at every top-k, 1.5 to 2.0 times ahead of ep.
        Spreading the layer over ranks pays: the fastest way, tp, is 2.0 to 3.0 times as fast as \
        serial (one process with every core).
        How sure: all 8 comparisons hold together.
        Not varied: batch size and ranks.
        Top-k (batch size 8, ranks 8, experts 8)
        ep takes 1.3 times as long at top-k 4 as at 2.
        tp: time does not depend on top-k between 2 and 4 (within 2%).
        """,
    ),
    "spreading pays somewhere": (
        situations.spreading_pays_somewhere,
        """
        In short
        serial is fastest at batch size 8, 3.0 times ahead of ep; ep is fastest at batch size \
        64, \
        1.6 times ahead of serial.
        Spreading the layer over ranks pays at 1 of 2 settings (batch size 64): there ep is 1.6 \
        times as fast as serial (one process with every core).
        How sure: all 3 comparisons hold together.
        Not varied: top-k and ranks.
        Batch size (top-k 2, ranks 8, experts 8)
        ep takes 1.7 times as long at batch size 64 as at 8.
        """,
    ),
    "spreading undecided": (
        situations.spreading_undecided,
        """
        In short
        serial and ep are fastest and not told apart.
        No way of spreading the layer over ranks is shown to be faster than serial (one process \
        with every core).
        How sure: the comparison holds.
        Not varied: top-k, batch size and ranks.
        """,
    ),
    "peer behind": (
        situations.peer_behind,
        """
        In short
        simple is fastest at every batch size, 1.4 to 1.5 times ahead of peer_transformers.
        Ours is faster than the best other system at every setting: the other takes 1.4 to 1.5 \
        times as long.
        How sure: all 4 comparisons hold together.
        Not varied: top-k and ranks.
        Batch size (top-k 2, ranks 8, experts 8)
        simple takes 2.0 times, peer_transformers 1.9 times as long at batch size 64 as at 8.
        """,
    ),
    "peer ahead": (
        situations.peer_ahead,
        """
        In short
        peer_deepspeed is fastest, 2.0 times ahead of ep.
        The best other system is faster than ours: ours takes 2.0 times as long.
        How sure: the comparison holds.
        Not varied: top-k, batch size and ranks.
        """,
    ),
    "peers mixed": (
        situations.peers_mixed,
        """
        In short
        peer_deepspeed is fastest at batch size 8, 2.0 times ahead of ep; ep is fastest at batch \
        size 64, 1.5 times ahead of peer_deepspeed.
        Ours is faster than the best other system at 1 of 2 settings and slower at 1: the other \
        takes 0.50 to 1.5 times as long.
        How sure: all 9 comparisons hold together.
        Not varied: top-k and ranks.
        Batch size (top-k 2, ranks 8, experts 8)
        peer_deepspeed takes 3.0 times as long at batch size 64 as at 8.
        peer_transformers is 1.1 times as fast at batch size 64 as at 8.
        ep: time does not depend on the batch size between 8 and 64 (within 2%).
        """,
    ),
    "training": (
        situations.training,
        """
        In short
        tp is fastest in forward passes and training, 1.7 to 2.0 times ahead of ep.
        How sure: all 4 comparisons hold together.
        Not varied: top-k, batch size and ranks.
        Mode (batch size 8, top-k 2, ranks 8, experts 8)
        tp takes 3.0 times, ep 2.5 times as long in training as in forward passes.
        """,
    ),
    "precision": (
        situations.precision,
        """
        In short
        Only simple was measured, so there is no other strategy to compare it with.
        How sure: the comparison holds.
        Not varied: top-k, batch size and ranks.
        Dtype (batch size 8, top-k 2, ranks 8, experts 8)
        simple is 2.0 times as fast in bfloat16 as in float32.
        """,
    ),
    "skewed": (
        situations.skewed,
        """
        In short
        ep is fastest with every workload, 1.1 to 2.0 times ahead of tp.
        How sure: all 7 comparisons hold together.
        Not varied: top-k, batch size and ranks.
        Workload (batch size 8, top-k 2, ranks 8, experts 8)
        ep takes 1.2 times as long with zipf 0.6 and 1.8 times as long with zipf 1.2 as with \
        learned routing.
        tp: time does not depend on the workload (within 2%).
        """,
    ),
    "sharded": (
        situations.sharded,
        """
        In short
        Only tp was measured, so there is no other strategy to compare it with.
        How sure: the comparison holds.
        Not varied: top-k, batch size and ranks.
        How the tokens are spread (batch size 8, top-k 2, ranks 8, experts 8)
        tp is 1.3 times as fast with sharded tokens as with replicated.
        Note: with sharded tokens a rank ends with the outputs of its own tokens, with \
        replicated \
        tokens with those of all.
        """,
    ),
    "too few samples": (
        situations.too_few_samples,
        """
        In short
        Only tp was measured, so there is no other strategy to compare it with.
        How sure: the comparison holds.
        Not varied: batch size and ranks.
        Top-k (batch size 8, ranks 8, experts 8)
        tp: too few samples to say whether time depends on top-k.
        """,
    ),
    "experts follow ranks": (
        situations.experts_follow_ranks,
        """
        In short
        Only ep was measured, so there is no other strategy to compare it with.
        How sure: all 2 comparisons hold together.
        Not varied: top-k and batch size.
        Number of ranks (batch size 8, top-k 2, experts = ranks)
        ep takes 4.0 times as long on 8 ranks as on 2.
        Note: experts grow with ranks, so this is neither strong nor weak scaling.
        """,
    ),
    "dispatchers": (
        situations.dispatchers,
        """
        In short
        ep local is fastest at every top-k, 1.5 times ahead of ep alltoall.
        How sure: all 4 comparisons hold together.
        Not varied: batch size and ranks.
        Top-k (batch size 8, ranks 8, experts 8)
        ep alltoall and ep local: time does not depend on top-k between 2 and 4 (within 2%).
        """,
    ),
    "many strategies": (
        situations.many_strategies,
        """
        In short
        simple is fastest at every batch size, 2.0 times ahead of dp.
        How sure: all 49 comparisons hold together.
        Not varied: top-k and ranks.
        Batch size (top-k 2, ranks 8, experts 8)
        simple, dp, tp, ep, ep_tp, dp_ep and fsdp take 2.0 times as long at batch size 64 as at 8.
        """,
    ),
    "3 launches": (
        lambda: situations.launches(3),
        """
        In short
        tp is fastest at every top-k, 2.0 times ahead of ep.
        How sure: all 4 comparisons hold together with 95% confidence, with 3 launches of each \
        cell (measure.launches=5 covers what changes from launch to launch); a difference counts \
        only if it is surely over 2%.
        Not varied: batch size and ranks.
        Top-k (batch size 8, ranks 8, experts 8)
        tp and ep: time does not depend on top-k between 2 and 4 (within 2%).
        """,
    ),
    "5 launches": (
        lambda: situations.launches(5),
        """
        In short
        tp is fastest at every top-k, 2.0 times ahead of ep.
        How sure: all 4 comparisons hold together with 95% confidence, over 5 or more launches; \
        a difference counts only if it is surely over 2%.
        Not varied: batch size and ranks.
        Top-k (batch size 8, ranks 8, experts 8)
        tp and ep: time does not depend on top-k between 2 and 4 (within 2%).
        """,
    ),
    "two machines": (
        situations.two_machines,
        """
        In short
        tp is fastest at 1 of 2 settings (machine 1), 2.0 times ahead of ep; ep is fastest at 1 of \
        2 settings (machine 2), 2.0 times ahead of tp.
        How sure: all 2 comparisons hold together.
        Not varied: top-k, batch size and ranks.
        """,
    ),
    "one sample": (
        situations.one_sample,
        """
        In short
        tp and ep have too few samples to be compared.
        How sure: the comparison holds.
        Not varied: top-k, batch size and ranks.
        """,
    ),
}


def short(line: str) -> str:
    """The line as SITUATIONS has it."""
    before, after = SURE.split("{}")
    if line.startswith(before) and line.endswith(after):
        return f"How sure: {line[len(before) : -len(after)]}."
    return re.sub(NOT_VARIED, ".", line) if line.startswith("Not varied") else line


def expected(text: str) -> list[str]:
    return [re.sub(r" {2,}", " ", line.strip()) for line in text.strip().splitlines()]


@pytest.mark.parametrize("name", SITUATIONS)
def test_what_a_reader_is_told(name: str) -> None:
    records, text = SITUATIONS[name]
    assert [short(line) for line in sentences_of(records()).splitlines()] == expected(text)


SLIPS = (
    r"  ", r"\bnan\b", r"\binf\b", "None", r"\(\)", r"\[\]", r" [.,;:]", r"[,;:]\.", r"\.\.",
    r"\b1 (cells|settings|comparisons|pairs)\b", r"\ba?re? is\b", r"\bat at\b", "~", r"\^",
)  # fmt: skip


@pytest.mark.parametrize("name", SITUATIONS)
def test_every_line_reads_as_english(name: str) -> None:
    """Nothing empty, doubled or without a plural, no exponent; a sentence ends in a full stop."""
    title_or_sentence = re.compile(r"^(In short|[A-Z][\w -]+ \([^()]*\)|\S.*\.)$")
    for line in sentences_of(SITUATIONS[name][0]()).splitlines():
        assert title_or_sentence.match(line), line
        assert not [slip for slip in SLIPS if re.search(slip, line)], line


def test_detail_has_the_figures_and_the_cells_of_every_sentence() -> None:
    frame = to_frame([flat_row.row(record) for record in situations.proportional()])
    short_one, (batch,) = insights.headline_and_insights(frame, summarize.summarize(frame))
    lines = [*short_one.lines(detail=True), *batch.lines(detail=True)]
    (power,) = [line for line in lines if "~ batch size^" in line]
    assert re.search(
        r"ep 2\.00x \[[\d., ]+\] at 16, 4\.0\dx \[[\d., ]+\] at 32, ~ batch size\^1\.0", power
    )
    assert all("~" not in line for line in batch.lines())
    ids = [line for line in lines if line.startswith("  Cells: 1 ")]
    assert len(ids) == 2 and all(cell in ids[1] for cell in batch.cells)


@pytest.mark.parametrize(
    ("factor", "text"),
    [(1.0, "1.00"), (1.04, "1.04"), (1.096, "1.1"), (1.44, "1.4"), (9.94, "9.9"), (9.96, "10"),
     (12.3, "12"), (1234.0, "1,234"), (0.5, "0.50")],
)  # fmt: skip
def test_factors(factor: float, text: str) -> None:
    assert phrases.times(factor) == text


@pytest.mark.parametrize(("factor", "text"), [(1.0, "2%"), (1.021, "5%"), (1.25, "25%")])
def test_bounds(factor: float, text: str) -> None:
    assert phrases.percent(factor) == text
