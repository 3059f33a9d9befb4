"""Who sees whom in RT-1's sequence [inputs 0, actions 0, inputs 1, actions 1, ...], and which rows must be computed.

A step has J tokens of what the robot saw and felt, those of images last, and A action positions; the logits of action k
stand at the position before it, so the last image token answers for the first action and the last action position
answers for nothing (google-research/robotics_transformer 4569641b `transformer_network.py:370`).

- "tf": a position sees earlier ones and itself, but an action position sees no action position, itself included.
- "jax": no position sees any action position. Action positions are pure queries: leaving out those whose output nobody
  reads changes nothing, which is what `RowPlan` does.

Axes: N positions, R computed rows, S rows that are keys, O output rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

MaskRule = Literal["tf", "jax"]
OutputSteps = Literal["all", "last"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """T steps of J tokens of state and images, and A action positions."""

    num_steps: int
    num_input_tokens: int
    num_action_tokens: int

    @property
    def step_size(self) -> int:
        return self.num_input_tokens + self.num_action_tokens

    @property
    def size(self) -> int:
        return self.num_steps * self.step_size

    def is_action(self) -> np.ndarray:
        """bool (N,)"""
        return np.arange(self.size) % self.step_size >= self.num_input_tokens

    def step(self) -> np.ndarray:
        """int64 (N,): the step of each position."""
        return np.arange(self.size) // self.step_size

    def output_positions(self, output_steps: OutputSteps) -> np.ndarray:
        """int64: positions whose outputs are the logits of the actions of all steps, or of the last."""
        first = self.num_input_tokens - 1
        inside = np.arange(first, first + self.num_action_tokens)
        steps = np.arange(0 if output_steps == "all" else self.num_steps - 1, self.num_steps)
        return (steps[:, None] * self.step_size + inside).ravel()


def attention_mask(layout: Layout, rule: MaskRule) -> np.ndarray:
    """bool (N, N): True where the row's position may attend to the column's."""
    action = layout.is_action()
    causal = np.tril(np.ones((layout.size, layout.size), bool))
    hidden = action[None, :] if rule == "jax" else action[:, None] & action[None, :]
    return causal & ~hidden


class RowPlan(nn.Module):
    """The least that must be computed for the asked outputs: every position that is a key of some row, and the outputs.

    A module only so that its index tensors travel with the model to its device; it has no parameters and no state.
    """

    rows_R: Tensor
    """int64: positions carried through the layers."""
    keys_S: Tensor
    """int64 into `rows_R`: those that are attended to."""
    outputs_O: Tensor
    """int64 into `rows_R`: those that the last layer is computed for, in the order of the logits."""
    mask_RS: Tensor
    """bool: True where a row may attend to a key."""
    step_R: Tensor
    """int64: the step of each row."""

    def __init__(self, layout: Layout, rule: MaskRule, output_steps: OutputSteps) -> None:
        super().__init__()
        mask_NN = attention_mask(layout, rule)
        outputs = layout.output_positions(output_steps)
        is_key = np.asarray(mask_NN.any(axis=0))
        needed = is_key.copy()
        needed[outputs] = True
        place_N = np.cumsum(needed) - 1
        rows_R, keys_S = np.flatnonzero(needed), place_N[is_key]
        self._hold("rows_R", rows_R)
        self._hold("keys_S", keys_S)
        self._hold("outputs_O", place_N[outputs])
        self._hold("mask_RS", mask_NN[rows_R][:, rows_R[keys_S]])
        self._hold("step_R", layout.step()[rows_R])

    def _hold(self, name: str, value: np.ndarray) -> None:
        self.register_buffer(name, torch.from_numpy(value), persistent=False)
