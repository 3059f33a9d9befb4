"""`rtp serve`: a policy answers camera frames and instructions with actions, over HTTP, until stopped.

A registered model runs with the code that it carries, any other one as `rtp register` would register it.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from pipelines.config.arguments import parse
from pipelines.config.compute import Compute
from pipelines.serving.request_format import REQUEST, ServedPolicy
from pipelines.terminal import child_process
from pipelines.tracking.mlflow_run import tracking_uri, with_password

if TYPE_CHECKING:
    from pipelines.publishing.folder import TrainedModel


@dataclass(frozen=True, kw_only=True)
class ServeArguments:
    """Flags of `rtp serve`."""

    model: tyro.conf.Positional[str]
    """The output folder of rtp train, one checkpoint in it, a folder that rtp export or rtp import-weights wrote, or a
    registered model: models:/NAME@ALIAS or models:/NAME/VERSION."""
    host: str = "127.0.0.1"
    """Address to listen on; the default is reachable from this machine only."""
    port: int = 5001
    """TCP port."""
    compute: Annotated[Compute, tyro.conf.arg(name="")] = field(default_factory=Compute)


def main(arguments: list[str]) -> dict[str, Any]:
    """Serve over HTTP (POST /invocations, MLflow's scoring protocol) until stopped."""
    given = parse(ServeArguments, arguments, prog="rtp serve", description=f"{__doc__}\n\n{REQUEST}\n\n{_TRY}")
    _require_free(given.host, given.port)
    given.compute.resolved()
    from pipelines.publishing.inference import InferenceModel  # torch: --help is at once
    from pipelines.publishing.registered import is_registered
    from pipelines.publishing.trained_model import load_trained, with_instructions

    trained = with_instructions(load_trained(given.model))  # so that a wrong name fails here, in one sentence
    policy = ServedPolicy.of(InferenceModel(trained))
    if not _is_loopback(given.host):
        print(f"warning: {_OPEN.format(host=given.host)}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="served-") as scratch:
        model = given.model if is_registered(given.model) else _written(trained, Path(scratch))
        address = f"http://{given.host}:{given.port}"
        print(f"serving {given.model}, contract {trained.contract.id}, at {address}/invocations\n", flush=True)
        print(policy.description(address) + "\n", flush=True)
        server = str(Path(__file__).parent / "publishing/mlflow_server.py")
        command = [sys.executable, "-P", server, model, given.host, str(given.port)]
        environment = os.environ | given.compute.environment()
        environment |= {"MLFLOW_TRACKING_URI": with_password(tracking_uri())}
        return {"exit_code": child_process.run(command, environment)}


def _written(trained: TrainedModel, scratch: Path) -> str:
    """The folder of an MLflow model, which MLflow's server loads without a registry."""
    from pipelines.publishing.mlflow_model import save_mlflow_model

    save_mlflow_model(trained, scratch / "model")
    return str(scratch / "model")


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
