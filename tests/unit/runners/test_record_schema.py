"""One schema of a record: what it keeps of a record that is handed on, and what it refuses."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runners.host import environment, identity
from runners.packed import guard, record_schema
from runners.packed.record_schema import faults, portable
from runners.records import record
from runners.records.sealed import RecordError
from tests.support import analysis_factory as factory
from tests.support import whole_record
from tests.support.whole_record import as_read, changed, leaves, whole, without_sentences

KEY = "4f9d" * 10  # as W&B has them
HOSTILE = (
    "/home/alice/x", "alice@node17.cluster.example", "https://u:p@h/x", KEY, "hf_" + "Ab" * 17,
    "sk-" + "Zq3" * 16, "<script>alert(1)</script>", "\x1b[2Jbell\x07\u202e",
)  # fmt: skip
VALIDATOR = jsonschema.Draft202012Validator(record_schema.schema())
WHOLE = whole()
LEAVES = list(leaves(WHOLE))
CALLED = {path for path in LEAVES if path[-1] == "sha"}  # 40 hex digits, as a key of W&B has


def texts_in(content: Any) -> set[str]:
    """Every text and every name in it."""
    if isinstance(content, dict):
        return {*content} | set[str]().union(*map(texts_in, content.values()))
    if isinstance(content, list | tuple):
        return set[str]().union(*map(texts_in, content))
    return {content} if isinstance(content, str) else set()


def packed(content: dict[str, Any]) -> Any:
    """What a packed file would have of a record, or nothing where it cannot be packed."""
    try:
        return portable(content, names=())[0]
    except RecordError:
        return None


def test_a_whole_record_loses_its_sentences_alone() -> None:
    kept, withheld = portable(WHOLE, names=())
    assert kept == without_sentences(WHOLE)
    assert withheld == [
        "notes", "error.message", "error.log", "gate.detail", "gate.after.detail",
        "gate.float32.detail", "gate.changed.what", "gate.changed.text", "gate.changed.when",
        "environment.system", "calibration.left_out[0]",
    ]  # fmt: skip
    assert faults(as_read(kept)) == []
    assert record.from_dict(as_read(kept)).key == WHOLE["key"]


@pytest.mark.parametrize("version", record.READABLE)
def test_records_of_every_version_that_is_read_can_be_handed_on(version: int) -> None:
    """And be read again: samples keep their kinds, and times their meaning."""
    read = record.read(whole_record.DATA / f"schema-{version}.json")
    kept, withheld = portable(record.to_dict(read), names=())
    twice = ["gate.after.detail"] if version > 2 else []
    assert withheld == ["gate.detail", *twice, "environment.system"]
    again = record.from_dict(as_read(kept))
    assert (again.schema, again.samples, again.anchors) == (version, read.samples, read.anchors)


def test_synthetic_records_stay_as_they_are() -> None:
    for one in [*factory.reference_records(rounds=2), *factory.rich_records()[:9]]:
        content = record.to_dict(one)
        assert portable(content, names=()) == (content, [])


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_field_hands_on_what_is_hostile(text: str) -> None:
    survived = []
    for path in LEAVES:
        kept = packed(changed(WHOLE, path, text))
        if any(text in one for one in texts_in(kept)):
            survived.append(path)
    assert survived == [path for path in LEAVES if text == KEY and path in CALLED]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_name_of_a_field_hands_it_on(text: str) -> None:
    parents = {path[:-1] for path in LEAVES if isinstance(path[-1], str)}
    for path in parents:
        new = as_read(WHOLE)
        parent: Any = new
        for step in path:
            parent = parent[step]
        parent[text] = 1
        assert not any(text in one for one in texts_in(packed(new))), path


def test_a_key_in_place_of_a_commit_is_known_by_its_value() -> None:
    """It looks like one: only a key that this process has can be told from it."""
    new = changed(WHOLE, ("environment", "git", "sha"), KEY)
    kept, withheld = portable(new, names=[KEY])
    assert kept["environment"]["git"]["sha"] is None
    assert "environment.git.sha" in withheld


def test_names_of_this_machine_go_wherever_they_are() -> None:
    places: dict[tuple[Any, ...], Any] = {
        ("label",): "alice-2",
        ("sweep",): "sweep_of_alice",
        ("meta", "model"): "alice_model",
        ("meta", "overrides", 0): "label=alice",
        ("kernel", "name"): "node17-bmm",
        ("environment", "cpu_model"): "Node17 EPYC",
        ("environment", "versions", "torch"): "2.13.0+alice",
        ("environment", "variables", "UCX_ALICE"): "1",
    }
    new = as_read(WHOLE)
    for path, value in places.items():
        new = changed(new, path, value)
    kept, _ = portable(new, names=["alice", "node17"])
    assert not [one for one in texts_in(kept) if "alice" in one.lower() or "node17" in one.lower()]
    assert kept["label"] == environment.short_hash("label", "alice-2")
    assert kept["sweep"] == ""
    assert kept["meta"]["overrides"][0] == "(withheld)"
    assert kept["environment"]["versions"]["torch"] is None


def test_names_that_are_words_of_a_record_break_none() -> None:
    """A host called ep, a login called bmm or root."""
    names = ["ep", "measured", "bmm", "kernel", "simple", "peak_bytes", "Gloo", "performance"]
    own = [name for name in names if name not in ("bmm", "performance")]
    assert portable(WHOLE, names=own)[0] == without_sentences(WHOLE)
    kept, withheld = portable(WHOLE, names=names)  # a library's words may be a person's
    assert kept["environment"]["governor"] is None
    assert "environment.governor" in withheld


def test_names_of_libraries_phases_and_ranks_break_none() -> None:
    names = ["torch", "Python", "world", "reduce", "experts", "float32", "mkl", "read", "peak"]
    assert portable(WHOLE, names=names)[0] == without_sentences(WHOLE)
    groups = ("world", "ep", "tp", "dp", "peer", "self")
    rows = [[{"collective": "reduce_scatter", "group": group} for group in groups]]
    assert portable({**WHOLE, "traffic": rows}, names=groups)[0]["traffic"] == rows


def test_a_model_that_is_not_the_projects_is_not_handed_on() -> None:
    """But one that came in a file is read: another version may have it."""
    for name, kept in (("reference", "reference"), ("seed", "seed"), ("bob_secret", None)):
        new = changed(WHOLE, ("meta", "model"), name)
        assert portable(new, names=())[0]["meta"]["model"] == kept
        assert faults(as_read({**without_sentences(WHOLE), "meta": new["meta"]})) == []
    new = changed(WHOLE, ("meta", "overrides", 0), "model=bob_secret")
    assert portable(new, names=())[0]["meta"]["overrides"][0] == "model=(withheld)"
    assert faults(as_read({**without_sentences(WHOLE), "meta": new["meta"]})) == []


def test_what_names_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity.getpass, "getuser", lambda: "alice")
    monkeypatch.setattr(identity.platform, "node", lambda: "node17.ml.cluster.example")
    monkeypatch.setenv("HOME", "/home/asmith")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("SOME_TOKEN", "pw4x")
    monkeypatch.setenv("OTHER_TOKEN", "abc")  # too short to be taken out wherever it is
    monkeypatch.setenv("WANDB_SILENT", "true")
    known = "alice", "asmith", "node17", "node17.ml.cluster.example", KEY, "pw4x"
    assert identity.names_here().issuperset(known)
    assert not identity.names_here() & {"ml", "cluster", "abc", "true"}
    assert portable({**WHOLE, "label": "pw4x"})[0]["label"] != "pw4x"
    monkeypatch.setattr(identity.getpass, "getuser", lambda: "root")
    monkeypatch.setattr(identity.platform, "node", lambda: "localhost")
    monkeypatch.setenv("HOME", "/root")
    assert not identity.names_here() & {"root", "localhost", ""}
    assert not guard.guard_of(["ep", "alice"]).harmless("alice")
    assert guard.guard_of(["ep", "alice"]).harmless("ep")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("cell", "strategy", "placement"), "/home/alice/order", "cell.strategy.placement="),
        (("cell", "layer", "dim"), math.nan, "cell.layer.dim=nan"),
        (("cell", "further"), 1, "cell.further=1"),
        (("key",), "x", "key='x'"),
        (("outcome",), "good", "outcome='good'"),
        (("samples", "kind", 0), "slow", r"samples.kind\[0\]='slow'"),
        (("samples", "end_ns", 0, 0), 2**63, r"samples.end_ns\[0\]\[0\]=a whole number of 64 bits"),
        (("schema",), 5, "schema=5"),
        (("launch",), "x" * 500, "launch='x+...:"),
    ],
)
def test_a_record_that_would_be_another_cannot_be_packed(
    path: tuple[Any, ...], value: Any, message: str
) -> None:
    new = changed(WHOLE, path, value)
    with pytest.raises(RecordError, match=message):
        portable(new, names=())
    assert len(faults(new)) == 1
    assert not VALIDATOR.is_valid(new) or path == ("cell", "layer", "dim")


def test_faults_name_path_and_value() -> None:
    new = as_read(without_sentences(WHOLE))
    new["notes"] = ["<b>" + "x" * 500]
    new["gate"]["error"] = math.inf
    new["environment"]["cpu_model"] = "\x1b[2J\u202e"
    new["environment"]["<i>\x07"] = {}
    assert faults(new) == [
        "notes=list of 1",
        "gate.error=inf",
        r"environment.cpu_model='\x1b[2J\u202e'",
        r"environment.<i>\x07=dict of 0",
    ]
    del new["samples"]
    assert faults(new) == ["samples: missing"]
    new = as_read(without_sentences(WHOLE))
    new["environment"] = {f"x{n}": n for n in range(25)}
    assert faults(new)[19:] == ["environment.x19=19", "5 more"]
    assert faults([]) == ["a record=list of 0"]  # type: ignore[arg-type]


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(2**60, 2**70) | st.floats()
    | st.text(max_size=50) | st.sampled_from(HOSTILE),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner,
                                                                max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(LEAVES), st.integers(0, 6), ANY), max_size=4))
def test_a_filtered_record_is_as_the_schema_says(changes: list[tuple[Any, int, Any]]) -> None:
    """Whatever is changed in it, at any depth: once filtered it stays as it is, has no faults, and
    the JSON schema takes it."""
    new: Any = copy.deepcopy(as_read(WHOLE))
    for path, depth, value in changes:
        parent = new
        steps = path[: max(1, len(path) - depth)]
        try:
            for step in steps[:-1]:
                parent = parent[step]
            parent[steps[-1]] = value
        except (LookupError, TypeError):  # another change has cut the path
            continue
    kept = packed(new)
    if kept is None:
        assert len(faults(new)) == 1
        return
    assert portable(kept, names=()) == (kept, [])
    assert faults(kept) == []
    written = json.dumps(kept, allow_nan=False)
    assert list(VALIDATOR.iter_errors(json.loads(written))) == []


def test_the_committed_schema_is_that_of_the_code() -> None:
    assert record_schema.FILE.read_text("utf-8") == record_schema.text()
    jsonschema.Draft202012Validator.check_schema(record_schema.schema())
    assert record_schema.schema()["$id"].endswith(f":{record.SCHEMA}")


def test_the_json_schema_takes_records_as_they_are_on_disk() -> None:
    path = whole_record.DATA / "schema-4.json"
    assert list(VALIDATOR.iter_errors(json.loads(path.read_bytes()))) == []
    assert list(VALIDATOR.iter_errors(as_read(WHOLE))) == []
    for one in factory.reference_records(rounds=2)[:3]:
        assert list(VALIDATOR.iter_errors(as_read(record.to_dict(one)))) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("cell", "strategy", "name"), "two words"),
        (("cell", "layer", "dtype"), "float8"),
        (("stop", "rule"), "never"),
        (("samples", "start_ns", 0, 0), 1.5),
        (("gate", "ok"), "yes"),
        (("environment", "host"), "node17"),
        (("environment", "further"), 1),
        (("traffic", 0, 0, "calls"), None),
        (("calibration", "two words"), 1),
        (("sha256",), "x"),
        (("further",), 1),
    ],
)
def test_the_json_schema_refuses_what_is_no_record(path: tuple[Any, ...], value: Any) -> None:
    assert not VALIDATOR.is_valid(changed(WHOLE, path, value))


@pytest.mark.parametrize("name", record_schema.REQUIRED)
def test_the_json_schema_misses_what_a_reader_needs(name: str) -> None:
    new = as_read(WHOLE)
    del new[name]
    assert not VALIDATOR.is_valid(new)
    with pytest.raises(RecordError, match=f"{name}: missing"):
        portable(new, names=())
