"""A model at work: one camera frame in, one action out, at every control step, for one robot or many.

The policy keeps the image tokens of the last T frames, so a control step costs one pass of the tokenizer and one of the
transformer, answering the last step only. The result is that of recomputing the whole window. An episode begins with
padding that no real step attends to, as in training. Image tokens carry the instruction they were made with; when the
instruction changes they are stale, and that robot's history begins anew.

Axes: R robots, T steps, K image tokens, D width, HWC pixels, A actions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rt_models.action_tokens import decode
from rt_models.control.action import Action, ActionOutlet
from rt_models.control.constrained_decoding import choose_tokens
from rt_models.control.control_step import ControlStep
from rt_models.input_checks import require_finite
from rt_models.rt1 import RT1
from rt_models.spec import EMBEDDING_WIDTH, DatasetContract
from rt_models.vision.fuse_batch_norm import fuse_batch_norm
from rt_models.vision.image_inputs import resize

Instruction = str | Sequence[str] | np.ndarray | Tensor


@dataclass(frozen=True, kw_only=True)
class History:
    """What is kept of each robot's last T frames. Image tokens lie on the model's device, the rest on the CPU."""

    tokens_RTKD: Tensor
    real_RT: Tensor
    """bool: False where the episode had not begun."""
    embedding_RD: Tensor
    """The instruction that the tokens were made with."""
    action_tokens_RTA: Tensor | None

    @staticmethod
    def of_none(model: RT1, robots: int) -> History:
        """Of robots that have seen nothing."""
        config, steps = model.config, model.config.num_steps
        weight = model.transformer.output.weight
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        shape = (robots, steps, config.num_image_tokens, config.feature_width)
        has_actions = config.previous_actions == "one_hot"
        return History(
            tokens_RTKD=torch.zeros(shape, dtype=wide, device=weight.device),
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
            tokens_RTKD=torch.cat([each.tokens_RTKD for each in histories]),
            real_RT=torch.cat([each.real_RT for each in histories]),
            embedding_RD=torch.cat([each.embedding_RD for each in histories]),
            action_tokens_RTA=torch.cat(actions) if actions else None,
        )

    def split(self, robots: Sequence[int]) -> list[History]:
        """Of so many robots each. Copies: a view would keep the histories of all in memory."""
        if len(robots) == 1:
            return [self]
        parts = [part.split(list(robots)) for part in (self.tokens_RTKD, self.real_RT, self.embedding_RD)]
        actions = self.action_tokens_RTA
        split = [None] * len(robots) if actions is None else actions.split(list(robots))
        return [
            History(
                tokens_RTKD=tokens.clone(),
                real_RT=real.clone(),
                embedding_RD=embedding.clone(),
                action_tokens_RTA=None if taken is None else taken.clone(),
            )
            for tokens, real, embedding, taken in zip(*parts, split, strict=True)
        ]


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
        return other

    def reset(self, robots: Sequence[int] | None = None) -> None:
        """Begin an episode: forget the history of these robots, or of all. Raises ValueError for one there is not."""
        if robots is None:
            self._history: History | None = None
            return
        unknown = [robot for robot in robots if not 0 <= robot < self.num_robots]
        if unknown:
            raise ValueError(f"robot {unknown[0]} cannot be reset: this policy's are 0..{self.num_robots - 1}")
        if self._history is not None:
            self._history.real_RT[list(robots)] = False

    def act(self, frame: np.ndarray | Tensor, instruction: Instruction) -> Action:
        """The action for the newest frame, uint8 (H, W, C) of any size, or (R, H, W, C) for all robots at once.

        `instruction` is a text or a float (512,) embedding for all robots, or one for each.
        Raises ValueError for another shape or dtype.
        """
        self._require_evaluation()
        image_RHWC, embedding_RD = self._images(self._frames(frame)), self._embeddings(instruction)
        ((tokens_RA, seen_R),) = _advanced([self], image_RHWC, embedding_RD)
        return self._action(tokens_RA, seen_R, single=frame.ndim == 3)

    def _require_evaluation(self) -> None:
        if self.model.training:
            raise ValueError("the policy's model is in training mode: call model.eval() before acting")

    def _action(self, tokens_RA: Tensor, seen_R: Tensor, *, single: bool) -> Action:
        return self._outlet.action(decode(tokens_RA, self.model.spec), tokens_RA, seen_R, single=single)

    def _images(self, frame_RHWC: Tensor) -> Tensor:
        """float (R, size, size, C) in [0, 1], on the model's device."""
        wide = torch.float64 if self.model.dtype == torch.float64 else torch.float32
        frame_RHWC = frame_RHWC.to(self.model.transformer.output.weight.device)
        return resize(frame_RHWC.to(wide) / 255, self.model.config.input.image_size)

    def _frames(self, frame: np.ndarray | Tensor) -> Tensor:
        """uint8 (R, H, W, C)"""
        channels, robots = self.model.config.num_channels(), self.num_robots
        expected = f"uint8 (H, W, {channels})" if robots == 1 else f"uint8 ({robots}, H, W, {channels})"
        if not isinstance(frame, np.ndarray | Tensor):
            raise ValueError(f"frame: expected an array or tensor {expected}, got {type(frame).__name__}")
        shape = (1, *frame.shape) if frame.ndim == 3 and robots == 1 else tuple(frame.shape)
        right = str(frame.dtype).removeprefix("torch.") == "uint8" and len(shape) == 4 and 0 not in shape
        if not right or (shape[0], shape[-1]) != (robots, channels):
            raise ValueError(f"frame: expected {expected}, got {frame.dtype} {tuple(frame.shape)}")
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
    policies: Sequence[RT1Policy], frames: Sequence[np.ndarray | Tensor], instructions: Sequence[Instruction]
) -> list[Action]:
    """What each policy's `act` says to its frame (H, W, C) and instruction, from one pass for all.

    They are different policies of one robot each that share their weights (`for_another_robot`). All input is looked at
    before the first history moves. Raises ValueError as `act` does.
    """
    if any(policy.model is not policies[0].model or policy.num_robots != 1 for policy in policies):
        raise ValueError("policies act together that have one robot each and share one model's weights")
    read = []
    for policy, frame, instruction in zip(policies, frames, instructions, strict=True):
        policy._require_evaluation()
        read.append((policy._frames(frame), policy._embeddings(instruction)))
    if not read:
        return []
    frames_1HWC, embeddings_1D = zip(*read, strict=True)
    one_size = len({frame.shape for frame in frames_1HWC}) == 1
    images = [torch.cat(frames_1HWC)] if one_size else frames_1HWC
    image_RHWC = torch.cat([policies[0]._images(frame) for frame in images])
    answers = _advanced(policies, image_RHWC, torch.cat(embeddings_1D))
    return [policy._action(*answer, single=True) for policy, answer in zip(policies, answers, strict=True)]


@torch.no_grad()
def _advanced(policies: Sequence[RT1Policy], image_RHWC: Tensor, embedding_RD: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(tokens (R, A), frames seen (R,)) of the robots of each policy, whose histories move on by one frame."""
    model, robots = policies[0].model, [policy.num_robots for policy in policies]
    before = History.joined([policy._history or History.of_none(model, policy.num_robots) for policy in policies])
    changed_R = (embedding_RD != before.embedding_RD).any(dim=1)
    real_RT = _pushed(before.real_RT & ~changed_R[:, None], torch.ones_like(changed_R))
    taken_RTA, device = before.action_tokens_RTA, image_RHWC.device
    inputs = {"image_RHWC": image_RHWC, "embedding_RD": embedding_RD.to(device), "tokens_RTKD": before.tokens_RTKD}
    inputs |= {"real_RT": real_RT.to(device)}
    inputs |= {} if taken_RTA is None else {"action_tokens_RTA": taken_RTA.to(device)}
    window_RTKD, logits_RAV = policies[0]._step(inputs)
    chosen = choose_tokens(logits_RAV.cpu(), model.spec).split(robots)  # the only wait for the device
    tokens = [policy._outlet.tokens(part) for policy, part in zip(policies, chosen, strict=True)]
    if taken_RTA is not None:
        # The window's last place is the present action, which the model never looks at: it slides in from there.
        tokens_RA = torch.cat(tokens)
        taken_RTA = torch.cat([taken_RTA[:, 1:-1], tokens_RA[:, None], torch.zeros_like(tokens_RA)[:, None]], dim=1)
    after = History(tokens_RTKD=window_RTKD, real_RT=real_RT, embedding_RD=embedding_RD, action_tokens_RTA=taken_RTA)
    for policy, history in zip(policies, after.split(robots), strict=True):
        policy._history = history
    return list(zip(tokens, real_RT.sum(dim=1).split(robots), strict=True))


def _pushed(ring_RT: Tensor, newest_R: Tensor) -> Tensor:
    """The ring moved by one step, with the newest at its end."""
    return torch.cat([ring_RT[:, 1:], newest_R[:, None].to(ring_RT.dtype)], dim=1)
