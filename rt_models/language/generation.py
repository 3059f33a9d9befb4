"""RT-2 at work: prompts in, answers out; on a robot's prompt only actions can be said (arXiv 2307.15818, section 3.2).

An action is decoded field by field, and at each place only the tokens of that field's bins can be chosen. Web prompts
have the full vocabulary. Pictures and prompt go through the model once, every further token through the cache.

Works on any `LanguageModel`: RT2 and RT2VLM. Axes: B rows, K fields, A actions, C choices of a field, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from rt_models.language.prompts import RT2Text

Batch = Mapping[str, Tensor]
Choose = Callable[[Tensor], Tensor]
"""int64 (B,) of float (B, C) logits."""


class LanguageModel(Protocol):
    """A model that reads pictures and prompts, and continues."""

    @property
    def vocab_size(self) -> int: ...

    def start(self, batch: Batch, *, max_new_tokens: int) -> tuple[Tensor, Any]:
        """(float (B, V) logits of the token after each row's prompt, a cache with room for `max_new_tokens` tokens)."""
        ...

    def advance(self, tokens_B: Tensor, cache: Any, active_B: Tensor) -> Tensor:
        """float (B, V) logits once `tokens_B` stand at the rows' ends; rows that are not active stay as they are."""
        ...


# --- How a token is chosen ---


@dataclass(frozen=True, kw_only=True)
class Greedy:
    """The likeliest."""

    def chooser(self, device: torch.device) -> Choose:
        return lambda logits_BC: logits_BC.argmax(dim=-1)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Drawn in proportion to probability ^ (1 / temperature)."""

    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature {self.temperature} must be above 0; Greedy is its limit")

    def chooser(self, device: torch.device) -> Choose:
        generator = torch.Generator(device).manual_seed(self.seed)

        def draw(logits_BC: Tensor) -> Tensor:
            share_BC = (logits_BC.float() / self.temperature).softmax(dim=-1)
            return torch.multinomial(share_BC, 1, generator=generator)[:, 0]

        return draw


@dataclass(frozen=True, kw_only=True)
class ExpectedValue:
    """The mean over a field's bins, weighted by their probabilities; the bin it falls into goes on as token.

    A class (terminate) and a word have no mean: there, the likeliest.
    """

    def chooser(self, device: torch.device) -> Choose:
        return Greedy().chooser(device)


Strategy = Greedy | Sampling | ExpectedValue


# --- Actions ---


@dataclass(frozen=True, kw_only=True)
class PredictedActions:
    """One action for each row."""

    bins_BA: Tensor
    """int64, every dimension of the spec; those that are no field, or not in the dataset, hold the neutral bin."""
    values_BA: Tensor
    """float32 model values."""
    valid_mass_BK: Tensor
    """float32: probability that the model gave to valid tokens at each place before the others were shut out; 1 where
    the dataset has no such dimension."""
    invalid_BK: Tensor
    """bool: without that, the likeliest token of the vocabulary would have been no valid one."""
    plans: tuple[tuple[int, ...], ...] = ()
    """Ids of each row's plan, where the prompt asked for one; without the mark that ends it."""


@torch.no_grad()
def predict_actions(
    model: LanguageModel,
    batch: Batch,
    text: RT2Text,
    *,
    strategy: Strategy | None = None,
    action_mask_BA: Tensor | None = None,
    plan_room: int = 0,
) -> PredictedActions:
    """The actions for a batch of robot prompts ("frames", "image_index", "tokens", "token_mask").

    `action_mask_BA` bool: False where a row's dataset has no such dimension; it is said to be neutral, as in training.
    `plan_room` above 0 lets the model say a plan of so many tokens first; the prompts must ask for one. Raises
    ValueError where the model's logits are not finite.
    """
    _require_vocabulary(model, text)
    strategy = strategy or Greedy()
    fields = len(text.field_dims)
    mark = text.tokenizer.encode(text.config.action_mark) if plan_room else []
    answer = _Answer(model, batch, max_new_tokens=fields + plan_room + len(mark))
    choose = strategy.chooser(answer.logits_BV.device)
    plans = _say_plans(answer, text, mark, plan_room, choose) if plan_room else ()
    picked = [
        _say_field(answer, text, number, choose, strategy, None if action_mask_BA is None else action_mask_BA[:, dim])
        for number, dim in enumerate(text.field_dims)
    ]
    bins_BK, values_BK, mass_BK, invalid_BK = (torch.stack(column, dim=1) for column in zip(*picked, strict=True))
    bins_BA = text.all_bins(bins_BK)
    values_BA = text.values(bins_BA)
    values_BA[:, text.field_dims] = values_BK
    return PredictedActions(
        bins_BA=bins_BA, values_BA=values_BA, valid_mass_BK=mass_BK, invalid_BK=invalid_BK, plans=plans
    )


def _say_field(
    answer: _Answer, text: RT2Text, number: int, choose: Choose, strategy: Strategy, present_B: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(bins, model values, valid mass, whether the unmasked choice is invalid), (B,) each, of one field."""
    logits_BV = answer.logits_BV.float()
    ids_C = torch.tensor(text.action_ids[: text.num_choices()[number]], device=logits_BV.device)
    logits_BC = logits_BV[:, ids_C]
    mass_B = (logits_BC.logsumexp(dim=-1) - logits_BV.logsumexp(dim=-1)).exp()
    if not bool(mass_B.isfinite().all()):  # any choice among them would look like an action
        raise ValueError("the model's logits are not finite: its weights have diverged or are damaged, load others")
    invalid_B = ~torch.isin(logits_BV.argmax(dim=-1), ids_C)
    value_C = text.bin_values(number).to(logits_BV.device)
    bins_B = choose(logits_BC)
    values_B = value_C[bins_B]
    if isinstance(strategy, ExpectedValue) and not text.is_class(number):
        values_B = logits_BC.softmax(dim=-1) @ value_C
        bins_B = text.bins_of_field(number, values_B)
    if present_B is not None:
        neutral_bin, neutral_value = text.neutral(number)
        bins_B = torch.where(present_B, bins_B, neutral_bin)
        values_B = torch.where(present_B, values_B, neutral_value)
        mass_B, invalid_B = torch.where(present_B, mass_B, 1.0), invalid_B & present_B  # nothing is chosen there
    if number + 1 < len(text.field_dims):
        answer.say(ids_C[bins_B])
    return bins_B, values_B, mass_B, invalid_B


# --- Free text ---


@torch.no_grad()
def generate(
    model: LanguageModel, batch: Batch, *, eos_id: int, max_new_tokens: int, strategy: Strategy | None = None
) -> list[list[int]]:
    """Ids of the answer to each prompt, at most `max_new_tokens`, of the full vocabulary, without the end token."""
    answer = _Answer(model, batch, max_new_tokens=max_new_tokens)
    choose = (strategy or Greedy()).chooser(answer.logits_BV.device)
    active_B = torch.ones(len(answer.logits_BV), dtype=torch.bool, device=answer.logits_BV.device)
    answers: list[list[int]] = [[] for _ in active_B]
    for number in range(max_new_tokens):
        token_B = choose(answer.logits_BV)
        active_B &= token_B != eos_id
        for row in active_B.nonzero().flatten().tolist():
            answers[row].append(int(token_B[row]))
        if number + 1 == max_new_tokens or not bool(active_B.any()):
            break
        answer.say(token_B, active_B)
    return answers


def _say_plans(
    answer: _Answer, text: RT2Text, mark: list[int], max_new_tokens: int, choose: Choose
) -> tuple[tuple[int, ...], ...]:
    """Let each row say its plan up to the mark that ends it; rows that do not come to it have it said for them."""
    active_B = torch.ones(len(answer.logits_BV), dtype=torch.bool, device=answer.logits_BV.device)
    plans: list[list[int]] = [[] for _ in active_B]
    for _ in range(max_new_tokens):
        token_B = choose(answer.logits_BV)
        ended = (token_B == text.tokenizer.eos_id).tolist()
        marked = [plans[row][-len(mark) :] == mark for row in range(len(plans))]
        active_B &= torch.tensor([not (e or m) for e, m in zip(ended, marked, strict=True)], device=active_B.device)
        if not bool(active_B.any()):
            break
        for row in active_B.nonzero().flatten().tolist():
            plans[row].append(int(token_B[row]))
        answer.say(token_B, active_B)
    unmarked_B = torch.tensor([ids[-len(mark) :] != mark for ids in plans], device=active_B.device)
    if bool(unmarked_B.any()):
        for token in mark:
            answer.say(torch.full_like(unmarked_B, token, dtype=torch.int64), unmarked_B)
    return tuple(
        tuple(ids if open_ else ids[: -len(mark)]) for ids, open_ in zip(plans, unmarked_B.tolist(), strict=True)
    )


class _Answer:
    """Rows under way: the logits of each row's next token."""

    def __init__(self, model: LanguageModel, batch: Batch, *, max_new_tokens: int) -> None:
        self._model = model
        self.logits_BV, self._cache = model.start(batch, max_new_tokens=max_new_tokens)

    def say(self, tokens_B: Tensor, active_B: Tensor | None = None) -> None:
        if active_B is None:
            active_B = torch.ones_like(tokens_B, dtype=torch.bool)
        logits_BV = self._model.advance(tokens_B, self._cache, active_B)
        self.logits_BV = torch.where(active_B[:, None], logits_BV, self.logits_BV)


def _require_vocabulary(model: LanguageModel, text: RT2Text) -> None:
    if model.vocab_size < text.vocab_size:
        raise ValueError(
            f"the model's vocabulary has {model.vocab_size} tokens, tokenizer and action bins need {text.vocab_size}: "
            f"set model.vocab_size to at least that"
        )
