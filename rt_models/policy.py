"""A model at work: one camera frame in, one action out, at every control step, for one robot or many.

The policy keeps the image tokens of the last T frames, so a control step costs one pass of the tokenizer and one of the
transformer, answering the last step only. The result is that of recomputing the whole window. An episode begins with
padding that no real step attends to, as in training. Image tokens carry the instruction they were made with; when the
instruction changes they are stale, and that robot's history begins anew.

Axes: R robots, T steps, K image tokens, D width, HWC pixels, A actions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rt_models.action_tokens import decode
from rt_models.decoding import choose_tokens
from rt_models.folding import folded
from rt_models.rt1 import RT1
from rt_models.spec import EMBEDDING_WIDTH, AffineTransform

Instruction = str | Sequence[str] | np.ndarray | Tensor


@dataclass(frozen=True, kw_only=True)
class Action:
    """What to do now, in the order of the model's `spec.names`."""

    values: np.ndarray
    """float32 (A,) or (R, A): physical values where the policy has a transform, else model values."""
    tokens: np.ndarray
    """int64, the same shape: the bins chosen."""


class Policy:
    """Runs an RT1 with history. `transform` makes values physical; `encode` turns a text into its (512,) embedding.

    It works with a copy of the model's weights as they are now (`.model`), BatchNorm folded in.
    """

    def __init__(
        self,
        model: RT1,
        *,
        transform: AffineTransform | None = None,
        encode: Callable[[str], np.ndarray] | None = None,
        num_robots: int = 1,
    ) -> None:
        if num_robots < 1:
            raise ValueError(f"num_robots must be at least 1, got {num_robots}")
        self.model, self.num_robots = folded(model), num_robots
        self.model.compile_parts()
        self._transform, self._encode = transform, encode
        self._embedding_of_text: dict[str, np.ndarray] = {}
        self.reset()

    def reset(self, robots: Sequence[int] | None = None) -> None:
        """Begin an episode: forget the history of these robots, or of all."""
        if robots is None:
            self._allocate()
        else:
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
        tokens_RA = choose_tokens(logits[:, 0], self.model.spec)
        if self._action_tokens_RTA is not None:
            # The window's last place is the present action, which the model never looks at: it slides in from there.
            self._action_tokens_RTA[:, -1] = tokens_RA
            self._action_tokens_RTA = _pushed(self._action_tokens_RTA, torch.zeros_like(tokens_RA))
        return self._action(tokens_RA, single=frame.ndim == 3)

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

    def _action(self, tokens_RA: Tensor, *, single: bool) -> Action:
        values_RA = decode(tokens_RA, self.model.spec).cpu().numpy()
        if self._transform is not None:
            values_RA = self._transform.invert(values_RA)
        tokens = tokens_RA.cpu().numpy()
        return Action(values=values_RA[0], tokens=tokens[0]) if single else Action(values=values_RA, tokens=tokens)

    def _frames(self, frame: np.ndarray | Tensor) -> Tensor:
        frames = torch.as_tensor(frame)
        channels = self.model.config.num_channels()
        expected = (
            f"uint8 (H, W, {channels})" if self.num_robots == 1 else f"uint8 ({self.num_robots}, H, W, {channels})"
        )
        if frames.dim() == 3 and self.num_robots == 1:
            frames = frames[None]
        if (
            frames.dtype != torch.uint8
            or frames.dim() != 4
            or (len(frames), frames.shape[-1]) != (self.num_robots, channels)
        ):
            raise ValueError(f"frame: expected {expected}, got {frame.dtype} {tuple(frame.shape)}")
        return frames.to(self._real_RT.device)

    def _embeddings(self, instruction: Instruction) -> Tensor:
        """float32 (R, 512)"""
        if isinstance(instruction, str):
            given: np.ndarray | Tensor = self._of_text(instruction)
        elif isinstance(instruction, np.ndarray | Tensor):
            given = instruction
        else:
            given = np.stack([self._of_text(text) for text in instruction])
        embedding = torch.as_tensor(given, dtype=torch.float32).to(self._real_RT.device)
        if embedding.dim() == 1:
            embedding = embedding.expand(self.num_robots, -1)
        if tuple(embedding.shape) != (self.num_robots, EMBEDDING_WIDTH):
            raise ValueError(
                f"instruction embedding: expected float ({EMBEDDING_WIDTH},) "
                f"or ({self.num_robots}, {EMBEDDING_WIDTH}), got {tuple(given.shape)}"
            )
        return embedding

    def _of_text(self, text: str) -> np.ndarray:
        if self._encode is None:
            raise ValueError(f"instruction {text!r} is a text: give the policy an encoder, or an embedding instead")
        if text not in self._embedding_of_text:
            self._embedding_of_text[text] = np.asarray(self._encode(text), np.float32)
        return self._embedding_of_text[text]


def _pushed(ring_RT: Tensor, newest_R: Tensor) -> Tensor:
    """The ring moved by one step, with the newest at its end."""
    return torch.cat([ring_RT[:, 1:], newest_R[:, None].to(ring_RT.dtype)], dim=1)
