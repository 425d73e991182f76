"""A Hugging Face hub on this machine with one repository, for the real client."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlparse

from tests.llm_server import serving

ID = "me/pictures"
COMMIT = "a" * 40
Kind = Literal["datasets", "models"]


class Hub(BaseHTTPRequestHandler):
    """Answers what the client asks when it streams or downloads: the commit, folders, files."""

    protocol_version = "HTTP/1.1"
    root: Path
    kind: Kind
    sent: set[str]  # files whose content somebody has got

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Keep the output of tests free of requests."""

    def _answer(self) -> None:
        path = unquote(urlparse(self.path).path)
        about, place = f"/api/{self.kind}/{ID}", "" if self.kind == "models" else f"/{self.kind}"
        tree, files = f"{about}/tree/{COMMIT}", f"{place}/{ID}/resolve/{COMMIT}/"
        if path in {f"{about}/revision/{name}" for name in ("main", COMMIT)}:
            self._send(200, json.dumps({"id": ID, "sha": COMMIT, "siblings": []}).encode())
        elif path.startswith(tree) and (folder := self.root / path[len(tree) + 1 :]).is_dir():
            found = folder.rglob("*") if "recursive=true" in self.path else folder.iterdir()
            self._send(200, json.dumps([self._entry(file) for file in sorted(found)]).encode())
        elif path.startswith(files) and (file := self.root / path[len(files) :]).is_file():
            if self.command == "GET":
                self.sent.add(path[len(files) :])
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
def hub_of(folder: Path, kind: Kind = "datasets") -> Iterator[tuple[str, set[str]]]:
    """Address of a hub whose repository is the content of a folder, and what it has sent of it."""
    sent: set[str] = set()
    handler = type("HubOfFolder", (Hub,), {"root": folder, "kind": kind, "sent": sent})
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as server:
        yield "http://{}:{}".format(*server.server_address), sent
