"""A hub on loopback: one model, served as huggingface.co serves it to its client, and the ways in which it refuses."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
MODEL = "owner/model"
TOKEN = "hf_simulated"
CHUNK = 64 * 1024


@dataclass
class Request:
    """One request that the hub was sent."""

    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class SimulatedHub:
    """The hub's one model, and what it does to those who ask for it."""

    files: dict[str, bytes]
    large: frozenset[str] = frozenset()
    """The files that lie elsewhere, under their sha256, as LFS files do."""
    refusal: tuple[int, str | None] | None = None
    """Status and error code of every answer about a file."""
    cut_after: int | None = None
    """Bytes of a large file after which the connection breaks, each time."""
    hold_after: int | None = None
    """Bytes of a large file after which nothing more comes, until `released`."""
    released: threading.Event = field(default_factory=threading.Event)
    damage: int = 0
    """How many times a large file comes with wrong bytes."""
    token: str | None = None
    """The token that a file is only given to."""
    requests: list[Request] = field(default_factory=list)
    url: str = ""
    cdn: str = ""

    def asked(self, method: str, part: str) -> list[Request]:
        """The requests of a method whose path holds a text."""
        return [request for request in self.requests if request.method == method and part in request.path]


def git_hash(content: bytes) -> str:
    """The hash by which git, and the hub, know a small file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(path: str, content: bytes, large: bool) -> dict[str, object]:
    """A file as the hub lists it."""
    listed: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
    if large:
        listed["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return listed


def handler(hub: SimulatedHub) -> type[http.server.BaseHTTPRequestHandler]:
    """What answers for the hub, and for the place where its large files lie."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
            hub.requests.append(Request(self.command, path, self.headers.get("Range"), token))
            if path.startswith("/cdn/"):
                return self.send_large(path.removeprefix("/cdn/"))
            parts = path.strip("/").split("/")
            if parts[:4] == ["api", "models", *MODEL.split("/")]:
                if parts[5] not in (COMMIT, "main"):
                    return self.refuse(404, "RevisionNotFound")
                if parts[4] == "tree":
                    listed = [entry(name, content, name in hub.large) for name, content in hub.files.items()]
                    return self.send_json(listed)
                return self.send_json({"id": MODEL, "sha": COMMIT, "siblings": []})
            if parts[:3] == [*MODEL.split("/"), "resolve"]:
                return self.send_file(parts[3], "/".join(parts[4:]), token)
            return self.refuse(401, "RepoNotFound")

        def send_file(self, revision: str, name: str, token: str | None) -> None:
            if revision not in (COMMIT, "main"):
                return self.refuse(404, "RevisionNotFound")
            if hub.refusal is not None:
                return self.refuse(*hub.refusal)
            if hub.token is not None and token != hub.token:
                return self.refuse(401, "GatedRepo")
            if name not in hub.files:
                return self.refuse(404, "EntryNotFound")
            content = hub.files[name]
            if name not in hub.large:
                return self.send_content(content, {"ETag": f'"{git_hash(content)}"', "X-Repo-Commit": COMMIT})
            digest = hashlib.sha256(content).hexdigest()
            self.send_response(302)
            for header, value in {
                "Location": f"{hub.cdn}/cdn/{digest}",
                "X-Repo-Commit": COMMIT,
                "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(len(content)),
                "Content-Length": "0",
            }.items():
                self.send_header(header, value)
            self.end_headers()
            return None

        def send_large(self, digest: str) -> None:
            content = next(
                each for name, each in hub.files.items()
                if name in hub.large and hashlib.sha256(each).hexdigest() == digest
            )  # fmt: skip
            if hub.damage and self.command == "GET":
                hub.damage -= 1
                content = bytes(len(content))
            self.send_content(content, {"ETag": f'"{digest}"'}, hub.cut_after)

        def send_content(self, content: bytes, headers: dict[str, str], cut_after: int | None = None) -> None:
            begin = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
            rest = content[begin:]
            self.send_response(206 if begin else 200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(rest)))
            if begin:
                self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # whoever asked was killed, say
                self.send_body(rest, cut_after)

        def send_body(self, rest: bytes, cut_after: int | None) -> None:
            if self.command == "HEAD":
                return
            if cut_after is None and hub.hold_after is not None and len(rest) > hub.hold_after:
                self.wfile.write(rest[: hub.hold_after])
                hub.released.wait(60)
                rest = rest[hub.hold_after :]
            self.wfile.write(rest if cut_after is None else rest[:cut_after])
            if cut_after is not None and len(rest) > cut_after:
                self.close_connection = True

        def send_json(self, content: object) -> None:
            self.send_content(json.dumps(content).encode(), {"Content-Type": "application/json"})

        def refuse(self, status: int, code: str | None) -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    return Handler


@contextlib.contextmanager
def serve(hub: SimulatedHub, address: str = "127.0.0.1") -> Iterator[SimulatedHub]:
    """Let the hub answer at an address of this host; its large files lie behind another port: elsewhere."""
    servers = [http.server.ThreadingHTTPServer((address, 0), handler(hub)) for _ in range(2)]
    threads = [threading.Thread(target=server.serve_forever, daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    hub.url, hub.cdn = (f"http://{address}:{server.server_port}" for server in servers)
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()


def of_folder(folder: Path) -> SimulatedHub:
    """A hub that has a folder's files; its weights are large."""
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
    return SimulatedHub(files, frozenset(name for name in files if name.endswith((".safetensors", ".bin"))))
