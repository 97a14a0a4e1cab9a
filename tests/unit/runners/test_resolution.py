"""A composed config becomes plain values in one way, for a run and for a job of a sweep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runners import bench
from runners.config.resolution import Composed, plain
from runners.errors import ConfigError
from tests.support import bad_input


def asked_by(words: list[str], folder: Path) -> dict[str, Any] | str:
    """The config that the sweep is asked for, else the error."""
    seen: list[Composed] = []

    def refuse(asked: Sequence[Composed], *rest: Any) -> Any:
        seen.extend(asked)
        raise ConfigError("seen")

    with mock.patch.object(bench, "run_composed", refuse):
        answer = bad_input.ask(words, folder)
    assert answer.code == 2
    return json.loads(json.dumps(seen[0].config)) if seen else answer.lines[0]


@pytest.mark.parametrize("words", [
    ["label=${strategy.name}"], ["batch_size=${oc.decode:'16'}"], ["topk=${num_experts}"],
    ["label=${model}"], ["label=${workload}", "strategy=ep"], ["seed=${measure.samples}"],
    ["strategy.ep=${world_size}"], ["name=${model.name}"], ["label=\\${model.name}"],
    ["label=${model.router}"], ["label=${oops}"], ["label=${label}"], ["model.dim=???"],
    ["label=???"], ["batch_size=${oc.env:NO_SUCH_NUMBER,4}"], ["label=x${topk}y"],
    ["hosts=many", "label=${hosts.nnodes}"],
], ids=" ".join)  # fmt: skip
def test_a_run_and_a_sweep_of_one_job_are_asked_for_the_same(
    words: list[str], tmp_path: Path
) -> None:
    assert asked_by(words, tmp_path) == asked_by(["-m", *words], tmp_path)


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 9), st.sampled_from(["x", "", "a ${b", "\\${m.a}"]),
    st.sampled_from(["${m.a}", "${m.b}", "${m}", "${l}", "${m.c.d}", "${l[0]}", "${a}", "${no}"]),
    st.sampled_from(["${m.a}${m.b}", "${oc.env:HOME}", "${oc.env:NO_SUCH,7}", "???", "${m.l}"]),
)  # fmt: skip
SMALL = st.recursive(
    LEAVES, lambda c: st.lists(c, max_size=2) | st.dictionaries(st.sampled_from("abc"), c),
    max_leaves=4,
)  # fmt: skip


@given(tree=st.fixed_dictionaries({
    "m": st.fixed_dictionaries({
        "a": LEAVES, "b": LEAVES, "c": st.just({"d": 4}), "l": st.just([1])
    }),
    "l": st.lists(SMALL, min_size=1, max_size=2), "a": LEAVES, "b": SMALL, "c": LEAVES,
}))  # fmt: skip
def test_it_is_what_omegaconf_makes_of_it(tree: dict[str, Any]) -> None:
    try:
        config = OmegaConf.create(tree)
        wanted = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, RecursionError):
        return
    found = plain(config, {})
    assert repr(found) == repr(wanted)
