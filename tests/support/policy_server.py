"""A server of a small untrained policy, running in a thread of this process on a port of loopback."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.catalogue import load_recipe
from pipelines.publishing.folder import TrainedModel
from pipelines.publishing.instructions import Instructions
from pipelines.serving.frontend import Frontend
from pipelines.serving.run import DrainingServer, Listening, configured
from pipelines.serving.service import PolicyService, ServiceConfig
from pipelines.training.data import training_contract
from preprocessing.store.episode_store import EpisodeStore
from tests.support.servers import free_ports


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """A server that answers; `frontend` is its inside."""

    frontend: Frontend
    address: str
    server: DrainingServer

    @property
    def service(self) -> PolicyService:
        return self.frontend.service

    @property
    def websocket(self) -> str:
        return self.address.replace("http", "ws", 1)


def untrained(store: EpisodeStore, recipe: str = "rt1_tiny") -> TrainedModel:
    """A model with the weights it begins with, under the contract of `store`."""
    experiment = load_recipe(recipe)
    contract = training_contract(experiment, [store])
    return TrainedModel(
        model=experiment.model.build().eval(),
        contract=contract,
        step=0,
        source="untrained",
        metadata={"stores": [], "git_revision": "none"},
        instructions=Instructions.of_stores(contract.encoder, [store]),
    )


@contextlib.contextmanager
def running(trained: TrainedModel, config: ServiceConfig | None = None, **frontend: object) -> Iterator[RunningServer]:
    """A server of `trained`; `frontend` are further fields of `Frontend`."""
    made = Frontend(service=PolicyService(trained, config or ServiceConfig()), **frontend)  # type: ignore[arg-type]
    (port,) = free_ports(1)
    ready = threading.Event()
    listening = Listening(port=port)
    server = DrainingServer(configured(made, listening), made, ready.set)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        ends = time.monotonic() + 120
        while not ready.wait(0.1):
            assert thread.is_alive() and time.monotonic() < ends, "the server does not start"
        yield RunningServer(frontend=made, address=listening.url(), server=server)
    finally:
        server.should_exit = True
        thread.join(30)
