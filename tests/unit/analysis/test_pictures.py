"""How pictures look: a strategy the same everywhere, rows in order, nothing outside its axes."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from PIL import Image

import analysis
from analysis import cli, notebook, numbers, plots
from analysis.data import looks
from analysis.data.cell_summary import summaries
from analysis.data.series import series_names, series_order
from analysis.plots import canvas
from analysis.plots.canvas import PlotData
from analysis.plots.drawing import Drawing
from analysis.text import captions
from runners.records.record import Record
from tests.support import analysis_factory as factory
from tests.support.pictures import drawing, scene_of

PEERS = ("peer_transformers", "peer_deepspeed", "peer_torchtitan", "peer_reference")


def swept(strategies: Sequence[str], **options: str) -> list[Record]:
    """Every strategy at two top-k and two batch sizes."""
    return [
        factory.measured(factory.cell(name, topk=k, batch=b, **options),  # type: ignore[arg-type]
                         calibration=factory.CALIBRATION)
        for name in strategies for k in (2, 4) for b in (8, 16)
    ]  # fmt: skip


def drawn_looks(ax: Axes) -> dict[str, tuple[str, str]]:
    """Colour and marker of every line in the legend, without those that are no series."""
    lines = {str(line.get_label()): line for line in ax.lines if line.get_label()[0] != "_"}  # type: ignore[index]
    named = {name: line for name, line in lines.items() if looks.LOOKS.get(name.split()[0])}
    return {n: (str(line.get_color()), str(line.get_marker())) for n, line in named.items()}


def test_a_strategy_looks_the_same_in_every_plot_and_sweep(tmp_path: Path) -> None:
    few = scene_of(tmp_path / "few", swept(("ep",)))
    forms = swept(("ep",), dispatcher="alltoall")
    many = scene_of(tmp_path / "many", [*swept(("serial", "simple", "dp", "tp", "ep")), *forms])
    seen: dict[str, set[tuple[str, str]]] = {}
    for scene, name in itertools.product((few, many), ("speed_vs_top_k", "roofline", "axis")):
        group = "batch_size" if name == "axis" else ""
        made = drawing(name, PlotData(scene.frame, scene.cells, group=group))
        for series, look in drawn_looks(made.axes[0]).items():
            seen.setdefault(series, set()).add(look)
    assert {"ep", "ep alltoall", "ep local", "tp"} <= set(seen)
    assert all(len(found) == 1 for found in seen.values()), seen
    assert seen["ep"] == seen["ep local"] == {looks.LOOKS["ep"][:2]}
    ((color, marker),) = seen["ep alltoall"]
    assert color == looks.LOOKS["ep"][0] and marker != looks.LOOKS["ep"][1]


def test_forms_share_the_colour_and_differ_in_marker_and_line() -> None:
    forms = ["ep", *(f"ep {word}" for word in ("alltoall", "allgather", "dedup", "ep=2", "ep=4"))]
    shown = [canvas.look(name, forms) for name in forms]
    assert {look["color"] for look in shown} == {looks.LOOKS["ep"][0]}
    assert len({(look["marker"], look["linestyle"]) for look in shown}) == len(forms)
    assert canvas.look("ep dedup", ["ep dedup"]) == canvas.look("ep dedup", forms)


def test_peers_and_unknown_strategies_have_looks_of_their_own() -> None:
    known = [*looks.LOOKS, *PEERS]
    assert len({canvas.look(name)["color"] for name in known}) == len(known)
    one = canvas.look("new", ["new", "ep"])
    assert one == canvas.look("new") and one["color"] not in {
        canvas.look(name)["color"] for name in known
    }
    assert sorted([*PEERS, "new", "ep", "simple"], key=series_order) == [
        "simple", "ep", "new", *sorted(PEERS),
    ]  # fmt: skip


def test_files_say_where_they_are_from(tmp_path: Path) -> None:
    scene = scene_of(tmp_path / "s", swept(("simple", "ep")))
    files = plots.draw(scene, tmp_path / "out", ["speed_vs_top_k"])["speed_vs_top_k"]
    again = plots.draw(scene, tmp_path / "again", ["speed_vs_top_k"])["speed_vs_top_k"]
    png, svg = map(Path, files)
    assert [Path(f).read_bytes() for f in files] == [Path(f).read_bytes() for f in again]
    with Image.open(png) as image:
        told = dict(image.info)
    words = ("Machine: Imaginary 9000", "torch 2.13.0", "gloo", "Again: python -m analysis plot")
    assert all(word in told["Description"] for word in words)
    assert told["Title"].startswith("Duration (ms) by top-k; ranks 8, experts 8. Sweep sweep; ")
    texts = ["".join(node.itertext()) for node in ET.parse(svg).iter() if "elements" in node.tag]
    assert told["Title"] in texts and told["Description"] in texts


@pytest.mark.parametrize(("cpu", "short"), [
    ("AMD EPYC 7B13 64-Core Processor", "AMD EPYC 7B13"),
    ("Intel(R) Xeon(R) CPU @ 2.20GHz", "Intel Xeon"), ("", "a processor not recorded"),
])  # fmt: skip
def test_the_machine_in_short(cpu: str, short: str) -> None:
    attempt = {"cpu_model": cpu, "gpu_model": "NVIDIA H100", "device": "cpu", "cores": 2}
    assert captions.short_machine(attempt) == f"{short}, 2 cores"
    assert captions.short_machine({**attempt, "device": "cuda"}) == "NVIDIA H100"


def test_long_captions_lose_words_and_keep_the_machine() -> None:
    fig = canvas.figure()
    canvas._outside(fig, 0, "top", "word, " * 60, "Sweep s; Imaginary 9000, 2 cores.", {})
    (label,) = fig.framing
    assert label.get_window_extent().x1 <= fig.bbox.x1
    assert label.get_text().endswith("word… Sweep s; Imaginary 9000, 2 cores.")


def crossing(winners: Sequence[str], batches: Sequence[int] = (8, 16)) -> list[Record]:
    """At top-k 2, 4, 8 of every batch size these strategies are twice as fast as the other."""
    return [
        factory.measured(of, scale=(2.0 if name == win else 4.0) / factory.truth_ms(of), noise=0.01)
        for b in batches
        for k, win in zip((2, 4, 8), winners, strict=True)
        for name in ("simple", "ep")
        for of in [factory.cell(name, batch=b, topk=k)]
    ]


def test_a_map_of_one_colour_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = factory.write_all(tmp_path, crossing(("ep", "ep", "ep"))) / "sweep"
    sentence = (
        "ep is fastest at all 6 settings of top-k and batch size, so there is no map of who wins "
        "where."
    )
    assert cli.main(["plot", str(folder), "--name", "crossover"]) == 0
    assert f"note: crossover: {sentence}" in capsys.readouterr().err
    assert cli.main(["plot", str(folder), "--name", "crossover", "--name", "memory"]) == 0
    said = capsys.readouterr()
    assert "note: crossover" in said.err and "memory.png" in said.out
    assert not list(folder.rglob("crossover*"))
    assert notebook.picture(analysis.load(folder), "crossover") == sentence


@pytest.mark.parametrize(("winners", "batches", "expected"), [
    (("", "", ""), (8, 16), "No strategy is shown to be fastest at any of the 6 settings"),
    (("ep", "ep", "ep"), (8,), "ep is fastest at all 3 settings of top-k,"),
    (("simple", "ep", "ep"), (8,), ""), (("ep", "", "ep"), (8, 16), ""),
])  # fmt: skip
def test_when_a_map_is_drawn(
    winners: tuple[str, ...], batches: tuple[int, ...], expected: str, tmp_path: Path
) -> None:
    scene = scene_of(tmp_path, crossing(winners, batches))
    with canvas.styled():
        drawn = plots.maker("crossover")(scene)
    assert (drawn.startswith(expected) and expected) if isinstance(drawn, str) else not expected


def row_names(made: Drawing) -> list[str]:
    return [label.get_text() for label in made.axes[0].get_yticklabels()]


def test_the_skew_map_has_rows_in_order_and_none_that_are_always_even(tmp_path: Path) -> None:
    loads = [("zipf", 1.2), ("zipf", 0.6), ("balanced", 0.0)]
    names = ("ep_tp", "tp", "ep", "simple", "serial", "dp", "fsdp")
    records = [
        factory.measured(factory.cell(name, workload=load, batch=b))
        for load in loads for b in (16, 8) for name in names
    ]  # fmt: skip
    made = drawing("skew", scene_of(tmp_path / "some", records))
    where = [f"(batch size {b}, workload {w})" for b in (8, 16)
             for w in ("forced balance", "zipf 0.6", "zipf 1.2")]  # fmt: skip
    assert row_names(made) == [f"{name}  {w}" for name in ("ep", "ep_tp") for w in where]
    even = [record for record in records if record.cell.strategy.name not in ("ep", "ep_tp")]
    with canvas.styled():
        assert plots.maker("skew")(scene_of(tmp_path / "even", even)) is None


def test_traces_choose_the_most_scattered_and_show_them_in_order(tmp_path: Path) -> None:
    places = list(itertools.product((8, 2, 4), (32, 8, 16), ("ep", "simple")))[:14]
    calm = {("ep", 8, 2), ("simple", 32, 4)}
    records = [
        factory.measured(
            factory.cell(n, batch=b, topk=k), noise=0.001 if calm & {(n, b, k)} else 0.1
        )
        for k, b, n in places
    ]
    made = drawing("traces", scene_of(tmp_path, records))
    titles = [ax.get_title(loc="left") for ax in made.axes if ax.get_visible()]
    kept = {(n, b, k) for k, b, n in places} - calm
    ordered = sorted(kept, key=lambda place: (series_order(place[0]), *place[1:]))
    assert titles == [f"{n}\nbatch size {b}, top-k {k}" for n, b, k in ordered]


@pytest.mark.parametrize("name", ["speed_vs_top_k", "throughput_vs_topk"])
def test_words_for_what_failed_stay_inside_the_axes_and_apart(name: str, tmp_path: Path) -> None:
    failed = factory.STRATEGIES
    records = [
        factory.unmeasured(factory.cell(s, topk=k), outcome)
        for s, outcome in zip(failed, ("failed", "wrong", "failed", "wrong"), strict=True)
        for k in (1, 2, 3)
    ] + [factory.measured(factory.cell(s, topk=k)) for s in failed for k in (4, 8)]
    made = drawing(name, scene_of(tmp_path, records))
    boxes = [text.get_window_extent() for text in made.kept_inside]
    assert len(boxes) == 3
    for text, box in zip(made.kept_inside, boxes, strict=True):
        assert text.axes is not None
        frame = text.axes.bbox
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_the_numbers_of_a_picture_are_its_cells(tmp_path: Path) -> None:
    scene = scene_of(tmp_path, swept(("simple", "ep")))
    named = zip(series_names(scene.cells), summaries(scene.cells), strict=True)
    cells = {cell.cell_id: (name, cell) for name, cell in named}
    made = drawing("speed_vs_top_k", scene)
    assert made.account.values.header == (
        "panel", "series", "top-k", "Duration (ms)", "interval", "outcome"
    )  # fmt: skip
    assert len(made.account.values.rows) == len(cells) == 8
    for row in made.account.values.rows:
        name, cell = cells[row.cells[0]]
        low, high = row.texts[4].split(" to ")
        assert row.texts[1:4] == (
            name, str(cell.cell.layer.topk), numbers.short(cell.median_ms, 4)
        )  # fmt: skip
        assert float(low) == pytest.approx(cell.low_ms, rel=1e-3)
        assert float(high) == pytest.approx(cell.high_ms, rel=1e-3)
