"""A Hub of our own on loopback: the endpoints and headers of the real one, and every way to break.

    with serve_hub() as hub:
        hub.push("org/model", {"config.json": b"{}", "model.safetensors": data})
        hub.faults.append(Fault("503", path="*.safetensors", n_times=2, retry_after="1"))
        HfApi(endpoint=hub.endpoint).model_info("org/model")

Files of LARGE_BYTES and more, and those that end in .safetensors or .gguf, are "large" as the
Hub's are: they have a sha256 and are answered by a redirect to another origin. `hub.served` says
which bytes were sent to whom.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import quote

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

LARGE_BYTES = 10 << 20
SEND_BYTES = 256 << 10

FAULTS = (
    "whole",  # 200 and the whole file, the range ignored
    "shifted range",  # 206 with the range after the one asked for, and it says so
    "shifted bytes",  # 206 that claims the right range and sends the one after it
    "short range",  # 206 with less than was asked for, and it says so
    "other total",  # 206 of a file that is a byte longer
    "no content range",
    "garbled content range",
    "gzip",
    "416", "404", "401", "403", "429", "500", "503",
    "cut",  # the body ends early, and the connection with it
    "reset",  # the connection is reset in the middle of the body
    "hang up",  # the connection is reset before any answer
    "stall",  # half of the body, then silence
    "drip",  # a byte now and then
    "corrupt",  # one byte is another
    "other etag", "other size",
    "redirect loop", "redirect nowhere",
    "expired",  # where the Hub sends us lets nobody in
)  # fmt: skip


@dataclass
class Fault:
    """One way to break, for some requests of files."""

    kind: str
    path: str = "*"
    """Pattern of the file's path in its repository."""
    at_byte: int | None = None
    """Only for ranges with this byte in them; None is any."""
    n_times: int = 1
    """How many requests it hits; -1 is all."""
    retry_after: str = ""


@dataclass
class Served:
    """One request for a file, and what was sent."""

    path: str
    range: str
    method: str
    port: int
    authorization: str
    start: int = 0
    n_bytes: int = 0
    """Bytes of the body handed to the connection, right or wrong."""
    fault: str = ""


@dataclass
class HubRepo:
    """A repository: its commits, and where its branches point."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    gated_to: set[str] | None = None
    """Tokens that are let in to a gated repository; None for an open one."""
    siblings: list[dict[str, Any]] = field(default_factory=list)
    """Further entries of the list of files, as hostile as wanted."""
    description: dict[str, Any] = field(default_factory=dict)
    """Keys of the description that are to be other than they should."""


@dataclass
class Hub:
    """A running Hub."""

    ports: tuple[int, int] = (0, 0)
    """Of the Hub, and of the other origin that holds the large files."""
    repos: dict[str, HubRepo] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    api_statuses: list[tuple[int, Mapping[str, str]]] = field(default_factory=list)
    """Answers to the next requests about repositories: status and headers."""
    served: list[Served] = field(default_factory=list)
    api_calls: list[str] = field(default_factory=list)
    pause_s: float = 0.0
    """Between two sends of a body."""
    send_bytes: int = SEND_BYTES
    redirects: bool = True
    """False answers large files from the Hub itself."""

    @property
    def endpoint(self) -> str:
        """Address of the Hub."""
        return f"http://127.0.0.1:{self.ports[0]}"

    def push(self, name: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Make a commit of these files the head of a branch; returns its hash."""
        repo = self.repos.setdefault(name, HubRepo())
        seed = "".join(f"{path} {sha256(data)}\n" for path, data in sorted(files.items()))
        commit = hashlib.sha1(f"{name} {len(repo.commits)} {seed}".encode()).hexdigest()
        repo.commits[commit] = dict(files)
        repo.branches[branch] = commit
        return commit

    def count_bytes(self, path: str = "*") -> int:
        """Bytes of bodies sent for files whose path matches."""
        return sum(entry.n_bytes for entry in self.served if fnmatchcase(entry.path, path))

    def take_fault(self, path: str, start: int, stop: int) -> Fault | None:
        """The fault that hits this request, one of its times used up."""
        for fault in self.faults:
            within = fault.at_byte is None or start <= fault.at_byte < stop
            if fault.n_times and within and fnmatchcase(path, fault.path):
                fault.n_times -= 1
                return fault
        return None


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(path: str, data: bytes) -> bool:
    return len(data) >= LARGE_BYTES or path.endswith((".safetensors", ".gguf"))


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Run a Hub in a thread of this process."""
    sockets = [_listen(), _listen()]
    hub = Hub(ports=(sockets[0].getsockname()[1], sockets[1].getsockname()[1]))
    config = uvicorn.Config(
        make_app(hub), log_level="critical", lifespan="off", timeout_graceful_shutdown=1,
        http="h11", loop="asyncio",
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=(sockets,), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.002)
    try:
        yield hub
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(10)


def _listen() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener


def make_app(hub: Hub) -> Any:
    """Build the ASGI application; it keeps the connection at hand so that it can be broken."""
    routes = [
        Route("/api/models/{org}/{name}", _describe),
        Route("/api/models/{org}/{name}/revision/{revision:path}", _describe),
        Route("/api/models/{org}/{name}/tree/{revision}", _list_tree),
        Route("/{org}/{name}/resolve/{revision}/{path:path}", _resolve, methods=["GET", "HEAD"]),
        Route("/large/{org}/{name}/{commit}/{path:path}", _send_large),
    ]
    starlette = Starlette(routes=routes)
    starlette.state.hub = hub

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["transport"] = getattr(getattr(send, "__self__", None), "transport", None)
        await starlette(scope, receive, send)

    return app


def _find(request: Request) -> tuple[Hub, str, HubRepo | None]:
    hub: Hub = request.app.state.hub
    name = f"{request.path_params['org']}/{request.path_params['name']}"
    return hub, name, hub.repos.get(name)


def _find_commit(repo: HubRepo, revision: str) -> str | None:
    return revision if revision in repo.commits else repo.branches.get(revision)


def _refuse(status: int, code: str) -> Response:
    return Response(status_code=status, headers={"X-Error-Code": code, "X-Error-Message": code})


async def _describe(request: Request) -> Response:
    hub, name, repo = _find(request)
    hub.api_calls.append(request.url.path)
    if hub.api_statuses:
        status, headers = hub.api_statuses.pop(0)
        return Response(status_code=status, headers=dict(headers))
    if repo is None:
        return _refuse(404, "RepoNotFound")
    commit = _find_commit(repo, request.path_params.get("revision", "main"))
    if commit is None:
        return _refuse(404, "RevisionNotFound")
    siblings = [_list_sibling(path, data) for path, data in repo.commits[commit].items()]
    return JSONResponse({
        "id": name, "sha": commit, "private": False, "tags": [], "downloads": 0, "likes": 0,
        "gated": "manual" if repo.gated_to is not None else False,
        "cardData": repo.card, "siblings": siblings + repo.siblings, **repo.description,
    })  # fmt: skip


def _list_sibling(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": git_sha1(data)}
    if is_large(path, data):
        entry["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 135}
    return entry


async def _list_tree(request: Request) -> Response:
    hub, _, repo = _find(request)
    hub.api_calls.append(request.url.path)
    commit = _find_commit(repo, request.path_params["revision"]) if repo else None
    if repo is None or commit is None:
        return _refuse(404, "RevisionNotFound")
    entries = []
    for path, data in repo.commits[commit].items():
        entry = {"type": "file", "path": path, "size": len(data), "oid": git_sha1(data)}
        if is_large(path, data):
            entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 135}
        entries.append(entry)
    return JSONResponse(entries)


async def _resolve(request: Request) -> Response:
    hub, name, repo = _find(request)
    path, revision = request.path_params["path"], request.path_params["revision"]
    commit = _find_commit(repo, revision) if repo else None
    if repo is None or commit is None:
        return _refuse(404, "RevisionNotFound")
    token = request.headers.get("authorization", "").removeprefix("Bearer ")
    if repo.gated_to is not None and token not in repo.gated_to:
        return _refuse(403 if token else 401, "GatedRepo")
    data = repo.commits[commit].get(path)
    if data is None:
        return _refuse(404, "EntryNotFound")
    large = is_large(path, data)
    identity = sha256(data) if large else git_sha1(data)
    headers = {"X-Repo-Commit": commit, "ETag": f'"{identity}"', "Accept-Ranges": "bytes"}
    if not (large and hub.redirects):
        return _send(request, path, data, headers)
    # A fault of the Hub's own redirect; all others are those of the other origin.
    hit = next((f for f in hub.faults if f.kind in _OF_REDIRECTS and f.n_times), None)
    kind = hit.kind if hit and hub.take_fault(path, 0, len(data)) is hit else ""
    headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{identity}"'}
    other = f"http://127.0.0.1:{hub.ports[1]}/large/{name}/{commit}/{quote(path)}?signature=1"
    headers["Location"] = other
    if kind == "other etag":
        headers["X-Linked-Etag"] = f'"{"0" * 64}"'
    elif kind == "other size":
        headers["X-Linked-Size"] = str(len(data) + 1)
    elif kind == "redirect loop":
        headers["Location"] = str(request.url)
    elif kind == "redirect nowhere":
        headers["Location"] = "file:///etc/passwd"
    hub.served.append(_note(request, path, fault=kind))
    return Response(status_code=302, headers=headers)


_OF_REDIRECTS = ("other etag", "other size", "redirect loop", "redirect nowhere")


async def _send_large(request: Request) -> Response:
    _, _, repo = _find(request)
    path = request.path_params["path"]
    assert repo is not None
    data = repo.commits[request.path_params["commit"]][path]
    return _send(request, path, data, {"ETag": '"of-the-storage"', "Accept-Ranges": "bytes"})


def _note(request: Request, path: str, **keys: Any) -> Served:
    return Served(
        path=path, range=request.headers.get("range", ""), method=request.method,
        port=request.scope["server"][1], authorization=request.headers.get("authorization", ""),
        **keys,
    )  # fmt: skip


def _read_range(request: Request, size: int) -> tuple[int, int]:
    text = request.headers.get("range", "")
    if not text:
        return 0, size
    first, _, last = text.removeprefix("bytes=").partition("-")
    return int(first), min(int(last) + 1 if last else size, size)


def _send(request: Request, path: str, data: bytes, headers: dict[str, str]) -> Response:
    """Answer with a range of a file, or break."""
    hub: Hub = request.app.state.hub
    start, stop = _read_range(request, len(data))
    fault = hub.take_fault(path, start, stop) if request.method == "GET" else None
    kind = fault.kind if fault else ""
    note = _note(request, path, start=start, fault=kind)
    hub.served.append(note)
    if fault and kind.isdecimal():
        extra = {"Retry-After": fault.retry_after} if fault.retry_after else {}
        return Response(status_code=int(kind), headers=extra)
    if kind == "expired":
        return Response(status_code=403)
    status = 206 if "range" in request.headers else 200
    body = data[start:stop]
    shown = (start, stop, len(data))
    if kind == "whole":
        status, body, note.start = 200, data, 0
    elif kind in ("shifted range", "shifted bytes"):
        body = data[start + 1 : stop + 1].ljust(len(body), b"\0")
        shown = (start + 1, stop + 1, len(data)) if kind == "shifted range" else shown
    elif kind == "short range":
        body = body[: len(body) // 2]
        shown = (start, start + len(body), len(data))
    elif kind == "other total":
        shown = (start, stop, len(data) + 1)
    elif kind == "gzip":
        body = gzip.compress(body)
        headers = headers | {"Content-Encoding": "gzip"}
    elif kind == "corrupt" and body:
        at = (fault.at_byte or start) - start if fault else 0
        body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
    elif kind == "other etag":
        headers = headers | {"ETag": f'"{"0" * 40}"'}
    if status == 206 and kind != "no content range":
        headers = headers | {"Content-Range": f"bytes {shown[0]}-{shown[1] - 1}/{shown[2]}"}
        if kind == "garbled content range":
            headers["Content-Range"] = "bytes */some"
    headers = headers | {"Content-Length": str(len(body))}
    if request.method == "HEAD":
        return Response(status_code=200, headers=headers)
    stream = _stream_body(hub, request.scope["transport"], body, note)
    return StreamingResponse(stream, status, headers, media_type="application/octet-stream")


async def _stream_body(hub: Hub, transport: Any, body: bytes, note: Served) -> AsyncIterator[bytes]:
    kind = note.fault
    if kind == "hang up":
        _reset(transport)
        return
    whole = len(body)
    if kind in ("cut", "reset", "stall", "drip"):
        body = body[: whole // 2]
    for start in range(0, len(body), 1 if kind == "drip" else hub.send_bytes):
        block = body[start : start + (1 if kind == "drip" else hub.send_bytes)]
        note.n_bytes += len(block)
        yield block
        if hub.pause_s or kind == "drip":
            await asyncio.sleep(hub.pause_s or 0.01)
    if kind == "reset":
        _reset(transport)
    elif kind == "cut":
        transport.close()
    elif kind == "stall":
        while not transport.is_closing():
            await asyncio.sleep(0.01)


def _reset(transport: Any) -> None:
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
