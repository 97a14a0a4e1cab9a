"""Dockerfile: hadolint finds nothing, nobody is root in the image, and what it copies is enough.

No test builds it, since that takes a builder and a network; docs/manifests.md has CI's command.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.support import dockerfile, docs

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "Dockerfile").read_text("utf-8")
IGNORE = (ROOT / ".dockerignore").read_text("utf-8")
HADOLINT = Path(sysconfig.get_path("scripts")) / "hadolint"
LIMIT_S = 60


def linted(text: str) -> str:
    """What hadolint says, without a user's settings; empty for a Dockerfile without a finding."""
    command = [str(HADOLINT), "--no-color", "--failure-threshold", "style", "-"]
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=LIMIT_S, cwd="/",
        env={"HOME": "/nonexistent"},
    )  # fmt: skip
    assert (done.returncode == 0) == (done.stdout == ""), done
    assert done.stderr == ""
    return done.stdout


def test_hadolint_finds_nothing() -> None:
    assert linted(TEXT) == ""


@pytest.mark.parametrize(("old", "new", "rule"), [
    ("# hadolint ignore=DL3008\n", "", "DL3008"),
    (" --no-install-recommends", "", "DL3015"),
    ("ARG BASE=python:3.11-slim\nFROM ${BASE}", "FROM python", "DL3006"),
    ("WORKDIR /app", "WORKDIR app", "DL3000"),
    ("--no-cache-dir -c constraints.txt torch", "-c constraints.txt torch", "DL3042"),
    ("USER 10001:10001", "USER root", "DL3002"),
])  # fmt: skip
def test_hadolint_finds_a_fault(old: str, new: str, rule: str) -> None:
    assert old in TEXT
    assert rule in linted(TEXT.replace(old, new))


def test_nothing_else_is_wrong() -> None:
    assert dockerfile.faults(TEXT, IGNORE, ROOT) == []


@pytest.mark.parametrize(("old", "new", "fault"), [
    ("USER 10001:10001\n", "", "USER: the last is root, or there is none"),
    ("USER 10001:10001", "USER root", "USER: the last is root, or there is none"),
    ("USER 10001:10001", "USER moe\nUSER 0:0", "USER: the last is root, or there is none"),
    ("USER 10001:10001", "USER moe", "USER: a name, which runAsNonRoot cannot check"),
    ("apt-get update", "curl x.org/a | sh", "fetches by itself"),
    ("COPY conf conf", "ADD conf conf", "fetches by itself"),
    ("WORKDIR /app", "ENV PIP_INDEX_URL=https://x.org", "fetches by itself"),
    ("ARG EXTRAS=ray", "ARG WANDB_API_KEY", "a secret would stay in the image"),
    ("PYTHONUNBUFFERED=1", "MOE_KEY=abc", "a secret would stay in the image"),
    ("-c constraints.txt torch", "torch", "no constraints"),
    ("-c constraints.txt -e", "-e", "no constraints"),
    ("COPY conf conf", "COPY config conf", "COPY config: not in the clone"),
    ("COPY conf conf", "COPY tests tests", "COPY tests: left out by .dockerignore"),
])  # fmt: skip
def test_a_fault_is_found(old: str, new: str, fault: str) -> None:
    assert old in TEXT
    (found,) = dockerfile.faults(TEXT.replace(old, new, 1), IGNORE, ROOT)
    assert fault in found


@pytest.mark.parametrize(("path", "ignored"), [
    (".git/config", True), (".venv/bin/python", True), (".env", True), ("outputs/a/plan", True),
    (str(Path("runners", "__pycache__", "bench.pyc")), True), ("moe_bench.egg-info/PKG-INFO", True),
    ("runners/bench.py", False), ("conf/hosts/one.yaml", False), ("constraints.txt", False),
])  # fmt: skip
def test_what_the_image_gets(path: str, ignored: bool) -> None:
    assert dockerfile.is_ignored(path, IGNORE) is ignored


def test_it_copies_all_that_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    assert set(wheel) < set(dockerfile.copied(TEXT))


def test_nothing_is_reported_to_anyone() -> None:
    (environment,) = (rest for word, rest in dockerfile.instructions(TEXT) if word == "ENV")
    assert "RAY_USAGE_STATS_ENABLED=0" in environment.split()


def test_the_manifests_keep_the_folder_that_the_image_writes() -> None:
    (workdir,) = (rest for word, rest in dockerfile.instructions(TEXT) if word == "WORKDIR")
    page = docs.parsed((ROOT / "docs" / "manifests.md").read_text("utf-8"))
    blocks = ["\n".join(lines) for language, lines in page.blocks if language == "yaml"]
    with_image = [block for block in blocks if "YOUR-IMAGE" in block]
    assert len(with_image) == 4
    for block in with_image:
        assert f"{{name: outputs, mountPath: {workdir}/outputs}}" in block
        assert list(yaml.safe_load_all(block))


def test_what_is_copied_can_run(tmp_path: Path) -> None:
    for source in dockerfile.copied(TEXT):
        path = ROOT / source
        if path.is_dir():
            left_out = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, tmp_path / source, ignore=left_out)
        else:
            shutil.copy(path, tmp_path / source)
    for words in (["runners/bench.py", "--cfg", "job"], ["-m", "analysis", "--help"]):
        command = [sys.executable, *words]
        variables = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        done = subprocess.run(
            command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=LIMIT_S
        )
        assert done.returncode == 0, done.stderr
    asked = "import analysis, moe, runners; print(*[m.__file__ for m in (analysis, moe, runners)])"
    shown = subprocess.run(
        [sys.executable, "-c", asked], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={"PATH": "/usr/bin:/bin"}, timeout=LIMIT_S,
    )  # fmt: skip
    assert all(Path(name).is_relative_to(tmp_path) for name in shown.stdout.split())
