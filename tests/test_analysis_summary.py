"""The verdict in short, and workloads that are told with their parameter."""

from __future__ import annotations

import re
from pathlib import Path

import analysis_factory as factory

import analysis
from analysis import cells, compare, insights, tables


def table(found: list[tables.Table], start: str) -> tables.Table:
    return next(t for t in found if t.title.startswith(start))


def test_workloads_are_told_with_their_parameter(tmp_path: Path) -> None:
    """Kinds and parameters are one axis; of one kind alone the parameter is, as a number."""
    loads = [("learned", 0.0), ("zipf", 0.6), ("zipf", 1.2)]
    records = [factory.measured(factory.cell(s, workload=w)) for s in ("tp", "ep") for w in loads]
    frame = analysis.load(factory.write_all(tmp_path, records))
    summarized = cells.summarize(frame)
    assert table(tables.sweep_tables(summarized), "Duration (ms) by workload").rows == [
        "learned", "zipf 0.6", "zipf 1.2",
    ]  # fmt: skip
    said = next(i for i in insights.insights(frame, summarized) if i.title.startswith("Skewed"))
    ep = next(c for c in (*said.shown, *said.not_shown) if c.text.removeprefix("a difference: ")
              .startswith("ep takes"))  # fmt: skip
    assert "as long with zipf 1.2" in ep.text and ep.text.endswith("as with learned")
    zipf = summarized[summarized["workload"] == "zipf"].reset_index(drop=True)
    assert [t.corner for t in tables.sweep_tables(zipf)] == ["workload parameter"]
    found = compare.column(frame, "workload", 0.02)
    assert {c.names for c in found} >= {("workload=learned", "workload=zipf 0.6")}


def test_in_short_counts_settings(tmp_path: Path) -> None:
    """tp at batch 8, ep at 16 and 32, equal at 64: nothing is claimed there."""
    wanted = {8: (1.0, 2.0), 16: (2.0, 1.0), 32: (4.0, 1.0), 64: (3.0, 3.0)}
    records = []
    for batch, times in wanted.items():
        for name, ms in zip(("tp", "ep"), times, strict=True):
            of = factory.cell(name, batch=batch)
            records.append(factory.measured(of, scale=ms / factory.truth_ms(of), noise=0.01))
    frame = analysis.load(factory.write_all(tmp_path, records))
    short, _ = insights.told(frame, cells.summarize(frame))
    texts = [claim.text for claim in short.shown]
    assert re.match(
        r"ep is fastest at 2 of 4 settings, by [12]\.\d\dx to [34]\.\d\dx over", texts[0]
    )
    assert texts[1].startswith("tp is fastest at 1 of 4 settings (batch size 8): ")
    assert "among tp and ep at batch size 64" in short.not_shown[0].text
    assert len(short.shown[0].cells) == 4


def test_strategies_alone_have_a_verdict(tmp_path: Path) -> None:
    """A sweep without any axis still says who is fastest, and by how much."""
    records = [factory.measured(factory.cell(s)) for s in ("simple", "tp", "ep")]
    frame = analysis.load(factory.write_all(tmp_path, records))
    short, _ = insights.told(frame, cells.summarize(frame))
    assert short.shown[0].text.startswith("simple is fastest: ")
    assert "ahead of ep" in short.shown[0].text
