"""A robot's side of openpi's protocol, for replays and benchmarks. It talks to others' servers of the protocol too."""

from __future__ import annotations

from collections.abc import Mapping

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.sync.client import connect

from pipelines.serving.codecs import openpi

Fields = Mapping[str, object]

_ANSWER_S = 120.0


class PolicyClient:
    """One robot. `metadata` is what the server said first.

    Raises ConnectionError where there is no such server, and where it goes away.
    """

    def __init__(self, url: str, *, token: str | None = None) -> None:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        try:
            self._socket = connect(url, compression=None, max_size=None, additional_headers=headers)
            self.metadata: Fields = openpi.unpack(self._binary())
        except (OSError, InvalidHandshake, InvalidURI, ConnectionClosed) as error:
            raise ConnectionError(f"{url}: no policy server answers ({error}): start one with rtp serve") from error

    def infer(self, observation: Fields) -> Fields:
        """The answer. Raises ValueError with the server's words where it refuses."""
        try:
            self._socket.send(openpi.pack(observation))
            return openpi.unpack(self._binary())
        except (ConnectionClosed, TimeoutError) as error:
            raise ConnectionError(f"the policy server has gone away ({error})") from error

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _binary(self) -> bytes:
        answer = self._socket.recv(timeout=_ANSWER_S)
        if isinstance(answer, str):
            raise ValueError(f"the server refuses: {answer}")
        return answer
