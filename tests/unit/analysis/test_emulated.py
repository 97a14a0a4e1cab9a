"""Records of an emulated cluster: never beside real time, void samples left out and counted."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import analysis
from analysis import cli, notebook
from analysis.data.cell_summary import summaries
from analysis.errors import InputError
from analysis.stats.summarize import summarize
from runners.records import flat_row, record, stats
from runners.records.emulation import Emulation, of_environment
from runners.records.record import Record, Samples
from runners.records.sealed import RecordError
from runners.track.run import run_of
from tests.support import analysis_factory as factory

CLUSTER = Emulation(20.0, 2, 90.0, 10.0, mtu=1500)
WORDS = "emulated (dilated x20; nodes of 2 at 90/10 Mbit/s; MTU 1500)"


def emulated(of: Record, cluster: Emulation = CLUSTER) -> Record:
    environment = {**of.environment, "emulated": asdict(cluster)}
    return Record(**{**vars(of), "environment": environment, "sweep": "emulated"})


def cells(**options: Any) -> list[Record]:
    return [factory.measured(factory.cell(name, topk=k), **options)
            for name in ("simple", "tp", "ep") for k in (2, 4)]  # fmt: skip


def write(folder: Path, records: list[Record]) -> str:
    return str(factory.write_all(folder, records))


@pytest.fixture
def real(tmp_path: Path) -> str:
    return write(tmp_path / "real", cells())


@pytest.fixture
def of_cluster(tmp_path: Path) -> str:
    return write(tmp_path / "emulated", [emulated(one) for one in cells()])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, without the breaks of lines."""
    return " ".join(capsys.readouterr().out.split())


def test_a_cluster_in_words_and_from_a_record() -> None:
    assert CLUSTER.words == WORDS
    assert of_environment({"emulated": asdict(CLUSTER)}) == CLUSTER
    assert of_environment({"emulated": None}) is None
    assert of_environment({}) is None


@pytest.mark.parametrize("odd", [
    "yes", {"dilation": 20.0}, {**asdict(CLUSTER), "mtu": 0}, {**asdict(CLUSTER), "dilation": "x"},
    {**asdict(CLUSTER), "inter_mbit_s": float("inf")},
])  # fmt: skip
def test_a_record_with_another_cluster_is_refused(tmp_path: Path, odd: Any) -> None:
    one = factory.measured(factory.cell("ep"))
    one.environment["emulated"] = odd
    factory.write_all(tmp_path, [one])
    with pytest.raises(RecordError, match="emulated"):
        record.read(next(tmp_path.rglob("record-*.json")))


def test_the_metric_names_the_cluster() -> None:
    one = emulated(factory.measured(factory.cell("ep")))
    assert stats.metric(one) == f"steady state, {WORDS}"
    one.measure = {"block": 3}
    assert stats.metric(one) == f"fixed block of 3 steps, {WORDS}"
    assert stats.metric(factory.measured(factory.cell("ep"))) == "steady state"


def test_paced_ranks_are_not_oversubscribed() -> None:
    one = factory.measured(factory.cell("ep", ranks=8))
    assert "oversubscribed" in stats.flags(one)
    assert "oversubscribed" not in stats.flags(emulated(one))


def block(kind: str, number: int, steps: int, ms: float) -> dict[str, Any]:
    return {"round": number, "position": 0, "steps": steps, "kind": kind, "start_ns": [0, 0],
            "end_ns": [round(ms * 1e6)] * 2}  # fmt: skip


def test_void_samples_are_in_no_time_and_are_counted() -> None:
    """Steps take 10 ms and blocks start in 5 ms. Round 1 has lost its short block, round 2 one of
    two long ones: a pair is of one round."""
    blocks = [
        block("short", 0, 1, 15), block("long", 0, 4, 45),
        block("void", 1, 1, 900), block("long", 1, 4, 45),
        block("short", 2, 1, 15), block("void", 2, 4, 900), block("short", 2, 1, 15),
        block("long", 2, 4, 45), block("void", 3, 1, 900),
    ]  # fmt: skip
    columns = {name: [one[name] for one in blocks] for name in blocks[0]}
    one = emulated(factory.measured(factory.cell("ep", ranks=2), samples=Samples(**columns)))
    assert stats.step_times_ms(one.samples) == [(0, 10.0), (2, 10.0)]
    row = flat_row.row(one)
    assert (row["void_samples"], row["num_samples"], row["num_rounds"]) == (3, 2, 2)
    assert row["max_duration_ms"] == pytest.approx(10.0)


def test_a_row_says_that_it_is_emulated(of_cluster: str, real: str) -> None:
    frame = analysis.load([of_cluster, real])
    assert sorted(frame["emulated"]) == [False] * 6 + [True] * 6
    assert {len(values) for values in frame["emulation"]} == {0, 5}
    kinds = {cell.metric for cell in summaries(summarize(frame))}
    assert kinds == {"steady state", f"steady state, {WORDS}"}


@pytest.mark.parametrize("words", [
    ["show"], ["show", "--metric", "latency_ms"], ["compare", "--group", "strategy"], ["check"],
    ["plot"], ["report"], ["export"], ["beside"], ["kernels"], ["dashboard"],
    ["predict", "--world-size", "8"], ["advise", "--world-size", "8"],
    ["explain", "--a", "strategy=ep,topk=2", "--b", "strategy=tp,topk=2"],
])  # fmt: skip
def test_no_verb_mixes_clocks(
    words: list[str], of_cluster: str, real: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert cli.main([words[0], of_cluster, real, *words[1:]]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert f"{WORDS} of sweep emulated" in said.err
    assert "real time of sweep sweep" in said.err
    assert "--filter emulated=false" in said.err


def test_explain_mixes_no_clocks_of_two_sources(
    of_cluster: str, real: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Without sides, two sources are the sides."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["explain", of_cluster, real]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "cannot be compared" in said.err


def test_a_notebook_mixes_no_clocks(of_cluster: str, real: str) -> None:
    frame = analysis.load([of_cluster, real])
    for show in (notebook.table, notebook.verdict, lambda both: notebook.picture(both, "axis")):
        with pytest.raises(InputError, match="cannot be compared"):
            show(frame)


def test_a_filter_chooses_one_clock(
    of_cluster: str, real: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["show", of_cluster, real, "--filter", "emulated=false"]) == 0
    assert "dilated" not in capsys.readouterr().out
    assert cli.main(["show", of_cluster, real, "--filter", "emulated=true"]) == 0
    out = one_line(capsys)
    assert out.startswith("EMULATED: dilated x20; nodes of 2 at 90/10 Mbit/s; MTU 1500.")
    assert f"In short; {WORDS} " in out
    tables = re.findall(r"(?:Duration|Throughput) \([^)]*\) by .{150}", out)
    assert len(tables) == 2
    assert all(f"steady state, {WORDS}" in title for title in tables)


@pytest.mark.parametrize("metric", ["latency_ms", "peak_bytes_max"])
def test_every_table_of_a_cluster_says_so(
    metric: str, of_cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["show", of_cluster, "--metric", metric]) == 0
    titles = [line for line in capsys.readouterr().out.splitlines() if " by top-k;" in line]
    assert titles
    assert all(WORDS in line for line in titles)


def test_clusters_of_two_kinds_are_not_compared(
    of_cluster: str, tmp_path: Path, real: str, capsys: pytest.CaptureFixture[str]
) -> None:
    slower = write(
        tmp_path / "slower", [emulated(c, Emulation(25.0, 2, 90.0, 10.0)) for c in cells()]
    )
    for other in (slower, real):
        assert cli.main(["compare", of_cluster, other]) == 2
        assert "cannot be compared" in capsys.readouterr().err
    assert cli.main(["compare", of_cluster, of_cluster]) == 0
    assert f"steady state, {WORDS}" in one_line(capsys)
    assert cli.main(["status", of_cluster, real]) == 0


def test_a_run_is_tagged_and_configured() -> None:
    run = run_of(emulated(factory.measured(factory.cell("ep"))), "s")
    assert "emulated" in run.tags
    assert run.config["emulated"] is True
    assert run.config["emulation"] == asdict(CLUSTER)
    assert "emulated" not in run_of(factory.measured(factory.cell("ep")), "s").tags
