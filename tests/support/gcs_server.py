"""A folder served as Google Cloud Storage: the part of its JSON API that reads, for clients without an account.

`STORAGE_EMULATOR_HOST` sends gcsfs here; a bucket is a folder below `root`. A request with credentials is refused.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.http_server import http_server


@contextlib.contextmanager
def gcs_server(root: Path) -> Iterator[str]:
    """The address to give as STORAGE_EMULATOR_HOST."""

    class Handler(_Handler):
        folder = root

    with http_server(Handler) as address:
        yield address


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path

    def do_GET(self) -> None:
        if "Authorization" in self.headers:
            self._answer(403, b"this bucket is read without an account")
            return
        url = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        parts = url.path.strip("/").removeprefix("download/").split("/")  # storage/v1/b/BUCKET[/o[/OBJECT]]
        bucket = self.folder / unquote(parts[3])
        if len(parts) == 4:
            self._answer(200 if bucket.is_dir() else 404, json.dumps({"name": parts[3]}).encode())
        elif len(parts) == 5:
            self._answer(200, json.dumps(_listing(bucket, asked)).encode())
        elif not (bucket / unquote(parts[5])).is_file():
            self._answer(404, b"{}")
        elif asked.get("alt") == "media":
            self._content((bucket / unquote(parts[5])).read_bytes())
        else:
            self._answer(200, json.dumps(_described(bucket, bucket / unquote(parts[5]))).encode())

    def _content(self, blob: bytes) -> None:
        wanted = self.headers.get("Range")
        if wanted is None:
            self._answer(200, blob)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = blob[int(first) : int(last) + 1 if last else None]
        self._answer(206 if part else 416, part)

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _listing(bucket: Path, asked: dict[str, str]) -> dict[str, Any]:
    prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter")
    files = [Path(folder, name) for folder, _, names in os.walk(bucket) for name in names]
    names = sorted(name for path in files if (name := path.relative_to(bucket).as_posix()).startswith(prefix))
    if delimiter is None:
        return {"items": [_described(bucket, bucket / name) for name in names]}
    inside = {name: name[len(prefix) :].partition(delimiter) for name in names}
    folders = sorted({prefix + part + delimiter for part, found, _ in inside.values() if found})
    items = [_described(bucket, bucket / name) for name, (_, found, _) in inside.items() if not found]
    return {"items": items, "prefixes": folders}


def _described(bucket: Path, path: Path) -> dict[str, Any]:
    return {
        "name": path.relative_to(bucket).as_posix(),
        "bucket": bucket.name,
        "size": str(path.stat().st_size),
        "generation": "1",
        "timeCreated": "2026-01-01T00:00:00.000Z",
        "updated": "2026-01-01T00:00:00.000Z",
    }
