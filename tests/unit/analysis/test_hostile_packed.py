"""A thousand damaged and hostile files: each is read or refused in a line; nothing else happens."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis import cli
from runners.packed import container, packed_file, parts
from runners.records import record
from tests.support import hostile_packed
from tests.support.examples import examples

FILES, SHARDS = 1000, 10
LIMIT_S = 60.0  # of one file, on a busy machine
VERBS = (
    ["show", "--detail"], ["check"], ["status"], ["export"], ["compare", "--group", "strategy"],
    ["explain", "--a", "strategy=ep,topk=2", "--b", "strategy=tp,topk=2"], ["beside"], ["predict"],
)  # fmt: skip


@pytest.mark.parametrize("shard", range(SHARDS))
def test_hostile_files(
    shard: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No traceback, no file beside it, no hang, no control character, no exit code but 0, 1, 2; a
    refusal has one line and names the file."""
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    file = inside / "hostile.moebench"
    codes = set()
    for number in range(shard, examples(FILES), SHARDS):
        file.write_bytes(hostile_packed.file(number))
        start_s = time.monotonic()
        with warnings.catch_warnings():
            code = cli.main([*VERBS[number // hostile_packed.KINDS % len(VERBS)], file.name])
        assert time.monotonic() - start_s < LIMIT_S, number
        out, err = capsys.readouterr()
        codes.add(code)
        assert code in (0, 1, 2), number
        assert not {c for c in out + err if ord(c) < 32} - {"\n", "\t"}, number
        if code == 2:
            last = err.splitlines()[-1]
            assert last.startswith("analysis: "), (number, err)
        assert [path.name for path in inside.iterdir()] == [file.name]
        assert [path.name for path in tmp_path.iterdir()] == [inside.name]
    assert codes >= {0, 2}


def test_the_good_file_is_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the hostile ones are made of has nothing to be named."""
    file = tmp_path / "good.moebench"
    file.write_bytes(hostile_packed.good())
    assert cli.main(["show", str(file)]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", range(hostile_packed.KINDS))
def test_every_kind_of_hostile_file_is_noticed(
    kind: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nearly all of them: a value may be replaced by one that is allowed."""
    file = tmp_path / "hostile.moebench"
    numbers = range(kind, 12 * hostile_packed.KINDS, hostile_packed.KINDS)
    noticed = 0
    for number in numbers:
        file.write_bytes(hostile_packed.file(number))
        code = cli.main(["show", str(file)])
        noticed += bool(code == 2 or "left out" in capsys.readouterr().err)
    least = {2: 0.5, 3: 0.5, 4: 0.25, 5: 0.25, 8: 0.5}.get(kind, 0.9)
    assert noticed >= least * len(numbers)


@pytest.mark.parametrize(
    "part,path",
    [
        ("records", ["kernel", "name"]), ("records", ["meta", "model"]), ("records", ["label"]),
        ("records", ["created"]), ("records", ["sweep"]), ("records", ["notes"]),
        ("records", ["cell", "strategy", "name"]), ("records", ["gate", "detail"]),
        ("shared", ["cpu_model"]), ("shared", ["versions", "torch"]), ("plan", ["command"]),
        ("plan", ["name"]),
    ],
)  # fmt: skip
def test_html_in_a_file_is_never_in_a_report(
    part: str, path: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The part that holds it is left out and named, or it is a text that is not shown."""
    about, parts = hostile_packed.opened()
    names = [name for name in parts if name.startswith(part)]
    for name in names:
        lines = [json.loads(line) for line in parts[name].split(b"\n")]
        for value in lines:
            *above, last = path
            for step in above:
                value = value.get(step, {})
            value[last] = [hostile_packed.HTML] if last == "notes" else hostile_packed.HTML
        parts[name] = b"\n".join(json.dumps(line).encode() for line in lines)
    file, page = tmp_path / "hostile.moebench", tmp_path / "report.html"
    file.write_bytes(container.write(about, parts))
    code = cli.main(["report", str(file), "-o", str(page)])
    text = page.read_text("utf-8") if page.exists() else ""
    assert (code == 0) == bool(text)
    assert "alert(1)" not in text
    assert part == "plan" or "left out" in capsys.readouterr().err


def test_a_file_of_huge_numbers_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two billion ranks would be looked at one by one."""
    file = tmp_path / "hostile.moebench"
    about, parts = hostile_packed.opened()
    name = next(name for name in parts if name.startswith("records/"))
    content = json.loads(parts[name].split(b"\n")[0])
    content["cell"]["placement"]["world_size"] = 2**31
    content["key"] = record.cell_key(record.cell_from_dict(content["cell"]))
    parts[name] = json.dumps(content).encode()
    file.write_bytes(container.write(about, parts))
    assert cli.main(["show", str(file)]) == 2
    err = capsys.readouterr().err
    assert "cell.placement.world_size=2147483648: allowed are 1 to 2147483647" in err


def numbers(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of the numbers in it."""
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(item, (*path, name))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


def with_number(path: tuple[Any, ...], value: float) -> bytes:
    """The good file, with this number in all of its records."""
    about, content = hostile_packed.opened()
    part, line = next((name, data) for name, data in content.items() if name.startswith("records/"))
    lines = [whole(json.loads(text), content) for text in line.split(b"\n")]
    for of in lines:
        below: Any = of
        for step in path[:-1]:
            below = below[step]
        below[path[-1]] = value
    return container.write(about, {**content, part: b"\n".join(map(parts.as_json, lines))})


def whole(one: dict[str, Any], content: dict[str, bytes]) -> dict[str, Any]:
    """A record of a file with what it shares with others."""
    return {
        name: json.loads(content[f"shared/{value['$shared']}.json"])
        if isinstance(value, dict) and "$shared" in value
        else value
        for name, value in one.items()
    }


def paths() -> list[tuple[Any, ...]]:
    """Of the numbers that `explain` computes with."""
    one = packed_file.of_bytes(hostile_packed.good(), "good").records[0]
    return [*numbers({"calibration": one.calibration, "skew": one.skew})]


@pytest.mark.parametrize("value", [0, -0.0, -1, 5e-324, 1e308, -1e308, 2**62])
def test_numbers_that_nobody_can_have_measured(
    value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each number of a calibration and of a skew in turn: the records are refused, or explained."""
    file = tmp_path / "hostile.moebench"
    assert len(paths()) > 15
    for path in paths():
        file.write_bytes(with_number(path, value))
        for verb in (VERBS[5], ["show"]):
            code = cli.main([*verb, str(file)])
            err = capsys.readouterr().err
            assert code == 0 or (code == 2 and "analysis: " in err), (path, verb)
