"""Whatever a W&B run holds, the analysis names it or shows it: odd values from file and server."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import cli
from analysis.data import schema
from analysis.data.frame import to_frame
from analysis.errors import SourceWarning
from analysis.sources import load_rows, wandb_file
from runners.records import flat_row
from runners.records.record import Samples
from runners.track.run import EXACT_FIELD, Run, run_of
from tests.support import analysis_factory, wandb_edits, wandb_records
from tests.support import wandb_frames as frames
from tests.support.wandb_edits import SECRET, VALUES, edited, fits, value_of
from tests.support.wandb_server import ENTITY, StandIn
from tests.system.test_wandb_online import PROJECT, server  # noqa: F401

RUN = run_of(analysis_factory.measured(analysis_factory.cell("ep"), sweep="s"), "s")
GOOD = run_of(analysis_factory.measured(analysis_factory.cell("simple"), sweep="s"), "s")
NAMES = wandb_edits.names(RUN)
CELL = flat_row.flat_config(analysis_factory.cell("ep"))
LIMITS = settings(max_examples=80)


def write(folder: Path, runs: list[Run]) -> Path:
    for number, run in enumerate(runs):
        path = folder / f"run-{number}.wandb"
        path.write_bytes(frames.frame(frames.payloads(run)))
    return folder


def load(folder: Path | str, samples: bool = False) -> tuple[list[dict[str, Any]], list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = load_rows([folder], samples=samples)
    assert all(w.category is SourceWarning for w in caught)
    return rows, [str(w.message) for w in caught]


def check(name: str, value: Any, rows: list[dict[str, Any]], told: list[str]) -> None:
    """`rows` and `told` are of RUN with this value: left out by name, or of the right type."""
    truth = value_of(RUN, name)
    wrong = value is not None and truth is not None and not fits(truth, value)
    if name in CELL and value != truth:
        wrong = True  # the key was made of another cell
    assert len(rows) + len(told) == 1
    if wrong:
        assert rows == []
    if told:
        assert name in told[0] or "was edited" in told[0]
        assert len(told[0]) < 600
        assert SECRET not in told[0]
        assert not {"\x1b", "\x07"} & set(told[0])
    else:
        assert len(to_frame(rows)) == 1


def test_every_name_of_a_row_is_edited() -> None:
    assert set(NAMES) == {column.name for column in schema.columns()}


@pytest.mark.parametrize("name", NAMES)
def test_odd_values_in_a_file(name: str, tmp_path: Path) -> None:
    for number, value in enumerate(VALUES):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder, [edited(RUN, name, value)])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            rows = wandb_file.load(folder)
        check(name, value, rows, [str(w.message) for w in caught])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(), below, max_size=3),
)


@LIMITS
@given(st.sampled_from(NAMES), JSON)
def test_any_value_in_a_file(tmp_path: Path, name: str, value: Any) -> None:
    write(tmp_path, [edited(RUN, name, value)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = wandb_file.load(tmp_path)
    truth = value_of(RUN, name)
    assert len(rows) + len(caught) == 1
    if None not in (truth, value) and not fits(truth, value):
        assert rows == []
    assert len(to_frame(rows)) == len(rows)


def test_odd_values_from_a_server(server: StandIn) -> None:  # noqa: F811
    """Every name with every value, in one project; one that is as it should be is there."""
    tried = {f"r{n}": pair for n, pair in enumerate((a, b) for a in NAMES for b in VALUES[::3])}
    for key, (name, value) in tried.items():
        store(server, key, edited(RUN, name, value))
    store(server, "good", GOOD)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = load_rows([PROJECT])
    texts = [str(w.message) for w in caught]
    assert GOOD.config["attempt_id"] in {row["attempt_id"] for row in rows}
    assert len(rows) + len(texts) == len(tried) + 1
    assert len(to_frame(rows)) > 0
    named = {text.split("run ")[1].split(" ")[0]: text for text in texts}
    for key, (name, value) in tried.items():
        check(name, value, [] if key in named else rows[:1], [named[key]] if key in named else [])


def store(on: StandIn, name: str, run: Run) -> None:
    config = {key: {"value": value} for key, value in run.config.items()}
    made = on.stored(name, entity=ENTITY, project="p", config=config, summary=run.summary)
    made.state = "finished"


def test_what_was_seen_once(tmp_path: Path) -> None:
    """A message names file, field, value and what is allowed, and the others are there."""
    values = {"topk": "4,8", "world_size": "three", "threads": None, "num_experts": False}
    write(tmp_path, [*(edited(RUN, n, v) for n, v in values.items()), GOOD])
    rows, told = load(tmp_path)
    assert [row["strategy"] for row in rows] == ["simple"]
    for text, (name, value) in zip(told, values.items(), strict=True):
        assert f"left out: {name}={json.dumps(value)}: allowed is a whole number" in text
        assert "run-" in text and "correct it in W&B" in text


def test_a_value_that_could_be_but_was_not_measured(tmp_path: Path) -> None:
    write(tmp_path, [edited(RUN, "topk", 4), edited(RUN, "label", "mine"), GOOD])
    rows, told = load(tmp_path)
    assert len(rows) == 1
    assert "its config was edited: key" in told[0]
    assert f'cell_id="{RUN.config["cell_id"]}": allowed is' in told[1]


def without(run: Run, name: str) -> Run:
    return dataclasses.replace(run, config={k: v for k, v in run.config.items() if k != name})


def test_a_field_that_is_gone(tmp_path: Path) -> None:
    """With its default it is a run of before the field was there; else the key tells."""
    assert RUN.config["nodes"] == 1 and RUN.config["strategy"] == "ep"
    write(tmp_path, [without(RUN, "nodes"), without(GOOD, "nodes"), without(RUN, "strategy")])
    rows, told = load(tmp_path)
    assert [row["nodes"] for row in rows] == [1, 1]
    assert len(told) == 1 and "was edited" in told[0]


@pytest.mark.parametrize("name", ["launch", "num_samples", "world_size", "cores"])
def test_whole_numbers_may_be_written_as_floats(name: str, tmp_path: Path) -> None:
    truth = value_of(RUN, name)
    write(tmp_path, [edited(RUN, name, float(truth)), edited(RUN, name, truth + 0.5)])
    rows, told = load(tmp_path)
    assert [row[name] for row in rows] == [truth]
    assert f"{name}={truth + 0.5}: allowed is a whole number" in told[0]


def test_an_attempt_whose_mean_noise_took_below_zero(tmp_path: Path) -> None:
    """Pairs of a short and a long block of 1, 1 and -3 ms a step: median 1, mean -1/3 ms, and so
    no throughput."""
    taken = Samples()
    for index, step_ns in enumerate((1_000_000, 1_000_000, -3_000_000)):
        for kind, steps in (("short", 1), ("long", 2)):
            taken.round.append(index)
            taken.position.append(0)
            taken.steps.append(steps)
            taken.kind.append(kind)
            taken.start_ns.append([0])
            taken.end_ns.append([10_000_000 + steps * step_ns])
    measured = analysis_factory.measured(analysis_factory.cell("simple"), sweep="s")
    hidden = dataclasses.replace(measured, samples=taken)
    write(tmp_path, [run_of(hidden, "s"), GOOD])
    rows, texts = load(tmp_path, samples=True)
    assert texts == []
    assert rows[0] == flat_row.row(hidden, samples=True)
    assert rows[0]["median_duration_ms"] == 1.0
    assert rows[0]["avg_duration_ms"] == pytest.approx(-1 / 3)
    assert rows[0]["avg_throughput"] is None


@pytest.mark.parametrize("name", ["makespan_ms", "round", "steps", "kind"])
def test_odd_samples(name: str, tmp_path: Path) -> None:
    run = run_of(wandb_records.record(1), "s")
    rest = [dict(row) for row in run.history]
    for number, value in enumerate([v for v in VALUES if not fits(rest[2][name], v)]):
        rest[2][name] = value
        write(tmp_path, [GOOD, dataclasses.replace(run, history=rest)])
        assert len(load(tmp_path)[0]) == 2
        rows, told = load(tmp_path, samples=True)
        assert len(rows) == 1, number
        assert f"left out: {name}=" in told[0]


def test_a_kind_of_sample_that_there_is_not(tmp_path: Path) -> None:
    run = run_of(wandb_records.record(1), "s")
    run.history[0]["kind"] = "lukewarm"
    write(tmp_path, [run, GOOD])
    assert 'kind="lukewarm": allowed is warmup, short' in load(tmp_path, samples=True)[1][0]


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "5", "{", '{"a": '])
def test_exact_json_that_is_none(tmp_path: Path, text: str) -> None:
    run = dataclasses.replace(RUN, summary={**RUN.summary, EXACT_FIELD: text})
    write(tmp_path, [run, GOOD])
    rows, told = load(tmp_path)
    assert len(rows) == 1
    assert "exact_json is damaged" in told[0]


def test_nothing_steers_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = edited(RUN, "host", "\x1b[31m " + SECRET)
    write(tmp_path, [odd, edited(RUN, "topk", "\x1b[2J " + SECRET), GOOD])
    for verb in ("show", "export"):
        assert cli.main([verb, str(tmp_path)]) == 0
        out, err = capsys.readouterr()
        assert "\x1b" not in out + err
        assert err.startswith("warning: ") and "topk=" in err and SECRET not in err


# What holds by its type and is still no figure: the words of the analysis must bear it.
PLAIN = {
    "int": st.sampled_from([None, 0, -1, 1, 10**15]),
    "float": st.sampled_from([None, 0, -0.5, 1e-300, 1e300, 2]),
    "bool": st.sampled_from([None, True, False]),
    "text": st.sampled_from([None, "", "$a_b^{", "<b>|", "no such", "x" * 300]),
    "dict": st.sampled_from([{}, {"ranks": "x"}, {"shared": 5}, {"shared": {}, "ranks": 8},
                             {"matmul_flops_per_s": []}, {"collectives": [1]}]),
}  # fmt: skip


def of_kind(kind: str) -> st.SearchStrategy[Any]:
    outer, inner = schema.parts(kind)
    if outer == "list":
        return st.lists(of_kind(inner) if inner else st.just(1), max_size=10)
    if outer == "dict" and inner:
        return st.dictionaries(st.sampled_from(["a", "wait", "experts"]), of_kind(inner))
    return PLAIN[outer]


EDITS = st.sampled_from([c for c in schema.columns() if c.name not in CELL]).flatmap(
    lambda column: st.tuples(st.just(column.name), of_kind(column.kind))
)


@settings(LIMITS, max_examples=12)
@given(st.lists(EDITS, min_size=1, max_size=4))
def test_what_is_of_its_type_never_ends_in_a_traceback(
    tmp_path: Path, edits: list[tuple[str, Any]]
) -> None:
    odd = RUN
    for name, value in edits:
        odd = edited(odd, name, value)
    write(tmp_path, [odd, GOOD])
    for words in (["show"], ["check"], ["compare", "--group", "strategy"], ["status"]):
        assert cli.main([*words, str(tmp_path)]) in (0, 1, 2)
