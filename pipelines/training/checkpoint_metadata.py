"""What a checkpoint says of its training, in the manifest beside the list of files; checkpoints of version 0.1 too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.storage import Checkpoint
from pipelines.config.serialization import with_present_names
from pipelines.publishing.training_stores import StoreReference, references_json, references_of
from pipelines.training.loop_state import LoopState
from preprocessing.store.json_files import JsonObject
from rt_models.spec import Contract


@dataclass(frozen=True, kw_only=True)
class CheckpointMetadata:
    """The training of a checkpoint and how far it has come. What older checkpoints do not say has a default here.

    experiment: the resolved experiment as plain data (`to_plain`): its model may be of a class that is not here.
    position: `Loader.state()`, the place in the sample order. plans: fingerprint of RT-2's plans.
    best: the value of the metric `loop.best_by`, if it was measured at this step.
    cloned_from: the checkpoint whose copy this is (population-based training).
    """

    experiment: JsonObject
    contract: Contract
    position: Mapping[str, int]
    loop_state: LoopState = field(default_factory=LoopState)
    stores: tuple[StoreReference, ...] = ()
    plans: str | None = None
    world_size: int | None = None
    git_revision: str = "unknown"
    mlflow_run_id: str | None = None
    best: float | None = None
    cloned_from: str | None = None

    @staticmethod
    def of(checkpoint: Checkpoint) -> CheckpointMetadata:
        """Raises ValueError if it is not a checkpoint of rtp train."""
        try:
            return CheckpointMetadata.from_json(checkpoint.metadata)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{checkpoint.path} is no checkpoint of rtp train: give another --output") from error

    @staticmethod
    def from_json(data: JsonObject) -> CheckpointMetadata:
        experiment = with_present_names(data["experiment"])
        return CheckpointMetadata(
            experiment=experiment,
            contract=Contract.from_json(data["contract"]),
            position=data["position"],
            loop_state=LoopState.from_plain(data.get("loop_state", {})),
            stores=tuple(references_of(data)),
            plans=data.get("plans"),
            world_size=data.get("world_size"),
            git_revision=data.get("git_revision", "unknown"),
            mlflow_run_id=data.get("mlflow_run_id"),
            best=data.get(experiment["loop"].get("best_by")),
            cloned_from=data.get("cloned_from"),
        )

    def to_json(self) -> dict[str, object]:
        data: dict[str, object] = {
            "experiment": self.experiment,
            "contract": self.contract.to_json(),
            "contract_id": self.contract.id,
            **({} if self.plans is None else {"plans": self.plans}),
            "position": dict(self.position),
            "loop_state": self.loop_state.to_plain(),
            "world_size": self.world_size,
            "git_revision": self.git_revision,
            "mlflow_run_id": self.mlflow_run_id,
            **references_json(self.stores),
        }
        if self.best is not None:
            data[self.experiment["loop"]["best_by"]] = self.best  # under its name: CheckpointFolder keeps the lowest
        return data if self.cloned_from is None else {**data, "cloned_from": self.cloned_from}
