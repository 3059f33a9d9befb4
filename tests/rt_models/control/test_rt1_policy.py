"""The policy at work: cached inference equals recomputing the window, robots are independent, episodes begin clean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rt_models.action_tokens import decode
from rt_models.control.constrained_decoding import choose_tokens
from rt_models.control.rt1_policy import RT1Policy, act_together
from rt_models.object_marks import ObjectMarks
from rt_models.rt1 import RT1, RT1Config
from tests.support.rt1_windows import stirred

TINY = RT1Config.tiny()
TF_MASK = replace(TINY, transformer=replace(TINY.transformer, mask="tf", feed_forward="linear_bias"))
ONE_HOT = replace(TF_MASK, previous_actions="one_hot")
TF_RELEASE = replace(TF_MASK, transformer=replace(TF_MASK.transformer, episode_start="first_places"))
CONFIGS = {"jax": TINY, "tf": TF_MASK, "previous actions": ONE_HOT, "tf release": TF_RELEASE}
STRIDES = {
    "each second": replace(TINY, stride=2),
    "each third, with actions": replace(ONE_HOT, stride=3),
    "one step, with actions": replace(ONE_HOT, num_steps=1),
}
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
    step = end + config.stride * torch.arange(1 - config.num_steps, 1)[None]
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


@pytest.mark.parametrize("name", [*CONFIGS, *STRIDES])
def test_each_cached_step_equals_the_recomputed_window(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**CONFIGS, **STRIDES}[name]
    model = model_of(replace(config, binning="centre"))  # centred bins survive the way through values
    policy, episode, embedding = RT1Policy(model), frames(), instruction()
    seen = []

    def watched(logits: torch.Tensor, spec: object) -> torch.Tensor:
        seen.append(logits[0].clone().numpy())
        return choose_tokens(logits, spec)  # type: ignore[arg-type]

    monkeypatch.setattr("rt_models.control.rt1_policy.choose_tokens", watched)
    taken = np.zeros((0, model.spec.size), np.int64)
    for step in range(STEPS):
        action = policy.act(episode[step], embedding)
        np.testing.assert_allclose(seen[-1], recomputed(model, episode, embedding, step, taken), atol=1e-9)
        taken = np.concatenate([taken, action.tokens[None]])
        assert action.frames_seen == min(step // config.stride + 1, config.num_steps)
    assert len(np.unique(taken, axis=0)) > 1  # frames do change the actions, or nothing was compared


@torch.no_grad()
def test_an_episode_in_first_places_goes_as_in_the_release_s_control_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    model, episode, embedding = model_of(TF_RELEASE), frames(), torch.from_numpy(instruction()).double()[None]
    places, seen = model.config.num_steps, []

    def watched(logits: torch.Tensor, spec: object) -> torch.Tensor:
        seen.append(logits[0].clone())
        return choose_tokens(logits, spec)  # type: ignore[arg-type]

    monkeypatch.setattr("rt_models.control.rt1_policy.choose_tokens", watched)
    policy, state = RT1Policy(model), torch.zeros(1, places, 4, 16, dtype=torch.float64)
    for step, frame in enumerate(episode):
        policy.act(frame, instruction())
        # google-research/robotics_transformer 4569641b `transformer_network.py:303-357`, 586-619
        state = state.roll(-1, dims=1) if step >= places else state
        place = min(step, places - 1)
        state[:, place] = model.encode_frames(torch.from_numpy(frame)[None], embedding)
        logits = model.action_logits(state)[0, place]  # unused places hold zeros, hidden by causality
        torch.testing.assert_close(seen[-1], logits, rtol=0, atol=1e-9)
        assert step >= places - 1 or (model.action_logits(state)[0, -1] - logits).abs().max() > 1e-3


def test_one_pass_of_the_tokenizer_over_one_frame_at_each_step() -> None:
    model = model_of(TINY)
    policy, counts = RT1Policy(model), []
    policy.model.tokenizer.register_forward_hook(lambda module, inputs, output: counts.append(len(output)))
    for frame in frames():
        policy.act(frame, instruction())
    assert counts == [1] * STEPS


@pytest.mark.parametrize("name", CONFIGS)
def test_robots_in_one_batch_do_not_touch_each_other(name: str) -> None:
    model = model_of(CONFIGS[name])
    together, apart = RT1Policy(model, num_robots=3), [RT1Policy(model) for _ in range(3)]
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
    used, fresh, new = RT1Policy(model), RT1Policy(model), instruction(1)
    for frame in frames(5):
        used.act(frame, instruction(0) if how == "another instruction" else new)
    if how == "reset":
        used.reset()
    for frame in frames(6):
        np.testing.assert_array_equal(used.act(frame, new).tokens, fresh.act(frame, new).tokens)


@pytest.mark.parametrize("name", CONFIGS)
def test_policies_act_together_as_they_act_one_by_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = RT1Policy(stirred(CONFIGS[name].build()).eval())  # float32, as models are
    together = [first.for_another_robot() for _ in range(3)]
    apart = [first.for_another_robot() for _ in range(3)]
    logits: list[torch.Tensor] = []

    def watched(of_all: torch.Tensor, spec: object) -> torch.Tensor:
        logits.append(of_all)
        return choose_tokens(of_all, spec)  # type: ignore[arg-type]

    monkeypatch.setattr("rt_models.control.rt1_policy.choose_tokens", watched)
    episodes = [frames(seed) for seed in range(3)]
    episodes[1] = episodes[1][:, :12, :12]  # of another size
    for step in range(STEPS):
        if step == 4:
            together[1].reset()
            apart[1].reset()
        robots = [0, 1, 2] if step != 2 else [2, 0]  # not all have a frame every time
        seen, texts = [episodes[robot][step] for robot in robots], [instruction(robot) for robot in robots]
        actions = act_together([together[robot] for robot in robots], seen, texts)
        alone = [apart[robot].act(frame, text) for robot, frame, text in zip(robots, seen, texts, strict=True)]
        one_pass, *one_by_one = logits[-1 - len(robots) :]
        torch.testing.assert_close(one_pass, torch.cat(one_by_one), rtol=0, atol=1e-5)
        for action, single in zip(actions, alone, strict=True):
            np.testing.assert_array_equal(action.tokens, single.tokens)
            assert action.values.shape == single.values.shape and action.frames_seen == single.frames_seen


def test_a_bad_frame_of_one_robot_leaves_the_history_of_all() -> None:
    first = RT1Policy(model_of(TINY))
    policies = [first, first.for_another_robot()]
    with pytest.raises(ValueError, match="frame: expected uint8"):
        act_together(policies, [frames()[0], frames()[0][..., :1]], [instruction(), instruction()])
    assert [policy.act(frames()[0], instruction()).frames_seen for policy in policies] == [1, 1]
    assert act_together([], [], []) == []


def test_policies_of_different_weights_do_not_act_together() -> None:
    policies = [RT1Policy(model_of(TINY)) for _ in range(2)]
    with pytest.raises(ValueError, match="share one model's weights"):
        act_together(policies, [frames()[0]] * 2, [instruction()] * 2)


def test_policies_of_one_model_hold_its_weights_once_and_little_each() -> None:
    first = RT1Policy(model_of(TINY), dataset=None)
    others = [first.for_another_robot() for _ in range(3)]
    act_together(others, [frames()[0]] * 3, [instruction()] * 3)
    weights = {parameter.data_ptr() for parameter in first.model.parameters()}
    assert all({p.data_ptr() for p in other.model.parameters()} == weights for other in others)
    assert RT1Policy(first.model).model is first.model  # what is fused already is not copied
    for other in others:
        assert other._history is not None
        kept = [value for value in vars(other._history).values() if value is not None]
        assert sum(tensor.untyped_storage().nbytes() for tensor in kept) < 20_000


def test_history_matters_until_it_is_forgotten() -> None:
    policy = RT1Policy(model_of(TINY))
    first = policy.act(frames(6)[0], instruction()).tokens
    for frame in frames(5):
        policy.act(frame, instruction())
    assert (policy.act(frames(6)[0], instruction()).tokens != first).any()


def test_a_text_is_encoded_once() -> None:
    asked = []

    def encode(text: str) -> np.ndarray:
        asked.append(text)
        return instruction(len(text))

    model = model_of(TINY)
    policy, other = RT1Policy(model, encode=encode), RT1Policy(model)
    for frame in frames():
        np.testing.assert_array_equal(policy.act(frame, "lift").tokens, other.act(frame, instruction(4)).tokens)
    assert asked == ["lift"]
    many = RT1Policy(model, encode=encode, num_robots=2)
    many.act(frames(count=2), ["lift", "place it"])
    assert asked == ["lift", "lift", "place it"]


@pytest.mark.parametrize(
    ("frame", "text", "message"),
    [
        (frames()[0].astype(np.float32), instruction(), r"expected uint8 \(H, W, 3\), got float32 \(20, 24, 3\)"),
        (frames()[0][..., :1], instruction(), r"got uint8 \(20, 24, 1\)"),
        (frames(count=2), instruction(), r"got uint8 \(2, 20, 24, 3\)"),
        (frames()[0][:0], instruction(), r"expected uint8 \(H, W, 3\), got uint8 \(0, 24, 3\)"),
        (frames()[0].tolist(), instruction(), r"frame: expected an array or tensor uint8 \(H, W, 3\), got list"),
        (None, instruction(), "frame: expected an array or tensor .* got NoneType"),
        (frames()[0], instruction()[:384], r"expected float \(512,\) or \(1, 512\), got float32 \(384,\)"),
        (frames()[0], np.zeros(512, np.int64), r"instruction embedding: expected float \(512,\) .* got int64 \(512,\)"),
        (frames()[0], np.zeros((3, 512), np.float32), r"or \(1, 512\), got float32 \(3, 512\)"),
        (frames()[0], None, "instruction: expected a text, texts or an embedding float .* got None"),
        (frames()[0], [], r"instruction: expected a text, .* got \[\]"),
        (frames()[0], [0.5] * 512, r"instruction: expected a text, .* got \[0.5, 0.5"),
        (frames()[0], "pick", "'pick' is a text: give the policy an encoder"),
        (frames()[0], np.full(512, np.nan, np.float32), "instruction embedding: expected finite float"),
    ],
)
def test_bad_input_is_refused(frame: Any, text: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RT1Policy(model_of(TINY)).act(frame, text)


def test_what_is_refused_leaves_the_history_as_it_was() -> None:
    model, frame = model_of(TINY), frames()[-1]
    disturbed, calm = RT1Policy(model), RT1Policy(model)
    for earlier in frames()[:-1]:
        disturbed.act(earlier, instruction())
        calm.act(earlier, instruction())
    for bad in (np.full(512, np.nan, np.float32), instruction()[:3]):
        with pytest.raises(ValueError, match="instruction embedding"):
            disturbed.act(frame, bad)
    assert disturbed._history is not None and calm._history is not None
    assert (disturbed._history.real_RT == calm._history.real_RT).all()
    np.testing.assert_array_equal(disturbed.act(frame, instruction()).tokens, calm.act(frame, instruction()).tokens)


def test_any_array_of_pixels_will_do(recwarn: pytest.WarningsRecorder) -> None:
    model, frame = model_of(TINY), frames()[0]
    mirrored, fixed = np.ascontiguousarray(frame[:, ::-1])[:, ::-1], frame.copy()
    fixed.flags.writeable = False
    for same in (mirrored, fixed, torch.from_numpy(frame), frame[None]):
        np.testing.assert_array_equal(
            np.ravel(RT1Policy(model).act(same, instruction()).tokens),
            RT1Policy(model).act(frame, instruction()).tokens,
        )
    assert [str(warning.message) for warning in recwarn] == []


def test_a_robot_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"robot 2 cannot be reset: this policy's are 0..1"):
        RT1Policy(model_of(TINY), num_robots=2).reset([0, 2])


def test_a_model_put_back_into_training_does_not_act() -> None:
    policy = RT1Policy(model_of(TINY))
    policy.model.train()
    with pytest.raises(ValueError, match="training mode"):
        policy.act(frames()[0], instruction())


MASKED = replace(TINY, image_channels="rgb+mask")
MARKS = ObjectMarks(first=(0.3, 0.7), second=(0.9, 0.1))


def with_mask(frame: np.ndarray, marks: ObjectMarks) -> np.ndarray:
    mask = np.zeros((1, *frame.shape[:2]), np.uint8)
    marks.draw(mask)
    return np.concatenate([frame, mask[0, ..., None]], axis=-1)


def test_an_object_that_is_marked_once_is_marked_in_every_frame_of_the_episode() -> None:
    model = model_of(MASKED)
    model.tokenizer.backbone.stem.weight.data[:, 3] *= 100  # a pixel of an untrained model changes no token
    marked, drawn, other = RT1Policy(model), RT1Policy(model), RT1Policy(model)
    marked.mark(MARKS)
    other.mark(ObjectMarks(first=(0.9, 0.1)))
    differs = False
    for frame in frames():
        action = marked.act(frame, instruction())
        np.testing.assert_array_equal(action.tokens, drawn.act(with_mask(frame, MARKS), instruction()).tokens)
        differs |= bool((action.tokens != other.act(frame, instruction()).tokens).any())
    assert differs  # or marks do not matter, and nothing was compared


def test_an_episode_begins_with_a_mark_of_its_own() -> None:
    policy, frame = RT1Policy(model_of(MASKED)), frames()[0]
    with pytest.raises(ValueError, match="object_box: it is missing: a mark tells this policy"):
        policy.act(frame, instruction())
    policy.mark(MARKS)
    assert [policy.act(frame, instruction()).frames_seen for _ in range(2)] == [1, 2]
    policy.mark(MARKS)  # said again: the same episode
    assert policy.act(frame, instruction()).frames_seen == 3
    with pytest.raises(ValueError, match=r"object_box: it is missing.*; another instruction begins one"):
        policy.act(frame, instruction(1))
    assert policy.act(frame, instruction()).frames_seen == 3  # what is refused moves no history
    policy.mark(MARKS)
    assert policy.act(frame, instruction(1)).frames_seen == 1
    policy.mark(ObjectMarks(first=(0.5, 0.5)))  # another object: another episode
    assert policy.act(frame, instruction(1)).frames_seen == 1
    for robots in (None, [0]):
        policy.reset(robots)
        with pytest.raises(ValueError, match="object_box: it is missing"):
            policy.act(frame, instruction(1))
        policy.mark(MARKS)
        policy.act(frame, instruction(1))
    with pytest.raises(ValueError, match="of several, give frames of four channels"):
        RT1Policy(model_of(MASKED), num_robots=2).mark(MARKS)


def test_robots_with_marks_of_their_own_act_together_and_one_without_costs_the_others_nothing() -> None:
    first = RT1Policy(model_of(MASKED))
    robots = [first, first.for_another_robot()]
    robots[0].mark(MARKS)
    alone = RT1Policy(first.model)
    alone.mark(MARKS)
    with pytest.raises(ValueError, match="object_box: it is missing"):
        act_together(robots, frames()[:2], [instruction()] * 2)
    robots[1].mark(ObjectMarks(first=(0.0, 1.0)))
    together = act_together(robots, frames()[:2], [instruction()] * 2)
    np.testing.assert_array_equal(together[0].tokens, alone.act(frames()[0], instruction()).tokens)
    assert together[0].frames_seen == 1


def test_a_camera_beside_the_main_one_shows_no_mark() -> None:
    model = model_of(replace(MASKED, cameras=("image", "wrist")))
    marked, drawn = RT1Policy(model), RT1Policy(model)
    marked.mark(MARKS)
    main, wrist = frames()[:2]
    empty = np.concatenate([wrist, np.zeros((*wrist.shape[:2], 1), np.uint8)], axis=-1)
    by_hand = drawn.act({"image": with_mask(main, MARKS), "wrist": empty}, instruction())
    np.testing.assert_array_equal(marked.act({"image": main, "wrist": wrist}, instruction()).tokens, by_hand.tokens)
