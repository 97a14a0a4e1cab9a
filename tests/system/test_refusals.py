"""A refused command is told what is wrong in plain words, and leaves nothing behind."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from unittest import mock

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import bad_input

PYTHONS = ("object has no", "index out of range", "is not iterable", "TypeError", "NoneType",
           "unexpected keyword", "Errno", "must be a string or a list")  # fmt: skip
REFUSED = [
    (["topk=9"], ["topk=9", "num_experts=8"]),
    (["on_invalid=maybe"], ["on_invalid='maybe'", "stop, skip"]),
    (["report=perhaps"], ["report='perhaps'", "true, false"]),
    (["-m", "topk=9,10"], ["topk=9", "topk=10"]),
    (["-m", "strategy=psychic"], ["strategy", "psychic", "simple"]),
    (["-m", "strategy=ep", "strategy.dispatcher=glob(*)"],
     ["strategy.dispatcher=glob(*)", "conf/", "strategy.dispatcher=A,B"]),
    (["-m", "strategy=glob(nothing*)"], ["strategy=glob(nothing*)", "ep_tp", "simple"]),
    (["-m", "workload=glob([x*,y*])"], ["workload=glob", "zipf", "balanced"]),
    (["-m", "topk=range(3,1)"], ["topk=range(3,1)", "topk=VALUE"]),
    (["-m", "seed=interval(1,4)"], ["seed=interval(1,4)", "list the values"]),
    (["-m", "hydra.sweeper.params={topk:'9,10'}"],
     ["hydra.sweeper.params", "+hydra.sweeper.params={topk:'9,10'}"]),
    (["-m", "hydra.sweeper.params.tokens=sharded"],
     ["hydra.sweeper.params.tokens", "+hydra.sweeper.params.tokens=sharded"]),
    (["-m", "hydra.sweeper.params=7"], ["hydra.sweeper.params=7", "--cfg all"]),
    (["-m", "hydra.sweeper=5"], ["hydra.sweeper=5", "leave it out"]),
    (["-m", "hydra.launcher=[1,2]"], ["hydra.launcher=[1,2]", "leave it out"]),
    (["-m", "topk=2,4", "+hydra.launcher.nope=1"], ["+hydra.launcher.nope=1", "leave it out"]),
    (["hydra.run=5"], ["hydra.run=5", "--cfg all"]),
    (["hydra.run.dir=/proc/no/such"], ["/proc/no", "folder that can be written"]),
    (["hydra.runtime=${oops}"], ["hydra.runtime=${oops}", "leave it out"]),
    (["workload=-1"], ["workload=-1", "zipf", "balanced"]),
    (["-m", "topk=2", "model=olmoe_1b_7b,0.5"], ["model=olmoe_1b_7b,0.5", "deepseek_v3"]),
    (["-m", "strategy=tp,ep", "--cfg", "job"], ["-m strategy=tp,ep --cfg job", "one of -m"]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "named"), REFUSED, ids=lambda value: " ".join(value)[:50])
def test_the_error_names_what_is_wrong_and_nothing_stays(
    words: list[str], named: list[str], tmp_path: Path
) -> None:
    answer = bad_input.ask(words, tmp_path)
    assert answer.code == 2
    assert bad_input.complaint(words, answer) == ""
    assert all(word in answer.lines[0] for word in named), answer.lines
    assert not [word for word in PYTHONS if word in answer.lines[0]], answer.lines
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "mine").write_text("")
    assert bad_input.ask(["-m", "topk=9"], tmp_path).code == 2
    assert {path.name for path in tmp_path.rglob("*")} == {"outputs", "mine"}


@pytest.mark.parametrize("setting", [None, "0"])
def test_the_process_is_left_as_it_was(
    setting: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    if setting is not None:
        monkeypatch.setenv("HYDRA_FULL_ERROR", setting)

    def shared() -> tuple[object, ...]:
        handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
        return (argparse.ArgumentParser.error, os.environ.get("HYDRA_FULL_ERROR"), *handlers)

    before = shared()
    assert bad_input.ask(["-m", "topk=9"], tmp_path).code == 2
    assert shared() == before


def test_values_in_the_sweepers_params_are_a_sweep(tmp_path: Path) -> None:
    answer = bad_input.ask(["-m", "+hydra.sweeper.params={topk:'9,10,11'}"], tmp_path)
    assert [f"topk={k}: " in answer.lines[0] for k in (9, 10, 11, 12)] == [True, True, True, False]
    answer = bad_input.ask(["-m", "+hydra.sweeper.params={topk:'1,2'}", "report=false"], tmp_path)
    assert answer.code == 0 and answer.would_run


UNEXPECTED = (AttributeError, IndexError, KeyError, TypeError, ValueError, AssertionError,
              RuntimeError, RecursionError, UnicodeError, ZeroDivisionError)  # fmt: skip


@settings(max_examples=15)
@given(kind=st.sampled_from(UNEXPECTED), flag=st.sampled_from([[], ["-m"]]))
def test_no_words_of_an_unexpected_error_are_shown(
    kind: type[Exception], flag: list[str], tmp_path: Path
) -> None:
    """Whatever fails inside Hydra: the override that it comes from is named instead."""
    load = ConfigLoaderImpl.load_configuration

    def broken(loader: ConfigLoaderImpl, name: str, overrides: list[str], **rest: object) -> object:
        if "topk=2" in overrides:
            raise kind("words of Python")
        return load(loader, name, overrides, **rest)  # type: ignore[arg-type]

    words = [*flag, "batch_size=4", "topk=2", "seed=1"]
    with mock.patch.object(ConfigLoaderImpl, "load_configuration", broken):
        answer = bad_input.ask(words, tmp_path)
    assert answer.code == 2 and bad_input.complaint(words, answer) == ""
    assert answer.lines[0].startswith("error: topk=2: ")
    assert "words of Python" not in answer.lines[0] and kind.__name__ not in answer.lines[0]


@pytest.mark.parametrize(("words", "name"), [
    (["model=seed"], "model=reference"),
    (["measure=seed"], "measure=reference"),
    (["experiment=seed_topk"], "experiment=reference_topk"),
    (["-m", "strategy=simple,peer_seed_ep"], "strategy=peer_reference_ep"),
])  # fmt: skip
def test_a_former_name_is_answered_with_the_present_one(
    words: list[str], name: str, tmp_path: Path
) -> None:
    answer = bad_input.ask(words, tmp_path)
    assert answer.code == 2
    assert answer.lines == [answer.lines[0]] and f"write {name}" in answer.lines[0]


def test_another_unknown_name_is_no_former_one(tmp_path: Path) -> None:
    assert "is called" not in bad_input.ask(["model=seedling"], tmp_path).lines[0]
