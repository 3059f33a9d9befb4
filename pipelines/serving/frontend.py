"""What the routes of a server share: the service, who may ask, and which adapter speaks where."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from pipelines.serving.access import Access
from pipelines.serving.adapters.base import Adapter
from pipelines.serving.adapters.openvla import OpenVLA
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

    def adapter_for(self, protocol: Protocol, *, as_array: bool = False) -> Adapter:
        """The one that was chosen; else what the protocol's own clients expect, if the policy commands it: vla-eval's
        seven numbers, and OpenVLA's where /act answers `as_array`, which names nothing. Else all of the policy's."""
        if protocol in self.adapters:
            return self.adapters[protocol]
        if protocol == "vla" and self._fits(VlaEval()):
            return VlaEval()
        if protocol == "act" and as_array and self._fits(OpenVLA()):
            return OpenVLA()
        return Own()

    def _fits(self, adapter: Adapter) -> bool:
        return not any(adapter.missing(space.names) or adapter.misread(space, side) for space, side in self._sides())

    def _sides(self) -> list[tuple[ActionSpec, DatasetContract]]:
        return self.service.model.sides(self.service.config.dataset)

    def greeting(self, protocol: Protocol) -> dict[str, object]:
        service = self.service
        return greeting(service.model, self.adapter_for(protocol), service.config.dataset, service.source)

    def frames_without_a_name(self) -> int:
        """Frames of a robot that an HTTP request without a robot's name continues: where there is one robot, any."""
        return 1 if self.service.config.limits.max_robots == 1 else self.service.model.num_frames
