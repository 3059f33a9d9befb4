"""Decoding: nothing but actions on a robot's prompt, cached equals recomputed, rows independent of each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from rt_models.action_space import ARM
from rt_models.action_tokens import decode, encode
from rt_models.control import rt2_policy
from rt_models.control.action import Action
from rt_models.control.rt2_policy import RT2Policy, act_together
from rt_models.language.action_vocabulary import AddedTokens
from rt_models.language.generation import ExpectedValue, Greedy, Sampling, Strategy, generate, predict_actions
from rt_models.language.prompts import FIELDS, RT2Text, RT2TextConfig
from rt_models.rt2 import RT2
from tests.support.rt2_rows import INSTRUCTIONS, MINIMAL, make_batch, prompts_of

STRATEGIES = [Greedy(), Sampling(seed=1), ExpectedValue()]
TEXT = MINIMAL.build_text()


def fresh(**settings: object) -> RT2:
    torch.manual_seed(0)
    return RT2(replace(MINIMAL, **settings)).eval()  # type: ignore[arg-type]


def extended(batch: dict[str, Tensor], tokens_B: Tensor, active_B: Tensor) -> dict[str, Tensor]:
    """The prompts with one more token in the active rows."""
    pad = torch.nn.functional.pad
    length_B = batch["token_mask"].sum(dim=1)
    tokens, mask = pad(batch["tokens"], (0, 1)), pad(batch["token_mask"], (0, 1))
    rows = active_B.nonzero().flatten()
    tokens[rows, length_B[rows]], mask[rows, length_B[rows]] = tokens_B[rows], True
    return batch | {"tokens": tokens, "token_mask": mask}


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["causal", "image"])
def test_cached_logits_equal_those_of_the_whole_row(prefix: str) -> None:
    model = fresh(prefix=prefix).double()
    batch = prompts_of(TEXT, INSTRUCTIONS)
    cached, cache = model.start(batch, max_new_tokens=6)
    for number in range(6):
        token_B = cached.argmax(dim=-1)
        active_B = torch.tensor([True, number % 2 == 0, number < 3])
        advanced = model.advance(token_B, cache, active_B)
        cached = torch.where(active_B[:, None], advanced, cached)
        batch = extended(batch, token_B, active_B)
        torch.testing.assert_close(cached, model.start(batch, max_new_tokens=0)[0], rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("untrained", [0, 1, 3])
def test_cached_logits_under_a_prompt_prefix_are_those_trained_on(untrained: int) -> None:
    """Under prefix "prompt" the answer is causal after a prompt that sees all of itself, in the loss as in decoding.

    Also where an answer's first tokens are not trained on.
    """
    model, batch = fresh(prefix="prompt").double(), make_batch(TEXT)
    length_B = batch["prompt_length"]
    assert torch.equal(length_B, batch["answer_mask"].to(torch.uint8).argmax(dim=1))
    batch["answer_mask"] &= torch.arange(batch["tokens"].shape[1]) >= length_B[:, None] + untrained
    prompt_BL = torch.arange(batch["tokens"].shape[1]) < length_B[:, None]
    logits_BV, cache = model.start({**batch, "token_mask": prompt_BL}, max_new_tokens=40)
    count_B = (batch["token_mask"] & ~prompt_BL).sum(dim=1)
    sum_B = torch.zeros(4, dtype=torch.float64)
    for number in range(int(count_B.max())):
        place_B1 = (length_B + number).clamp(max=batch["tokens"].shape[1] - 1)[:, None]
        token_B, target_B = batch["tokens"].gather(1, place_B1)[:, 0], batch["answer_mask"].gather(1, place_B1)[:, 0]
        ce_B = torch.nn.functional.cross_entropy(logits_BV, token_B, reduction="none")
        sum_B += torch.where(target_B & (number < count_B), ce_B, 0)
        logits_BV = model.advance(token_B, cache, torch.ones(4, dtype=torch.bool))
    torch.testing.assert_close(sum_B, model.row_losses(batch).sum_B)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_untrained_model_never_says_an_invalid_action(strategy: Strategy) -> None:
    """10,000 prompts over the three strategies; the last field is a class in none, the first in every one."""
    model, text = fresh(), TEXT
    instructions = [f"do task {number}" for number in range(64)]
    classes, wrong_without, count = 3, 0, 0
    for seed in range(53):
        batch = prompts_of(text, instructions, seed=seed)
        answer = predict_actions(model, batch, text, strategy=strategy)
        assert int(answer.bins_BA.min()) >= 0 and int(answer.bins_BA.max()) < text.spec.bins
        assert int(answer.bins_BA[:, 0].max()) < classes
        low, high = (torch.from_numpy(bound) for bound in text.spec.bounds())
        assert ((answer.values_BA >= low) & (answer.values_BA <= high)).all()
        assert answer.bins_BA[:, 8:].unique(dim=0).shape[0] == 1  # the base is no field
        assert (answer.values_BA[:, 8:] == 0).all()
        wrong_without += int(answer.invalid_BK.sum())
        count += len(instructions)
    assert count * len(STRATEGIES) >= 10_000
    assert wrong_without > 0  # unmasked, an untrained model does go wrong: the mask did something


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_model_that_diverged_says_nothing(strategy: Strategy) -> None:
    model = fresh()
    torch.nn.init.constant_(model.output.weight, torch.nan)
    with pytest.raises(ValueError, match="logits are not finite: its weights have diverged"):
        predict_actions(model, prompts_of(TEXT, INSTRUCTIONS), TEXT, strategy=strategy)


def test_the_masks_metrics_are_the_probabilities_before_it() -> None:
    model, batch = fresh(), prompts_of(TEXT, INSTRUCTIONS)
    answer = predict_actions(model, batch, TEXT)
    with torch.no_grad():
        share = model.start(batch, max_new_tokens=1)[0].softmax(dim=-1)
    ids = torch.tensor(TEXT.action_ids[:3])
    torch.testing.assert_close(answer.valid_mass_BK[:, 0], share[:, ids].sum(dim=-1))
    assert answer.invalid_BK[:, 0].tolist() == [int(best) not in ids.tolist() for best in share.argmax(dim=-1)]


def test_greedy_is_the_likeliest_bin_and_expected_the_mean() -> None:
    model, batch = fresh(), prompts_of(TEXT, INSTRUCTIONS)
    greedy, expected = (predict_actions(model, batch, TEXT, strategy=s) for s in (Greedy(), ExpectedValue()))
    torch.testing.assert_close(greedy.values_BA[:, :8], decode(greedy.bins_BA, TEXT.spec)[:, :8])
    torch.testing.assert_close(encode(expected.values_BA, TEXT.spec)[:, 1:8], expected.bins_BA[:, 1:8])
    assert torch.equal(greedy.bins_BA[:, 0], expected.bins_BA[:, 0])  # a class has no mean
    with torch.no_grad():
        _, cache = model.start(batch, max_new_tokens=8)
        first = torch.tensor(TEXT.action_ids)[expected.bins_BA[:, 0]]
        share = model.advance(first, cache, torch.ones(3, dtype=torch.bool))[:, list(TEXT.action_ids)].softmax(dim=-1)
    torch.testing.assert_close(expected.values_BA[:, 1], share @ TEXT.bin_values(1))


def test_sampling_is_seeded_and_follows_the_probabilities() -> None:
    model = fresh()
    batch = prompts_of(TEXT, [INSTRUCTIONS[0]] * 300)
    batch["image_index"][:] = 0
    once, again, other = (predict_actions(model, batch, TEXT, strategy=Sampling(seed=s)).bins_BA for s in (0, 0, 1))
    assert torch.equal(once, again) and not torch.equal(once, other)
    cold = predict_actions(model, batch, TEXT, strategy=Sampling(temperature=1e-4)).bins_BA
    assert torch.equal(cold, predict_actions(model, batch, TEXT).bins_BA)
    assert len(once[:, 1].unique()) > 50
    with pytest.raises(ValueError, match="temperature"):
        Sampling(temperature=0)


def test_dimensions_a_robot_does_not_have_are_zero() -> None:
    mask = torch.ones(3, 11, dtype=torch.bool)
    mask[1, 4:7] = False
    answer = predict_actions(fresh(), prompts_of(TEXT, INSTRUCTIONS), TEXT, action_mask_BA=mask)
    zero = encode(torch.zeros(11), TEXT.spec)
    assert (answer.values_BA[1, 4:7] == 0).all()
    assert torch.equal(answer.bins_BA[1, 4:7], zero[4:7])
    free = predict_actions(fresh(), prompts_of(TEXT, INSTRUCTIONS), TEXT)
    assert torch.equal(answer.bins_BA[[0, 2]], free.bins_BA[[0, 2]])
    assert torch.equal(answer.bins_BA[1, :4], free.bins_BA[1, :4])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_robot_without_terminate_is_never_told_to_stop(strategy: Strategy) -> None:
    mask = torch.ones(3, 11, dtype=torch.bool)
    mask[:, 0] = False
    answer = predict_actions(fresh(), prompts_of(TEXT, INSTRUCTIONS), TEXT, action_mask_BA=mask, strategy=strategy)
    assert (answer.bins_BA[:, 0] == ARM).all() and (answer.values_BA[:, 0] == ARM).all()
    assert (answer.valid_mass_BK[:, 0] == 1).all() and not answer.invalid_BK[:, 0].any()
    text = RT2TextConfig(fields=FIELDS[1:]).build(TEXT.tokenizer, max_tokens=128)
    answer = predict_actions(fresh(), prompts_of(text, INSTRUCTIONS), text, strategy=strategy)
    assert (answer.bins_BA[:, 0] == ARM).all() and (answer.values_BA[:, 0] == ARM).all()


def test_rows_of_a_batch_are_answered_as_alone() -> None:
    model, batch = fresh().double(), prompts_of(TEXT, [*INSTRUCTIONS, "do nothing at all and wait for a long while"])
    together = predict_actions(model, batch, TEXT)
    said = generate(model, batch, eos_id=TEXT.tokenizer.eos_id, max_new_tokens=10)
    for row in range(4):
        length = int(batch["token_mask"][row].sum())
        place = batch["image_index"][row]
        alone = {"frames": batch["frames"], "image_index": place[place >= 0][None]}
        alone |= {key: batch[key][row : row + 1, :length] for key in ("tokens", "token_mask")}
        assert torch.equal(predict_actions(model, alone, TEXT).bins_BA[0], together.bins_BA[row])
        assert generate(model, alone, eos_id=TEXT.tokenizer.eos_id, max_new_tokens=10)[0] == said[row]


def test_free_text_ends_at_the_end_token() -> None:
    model, text = fresh(), TEXT
    batch = text.collate([text.web("is it red?", "yes"), text.web("is it blue?", "no no no")])
    batch |= {"frames": torch.zeros(1, 8, 8, 3, dtype=torch.uint8), "image_index": torch.full((2, 1), -1)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()
    prompts = text.collate_prompts([text.web_prompt("is it red?"), text.web_prompt("is it blue?")])
    prompts |= {"frames": batch["frames"], "image_index": batch["image_index"]}
    said = generate(model, prompts, eos_id=text.tokenizer.eos_id, max_new_tokens=40)
    assert [text.decode(ids) for ids in said] == ["yes", "no no no"]
    assert [len(ids) for ids in generate(model, prompts, eos_id=text.tokenizer.eos_id, max_new_tokens=2)] <= [2, 2]


def test_a_plan_is_said_before_its_action() -> None:
    model, text = fresh(), TEXT
    action, present = np.linspace(-0.9, 0.9, 11, dtype=np.float32), np.ones(11, bool)
    examples = [
        text.robot("bring me something sweet", action, present, plan="pick a can"),
        text.robot("bring me something to hold coffee in", -action, present, plan="push the blue cup"),
    ]
    batch = text.collate(examples) | {"frames": torch.zeros(1, 8, 8, 3, dtype=torch.uint8)}
    batch["image_index"] = torch.full((2, 1), -1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()
    names = ("bring me something sweet", "bring me something to hold coffee in")
    prompts = text.collate_prompts([text.robot_prompt(name, with_plan=True) for name in names])
    prompts |= {"frames": batch["frames"], "image_index": batch["image_index"]}
    answer = predict_actions(model, prompts, text, plan_room=48)
    assert [text.decode(plan) for plan in answer.plans] == ["pick a can.", "push the blue cup."]
    expected = encode(torch.from_numpy(np.stack([action, -action])), text.spec)[:, text.field_dims]
    assert torch.equal(answer.bins_BA[:, text.field_dims], expected)
    short = predict_actions(model, prompts, text, plan_room=2)  # cut short, the action still comes
    assert all(len(plan) <= 2 for plan in short.plans)


def test_a_vocabulary_without_room_is_refused() -> None:
    added = RT2Text(RT2TextConfig(vocabulary=AddedTokens()), TEXT.tokenizer, 64)
    small = fresh(vocab_size=600)
    with pytest.raises(ValueError, match=r"set model\.vocab_size"):
        predict_actions(small, prompts_of(TEXT, INSTRUCTIONS), added)


# --- The policy ---


def test_the_policy_acts_as_decoding_says() -> None:
    model, frames = fresh(), torch.randint(0, 256, (3, 20, 24, 3), dtype=torch.uint8)
    action = RT2Policy(model, TEXT, num_robots=3).act(frames, INSTRUCTIONS)
    prompts = TEXT.collate_prompts([TEXT.robot_prompt(instruction) for instruction in INSTRUCTIONS])
    direct = predict_actions(model, prompts | {"frames": frames, "image_index": torch.arange(3)[:, None]}, TEXT)
    np.testing.assert_array_equal(action.tokens, direct.bins_BA.numpy())
    np.testing.assert_allclose(action.values, direct.values_BA.numpy())
    single = RT2Policy(model, TEXT).act(frames[1].numpy(), INSTRUCTIONS[1])
    assert isinstance(single, Action) and single.values.shape == (11,)
    np.testing.assert_array_equal(single.tokens, action.tokens[1])


def test_a_policy_of_two_frames_remembers_one_and_forgets_on_reset() -> None:
    policy, model = RT2Policy(fresh(), TEXT, num_frames=2), fresh()
    frames = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    prompt = TEXT.collate_prompts([TEXT.robot_prompt("go")])
    first, second = policy.act(frames[0], "go"), policy.act(frames[1], "go")
    for action, index in ((first, [[-1, 0]]), (second, [[0, 1]])):
        direct = predict_actions(model, prompt | {"frames": frames, "image_index": torch.tensor(index)}, TEXT)
        np.testing.assert_array_equal(action.tokens, direct.bins_BA[0].numpy())
    policy.reset()
    np.testing.assert_array_equal(policy.act(frames[0], "go").tokens, first.tokens)


def test_a_new_instruction_begins_an_episode_of_its_robot_alone() -> None:
    policy, frames = RT2Policy(fresh(), TEXT, num_frames=2, num_robots=2), torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    said = (["go", "go"], ["go", "stop"], ["go", "stop"])
    assert [policy.act(frames, texts).frames_seen.tolist() for texts in said] == [[1, 1], [2, 1], [2, 2]]
    assert policy.for_another_robot().act(frames, ["go", "stop"]).frames_seen.tolist() == [1, 1]


def test_a_frame_that_fails_has_not_been_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server tries each robot's frame again where a pass for several has failed."""
    first, frames = RT2Policy(fresh(), TEXT, num_frames=2), np.zeros((2, 16, 16, 3), np.uint8)
    policies = [first, first.for_another_robot()]

    def failing(*args: object, **kwargs: object) -> None:
        raise RuntimeError("out of memory")

    for shown in (list(frames), [frames[0], frames[1][:8]]):  # in one pass; one by one
        with monkeypatch.context() as patched, pytest.raises(RuntimeError):
            patched.setattr(rt2_policy, "predict_actions", failing)
            act_together(policies, shown, ["go", "go"])
        with monkeypatch.context() as patched, pytest.raises(RuntimeError):
            patched.setattr(rt2_policy, "predict_actions", failing)
            first.act(frames[0], "go")
    actions = act_together(policies, list(frames), ["go", "go"])
    assert [int(action.frames_seen) for action in actions] == [1, 1]


@pytest.mark.parametrize(
    ("frame", "instruction", "says"),
    [
        (np.zeros((8, 8, 4), np.uint8), "go", "RGB"),
        (np.zeros((8, 8), np.uint8), "go", "RGB"),
        (np.zeros((8, 8, 3), np.float32), "go", "uint8"),
        (np.zeros((8, 8, 3), np.uint8), " ", "instruction"),
        (np.zeros((8, 8, 3), np.uint8), ["a", "b"], "instruction"),
        (np.zeros((8, 8, 3), np.uint8), "go " * 200, "context holds 128"),
    ],
)
def test_the_policy_refuses_what_it_cannot_read(frame: np.ndarray, instruction: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RT2Policy(fresh(), TEXT).act(frame, instruction)
