"""Forced balance is called so in every output, and a learned router's results never are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import analysis
from analysis import cli, notebook
from analysis.data.frame import filtered
from moe.spec import Cell, RouterSpec
from runners.records import flat_row, forced_balance
from runners.records.record import Record
from runners.sweep.titles import SettingTitles, title
from runners.track.run import run_of
from tests.support import analysis_factory as factory

LABEL = "forced balance"
MEANING = (
    "Forced balance: the workload gives all experts equally many slots (workload=balanced); a "
    "learned router does not give that."
)


def cells(workload: str) -> list[Cell]:
    """Ours, a kernel of ours, and a peer, alone on a rank."""
    found = []
    for name in ("simple", "tp", "peer_transformers"):
        for batch in (8, 16):
            of = factory.cell(name, ranks=1, batch=batch, workload=(workload, 0.0))
            kernel = "grouped" if name == "simple" else "auto"
            variant = "eager" if name.startswith("peer") else ""
            found.append(replace(of, strategy=replace(of.strategy, kernel=kernel, variant=variant)))
    return found


def records(workload: str, sweep: str = "sweep") -> list[Record]:
    return [factory.measured(of, sweep=sweep, calibration=factory.CALIBRATION)
            for of in cells(workload)]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By workload two sweeps of it: "sweep" and "again"."""
    made = {}
    for workload in ("balanced", "learned"):
        folder = tmp_path_factory.mktemp(workload)
        factory.write_all(folder, [*records(workload), *records(workload, "again")])
        made[workload] = folder
    return made


Output = Callable[[Path, Path, "pytest.CaptureFixture[str]"], str]


def verb(*words: str) -> Output:
    """What a verb prints of the first sweep."""

    def run(folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
        assert cli.main([words[0], str(folder / "sweep"), *words[1:]]) == 0
        return capsys.readouterr().out

    return run


def compared(folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["compare", str(folder / "sweep"), str(folder / "again")]) == 0
    return capsys.readouterr().out


def page(folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    target = out / "report.html"
    assert cli.main(["report", str(folder / "sweep"), "-o", str(target)]) == 0
    return target.read_text("utf-8")


def picture(name: str) -> Output:
    """The caption below a picture."""

    def run(folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
        assert cli.main(["plot", str(folder / "sweep"), "--name", name, "-o", str(out)]) == 0
        with Image.open(out / f"{name}.png") as image:
            return str(image.info["Title"])

    return run


def in_notebook(folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    return notebook.verdict(analysis.load(folder / "sweep"))


def progress(folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    return title(analysis_cell(folder))


def run_name(folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    return run_of(records(analysis_cell(folder).workload.kind)[0], "s").name


def analysis_cell(folder: Path) -> Cell:
    row = analysis.load(folder / "sweep").iloc[0].to_dict()
    return flat_row.cell_of({str(k): v for k, v in row.items()})


OUTPUTS: dict[str, tuple[Output, str]] = {
    "tables' titles": (verb("show", "--metric", "duration"), LABEL),
    "in short": (verb("show"), MEANING),
    "a table of one figure": (verb("show", "--group", "batch_size"), LABEL),
    "kernels": (verb("kernels"), MEANING),
    "a heading of kernels": (verb("kernels", "--format", "markdown"), f", {LABEL}, forward**"),
    "beside": (verb("beside"), MEANING),
    "compare by group": (verb("compare", "--group", "strategy"), MEANING),
    "compare two": (compared, MEANING),
    "report": (page, "the workload gives all experts equally many slots"),
    "a plot of lines": (picture("speed_vs_batch"), LABEL),
    "a plot of bars": (picture("memory"), LABEL),
    "the forest": (picture("forest"), LABEL),
    "the roofline": (picture("roofline"), LABEL),
    "the kernels' plot": (picture("kernels"), LABEL),
    "a notebook": (in_notebook, MEANING),
    "a line of progress": (progress, LABEL),
    "a run's name": (run_name, LABEL),
}


def as_one_line(text: str) -> str:
    """Without the breaks of wrapped sentences."""
    return " ".join(text.split())


@pytest.mark.parametrize("name", OUTPUTS)
def test_it_is_said_of_forced_balance_alone(
    name: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, words = OUTPUTS[name]
    forced = as_one_line(output(folders["balanced"], tmp_path, capsys))
    assert words in forced
    learned = as_one_line(output(folders["learned"], tmp_path, capsys))
    assert LABEL not in learned.lower()


def test_predictions_say_what_they_assume(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", "--cluster", "h100", "--model", "mixtral_8x7b", "--world-size", "8"]
    words += ["--strategy", "tp"]
    assert cli.main(words) == 0
    told = as_one_line(capsys.readouterr().out)
    assert f"skew 1: equally many slots on every rank, as {LABEL} gives them" in told
    assert cli.main([*words, "--skew", "1.3"]) == 0
    assert LABEL not in capsys.readouterr().out


def test_filters_and_columns_keep_the_workloads_own_name(folders: dict[str, Path]) -> None:
    frame = analysis.load(folders["balanced"] / "sweep")
    assert set(frame["workload"]) == {"balanced"}
    assert len(filtered(frame, ["workload=balanced"])) == len(frame)


def test_runs_have_a_tag() -> None:
    forced, learned = (run_of(records(w)[0], "s") for w in ("balanced", "learned"))
    assert "forced_balance" in forced.tags and "forced_balance" not in learned.tags
    assert forced.config["workload"] == "balanced"


def test_a_sweep_of_both_says_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = factory.write_all(tmp_path, [*records("balanced"), *records("learned")]) / "sweep"
    assert cli.main(["show", str(folder)]) == 0
    told = as_one_line(capsys.readouterr().out)
    assert "workload forced balance" in told and "workload learned" in told and MEANING in told
    assert "tokens replicated, forced balance in part" in told
    caption = picture("forest")(tmp_path, tmp_path / "out", capsys)
    assert "forced balance in part" in caption


def test_a_bias_that_evens_out_the_choice_is_a_routers_own() -> None:
    """DeepSeek-V3's rule is learned, and does not make the load equal."""
    of = factory.cell("simple")
    router = RouterSpec(selection_bias="balanced")
    biased = replace(of, layer=replace(of.layer, router=router))
    assert LABEL not in title(biased)
    assert not forced_balance.is_forced(biased.workload.kind)


def test_progress_says_the_kernel_and_the_setting() -> None:
    balanced, zipf = (
        replace(of, strategy=replace(of.strategy, kernel="grouped"))
        for of in (factory.cell("simple", workload=load) for load in (("balanced", 0.0),
                                                                      ("zipf", 1.2)))
    )  # fmt: skip
    assert title(balanced) == "simple k=2 batch=8 ranks=8 float32 kernel=grouped forced balance"
    assert title(zipf) == "simple k=2 batch=8 ranks=8 float32 kernel=grouped zipf(1.2)"
    assert SettingTitles([balanced, factory.cell("tp")]).title(balanced) == "forced balance"
