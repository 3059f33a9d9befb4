"""The hosts of tests/support/hosts.py: what they share, and what can be done to their cables and their plugs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.support.command_line import REPOSITORY
from tests.support.hosts import Host, hosts, unavailable, until
from tests.support.servers import process

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
PORT = 8000


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host]]:
    """Two hosts; on the second a web server shows its working folder."""
    home = tmp_path_factory.mktemp("pair")
    shared = home / "for-both"
    shared.mkdir()
    with hosts(home, "left", "right", shared=shared) as made, ExitStack() as stack:
        right = made["right"]
        (right.tmp / "work/page").write_text("hello " * 40_000)
        server = right.command(sys.executable, "-m", "http.server", PORT)
        stack.enter_context(process(server, right.environment(), home / "server.log"))
        until(lambda: ("0.0.0.0", PORT) in right.listening(), "the server listens")
        yield made["left"], right


def page(left: Host, right: Host) -> str | None:
    return left.ask(f"http://{right.address}:{PORT}/page")


def test_hosts_share_no_files_no_ports_no_names_and_no_code(pair: tuple[Host, Host]) -> None:
    left, right = pair
    assert page(left, right) is not None and left.listening() == set()
    (left.tmp / "work/mine").touch()
    assert right.run("ls", "/tmp", "/tmp/work").stdout.split() == [
        "/tmp:",
        "home",
        "shared",
        "work",
        "/tmp/work:",
        "page",
    ]
    (left.tmp / "shared").mkdir(exist_ok=True)
    left.run("touch", "/tmp/shared/for-all")
    assert right.run("ls", "/tmp/shared").stdout.split() == ["for-all"]
    assert left.run("ls", left.folder).returncode != 0 and left.run("ls", REPOSITORY / "pipelines").stdout == ""
    names = left.run("bash", "-c", "hostname; getent hosts left; getent hosts right").stdout.split()
    assert names == ["left", "127.0.1.1", "left"]
    looked_for = left.run(sys.executable, "-c", "import numpy, pipelines.cli")
    assert "No module named 'pipelines" in looked_for.stderr and "numpy" not in looked_for.stderr
    assert left.run("touch", "/dev/shm/x").returncode == 0 and right.run("ls", "/dev/shm").stdout == ""
    assert {each.name() for each in left.processes()} <= {"bash", "sleep"}


def test_a_cut_cable_is_silent_and_a_mended_one_goes_on(pair: tuple[Host, Host]) -> None:
    left, right = pair
    right.cut()
    assert left.run("timeout", "1", "bash", "-c", f"echo > /dev/tcp/{right.address}/{PORT}").returncode == 124
    right.mend()
    assert page(left, right) is not None


FETCH = """
import socket, sys, time
began = time.monotonic()
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60) as wire:
    connected = time.monotonic() - began
    wire.sendall(b"GET /page HTTP/1.0\\r\\n\\r\\n")
    answer = b"".join(iter(lambda: wire.recv(65536), b""))
assert answer.endswith(b"hello " * 40_000)
print(connected, time.monotonic() - began)
"""


def test_a_slow_link_delays_and_loses_and_a_limit_holds(pair: tuple[Host, Host]) -> None:
    left, right = pair

    def seconds() -> list[float]:
        """To connect, and for the whole page."""
        done = left.run(sys.executable, "-I", "-S", "-c", FETCH, right.address, PORT)
        assert done.returncode == 0, done.stderr
        return [float(word) for word in done.stdout.split()]

    with right.slow(delay_s=0.2, loss=0.0):
        connected, whole = seconds()
        assert connected >= 0.4 and whole >= 0.8
    with right.slow(delay_s=0.0, loss=0.05):
        seconds()  # whole in spite of it
    with right.slow(delay_s=0.0, loss=1.0):
        lost = left.run("timeout", "1", "bash", "-c", f"echo > /dev/tcp/{right.address}/{PORT}")
    assert lost.returncode == 124
    right.limit("1mbit")
    assert seconds()[1] >= (240_000 - 131_072) * 8 / 1e6  # 128 kB may come in a burst
    right.limit("1gbit")


def test_a_killed_host_is_gone_with_all_its_processes(tmp_path: Path) -> None:
    with hosts(tmp_path, "one", "two") as made:
        one, two = made["one"], made["two"]
        with process(one.command("sleep", "1000"), one.environment(), tmp_path / "sleep.log"):
            until(lambda: [each for each in one.processes() if "1000" in each.cmdline()], "it sleeps")
            sleeping = one.processes()
            one.cut()
            one.kill()
            until(lambda: not [each for each in sleeping if each.is_running()], "all have ended")
        assert two.run("true").returncode == 0


def test_nothing_is_left_when_the_tests_are_killed(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from tests.support.hosts import hosts
with hosts(Path(sys.argv[1]), "one", "two") as made:
    print(made["one"].first, made["two"].first, made["one"].switch, flush=True)
    time.sleep(1000)
"""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    words = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as tests:
        assert tests.stdout is not None
        held = [psutil.Process(int(number)) for number in tests.stdout.readline().split()]
        assert len(held) == 3 and all(each.is_running() for each in held)
        tests.send_signal(signal.SIGKILL)
    until(lambda: not [each for each in held if each.is_running()], "the spaces' processes have ended")
