"""What `rtp serve` refuses before it listens."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pipelines.cli import main


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["runs/first"], "runs/first is no registered model: give models:/NAME@ALIAS"),
        (["models:/arm@champion", "--port", "70000"], "a TCP port is from 1 to 65535"),
        (["models:/arm@champion", "--port", "0"], "a TCP port is from 1 to 65535"),
        (["models:/arm@champion", "--port", "{busy}"], "cannot listen on 127.0.0.1 port"),
        (["models:/arm@champion", "--host", "203.0.113.1"], "cannot listen on 203.0.113.1 port 5001"),
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
        assert main(["serve", *(word.format(busy=busy.getsockname()[1]) for word in arguments)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line and list(tmp_path.iterdir()) == []
