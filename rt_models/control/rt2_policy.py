"""RT-2 in control: one camera frame and an instruction in, one action out, for one robot or many.

The counterpart of `rt_models.control.rt1_policy.RT1Policy`, with the same `act`. RT-2 has no history but for
models trained on several consecutive frames (Language-Table): those keep the last frames of each robot.

Axes: R robots, T frames, HWC pixels, A actions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

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

    def with_plans(self, tokens: int) -> RT2Policy:
        """A policy of the same weights that lets the model say a plan of so many tokens before it acts."""
        other = self.for_another_robot()
        other._plan_room = tokens
        return other

    def _begin(self) -> None:
        self._history: list[list[Tensor]] = [[] for _ in range(self.num_robots)]
        self._instructions = [""] * self.num_robots

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
        prompts = self._prompts(texts)
        frame_RHWC = self._frames(frame)
        self._require_size(frame_RHWC, texts)
        self._see(frame_RHWC, texts)
        (answer,) = _answered([self], prompts)
        return self._action(*answer, single=frame.ndim == 3)

    def _prompts(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        return [self.text.robot_prompt(text, with_plan=self._plan_room > 0) for text in texts]

    def _require_size(self, frame_RHWC: Tensor, texts: Sequence[str]) -> None:
        """Raise ValueError where the frames of an episode that goes on have another size than before."""
        for history, text, previous in zip(self._history, texts, self._instructions, strict=True):
            if history and text == previous and history[-1].shape != frame_RHWC.shape[1:]:
                sizes = f"{tuple(frame_RHWC.shape[1:])} after {tuple(history[-1].shape)}"
                raise ValueError(f"frame: {sizes}: reset() between")

    def _see(self, frame_RHWC: Tensor, texts: list[str]) -> None:
        """Remember the newest frame of each robot, whose episode begins where its instruction is new."""
        self.reset([robot for robot, text in enumerate(texts) if text != self._instructions[robot]])
        self._instructions = texts
        for history, frame_HWC in zip(self._history, frame_RHWC, strict=True):
            history.append(frame_HWC)
            del history[: -self._num_frames]

    def _action(self, tokens_RA: Tensor, values_RA: Tensor, plans: tuple[str, ...], *, single: bool) -> Action:
        seen_R = torch.tensor([len(history) for history in self._history])
        return replace(self._outlet.action(values_RA, tokens_RA, seen_R, single=single), plans=plans)

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


def act_together(
    policies: Sequence[RT2Policy], frames: Sequence[np.ndarray | Tensor], instructions: Sequence[str]
) -> list[Action]:
    """What each policy's `act` says to its frame (H, W, 3) and instruction, from one pass for all.

    They are different policies of one robot each that share model and text (`for_another_robot`). Frames of several
    sizes are taken one by one. All input is looked at before the first history moves. Raises ValueError as `act` does.
    """
    if any(policy.model is not policies[0].model or policy.num_robots != 1 for policy in policies):
        raise ValueError("policies act together that have one robot each and share one model's weights")
    prompts, seen = [], []
    for policy, frame, instruction in zip(policies, frames, instructions, strict=True):
        prompts += policy._prompts([instruction])
        seen.append(policy._frames(frame))
        policy._require_size(seen[-1], [instruction])
    if len({frame_1HWC.shape for frame_1HWC in seen}) > 1:
        taken = zip(policies, frames, instructions, strict=True)
        return [policy.act(frame, instruction) for policy, frame, instruction in taken]
    for policy, frame_1HWC, instruction in zip(policies, seen, instructions, strict=True):
        policy._see(frame_1HWC, [instruction])
    answers = _answered(policies, prompts) if prompts else []
    return [policy._action(*answer, single=True) for policy, answer in zip(policies, answers, strict=True)]


def _answered(
    policies: Sequence[RT2Policy], prompts: list[tuple[int, ...]]
) -> list[tuple[Tensor, Tensor, tuple[str, ...]]]:
    """(tokens, values, plans), (R, A) each and R texts or none, for the robots of each policy, from what they have seen
    and `prompts` of each."""
    first, robots = policies[0], [policy.num_robots for policy in policies]
    device = first._device()
    batch = _images([history for policy in policies for history in policy._history], first._num_frames)
    batch |= first.text.collate_prompts(prompts)
    masks = [policy._mask_A.expand(policy.num_robots, -1) for policy in policies if policy._mask_A is not None]
    predicted = predict_actions(
        first.model,
        {key: value.to(device) for key, value in batch.items()},
        first.text,
        strategy=first._strategy,
        action_mask_BA=torch.cat(masks).to(device) if masks else None,
        plan_room=first._plan_room,
    )
    bins, values = predicted.bins_BA.cpu().split(robots), predicted.values_BA.cpu().split(robots)
    tokens = [policy._outlet.tokens(bins_RA) for policy, bins_RA in zip(policies, bins, strict=True)]
    said = [first.text.decode(ids).strip() for ids in predicted.plans]
    ends = np.cumsum(robots).tolist()
    plans = [tuple(said[end - count : end]) for end, count in zip(ends, robots, strict=True)]
    return list(zip(tokens, values, plans, strict=True))


def _images(histories: Sequence[Sequence[Tensor]], num_frames: int) -> dict[str, Tensor]:
    """Every robot's frames, oldest first; an episode begins with fewer, and with empty places before them."""
    index_RT, first = torch.full((len(histories), num_frames), -1), 0
    for robot, history in enumerate(histories):
        index_RT[robot, num_frames - len(history) :] = torch.arange(first, first + len(history))
        first += len(history)
    return {"frames": torch.stack([frame for history in histories for frame in history]), "image_index": index_RT}
