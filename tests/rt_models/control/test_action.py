"""What a dataset does not have is neutral, listed and named in every class by which an action leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_spec import ZEROS, contract

from rt_models.action_space import ARM, ActionSpace, DimensionMeaning, SpaceDimension
from rt_models.action_tokens import encode
from rt_models.control.action import Action, ActionOutlet
from rt_models.control.rt1_policy import RT1Policy
from rt_models.control.rt2_policy import RT2Policy
from rt_models.language.prompts import RT2TextConfig
from rt_models.rt1 import RT1Config
from rt_models.spec import ActionStatistics, AffineTransform, DatasetContract, Quantiles
from tests.support.rt1_windows import stirred
from tests.support.rt2_rows import MINIMAL

TINY = RT1Config.tiny()
TF_MASK = replace(TINY.transformer, mask="tf", feed_forward="linear_bias")
ONE_HOT = replace(TINY, transformer=TF_MASK, previous_actions="one_hot")
MODELS = {name: stirred(config.build()).eval() for name, config in (("rt1", TINY), ("one hot", ONE_HOT))}
FRAMES = np.random.default_rng(0).integers(0, 256, (2, 20, 24, 3), dtype=np.uint8)
RT2_MODEL, TEXT = MINIMAL.build().eval(), MINIMAL.build_text()


def side(mask: tuple[bool, ...]) -> DatasetContract:
    found = replace(ZEROS, mean=(0.0, *[9.0] * 6, 0.25, *[9.0] * 3))  # an older store's: 0 is "terminate"
    transform = AffineTransform(name="mm", scale=(1.0, *[0.5] * 10), offset=(0.0, *[0.125] * 10))
    return replace(contract(found).datasets[0], action_mask=mask, statistics=found, transform=transform)


def rt1_action(dataset: DatasetContract) -> Action:
    embeddings = torch.ones(2, 512)
    return RT1Policy(MODELS["rt1"], dataset=dataset, num_robots=2).act(FRAMES, embeddings)


def rt2_action(dataset: DatasetContract) -> Action:
    return RT2Policy(RT2_MODEL, TEXT, dataset=dataset, num_robots=2).act(FRAMES, ["go", "stop"])


@pytest.mark.parametrize("act", [rt1_action, rt2_action])
@pytest.mark.parametrize("mask", [(False,) * 11, (False, *[True] * 7, *[False] * 3), (True, *[False] * 10)])
def test_absent_dimensions_are_neutral_and_listed(
    act: Callable[[DatasetContract], Action], mask: tuple[bool, ...]
) -> None:
    neutral, there = np.array([ARM, *[0.0] * 6, 0.25, *[0.0] * 3]), np.array(mask)
    action, spec = act(side(mask)), MODELS["rt1"].spec if act is rt1_action else TEXT.spec
    np.testing.assert_allclose(action.values[:, ~there], np.broadcast_to(neutral[~there], (2, 11 - there.sum())))
    assert action.absent == tuple(name for name, has in zip(spec.names, mask, strict=True) if not has)
    model_values = torch.from_numpy(side(mask).transform.apply(action.values))
    np.testing.assert_array_equal(action.tokens[:, ~there], encode(model_values, spec).numpy()[:, ~there])
    numbers = action.values[:, 0].astype(int)
    assert list(action.classes["terminate_episode"]) == [("terminate", "arm", "base")[number] for number in numbers]


def test_what_is_there_is_the_model_s() -> None:
    everything = rt1_action(side((True,) * 11))
    plain = RT1Policy(MODELS["rt1"], num_robots=2).act(FRAMES, torch.ones(2, 512))
    np.testing.assert_array_equal(everything.tokens, plain.tokens)
    np.testing.assert_allclose(side((True,) * 11).transform.apply(everything.values), plain.values, atol=1e-6)
    assert everything.absent == () and plain.absent == ()


def test_the_history_of_actions_holds_the_neutral_one_as_training_shows_it() -> None:
    policy = RT1Policy(MODELS["one hot"], dataset=side((False,) * 11))
    action = policy.act(FRAMES[0], np.ones(512, np.float32))
    assert policy._history is not None and policy._history.action_tokens_RTA is not None
    np.testing.assert_array_equal(policy._history.action_tokens_RTA[0, -2].numpy(), action.tokens)


def test_where_no_value_is_neutral_the_history_holds_what_conversion_writes() -> None:
    """An absolute joint that the dataset lacks: answered as NaN, and shown to the model as the 0 of its store."""
    space = ActionSpace(name="own", dimensions=tuple(SpaceDimension(name=f"joint_{i}") for i in range(2)))
    spec, ends = space.spec(), (0.5, 0.0)
    found = ActionStatistics(count=9, mean=ends, std=ends, minimum=(-0.5, 0.0), maximum=ends, q01=(-0.5, 0.0), q99=ends)
    meanings = (DimensionMeaning(kind="absolute"), DimensionMeaning())
    dataset = replace(
        contract(ZEROS).datasets[0],
        action_mask=(True, False),
        units=("rad", "scaled"),
        statistics=found,
        transform=Quantiles().fit(spec, found),
        meanings=meanings,
    )
    outlet, chosen = ActionOutlet(spec, dataset), torch.tensor([[3, 200]])
    stored = encode(torch.from_numpy(dataset.transform.apply(np.zeros((1, 2)))), spec)
    assert outlet.tokens(chosen).tolist() == [[3, int(stored[0, 1])]]
    values = outlet.action(torch.zeros(1, 2), chosen, torch.ones(1), single=True).values
    assert values[0] == 0 and np.isnan(values[1])


def test_what_a_model_has_no_words_for_is_neutral_too() -> None:
    text = RT2TextConfig(fields=("world_vector_x", "world_vector_y")).build(TEXT.tokenizer, max_tokens=96)
    action = RT2Policy(RT2_MODEL, text, dataset=side((True,) * 11)).act(FRAMES[0], "go")
    assert action.values[[0, 3, 7, 8]].tolist() == [ARM, 0.0, 0.25, 0.0] and len(action.absent) == 9


def test_an_answer_says_how_many_frames_it_saw() -> None:
    policy = RT1Policy(MODELS["rt1"], num_robots=2)
    steps = MODELS["rt1"].config.num_steps
    seen = [policy.act(FRAMES, torch.ones(2, 512)).frames_seen.tolist() for _ in range(steps + 1)]
    assert seen == [[min(step + 1, steps)] * 2 for step in range(steps + 1)]
    policy.reset([1])
    assert policy.act(FRAMES, torch.ones(2, 512)).frames_seen.tolist() == [steps, 1]
    assert policy.act(FRAMES, torch.zeros(2, 512)).frames_seen.tolist() == [1, 1]


def test_an_rt2_trained_on_two_frames_keeps_two() -> None:
    text = replace(RT2TextConfig(), frames=2).build(TEXT.tokenizer, max_tokens=96)
    policy = RT2Policy(RT2_MODEL, text)
    assert [int(policy.act(FRAMES[0], "go").frames_seen) for _ in range(3)] == [1, 2, 2]


def test_a_dataset_of_another_space_is_refused() -> None:
    transform = AffineTransform(name="7d", scale=(1.0,) * 7, offset=(0.0,) * 7)
    dataset = replace(side((True,) * 7), transform=transform)
    with pytest.raises(ValueError, match="dataset a has 7 dimensions, the model acts in 11"):
        RT1Policy(MODELS["rt1"], dataset=dataset)
