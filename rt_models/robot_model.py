"""What every kind of model has: its config builds it, it has an action space, and it computes a loss of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from rt_models.action_space import ActionSpec


class RobotModelConfig(Protocol):
    """A frozen dataclass with all settings of a model."""

    def action_spec(self) -> ActionSpec:
        """The action space of the model."""
        ...

    def build(self) -> RobotModel:
        """The model with fresh parameters, drawn from torch's global generator."""
        ...


class RobotModel(nn.Module):
    """A model that is trained on batches of a loader. `spec` is its action space."""

    config: RobotModelConfig
    spec: ActionSpec

    def __init__(self) -> None:
        super().__init__()
        self.row_losses_B: Tensor | None = None
        """float (B,), detached: what each sample of the batch counted in the last loss."""

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Scalar: the mean over the batch's samples, so that the mean of equal-sized batches is that of all of them."""
        raise NotImplementedError

    def replayable(self, batch: Mapping[str, Tensor]) -> bool:
        """Whether the loss of such a batch and its gradient are kernels alone, among which the host decides nothing:
        then a GPU may replay them as a graph."""
        return False
