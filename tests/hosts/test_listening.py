"""What commands listen on while they run on a host that has a network: the loopback, unless they are told otherwise."""

from __future__ import annotations

import contextlib
import ipaddress
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from preprocessing.convert import ConvertConfig, convert
from tests.support.command_line import SAMPLE
from tests.support.hosts import CHECKOUT, Host, hosts, unavailable, until
from tests.support.servers import process

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
STORE, RUN = "stores/metaworld_sample/1.0.0/val", "runs/first"
SHORT_SWEEP = (
    "--data",
    STORE,
    "--validation",
    STORE,
    "--output",
    "runs/sweep",
    "--budget.trials",
    2,
    "--loop.steps",
    2,
)
SHORT_SWEEP += ("--scheduler", "ToTheEnd", "--loop.global-batch", 16)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with a checkout and a small store in its working folder."""
    with hosts(tmp_path_factory.mktemp("alone"), "alone") as made:
        host = made["alone"]
        host.give_checkout()
        shutil.copytree(SAMPLE, host.tmp / "work/sample/1.0.0")
        convert(str(SAMPLE), str(host.tmp / "work/stores"), ConvertConfig(split="val", encoder="hash", workers=0))
        yield host


def rtp(host: Host, *words: object) -> list[str]:
    return host.command(sys.executable, "-m", "pipelines", *words)


@contextlib.contextmanager
def watched(host: Host) -> Iterator[set[tuple[str, int]]]:
    """All sockets that listened on the host at some time within the block."""
    seen, done = set[tuple[str, int]](), threading.Event()

    def look() -> None:
        while not done.wait(0.05):
            seen.update(host.listening())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def outside(seen: set[tuple[str, int]]) -> list[str]:
    """The addresses that another host could reach."""
    addresses = {address for address, _ in seen}
    return sorted(each for each in addresses if not _reduced(each).is_loopback)


def _reduced(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    parsed = ipaddress.ip_address(address)
    return getattr(parsed, "ipv4_mapped", None) or parsed


def run(host: Host, log: Path, *words: object) -> set[tuple[str, int]]:
    """What the command listened on; it ends with exit code 0."""
    environment = host.environment(PYTHONPATH=CHECKOUT)
    with watched(host) as seen, process(rtp(host, *words), environment, log) as started:
        until(lambda: started.poll() is not None, f"rtp {words[0]} has ended", timeout_s=300)
        assert started.returncode == 0, log.read_text()
    return seen


def test_a_training_on_ray_workers(alone: Host, tmp_path: Path) -> None:
    flags = ["--data", STORE, "--output", RUN, "--loop.steps", 2, "--loop.micro-batch", 4]
    seen = run(alone, tmp_path / "log", "train", "rt1_tiny", *flags, "--launch", "RayLaunch", "--launch.num-workers", 2)
    assert len(seen) > 5  # Ray's head, its node, its workers
    assert outside(seen) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("preprocess", "sample/1.0.0", "more", "--split", "train[:20]", "--encoder", "hash"),
        ("tune", "rt1_lr_wd", *SHORT_SWEEP),
        ("evaluate", RUN, "--data", STORE, "--bootstrap-samples", 10),
        ("register", RUN, "--name", "arm"),
        ("inspect", STORE, "--audit"),
        ("doctor",),
    ],
    ids=lambda words: words[0],
)
def test_a_command(words: tuple[object, ...], alone: Host, tmp_path: Path) -> None:
    if RUN in words and not (alone.tmp / "work" / RUN).exists():
        run(alone, tmp_path / "first", "train", "rt1_tiny", "--data", STORE, "--output", RUN, "--loop.steps", 2)
    assert outside(run(alone, tmp_path / "log", *words)) == []


@pytest.mark.slow
@pytest.mark.parametrize("host_flag", ["127.0.0.1", "0.0.0.0"])
def test_a_server_listens_where_it_is_told(host_flag: str, alone: Host, tmp_path: Path) -> None:
    if not (alone.tmp / "work" / RUN).exists():
        run(alone, tmp_path / "first", "train", "rt1_tiny", "--data", STORE, "--output", RUN, "--loop.steps", 2)
    told = [] if host_flag == "127.0.0.1" else ["--host", host_flag]
    environment, log = alone.environment(PYTHONPATH=CHECKOUT), tmp_path / "log"
    with watched(alone) as seen, process(rtp(alone, "serve", RUN, "--port", 8123, *told), environment, log) as started:
        address = "http://127.0.0.1:8123/healthz"
        until(lambda: alone.ask(address) is not None or started.poll() is not None, "the server answers", every_s=1)
        assert started.poll() is None, log.read_text()
    assert (host_flag, 8123) in seen and outside(seen) == ([] if not told else [host_flag])
