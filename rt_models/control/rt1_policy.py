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

import numpy as np
import torch
from torch import Tensor

from rt_models.action_tokens import decode
from rt_models.control.action import Action, ActionOutlet
from rt_models.control.constrained_decoding import choose_tokens
from rt_models.input_checks import require_finite
from rt_models.rt1 import RT1
from rt_models.spec import EMBEDDING_WIDTH, DatasetContract
from rt_models.vision.fuse_batch_norm import fuse_batch_norm

Instruction = str | Sequence[str] | np.ndarray | Tensor


class RT1Policy:
    """Runs an RT1 with history. `encode` turns a text into its (512,) embedding.

    `dataset`, a side of the model's contract, makes values physical, and neutral where it has no such dimension;
    without it they are model values.

    It works with a copy of the model's weights as they are now (`.model`), BatchNorm fused in.
    """

    def __init__(
        self,
        model: RT1,
        *,
        dataset: DatasetContract | None = None,
        encode: Callable[[str], np.ndarray] | None = None,
        num_robots: int = 1,
    ) -> None:
        if num_robots < 1:
            raise ValueError(f"num_robots must be at least 1, got {num_robots}")
        self._outlet = ActionOutlet(model.spec, dataset)
        self.model, self.num_robots = fuse_batch_norm(model), num_robots
        self.model.compile_parts()
        self._encode = encode
        self._embedding_of_text: dict[str, np.ndarray] = {}
        self.reset()

    def for_another_robot(self) -> RT1Policy:
        """A policy of the same weights, shared, with a history of its own."""
        other = copy.copy(self)
        other.reset()
        return other

    def reset(self, robots: Sequence[int] | None = None) -> None:
        """Begin an episode: forget the history of these robots, or of all. Raises ValueError for one there is not."""
        if robots is None:
            self._allocate()
            return
        unknown = [robot for robot in robots if not 0 <= robot < self.num_robots]
        if unknown:
            raise ValueError(f"robot {unknown[0]} cannot be reset: this policy's are 0..{self.num_robots - 1}")
        self._real_RT[list(robots)] = False

    @torch.no_grad()
    def act(self, frame: np.ndarray | Tensor, instruction: Instruction) -> Action:
        """The action for the newest frame, uint8 (H, W, C) of any size, or (R, H, W, C) for all robots at once.

        `instruction` is a text or a float (512,) embedding for all robots, or one for each.
        Raises ValueError for another shape or dtype.
        """
        if self.model.training:
            raise ValueError("the policy's model is in training mode: call model.eval() before acting")
        frame_RHWC = self._frames(frame)
        embedding_RD = self._embeddings(instruction)
        changed_R = (embedding_RD != self._embedding_RD).any(dim=1)
        self._real_RT &= ~changed_R[:, None]
        self._embedding_RD = embedding_RD
        tokens_RKD = self.model.encode_frames(frame_RHWC, embedding_RD)
        self._tokens_RTKD = _pushed(self._tokens_RTKD, tokens_RKD)
        self._real_RT = _pushed(self._real_RT, torch.ones_like(changed_R))
        logits = self.model.action_logits(self._tokens_RTKD, self._action_tokens_RTA, self._real_RT, "last")
        tokens_RA = self._outlet.tokens(choose_tokens(logits[:, 0], self.model.spec))
        if self._action_tokens_RTA is not None:
            # The window's last place is the present action, which the model never looks at: it slides in from there.
            self._action_tokens_RTA[:, -1] = tokens_RA
            self._action_tokens_RTA = _pushed(self._action_tokens_RTA, torch.zeros_like(tokens_RA))
        values_RA, seen_R = decode(tokens_RA, self.model.spec), self._real_RT.sum(dim=1)
        return self._outlet.action(values_RA, tokens_RA, seen_R, single=frame.ndim == 3)

    def _allocate(self) -> None:
        config, weight = self.model.config, self.model.transformer.output.weight
        robots, steps = self.num_robots, config.num_steps
        device = weight.device
        self._tokens_RTKD = weight.new_zeros(robots, steps, config.num_image_tokens, config.feature_width)
        self._real_RT = torch.zeros(robots, steps, dtype=torch.bool, device=device)
        self._embedding_RD = torch.zeros(robots, EMBEDDING_WIDTH, device=device)
        self._action_tokens_RTA = None
        if config.previous_actions == "one_hot":
            shape = (robots, steps, self.model.spec.size)
            self._action_tokens_RTA = torch.zeros(shape, dtype=torch.int64, device=device)

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
        return frame.reshape(shape).to(self._real_RT.device)

    def _embeddings(self, instruction: Instruction) -> Tensor:
        """float32 (R, 512)"""
        expected = f"float ({EMBEDDING_WIDTH},) or ({self.num_robots}, {EMBEDDING_WIDTH})"
        if isinstance(instruction, str):
            given: np.ndarray | Tensor = self._of_text(instruction)
        elif isinstance(instruction, np.ndarray | Tensor):
            given = instruction
        elif isinstance(instruction, Sequence) and instruction and all(isinstance(text, str) for text in instruction):
            given = np.stack([self._of_text(text) for text in instruction])
        else:
            raise ValueError(f"instruction: expected a text, texts or an embedding {expected}, got {instruction!r:.40}")
        known_shape = tuple(given.shape) in ((EMBEDDING_WIDTH,), (self.num_robots, EMBEDDING_WIDTH))
        if "float" not in str(given.dtype) or not known_shape:
            raise ValueError(f"instruction embedding: expected {expected}, got {given.dtype} {tuple(given.shape)}")
        embedding = given.float() if isinstance(given, Tensor) else torch.from_numpy(np.array(given, np.float32))
        require_finite("instruction embedding", embedding)
        return embedding.to(self._real_RT.device).expand(self.num_robots, -1)

    def _of_text(self, text: str) -> np.ndarray:
        if self._encode is None:
            raise ValueError(f"instruction {text!r} is a text: give the policy an encoder, or an embedding instead")
        if text not in self._embedding_of_text:
            self._embedding_of_text[text] = np.asarray(self._encode(text), np.float32)
        return self._embedding_of_text[text]


def _pushed(ring_RT: Tensor, newest_R: Tensor) -> Tensor:
    """The ring moved by one step, with the newest at its end."""
    return torch.cat([ring_RT[:, 1:], newest_R[:, None].to(ring_RT.dtype)], dim=1)
