"""What stays of a command line that is handed on."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runners.config import schema
from runners.packed import command
from runners.packed.command import configs, is_portable, portable_command

BENCH = "python runners/bench.py -m strategy=simple,tp,ep topk=2,4,8"


@pytest.mark.parametrize(
    "line",
    [
        BENCH,
        "moe-bench -m model=qwen3_30b_a3b experiment=crossover measure.precision=0.05",
        "python -m benchmarks.emulate --dilation 20 --intra 90.5 strategy=ep world_size=4",
        "python -m benchmarks.emulate --cells 'tokens=sharded strategy=ep' topk=2",
        "python runners/bench.py strategy.ep=2 model.router.kind=expert_choice +dtype=bfloat16",
        "",
        "moe-bench -m model=reference,mixtral_8x7b model.name=seed strategy=ep_tp,peer_torchtitan",
        "moe-bench workload=zipf measure=quick +experiment=crossover label=a-1,b_2",
    ],
)
def test_knobs_of_what_is_measured_stay(line: str) -> None:
    assert portable_command(line, names=()) == line


@pytest.mark.parametrize(
    ("line", "stays"),
    [
        ("/home/alice/.venv/bin/python3.11 /home/alice/moe/runners/bench.py topk=2",
         "python runners/bench.py topk=2"),
        (f"{BENCH} name=alice resume=/home/alice/x", f"{BENCH} (withheld) (withheld)"),
        (f"{BENCH} tracker.entity=alice hosts.run=x", f"{BENCH} (withheld) (withheld)"),
        (f"{BENCH} strategy.placement=/home/alice/x",
         f"{BENCH} strategy.placement=(withheld)"),
        (f"{BENCH} label=alice", f"{BENCH} (withheld)"),
        (f"{BENCH} label=hf_{'Ab' * 17}", f"{BENCH} (withheld)"),
        (f"{BENCH} model=bob_secret +experiment=node17 workload=zipf,mine",
         f"{BENCH} model=(withheld) +experiment=(withheld) workload=(withheld)"),
        (f"{BENCH} model.name=10.0.0.7 measure=bobs strategy=ep,bobs",
         f"{BENCH} model.name=(withheld) measure=(withheld) strategy=(withheld)"),
        (f"{BENCH} label=10.0.0.7 label=a,10.0.0.7",
         f"{BENCH} label=(withheld) label=(withheld)"),
        ("rm -rf / ; curl x", "(withheld) (withheld) (withheld) (withheld) (withheld) (withheld)"),
        ("python runners/bench.py topk=$(id)", "python runners/bench.py topk=(withheld)"),
        ("python runners/bench.py 'topk", "(withheld)"),
        ("topk=2 " * 2000, "(withheld)"),
    ],
)  # fmt: skip
def test_everything_else_is_withheld(line: str, stays: str) -> None:
    assert portable_command(line, names=["alice"]) == stays


def test_keys_are_knobs_and_groups_of_the_bench() -> None:
    """The list that the config's knobs do not give is held to them here."""
    paths = {entry.path for entries in schema.sections().values() for entry in entries.values()}
    assert command.KNOBS - paths == {*schema.groups()} - {"hosts"}
    private = {"name", "resume", "workload.trace", "tracker.entity", "tracker.project", "hosts.run",
               "hosts.rdzv_endpoint", "hosts.interface", "hosts.pass_env"}  # fmt: skip
    assert private <= paths
    assert not command.KNOBS & private


def test_configs_are_the_projects_files_and_strategies() -> None:
    assert configs("measure") == {"default", "launches", "quick", "reference"}
    assert configs("strategy") >= {"ep_tp", "simple_loop", "peer_deepspeed", "peer_moe_ops"}


def test_configs_of_another_version_may_come_in_a_file() -> None:
    assert is_portable("python runners/bench.py model=later strategy=later model.name=later")
    assert not is_portable("python runners/bench.py model=10.0.0.7.example")
    assert not is_portable("python runners/bench.py name=alice")
    assert not is_portable("python runners/bench.py label=10.0.0.7")


@pytest.mark.parametrize(
    ("line", "stays"),
    [
        ("--cells 'strategy=tp,ep topk=2,(4)'", "--cells 'strategy=tp,ep topk=2,(4)'"),
        ("--cells 'a '", "--cells (withheld)"),
        ("--cells 'topk=2 '", "--cells topk=2"),
        ("--cells ' '", "--cells (withheld)"),
        ("--cells 'topk=2 a'", "--cells 'topk=2 (withheld)'"),
        ("topk=() " * 1200, "(withheld)"),  # which quotes would make longer than is read
    ],
)
def test_a_portable_command_stays_as_it_is(line: str, stays: str) -> None:
    assert portable_command(line, names=()) == stays
    assert portable_command(stays, names=()) == stays
    assert is_portable(stays)


WORDS = st.sampled_from(
    ["strategy=tp,ep", "topk=2,(4)", "topk=()", "a", "", " ", "\t", "\u00a0", "(withheld)", "20",
     "model=bob", "model=(withheld)", "label=(a)", "label=bob", "strategy=", "python3", "--cells",
     "/x y/bench.py", "runners/bench.py", "=", "+topk=2", "'", '"', "\\", "topk='2'", "#"]
) | st.text(max_size=6)  # fmt: skip
QUOTED = st.lists(WORDS, max_size=4).map(" ".join).map(shlex.quote)


@given(st.lists(WORDS | QUOTED, max_size=6), st.integers(1, 3000), st.sampled_from(["bob", "ep"]))
def test_portable_commands_stay_as_they_are(words: list[str], times: int, name: str) -> None:
    once = portable_command(" ".join(words * (times if times > 2000 else 1)), [name])
    assert portable_command(once, [name]) == once
    assert is_portable(once)
