"""Packed files from https addresses: bounded in size, time and redirects. Stdlib only."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from runners.host.timeout import call_with_timeout
from runners.packed.container import MOST_FILE_BYTES, PackedError, words

SCHEME = "https://"
LIMIT_S = 120.0  # of the whole download
SOCKET_S = 20.0  # without a byte
MOST_REDIRECTS = 5
PIECE_BYTES = 1 << 16
MOST_DIGITS = 16  # of a length that is looked at


class _HttpsRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a few redirects, to https alone."""

    max_redirections = MOST_REDIRECTS

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str):  # type: ignore[no-untyped-def]
        if not newurl.lower().startswith(SCHEME):
            raise urllib.error.URLError("redirected to an address that is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def is_address(source: str) -> bool:
    """Whether the source is an address instead of a path; http:// is one, which is refused."""
    return source.lower().startswith((SCHEME, "http://"))


def shown(address: str) -> str:
    """The address without what may be a secret: user and password, query and fragment."""
    parts = urllib.parse.urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    more = "?..." if parts.query or parts.fragment else ""
    return f"{parts.scheme}://{host}{parts.path}{more}"


def fetched(address: str, limit_s: float = LIMIT_S) -> bytes:
    """The bytes at an https address; raises PackedError for anything else, and where the answer is
    no success, too large, or not complete in time."""
    try:
        parts = urllib.parse.urlsplit(address)
        named = bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        raise PackedError("https address: not a valid one; check how it is written") from None
    if not (named and address.lower().startswith(SCHEME)):
        raise PackedError(
            f"{shown(address)}: allowed are https://HOST/NAME.moebench, without user and password; "
            "or download it yourself and give its path"
        )
    try:
        return call_with_timeout(shown(address), lambda: _read(address, limit_s), limit_s)
    except (OSError, http.client.HTTPException, ValueError) as error:
        text = words(error)
        if isinstance(error, TimeoutError):
            text = f"not complete within {limit_s:g} s"
        raise PackedError(
            f"{shown(address)}: cannot be read ({text}); check the address and the network, or "
            "download it yourself and give its path"
        ) from error


def _read(address: str, limit_s: float) -> bytes:
    end_s = time.monotonic() + limit_s
    opener = urllib.request.build_opener(_HttpsRedirects)
    request = urllib.request.Request(address, headers={"User-Agent": "moe-bench"})
    data = bytearray()
    with opener.open(request, timeout=min(SOCKET_S, limit_s)) as answer:
        while piece := answer.read(PIECE_BYTES):
            data += piece
            if len(data) > MOST_FILE_BYTES:
                raise ValueError(f"more than {MOST_FILE_BYTES} bytes")
            if time.monotonic() > end_s:
                raise TimeoutError
        length = str(answer.headers.get("Content-Length") or "")
    if length.isdigit() and len(length) < MOST_DIGITS and len(data) != int(length):
        raise ValueError("cut off")
    return bytes(data)
