"""What SECURITY.md promises."""

from __future__ import annotations

import ast
import json
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from analysis import cli
from benchmarks.docs import audit
from moe.spec import Cell, RankLayout
from runners.launch import local
from runners.plan import LaunchPlan, Measure, save
from tests.support import analysis_factory as factory

ROOT = Path(__file__).resolve().parents[2]
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
FORBIDDEN = {"eval", "exec", "__import__", "os.system", "os.popen", "torch.load", "pickle.load",
             "pickle.loads", "marshal.loads", "yaml.load", "yaml.unsafe_load"}  # fmt: skip


def plan(folder: Path) -> LaunchPlan:
    place = RankLayout(world_size=2)
    return LaunchPlan(0, str(folder / "0"), Measure(), place, [Cell()], [""], [[0]], [True])


@pytest.mark.parametrize("package", ["moe", "runners", "analysis"])
def test_nothing_is_unpickled_evaluated_or_given_to_a_shell(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in FORBIDDEN, (path, node.lineno)
                assert "shell" not in {word.arg for word in node.keywords}, (path, node.lineno)


def test_ranks_get_no_secrets_and_a_token_that_is_in_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "GH_PAT_TOKEN")
    for name in secrets:
        monkeypatch.setenv(name, "planted")
    first, second = (local.rank_environment(plan(tmp_path)) for _ in range(2))
    assert not set(secrets) & set(first)
    assert "planted" not in first.values()
    assert len(first["MOE_LAUNCH_TOKEN"]) == 32
    assert first["MOE_LAUNCH_TOKEN"] != second["MOE_LAUNCH_TOKEN"]
    save(plan(tmp_path), tmp_path / "launch.json")
    assert first["MOE_LAUNCH_TOKEN"] not in (tmp_path / "launch.json").read_text()


@pytest.mark.dist
def test_without_a_network_of_its_own_a_launch_listens_on_loopback_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_alone", lambda plan: [])
    started = local.start(plan(tmp_path), worker="tests.system.listening_worker")
    deadline = time.monotonic() + 120
    while started.running() and time.monotonic() < deadline:
        time.sleep(0.1)
    started.end()
    log = started.log_path(0).read_text()
    assert started.process.returncode == 0, log
    found = (tmp_path / "0" / "listening").read_text().split()
    assert len(found) >= 2  # the store's socket and gloo's
    assert set(found) <= LOOPBACK


def test_a_network_of_its_own_cannot_be_reached() -> None:
    code = (
        "import socket, sys; from runners.host import isolation\n"
        "own = isolation.unshare_network(); server = socket.create_server(('127.0.0.1', 0))\n"
        "print(own, server.getsockname()[1], flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    own, port = process.stdout.readline().split()
    with socket.socket() as stranger:
        stranger.settimeout(5)
        reached = stranger.connect_ex(("127.0.0.1", int(port))) == 0
    process.communicate("", timeout=20)
    assert reached == (own == "False")  # where the system lets us, nobody gets in


def test_a_terminal_is_not_steered_by_what_records_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "\x1b]0;owned\x07 \x1b[2J \x9b31m"
    factory.write_all(tmp_path, [factory.unmeasured(factory.cell("tp"), "failed", hostile)])
    assert cli.main(["status", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "owned" in out
    assert not {c for c in out if not c.isprintable()} - {"\n"}


def test_the_audit_tells_what_is_known_and_when_nobody_can_be_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    packages = audit.pinned(ROOT / "constraints.txt")
    assert ("hydra-core", "1.3.8") in packages

    class Database(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
            known = [{"vulns": [{"id": "X-1"}]} if n == 3 else {} for n in range(len(asked))]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"results": known}).encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Database) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert audit.main(["--url", url]) == 1
        server.shutdown()
    assert f"{'=='.join(packages[3])}: X-1" in capsys.readouterr().err
    assert audit.main(["--url", url]) == 0
    assert "nobody could be asked" in capsys.readouterr().out
