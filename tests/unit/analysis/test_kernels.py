"""`kernels`: figures by hand, and what a reader is told in each situation."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import analysis
from analysis import cli, plots
from analysis.data.frame import to_frame
from analysis.errors import InputError
from analysis.plots import canvas
from analysis.plots.canvas import PlotData
from analysis.plots.drawing import Drawing
from analysis.stats import kernels as stats
from analysis.stats.kernels import Kernels
from analysis.stats.summarize import summarize
from analysis.text import kernels, settings
from moe.spec import Cell
from runners.records import flat_row
from runners.records.record import Record
from runners.records.sweep_folder import read_refused
from runners.sweep.folder import write_refused
from tests.support import analysis_factory as factory
from tests.support.situations import Records, timed

LOADS = (("balanced", 0.0), ("zipf", 1.0))


def cell(name: str, graph: str = "off", **options: Any) -> Cell:
    """A kernel of `simple`, or by "peer_NAME VARIANT" a peer, alone on one rank."""
    strategy, _, variant = name.partition(" ")
    peer = strategy.startswith("peer_")
    of = factory.cell(strategy if peer else "simple", ranks=1, tokens="sharded", **options)
    kernel = "auto" if peer else name
    return replace(of, strategy=replace(of.strategy, kernel=kernel, variant=variant, graph=graph))


def measured(name: str, ms: float, noise: float = 0.002, graph: str = "off",
             waits: int | None = None, calibrated: bool = False, model: str = "reference",
             **options: Any) -> Record:  # fmt: skip
    """Of `ms` a step; its kernel ran as it was asked for."""
    more: dict[str, Any] = {"calibration": factory.CALIBRATION} if calibrated else {}
    ran = name.split()[-1]
    meta = {"model": model, "scale": 1, "overrides": []}
    return timed(cell(name, graph, **options), ms, noise, kernel={"name": ran}, meta=meta,
                 host_waits=None if waits is None else [waits], **more)  # fmt: skip


def view_of(records: Records) -> Kernels:
    frame = to_frame([flat_row.row(record) for record in records])
    return Kernels(frame, summarize(frame))


def test_rates_and_the_roofline_by_hand() -> None:
    """D 32, H 128, O 64: an expert has 128 (32 + 64) = 12,288 elements; 8 tokens of top-k 2 are 16
    slots, so 2 * 16 * 12,288 = 393,216 FLOPs; three times as many in training. All 8 experts are
    393,216 bytes. Both take 3.93216 us at 1e11 a second."""
    records = [
        measured("grouped", 0.01, 0.0, calibrated=True, mode=m) for m in ("forward", "train")
    ]
    view = view_of(records)
    forward, train = (setting.timed[0] for setting in view.settings)
    assert stats.rate(forward.cell)[0] == pytest.approx(393_216 / 1e-5, rel=1e-3)
    assert stats.rate(train.cell)[0] == pytest.approx(3 * 393_216 / 1e-5, rel=1e-3)
    assert forward.fraction == pytest.approx(0.393216, rel=1e-3)
    assert stats.limit_rate(forward.cell) == pytest.approx(1e11, rel=1e-6)
    assert stats.rate_unit([forward]) == (1e9, "GFLOP/s")
    middle, low, high = stats.rate(measured_cell("grouped", 1.0))
    assert low <= middle <= high and middle == pytest.approx(393_216 / 1e-3, rel=0.01)


def measured_cell(name: str, ms: float) -> Any:
    return view_of([measured(name, ms)]).settings[0].timed[0].cell


def test_the_fastest_stands_first_and_ties_share_the_mark() -> None:
    """At 8 tokens loop and bmm tie at 1 ms, dense takes 2; at 16 dense is alone at 1 ms."""
    records = [
        measured("dense", 2.0), measured("loop", 1.0), measured("bmm", 1.001),
        measured("dense", 1.0, batch=16), measured("loop", 2.0, batch=16),
    ]  # fmt: skip
    view = view_of(records)
    first, second = view.settings
    assert first.entrants[-1].series == "dense"
    assert view.leaders(first) == ["bmm", "loop"]
    assert view.leaders(second) == ["dense"]


def one_wins() -> Records:
    return [measured(n, ms, batch=b) for b in (8, 16) for n, ms in (("grouped", 1), ("loop", 2))]


def all_tie() -> Records:
    return [measured(n, 1.0, 0.0005, batch=b) for b in (8, 16) for n in ("grouped", "loop")]


def not_told_apart() -> Records:
    return [measured(n, 1.0, 0.1) for n in ("grouped", "loop", "dense")]


def a_rival_wins() -> Records:
    """At 8 tokens only: there it takes 1.0 ms to our best's 1.25; at 16 it takes 2.1 to 1.0."""
    return [
        measured("grouped", 1.25), measured("loop", 1.6), measured("peer_transformers eager", 1.0),
        measured("grouped", 1.0, batch=16), measured("loop", 4.0, batch=16),
        measured("peer_transformers eager", 2.1, batch=16),
    ]  # fmt: skip


def a_rival_within_three_percent() -> Records:
    """It takes 0.976 of our time: surely faster, and surely not by over 3%."""
    return [measured("grouped", 1.0, 0.0005), measured("peer_transformers eager", 0.976, 0.0005)]


def a_rival_in_the_noise() -> Records:
    return [measured("grouped", 1.0, 0.1), measured("peer_transformers eager", 1.0, 0.1)]


def some_fail() -> Records:
    peer = cell("peer_transformers grouped_mm", batch=16)
    return [*one_wins(), factory.unmeasured(peer, "failed", "it ran out of memory\n at step 3"),
            factory.unmeasured(cell("dense", batch=16), "wrong")]  # fmt: skip


def one_cell() -> Records:
    return [measured("grouped", 1.0)]


def none_timed() -> Records:
    return [factory.unmeasured(cell("grouped"), "failed", "no")]


def uneven() -> Records:
    """bmm takes 2.0 times as long with zipf, grouped 1.0."""
    times = {"bmm": (1.0, 2.0), "grouped": (4.0, 4.0)}
    return [
        measured(name, ms, 0.0005, workload=load)
        for name, pair in times.items() for load, ms in zip(LOADS, pair, strict=True)
    ]  # fmt: skip


def on_a_gpu() -> Records:
    return [measured("grouped", 1.0, waits=0), measured("loop", 2.0, waits=9),
            measured("loop", 1.5, waits=0, graph="on")]  # fmt: skip


def near_the_roof() -> Records:
    """3.93216 us of 10 and 20 us: 39% and 20%."""
    return [measured("grouped", us / 1e3, 0.0, calibrated=True, batch=8, mode=m)
            for m, us in (("forward", 10.0), ("train", 60.0))]  # fmt: skip


SITUATIONS: dict[str, tuple[Callable[[], Records], list[str]]] = {
    "one wins everywhere": (one_wins, [
        "grouped is fastest at both settings: loop takes 2.00 times as long.",
    ]),
    "all tie": (all_tie, [
        "grouped and loop are fastest at both settings and take the same time (within 2%).",
        "First, alone or with others, of 2 settings: grouped at 2, loop at 2.",
    ]),
    "noise": (not_told_apart, [
        "dense, grouped and loop share the first place: they are not told apart.",
    ]),
    "a rival wins": (a_rival_wins, [
        "peer_transformers eager is fastest at 1 of 2 settings (8 tokens): grouped takes 1.25 "
        "times as long.",
        "grouped is fastest at 1 of 2 settings (16 tokens): peer_transformers eager takes 2.10 "
        "times as long.",
        "The best other system takes 1.30 times as long as the best kernel of ours (geometric "
        "mean; 0.80 to 2.10); shown to beat all of ours by more than 3%: peer_transformers eager "
        "at 1 of 2 settings (8 tokens), 1.25 times as fast.",
    ]),
    "a rival within 3%": (a_rival_within_three_percent, [
        "The best other system takes 0.98 times as long as the best kernel of ours; none is shown "
        "to beat all of ours by more than 3%.",
    ]),
    "a rival in the noise": (a_rival_in_the_noise, [
        "none is shown to beat all of ours by more than 3% (the intervals leave it open).",
    ]),
    "failures": (some_fail, [
        "peer_transformers grouped_mm failed at 1 of 2 settings (16 tokens): it ran out of memory "
        "at step 3.",
        "dense computed a wrong result at 1 of 2 settings (16 tokens).",
    ]),
    "one cell": (one_cell, [
        "Only grouped was measured, so there is no other to compare it with.",
    ]),
    "no time": (none_timed, [
        "No cell has a time, so there is nothing to compare.",
        "grouped failed: no.",
    ]),
    "uneven splits": (uneven, [
        "Uneven splits: with zipf 1 in place of forced balance a step takes 2.00 times as long in "
        "bmm and 1.00 times as long in grouped; of 2 pairs 1 are shown to be slower.",
        "Forced balance: the workload gives all experts equally many slots (workload=balanced); a "
        "learned router does not give that.",
    ]),
    "waits": (on_a_gpu, [
        "In a step the host waits for the GPU, at most so many times: loop 9; the others never.",
        "grouped is fastest: loop (graph) takes 1.50 times as long.",
    ]),
    "roofline": (near_the_roof, [
        "The fastest of each setting reaches 20% of the roofline (train) to 39% (forward).",
    ]),
    "no calibration": (one_cell, [
        "How far from the roofline is not known: the records have no calibration of this machine "
        "and dtype (measure.calibrate=true measures it).",
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", SITUATIONS)
def test_what_a_reader_is_told(name: str) -> None:
    records, sentences = SITUATIONS[name]
    said = [line.strip() for line in kernels.short(view_of(records())).lines()]
    for sentence in sentences:
        assert any(sentence in line for line in said), said


def test_rivals_are_beside_what_is_like_them() -> None:
    """A graph of ours is faster than the eager peer, which is faster than our eager steps."""
    records = [measured("grouped", 1.0), measured("grouped", 0.5, graph="on"),
               measured("peer_transformers eager", 0.8)]  # fmt: skip
    view = view_of(records)
    (rival,) = view.rivals()
    assert rival.beats and rival.ratio == pytest.approx(0.8, rel=0.01)
    said = "\n".join(kernels.short(view).lines())
    assert "graphs beside graphs: the best other system takes 0.80 times as long" in said
    assert "peer_transformers eager, 1.25 times as fast" in said


def test_what_is_refused_is_told_by_its_reason() -> None:
    refused = [("strategy=peer_x batch_size=1", "x is not installed")] * 3
    refused += [("a", "dtype=float16: allowed is float32; set it")]
    told = [line.strip() for line in kernels.short(view_of(one_cell()), refused).lines()]
    assert (
        "Refused before the start: 3 cells, x is not installed; 1 cell, dtype=float16: allowed is "
        "float32; set it." in told
    )


def test_what_a_sweep_has_left_out_is_read_from_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(sweep(tmp_path, one_wins()))
    write_refused(folder, [])
    assert not (folder / "refused.json").exists()
    write_refused(folder, [("strategy=peer_x", "x is not installed; install it")])
    assert read_refused(folder) == [("strategy=peer_x", "x is not installed; install it")]
    assert cli.main(["kernels", str(folder)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Refused before the start: 1 cell, x is not installed; install it." in said
    (folder / "refused.json").write_text("[]", "utf-8")
    assert read_refused(folder) == []


def test_no_waits_are_said_only_of_a_gpu() -> None:
    text = "\n".join(kernels.short(view_of(one_wins())).lines())
    assert "waits" not in text
    none = [measured("grouped", 1.0, waits=0), measured("loop", 2.0, waits=0)]
    assert "None makes the host wait for the GPU." in "\n".join(
        kernels.short(view_of(none)).lines()
    )


EVERY = [
    {"batch_size": b, "load": load, "mode": m}
    for b in (1, 64, 4096)
    for load in ("even", "zipf 1")
    for m in ("forward", "train")
]


@pytest.mark.parametrize(("chosen", "words"), [
    (EVERY, "at all 12 settings"),
    ([e for e in EVERY if e["mode"] == "train"], "at 6 of 12 settings (train)"),
    ([e for e in EVERY if e["batch_size"] != 1 and e["mode"] == "train"],
     "at 4 of 12 settings (64 and 4,096 tokens, train)"),
    ([EVERY[0], EVERY[3]], "at 2 of 12 settings (1 token, even, forward; 1 token, zipf 1, train)"),
    ([e for e in EVERY if e["batch_size"] == 1 or e["mode"] == "train"],
     "at 8 of 12 settings (1 token; 64 and 4,096 tokens, train)"),
])  # fmt: skip
def test_which_settings_in_words(chosen: list[dict[str, Any]], words: str) -> None:
    assert settings.some(chosen, EVERY, ["batch_size", "load", "mode"]) == words


def sweep(folder: Path, records: Records) -> str:
    return str(factory.write_all(folder, records) / "sweep")


def gpu_sweep() -> Records:
    """Two models, two loads, eager and graph; a peer that fails once."""
    sizes = {"small": 32, "large": 64}
    forms = [("grouped", "off", 1.0, 0), ("loop", "off", 2.0, 9), ("grouped", "on", 0.8, 0),
             ("peer_transformers eager", "off", 3.0, 40)]  # fmt: skip
    records = [
        measured(name, ms * batch / 8 * (1.5 if load[0] == "zipf" and name == "loop" else 1),
                 graph=graph, waits=waits, calibrated=True, batch=batch, workload=load, dim=dim,
                 model=model)
        for model, dim in sizes.items() for batch in (8, 64) for load in LOADS
        for name, graph, ms, waits in forms
    ]  # fmt: skip
    lost = factory.unmeasured(cell("dense", batch=64, workload=LOADS[0]), "failed", "too large")
    return [*records, replace(lost, meta={"model": "small"})]


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sweep(tmp_path, gpu_sweep())
    assert cli.main(["kernels", folder]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    head = next(n for n, line in enumerate(lines) if line.lstrip().startswith("kernel"))
    assert lines[head].split() == ["kernel", "graph", "GFLOP/s", "roofline", "ms", "latency",
                                   "ms", "MiB", "waits"]  # fmt: skip
    at = lines.index("small, 64 tokens, forced balance, forward")
    names = [(line[:1], *line[1:].split()[:2]) for line in lines[at + 1 : at + 6]]
    assert names == [("*", "grouped", "on"), (" ", "grouped", "off"), (" ", "loop", "off"),
                     (" ", "peer_transformers", "eager"), (" ", "dense", "off")]  # fmt: skip
    assert lines[at + 2].split()[-1] == "0" and lines[at + 3].split()[-1] == "9"
    assert lines[at + 3].split()[-2] == "3.00"  # 1 MiB of weights and 2 that a step adds
    assert lines[at + 5].split()[2:] == ["failed", *"-----"]
    assert cli.main(["kernels", folder, "--filter", "workload=balanced", "--filter", "batch=8",
                     "--format", "markdown"]) == 0  # fmt: skip
    text = capsys.readouterr().out
    assert "**large, 8 tokens, forced balance, forward**" in text and "zipf" not in text


def test_csv_has_every_cell_at_full_precision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["kernels", sweep(tmp_path, gpu_sweep()), "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(rows[0])[:8] == ["model", "batch_size", "workload", "mode", "forced_balance",
                                 "kernel", "graph", "kernel_ran"]  # fmt: skip
    assert len(rows) == 33
    (lost,) = (row for row in rows if row["outcome"] == "failed")
    assert (lost["kernel"], lost["flops_per_s"], lost["reason"]) == ("dense", "", "too large")
    one = next(r for r in rows if r["kernel"] == "grouped" and r["graph"] == "on")
    assert (one["memory_bytes"], one["host_waits_max"], one["first"]) == ("3145728", "0", "true")
    assert {row["forced_balance"] for row in rows if row["workload"] == "zipf 1"} == {"false"}
    rate = float(one["flops_per_s"]) * float(one["median_ms"]) / 1e3
    # large: 8 tokens, top-k 2, an expert of 128 (64 + 64) elements
    assert rate == pytest.approx(2 * 16 * 128 * 128, rel=1e-9)


def test_what_refuses_and_what_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep(tmp_path / "ep", [factory.measured(factory.cell("ep"))])
    assert cli.main(["kernels", folder]) == 2
    assert "no cell is of one expert kernel or of a peer" in capsys.readouterr().err
    both = [factory.measured(factory.cell("ep")), *one_wins()]
    assert cli.main(["kernels", sweep(tmp_path / "both", both)]) == 0
    assert "1 cells of strategies that spread the layer are left out" in capsys.readouterr().out
    with pytest.raises(InputError):
        view_of([factory.measured(factory.cell("serial"))])


def drawn(name: str, folder: Path, records: Records) -> list[Drawing]:
    frame = analysis.load(sweep(folder, records))
    with canvas.styled():
        made = plots.maker(name)(PlotData(frame, summarize(frame), [str(folder)]))
    assert made is None or not isinstance(made, str)
    return [] if made is None else made if isinstance(made, list) else [made]


def test_a_picture_per_model_with_its_roofline(tmp_path: Path) -> None:
    large, small = drawn("kernels", tmp_path, gpu_sweep())
    assert (large.suffix, small.suffix) == ("_large", "_small")
    titles = [ax.get_title(loc="left") for ax in small.axes]
    assert titles == ["forced balance, eager", "zipf 1, eager", "forced balance, graph",
                      "zipf 1, graph"]  # fmt: skip
    lines = {str(line.get_label()): line for line in small.axes[0].lines}
    assert {"grouped", "loop", "peer_transformers eager", "roofline"} <= set(lines)
    assert len({lines[n].get_color() for n in ("grouped", "loop", "peer_transformers eager")}) == 3
    assert [t.get_text() for t in small.axes[0].texts] == ["dense: failed"]
    assert small.account.values.header == (
        "panel", "kernel", "tokens", "GFLOP/s", "interval", "of the roofline")  # fmt: skip
    assert len(small.account.values.rows) == 16
    assert "--filter model=" in "".join(small.account.provenance)
    names = plots.draw(scene(tmp_path), tmp_path / "out", ["kernels"])["kernels"]
    assert [Path(str(n)).name for n in names] == [
        f"kernels_{model}.{ending}" for model in ("large", "small") for ending in ("png", "svg")
    ]


def scene(folder: Path) -> PlotData:
    frame = analysis.load(folder)
    return PlotData(frame, summarize(frame), [str(folder)])


def test_the_cost_of_uneven_splits_by_hand(tmp_path: Path) -> None:
    """loop takes 1.5 times as long with zipf, the others as long."""
    (made,) = drawn("uneven", tmp_path, gpu_sweep())
    rows = {row.texts[:3]: row.texts for row in made.account.values.rows}
    assert len(rows) == 16
    ratio = float(rows["small, eager", "loop", "64"][3])
    assert ratio == pytest.approx(1.5, rel=0.01)
    assert rows["small, eager", "loop", "64"][5] == "slower"
    assert float(rows["large, graph", "grouped", "8"][3]) == pytest.approx(1, rel=0.01)
    assert "forced balance" in made.account.caption


@pytest.mark.parametrize(("name", "records"), [
    ("kernels", [factory.measured(factory.cell("ep"))]),
    ("kernels", one_cell()), ("uneven", one_wins()),
    ("kernels", [measured("auto", 1.0, batch=b) for b in (8, 16)]),  # no kernel by name, no peer
])  # fmt: skip
def test_sweeps_without_such_data_have_no_such_picture(
    name: str, records: Records, tmp_path: Path
) -> None:
    assert drawn(name, tmp_path, records) == []
