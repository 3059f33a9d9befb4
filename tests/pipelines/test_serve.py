"""What `rtp serve` refuses before it listens."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pipelines import serve
from pipelines.cli import main
from tests.support.servers import free_ports


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["runs/first"], "runs/first is not there: give a run's output folder"),
        (["models:/arm@champion", "--prot", "5002"], "rtp serve: there is no option --prot: did you mean '--port'?"),
        (["models:/arm@champion", "--workers", "4"], "rtp serve: there is no option --workers; --help lists them"),
        (["models:/arm@champion", "--env-manager=local"], "rtp serve: there is no option --env-manager; --help"),
        (["models:/arm@champion", "-p", "5002"], "rtp serve: "),
        (["models:/arm@champion", "more"], "rtp serve: "),
        (["models:/arm@champion", "--port", "70000"], "a TCP port is from 1 to 65535"),
        (["models:/arm@champion", "--port", "0"], "a TCP port is from 1 to 65535"),
        (["models:/arm@champion", "--port", "{busy}"], "cannot listen on 127.0.0.1 port"),
        (["models:/arm@champion", "--host", "203.0.113.1"], "cannot listen on 203.0.113.1 port 5001"),
        (["models:/arm@champion", "--port", "{free}", "--adapter", "libro"], "such adapter: did you mean 'libero'?"),
        (["models:/arm@champion", "--port", "{free}", "--tls-key", "key.pem"], "--tls-certificate and --tls-key go"),
        (
            ["models:/arm@champion", "--port", "{free}", "--token-file", "none"],
            "--token-file none: No such file",
        ),
        (
            ["models:/arm@champion", "--port", "{free}", "--action-limits", "none"],
            "--action-limits none: No such file",
        ),
        (["models:/arm@champion", "--max-robots", "0"], "--max-robots 0: give a number above 0"),
        (["models:/arm@champion", "--max-batch", "99"], "--max-batch 99: give a number from 1 to 32"),
        (["models:/arm@champion", "--record", "s3://bucket/x"], "give a folder of this machine"),
        (["models:/arm@champion", "--plan-tokens", "-1"], "--plan-tokens -1: give a number of tokens, 0 or more"),
        (["models:/arm/3", "--follow-alias"], "--follow-alias needs an alias to follow: give models:/NAME@ALIAS"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        ports = {"busy": busy.getsockname()[1], "free": free_ports(1)[0]}
        assert main(["serve", *(word.format(**ports) for word in arguments)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("localhost", True), ("::1", True), ("0.0.0.0", False)],
)
def test_an_address_that_others_reach_is_told_from_one_s_own(host: str, loopback: bool) -> None:
    assert serve._is_loopback(host) == loopback


def test_help_says_what_a_request_holds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        serve.main(["--help"])
    page = " ".join(capsys.readouterr().out.split())
    assert all(word in page for word in ("dataframe_records", "instruction", "stateless", "frames_seen", "curl"))
