"""RT-2 in control: one camera frame and an instruction in, one action out, for one robot or many.

The counterpart of `rt_models.control.rt1_policy.RT1Policy`, with the same `act`. RT-2 has no history but for
models trained on several consecutive frames (Language-Table): those keep the last frames of each robot.

Axes: R robots, T frames, HWC pixels, A actions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rt_models.control.action import Action, ActionOutlet
from rt_models.language.generation import LanguageModel, Strategy, predict_actions
from rt_models.language.prompts import RT2Text
from rt_models.spec import DatasetContract


class RT2Policy:
    """Runs an RT-2. `num_frames` are by default those that its text was trained with.

    `dataset`, a side of the model's contract, makes values physical, and neutral where it has no such dimension;
    without it they are model values.
    """

    def __init__(
        self,
        model: LanguageModel,
        text: RT2Text,
        *,
        dataset: DatasetContract | None = None,
        strategy: Strategy | None = None,
        num_frames: int | None = None,
        plan_room: int = 0,
        num_robots: int = 1,
    ) -> None:
        num_frames = text.config.frames if num_frames is None else num_frames
        if num_robots < 1 or num_frames < 1:
            raise ValueError(f"num_robots {num_robots} and num_frames {num_frames} must be at least 1")
        self.model, self.text, self.num_robots = model, text, num_robots
        self._strategy, self._plan_room = strategy, plan_room
        self._outlet = ActionOutlet(text.spec, dataset, text.config.answered_dims())
        self._mask_A = None if dataset is None else torch.tensor(dataset.action_mask)
        self._num_frames = num_frames
        self._begin()
        if isinstance(model, torch.nn.Module):
            model.eval()

    def for_another_robot(self) -> RT2Policy:
        """A policy of the same weights, shared, with a history of its own."""
        other = copy.copy(self)
        other._begin()
        return other

    def _begin(self) -> None:
        self._history: list[list[Tensor]] = [[] for _ in range(self.num_robots)]
        self._told = [""] * self.num_robots

    def reset(self, robots: Sequence[int] | None = None) -> None:
        """Begin an episode: forget the frames of these robots, or of all."""
        for robot in range(self.num_robots) if robots is None else robots:
            self._history[robot] = []

    def act(self, frame: np.ndarray | Tensor, instruction: str | Sequence[str]) -> Action:
        """The action for the newest frame, uint8 (H, W, 3) of any size, or (R, H, W, 3) for all robots at once.

        `instruction` is a text for all robots, or one for each; a new one begins an episode. Raises ValueError for
        another shape, dtype or count.
        """
        texts = [instruction] * self.num_robots if isinstance(instruction, str) else list(instruction)
        if len(texts) != self.num_robots or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"instruction: expected a text, or {self.num_robots} texts, got {instruction!r}")
        prompts = [self.text.robot_prompt(text, with_plan=self._plan_room > 0) for text in texts]
        frame_RHWC = self._frames(frame)
        self.reset([robot for robot, text in enumerate(texts) if text != self._told[robot]])
        self._told = texts
        self._remember(frame_RHWC)
        batch = self._images() | self.text.collate_prompts(prompts)
        device = self._device()
        predicted = predict_actions(
            self.model,
            {key: value.to(device) for key, value in batch.items()},
            self.text,
            strategy=self._strategy,
            action_mask_BA=None if self._mask_A is None else self._mask_A.expand(self.num_robots, -1).to(device),
            plan_room=self._plan_room,
        )
        seen_R = torch.tensor([len(history) for history in self._history])
        tokens_RA = self._outlet.tokens(predicted.bins_BA)
        return self._outlet.action(predicted.values_BA, tokens_RA, seen_R, single=frame.ndim == 3)

    def _remember(self, frame_RHWC: Tensor) -> None:
        for history, frame_HWC in zip(self._history, frame_RHWC, strict=True):
            if history and history[-1].shape != frame_HWC.shape:
                raise ValueError(f"frame: {tuple(frame_HWC.shape)} after {tuple(history[-1].shape)}: reset() between")
            history.append(frame_HWC)
            del history[: -self._num_frames]

    def _images(self) -> dict[str, Tensor]:
        """Every robot's frames, oldest first; an episode begins with fewer, and with empty places before them."""
        frames = [frame for history in self._history for frame in history]
        index_RT = torch.full((self.num_robots, self._num_frames), -1)
        first = 0
        for robot, history in enumerate(self._history):
            index_RT[robot, self._num_frames - len(history) :] = torch.arange(first, first + len(history))
            first += len(history)
        return {"frames": torch.stack(frames), "image_index": index_RT}

    def _frames(self, frame: np.ndarray | Tensor) -> Tensor:
        frames = torch.as_tensor(frame)
        expected = "uint8 RGB (H, W, 3)" if self.num_robots == 1 else f"uint8 RGB ({self.num_robots}, H, W, 3)"
        if frames.dim() == 3 and self.num_robots == 1:
            frames = frames[None]
        if frames.dtype != torch.uint8 or frames.dim() != 4 or (len(frames), frames.shape[-1]) != (self.num_robots, 3):
            raise ValueError(f"frame: expected {expected}, got {frames.dtype} {tuple(torch.as_tensor(frame).shape)}")
        return frames

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device if isinstance(self.model, torch.nn.Module) else torch.device("cpu")
