"""`rtp serve`: a policy answers the camera frames of many robots with actions, until stopped.

One port speaks to clients that robots already have: a websocket at / as openpi's clients want it, another at /vla for
the vla-eval harness, HTTP POST /act for OpenVLA's clients, and POST /invocations for MLflow's. A browser shows a page
at /, Prometheus reads /metrics, /healthz tells that the server lives and /readyz that it takes requests.

Robots share one copy of the weights and are answered together; each has its own history. SIGTERM answers what has been
asked before the server goes.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from cluster.folder_lock import exclusive_output
from pipelines.config.arguments import parse
from pipelines.config.compute import Compute
from pipelines.publishing.object_detection import ObjectDetection
from pipelines.serving.access import TOKEN, Access, host_name
from pipelines.serving.batching_config import BatchingConfig
from pipelines.serving.limits import Limits
from pipelines.serving.recording.config import RecordingConfig
from pipelines.serving.request_format import REQUEST
from pipelines.terminal.commands import JsonSummary

if TYPE_CHECKING:
    from pipelines.publishing.folder import TrainedModel
    from pipelines.serving.service import PolicyService


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
    dataset: str | None = None
    """Of a policy trained on several data sets: the one whose units and scale an answer has where a robot names
    none."""
    other_rate: Literal["refuse", "scale"] = "refuse"
    """What becomes of a robot that says it acts at another rate (control_hz) than was trained: an error, or its
    displacements are scaled by the two rates; places and velocities hold."""
    adapter: str | None = None
    """How robots speak: own (every dimension of the policy), openvla, libero, droid, vla-eval, google_robot,
    widowx_bridge, lerobot, or a YAML file. By default own, and vla-eval's seven numbers at /vla."""
    action_limits: str | None = None
    """YAML file of limits in physical units, such as `world_vector_x: [-0.05, 0.05]`. Values beyond are brought within,
    and named in the answer under `clipped`."""
    plan_tokens: int = 64
    """Of an RT-2 that was trained with plans: tokens of the plan that it says before it acts, which the answer holds as
    `plan`. 0 lets it act at once, as rtp evaluate does; others say none."""
    follow_alias: bool = False
    """With models:/NAME@ALIAS: serve another version when the alias moves. No connection ends; histories begin anew. A
    version whose actions mean something else is not taken."""
    host_names: tuple[str, ...] = ()
    """Names by which the server may be called beside localhost and its address. On the default --host every other name
    is refused, so that no site that a browser here visits can reach the server by a name of its own."""
    token_file: str | None = None
    """File that holds a token which callers must send (Authorization: Bearer TOKEN); so does the environment variable
    RTP_SERVE_TOKEN."""
    tls_certificate: str | None = None
    """PEM file of a certificate chain, for https and wss."""
    tls_key: str | None = None
    """PEM file of the certificate's private key."""
    log_requests: bool = False
    """Log every answer, as a line of JSON without pictures; refusals and errors always are."""
    detection: Annotated[ObjectDetection, tyro.conf.arg(name="")] = field(default_factory=ObjectDetection)
    recording: Annotated[RecordingConfig, tyro.conf.arg(name="")] = field(default_factory=RecordingConfig)
    limits: Annotated[Limits, tyro.conf.arg(name="")] = field(default_factory=Limits)
    batching: Annotated[BatchingConfig, tyro.conf.arg(name="")] = field(default_factory=BatchingConfig)
    compute: Annotated[Compute, tyro.conf.arg(name="")] = field(default_factory=Compute)

    def __post_init__(self) -> None:
        if self.follow_alias and not (self.model.startswith("models:/") and "@" in self.model):
            raise ValueError(f"--follow-alias needs an alias to follow: give models:/NAME@ALIAS, not {self.model}")
        if self.plan_tokens < 0:
            raise ValueError(f"--plan-tokens {self.plan_tokens}: give a number of tokens, 0 or more")


def main(arguments: list[str]) -> JsonSummary:
    """Serve until stopped."""
    given = parse(ServeArguments, arguments, prog="rtp serve", description=f"{__doc__}\n\n{REQUEST}\n\n{_TRY}")
    _require_free(given.host, given.port)
    token = _token(given.token_file)
    given.compute.resolved()
    from pipelines.serving.action_limits import ActionLimits  # torch comes with it: --help is at once
    from pipelines.serving.adapters.catalogue import adapter
    from pipelines.serving.frontend import PROTOCOLS, Frontend
    from pipelines.serving.run import Listening, serve
    from pipelines.serving.server_log import log_as_json
    from pipelines.serving.service import PolicyService, ServiceConfig
    from pipelines.serving.start_up import announcement

    listening = Listening(host=given.host, port=given.port, certificate=given.tls_certificate, key=given.tls_key)
    config = ServiceConfig(
        limits=given.limits,
        batching=given.batching,
        recording=given.recording,
        action_limits=ActionLimits() if given.action_limits is None else ActionLimits.read(given.action_limits),
        compute=given.compute,
        detection=given.detection,
        dataset=given.dataset,
        plan_tokens=given.plan_tokens,
        other_rate=given.other_rate,
    )
    spoken = None if given.adapter is None else adapter(given.adapter)
    service = PolicyService(_loaded(given), config)
    chosen = {} if spoken is None else dict.fromkeys(PROTOCOLS, spoken)
    access = Access(token=token, host_names=_host_names(given))
    frontend = Frontend(service=service, access=access, adapters=chosen, beside=_beside(service, given))
    if not _is_loopback(given.host):
        print(f"warning: {_warning(given.host, token)}", file=sys.stderr)
    log_as_json(each_request=given.log_requests)
    with _alone_in(given.recording):
        serve(frontend, listening, on_ready=lambda: print(announcement(frontend, listening, given.model), flush=True))
    return {"exit_code": 0}


def _alone_in(recording: RecordingConfig) -> AbstractContextManager[None]:
    """No other server records into the folder. Raises BlockingIOError, naming it, if one does."""
    return nullcontext() if recording.record is None else exclusive_output(recording.record)


def _loaded(given: ServeArguments) -> TrainedModel:
    """With --follow-alias, the version that the alias points at now, under that version's name."""
    from pipelines.publishing.registered import version_of
    from pipelines.publishing.trained_model import load_trained, with_instructions

    model = version_of(given.model) if given.follow_alias else given.model
    return with_instructions(load_trained(model, device=given.compute.resolved()))


def _beside(service: PolicyService, given: ServeArguments) -> list[Callable[[], Coroutine[None, None, None]]]:
    from pipelines.publishing.registered import version_of
    from pipelines.publishing.trained_model import load_trained
    from pipelines.serving.hot_swap import AliasFollower

    if not given.follow_alias:
        return []
    load = partial(load_trained, device=given.compute.resolved())
    return [AliasFollower(service=service, version_of=lambda: version_of(given.model), load=load).run]


_TRY = (
    "What it prints when it starts names the policy's own frame size and units, with a curl line and a client to try."
)


def _warning(host: str, token: str | None) -> str:
    if token is None:
        return (
            f"--host {host} lets other machines in, and the server asks nobody for a token: whoever reaches it can use "
            f"the policy. Leave --host out, or give --token-file."
        )
    return f"--host {host} lets other machines in that know the token. Without TLS it is sent in the clear."


def _token(path: str | None) -> str | None:
    """From the file, else from the environment. Raises ValueError for an empty one."""
    if path is None:
        return os.environ.get(TOKEN) or None
    with open(path) as file:
        token = file.read().strip()
    if not token:
        raise ValueError(f"{path} holds no token: write one into it, or leave --token-file out")
    return token


def _host_names(given: ServeArguments) -> tuple[str, ...] | None:
    """In small letters, with --host; None, which is any, where other machines are let in and none is given."""
    names = tuple(host_name(name) for name in given.host_names)
    return (*names, given.host) if names or _is_loopback(given.host) else None


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _require_free(host: str, port: int) -> None:
    """Raise OSError where the server could not listen."""
    if not 0 < port < 2**16:
        raise ValueError(f"--port {port}: a TCP port is from 1 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family):
            pass
    except OSError as error:
        raise OSError(f"cannot listen on {host} port {port} ({error.strerror}): {_remedy(error)}") from error


def _remedy(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another program listens there; stop it, or give another --port"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "give a --port from 1024 on, which needs no rights"
    return "--host is an address of this machine: 127.0.0.1 for itself alone, 0.0.0.0 for others too"
