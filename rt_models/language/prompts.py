"""RT-2's texts as tokens and back: prompts, answers, actions (arXiv 2307.15818, section 3.2).

An action is text: one token for each field, in RT-1's space `terminate, position x y z, rotation x y z, gripper`, after
the prompt "Q: what action should the robot take to [instruction]? A:". A web example is a question and its answer, or a
caption. With a plan (chain of thought) the answer is "[plan]. Action:" and then the action, after "Instruction:
[instruction]. Plan:". Every answer ends with the end token; only answers are trained on.

`RT2TextConfig.build(tokenizer)` gives an `RT2Text`. A field is a dimension of the ActionSpec. Where a dataset does not
have a dimension, its place holds the token of the neutral value (zero motion; the arm moves on, it never terminates)
and is not trained on, and decoding puts it there too.

A prompt may name the cameras whose pictures go before it ({cameras} in a template). A state stands before the prompt as
"State:" with one action token for each value, the bin that it falls into, and "none" for one that is not there.

Axes: A actions of the spec, K fields of the text, B rows, L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rt_models.action_space import RT1_SPACE, ActionSpace, ActionSpec
from rt_models.action_tokens import decode, encode
from rt_models.camera_roles import MAIN_CAMERA
from rt_models.config_checks import require_choices, require_sizes
from rt_models.language.action_vocabulary import ActionVocabulary, IntegerTokens, Tokenizer
from rt_models.robot_inputs import StateInput

FIELDS = (
    "terminate_episode",
    *(f"world_vector_{axis}" for axis in "xyz"),
    *(f"rotation_delta_{axis}" for axis in "xyz"),
    "gripper_closedness_action",
)


_PLACES = {"robot_prompt": "instruction", "plan_prompt": "instruction", "question_prompt": "question"}
_STATE, _NONE = "State:", " none"
_STATE_TOKENS, _VALUE_TOKENS = 16, 6  # at most: of the words around a state, and of a value that is not there


@dataclass(frozen=True, kw_only=True)
class RT2TextConfig:
    """Which texts RT-2 reads and writes, and how actions are binned.

    Language-Table's two frames and "X Y" of integers -10 .. 10 is `RT2TextConfig.language_table()`.
    """

    vocabulary: ActionVocabulary = field(default_factory=IntegerTokens)
    """Which token is which bin."""
    fields: tuple[str, ...] = FIELDS
    """Dimensions of the action space that an answer spells out, in this order. None given: all in the space's order, in
    RT-1's space the eight of the paper."""
    frames: int = 1
    """Consecutive camera frames that go before a robot's prompt, the newest last."""
    bins: int = 256
    """Bins that each dimension is cut into."""
    binning: Literal["truncate", "centre"] = "centre"
    """Which value a bin stands for: "truncate" as the official code, "centre" without its half-bin bias."""
    world_vector_limit: float = 1.0
    """Bound of the arm's model-space displacement per step, in RT-1's space."""
    action_space: ActionSpace | None = None
    """The space it acts in; None is RT-1's own of eleven dimensions. rtp train sets that of the stores."""
    robot_prompt: str = "Q: what action should the robot take to {instruction}? A:"
    """Prompt of a robot step; {instruction} stands for its words, and {cameras}, if it is there, for the cameras whose
    pictures go before it."""
    plan_prompt: str = "Instruction: {instruction}. Plan:"
    """Prompt of a robot step whose answer begins with a plan."""
    action_mark: str = " Action:"
    """Stands between a plan and its action."""
    question_prompt: str = "Q: {question} A:"
    """Prompt of a web example; {question} stands for its words."""
    caption_prompt: str = "Q: what is in the picture? A:"
    """Prompt of a web example without a question."""

    def __post_init__(self) -> None:
        require_sizes(self, "frames", "bins", part="text.")
        require_choices(self, "text.")
        for name, word in _PLACES.items():
            template, place = getattr(self, name), f"{{{word}}}"
            rest = template.replace(place, "")
            rest = rest.replace("{cameras}", "") if word == "instruction" else rest
            if place not in template or set("{}").intersection(rest):
                raise ValueError(f"text.{name} must hold {place} and no other braces, got {template!r}")
        if not self.action_mark.strip():
            raise ValueError("text.action_mark is empty, and something must stand between a plan and its action")
        unknown = [name for name in self.fields if name not in self.spec().names]
        if unknown or len(set(self.fields)) < len(self.fields):
            raise ValueError(
                f"text.fields: needs different dimensions of {', '.join(self.spec().names)}, got {self.fields}"
            )

    @staticmethod
    def language_table() -> RT2TextConfig:
        """Two integers -10 .. 10 in steps of a centimetre: 21 bins whose middles they are."""
        return RT2TextConfig(
            fields=("world_vector_x", "world_vector_y"),
            vocabulary=IntegerTokens(first=-10),
            frames=2,
            bins=21,
            world_vector_limit=0.105,
        )

    def spec(self) -> ActionSpec:
        """The action space, binned as here; dimensions that are no field keep their neutral value."""
        space = self.action_space or RT1_SPACE
        return space.spec(bins=self.bins, world_vector_limit=self.world_vector_limit, binning=self.binning)

    def said_fields(self) -> tuple[str, ...]:
        """The dimensions that an answer spells out, in order."""
        whole = FIELDS if self.action_space is None or self.action_space.is_rt1 else self.action_space.names
        return self.fields or whole

    def answered_dims(self) -> tuple[bool, ...]:
        """Per dimension of `spec()` whether it is a field."""
        return tuple(name in self.said_fields() for name in self.spec().names)

    def in_space(self, space: ActionSpace | None) -> RT2TextConfig:
        """The same texts in another space. Fields that it does not have give way to the whole of it, and so do those of
        RT-1's space where nobody chose them for this one."""
        target = space or RT1_SPACE
        is_default = self.action_space is None and self.fields == FIELDS and not target.is_rt1
        fields = self.fields if set(self.fields) <= set(target.names) and not is_default else ()
        return replace(self, action_space=space, fields=fields)

    def longest_row(self, max_tokens: int, state: StateInput | None) -> int:
        """Tokens of the longest prompt with its answer: `max_tokens`, which is meant for RT-1's eight fields, and room
        for more of them and for a state."""
        fields = max(len(self.said_fields()) - len(FIELDS), 0)
        return max_tokens + fields + (0 if state is None else _STATE_TOKENS + _VALUE_TOKENS * len(state.names))

    def prompt_text(self, instruction: str, cameras: Sequence[str], state: StateInput | None) -> str:
        """The words of a robot's prompt, with those around a state where there is one: what a tokenizer learns from."""
        prompt = self.robot_prompt.format(instruction=instruction, cameras=", ".join(cameras))
        return prompt if state is None else f"{_STATE}{_NONE}. {prompt}"

    def build(
        self,
        tokenizer: Tokenizer,
        *,
        max_tokens: int,
        cameras: Sequence[str] = (MAIN_CAMERA,),
        state: StateInput | None = None,
    ) -> RT2Text:
        """For a model that reads these cameras and this state; `max_tokens` as of `longest_row`. Raises ValueError if
        the vocabulary has no room."""
        return RT2Text(self, tokenizer, self.longest_row(max_tokens, state), cameras, state)


@dataclass(frozen=True, kw_only=True)
class TextExample:
    """Prompt and answer as one row of tokens."""

    ids: tuple[int, ...]
    is_target: tuple[bool, ...]
    """True: trained on. The first token of an answer need not be."""
    prompt_length: int
    """Tokens before the answer."""


class RT2Text:
    """Texts of one tokenizer and action vocabulary. `spec` is the action space, `vocab_size` what a model must have."""

    def __init__(
        self,
        config: RT2TextConfig,
        tokenizer: Tokenizer,
        max_tokens: int,
        cameras: Sequence[str] = (MAIN_CAMERA,),
        state: StateInput | None = None,
    ) -> None:
        self.config, self.tokenizer, self.max_tokens = config, tokenizer, max_tokens
        self.cameras, self.state = tuple(cameras), state
        self.spec = config.spec()
        self.action_ids = config.vocabulary.build(tokenizer, config.bins)
        """Token id of each bin."""
        self.vocab_size = max(tokenizer.vocab_size, 1 + max(self.action_ids))
        self.field_dims = [self.spec.names.index(name) for name in config.said_fields()]
        """Dimension of each field."""
        self._bin_of_id = {number: bin_ for bin_, number in enumerate(self.action_ids)}
        neutral_A = torch.tensor([dimension.neutral(0.0) for dimension in self.spec.dimensions])
        self._neutral_A = neutral_A.nan_to_num(0.0)  # where no value is neutral, something must stand in the text
        self._neutral_bins_A = encode(self._neutral_A, self.spec)
        self._prompts: dict[str, tuple[int, ...]] = {}
        self._num_bos = int(tokenizer.bos_id is not None)

    # --- one example ---

    def robot_prompt(
        self,
        instruction: str,
        *,
        with_plan: bool = False,
        state: np.ndarray | None = None,
        cameras: Sequence[str] | None = None,
    ) -> tuple[int, ...]:
        """Ids up to where the model must say the action, or its plan. `state` float (P,) normalised, NaN where the
        robot has no such value; `cameras` those whose pictures go before it, by default all."""
        if not instruction.strip():
            raise ValueError("instruction: it is empty, and a robot needs to be told what to do")
        template = self.config.plan_prompt if with_plan else self.config.robot_prompt
        named = ", ".join(self.cameras if cameras is None else cameras)
        text = template.format(instruction=instruction.strip().rstrip(".?!"), cameras=named)
        return self._prompt(text) if self.state is None else self._after_state(text, state)

    def perturbed(self, state: np.ndarray, *, key: int) -> np.ndarray:
        """A state (P,) as a sample of this number sees it in training: with noise, or not at all."""
        assert self.state is not None
        random = np.random.default_rng((key, len(state)))
        noise_P, kept = random.standard_normal(len(state)), random.random() >= self.state.dropout
        return (state + self.state.noise * noise_P).astype(np.float32) if kept else np.full_like(state, np.nan)

    def _after_state(self, text: str, state: np.ndarray | None) -> tuple[int, ...]:
        """Ids of a prompt behind a state; without any value only the prompt."""
        if state is None or np.isnan(state).all():
            return self._prompt(text)
        bins_P = np.clip((np.nan_to_num(state) + 1) / 2 * self.config.bins, 0, self.config.bins - 1).astype(int)
        first, none, rest = (self._prompt(part)[self._num_bos :] for part in (_STATE, _NONE, f". {text}"))
        values = [
            none if np.isnan(value) else (self.action_ids[place],) for value, place in zip(state, bins_P, strict=True)
        ]
        bos = self._prompt(text)[: self._num_bos]
        ids = (*bos, *first, *(token for value in values for token in value), *rest)
        self._require_room(len(ids), text)
        return ids

    def web_prompt(self, question: str = "") -> tuple[int, ...]:
        """Ids up to the answer; without a question, up to a caption."""
        question = question.strip()
        return self._prompt(
            self.config.question_prompt.format(question=question) if question else self.config.caption_prompt
        )

    def robot(
        self,
        instruction: str,
        action_A: np.ndarray,
        mask_A: np.ndarray,
        plan: str = "",
        *,
        state: np.ndarray | None = None,
        cameras: Sequence[str] | None = None,
    ) -> TextExample:
        """A robot's step: float (A,) model values of the spec, bool (A,) dimensions that the dataset has; state and
        cameras as of `robot_prompt`."""
        present_A = torch.as_tensor(mask_A)
        said_A = torch.where(present_A, torch.as_tensor(action_A, dtype=torch.float32), self._neutral_A)
        ids = [self.action_ids[bin_] for bin_ in self.field_bins(said_A).tolist()]
        targets = [bool(present_A[dim]) for dim in self.field_dims]
        thought = self.plan_ids(plan) if plan.strip() else ()
        answer = (*thought, *ids, self.tokenizer.eos_id)
        prompt = self.robot_prompt(instruction, with_plan=bool(thought), state=state, cameras=cameras)
        return self._example(prompt, answer, [True] * len(thought) + targets)

    def web(self, question: str, answer: str) -> TextExample:
        """A question with its answer; question "": a caption."""
        if not answer.strip():
            raise ValueError(f"answer: it is empty (question {question!r})")
        ids = self._encode(" " + answer.strip())
        return self._example(self.web_prompt(question), (*ids, self.tokenizer.eos_id), [True] * len(ids))

    def plan_ids(self, plan: str) -> tuple[int, ...]:
        """A plan and the mark after it."""
        mark = self.config.action_mark
        return tuple(self._encode(f" {plan.strip().rstrip('.')}.") + self._encode(mark))

    # --- rows of a batch ---

    def collate(self, examples: Sequence[TextExample], num_tokens: int | None = None) -> dict[str, Tensor]:
        """ "tokens" int64, "token_mask", "answer_mask" bool, (B, L), padded at the right; "prompt_length" int64 B.

        L is num_tokens, by default the length of the longest row.
        """
        tokens_BL, mask_BL = self._padded([example.ids for example in examples], num_tokens)
        answer_BL = torch.zeros_like(mask_BL)
        for row, example in enumerate(examples):
            answer_BL[row, : len(example.ids)] = torch.tensor(example.is_target)
        prompt_B = torch.tensor([example.prompt_length for example in examples])
        return {"tokens": tokens_BL, "token_mask": mask_BL, "answer_mask": answer_BL, "prompt_length": prompt_B}

    def collate_prompts(self, prompts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """ "tokens" int64 and "token_mask" bool, (B, L), padded at the right."""
        tokens_BL, mask_BL = self._padded(prompts)
        return {"tokens": tokens_BL, "token_mask": mask_BL}

    # --- actions ---

    def field_bins(self, action_xA: Tensor) -> Tensor:
        """int64 (..., K) bins of the fields of float (..., A) model values."""
        return encode(action_xA, self.spec)[..., self.field_dims]

    def all_bins(self, bins_xK: Tensor) -> Tensor:
        """int64 (..., A): the bins of the fields, and the neutral bin in every other dimension."""
        bins_xA = self._neutral_bins_A.to(bins_xK.device).expand(*bins_xK.shape[:-1], -1).clone()
        bins_xA[..., self.field_dims] = bins_xK
        return bins_xA

    def values(self, bins_xA: Tensor) -> Tensor:
        """float32 (..., A) model values of bins; dimensions that are no field have exactly their neutral value."""
        values_xA = decode(bins_xA, self.spec)
        kept_A = torch.zeros(self.spec.size, dtype=torch.bool, device=bins_xA.device)
        kept_A[self.field_dims] = True
        return torch.where(kept_A, values_xA, self._neutral_A.to(bins_xA.device))

    def neutral(self, number: int) -> tuple[int, float]:
        """(bin, model value) that stand in this field where a dataset has no such dimension."""
        dim = self.field_dims[number]
        return int(self._neutral_bins_A[dim]), float(self._neutral_A[dim])

    def num_choices(self) -> list[int]:
        """Per field the number of bins it may take: classes of a discrete dimension, else all bins."""
        return [self.spec.dimensions[dim].num_classes or self.spec.bins for dim in self.field_dims]

    def is_class(self, number: int) -> bool:
        """Whether this field is a class number."""
        return self.spec.dimensions[self.field_dims[number]].discrete

    def bin_values(self, number: int) -> Tensor:
        """float32 (C,): the model value of each bin this field may take."""
        bins_C = torch.arange(self.num_choices()[number])
        return decode(bins_C[:, None].expand(-1, self.spec.size), self.spec)[:, self.field_dims[number]]

    def bins_of_field(self, number: int, values_B: Tensor) -> Tensor:
        """int64 (B,): the bins that model values of one field fall into."""
        return encode(values_B[:, None].expand(-1, self.spec.size), self.spec)[:, self.field_dims[number]]

    # --- back to text ---

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids up to the end token; an action token reads as the integer it stands for."""
        first = self.config.vocabulary.first if isinstance(self.config.vocabulary, IntegerTokens) else 0
        words: list[str] = []
        run: list[int] = []
        for number in ids:
            if number == self.tokenizer.eos_id:
                break
            if number in self._bin_of_id:
                words += [self.tokenizer.decode(run).strip(), str(first + self._bin_of_id[number])]
                run = []
            else:
                run.append(number)
        return " ".join(word for word in [*words, self.tokenizer.decode(run).strip()] if word)

    # --- inner ---

    def _encode(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text)
        special = self.tokenizer.special_ids.intersection(ids) - {self.tokenizer.unk_id}
        if special:  # it would end an answer, or claim a picture that is not there
            raise ValueError(f"text {text[:60]!r}: it spells token {min(special)}, which is no text: leave it out")
        return ids

    def _prompt(self, text: str) -> tuple[int, ...]:
        if text not in self._prompts:
            bos = () if self.tokenizer.bos_id is None else (self.tokenizer.bos_id,)
            ids = (*bos, *self._encode(text))
            self._require_room(len(ids), text)
            if len(self._prompts) > 100_000:  # a web corpus has no end of questions
                self._prompts.clear()
            self._prompts[text] = ids
        return self._prompts[text]

    def _example(self, prompt: tuple[int, ...], answer: tuple[int, ...], targets: Sequence[bool]) -> TextExample:
        ids = prompt + answer
        self._require_room(len(ids), self.decode(ids))
        is_target = (*[False] * len(prompt), *targets, True)  # an answer's end is always trained on
        return TextExample(ids=ids, is_target=is_target, prompt_length=len(prompt))

    def _require_room(self, length: int, text: str) -> None:
        if length > self.max_tokens:
            raise ValueError(
                f"text {text[:60]!r}...: it has {length} tokens and the context holds {self.max_tokens}: "
                f"shorten it or raise the model's max_tokens"
            )

    def _padded(self, rows: Sequence[Sequence[int]], num_tokens: int | None = None) -> tuple[Tensor, Tensor]:
        length = max(len(row) for row in rows) if num_tokens is None else num_tokens
        tokens_BL = torch.full((len(rows), length), self.tokenizer.pad_id)
        mask_BL = torch.zeros(len(rows), length, dtype=torch.bool)
        for number, row in enumerate(rows):
            tokens_BL[number, : len(row)] = torch.tensor(row)
            mask_BL[number, : len(row)] = True
        return tokens_BL, mask_BL
