"""A Hugging Face hub on this machine with one data set, for the real client."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

from tests.llm_server import serving

ID = "me/pictures"
COMMIT = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """Answers what `load_dataset` asks when it streams: the commit, folders, parts of files."""

    protocol_version = "HTTP/1.1"
    root: Path

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Keep the output of tests free of requests."""

    def _answer(self) -> None:
        path = unquote(urlparse(self.path).path)
        tree, files = f"/api/datasets/{ID}/tree/{COMMIT}", f"/datasets/{ID}/resolve/{COMMIT}/"
        if path in {f"/api/datasets/{ID}/revision/{name}" for name in ("main", COMMIT)}:
            self._send(200, json.dumps({"id": ID, "sha": COMMIT, "siblings": []}).encode())
        elif path.startswith(tree) and (folder := self.root / path[len(tree) + 1 :]).is_dir():
            found = folder.rglob("*") if "recursive=true" in self.path else folder.iterdir()
            self._send(200, json.dumps([self._entry(file) for file in sorted(found)]).encode())
        elif path.startswith(files) and (file := self.root / path[len(files) :]).is_file():
            self._send_file(file.read_bytes())
        else:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _entry(self, path: Path) -> dict[str, object]:
        kind, size = ("directory", 0) if path.is_dir() else ("file", path.stat().st_size)
        name = path.relative_to(self.root).as_posix()
        return {"type": kind, "path": name, "oid": "0" * 40, "size": size}

    def _send_file(self, content: bytes) -> None:
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if wanted is None:
            return self._send(200, content, headers)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last) + 1]
        place = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        return self._send(206, part, headers | {"Content-Range": place})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@contextmanager
def hub_of(folder: Path) -> Iterator[str]:
    """Address of a hub whose data set is the content of a folder."""
    handler = type("HubOfFolder", (Hub,), {"root": folder})
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as server:
        yield "http://{}:{}".format(*server.server_address)
