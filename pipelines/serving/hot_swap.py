"""A registered model in the place of another while robots are served: when an alias of the registry moves.

The new model is read and warmed up beside the old one, then takes its place between two passes. No connection ends; a
robot's history begins anew, because image tokens of another model mean nothing. A model whose actions mean something
else is not taken.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from pipelines.publishing.folder import TrainedModel
from pipelines.serving.service import PolicyService
from rt_models.action_space import ActionSpec
from rt_models.spec import Contract, DatasetContract

log = logging.getLogger("rtp.serve")


def require_same_meaning(served: Contract, other: Contract) -> None:
    """Raise ValueError where a robot that was told of `served` would misread the actions of `other`."""
    theirs = {dataset.name: dataset for dataset in other.datasets}
    sides: list[tuple[str, object, object]] = [
        ("dimensions", served.action.names, other.action.names),
        ("gripper convention", served.action.gripper, other.action.gripper),
    ]
    for dataset in served.datasets:
        if dataset.name not in theirs:
            raise ValueError(f"the new model was not trained on {dataset.name}, whose robots are served")
        space, here = dataset.acted(served.action)
        their_space, there = theirs[dataset.name].acted(other.action)
        sides += [
            (f"dimensions of {dataset.name}", space.names, their_space.names),
            (f"classes of {dataset.name}", _classes(space), _classes(their_space)),
            (f"gripper convention of {dataset.name}", space.gripper, their_space.gripper),
            (f"units of {dataset.name}", here.units, there.units),
            (f"kinds of action of {dataset.name}", here.kinds, there.kinds),
            (f"dimensions that {dataset.name} has", here.action_mask, there.action_mask),
            (f"control rate of {dataset.name}", here.control_hz, there.control_hz),
            (f"gripper of {dataset.name}", here.gripper or there.gripper, there.gripper or here.gripper),
        ]
        sent, wanted = _cameras(served, dataset), _cameras(other, theirs[dataset.name])
        if further := [role for role in wanted if role not in sent]:
            raise ValueError(f"the new model reads camera {further[0]}, which robots of {dataset.name} need not send")
        felt = None if dataset.state is None else dataset.state.described()
        read = theirs[dataset.name].state
        sides += [] if read is None else [(f"state of {dataset.name}", felt or "none", read.described())]
    if len(other.datasets) > len(served.datasets) == 1:
        raise ValueError("the new model was trained on several data sets, and robots here name none")
    for part, mine, new in sides:
        if mine != new:
            raise ValueError(f"the {part} differ: {mine} is served, the new model has {new}")


def _cameras(contract: Contract, dataset: DatasetContract) -> list[str]:
    """Those beside the main one that a robot of this data set must send."""
    return [recipe.camera for recipe in contract.cameras if recipe.camera not in dataset.without_cameras]


def _classes(space: ActionSpec) -> dict[str, tuple[str, ...]]:
    return {dimension.name: dimension.class_names for dimension in space.dimensions if dimension.discrete}


@dataclass(kw_only=True)
class AliasFollower:
    """Asks every `every_s` seconds which version the alias points at, and serves it.

    `version_of` gives models:/NAME/VERSION, `load` the model of one; both run in threads of their own.
    """

    service: PolicyService
    version_of: Callable[[], str]
    load: Callable[[str], TrainedModel]
    every_s: float = 10.0
    _refused: tuple[str, str] = field(default=("", ""), init=False)

    async def run(self) -> None:
        """Follow until cancelled. While a version cannot be loaded the old one goes on, and it is tried again; one
        whose actions mean something else is not. Each reason is logged once."""
        settled = ""
        while True:
            await asyncio.sleep(self.every_s)
            try:
                version = await asyncio.to_thread(self.version_of)
            except Exception as error:  # the registry is away: what is served is still there
                log.warning("the registry does not answer", extra={"error": " ".join(str(error).split())})
                continue
            if version not in (self.service.source, settled) and await self._is_settled(version):
                settled = version

    async def _is_settled(self, version: str) -> bool:
        """Whether the version is served now, or never will be."""
        try:
            trained = await asyncio.to_thread(self.load, version)
        except Exception as error:  # the registry or its storage is away, or the version is still being written
            self._log_once(version, error)
            return False
        try:
            require_same_meaning(self.service.model.contract, trained.contract)
            await self.service.swap(trained)
            log.info("another version is served", extra={"model": version, "contract": trained.contract.id})
        except Exception as error:
            self._log_once(version, error)
        return True

    def _log_once(self, version: str, error: Exception) -> None:
        reason = " ".join(str(error).split()) or type(error).__name__
        if (version, reason) != self._refused:
            self._refused = version, reason
            extra = {"model": version, "error": reason}
            log.error("the new version is not served, the old one goes on", extra=extra, exc_info=error)
