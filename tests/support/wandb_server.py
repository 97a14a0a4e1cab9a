"""A loopback stand-in for a W&B server: just enough for the real client to write and to read.

It answers the GraphQL operations and uploads that wandb 0.31 sends for init, log, finish,
`wandb sync`, `wandb agent`, `Api.runs` with filters, and history. It proves what the client sends
and accepts, not what W&B's own servers do with it. Faults are set by the tests. It ends by itself.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from tests.support.wandb_artifacts import Artifacts

ENTITY = "tester"
KEY = "0" * 39 + "1"  # has the shape of a key, and is none
_STREAM = re.compile(r"^/files/([^/]+)/([^/]+)/([^/]+)/file_stream")


@dataclass
class StoredRun:
    entity: str
    project: str
    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    state: str = "running"

    def node(self) -> dict[str, Any]:
        """What a query for runs gets; JSON columns are strings, as on a real server."""
        named = ("group", "jobType", "displayName", "notes", "tags")
        return {
            "id": f"id-{self.name}",
            "name": self.name,
            "projectId": "1",
            "state": self.state,
            "config": json.dumps(self.config),
            "summaryMetrics": json.dumps(self.summary),
            "systemMetrics": "{}",
            "historyLineCount": len(self.history),
            "historyKeys": {"lastStep": len(self.history) - 1, "keys": {}},
            "user": {"name": ENTITY, "username": ENTITY},
            "readOnly": False,
            "createdAt": "2026-01-01T00:00:00Z",
            **{name: self.fields.get(name) for name in named},
            "tags": self.fields.get("tags") or [],
        }


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a client that goes away without a word is no fault of the server."""


class StandIn:
    """`with StandIn() as server:` point WANDB_BASE_URL at `server.url`, any 40-digit key will do.

    `requests` lists operations and paths in the order they came. `fault(request)` may return a
    status to answer with instead; `stop()` makes the server vanish.
    """

    def __init__(self, seconds: float = 120.0) -> None:
        self.runs: dict[str, StoredRun] = {}
        self.views: dict[str, dict[str, Any]] = {}  # saved workspaces by name
        self.sweep: dict[str, Any] = {}  # what `wandb sweep` would have stored
        self.commands: list[dict[str, Any]] = []  # for an agent of the sweep, one a heartbeat
        self.requests: list[str] = []
        self.fault: Callable[[str], int | None] = lambda request: None
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"stand_in": self})
        self.http = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.artifacts = Artifacts(self.url)
        self.uploads: dict[str, bytes] = {}  # contents by path: /upload/<run>/<file> and artifacts'
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True)
        self.timer = threading.Timer(seconds, self.stop)
        self.timer.daemon = True
        self.stopped = threading.Event()

    def __enter__(self) -> StandIn:
        self.thread.start()
        self.timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        if not self.stopped.is_set():
            self.stopped.set()
            self.timer.cancel()
            self.http.shutdown()
            self.http.server_close()

    def environment(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}

    def fail(self, status: int, seconds: float = 1e9, only: str = "") -> None:
        """Answers requests that contain `only` with `status`, for a while from the first on."""
        first: list[float] = []

        def fault(request: str) -> int | None:
            if only not in request:
                return None
            first.append(time.monotonic())
            return status if first[-1] - first[0] < seconds else None

        self.fault = fault

    def stored(self, name: str, **fields: Any) -> StoredRun:
        with self.lock:
            return self.runs.setdefault(name, StoredRun(**fields, name=name))

    def answer(self, operation: str, v: dict[str, Any]) -> dict[str, Any]:
        """The `data` of a GraphQL operation; KeyError for one this stand-in does not know."""
        if operation in _OPERATIONS:
            return _OPERATIONS[operation](self, v)
        return self.artifacts.answer(operation, v)


def _viewer(_server: StandIn, _v: dict[str, Any]) -> dict[str, Any]:
    teams = {"edges": [{"node": {"name": ENTITY}}]}
    names = {"id": "u", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}"}
    return {"viewer": {**names, "teams": teams}}


def _resume(server: StandIn, v: dict[str, Any]) -> dict[str, Any]:
    run = server.runs.get(v["name"])
    model = {"id": "m", "name": v["project"], "entity": {"id": "e", "name": ENTITY}}
    if run is None:
        return {"model": {**model, "bucket": None}}
    counts = {"logLineCount": 0, "historyLineCount": len(run.history), "eventsLineCount": 0}
    tails = {"historyTail": json.dumps(run.history[-1:]), "eventsTail": "[]"}
    begun = {"wandbConfig": json.dumps({"t": 1})}  # the client's sign that a run was initialised
    return {"model": {**model, "bucket": {**run.node(), **counts, **tails, **begun}}}


def _upsert(server: StandIn, v: dict[str, Any]) -> dict[str, Any]:
    name, entity = v.get("name") or str(v["id"]).removeprefix("id-"), v.get("entity") or ENTITY
    new = name not in server.runs
    run = server.stored(name, entity=entity, project=v.get("project") or "")
    run.config.update(json.loads(v.get("config") or "{}"))
    run.summary.update(json.loads(v.get("summaryMetrics") or "{}"))
    given = {"group": v.get("groupName"), **{k: v.get(k) for k in ("jobType", "displayName")}}
    given |= {"notes": v.get("notes"), "tags": v.get("tags")}
    run.fields.update({k: value for k, value in given.items() if value is not None})
    run.state = "running"
    owner = {"id": "p", "name": run.project, "entity": {"id": "e", "name": run.entity}}
    return {"upsertBucket": {"bucket": {**run.node(), "project": owner}, "inserted": new}}


def _create_files(server: StandIn, v: dict[str, Any]) -> dict[str, Any]:
    below = f"{server.url}/upload/{v['run']}"
    files = [{"name": f, "uploadUrl": f"{below}/{f}"} for f in v["files"]]
    return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}


def _runs(server: StandIn, v: dict[str, Any]) -> dict[str, Any]:
    mine = [r for r in server.runs.values() if (r.entity, r.project) == (v["entity"], v["project"])]
    if not mine:
        return {"project": None}
    found = [r for r in mine if matches(r, json.loads(v.get("filters") or "{}"))]
    start = int(v.get("cursor") or 0)
    stop = start + int(v.get("perPage") or 50)
    edges = [
        {"node": r.node(), "cursor": str(start + i + 1)} for i, r in enumerate(found[start:stop])
    ]
    page = {"endCursor": str(stop), "hasNextPage": stop < len(found)}
    connection = {"edges": edges, "pageInfo": page}
    return {"project": {"internalId": "1", "runCount": len(found), "runs": connection}}


def _run(server: StandIn, v: dict[str, Any]) -> dict[str, Any]:
    return {"project": {"run": server.runs[v["name"]].node()}}


def _history(server: StandIn, v: dict[str, Any]) -> dict[str, Any]:
    rows = server.runs[v["run"]].history
    inside = [r for r in rows if v["minStep"] <= json.loads(r)["_step"] < v["maxStep"]]
    return {"project": {"run": {"history": inside[: v["pageSize"]]}}}


def _upsert_view(server: StandIn, v: dict[str, Any]) -> dict[str, Any]:
    new = v["name"] not in server.views
    server.views[v["name"]] = dict(v)
    return {"upsertView": {"view": {"id": f"id-{v['name']}", "name": v["name"]}, "inserted": new}}


def _view(server: StandIn, v: dict[str, Any]) -> dict[str, Any]:
    found = [w for name, w in server.views.items() if v["viewName"] in (name, f"nw-{name}-v")]
    nodes = [
        {"id": f"id-{w['name']}", "displayName": w["displayName"], "spec": w["spec"]} for w in found
    ]
    return {"project": {"allViews": {"edges": [{"node": node} for node in nodes]}}}


def _sweep(server: StandIn, v: dict[str, Any]) -> dict[str, Any]:
    found = {"id": "s", "name": v["sweep"], "config": json.dumps(server.sweep), "state": "RUNNING"}
    return {"project": {"sweep": {**found, "runs": {"edges": []}}}}


def _heartbeat(server: StandIn, v: dict[str, Any]) -> dict[str, Any]:
    commands = [server.commands.pop(0)] if server.commands else []
    return {"agentHeartbeat": {"agent": {"id": v["id"]}, "commands": json.dumps(commands)}}


_OPERATIONS: dict[str, Callable[[StandIn, dict[str, Any]], dict[str, Any]]] = {
    "Viewer": _viewer,
    "GetDefaultEntity": _viewer,
    "RunResumeStatus": _resume,
    "UpsertBucket": _upsert,
    "ServerFeaturesQuery": lambda s, v: {"serverInfo": {"features": []}},
    "OrganizationCoreWeaveOrganizationID": lambda s, v: {"entity": {"organization": None}},
    "CreateRunFiles": _create_files,
    "Runs": _runs,
    "Run": _run,
    "RunHistoryKeys": _run,
    "RunParquetHistory": lambda s, v: {
        "project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": []}}}
    },
    "HistoryPage": _history,
    "UpsertView2": _upsert_view,
    "View": _view,
    "SweepWithRuns": _sweep,
    "CreateAgent": lambda s, v: {"createAgent": {"agent": {"id": "a"}}},
    "Heartbeat": _heartbeat,
}


def matches(run: StoredRun, condition: dict[str, Any]) -> bool:
    """The part of W&B's (MongoDB's) filter language that the loader offers."""
    for name, wanted in condition.items():
        if name in ("$and", "$or"):
            combine = all if name == "$and" else any
            if not combine(matches(run, part) for part in wanted):
                return False
        elif not _compare(_value(run, name), wanted):
            return False
    return True


def _value(run: StoredRun, name: str) -> Any:
    if name.startswith("config."):
        return run.config.get(name.split(".")[1], {}).get("value")
    if name.startswith("summary_metrics."):
        return run.summary.get(name.split(".", 1)[1])
    return {**run.fields, "name": run.name, "state": run.state}.get(name)


def _compare(value: Any, wanted: Any) -> bool:
    if not isinstance(wanted, dict):
        return bool(wanted in value if isinstance(value, list) else value == wanted)
    tests: dict[str, Callable[[Any], bool]] = {
        "$in": lambda w: value in w,
        "$ne": lambda w: bool(value != w),
        "$gt": lambda w: value is not None and value > w,
        "$lt": lambda w: value is not None and value < w,
    }
    return all(tests[name](operand) for name, operand in wanted.items())


class _Handler(BaseHTTPRequestHandler):
    stand_in: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the tests read `requests`."""

    def do_POST(self) -> None:
        raw = self._body()
        if self.path != "/graphql" and "file_stream" not in self.path:
            self._reply(self.path, dict)  # the client's own metrics
            return
        body = json.loads(raw)
        if stream := _STREAM.match(self.path):
            self._reply("file_stream", lambda: self._stream(stream.group(3), body))
            return
        found = re.search(r"(?:query|mutation)\s+(\w+)", body.get("query", ""))
        name = found.group(1) if found else self.path
        self._reply(name, lambda: {"data": self.stand_in.answer(name, body.get("variables") or {})})

    def do_PUT(self) -> None:
        content = self._body()
        self._reply("upload", lambda: self._store(content))

    def do_GET(self) -> None:
        self._reply(self.path, dict)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _store(self, content: bytes) -> dict[str, Any]:
        self.stand_in.uploads[self.path] = content
        self.stand_in.artifacts.upload(self.path, content)
        return {}

    def _stream(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """Lines go where their offset says, so lines that are sent twice are there once."""
        run = self.stand_in.runs[name]
        for file, part in (body.get("files") or {}).items():
            if file == "wandb-history.jsonl":
                offset, lines = part["offset"], part["content"]
                run.history[offset : offset + len(lines)] = lines
            elif file == "wandb-summary.json":
                run.summary = json.loads(part["content"][-1])
        if body.get("complete"):
            run.state = "finished" if body.get("exitcode") == 0 else "failed"
        return {}

    def _reply(self, request: str, answer: Callable[[], dict[str, Any]]) -> None:
        self.stand_in.requests.append(request)
        status = self.stand_in.fault(request) or 200
        try:
            payload = answer() if status == 200 else {"errors": [{"message": f"fault {status}"}]}
        except KeyError as error:
            status, payload = 400, {"errors": [{"message": f"{request}: no {error}"}]}
        data = json.dumps(payload).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
