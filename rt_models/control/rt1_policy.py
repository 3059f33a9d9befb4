"""A model at work: one frame of each camera in, one action out, at every control step, for one robot or many.

The policy keeps the tokens of images and state of the steps that a window spans, so a control step costs one pass of
the tokenizer and one of the transformer, answering the last step only. The result is that of recomputing the whole
window. An episode begins with padding that no real step attends to, as in training. Image tokens carry the instruction
they were made with; when the instruction changes they are stale, and that robot's history begins anew.

Axes: R robots, T steps that are kept, M cameras, J tokens of a step before its actions, D width, HWC pixels, A actions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rt_models.action_tokens import decode
from rt_models.camera_roles import MAIN_CAMERA
from rt_models.control.action import Action, ActionOutlet
from rt_models.control.constrained_decoding import choose_tokens
from rt_models.control.control_step import ControlStep
from rt_models.control.observation import Frame, ObservationInlet, RobotState, camera_name
from rt_models.input_checks import require_finite
from rt_models.object_marks import MarksMissing, ObjectMarks
from rt_models.rt1 import RT1
from rt_models.spec import EMBEDDING_WIDTH, DatasetContract
from rt_models.vision.fuse_batch_norm import fuse_batch_norm
from rt_models.vision.image_inputs import resize, still_images

Instruction = str | Sequence[str] | np.ndarray | Tensor


@dataclass(frozen=True, kw_only=True)
class History:
    """What is kept of each robot's last T steps, of which a window takes each `stride`th up to the newest. Their tokens
    lie on the model's device, the rest on the CPU."""

    tokens_RTJD: Tensor
    real_RT: Tensor
    """bool: False where the episode had not begun."""
    embedding_RD: Tensor
    """The instruction that the tokens were made with."""
    action_tokens_RTA: Tensor | None

    @staticmethod
    def of_none(model: RT1, robots: int) -> History:
        """Of robots that have seen nothing."""
        config, steps = model.config, (model.config.num_steps - 1) * model.config.stride + 1
        weight = model.transformer.output.weight
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        shape = (robots, steps, config.num_input_tokens(), config.feature_width)
        has_actions = config.previous_actions == "one_hot"
        return History(
            tokens_RTJD=torch.zeros(shape, dtype=wide, device=weight.device),
            real_RT=torch.zeros(robots, steps, dtype=torch.bool),
            embedding_RD=torch.zeros(robots, EMBEDDING_WIDTH),
            action_tokens_RTA=torch.zeros(robots, steps, model.spec.size, dtype=torch.int64) if has_actions else None,
        )

    @staticmethod
    def joined(histories: Sequence[History]) -> History:
        """Of all their robots, in order."""
        if len(histories) == 1:
            return histories[0]
        actions = [each.action_tokens_RTA for each in histories if each.action_tokens_RTA is not None]
        return History(
            tokens_RTJD=torch.cat([each.tokens_RTJD for each in histories]),
            real_RT=torch.cat([each.real_RT for each in histories]),
            embedding_RD=torch.cat([each.embedding_RD for each in histories]),
            action_tokens_RTA=torch.cat(actions) if actions else None,
        )

    def split(self, robots: Sequence[int]) -> list[History]:
        """Of so many robots each. Copies: a view would keep the histories of all in memory."""
        if len(robots) == 1:
            return [self]
        parts = [part.split(list(robots)) for part in (self.tokens_RTJD, self.real_RT, self.embedding_RD)]
        actions = self.action_tokens_RTA
        split = [None] * len(robots) if actions is None else actions.split(list(robots))
        return [
            History(
                tokens_RTJD=tokens.clone(),
                real_RT=real.clone(),
                embedding_RD=embedding.clone(),
                action_tokens_RTA=None if taken is None else taken.clone(),
            )
            for tokens, real, embedding, taken in zip(*parts, split, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What robots send at one step, in pieces of `robots` robots each: of each camera the piece's frames, uint8 (R, H,
    W, C), None where it has no such camera; and the state with its mask, (R, P), of all."""

    robots: tuple[int, ...]
    frames: Mapping[str, tuple[Tensor | None, ...]]
    state: tuple[Tensor, Tensor] | None

    @staticmethod
    def joined(parts: Sequence[Seen]) -> Seen:
        """Of all their robots, in order."""
        states = [part.state for part in parts if part.state is not None]
        return Seen(
            robots=tuple(count for part in parts for count in part.robots),
            frames={role: tuple(piece for part in parts for piece in part.frames[role]) for role in parts[0].frames},
            state=(torch.cat([state for state, _ in states]), torch.cat([m for _, m in states])) if states else None,
        )

    def inputs(self, policy: RT1Policy) -> dict[str, Tensor]:
        """Their part of `control_step.Inputs`."""
        images = [self._images(policy, pieces) for pieces in self.frames.values()]
        inputs = {"image_RHWC": images[0] if len(images) == 1 else torch.stack(images, dim=1)}
        device = images[0].device
        if policy.model.robot_tokens is not None:
            there = [[piece is not None for piece in pieces] for pieces in self.frames.values()]
            present_RM = torch.tensor(there).T.repeat_interleave(torch.tensor(self.robots), dim=0)
            inputs["present_RM"] = present_RM.to(device)
        if self.state is not None:
            inputs |= {"state_RP": self.state[0].to(device), "state_mask_RP": self.state[1].to(device)}
        return inputs

    def _images(self, policy: RT1Policy, pieces: tuple[Tensor | None, ...]) -> Tensor:
        """float (R, size, size, C); black where a robot has no such camera."""
        there = [piece for piece in pieces if piece is not None]
        if len(there) == len(pieces) and len({piece.shape[1:] for piece in there}) == 1:
            return policy._images_of(there)
        size, channels = policy.model.config.input.image_size, policy.model.config.num_channels()
        black_HWC = torch.zeros(size, size, channels, dtype=torch.uint8)
        filled = [
            black_HWC.expand(count, -1, -1, -1) if piece is None else piece
            for count, piece in zip(self.robots, pieces, strict=True)
        ]
        return torch.cat([policy._images(piece) for piece in filled])


class RT1Policy:
    """Runs an RT1 with history. `encode` turns a text into its (512,) embedding.

    `dataset`, a side of the model's contract, makes values physical, and neutral where it has no such dimension;
    without it they are model values. `cuda_graph`: on a GPU, replay the networks as a CUDA graph (control_step.py).

    It works with a copy of the model's weights as they are now (`.model`), BatchNorm fused in; or with the model itself
    where that has been done (`fuse_batch_norm`). All policies that come from one share its weights.
    """

    def __init__(
        self,
        model: RT1,
        *,
        dataset: DatasetContract | None = None,
        encode: Callable[[str], np.ndarray] | None = None,
        num_robots: int = 1,
        cuda_graph: bool = True,
    ) -> None:
        if num_robots < 1:
            raise ValueError(f"num_robots must be at least 1, got {num_robots}")
        self._outlet = ActionOutlet(model.spec, dataset)
        self._inlet = ObservationInlet(model.config.cameras, model.config.state, dataset)
        self.model, self.num_robots = fuse_batch_norm(model), num_robots
        if self.model is not model:
            self.model.compile_parts()
        self._step = ControlStep(self.model, cuda_graph=cuda_graph)
        self._encode = encode
        self._embedding_of_text: dict[str, np.ndarray] = {}
        self.reset()

    def for_another_robot(self) -> RT1Policy:
        """A policy of the same weights, shared, with a history of its own."""
        other = copy.copy(self)
        other.reset()
        return other

    def for_dataset(self, dataset: DatasetContract) -> RT1Policy:
        """A policy of the same weights, shared, that answers in the units of `dataset`, with a history of its own."""
        other = self.for_another_robot()
        other._outlet = ActionOutlet(self.model.spec, dataset)
        other._inlet = ObservationInlet(self.model.config.cameras, self.model.config.state, dataset)
        return other

    def reset(self, robots: Sequence[int] | None = None) -> None:
        """Begin an episode: forget the history and marks of these robots, or of all. Raises ValueError for one there is
        not."""
        if robots is None:
            self._history: History | None = None
            self._marks: ObjectMarks | None = None
            self._is_newly_marked = False
            return
        unknown = [robot for robot in robots if not 0 <= robot < self.num_robots]
        if unknown:
            raise ValueError(f"robot {unknown[0]} cannot be reset: this policy's are 0..{self.num_robots - 1}")
        if self._history is not None:
            self._history.real_RT[list(robots)] = False
        if robots:  # marks are those of the only robot
            self._marks, self._is_newly_marked = None, False

    def mark(self, marks: ObjectMarks) -> None:
        """Of a model that reads object masks: the objects meant, as they lie in the first frame of the episode, which
        the mask of all its frames shows. Others than before begin an episode. Raises ValueError for several robots."""
        if self.num_robots > 1:
            raise ValueError("marks are of one robot: of several, give frames of four channels, the fourth the mask")
        if marks != self._marks:
            self._history = None
        self._marks, self._is_newly_marked = marks, True

    def act(self, frame: Frame, instruction: Instruction, state: RobotState = None) -> Action:
        """The action for the newest frame, uint8 (H, W, C) of any size, or (R, H, W, C) for all robots at once; by role
        where the model reads several cameras. Where it reads object masks C is 4, or 3 once objects are `mark`ed.

        `instruction` is a text or a float (512,) embedding for all robots, or one for each. `state`, where the model
        reads one: physical values by name or in the order of the data set, of several robots (R, values).
        Raises ValueError for another shape or dtype, and names a camera or a value that is missing.
        """
        embedding_RD = self._embeddings(instruction)
        seen, single = self._seen(frame, state, embedding_RD)
        ((tokens_RA, seen_R),) = _advanced([self], seen, embedding_RD)
        return self._action(tokens_RA, seen_R, single=single)

    def _seen(self, frame: Frame, state: RobotState, embedding_RD: Tensor) -> tuple[Seen, bool]:
        """What the robots send, and whether it is of one robot without an axis of robots."""
        if self.model.training:
            raise ValueError("the policy's model is in training mode: call model.eval() before acting")
        pictures = self._inlet.pictures(frame)
        pictures = {role: self._masked(role, picture, embedding_RD) for role, picture in pictures.items()}
        read = {role: self._frames(picture, camera_name(role)) for role, picture in pictures.items()}
        single = all(getattr(picture, "ndim", 4) == 3 for picture in pictures.values())
        frames = {role: (read.get(role),) for role in self.model.config.cameras}
        its_state = self._inlet.state(state, num_robots=self.num_robots)
        return Seen(robots=(self.num_robots,), frames=frames, state=its_state), single

    def _masked(self, role: str, picture: object, embedding_RD: Tensor) -> object:
        """A picture (H, W, 3) with the episode's mask as fourth channel, where the model reads one; it is empty for
        cameras beside the main one. Raises ValueError if the objects of this episode are not marked."""
        if self.model.config.num_channels() == 3 or np.shape(picture)[2:] != (3,):  # type: ignore[arg-type]
            return picture
        mask_1HW = np.zeros((1, *np.shape(picture)[:2]), np.uint8)  # type: ignore[arg-type]
        if role == MAIN_CAMERA:
            self._marks_of_episode(embedding_RD).draw(mask_1HW)
        pixels = picture.cpu() if isinstance(picture, Tensor) else picture
        return np.concatenate([np.asarray(pixels), mask_1HW[0, ..., None]], axis=-1)

    def _marks_of_episode(self, embedding_RD: Tensor) -> ObjectMarks:
        if self._marks is None:
            raise MarksMissing
        told = None if self._history is None else self._history.embedding_RD
        if told is not None and not self._is_newly_marked and not torch.equal(told, embedding_RD):
            raise MarksMissing(because="; another instruction begins one")
        return self._marks

    def _action(self, tokens_RA: Tensor, seen_R: Tensor, *, single: bool) -> Action:
        return self._outlet.action(decode(tokens_RA, self.model.spec), tokens_RA, seen_R, single=single)

    def _images(self, frame_RHWC: Tensor) -> Tensor:
        """float (R, size, size, C) in [0, 1], on the model's device."""
        frame_RHWC = frame_RHWC.to(self.model.transformer.output.weight.device)
        size = self.model.config.input.image_size
        if frame_RHWC.shape[-1] > 3:  # a mask, which is drawn
            wide = torch.float64 if self.model.dtype == torch.float64 else torch.float32
            return still_images(frame_RHWC, size, wide)
        return resize(self._wide(frame_RHWC).div_(255), size)

    def _images_of(self, pieces: Sequence[Tensor]) -> Tensor:
        """`_images` of the frames of several robots, which have one size."""
        weight, size = self.model.transformer.output.weight, self.model.config.input.image_size
        shapes = {piece.shape for piece in pieces}
        if weight.device.type != "cpu" or len(shapes) > 1 or pieces[0].shape[-1] > 3:
            return self._images(torch.cat(tuple(pieces)))
        # In one piece's place: 32 frames of 256x320 as floats are 31 MB of new pages at every step, which cost 20 ms.
        wide_RHWC = self._wide(pieces[0])
        robots, channels = len(wide_RHWC), wide_RHWC.shape[-1]
        image_RHWC = wide_RHWC.new_empty(len(pieces) * robots, size, size, channels)
        for image, piece in zip(image_RHWC.split(robots), pieces, strict=True):
            image.copy_(resize(wide_RHWC.copy_(piece).div_(255), size))
        return image_RHWC

    def _wide(self, frame_RHWC: Tensor) -> Tensor:
        """A copy of the pixels as floats, 0 to 255."""
        return frame_RHWC.to(torch.float64 if self.model.dtype == torch.float64 else torch.float32)

    def _frames(self, frame: object, name: str) -> Tensor:
        """uint8 (R, H, W, C)"""
        channels, robots = self.model.config.num_channels(), self.num_robots
        expected = f"uint8 (H, W, {channels})" if robots == 1 else f"uint8 ({robots}, H, W, {channels})"
        if not isinstance(frame, np.ndarray | Tensor):
            raise ValueError(f"{name}: expected an array or tensor {expected}, got {type(frame).__name__}")
        shape = (1, *frame.shape) if frame.ndim == 3 and robots == 1 else tuple(frame.shape)
        right = str(frame.dtype).removeprefix("torch.") == "uint8" and len(shape) == 4 and 0 not in shape
        if not right or (shape[0], shape[-1]) != (robots, channels):
            raise ValueError(f"{name}: expected {expected}, got {frame.dtype} {tuple(frame.shape)}")
        if isinstance(frame, np.ndarray):  # torch takes no mirrored arrays, and warns of those it may not write
            frame = torch.from_numpy(np.require(frame, requirements=("C", "W")))
        return frame.reshape(shape)

    def _embeddings(self, instruction: Instruction) -> Tensor:
        """float32 (R, 512)"""
        expected = f"float ({EMBEDDING_WIDTH},) or ({self.num_robots}, {EMBEDDING_WIDTH})"
        if isinstance(instruction, str):
            vectors: np.ndarray | Tensor = self._of_text(instruction)
        elif isinstance(instruction, np.ndarray | Tensor):
            vectors = instruction
        elif isinstance(instruction, Sequence) and instruction and all(isinstance(text, str) for text in instruction):
            vectors = np.stack([self._of_text(text) for text in instruction])
        else:
            raise ValueError(f"instruction: expected a text, texts or an embedding {expected}, got {instruction!r:.40}")
        known_shape = tuple(vectors.shape) in ((EMBEDDING_WIDTH,), (self.num_robots, EMBEDDING_WIDTH))
        if "float" not in str(vectors.dtype) or not known_shape:
            raise ValueError(f"instruction embedding: expected {expected}, got {vectors.dtype} {tuple(vectors.shape)}")
        embedding = vectors.float() if isinstance(vectors, Tensor) else torch.from_numpy(np.array(vectors, np.float32))
        require_finite("instruction embedding", embedding)
        return embedding.cpu().expand(self.num_robots, -1)

    def _of_text(self, text: str) -> np.ndarray:
        if self._encode is None:
            raise ValueError(f"instruction {text!r} is a text: give the policy an encoder, or an embedding instead")
        if text not in self._embedding_of_text:
            self._embedding_of_text[text] = np.asarray(self._encode(text), np.float32)
        return self._embedding_of_text[text]


def act_together(
    policies: Sequence[RT1Policy],
    frames: Sequence[Frame],
    instructions: Sequence[Instruction],
    states: Sequence[RobotState] | None = None,
) -> list[Action]:
    """What each policy's `act` says to its frame (H, W, C), instruction and state, from one pass for all.

    They are different policies of one robot each that share their weights (`for_another_robot`). All input is looked at
    before the first history moves. Raises ValueError as `act` does.
    """
    if any(policy.model is not policies[0].model or policy.num_robots != 1 for policy in policies):
        raise ValueError("policies act together that have one robot each and share one model's weights")
    states = [None] * len(policies) if states is None else states
    embeddings_1D = [policy._embeddings(said) for policy, said in zip(policies, instructions, strict=True)]
    seen = [
        policy._seen(frame, state, embedding_1D)[0]
        for policy, frame, state, embedding_1D in zip(policies, frames, states, embeddings_1D, strict=True)
    ]
    if not seen:
        return []
    answers = _advanced(policies, Seen.joined(seen), torch.cat(embeddings_1D))
    tokens_1A, seen_1 = zip(*answers, strict=True)
    return _actions(policies, torch.cat(tokens_1A), torch.cat(seen_1))


def _actions(policies: Sequence[RT1Policy], tokens_RA: Tensor, seen_R: Tensor) -> list[Action]:
    """Of policies of one robot each; those that answer one dataset, at once."""
    values_RA = decode(tokens_RA, policies[0].model.spec)
    actions: dict[int, Action] = {}
    for outlet in {policy._outlet for policy in policies}:
        rows = [row for row, policy in enumerate(policies) if policy._outlet is outlet]
        actions |= zip(rows, outlet.actions(values_RA[rows], tokens_RA[rows], seen_R[rows]), strict=True)
    return [actions[row] for row in range(len(policies))]


@torch.no_grad()
def _advanced(policies: Sequence[RT1Policy], seen: Seen, embedding_RD: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(tokens (R, A), frames seen (R,)) of the robots of each policy, whose histories move on by one frame."""
    model, robots = policies[0].model, [policy.num_robots for policy in policies]
    before = History.joined([policy._history or History.of_none(model, policy.num_robots) for policy in policies])
    changed_R = (embedding_RD != before.embedding_RD).any(dim=1)
    real_RT = _pushed(before.real_RT & ~changed_R[:, None], torch.ones_like(changed_R))
    taken_RTA, device = before.action_tokens_RTA, before.tokens_RTJD.device
    inputs = {"embedding_RD": embedding_RD.to(device), "tokens_RTJD": before.tokens_RTJD, "real_RT": real_RT.to(device)}
    inputs |= seen.inputs(policies[0])
    inputs |= {} if taken_RTA is None else {"action_tokens_RTA": taken_RTA.to(device)}
    window_RTJD, logits_RAV = policies[0]._step(inputs)
    chosen = choose_tokens(logits_RAV.cpu(), model.spec).split(robots)  # the only wait for the device
    tokens = [policy._outlet.tokens(part) for policy, part in zip(policies, chosen, strict=True)]
    if taken_RTA is not None:
        # The window's last place is the present action, which the model never looks at: it slides in from there.
        tokens_RA = torch.cat(tokens)
        moved_RTA = torch.cat([taken_RTA[:, :-1], tokens_RA[:, None], torch.zeros_like(tokens_RA)[:, None]], dim=1)
        taken_RTA = moved_RTA[:, -taken_RTA.shape[1] :]
    after = History(tokens_RTJD=window_RTJD, real_RT=real_RT, embedding_RD=embedding_RD, action_tokens_RTA=taken_RTA)
    for policy, history in zip(policies, after.split(robots), strict=True):
        policy._history, policy._is_newly_marked = history, False
    seen_R = real_RT[:, :: model.config.stride].sum(dim=1)
    return list(zip(tokens, seen_R.split(robots), strict=True))


def _pushed(ring_RT: Tensor, newest_R: Tensor) -> Tensor:
    """The ring moved by one step, with the newest at its end."""
    return torch.cat([ring_RT[:, 1:], newest_R[:, None].to(ring_RT.dtype)], dim=1)
