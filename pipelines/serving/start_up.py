"""What `rtp serve` prints when it is ready: what is served, where, and how to try it."""

from __future__ import annotations

from pipelines.serving.frontend import Frontend
from pipelines.serving.request_format import ServedPolicy
from pipelines.serving.run import Listening

_CLIENT = """\
from openpi_client.websocket_client_policy import WebsocketClientPolicy  # pip install openpi-client

policy = WebsocketClientPolicy("{url}")
print(policy.get_server_metadata()["action_names"])
answer = policy.infer({{"image": frame, "prompt": "{text}"}})  # frame: uint8 (H, W, 3), RGB
answer["actions"][0]"""


def announcement(frontend: Frontend, listening: Listening, source: str) -> str:
    """The text, with a curl line and a Python client for this address."""
    policy = ServedPolicy.of(frontend.service.model)
    address = listening.url()
    text = next(iter(policy.instructions), "open the drawer")
    return "\n".join(
        [
            f"serving {source}, contract {policy.contract.id}, at {address}",
            "",
            f"  {address}/  a page to try it with",
            f"  {listening.url('ws')}/  openpi's websocket clients",
            f"  {listening.url('ws')}/vla  the vla-eval harness",
            f"  {address}/act, {address}/invocations  HTTP",
            f"  {address}/healthz, /readyz, /metrics",
            "",
            *policy.own_part(),
            "",
            "Try it, with a grey frame:",
            "",
            policy.curl(address),
            "",
            "From Python:",
            "",
            _CLIENT.format(url=listening.url("ws"), text=text.replace('"', '\\"')),
        ]
    )
