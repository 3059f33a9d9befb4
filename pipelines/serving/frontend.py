"""What the routes of a server share: the service, who may ask, and which adapter speaks where."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from pipelines.serving.access import Access
from pipelines.serving.adapters.base import Adapter
from pipelines.serving.adapters.own import Own
from pipelines.serving.adapters.vla_eval import VlaEval
from pipelines.serving.greeting import greeting
from pipelines.serving.service import PolicyService
from rt_models.action_space import ActionSpec
from rt_models.spec import DatasetContract

Protocol = Literal["openpi", "vla", "act"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)


@dataclass(frozen=True, kw_only=True)
class Frontend:
    """One server. `adapters` speak for their protocol, our own for the others."""

    service: PolicyService
    access: Access = field(default_factory=Access)
    adapters: Mapping[Protocol, Adapter] = field(default_factory=dict)
    beside: Sequence[Callable[[], Coroutine[None, None, None]]] = ()
    """What runs for as long as the server does."""

    def __post_init__(self) -> None:
        for adapter in self.adapters.values():
            for space, side in self._sides():
                adapter.require_fitting(space.names)
                if why := adapter.misread(space, side):
                    raise ValueError(f"adapter {type(adapter).__name__} cannot speak for {side.name}: {why}")

    def adapter_for(self, protocol: Protocol) -> Adapter:
        """The one that was chosen; else the harness's own 7-D for vla-eval where the policy has them, and all
        dimensions of the policy elsewhere."""
        if protocol in self.adapters:
            return self.adapters[protocol]
        theirs = VlaEval()
        has_theirs = not any(
            theirs.missing(space.names) or theirs.misread(space, side) for space, side in self._sides()
        )
        return theirs if protocol == "vla" and has_theirs else Own()

    def _sides(self) -> list[tuple[ActionSpec, DatasetContract]]:
        return self.service.model.sides(self.service.config.dataset)

    def greeting(self, protocol: Protocol) -> dict[str, object]:
        service = self.service
        return greeting(service.model, self.adapter_for(protocol), service.config.dataset, service.source)

    def frames_without_a_name(self) -> int:
        """Frames of a robot that an HTTP request without a robot's name continues: where there is one robot, any."""
        return 1 if self.service.config.limits.max_robots == 1 else self.service.model.num_frames
