"""The policy at work: cached inference equals recomputing the window, robots are independent, episodes begin clean."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from rt1_windows import stirred

from rt_models.action_tokens import decode
from rt_models.decoding import choose_tokens
from rt_models.policy import Policy
from rt_models.rt1 import RT1, RT1Config
from rt_models.spec import AffineTransform

TINY = RT1Config.tiny()
TF_MASK = replace(TINY, transformer=replace(TINY.transformer, mask="tf", feed_forward="linear_bias"))
ONE_HOT = replace(TF_MASK, previous_actions="one_hot")
CONFIGS = {"jax": TINY, "tf": TF_MASK, "previous actions": ONE_HOT}
STEPS = 7


def model_of(config: RT1Config) -> RT1:
    return stirred(config.build()).double().eval()


def frames(seed: int = 0, count: int = STEPS) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 20, 24, 3), dtype=np.uint8)


def instruction(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(512).astype(np.float32) / 5


@torch.no_grad()
def recomputed(model: RT1, episode: np.ndarray, embedding: np.ndarray, end: int, taken: np.ndarray) -> np.ndarray:
    """float (A, V): the last step's logits by `predict` on the whole window that ends at `end`."""
    config = model.config
    step = torch.arange(end + 1 - config.num_steps, end + 1)[None]
    real = step >= 0
    past = torch.from_numpy(np.concatenate([taken, np.zeros((1, model.spec.size), np.int64)]))
    batch = {
        "frames": torch.from_numpy(episode),
        "frame_index": torch.where(real, step, -1),
        "step_mask": real,
        "embedding": torch.from_numpy(embedding).expand(1, config.num_steps, -1),
        "crop_key": torch.tensor([end]),
        "store": torch.tensor([0]),
        "episode": torch.tensor([0]),
        "step": torch.tensor([end]),
        "action": decode(past, model.spec)[step.clamp(min=0)],
    }
    return model.predict(batch)[0, -1].numpy()


@pytest.mark.parametrize("name", CONFIGS)
def test_each_cached_step_equals_the_recomputed_window(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(replace(CONFIGS[name], binning="centre"))  # centred bins survive the way through values
    policy, episode, embedding = Policy(model), frames(), instruction()
    seen = []

    def watched(logits: torch.Tensor, spec: object) -> torch.Tensor:
        seen.append(logits[0].clone().numpy())
        return choose_tokens(logits, spec)  # type: ignore[arg-type]

    monkeypatch.setattr("rt_models.policy.choose_tokens", watched)
    taken = np.zeros((0, model.spec.size), np.int64)
    for step in range(STEPS):
        action = policy.act(episode[step], embedding)
        np.testing.assert_allclose(seen[-1], recomputed(model, episode, embedding, step, taken), atol=1e-9)
        taken = np.concatenate([taken, action.tokens[None]])
    assert len(np.unique(taken, axis=0)) > 1  # frames do change the actions, or nothing was compared


def test_one_pass_of_the_tokenizer_over_one_frame_at_each_step() -> None:
    model = model_of(TINY)
    policy, counts = Policy(model), []
    policy.model.tokenizer.register_forward_hook(lambda module, inputs, output: counts.append(len(output)))
    for frame in frames():
        policy.act(frame, instruction())
    assert counts == [1] * STEPS


@pytest.mark.parametrize("name", CONFIGS)
def test_robots_in_one_batch_do_not_touch_each_other(name: str) -> None:
    model = model_of(CONFIGS[name])
    together, apart = Policy(model, num_robots=3), [Policy(model) for _ in range(3)]
    episodes, texts = [frames(seed) for seed in range(3)], np.stack([instruction(seed) for seed in range(3)])
    for step in range(STEPS):
        if step == 4:
            together.reset([1])
            apart[1].reset()
        actions = together.act(np.stack([episode[step] for episode in episodes]), texts)
        for robot in range(3):
            alone = apart[robot].act(episodes[robot][step], texts[robot])
            np.testing.assert_array_equal(actions.tokens[robot], alone.tokens)
            np.testing.assert_allclose(actions.values[robot], alone.values)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("how", ["reset", "another instruction"])
def test_a_new_episode_or_instruction_begins_without_history(name: str, how: str) -> None:
    model = model_of(CONFIGS[name])
    used, fresh, new = Policy(model), Policy(model), instruction(1)
    for frame in frames(5):
        used.act(frame, instruction(0) if how == "another instruction" else new)
    if how == "reset":
        used.reset()
    for frame in frames(6):
        np.testing.assert_array_equal(used.act(frame, new).tokens, fresh.act(frame, new).tokens)


def test_history_matters_until_it_is_forgotten() -> None:
    policy = Policy(model_of(TINY))
    first = policy.act(frames(6)[0], instruction()).tokens
    for frame in frames(5):
        policy.act(frame, instruction())
    assert (policy.act(frames(6)[0], instruction()).tokens != first).any()


def test_values_are_physical_and_classes_are_classes() -> None:
    model = model_of(TINY)
    size = model.spec.size
    transform = AffineTransform(name="mm", scale=(1.0, *[0.5] * (size - 1)), offset=(0.0, *[0.25] * (size - 1)))
    plain, physical = Policy(model), Policy(model, transform=transform)
    for frame in frames():
        model_values, values = plain.act(frame, instruction()).values, physical.act(frame, instruction()).values
        np.testing.assert_allclose(transform.apply(values), model_values, atol=1e-6)
        assert values.dtype == np.float32 and values[0] in (0, 1, 2)


def test_a_text_is_encoded_once() -> None:
    asked = []

    def encode(text: str) -> np.ndarray:
        asked.append(text)
        return instruction(len(text))

    model = model_of(TINY)
    policy, other = Policy(model, encode=encode), Policy(model)
    for frame in frames():
        np.testing.assert_array_equal(policy.act(frame, "lift").tokens, other.act(frame, instruction(4)).tokens)
    assert asked == ["lift"]
    many = Policy(model, encode=encode, num_robots=2)
    many.act(frames(count=2), ["lift", "place it"])
    assert asked == ["lift", "lift", "place it"]


@pytest.mark.parametrize(
    ("frame", "text", "message"),
    [
        (frames()[0].astype(np.float32), instruction(), r"expected uint8 \(H, W, 3\), got float32 \(20, 24, 3\)"),
        (frames()[0][..., :1], instruction(), r"got uint8 \(20, 24, 1\)"),
        (frames(count=2), instruction(), r"got uint8 \(2, 20, 24, 3\)"),
        (frames()[0], instruction()[:384], r"expected float \(512,\) or \(1, 512\), got \(384,\)"),
        (frames()[0], "pick", "'pick' is a text: give the policy an encoder"),
        (frames()[0], np.full(512, np.nan, np.float32), "embedding: expected finite float"),
    ],
)
def test_bad_input_is_refused(frame: np.ndarray, text: np.ndarray | str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Policy(model_of(TINY)).act(frame, text)


def test_a_model_put_back_into_training_does_not_act() -> None:
    policy = Policy(model_of(TINY))
    policy.model.train()
    with pytest.raises(ValueError, match="training mode"):
        policy.act(frames()[0], instruction())
