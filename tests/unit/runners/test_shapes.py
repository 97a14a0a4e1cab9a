"""What each type of a field may hold, what stays of anything else, and the same as JSON Schema."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from runners.packed import record_schema
from runners.packed.compound import DEPTH, MOST_NAMES, Data, List, Map
from runners.packed.guard import Guard
from runners.packed.record_fields import Line
from runners.packed.shapes import GONE, Int, Nullable, Text
from runners.packed.texts import WORD

NAN, INF = float("nan"), float("inf")
GOOD: dict[str, list[Any]] = {
    "bool": [True, False],
    "int": [0, -(2**63), 2**63 - 1],
    "int?": [None, 3],
    "int[]": [[], [1, 2]],
    "int[]?[]": [[None, [1]]],
    "number": [0, 1.5, -1e308],
    "number[]": [[1, 2.5]],
    "map(number)": [{}, {"bmm_t": 0.5, "loop": 2}],
    "map(number)[][]": [[[{"experts": 1}], []]],
    "model?": [None, "reference", "later"],  # read from a file
    "rule": ["fixed", ""],
    "schema": [2, 4],
    "how": ["the system's own"],
    "hex12": ["0123456789ab"],
    "sha256": ["", "0" * 64],
    "git": [{"sha": "a" * 40, "dirty": None}, {"sha": "0" * 64, "dirty": "0123456789ab"}],
    "word": ["", "peer_reference", "x2+y-z"],
    "label": ["", "again-2"],
    "name": ["2026-11-28_18-10-09_sweep", "h200.v1"],
    "version": ["3", "2.13.0+cpu", "0.1.dev3+g1234567.d20260101"],
    "time": ["2026-11-28T01:42:32+00:00", "2026-11-28T01:42:32.123456Z"],
    "hardware": [
        "AMD EPYC 7B13 64-Core Processor", "Intel(R) Xeon(R) CPU E5-2686 v4 @ 2.30GHz",
        "Apple M1", "12th Gen Intel(R) Core(TM) i7-1260P", "AMD Ryzen 5 3400G w/ Radeon Vega",
        "POWER9, altivec supported", "580.159.04", "[N/A]",
    ],
    "sentence": [""],
    "sentences": [[]],
    "override": ["strategy=simple,tp", "topk=2,4", "measure.samples=3", "label=", "+model.scale=4",
                 "strategy.tp=(withheld)", "(withheld)"],
    "system": ["Linux 6.18.44 x86_64", "Darwin 23.1.0 arm64"],
    "variables": [
        {"OMP_NUM_THREADS": "2", "KMP_AFFINITY": "granularity=fine,compact,1,0",
         "OMP_PLACES": "{0:4},{4:4}", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "^eth0,ib1",
         "MKL_DYNAMIC": "FALSE", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
         "UCX_TLS": "rc,sm,self", "FI_PROVIDER": "(withheld)"},
    ],
    "gpu": [{"name": "NVIDIA H200", "power_draw": "130.80", "reasons": None}],
    "node": [{"cpu_model": None, "cores": 2, "gpus": [{"name": "NVIDIA H200"}],
              "gpu_links": [["X"]]}],
    "data": [None, True, 1, 1.5, "word", "2026-11-28T01:42:32+00:00", {"a": [{"b": [1, "c"]}]}],
    "samples": [{"round": [0], "position": [0], "steps": [4], "kind": ["long"],
                 "start_ns": [[1, 2]], "end_ns": [[3, 4]]}],
}  # fmt: skip
BAD: list[tuple[str, Any, Any]] = [  # type, value, what stays of it
    ("bool", 1, GONE),
    ("bool", "true", GONE),
    ("int", True, GONE),
    ("int", 1.0, GONE),
    ("int", 2**63, GONE),
    ("int?", "3", None),
    ("int[]", [1, "x", 2], [1, 2]),
    ("int[]", {"0": 1}, GONE),
    ("int[]?[]", [[1], "x"], [[1], None]),
    ("number", NAN, GONE),
    ("number", INF, GONE),
    ("number?", -INF, None),
    ("number", 10**400, GONE),
    ("number[]", [1.0, NAN], [1.0]),
    ("map(number)", {"a b": 1, "/home/alice": 2, "loop": 3, "bmm": "x"}, {"loop": 3}),
    ("map(number)", {"x" * 41: 1}, {}),
    ("rule", "forever", GONE),
    ("schema", True, GONE),
    ("schema", 1, GONE),
    ("hex12", "0123456789AB", GONE),
    ("hex12", "0123456789ab\n", GONE),
    ("hex12?", "0" * 13, None),
    ("git", {"sha": "main", "dirty": "x", "branch": "alice"}, {"sha": None, "dirty": None}),
    ("git?", "main", None),
    ("word", "node17.cluster", ""),
    ("word", "a b", ""),
    ("word", "ünder", ""),
    ("word", "w" * 41, ""),
    ("word", "wandb_v1_abcdef", ""),
    ("word", "ghp_" + "x" * 36, ""),
    ("word", "AKIAIOSFODNN7EXAMPLE", ""),
    ("word", "4f9d" * 6, ""),
    ("name", "a sweep", ""),
    ("name", "../up", ""),
    ("version", "v2", GONE),
    ("version", "2.0 (alice)", GONE),
    ("time", "2026-11-28", GONE),
    ("time", "2026-11-28T01:42:32+01:00", GONE),
    ("hardware", "alice@node17.cluster.example", GONE),
    ("hardware", "node17.cluster.example", GONE),
    ("hardware", "/home/alice/x", GONE),
    ("hardware", "home/alice/x", GONE),
    ("hardware", "x" * 81, GONE),
    ("hardware", "<b>AMD</b>", GONE),
    ("hardware?", "AMD\x1b[31m", None),
    ("sentence", "it broke in /home/alice", ""),
    ("sentences", ["a", "b"], []),
    ("override", "tracker.entity=alice", "(withheld)"),
    ("override", "workload.trace=choices.npy", "(withheld)"),
    ("override", "strategy.placement=/home/alice/x", "strategy.placement=(withheld)"),
    ("override", "strategy.placement=order.txt", "strategy.placement=(withheld)"),
    ("override", "label=a b", "label=(withheld)"),
    ("override", "topk", "(withheld)"),
    ("override", "hydra.run.dir=x", "(withheld)"),
    ("system", "Linux 6.18.44-fc-v657 x86_64", "Linux 6.18.44 x86_64"),
    ("system", "Linux 6.1.0-18-amd64 x86_64", "Linux 6.1.0 x86_64"),
    ("system?", "my own kernel", None),
    ("variables", {"OMP_NUM_THREADS": "many", "HOME": "/home/alice"},
     {"OMP_NUM_THREADS": "(withheld)"}),
    ("variables", {"GLOO_SOCKET_IFNAME": "alice0", "UCX_NET_DEVICES": "eth0"},
     {"GLOO_SOCKET_IFNAME": "(withheld)", "UCX_NET_DEVICES": "(withheld)"}),
    ("variables", {"OMP_PLACES": 3}, {"OMP_PLACES": "(withheld)"}),
    ("gpu", {"name": "/dev/x", "power_draw": 3}, {"name": None, "power_draw": None}),
    ("data", {"a": [{"b": ["two words", 1, NAN]}], "c d": 1, "e": "x/y"}, {"a": [{"b": [1]}]}),
    ("data", b"bytes", GONE),
]  # fmt: skip


def of(kind: str) -> Any:
    return record_schema.shape_of(Line("field", kind, ""))


def validator(kind: str) -> jsonschema.Draft202012Validator:
    definitions = record_schema.schema()["$defs"]
    return jsonschema.Draft202012Validator({**of(kind).json_schema(), "$defs": definitions})


@pytest.mark.parametrize("kind", GOOD)
def test_what_a_type_allows_stays_as_it_is(kind: str) -> None:
    for value in GOOD[kind]:
        guard = Guard(["alice"])
        assert of(kind).portable(value, "field", guard) == value, value
        assert guard.withheld == [], value
        assert validator(kind).is_valid(value), value


@pytest.mark.parametrize(("kind", "value", "stays"), BAD)
def test_what_it_does_not_allow_goes(kind: str, value: Any, stays: Any) -> None:
    guard = Guard(["alice"])
    kept = of(kind).portable(value, "field", guard)
    assert kept is GONE if stays is GONE else kept == stays
    assert guard.withheld
    assert all(path.startswith("field") for path, _ in guard.withheld)
    if stays is not GONE:
        again = Guard(["alice"])
        assert (of(kind).portable(kept, "field", again), again.withheld) == (kept, [])


FREE = ("sentence", "sentences", "override", "system", "name", "variables", "data")  # on disk


@pytest.mark.parametrize(
    ("kind", "value"),
    [(kind, value) for kind, value, _ in BAD
     if kind.rstrip("?") not in FREE and "nan" not in str(value) and "inf" not in str(value)],
)  # fmt: skip
def test_the_json_schema_refuses_it_too(kind: str, value: Any) -> None:
    """But for what is free on disk, numbers that JSON does not have, and what only the texts'
    guard knows: names and keys."""
    guarded = kind == "word" and Text(WORD, checked=lambda text, names: True).fits(value, Guard())
    whole = isinstance(value, float) and value.is_integer()  # as JSON Schema has it
    large = kind == "number" and isinstance(value, int)
    ends = isinstance(value, str) and value.endswith("\n")  # as Python's `$` has it
    assert validator(kind).is_valid(value) == (guarded or whole or large or ends)


def test_every_type_of_the_table_has_an_example() -> None:
    used = {line.type for line in record_schema.record_fields.lines()}
    plain = {kind.replace("?", "").replace("[]", "") for kind in used}
    shown = {kind.replace("?", "").replace("[]", "") for kind in GOOD}
    closed = {*record_schema.CLOSED, "choice", "object", "calibration", "map(version)", "map(int)"}
    assert plain - shown - closed == set()


def test_paths_of_what_is_withheld_are_exact() -> None:
    guard = Guard()
    kept = of("data").portable({"a": [1, {"b": "x y"}], "c": NAN}, "calibration", guard)
    assert kept == {"a": [1, {}]}
    assert [path for path, _ in guard.withheld] == ["calibration.a[1].b", "calibration.c"]


def test_names_are_whole_words_in_any_case() -> None:
    guard = Guard(["alice", "node17"])
    refused = ("alice", "Alice-run", "x_ALICE", "on-node17", "alice_2")
    assert not any(guard.harmless(text) for text in refused)
    assert all(guard.harmless(text) for text in ("malice", "alicebob", "node170", "node1", ""))
    assert of("hex12").fits("0123456789ab", Guard(["other"]))
    assert not of("hex12").fits("0123456789ab", Guard(["0123456789ab"]))


@pytest.mark.parametrize(
    "text", ["hf_transformers_batched_grouped", "sk-ew", "skew_with_capacity_factor_and_drop",
             "gradient_lost_at_the_9th_call", "withoutoverlapandwithoutcapacity",
             "0x0000000000000004"],
)  # fmt: skip
def test_plain_words_are_no_keys(text: str) -> None:
    assert Guard().harmless(text)


def test_depth_and_width_are_bounded() -> None:
    deep: Any = 1
    for _ in range(DEPTH):
        deep = [deep]
    assert Data().fits(deep, Guard())
    assert not Data().fits([deep], Guard())
    endless: Any = 1
    for _ in range(200_000):
        endless = [endless]
    kept = Data().portable(endless, "x", Guard())
    assert str(kept).count("[") <= DEPTH
    assert not Map(Int()).fits({f"n{n}": n for n in range(MOST_NAMES + 1)}, Guard())
    assert Nullable(List(Int(), most=2)).portable([1, 2, 3], "x", Guard()) is None


def test_long_lists_of_integers_are_checked_whole() -> None:
    rows = [[10**18 + n for n in range(8)] for _ in range(1000)]
    shape = List(List(Int()))
    assert shape.fits(rows, Guard())
    for bad in (True, 1.0, None, "1", 2**63, -(2**63) - 1):
        rows[-1][-1] = bad  # type: ignore[call-overload]
        assert not shape.fits(rows, Guard()), bad
    rows[-1] = 5  # type: ignore[call-overload]
    assert not shape.fits(rows, Guard())
