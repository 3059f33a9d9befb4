"""What `rtp serve` prints when it is ready: what is served, where, and how to try it."""

from __future__ import annotations

import json

from pipelines.serving.access import TOKEN
from pipelines.serving.frontend import Frontend
from pipelines.serving.recording.config import RecordingConfig
from pipelines.serving.request_format import EXAMPLE_BOX, ServedPolicy
from pipelines.serving.run import Listening
from rt_models.spec import of_role

_CLIENT = """\
{imports}import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy  # pip install openpi-client

policy = WebsocketClientPolicy("{url}"{key})
{frames}
answer = policy.infer({{{sent}, "prompt": {text}}})
print(dict(zip(policy.get_server_metadata()["action_names"], answer["actions"][0])))"""

_PREPROCESS = "rtp preprocess NAME/VERSION STORES --dataset NAME/VERSION/spec.yaml --split train"


def announcement(frontend: Frontend, listening: Listening, source: str) -> str:
    """The text, with a curl line and a Python client for this address."""
    policy = ServedPolicy.of(frontend.service.model)
    address = listening.url()
    wants_token = frontend.access.token is not None
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
            *_recording(frontend.service.config.recording),
            "",
            "Try it, with a grey frame:",
            "",
            policy.curl(address) + (f' -H "Authorization: Bearer ${TOKEN}"' if wants_token else ""),
            "",
            "From Python:",
            "",
            _CLIENT.format(
                url=listening.url("ws"),
                key=f', api_key=os.environ["{TOKEN}"]' if wants_token else "",
                imports="import os\n\n" if wants_token else "",
                text=json.dumps(text, ensure_ascii=False),
                frames="\n".join(_frames(policy)),
                sent=", ".join(_sent(policy)),
            ),
        ]
    )


def _frames(policy: ServedPolicy) -> list[str]:
    """Lines that make a grey frame of each camera that a robot sends."""
    recipes = {role: policy.contract.recipe(role) for role in policy.sent()}
    told = "  # the camera's newest, RGB"
    return [f"{_name(role)} = np.full(({r.height}, {r.width}, 3), 128, np.uint8){told}" for role, r in recipes.items()]


def _sent(policy: ServedPolicy) -> list[str]:
    """The fields of an observation beside the instruction, in Python."""
    fields = [f'"{of_role("image", role)}": {_name(role)}' for role in policy.sent()]
    names, state = [d.name for d in policy.contract.datasets], policy.state()
    fields += [f'"state": {json.dumps(state)}'] if state else []
    fields += [f'"object_box": {EXAMPLE_BOX}'] if policy.reads_object_masks else []
    return fields + ([f'"dataset": "{names[0]}"'] if len(names) > 1 else [])


def _name(role: str) -> str:
    return of_role("frame", role)


def _recording(config: RecordingConfig) -> list[str]:
    if config.record is None:
        return []
    return ["", f"Episodes are recorded in {config.record}; NAME/VERSION of a data set there is read with", _PREPROCESS]
