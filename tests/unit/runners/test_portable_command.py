"""What stays of a command line that is handed on."""

from __future__ import annotations

import pytest

from runners.config import schema
from runners.packed import command
from runners.packed.command import portable_command

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
