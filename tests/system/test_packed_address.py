"""Packed files from https addresses, of a server on loopback: read, bounded, refused."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from analysis import cli
from runners.packed import download, packed_file
from runners.packed.container import PackedError
from tests.support import hostile_packed

SLOW_S = 30.0


class Pages(BaseHTTPRequestHandler):
    """By path: the good file, and what a server may do instead of giving one."""

    stopped = threading.Event()

    def do_GET(self) -> None:
        data = hostile_packed.good()
        where, _, _ = self.path.partition("?")
        if where == "/good.moebench":
            self._answer(200, data)
        elif where == "/moved.moebench":
            self._answer(302, b"", Location="/good.moebench")
        elif where == "/plain.moebench":
            self._answer(302, b"", Location="http://127.0.0.1:9/good.moebench")
        elif where == "/loop.moebench":
            self._answer(302, b"", Location=f"/loop.moebench?{time.monotonic_ns()}")
        elif where == "/half.moebench":
            self._answer(200, data[: len(data) // 2], length=len(data))
        elif where == "/endless.moebench":
            self.send_response(200)
            self.end_headers()
            while not self.stopped.is_set():
                self.wfile.write(bytes(1 << 20))
        elif where == "/slow.moebench":
            self.send_response(200)
            self.end_headers()
            while not self.stopped.wait(0.05):
                self.wfile.write(b"P")
        else:
            self._answer(404, b"")

    def _answer(self, status: int, data: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server(authority: trustme.CA) -> Iterator[str]:
    """Its address, such as https://localhost:4711."""
    Pages.stopped.clear()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    httpd.daemon_threads = True
    httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    httpd.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"https://localhost:{httpd.server_address[1]}"
    Pages.stopped.set()
    httpd.shutdown()
    httpd.server_close()
    thread.join(10)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    packed_file._of_address.cache_clear()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))


def fault(address: str, limit_s: float = SLOW_S) -> str:
    with pytest.raises(PackedError) as caught:
        download.fetched(address, limit_s)
    return str(caught.value)


@pytest.mark.usefixtures("trusted")
def test_an_address_is_a_source_as_a_file_is(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "good.moebench"
    file.write_bytes(hostile_packed.good())
    outputs = []
    for source in (str(file), f"{server}/good.moebench", f"{server}/moved.moebench"):
        assert cli.main(["show", source, "--format", "csv"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] == outputs[2]


@pytest.mark.usefixtures("trusted")
def test_a_secret_in_an_address_is_not_printed(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["show", f"{server}/good.moebench?signature=s3cret"]) == 0
    assert cli.main(["show", f"{server}/none.moebench?signature=s3cret"]) == 2
    page = tmp_path / "report.html"
    assert cli.main(["report", f"{server}/good.moebench?signature=s3cret", "-o", str(page)]) == 0
    out, err = capsys.readouterr()
    assert f"{server}/none.moebench?...: cannot be read (HTTP Error 404" in err
    assert "s3cret" not in out + err + page.read_text("utf-8")


@pytest.mark.usefixtures("trusted")
def test_what_is_no_whole_file_is_refused(server: str) -> None:
    assert "redirected to an address that is not https" in fault(f"{server}/plain.moebench")
    assert "redirect" in fault(f"{server}/loop.moebench")
    assert "(cut off)" in fault(f"{server}/half.moebench")
    assert "HTTP Error 404" in fault(f"{server}/other")


@pytest.mark.usefixtures("trusted")
def test_size_and_time_are_bounded(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MOST_FILE_BYTES", 3 << 20)
    assert "more than 3145728 bytes" in fault(f"{server}/endless.moebench")
    start_s = time.monotonic()
    assert "not complete within 0.5 s" in fault(f"{server}/slow.moebench", 0.5)
    assert time.monotonic() - start_s < SLOW_S / 2


def test_a_certificate_that_is_not_trusted_is_refused(server: str) -> None:
    assert "CERTIFICATE_VERIFY_FAILED" in fault(f"{server}/good.moebench")


@pytest.mark.parametrize(
    "address", ["http://localhost/x.moebench", "https://user:pass@localhost/x.moebench", "https://"]
)
def test_other_addresses_are_refused_before_anything_is_asked(address: str) -> None:
    text = fault(address)
    assert "allowed are https://HOST/NAME.moebench, without user and password" in text
    assert "pass@" not in text


def test_a_port_that_nobody_listens_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "https://localhost:9/x.moebench"]) == 2
    assert "https://localhost:9/x.moebench: cannot be read (" in capsys.readouterr().err
