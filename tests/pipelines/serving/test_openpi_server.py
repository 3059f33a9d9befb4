"""Our client against PyPI's openpi-server 0.1.0, which packs and unpacks with openpi's own code.

It is not among the dependencies (openpi-client asks for NumPy below 2, and works with 2 all the same):

    pip install --no-deps --target FOLDER openpi-server==0.1.0 openpi-client==0.1.2    and FOLDER in PYTHONPATH
"""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pipelines.serving.client import PolicyClient
from pipelines.serving.run import free_port

if importlib.util.find_spec("openpi_server") is None:
    pytest.skip("openpi-server is not installed here (see this file)", allow_module_level=True)

ARRAYS = {
    "image": np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3),
    "turned": np.arange(24, dtype=np.uint8).reshape(2, 3, 4).transpose(2, 0, 1),
    "state": np.array([0.1, -2.5, np.nan], np.float32),
    "wide": np.array([[1e300, -0.0]]),
    "steps": np.array([1, -(2**40)]),
    "marks": np.array([True, False]),
    "none": np.zeros((0, 7), np.float32),
    "alone": np.array(3.5, np.float32),
    "half": np.array([1.5], np.float16),
}


class Echo:
    """A policy that answers with what it was shown, or fails where it is asked to."""

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        if observation.get("prompt") == "fail":
            raise KeyError("joint_position")
        dtypes = {name: value.dtype.str for name, value in observation.items() if isinstance(value, np.ndarray)}
        return {"echo": observation, "dtypes": dtypes, "actions": np.zeros((10, 7)), "count": np.float32(0.25)}

    def reset(self) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    from openpi_server import WebsocketPolicyServer  # type: ignore[import-not-found]

    port = free_port()
    server = WebsocketPolicyServer(Echo(), host="127.0.0.1", port=port, metadata={"reset_pose": [0.0, 1.5]})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        try:
            PolicyClient(f"ws://127.0.0.1:{port}").close()
            break
        except ConnectionError:
            time.sleep(0.05)
    yield f"ws://127.0.0.1:{port}"


def test_every_kind_of_value_arrives_and_comes_back(address: str) -> None:
    plain = {"prompt": "öffne die Lade", "nested": {"cam_high": [1, 2.5, None, True]}, "empty": {}}
    with PolicyClient(address) as client:
        assert client.metadata == {"reset_pose": [0.0, 1.5]}
        for _ in range(3):
            answer: dict[str, Any] = dict(client.infer({**ARRAYS, **plain}))
            for name, sent in ARRAYS.items():
                np.testing.assert_array_equal(answer["echo"][name], sent)
                assert answer["dtypes"][name] == answer["echo"][name].dtype.str == sent.dtype.str
            assert {name: answer["echo"][name] for name in plain} == plain
            assert answer["actions"].shape == (10, 7) and answer["count"] == 0.25
            assert answer["server_timing"]["infer_ms"] >= 0


def test_its_errors_are_told_and_the_robot_goes_on(address: str) -> None:
    """The reference server sends its traceback and closes the connection: our client opens another."""
    with PolicyClient(address) as client:
        with pytest.raises(ValueError, match="KeyError: 'joint_position'"):
            client.infer({"prompt": "fail"})
        assert client.infer({"prompt": "go on"})["echo"] == {"prompt": "go on"}
        assert client.reconnects == 1
