"""What can be known of a cluster before a job is sent, and that a log is passed on whole, each line once."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from cluster import preflight
from cluster.submit import Jobs, _Log, dashboard_url


@contextlib.contextmanager
def answering(body: bytes, status: int = 200) -> Iterator[str]:
    """A web server that says the same to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def outside_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


def test_a_dead_address_is_named_at_once() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=f"no Ray dashboard answers at http://127.0.0.1:{port}"):
        Jobs(f"127.0.0.1:{port}")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("body", [b"<html>", b"{}", b""])
def test_what_is_no_dashboard_is_named(body: bytes) -> None:
    with answering(body) as address, pytest.raises(ConnectionError, match=f"no Ray dashboard answers at {address}"):
        Jobs(address)


def test_another_ray_version_is_named_with_both() -> None:
    body = json.dumps({"version": "4", "ray_version": "2.9.3", "ray_commit": "x"}).encode()
    with (
        answering(body) as address,
        pytest.raises(ConnectionError, match=rf"runs Ray 2.9.3, here is Ray {ray.__version__}"),
    ):
        Jobs(address)


def test_a_missing_token_is_named() -> None:
    with answering(b"no", status=401) as address, pytest.raises(ConnectionError, match="set RAY_AUTH_MODE=token"):
        Jobs(address)


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("head", "http://head:8265"),
        ("head:80", "http://head:80"),
        ("https://head/", "https://head:8265"),
        ("http://[::1]:9", "http://[::1]:9"),
    ],
)
def test_addresses(address: str, url: str) -> None:
    assert dashboard_url(address) == url


@pytest.mark.parametrize("address", ["ray://head:10001", "http://", "head:port", "head:99999", ""])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="--address"):
        dashboard_url(address)


@given(log=st.text(max_size=60), cuts=st.lists(st.integers(0, 60), max_size=6), width=st.integers(1, 9))
def test_a_log_that_begins_anew_at_every_connection_is_written_once(log: str, cuts: list[int], width: int) -> None:
    written: list[str] = []
    tail = _Log(written.append)
    for end in [*cuts, len(log)]:
        tail.begin()
        for first in range(0, min(end, len(log)), width):
            tail.add(log[first : min(first + width, end)])
    assert "".join(written) == log


def test_preflight_gives_way_to_the_command_where_all_is_alike() -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}.99"
    command = [sys.executable, "-m", "cluster.preflight", f"python={version}", f"ray={ray.__version__}", "--"]
    words = [sys.executable, "-c", "import sys; print('ran', sys.argv[1:]); sys.exit(7)", "a b", "--", "c"]
    root = Path(preflight.__file__).parents[1]
    done = subprocess.run([*command, *words], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, "ran ['a b', '--', 'c']\n")


def test_preflight_says_all_that_differs_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["python=3.99.1", "numpy=0.1", f"ray={ray.__version__}", "no-such-package=1", "--", "false"]
    assert preflight.main(wanted) == preflight.MISMATCH
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "instead of 3.99.1, numpy" in line and "instead of 0.1, no no-such-package: start" in line
    assert "ray" not in line.partition(" has ")[2].partition(":")[0]


def test_preflight_can_be_read_by_an_old_python() -> None:
    import ast

    ast.parse(Path(preflight.__file__).read_text(), feature_version=(3, 8))
