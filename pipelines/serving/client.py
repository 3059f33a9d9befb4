"""A robot's side of openpi's protocol, for robots, replays and benchmarks. It talks to others' servers of the protocol
too."""

from __future__ import annotations

import time
from collections.abc import Mapping

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection, connect

from pipelines.serving.codecs import openpi

Fields = Mapping[str, object]

_ANSWER_S = 120.0
_LONGEST_PAUSE_S = 2.0
_LOST = (OSError, ConnectionClosed, InvalidHandshake)  # what a server that is away, or comes up, answers with
_REFUSED = (400, 401, 403, 404, 421)  # of a handshake: nothing that passes


class PolicyClient:
    """One robot. `metadata` is what the server said first, the last time that it was connected to.

    Where the server goes away, `infer` connects again for up to `reconnect_s` seconds and asks once more. The new
    connection is a new session: the robot's history begins with this frame, and `reconnects` counts it. 0 tells the
    caller instead. Raises ConnectionError where there is no such server, where it stays away, and where it comes back
    with a policy of another contract, whose actions may mean something else.
    """

    def __init__(self, url: str, *, token: str | None = None, reconnect_s: float = 60.0) -> None:
        self._url, self._reconnect_s, self.reconnects = url, reconnect_s, 0
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        try:
            self._connect()
        except (*_LOST, InvalidURI) as error:
            raise ConnectionError(f"{url}: no policy server answers ({error}): start one with rtp serve") from error

    def infer(self, observation: Fields) -> Fields:
        """The answer. Raises ValueError with the server's words where it refuses."""
        message = openpi.pack(observation)
        try:
            return self._exchanged(message)
        except (ConnectionClosed, TimeoutError) as error:
            self._reconnect(error)
        try:
            return self._exchanged(message)
        except (ConnectionClosed, TimeoutError) as error:
            raise ConnectionError(f"the policy server has gone away again ({error})") from error

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _connect(self) -> None:
        self._socket: ClientConnection = connect(
            self._url, compression=None, max_size=None, additional_headers=self._headers
        )
        self.metadata: Fields = openpi.unpack(self._binary())

    def _reconnect(self, lost: Exception) -> None:
        """Raises ConnectionError where the server does not come back as it was, or no longer lets this robot in."""
        known = self.metadata.get("contract")
        ends, pause_s = time.monotonic() + self._reconnect_s, 0.05
        self._socket.close()
        while time.monotonic() < ends:
            try:
                self._connect()
            except _LOST as error:
                lost = error
                if isinstance(error, InvalidStatus) and error.response.status_code in _REFUSED:
                    break
            else:
                self._require_contract(known)
                self.reconnects += 1
                return
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        raise ConnectionError(f"the policy server has gone away ({lost})") from lost

    def _require_contract(self, known: object) -> None:
        found = self.metadata.get("contract")
        if found != known:
            self._socket.close()
            raise ConnectionError(
                f"the policy server has come back with contract {found}, and it was {known}: its actions may mean "
                f"something else, so connect anew once the robot is set up for them"
            )

    def _exchanged(self, message: bytes) -> Fields:
        self._socket.send(message)
        return openpi.unpack(self._binary())

    def _binary(self) -> bytes:
        answer = self._socket.recv(timeout=_ANSWER_S)
        if isinstance(answer, str):
            raise ValueError(f"the server refuses: {answer}")
        return answer
