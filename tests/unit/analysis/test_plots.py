"""Pictures and the page: drawn where there are data, honest in what they leave out, escaped."""

from __future__ import annotations

import html.parser
import itertools
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import analysis
from analysis import cli, plots
from analysis.plots import canvas, heatmaps, lines, scaling
from analysis.plots.canvas import PlotData
from analysis.plots.drawing import Drawing
from analysis.publish import html as report
from analysis.stats import summarize
from tests.support import analysis_factory as factory

HOSTILE = "<script>alert('x')</script>\"$x_1$"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> PlotData:
    records = factory.reference_records(calibration=factory.CALIBRATION)
    folder = factory.write_all(tmp_path_factory.mktemp("sweeps"), records)
    frame = analysis.load(folder, samples=True)
    return PlotData(frame, summarize.summarize(frame), [str(folder)])


def test_the_seeds_plots_are_files_of_both_kinds(scene: PlotData, tmp_path: Path) -> None:
    names = ("speed_vs_top_k", "speed_vs_ranks", "throughput_vs_topk", "throughput_vs_total_ranks")
    drawn = plots.draw(scene, tmp_path, names)
    assert list(drawn) == list(names)
    for png, svg in drawn.values():
        assert png.read_bytes().startswith(b"\x89PNG") and "<svg" in svg.read_text("utf-8")


NEED_OTHER_CELLS = {"weak_scaling", "beside", "kernels", "uneven"}


@pytest.mark.parametrize("name", sorted(set(plots.PLOTS) - NEED_OTHER_CELLS))
def test_every_plot_draws(scene: PlotData, name: str) -> None:
    with canvas.styled():
        drawn = plots.maker(name)(scene)
    assert drawn is not None
    if isinstance(drawn, str):
        assert name == "crossover" and drawn.startswith(
            "serial is fastest at all 3 settings of top-k"
        )
        return
    (caption,) = drawn.framing
    assert "Imaginary 9000, 2 cores." in caption.get_text() and "\n" not in caption.get_text()
    assert caption.get_window_extent().x1 <= drawn.bbox.x1, "as wide as the picture at most"
    assert "torch 2.13.0" in "".join(drawn.account.provenance)
    assert drawn.account.values.rows
    assert all(len(row.texts) == len(drawn.account.values.header) and row.cells
               for row in drawn.account.values.rows)  # fmt: skip


def test_plots_without_data_are_none(tmp_path: Path) -> None:
    records = [factory.unmeasured(factory.cell("ep"), "failed")]
    frame = analysis.load(factory.write_all(tmp_path, records), samples=True)
    empty = PlotData(frame, summarize.summarize(frame))
    assert [made for _, made in plots.figures(empty) if made is not None] == []


def drawn_text(made: Figure) -> str:
    return " ".join(t.get_text() for t in [*made.texts, *made.axes[0].texts])


def test_crossover_is_a_map_of_two_axes(tmp_path: Path) -> None:
    """ep at large, tp at small sizes, equal on the diagonal, whatever order the records have."""
    records = []
    for batch, k in itertools.product((32, 8, 16), (4, 2, 8)):
        lead = {8: 0, 16: 1, 32: 2}[batch] - {8: 0, 4: 1, 2: 2}[k]
        for name, ms in (("tp", 4.0), ("ep", 4.0 * 1.5**-lead)):
            of = factory.cell(name, batch=batch, topk=k)
            records.append(factory.measured(of, scale=ms / factory.truth_ms(of), noise=0.01))
    frame = analysis.load(factory.write_all(tmp_path, records))
    summarized = summarize.summarize(frame)
    found, rows = heatmaps.crossed(summarized)
    assert rows == ["batch_size"] and [dict(p.fixed)["batch_size"] for p in found] == [8, 16, 32]
    swapped, rows = heatmaps.crossed(summarized, "batch,topk_requested")
    assert rows == ["topk_requested"] and [p.axis for p in swapped] == ["batch_size"] * 3
    with canvas.styled():
        made = heatmaps.crossover(PlotData(frame, summarized))
    assert isinstance(made, Drawing)
    tiles = {t.get_position(): t.get_text() for t in made.axes[0].texts}
    assert tiles[0, 0].startswith("tp\n2.2") and tiles[2, 2].startswith("ep\n2.2")  # 1.5 ** 2
    for (x, y), text in tiles.items():  # columns top-k, rows batch size, both ascending
        told = text.split("\n")
        assert told[0] in ("tp", "ep") and ("x" in text) == (x + y != 2)
        if x + y != 2:
            assert told[0] == ("ep" if x + y > 2 else "tp")


def test_drift_stands_above_the_plots_whose_cells_it_touched(tmp_path: Path) -> None:
    moved = factory.anchors(1.0, 1.4)
    records = [
        factory.measured(factory.cell("ep", topk=k), sweep="a", anchors=moved) for k in (2, 4)
    ]
    records += [factory.measured(factory.cell("ep", batch=b, topk=8), sweep="b") for b in (16, 32)]
    frame = analysis.load(factory.write_all(tmp_path, records), samples=True)
    scene = PlotData(frame, summarize.summarize(frame))
    with canvas.styled():
        made = {name: one for name, one in plots.figures(scene) if isinstance(one, Drawing)}
    texts = {name: drawn_text(one) for name, one in made.items()}
    assert "DRIFT" not in texts["speed_vs_batch"]
    assert "Sweep a; " in texts["speed_vs_top_k"] and "Sweep b; " in texts["speed_vs_batch"]
    for one in made.values():
        assert all("\n" not in t.get_text() and t.get_window_extent().x1 <= one.bbox.x1
                   for t in one.framing)  # fmt: skip
    touched = {"speed_vs_top_k", "throughput_vs_topk", "memory", "phases", "traces"}
    assert touched <= {name for name, text in texts.items() if "DRIFT: the machine" in text}
    page = report.page(scene)
    assert page.index("DRIFT: the machine") < page.index('id="verdict-title"')


def test_oversubscribed_cells_are_hollow(scene: PlotData) -> None:
    with canvas.styled():
        made = lines.speed_vs_ranks(scene)
    assert made is not None
    hollow = [
        x
        for line in made.axes[0].lines
        if line.get_markerfacecolor() == "white" and line.get_linestyle() == "None"
        for x in line.get_xdata()
    ]
    assert len(hollow) == 6 and min(hollow) > 3  # simple, tp, ep at 4 and 8 ranks of 2 cores


def test_weak_scaling_takes_cells_of_equal_tokens_per_rank(tmp_path: Path) -> None:
    records = [factory.measured(factory.cell("ep", batch=8 * r, ranks=r)) for r in (2, 4, 8)] + [
        factory.measured(factory.cell("ep", batch=8, ranks=4))
    ]
    frame = analysis.load(factory.write_all(tmp_path, records))
    groups = scaling.weak_groups(summarize.summarize(frame))
    assert {name: [row.world_size for row in rows] for name, rows in groups.items()} == {
        "ep (8 per rank)": [2, 4, 8]
    }
    with canvas.styled():
        assert scaling.weak_scaling(PlotData(frame, summarize.summarize(frame))) is not None


def test_speed_up_is_against_serial(scene: PlotData) -> None:
    facet = next(p for p in lines.facets(scene.cells, "world_size"))
    found = scaling.speedups(facet)
    serial, ep = facet.at(8, "serial"), facet.at(8, "ep")
    assert serial is not None and ep is not None and "serial" not in found
    assert found["ep"][8.0] == pytest.approx(serial.median_ms / ep.median_ms)


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_report_is_self_contained_and_verdict_first(scene: PlotData) -> None:
    page = Page(report.page(scene))
    loads = [v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href")]
    assert all(str(v).startswith(("data:image/png;base64,", "#")) for v in loads)
    assert len([v for v in loads if str(v).startswith("data:")]) >= 12
    headings = [w for w in page.words if w in ("Verdict", "Tables", "Plots", "Provenance")]
    assert headings.index("Verdict") < headings.index("Tables")
    assert sum(tag == "script" for tag, _ in page.tags) == 1


def test_report_escapes_hostile_names(tmp_path: Path) -> None:
    environment = {**factory.ENVIRONMENT, "cpu_model": HOSTILE, "system": HOSTILE}
    options = {"sweep": "s", "environment": environment, "notes": [HOSTILE]}
    records = [factory.measured(factory.cell("ep", topk=k), **options) for k in (2, 4)]  # type: ignore[arg-type]
    bad = factory.unmeasured(factory.cell("tp"), "failed", HOSTILE, sweep="s")
    records.append(bad)
    factory.write_all(tmp_path, records)
    frame = analysis.load(tmp_path, samples=True).assign(sweep=HOSTILE)
    text = report.page(
        PlotData(frame, summarize.summarize(frame), [HOSTILE], ["--filter", HOSTILE])
    )
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    assert sum(tag == "script" for tag, _ in Page(text).tags) == 1


def test_markdown_escapes_hostile_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = factory.unmeasured(factory.cell("tp"), "failed", HOSTILE + " | x")
    factory.write_all(tmp_path, [bad, factory.measured(factory.cell("ep"))])
    assert cli.main(["show", str(tmp_path), "--format", "markdown"]) == 0
    out = capsys.readouterr().out
    assert "<script>" not in out and "\\| x" in out


def test_report_verb_writes_beside_the_records(tmp_path: Path) -> None:
    records = [factory.measured(factory.cell("ep", topk=k)) for k in (2, 4)]
    folder = factory.write_all(tmp_path, records) / "sweep"
    assert cli.main(["report", str(folder)]) == 0
    assert "Top-k (batch size" in (folder / "report.html").read_text("utf-8")


def finished(folder: Path, threads: int | None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what `finish` writes, as it says them."""
    if threads is not None:
        monkeypatch.setattr(plots, "threads", lambda: threads)
    said: list[str] = []
    monkeypatch.setattr("builtins.print", lambda *words, **_: said.extend(map(str, words)))
    assert cli.main(["finish", str(folder)]) == 0
    written = [Path(line) for line in said if line.startswith(str(folder))]
    assert all(path.stat().st_size for path in written)
    return [path.relative_to(folder).as_posix() for path in written]


@pytest.mark.parametrize("threads", [1, 5])
def test_finish_writes_tables_then_every_plot_with_data(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one thread in forks, else one after the other: the same files in the same order."""
    some = ("speed_vs_top_k", "speed_vs_ranks", "throughput_vs_topk", "memory")
    monkeypatch.setattr(plots, "PLOTS", {name: plots.PLOTS[name] for name in some})
    points = itertools.product(("tp", "ep"), (2, 4))
    records = [factory.measured(factory.cell(name, topk=k)) for name, k in points]
    folder = factory.write_all(tmp_path, records) / "sweep"
    names = finished(folder, threads, monkeypatch)
    assert names[:4] == [
        "tables/tables.md", "tables/tables.csv",
        "plots/speed_vs_top_k.png", "plots/speed_vs_top_k.svg",
    ]  # fmt: skip
    drawn = [Path(name).stem for name in names[2::2]]
    assert drawn == [name for name in some if name != "speed_vs_ranks"]  # one number of ranks


def test_finish_of_one_cell_has_tables_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = factory.write_all(tmp_path, [factory.measured(factory.cell("ep"))]) / "sweep"
    assert finished(folder, None, monkeypatch) == ["tables/tables.md", "tables/tables.csv"]
