"""What code and docs name is there: files of the project, and commands that install it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("docs", "conf", "runners", "moe", "analysis", "benchmarks", "tests")
NAMED = re.compile(rf"(?<![\w./-])((?:{'|'.join(FOLDERS)})/[\w./*-]*\w)")
INSTALL = re.compile(r"pip install ([^`\"|#\n]*)")
EXTRAS = re.compile(r"\[([\w,]+)\]")
STANDS_FOR_ANY = re.compile(r"\b[A-Z]+\b")  # conf/model/NAME.yaml
ELSEWHERE = {
    "docs/legacy.md",  # of DeepEP
    "conf/strategy/peer_notebook.yaml",  # that a reader writes, as the next three
    "conf/strategy/dp_tp.yaml",
    "moe/strategies/dp_tp/__init__.py",
    "moe/strategies/dp_tp/layer.py",
    "runners/conf",  # in a wheel
    "moe/gone.py",  # planted in tests/unit/test_docs.py, as the next
    "docs/gone",
}


def lines() -> Iterator[tuple[str, str]]:
    """(file, line) of all code, configs and docs."""
    files = [*ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"]
    files += [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    for path in sorted(files):
        if path.suffix in ("", ".md", ".py", ".yaml", ".toml", ".ipynb", ".js") and path.is_file():
            name = str(path.relative_to(ROOT))
            yield from ((name, line) for line in path.read_text("utf-8").splitlines())


def test_every_file_that_is_named_is_there() -> None:
    named = [(path, where) for where, line in lines() for path in NAMED.findall(line)]
    assert len(named) > 200
    known = {path for path, _ in named if STANDS_FOR_ANY.search(path)} | ELSEWHERE
    lost = {
        (path, where) for path, where in named
        if path not in known and not (ROOT / path).exists() and not list(ROOT.glob(path))
    }  # fmt: skip
    assert lost == set()


def test_every_command_that_installs_us_works_in_a_clone() -> None:
    """No index has the project by its name; from a clone it is `-e '.[EXTRAS]'`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found, own = [], f"{project['name']}["
    for where, line in lines():
        assert own not in line, where
        found += [(where, words) for words in INSTALL.findall(line) if EXTRAS.search(words)]
    assert len(found) > 8
    extras = set(project["optional-dependencies"])
    for where, words in found:
        asked = {name for names in EXTRAS.findall(words) for name in names.split(",")}
        assert asked <= extras and re.search(r"-e '\.\[[\w,]+\]'", words), (where, words)
