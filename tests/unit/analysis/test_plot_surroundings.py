"""Matplotlib settings of the surroundings neither break our pictures nor change them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import analysis_factory as factory

ROOT = Path(__file__).resolve().parents[3]
NAME = "speed_vs_top_k"
MINE = "lines.linewidth: 9\naxes.facecolor: red\nfont.size: 30\nsavefig.dpi: 31\nbackend: nowhere\n"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = [factory.measured(factory.cell(s, topk=k)) for s in ("simple", "ep") for k in (2, 4)]
    return factory.write_all(tmp_path_factory.mktemp("plain"), records) / "sweep"


@pytest.fixture(scope="module")
def plain(sweep: Path) -> dict[str, str]:
    return drawn(sweep, sweep / "plain", {})


def drawn(
    sweep: Path, folder: Path, variables: dict[str, str], cwd: Path = ROOT, without: str = ""
) -> dict[str, str]:
    """Hashes of the files that `plot` draws with these variables set."""
    surroundings = {n: v for n, v in os.environ.items() if n != without}
    done = subprocess.run(
        [sys.executable, "-m", "analysis", "plot", str(sweep), "--name", NAME, "-o", str(folder)],
        env={**surroundings, "PYTHONPATH": str(ROOT), **variables}, cwd=cwd,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Bad value" not in done.stderr
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@settings(max_examples=4)
@given(
    backend=st.sampled_from(
        ["module://matplotlib_inline.backend_inline", "module://ipympl.backend_nbagg",
         "nbAgg", "TkAgg", "MacOSX", "no such", "", "\t"]
    ),
    rc=st.sampled_from([MINE.encode(), b"\xff\xfe\x00", b"no colon", b"", b"text.usetex: True"]),
    place=st.sampled_from(["variable", "folder", "config"]),
)  # fmt: skip
def test_any_settings(
    sweep: Path, plain: dict[str, str], tmp_path: Path, backend: str, rc: bytes, place: str
) -> None:
    folders = {name: tmp_path / name for name in ("variable", "folder", "config", "out")}
    for folder in folders.values():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    (folders[place] / "matplotlibrc").write_bytes(rc)
    variables = {"MPLBACKEND": backend, "MPLCONFIGDIR": str(folders["config"])}
    variables |= {"MATPLOTLIBRC": str(folders["variable"])} if place == "variable" else {}
    assert drawn(sweep, folders["out"], variables, cwd=folders["folder"]) == plain


def test_a_kernels_backend(sweep: Path, plain: dict[str, str], tmp_path: Path) -> None:
    found = drawn(sweep, tmp_path, {"MPLBACKEND": "module://matplotlib_inline.backend_inline"})
    assert found == plain


def test_a_folder_with_a_matplotlibrc_that_cannot_be_read(
    sweep: Path, plain: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "matplotlibrc").write_bytes(b"font.size: \xe4")
    assert drawn(sweep, tmp_path / "out", {}, cwd=tmp_path) == plain


@pytest.mark.parametrize("variables", [{"MPLCONFIGDIR": "/proc/1"}, {"HOME": "/nowhere"}])
def test_no_folder_of_its_own(
    sweep: Path, plain: dict[str, str], tmp_path: Path, variables: dict[str, str]
) -> None:
    assert drawn(sweep, tmp_path, variables) == plain


def test_no_home(sweep: Path, plain: dict[str, str], tmp_path: Path) -> None:
    assert drawn(sweep, tmp_path, {}, without="HOME") == plain


@pytest.mark.parametrize("words", [["report"], ["predict", "--strategy", "ep"]])
def test_whatever_else_draws(words: list[str], sweep: Path, tmp_path: Path) -> None:
    if words[0] == "predict":
        sweep = factory.write_all(tmp_path / "sweeps", factory.rich_records()[:20])
    target = tmp_path / "made"
    done = subprocess.run(
        [sys.executable, "-m", "analysis", words[0], str(sweep), *words[1:], "-o", str(target)],
        env={**os.environ, "MPLBACKEND": "of a notebook"}, cwd=ROOT,
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert target.exists()


def test_a_notebook_keeps_its_backend_and_settings(sweep: Path) -> None:
    code = (
        "import matplotlib as mpl, sys, analysis\n"
        "from analysis import notebook\n"
        "mpl.rcParams['font.size'] = 23\n"
        "before = dict(mpl.rcParams)\n"
        "made = notebook.picture(analysis.load(sys.argv[1]), sys.argv[2])._repr_png_()\n"
        "assert made.startswith(b'\\x89PNG') and dict(mpl.rcParams) == before\n"
        "from analysis import cli\n"
        "assert cli.main(['plot', sys.argv[1], '--name', sys.argv[2], '-o', sys.argv[3]]) == 0\n"
        "assert dict(mpl.rcParams) == before\n"
        "print(mpl.rcParams['backend'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(sweep), NAME, str(sweep / "of_notebook")],
        env={**os.environ, "MPLBACKEND": "svg"}, cwd=ROOT,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "svg"
