"""Repositories in a folder served as the Hugging Face hub: the part of its API that fsspec's hf:// reads.

`root`/models/OWNER/NAME and `root`/datasets/OWNER/NAME; HF_ENDPOINT leads here, if it is set before
huggingface_hub is imported.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.support.http_server import http_server

COMMIT = "0" * 40


@contextlib.contextmanager
def hub_server(root: Path) -> Iterator[str]:
    class Handler(_Handler):
        folder = root

    with http_server(Handler) as address:
        yield address


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        kind, repository, rest = self._parts()
        paths = [self.folder / kind / repository / path for path in asked.get("paths", [])]
        found = [_entry(path, self.folder / kind / repository) for path in paths if path.exists()]
        self._answer(200 if rest[:1] == ["paths-info"] else 404, json.dumps(found).encode())

    def do_GET(self) -> None:
        kind, repository, rest = self._parts()
        place = self.folder / kind / repository
        if not place.is_dir():
            self._answer(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        elif rest[:1] == ["resolve"]:
            self._file(place / "/".join(rest[2:]))
        elif rest[:1] == ["tree"]:
            below = place / "/".join(rest[2:])
            if not below.is_dir():
                self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
                return
            entries = sorted(below.rglob("*") if "recursive=True" in self.path else below.iterdir())
            self._answer(200, json.dumps([_entry(path, place) for path in entries]).encode())
        elif rest[:1] == ["refs"]:
            branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": COMMIT}
            self._answer(200, json.dumps({"branches": [branch], "tags": [], "converts": []}).encode())
        else:
            self._answer(200, json.dumps({"id": repository, "sha": COMMIT, "siblings": []}).encode())

    def _parts(self) -> tuple[str, str, list[str]]:
        words = [unquote(word) for word in urlsplit(self.path).path.strip("/").split("/")]
        words = words[1:] if words[0] == "api" else words
        kind = words.pop(0) if words[0] in ("models", "datasets") else "models"
        return kind, "/".join(words[:2]), words[2:]

    def _file(self, path: Path) -> None:
        if not path.is_file():
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        blob = path.read_bytes()
        head = {"ETag": f'"{hashlib.sha1(blob).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if wanted is None:
            self._answer(200, blob, head)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = blob[int(first) : int(last) + 1 if last else None]
        head["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(blob)}"
        self._answer(206, part, head)

    def _answer(self, status: int, body: bytes, head: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (head or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _entry(path: Path, repository: Path) -> dict[str, Any]:
    name = path.relative_to(repository).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": COMMIT, "size": 0}
    blob = path.read_bytes()
    return {"type": "file", "path": name, "oid": hashlib.sha1(blob).hexdigest(), "size": len(blob)}
