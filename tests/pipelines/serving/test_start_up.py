"""What `rtp serve` prints when it is ready can be pasted."""

from __future__ import annotations

import sys
import types
from dataclasses import replace

import pytest

from pipelines.serving.access import Access
from pipelines.serving.client import PolicyClient
from pipelines.serving.recording.config import RecordingConfig
from pipelines.serving.run import Listening
from pipelines.serving.start_up import announcement
from tests.support.policy_server import RunningServer


class AsOpenpis(PolicyClient):
    """With the name that openpi's client has for the metadata."""

    def get_server_metadata(self) -> object:
        return self.metadata


def test_the_python_client_runs_as_it_stands(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = types.ModuleType("openpi_client.websocket_client_policy")
    theirs.WebsocketClientPolicy = AsOpenpis  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "openpi_client", types.ModuleType("openpi_client"))
    monkeypatch.setitem(sys.modules, "openpi_client.websocket_client_policy", theirs)
    listening = Listening(port=int(server.address.rpartition(":")[2]))
    _, _, client = announcement(server.frontend, listening, "runs/first").partition("From Python:\n")
    exec(compile(client, "<pasted>", "exec"), {})
    assert "'world_vector_x': " in capsys.readouterr().out


def test_with_a_token_both_send_it(server: RunningServer) -> None:
    """From the environment, so that it stands on no screen."""
    told = announcement(replace(server.frontend, access=Access(token="secret")), Listening(), "runs/first")
    (curl,) = [line for line in told.splitlines() if line.startswith("curl ")]
    assert curl.endswith(' -H "Authorization: Bearer $RTP_SERVE_TOKEN"')
    assert ', api_key=os.environ["RTP_SERVE_TOKEN"])' in told and "secret" not in told


def test_a_server_that_records_says_how_it_is_read(server: RunningServer) -> None:
    assert "rtp preprocess" not in announcement(server.frontend, Listening(), "runs/first")
    config = replace(server.service.config, recording=RecordingConfig(record="recorded"))
    server.service.config, before = config, server.service.config
    told = announcement(server.frontend, Listening(), "runs/first")
    server.service.config = before
    assert "Episodes are recorded in recorded;" in told and "--dataset NAME/VERSION/spec.yaml" in told
