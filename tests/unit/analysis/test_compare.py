"""Comparisons of known truth: two sweeps, two commits, ours beside a peer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import analysis
from analysis import cli
from analysis.errors import InputError
from analysis.stats import compare, summarize
from analysis.text import peers
from tests.support import analysis_factory as factory


def test_compare_sweeps_finds_a_planted_slow_down(tmp_path: Path) -> None:
    parts = []
    for name, scale in (("before", 1.0), ("after", 1.10)):
        options = {"sweep": name, "scale": scale, "launch_effect": 0.005}
        records = [
            factory.measured(factory.cell("ep"), launch=n, **options)  # type: ignore[arg-type]
            for n in range(6)
        ]
        parts.append(analysis.load(factory.write_all(tmp_path, records) / name))
    found = compare.sweeps(parts[0], parts[1], ("before", "after"), 0.02)
    assert len(found) == 1 and found[0].verdict is not None
    assert found[0].verdict.word == "faster" and found[0].verdict.basis == "launches"
    assert "before is 1.09 times as fast" in found[0].row(0.02)[-1]
    with pytest.raises(InputError, match="no cell was measured in both"):
        compare.sweeps(parts[0], parts[1].assign(cell_id="x"), ("a", "b"), 0.02)


def test_compare_commits(tmp_path: Path) -> None:
    records = []
    for n, (sha, scale) in enumerate((("a" * 40, 1.0), ("b" * 40, 2.0))):
        environment = {**factory.ENVIRONMENT, "git": {"sha": sha, "dirty": None}}
        made = factory.measured(factory.cell("ep"), launch=n, scale=scale, environment=environment)
        records.append(made)
    frame = analysis.load(factory.write_all(tmp_path, records))
    found = compare.column(frame, "git_sha", 0.02)
    assert [c.names for c in found] == [("a" * 10, "b" * 10)]
    assert found[0].verdict is not None and not found[0].verdict.paired


def test_beside_meets_the_fastest_of_either_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`simple` takes 1.32 ms, then 1.64, `tp` more; the peers 2 and 3 ms, then 1."""
    times = {8: (("eager", 2.0), ("grouped_mm", 3.0)), 16: (("eager", 1.0),)}
    records = []
    for batch, theirs in times.items():
        records += [factory.measured(factory.cell(n, batch=batch)) for n in ("simple", "tp")]
        for variant, ms in theirs:
            peer = factory.cell("peer_transformers", batch=batch)
            peer = replace(peer, strategy=replace(peer.strategy, variant=variant))
            records.append(factory.measured(peer, scale=ms / factory.truth_ms(peer)))
    frame = analysis.load(factory.write_all(tmp_path, records))
    summarized = summarize.summarize(frame)
    found = compare.beside(frame, summarized, 0.02)
    names = ("simple", "peer_transformers eager")
    assert [(c.cell, c.names) for c in found] == [("batch size 8", names), ("batch size 16", names)]
    words = [one.verdict.word if one.verdict else "" for one in found]
    assert words == ["faster", "slower"]
    rows = peers.rows(found, summarized)
    assert [row[4] for row in rows] == ["3.00", "3.00"]  # 1 MiB of weights and 2 of a step
    assert cli.main(["beside", str(tmp_path), "--format", "markdown"]) == 0
    said = capsys.readouterr().out
    assert "faster than the best peer at 1 of 2 settings, slower at 1" in said
    assert cli.main(["plot", str(tmp_path), "--name", "beside", "-o", str(tmp_path / "p")]) == 0
    ours = summarized[summarized["strategy"] != "peer_transformers"]
    with pytest.raises(InputError, match="no setting has both"):
        compare.beside(frame, ours, 0.02)
