"""RT-2 in control: a frame of each camera and an instruction in, one action out, for one robot or many.

The counterpart of `rt_models.control.rt1_policy.RT1Policy`, with the same `act`. RT-2 has no history but for
models trained on several consecutive frames (Language-Table): those keep the last frames of each robot.

Axes: R robots, T frames, HWC pixels, A actions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from rt_models.camera_roles import frames_key, image_index_key
from rt_models.control.action import Action, ActionOutlet
from rt_models.control.observation import Frame, ObservationInlet, RobotState, camera_name
from rt_models.language.generation import LanguageModel, Strategy, predict_actions
from rt_models.language.prompts import RT2Text
from rt_models.spec import DatasetContract

Pictures: TypeAlias = Mapping[str, Tensor]
"""uint8 (H, W, 3) frames of one robot at one step, by role."""


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
        self._inlet = ObservationInlet(text.cameras, text.state, dataset)
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
        self._history: list[list[Pictures]] = [[] for _ in range(self.num_robots)]
        self._instructions = [""] * self.num_robots

    def reset(self, robots: Sequence[int] | None = None) -> None:
        """Begin an episode: forget the frames of these robots, or of all."""
        for robot in range(self.num_robots) if robots is None else robots:
            self._history[robot] = []

    def act(self, frame: Frame, instruction: str | Sequence[str], state: RobotState = None) -> Action:
        """The action for the newest frame, uint8 (H, W, 3) of any size, or (R, H, W, 3) for all robots at once; by role
        where the model reads several cameras.

        `instruction` is a text for all robots, or one for each; a new one begins an episode. `state`, where the model
        reads one: physical values by name or in the order of the data set, of several robots (R, values). Raises
        ValueError for another shape, dtype or count, and names a camera or a value that is missing.
        """
        texts = [instruction] * self.num_robots if isinstance(instruction, str) else list(instruction)
        if len(texts) != self.num_robots or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"instruction: expected a text, or {self.num_robots} texts, got {instruction!r}")
        prompts = self._prompts(texts, state)
        seen = self._pictures(frame)
        self._require_size(seen, texts)
        histories = self._joined(seen, texts)
        (answer,) = _answered([self], [histories], prompts)
        self._history, self._instructions = histories, texts
        given = self._inlet.pictures(frame).values()
        return self._action(*answer, single=all(getattr(picture, "ndim", 4) == 3 for picture in given))

    def _prompts(self, texts: Sequence[str], state: RobotState) -> list[tuple[int, ...]]:
        read = self._inlet.state(state, num_robots=self.num_robots)
        states = [None] * len(texts) if read is None else torch.where(read[1], read[0], torch.nan).numpy()
        return [
            self.text.robot_prompt(text, with_plan=self._plan_room > 0, state=felt, cameras=self._inlet.cameras)
            for text, felt in zip(texts, states, strict=True)
        ]

    def _require_size(self, seen: Sequence[Pictures], texts: Sequence[str]) -> None:
        """Raise ValueError where the frames of an episode that goes on have another size than before."""
        for history, now, text, previous in zip(self._history, seen, texts, self._instructions, strict=True):
            for role, frame_HWC in now.items() if history and text == previous else ():
                if history[-1][role].shape != frame_HWC.shape:
                    sizes = f"{tuple(frame_HWC.shape)} after {tuple(history[-1][role].shape)}"
                    raise ValueError(f"{camera_name(role)}: {sizes}: reset() between")

    def _joined(self, seen: Sequence[Pictures], texts: Sequence[str]) -> list[list[Pictures]]:
        """The frames of each robot with the newest, whose episode begins where its instruction is new. They become its
        history once they are answered: a frame that fails, or is tried again, has not been seen."""
        each = zip(self._history, seen, texts, self._instructions, strict=True)
        return [
            [*(history if text == previous else ()), pictures][-self._num_frames :]
            for history, pictures, text, previous in each
        ]

    def _action(self, tokens_RA: Tensor, values_RA: Tensor, plans: tuple[str, ...], *, single: bool) -> Action:
        seen_R = torch.tensor([len(history) for history in self._history])
        return replace(self._outlet.action(values_RA, tokens_RA, seen_R, single=single), plans=plans)

    def _pictures(self, frame: Frame) -> list[Pictures]:
        """Of each robot the frames (H, W, 3) of the cameras that it has."""
        pictures = self._inlet.pictures(frame).items()
        frames = {role: self._frames(picture, camera_name(role)) for role, picture in pictures}
        return [{role: frame_RHWC[robot] for role, frame_RHWC in frames.items()} for robot in range(self.num_robots)]

    def _frames(self, frame: object, name: str) -> Tensor:
        frames = torch.as_tensor(frame)
        expected = "uint8 RGB (H, W, 3)" if self.num_robots == 1 else f"uint8 RGB ({self.num_robots}, H, W, 3)"
        if frames.dim() == 3 and self.num_robots == 1:
            frames = frames[None]
        if frames.dtype != torch.uint8 or frames.dim() != 4 or (len(frames), frames.shape[-1]) != (self.num_robots, 3):
            raise ValueError(f"{name}: expected {expected}, got {frames.dtype} {tuple(torch.as_tensor(frame).shape)}")
        return frames

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device if isinstance(self.model, torch.nn.Module) else torch.device("cpu")


def act_together(
    policies: Sequence[RT2Policy],
    frames: Sequence[Frame],
    instructions: Sequence[str],
    states: Sequence[RobotState] | None = None,
) -> list[Action]:
    """What each policy's `act` says to its frame (H, W, 3), instruction and state, from one pass for all.

    They are different policies of one robot each that share model and text (`for_another_robot`). Frames of several
    sizes are taken one by one. All input is looked at before the first history moves. Raises ValueError as `act` does.
    """
    if any(policy.model is not policies[0].model or policy.num_robots != 1 for policy in policies):
        raise ValueError("policies act together that have one robot each and share one model's weights")
    states = [None] * len(policies) if states is None else states
    prompts, seen = [], []
    for policy, frame, instruction, state in zip(policies, frames, instructions, states, strict=True):
        prompts += policy._prompts([instruction], state)
        seen.append(policy._pictures(frame))
        policy._require_size(seen[-1], [instruction])
    of_role = {role: {each[role].shape for (each,) in seen if role in each} for (each,) in seen for role in each}
    taken = zip(policies, seen, instructions, strict=True)
    histories = [policy._joined(pictures, [instruction]) for policy, pictures, instruction in taken]
    if any(len(shapes) > 1 for shapes in of_role.values()):
        each = zip(policies, histories, prompts, strict=True)
        answers = [answer for policy, own, prompt in each for answer in _answered([policy], [own], [prompt])]
    else:
        answers = _answered(policies, histories, prompts) if prompts else []
    for policy, own, instruction in zip(policies, histories, instructions, strict=True):
        policy._history, policy._instructions = own, [instruction]
    return [policy._action(*answer, single=True) for policy, answer in zip(policies, answers, strict=True)]


def _answered(
    policies: Sequence[RT2Policy], histories: Sequence[list[list[Pictures]]], prompts: list[tuple[int, ...]]
) -> list[tuple[Tensor, Tensor, tuple[str, ...]]]:
    """(tokens, values, plans), (R, A) each and R texts or none, for the robots of each policy, from their `histories`
    up to the newest frame and `prompts` of each."""
    first, robots = policies[0], [policy.num_robots for policy in policies]
    device = first._device()
    batch = _images([history for own in histories for history in own], first._num_frames, first.text.cameras)
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


def _images(histories: Sequence[Sequence[Pictures]], num_frames: int, cameras: Sequence[str]) -> dict[str, Tensor]:
    """Every robot's frames of each camera, oldest first; an episode begins with fewer, and with empty places before
    them, as there are for a camera that a robot does not have."""
    batch: dict[str, Tensor] = {}
    for role in cameras:
        index_RT, frames = torch.full((len(histories), num_frames), -1), []
        for robot, history in enumerate(histories):
            for place, pictures in enumerate(history, start=num_frames - len(history)):
                if role in pictures:
                    index_RT[robot, place] = len(frames)
                    frames.append(pictures[role])
        batch[frames_key(role)] = torch.stack(frames) if frames else torch.zeros(0, 1, 1, 3, dtype=torch.uint8)
        batch[image_index_key(role)] = index_RT
    return batch
