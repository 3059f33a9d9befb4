"""`rtp serve`: a registered policy answers camera frames and instructions with actions, over HTTP, until stopped."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tyro

from pipelines import child_process
from pipelines.arguments import parse
from pipelines.bundle import DESCRIPTION, TrainedModel, read_bundle
from pipelines.request_format import REQUEST, ServedPolicy
from pipelines.tracking import connect, explained, tracking_uri, with_password

Prediction = dict[str, Any]
Frame = bytes | str | np.ndarray | Sequence[Any]


def fetch_registered(model_uri: str) -> TrainedModel:
    """The bare model behind models:/NAME@ALIAS or models:/NAME/VERSION, to be evaluated rather than asked for actions.

    Raises ConnectionError where the registry does not know it, ValueError for what rtp register has not put there.
    """
    _require_registered(model_uri)
    mlflow = connect(tracking_uri())
    with tempfile.TemporaryDirectory(prefix="registered-") as scratch:
        with explained(tracking_uri()):
            folder = mlflow.artifacts.download_artifacts(artifact_uri=model_uri, dst_path=scratch)
        policy = Path(folder) / "artifacts/policy"
        if not (policy / DESCRIPTION).is_file():
            raise ValueError(f"{model_uri} is not a policy: register it with rtp register")
        return read_bundle(policy)


def _require_registered(model_uri: str) -> None:
    if not model_uri.startswith("models:/"):
        raise ValueError(f"{model_uri} is no registered model: give models:/NAME@ALIAS or models:/NAME/VERSION")


def load_registered(model_uri: str, uri: str | None = None) -> Callable[..., list[Prediction]]:
    """A function (images, instructions, robots=None) -> one row a frame as `RobotPolicy` answers, from the registry."""
    uri = uri or tracking_uri()
    with explained(uri):
        model = connect(uri).pyfunc.load_model(model_uri)

    def predict(
        images: Sequence[Frame], instructions: Sequence[str], robots: Sequence[str] | None = None
    ) -> list[Prediction]:
        columns: dict[str, Any] = {"image": list(images), "instruction": list(instructions)}
        if robots is not None:
            columns["robot"] = list(robots)
        return model.predict(pd.DataFrame(columns)).to_dict("records")

    return predict


@dataclass(frozen=True, kw_only=True)
class ServeArguments:
    """Flags of `rtp serve`."""

    model: tyro.conf.Positional[str]
    """A registered model: models:/NAME@ALIAS or models:/NAME/VERSION."""
    host: str = "127.0.0.1"
    """Address to listen on; the default is reachable from this machine only."""
    port: int = 5001
    """TCP port."""


def main(arguments: list[str]) -> dict[str, Any]:
    """Serve over HTTP (POST /invocations, MLflow's scoring protocol) until stopped."""
    given = parse(ServeArguments, arguments, prog="rtp serve", description=f"{__doc__}\n\n{REQUEST}\n\n{_TRY}")
    _require_registered(given.model)
    _require_free(given.host, given.port)
    trained = fetch_registered(given.model)  # so that a wrong name fails here, in one sentence
    if not _is_loopback(given.host):
        print(f"warning: {_OPEN.format(host=given.host)}", file=sys.stderr)
    address = f"http://{given.host}:{given.port}"
    print(f"serving {given.model}, contract {trained.contract.id}, at {address}/invocations\n", flush=True)
    print(ServedPolicy.of(trained).description(address) + "\n", flush=True)
    server = str(Path(__file__).with_name("policy_server.py"))
    command = [sys.executable, "-P", server, given.model, given.host, str(given.port)]
    environment = os.environ | {"MLFLOW_TRACKING_URI": with_password(tracking_uri())}
    return {"exit_code": child_process.run(command, environment)}


_TRY = "What it prints when it starts names the policy's own frame size and units, and a curl line to try it with."
_OPEN = (
    "--host {host} lets other machines in, and the server asks nobody for a password: whoever reaches it can use the "
    "policy. Leave --host out, and put a proxy that knows its callers before it."
)


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _require_free(host: str, port: int) -> None:
    """Raise OSError where the server could not listen."""
    if not 0 < port < 2**16:
        raise ValueError(f"--port {port}: a TCP port is from 1 to 65535")
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise OSError(f"cannot listen on {host} port {port}: {error.strerror}") from error
