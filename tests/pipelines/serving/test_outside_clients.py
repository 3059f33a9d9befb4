"""Clients that others wrote, in an environment of their own, against our server: PyPI's openpi-client and vla-eval.

`RTP_CLIENTS_PYTHON` names an interpreter that has them already; else they are installed from PyPI into a new one.
"""

from __future__ import annotations

import json
import os
import subprocess
import venv
from pathlib import Path

import pytest

from tests.support.policy_server import RunningServer

PACKAGES = {
    "openpi": (
        ["--no-deps", "openpi-client==0.1.2"],
        ["msgpack", "websockets", "pillow", "dm-tree", "typing_extensions", "numpy"],
    ),
    "vla_eval": (["vla-eval==0.8.0"],),
}

OPENPI = """
import json, sys
import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

url, text = sys.argv[1:]
policy = WebsocketClientPolicy(url)
seen = {"observation/image": np.full((224, 224, 3), 128, np.uint8), "prompt": text}
answers = [policy.infer(seen) for _ in range(3)]
try:
    policy.infer({"prompt": text})
    refusal = ""
except RuntimeError as error:
    refusal = str(error)
again = policy.infer(seen)
step = ActionChunkBroker(WebsocketClientPolicy(url), action_horizon=1).infer(seen)
print(json.dumps({
    "metadata": sorted(policy.get_server_metadata()),
    "shape": answers[0]["actions"].shape,
    "dtype": str(answers[0]["actions"].dtype),
    "frames_seen": [answer["frames_seen"] for answer in [*answers, again]],
    "refusal": refusal,
    "step": step["actions"].shape,
}))
"""

VLA_EVAL = """
import asyncio, json, sys
import numpy as np
from vla_eval.connection import Connection

url, text = sys.argv[1:]


async def episode():
    async with Connection(url) as server:
        await server.start_episode({"task": {"name": "a", "suite": "b", "episode_idx": 0}})
        seen = {"images": {"primary": np.full((64, 64, 3), 128, np.uint8)}, "task_description": text}
        actions = [await server.act(seen) for _ in range(2)]
        await server.end_episode({"metrics": {"success": False}, "steps": 2, "elapsed_sec": 1.0})
    return [np.asarray(action["actions"]).shape for action in actions]


print(json.dumps(asyncio.run(episode())))
"""


def python_with(client: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    ready = os.environ.get("RTP_CLIENTS_PYTHON")
    if ready:
        return ready
    folder = tmp_path_factory.mktemp("clients")
    venv.create(folder, with_pip=True)
    python = str(folder / "bin/python")
    for packages in PACKAGES[client]:
        command = [python, "-m", "pip", "install", "--quiet", *packages]
        installed = subprocess.run(command, capture_output=True, text=True, check=False)
        if installed.returncode:
            pytest.skip(f"{client} cannot be installed from PyPI here: {installed.stderr.strip().splitlines()[-1]}")
    return python


def run(python: str, program: str, *arguments: str, cwd: Path) -> object:
    """What the program prints as JSON in its last line."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=kept, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_openpi_s_client(
    server: RunningServer, text: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    told = run(python_with("openpi", tmp_path_factory), OPENPI, server.websocket, text, cwd=tmp_path)
    assert isinstance(told, dict)
    assert told["shape"] == [1, 11] and told["dtype"] == "float32" and told["step"] == [11]
    assert told["frames_seen"] == [1, 2, 3, 3] and '"field": "image"' in told["refusal"]
    assert {"contract", "action_names", "units", "control_hz", "absent", "images", "encoder"} <= set(told["metadata"])


@pytest.mark.slow
def test_the_vla_eval_harness_s_client(
    server: RunningServer, text: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    python = python_with("vla_eval", tmp_path_factory)
    assert run(python, VLA_EVAL, f"{server.websocket}/vla", text, cwd=tmp_path) == [[7], [7]]
