"""Hosts for tests, on this one machine: each has its own network, mount, process, IPC and name spaces.

A host sees the system and the Python environment, but neither this checkout nor another host's files: /tmp, the home
folder, the working folder and /dev/shm are its own, and its ports are, so that all hosts use the same ones. Its
name resolves to 127.0.1.1, as on Debian. A switch, which is a bridge in a network space of its own, connects the hosts:
nothing appears in the machine's own network, and all of it goes when the processes that hold the spaces end.

Delay and loss: tests/support/slow_link.py. Ray, S3 and MLflow on hosts: tests/support/host_cluster.py.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psutil

from tests.support.command_line import REPOSITORY
from tests.support.servers import BIN, process

SUBNET = "10.77.0"
CHECKOUT = "/tmp/checkout"
_SLOW_LINK = Path(__file__).with_name("slow_link.py")
_SPACES = ("--net", "--mount", "--uts", "--ipc", "--pid")
# The first process of a process space inherits all orphans, and takes no signal that it has no handler for.
_REAP = "trap 'kill -KILL -1; exit' TERM; while :; do sleep 1000 & wait $!; done"

# $1 the host's name, $2 its folder, $3 a shared folder or "", then the folders of which the host sees nothing.
_SET_UP = f"""
set -e
name=$1; folder=$2; shared=$3; shift 3
mount --make-rprivate /
for hidden in "$@"; do mount --bind -o ro "$folder/nothing" "$hidden"; done
mount --bind "$folder/hosts" /etc/hosts
mount --bind /dev/null /etc/resolv.conf
mount -t tmpfs -o size=2g tmpfs /dev/shm
if [ -n "$shared" ]; then mkdir "$folder/tmp/shared"; mount --bind "$shared" "$folder/tmp/shared"; fi
mount --rbind "$folder/tmp" /tmp
if [ -d "$folder" ]; then mount -t tmpfs -o ro tmpfs "$folder/../.."; fi
hostname "$name"
ip link set lo up
cd /tmp/work
echo ready
{_REAP}
"""


def unavailable() -> str | None:
    """Why there can be no hosts on this machine; None if there can."""
    lacking = [tool for tool in ("unshare", "nsenter", "ip", "tc", "mount", "bash") if shutil.which(tool) is None]
    if sys.platform != "linux" or lacking:
        return f"hosts need Linux with {', '.join(lacking) or 'namespaces'}"
    if any(path.is_relative_to("/tmp") for path in (REPOSITORY, Path(sys.prefix), Path(sys.prefix).resolve())):
        return "hosts have a /tmp of their own, and this checkout or its Python environment lies there"
    trial = ["unshare", *_SPACES, "--fork", "--mount-proc", "ip", "link", "add", "trial", "type", "veth"]
    done = subprocess.run(trial, capture_output=True, text=True, check=False)
    return f"hosts need namespaces: {done.stderr.strip()}" if done.returncode else None


def until(holds: Callable[[], object], what: str, *, timeout_s: float = 120, every_s: float = 0.1) -> None:
    """Wait until `holds` returns something true. Raises AssertionError with `what` after timeout_s."""
    ends = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < ends, f"{what}: not after {timeout_s:.0f} s"
        time.sleep(every_s)


@dataclass(frozen=True, kw_only=True)
class Host:
    """One host. `first` is the process that its spaces hang on, by this machine's number."""

    name: str
    address: str
    folder: Path
    first: int
    switch: int

    @property
    def tmp(self) -> Path:
        """The host's /tmp, as the tests see it."""
        return self.folder / "tmp"

    def command(self, *words: object) -> list[str]:
        """The words that run a command on this host, in its working folder /tmp/work."""
        return ["nsenter", f"--target={self.first}", *_SPACES, "--wd", "--", *map(str, words)]

    def environment(self, **variables: str) -> dict[str, str]:
        """The environment of a command on this host: little of the tests' own, and `variables`."""
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        own = {"PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/tmp/home"}
        return kept | own | {"OMP_NUM_THREADS": "1"} | variables

    def run(
        self, *words: object, variables: Mapping[str, str] | None = None, timeout_s: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """A command, to its end."""
        environment = self.environment(**(variables or {}))
        options = {"capture_output": True, "text": True, "check": False, "timeout": timeout_s}
        return subprocess.run(self.command(*words), env=environment, **options)

    def ask(self, url: str, *, token: str = "") -> str | None:
        """What answers a GET of this URL on this host; None if nothing does."""
        done = self.run(sys.executable, "-I", "-S", "-c", _GET, url, token, timeout_s=60)
        return done.stdout if done.returncode == 0 else None

    def give_checkout(self) -> None:
        """Put the project's packages into the host's own folder CHECKOUT."""
        for package in REPOSITORY.glob("*/__init__.py"):
            if package.parent.name != "tests":
                target = self.folder / CHECKOUT.lstrip("/") / package.parent.name
                shutil.copytree(package.parent, target, ignore=shutil.ignore_patterns("__pycache__"))

    # --- The network ---

    def cut(self) -> None:
        """Pull the host's cable."""
        _ip(self.switch, "link", "set", "dev", self.name, "down")

    def mend(self) -> None:
        """Plug it in again."""
        _ip(self.switch, "link", "set", "dev", self.name, "up")

    def limit(self, rate: str) -> None:
        """Let no more through the cable in either direction than `rate`, such as 100mbit."""
        for space, device in ((self.first, "eth0"), (self.switch, self.name)):
            words = ["tc", "qdisc", "replace", "dev", device, "root", "tbf", "rate", rate]
            _in_network(space, *words, "burst", "128k", "latency", "200ms")

    @contextlib.contextmanager
    def slow(self, *, delay_s: float, loss: float) -> Iterator[None]:
        """Inside, each frame to or from the host is `delay_s` late, and this share of them is lost."""
        log = self.folder / "slow_link.log"
        words = [sys.executable, "-I", "-S", _SLOW_LINK, self.name, "switch", delay_s, loss]
        with process(["nsenter", f"--target={self.switch}", "--net", "--", *words], os.environ, log) as started:
            until(lambda: "ready" in log.read_text() or started.poll() is not None, "the slow link is ready")
            assert started.poll() is None, log.read_text()
            yield
            assert started.poll() is None, log.read_text()
            _ip(self.switch, "link", "set", "dev", self.name, "master", "switch")
            _ip(self.switch, "link", "delete", "dev", f"{self.name}-side")

    def listening(self) -> set[tuple[str, int]]:
        """Address and port of every TCP socket that listens on this host."""
        rows = [line.split() for kind in ("tcp", "tcp6") for line in self._sockets(kind)]
        return {_address(row[1]) for row in rows if row[3] == "0A"}

    def _sockets(self, kind: str) -> list[str]:
        return Path(f"/proc/{self.first}/net/{kind}").read_text().splitlines()[1:]

    # --- Its processes ---

    def kill(self) -> None:
        """Pull the plug: every process of the host ends at once. With `cut` before, no other host hears of it."""
        _kill(self.first)

    def processes(self) -> list[psutil.Process]:
        """Those of the host's own process space."""
        space = os.readlink(f"/proc/{self.first}/ns/pid")
        found = []
        for each in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if os.readlink(f"/proc/{each.pid}/ns/pid") == space:
                    found.append(each)
        return found

    def cpu_s(self) -> float:
        """Processor time that the host's processes have taken so far, with that of processes which have ended."""
        total = 0.0
        for each in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = each.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total


_KEPT = ("LANG", "LC_ALL", "SHELL", "TERM", "LD_LIBRARY_PATH", "PYENV_ROOT", "PYTHONDONTWRITEBYTECODE")

_GET = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"Authorization": "Bearer " + sys.argv[2]} if sys.argv[2] else {})
try:
    print(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30).read().decode())
except OSError as error:
    sys.exit(str(error))
"""


@contextlib.contextmanager
def hosts(home: Path, *names: str, shared: Path | None = None) -> Iterator[dict[str, Host]]:
    """Hosts of these names, connected by a switch; `home` holds their folders. `shared` is everybody's /tmp/shared."""
    home = home.resolve()
    with contextlib.ExitStack() as stack:
        switch = stack.enter_context(_space(home / "switch.log", ("--net", "--pid"), f"echo ready; {_REAP}"))
        _ip(switch, "link", "add", "switch", "type", "bridge")
        _ip(switch, "link", "set", "switch", "up")
        made = {}
        for number, name in enumerate(names, start=1):
            address = f"{SUBNET}.{number}"
            folder = _folder(home / "hosts" / name, name)
            words = (_SET_UP, name, folder, shared or "", *_hidden())
            first = stack.enter_context(_space(home / f"{name}.log", (*_SPACES, "--mount-proc"), *words))
            made[name] = Host(name=name, address=address, folder=folder, first=first, switch=switch)
            _plug_in(made[name])
        yield made


def _folder(folder: Path, name: str) -> Path:
    for part in ("nothing", "tmp/home", "tmp/work"):
        (folder / part).mkdir(parents=True)
    (folder / "tmp").chmod(0o1777)
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
    return folder


def _hidden() -> list[Path]:
    """The folders of this checkout, and of the one that the environment's editable install points to."""
    roots = {REPOSITORY}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        installed = importlib.metadata.distribution("rt-pipelines").read_text("direct_url.json")
        if installed is not None and "dir_info" in (origin := json.loads(installed)):
            roots.add(Path(unquote(urlsplit(origin["url"]).path)).resolve())
    kept = {path for place in (sys.prefix, sys.base_prefix) for path in (Path(place), *Path(place).resolve().parents)}
    folders = [path for root in sorted(roots) for path in root.iterdir() if path.is_dir() and path.name[0] != "."]
    return [path for path in sorted(folders) if path not in kept]


@contextlib.contextmanager
def _space(log: Path, spaces: Sequence[str], script: str, *arguments: object) -> Iterator[int]:
    """Spaces with a shell as their first process, whose number is returned once it has said that it is ready."""
    log.parent.mkdir(parents=True, exist_ok=True)
    words = ["unshare", *spaces, "--fork", "--kill-child", "--", "bash", "-c", script, "bash", *arguments]
    with process(words, os.environ, log) as started:
        until(lambda: "ready" in log.read_text() or started.poll() is not None, f"{log.stem} is set up")
        children = psutil.Process(started.pid).children()
        assert started.poll() is None and children, log.read_text()
        try:
            yield children[0].pid
        finally:
            _kill(children[0].pid)


def _kill(first: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(first, signal.SIGKILL)


def _plug_in(host: Host) -> None:
    _ip(host.first, "link", "add", "name", "eth0", "type", "veth", "peer", "name", host.name, "netns", host.switch)
    _ip(host.first, "address", "add", f"{host.address}/24", "dev", "eth0")
    _ip(host.first, "link", "set", "eth0", "up")
    _ip(host.switch, "link", "set", "dev", host.name, "master", "switch", "up")


def _ip(space: int, *words: object) -> None:
    _in_network(space, "ip", *words)


def _in_network(space: int, *words: object) -> None:
    command = ["nsenter", f"--target={space}", "--net", "--", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


def _address(text: str) -> tuple[str, int]:
    """Of a row of /proc/net/tcp or tcp6: hexadecimal words of 4 bytes, each in the machine's order, and a port."""
    import ipaddress

    address, port = text.split(":")
    words = [int(address[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(address), 8)]
    return str(ipaddress.ip_address(b"".join(words))), int(port, 16)
