"""A server of a small untrained policy, running in a thread of this process on a port of loopback."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from pipelines.catalogue import load_recipe
from pipelines.publishing.folder import TrainedModel
from pipelines.publishing.instructions import Instructions
from pipelines.publishing.model_origin import ModelOrigin
from pipelines.serving.access import Access
from pipelines.serving.frontend import Frontend
from pipelines.serving.hot_swap import AliasFollower
from pipelines.serving.run import Listening, free_port, in_background
from pipelines.serving.service import PolicyService, ServiceConfig
from pipelines.training.data import resolved, training_contract
from preprocessing.store.episode_store import EpisodeStore


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """A server that answers; `frontend` is its inside."""

    frontend: Frontend
    address: str

    @property
    def service(self) -> PolicyService:
        return self.frontend.service

    @property
    def websocket(self) -> str:
        return self.address.replace("http", "ws", 1)


def untrained(store: EpisodeStore, recipe: str = "rt1_tiny", *, seed: int = 0, **changes: Any) -> TrainedModel:
    """A model with random weights, the same for a seed, under the contract of `store`; `changes` of its config."""
    experiment = load_recipe(recipe)
    experiment = replace(experiment, model=replace(experiment.model, **changes))
    if experiment.co_fine_tuning is not None:  # there are no web data here
        experiment = replace(experiment, co_fine_tuning=replace(experiment.co_fine_tuning, robot_share=1.0))
    experiment = resolved(experiment, [store])
    contract = training_contract(experiment, [store])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = experiment.model.build().eval()
        with torch.no_grad():  # FiLM begins at zero: the instruction would not matter
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return TrainedModel(
        model=model,
        contract=contract,
        step=0,
        source="untrained",
        origin=ModelOrigin(git_revision="none"),
        instructions=Instructions.of_stores(contract.encoder, [store]),
    )


@contextlib.contextmanager
def running(
    trained: TrainedModel,
    config: ServiceConfig | None = None,
    *,
    access: Access | None = None,
    follow: Callable[[PolicyService], AliasFollower] | None = None,
) -> Iterator[RunningServer]:
    """A server of `trained`, which may follow an alias."""
    service = PolicyService(trained, config or ServiceConfig())
    beside = () if follow is None else (follow(service).run,)
    made = Frontend(service=service, access=access or Access(), beside=beside)
    listening = Listening(port=free_port())
    with in_background(made, listening):
        yield RunningServer(frontend=made, address=listening.url())
