"""The GPU script: a dry run of the whole on a CPU, so that it works on the day a GPU is at hand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import pack, packages, parts, ranks, rows, summary, sweep
from benchmarks.gpu.rows import Part, Rows

ROOT = Path(__file__).resolve().parents[2]
FORMER = ROOT / "benchmarks" / "results" / "gpu_first_look_h100.jsonl"


def python(*arguments: str, code: int = 0) -> str:
    """What a command of the project prints; of one that is refused, what it says."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stderr if code else done.stdout


def test_a_dry_run_gives_tables_and_a_report(tmp_path: Path) -> None:
    out = tmp_path / "out"
    printed = python("-m", "benchmarks.gpu", "--out", str(out), "--budget", "900", "--dry-run")
    by_part: dict[str, list[dict[str, Any]]] = {}
    for row in rows.read(out / rows.NAME):
        by_part.setdefault(row["part"], []).append(row)
    assert list(by_part) == list(parts.PARTS)
    assert [group[-1]["cut"] for group in by_part.values()] == [False] * 6
    assert [row["fact"] for row in by_part["facts"][1:-1]] == [
        "copy_TB_s", "bf16_TFLOP_s", "launch_us", "wait_us"
    ]  # fmt: skip
    checked = [row for row in by_part["forms"] if "ok" in row]
    assert len(checked) > 60 and all(row["ok"] and row["rms_share"] < 1 for row in checked)
    assert by_part["waits"][0]["left_out"] == "waits and CUDA graphs need a GPU"
    sizes = [row["world_size"] for row in by_part["ranks"] if row.get("ok")]
    assert sizes == [2] * 10 + [4] * 10
    for name, cells in (("kernels", 6), ("bench", 4)):
        (sweep,) = [row for row in by_part[name] if "command" in row]
        assert (sweep["cells"], sweep["exit_code"]) == (cells, 0)
    assert "0 rows failed" in printed.splitlines()[-1]

    names = sorted(path.name for path in (out / pack.FOLDER).iterdir())
    assert names[1:] == ["rows.jsonl", "sweeps.tar.gz"] and names[0].startswith("cpu-")
    stored = json.loads((out / pack.FOLDER / names[0]).read_text("utf-8"))
    assert stored["dry_run"] and stored["within_budget"] and stored["failures"] == []
    assert stored["ranks"]["4"] == {"passed": 10, "failed": 0, "refused": 0}
    assert [cell["batch"] for cell in stored["cells"]].count(16) == 1

    with tarfile.open(out / pack.FOLDER / "sweeps.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    shown = python("-m", "analysis", "show", str(tmp_path / "sweeps"))
    assert "peer_transformers" in shown and "Throughput" in shown
    python("-m", "analysis", "report", str(tmp_path / "sweeps"), "-o", str(tmp_path / "r.html"))
    assert "peer_transformers" in (tmp_path / "r.html").read_text("utf-8")
    table = python("-m", "benchmarks.gpu", "table", str(out / "pack" / "rows.jsonl"))
    assert "4 ranks on one GPU: 10 of 10 agree" in table
    assert "| mixtral_8x7b | 16 |" in table


def test_the_rows_of_the_earlier_script_are_still_a_table() -> None:
    table = python("-m", "benchmarks.gpu", "table", str(FORMER))
    assert "forms: 168 of 168 agree" in table
    assert "float16: largest share of a limit: row 0.15, rms 0.49, gradient 0.17" in table
    assert "| mixtral_8x7b | 128 | 1.109 | 1.410 | 1.487 | 1.240 |" in table


@pytest.mark.parametrize(("arguments", "message"), [
    (["--dry-run"], "--out: missing; allowed is a folder; name one for the results"),
    (["--out", "x", "--parts", "form"], "--parts=form: allowed is facts, forms, waits, ranks, "
     "kernels, bench; name one or more of them, with commas"),
    (["--out", "x", "--budget", "9"], "--budget=9: allowed is a number of seconds from 20; name "
     "more, 540 say"),
    (["--out", "tests"], "--out=tests: allowed is an empty or a new folder; name another"),
    (["blocks", "qwen:3"], "qwen:3: allowed is MODEL:TOKENS with one of qwen3, mixtral, deepseek, "
     "tiny; name a case such as qwen3:32768"),
    (["--gone"], "unrecognized arguments: --gone; --help lists the options"),
])  # fmt: skip
def test_bad_input_is_refused_in_one_line(arguments: list[str], message: str) -> None:
    assert python("-m", "benchmarks.gpu", *arguments, code=2) == f"error: {message}\n"


def test_without_a_gpu_only_a_dry_run_is_allowed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from benchmarks.gpu import __main__ as script

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        script.main(["--out", str(tmp_path / "out")])
    assert capsys.readouterr().err.startswith("error: device=cpu: allowed is a CUDA GPU")
    assert not (tmp_path / "out").exists()


def test_a_part_that_stands_still_is_ended_within_the_budget(tmp_path: Path) -> None:
    """And one that fails is a row."""
    code = (
        "import time\n"
        "from benchmarks.gpu import __main__ as script, facts, forms\n"
        "def fail(part): raise ValueError('of this part')\n"
        "facts.run, forms.run = fail, lambda part: time.sleep(100)\n"
        "script.LAST_S, script.BEGAN_S = 18.0, time.monotonic()\n"
        f"script.main(['--out', {str(tmp_path / 'out')!r}, '--budget', '20', '--dry-run'])\n"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                             cwd=ROOT, timeout=100)  # fmt: skip
    assert printed.returncode == 1, printed.stderr
    taken = rows.read(tmp_path / "out" / rows.NAME)
    assert [(row["part"], row.get("error")) for row in taken] == [
        ("facts", "ValueError: of this part"), ("facts", None), ("end", "a part stood still")
    ]  # fmt: skip
    (stored,) = (tmp_path / "out" / "pack").glob("*.json")
    assert len(json.loads(stored.read_text("utf-8"))["failures"]) == 2
    assert "2 rows failed" in printed.stdout


def rank_part(folder: Path, seconds: float) -> Part:
    taken = Rows(folder, 0.0)
    return Part("ranks", taken, taken.clock() + seconds, folder, tiny=True)


# A worker whose second form fails on rank 1, while rank 0 waits for it.
FAILING = """
import json, sys, time, os
from pathlib import Path
report, first, last = sys.argv[1:4]
for number in range(int(first), int(last)):
    if number == 1:
        if os.environ["RANK"] == "1":
            raise SystemExit("rank 1: out of luck")
        time.sleep(60)
    if os.environ["RANK"] == "0":
        with open(report, "a") as file:
            file.write(json.dumps({"ok": True, "number": number}) + chr(10))
"""


def test_ranks_that_fail_cost_one_form_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gpu_test_worker.py").write_text(FAILING, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(ranks, "WORKER", "gpu_test_worker")
    monkeypatch.setattr(ranks, "WORLD_SIZES", (2,))
    monkeypatch.setattr(ranks, "GRACE_S", 1.0)
    ranks.run(rank_part(tmp_path, 60))
    taken = rows.read(tmp_path / rows.NAME)
    assert len(taken) == 10
    assert [row["number"] for row in taken if row["ok"]] == [0, *range(2, 10)]
    assert taken[1]["error"] == "rank 1 ended with 1: rank 1: out of luck"
    assert (taken[1]["strategy"], taken[1]["mode"]) == ("fsdp", "forward")


def test_ranks_that_stand_still_are_ended_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gpu_test_worker.py").write_text("import time; time.sleep(60)", "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(ranks, "WORKER", "gpu_test_worker")
    monkeypatch.setattr(ranks, "STILL_S", 0.3)
    launch = ranks.Launch(2, tmp_path / "report.jsonl", (0, 1), 60, tiny=True)
    launch.start()
    while launch.running():
        pass
    launch.end()
    assert launch.failure == "no row for 0 s"
    assert [process.returncode for process in launch.processes] == [-15, -15]


def test_a_sweep_whose_time_is_over_is_interrupted(tmp_path: Path) -> None:
    program = (
        "import signal, sys, time\n"
        "def leave(*_):\n    print('[1/2] kept', file=sys.stderr); sys.exit(130)\n"
        "signal.signal(signal.SIGINT, leave)\n"
        "print('ready', file=sys.stderr, flush=True)\n"
        "time.sleep(60)\n"
    )
    seconds = sweep.INTERRUPT_S + 2.0
    log = tmp_path / "log"
    command = [sys.executable, "-c", program]
    assert sweep.ended_in_time(command, {}, log, seconds, "bench") == (130, True)
    assert log.read_text("utf-8") == "ready\n[1/2] kept\n"


def wheel(folder: Path, package: str) -> None:
    import zipfile

    with zipfile.ZipFile(folder / f"{package}-1-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{package}/__init__.py", f"NAME = {package!r}\n")


def test_wheels_serve_where_packages_are_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With made-up wheels: the real ones need a network."""
    wheels, out = tmp_path / "wheels", tmp_path / "out"
    wheels.mkdir()
    monkeypatch.setattr(packages, "WHEELS", wheels)
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "path", sys.path[:])
    part = Part("bench", Rows(out, 0.0), 0.0, out, tiny=True)
    packages.provide(out)
    assert packages.variables(part) is None
    (row,) = rows.read(out / rows.NAME)
    assert row["error"].startswith("hydra, omegaconf, antlr4: not installed, and not in ")
    names = (*packages.HYDRA, *packages.KERNELS)
    for package in names:
        wheel(wheels, package)
    packages.provide(out)
    assert sys.path[-1] == str(out / packages.FOLDER)
    variables = packages.variables(part)
    assert variables is not None
    path = variables["PYTHONPATH"].split(os.pathsep)
    assert path[0] == str(ROOT) and path[-1] == str(out / packages.FOLDER)
    code = f"import {', '.join(names)}; print([m.NAME for m in ({', '.join(names)})])"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **variables},
                          capture_output=True, text=True, cwd=tmp_path)  # fmt: skip
    assert done.stdout == f"{list(names)}\n"


@pytest.mark.skipif(
    len(list(packages.WHEELS.glob("*.whl"))) < 3, reason="make gpu-wheels, which needs a network"
)
def test_the_real_wheels_start_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the unpacked wheels have Hydra: what is installed is hidden by a finder."""
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "path", sys.path[:])
    out = tmp_path / "out"
    packages.provide(out)
    variables = packages.variables(Part("bench", Rows(out, 0.0), 0.0, out, tiny=True))
    assert variables is not None
    code = (
        "import runpy, sys\n"
        f"names, here = {packages.HYDRA!r}, {str(out)!r}\n"
        "import importlib.machinery as machinery\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in names:\n"
        "            return machinery.PathFinder.find_spec(name, [here + '/packages'])\n"
        "sys.meta_path.insert(0, Hide())\n"
        "sys.argv = ['runners/bench.py', '--cfg', 'job']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n"
        "    print({sys.modules[n].__file__.startswith(here) for n in names}, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **variables},
                          capture_output=True, text=True, cwd=ROOT)  # fmt: skip
    assert "world_size: 8" in done.stdout, done.stderr
    assert done.stderr.splitlines()[-1] == "{True}"


def test_a_pack_has_few_small_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = Rows(tmp_path, 0.0)
    taken.add("facts", {"card": "NVIDIA H100 80GB HBM3", "versions": {"torch": "2.11.0+cu130"}})
    for name in ("a", "b"):
        cell = tmp_path / "sweeps" / name / "cells" / "x"
        cell.mkdir(parents=True)
        (tmp_path / "sweeps" / name / "plan.json").write_text("{}")
        noise = os.urandom(1500 if name == "a" else 4500).hex()  # gzip halves it
        (cell / "record-0.json").write_text(noise)
        shutil.copytree(cell, tmp_path / "sweeps" / name / "plots")
    (tmp_path / "sweeps" / "latest").symlink_to("b")
    about = {"date": "2030-01-02", "command": "c", "dry_run": True, "budget_s": 10, "wall_s": 11}
    monkeypatch.setattr(pack, "limits", lambda sweeps: {"unknown": "no records"})
    lines = pack.pack(tmp_path, about)
    files = sorted(path.name for path in (tmp_path / "pack").iterdir())
    name = "nvidia-h100-80gb-hbm3-2.11.0-cu130-2030-01-02.json"
    assert files == [name, "rows.jsonl", "sweeps.tar.gz"] and len(lines) == 3
    with tarfile.open(tmp_path / "pack" / "sweeps.tar.gz") as archive:
        assert archive.getnames() == [
            "sweeps/a/cells/x/record-0.json", "sweeps/a/plan.json",
            "sweeps/b/cells/x/record-0.json", "sweeps/b/plan.json",
        ]  # fmt: skip
    assert not json.loads((tmp_path / "pack" / name).read_text())["within_budget"]
    monkeypatch.setattr(pack, "FILE_BYTES", 4000)  # both together are larger, and b alone
    lines = pack.pack(tmp_path, about)
    assert sorted(path.name for path in (tmp_path / "pack").iterdir()) == [
        name, "rows.jsonl", "sweeps-a.tar.gz"
    ]  # fmt: skip
    assert lines[-1].startswith("sweeps-b.tar.gz 5 KiB: left out, the limits are 8 files")
    assert summary.file_name({"date": "d"}) == "unknown-unknown-d.json"
