"""A small Hugging Face Hub: the addresses that `huggingface_hub` asks for models, in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


class Hub:
    """Repositories with their branches, and every request that came."""

    def __init__(self) -> None:
        self.branches: dict[str, dict[str, str]] = {}
        self.commits: dict[str, Files] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.address = ""

    def commit(self, name: str, files: Files, branch: str = "main") -> str:
        """Make these the files of a branch; returns the commit."""
        seed = repr((len(self.commits), name, branch))
        sha = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[sha] = files
        self.branches.setdefault(name, {})[branch] = sha
        return sha

    def files(self, name: str, branch: str = "main") -> Files:
        return self.commits[self.branches[name][branch]]


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """The hub on a free port of this machine while the context is open."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def answer(self, body: Any, status: int = 200, **headers: str) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def missing(self, code: str) -> None:
            self.answer({"error": code}, 404, X_Error_Code=code)

        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body, path = self.rfile.read(length), unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path))
            for pattern, act in ROUTES:
                if found := re.fullmatch(pattern, f"{self.command} {path}"):
                    return act(self, body, *found.groups())
            return self.answer({"error": f"no such address: {path}"}, 501)

        do_GET = do_HEAD = do_POST = do_PUT = handle_any

        def sha(self, name: str, revision: str) -> str | None:
            if name not in hub.branches:
                self.missing("RepoNotFound")
                return None
            found = hub.branches[name].get(revision, revision)
            if found not in hub.commits:
                self.missing("RevisionNotFound")
                return None
            return found

    def create(at: Handler, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in hub.branches:
            return at.answer({"error": "exists", "url": f"{hub.address}/{name}"}, 409)
        hub.commit(name, {})
        return at.answer({"url": f"{hub.address}/{name}", "name": name})

    def branch(at: Handler, _: bytes, name: str, new: str) -> None:
        hub.branches[name].setdefault(new, hub.branches[name]["main"])
        at.answer({})

    def info(at: Handler, _: bytes, name: str, revision: str | None) -> None:
        if sha := at.sha(name, revision or "main"):
            siblings = [{"rfilename": path} for path in hub.commits[sha]]
            at.answer({"id": name, "modelId": name, "sha": sha, "siblings": siblings})

    def tree(at: Handler, _: bytes, name: str, revision: str) -> None:
        if sha := at.sha(name, revision):
            files = hub.commits[sha].items()
            fixed = {"type": "file", "size": 1}
            at.answer([fixed | {"path": path, "oid": etag(data)} for path, data in files])

    def resolve(at: Handler, _: bytes, name: str, revision: str, path: str) -> None:
        if sha := at.sha(name, revision):
            data = hub.commits[sha].get(path)
            if data is None:
                return at.missing("EntryNotFound")
            at.answer(data, ETag=f'"{etag(data)}"', X_Repo_Commit=sha)
        return None

    def preupload(at: Handler, body: bytes, *_: str) -> None:
        files = [
            {"path": file["path"], "shouldIgnore": False} for file in json.loads(body)["files"]
        ]
        for file in files:
            file["uploadMode"] = "lfs" if file["path"].endswith(".safetensors") else "regular"
        at.answer({"files": files})

    def batch(at: Handler, body: bytes, *_: str) -> None:
        objects = [
            {**item, "actions": {"upload": {"href": f"{hub.address}/blobs/{item['oid']}"}}}
            for item in json.loads(body)["objects"]
        ]
        at.answer({"transfer": "basic", "objects": objects})

    def put(at: Handler, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        hub.blobs[oid] = body
        at.answer({})

    def commit(at: Handler, body: bytes, name: str, revision: str) -> None:
        files = dict(hub.files(name, revision))
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = hub.commit(name, files, revision)
        at.answer({"commitUrl": f"{hub.address}/{name}/commit/{sha}", "commitOid": sha})

    name = r"([\w.-]+/[\w.-]+)"
    ROUTES = [
        (r"POST /api/repos/create", create),
        (r"POST /api/validate-yaml", lambda at, _: at.answer({"errors": [], "warnings": []})),
        (rf"POST /api/models/{name}/branch/(.+)", branch),
        (rf"POST /api/models/{name}/preupload/(.+)", preupload),
        (rf"POST /{name}\.git/info/lfs/objects/batch", batch),
        (rf"POST /api/models/{name}/commit/(.+)", commit),
        (r"PUT /blobs/(\w+)", put),
        (rf"GET /api/models/{name}/tree/([^/]+)", tree),
        (rf"GET /api/models/{name}(?:/revision/(.+))?", info),
        (rf"(?:GET|HEAD) /{name}/resolve/([^/]+)/(.+)", resolve),
    ]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
