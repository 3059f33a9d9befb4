"""An action as it leaves a policy: physical, neutral where the dataset has no such dimension, classes by name.

Axes: R robots, A actions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rt_models.action_space import ActionSpec
from rt_models.action_tokens import encode
from rt_models.spec import DatasetContract


@dataclass(frozen=True, kw_only=True)
class Action:
    """What to do now, dimensions in the order of the model's `spec.names`; of all R robots where there are several."""

    values: np.ndarray
    """float32 (A,) or (R, A): physical values where the policy has a dataset, else model values. NaN in an absent
    dimension that has no neutral value. Of a dataset that was mapped into the model's space, in its own space."""
    tokens: np.ndarray
    """int64 (A,) or (R, A): the bins chosen, in the model's space."""
    frames_seen: np.ndarray
    """int64 () or (R,): camera frames that the answer rests on, this one included."""
    absent: tuple[str, ...] = ()
    """Dimensions that the model was never trained on: their values are neutral, not the model's."""
    classes: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Names () or (R,) of the class dimensions, such as {"terminate_episode": "arm"}; not of one that is absent and has
    no neutral class."""
    plans: tuple[str, ...] = ()
    """What the model said before the action, one text a robot; empty where it was asked for none."""


class ActionOutlet:
    """Makes the tokens of a policy an action of one dataset, or leaves model values where there is none.

    `answered` are the dimensions that the model answers in, by default all. Raises ValueError for another number of
    dimensions.
    """

    def __init__(
        self, spec: ActionSpec, dataset: DatasetContract | None, answered: Sequence[bool] | None = None
    ) -> None:
        if dataset is not None and len(dataset.transform.scale) != spec.size:
            raise ValueError(
                f"dataset {dataset.name} has {len(dataset.transform.scale)} dimensions, the model acts in {spec.size}"
            )
        if dataset is not None and answered is not None:
            dataset = dataset.answered_in(answered)
        self._spec, self._dataset = spec, dataset
        self._absent_A = np.zeros(spec.size, bool) if dataset is None else ~np.array(dataset.action_mask)
        self._own = None if dataset is None else dataset.own
        self._said, said_A = spec, ~self._absent_A  # the space of the answer, and what of it is the model's
        if self._own is not None:
            self._said = self._own.action
            said_A = self._own.arrays(spec).mask_back(said_A, self._said.size)
        self.absent = tuple(name for name, is_said in zip(self._said.names, said_A, strict=True) if not is_said)
        """Dimensions of the answer that are not the model's."""
        self._said_A = said_A
        named = [(place, d) for place, d in enumerate(self._said.dimensions) if d.class_names]
        self._class_names = [(place, d.name, np.array(d.class_names)) for place, d in named]
        self._neutral_tokens_A = None if dataset is None else self._neutral_tokens(dataset)  # once: robots share this

    def tokens(self, tokens_RA: Tensor) -> Tensor:
        """The tokens chosen, with the neutral value's in absent dimensions, as training shows them; where no value is
        neutral, that of the 0 that conversion writes."""
        if self._neutral_tokens_A is None:
            return tokens_RA
        absent_A = torch.from_numpy(self._absent_A).to(tokens_RA.device)
        return torch.where(absent_A, self._neutral_tokens_A.to(tokens_RA), tokens_RA)

    def _neutral_tokens(self, dataset: DatasetContract) -> Tensor:
        """int64 (A,), of the absent dimensions."""
        neutral_A = np.nan_to_num(dataset.completed(np.full(self._spec.size, np.nan), self._spec), nan=0.0)
        model_A = np.where(self._absent_A, dataset.transform.apply(neutral_A), 0).astype(np.float32)
        return encode(torch.from_numpy(model_A), self._spec)

    def action(self, values_RA: Tensor, tokens_RA: Tensor, frames_seen_R: Tensor, *, single: bool) -> Action:
        """`values_RA` are model values; `single` drops the axis of robots."""
        values, tokens, seen = self._physical(values_RA), tokens_RA.cpu().numpy(), frames_seen_R.cpu().numpy()
        if single:
            values, tokens, seen = values[0], tokens[0], seen[0]
        return self._action(values, tokens, seen)

    def actions(self, values_RA: Tensor, tokens_RA: Tensor, frames_seen_R: Tensor) -> list[Action]:
        """One for each robot, as `action` gives them singly, in the time of one."""
        rows = zip(self._physical(values_RA), tokens_RA.cpu().numpy(), frames_seen_R.cpu().numpy(), strict=True)
        return [self._action(*row) for row in rows]

    def _physical(self, values_RA: Tensor) -> np.ndarray:
        values = values_RA.cpu().numpy()
        if self._dataset is not None:
            values = self._dataset.completed(self._dataset.transform.invert(values), self._spec)
        if self._own is not None:
            neutral = self._own.dataset.neutral(self._said)
            values = np.where(self._said_A, self._own.returned(values, self._spec), neutral)
        return values

    def _action(self, values: np.ndarray, tokens: np.ndarray, seen: np.ndarray) -> Action:
        classes = self._classes(values)
        return Action(values=values, tokens=tokens, frames_seen=seen, absent=self.absent, classes=classes)

    def _classes(self, values_xA: np.ndarray) -> dict[str, np.ndarray]:
        named = [each for each in self._class_names if np.isfinite(values_xA[..., each[0]]).all()]
        return {name: names[values_xA[..., place].astype(np.int64)] for place, name, names in named}
