"""A Hugging Face hub on this machine with few repositories, for the real client."""

import hashlib
import json
from collections.abc import Iterator, Mapping
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
    repositories: Mapping[str, Path]
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
        if not any(self._knows(path, name, root) for name, root in self.repositories.items()):
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _knows(self, path: str, name: str, root: Path) -> bool:
        """Answer, if what is asked for is of this repository."""
        about, place = f"/api/{self.kind}/{name}", "" if self.kind == "models" else f"/{self.kind}"
        tree, files = f"{about}/tree/{COMMIT}", f"{place}/{name}/resolve/{COMMIT}/"
        if path in {f"{about}/revision/{revision}" for revision in ("main", COMMIT)}:
            self._send(200, json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode())
        elif path.startswith(tree) and (folder := root / path[len(tree) + 1 :]).is_dir():
            found = folder.rglob("*") if "recursive=true" in self.path else folder.iterdir()
            listed = [self._entry(file, root) for file in sorted(found)]
            self._send(200, json.dumps(listed).encode())
        elif path.startswith(files) and (file := root / path[len(files) :]).is_file():
            if self.command == "GET":
                self.sent.add(path[len(files) :])
            self._send_file(file.read_bytes())
        else:
            return False
        return True

    def _entry(self, path: Path, root: Path) -> dict[str, object]:
        kind, size = ("directory", 0) if path.is_dir() else ("file", path.stat().st_size)
        name = path.relative_to(root).as_posix()
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
def hub_of(
    content: Path | Mapping[str, Path], kind: Kind = "datasets"
) -> Iterator[tuple[str, set[str]]]:
    """Address of a hub and the files that it has sent; a folder is the content of repository ID."""
    sent: set[str] = set()
    repositories = {ID: content} if isinstance(content, Path) else content
    members = {"repositories": repositories, "kind": kind, "sent": sent}
    handler = type("HubOfFolders", (Hub,), members)
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as server:
        yield "http://{}:{}".format(*server.server_address), sent
