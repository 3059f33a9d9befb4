"""RT-1 with several cameras and a state: sizes, the loss, absent inputs, fixed shapes, and the policy's steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rt_models.control.constrained_decoding import choose_tokens
from rt_models.control.rt1_policy import RT1Policy, act_together
from rt_models.rt1 import RT1, RT1Config
from rt_models.spec import DatasetContract, StateInput, rt1_action_spec, unscaled
from rt_models.vision.image_plan import plan_images
from tests.rt_models.test_robot_inputs import state as state_side
from tests.rt_models.test_spec import ZEROS
from tests.support.rt1_windows import make_batch, rows_of, stirred

TINY = RT1Config.tiny()
STATE = StateInput(names=("x", "y", "gripper", "elbow"))
SHARED = replace(TINY, cameras=("image", "wrist"), state=STATE)
SEPARATE = replace(SHARED, tokenizers="separate")
WRIST = replace(TINY, cameras=("wrist",))
CONFIGS = {"shared": SHARED, "separate": SEPARATE, "state alone": replace(TINY, state=STATE), "wrist alone": WRIST}
KINDS = pytest.mark.parametrize("name", CONFIGS)
ENDS = [0, 3, 5, 8]


def wide(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.double() if value.dtype == torch.float32 else value for key, value in batch.items()}


def built(config: RT1Config) -> RT1:
    torch.manual_seed(0)
    return stirred(config.build().double())


def step_of(config: RT1Config, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, gradients and running averages) of a training step."""
    model = built(config).train()
    loss = model.loss(wide(batch))
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), found | {name: b for name, b in model.named_buffers() if "running" in name}


def close(ours: dict[str, Tensor], theirs: dict[str, Tensor], **tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], **tolerance, msg=lambda m, name=name: f"{name}: {m}")


# --- sizes ---


def test_rt1x_with_two_cameras_has_2595_positions_for_1380() -> None:
    assert RT1Config.rt1x().layout().size == 1380
    two = replace(RT1Config.rt1x(), cameras=("image", "wrist"))
    assert two.layout().size == 2595
    with torch.device("meta"):
        one_model, two_model = RT1Config.rt1x().build(), two.build()
    count = [sum(p.numel() for p in model.parameters()) for model in (one_model, two_model)]
    assert count[1] - count[0] == (2595 - 1380) * 512 + 81 * 512  # places, and the learned tokens of no camera


@KINDS
def test_what_is_not_read_makes_no_module_and_what_is_read_makes_its_own(name: str) -> None:
    config, plain = CONFIGS[name], set(TINY.build().state_dict())
    added = set(config.build().state_dict()) - plain
    tokens = {"robot_tokens.absent_camera_wrist"} if "wrist" in config.cameras else set()
    tokens |= (
        {"robot_tokens.absent_state", "robot_tokens.state.weight", "robot_tokens.state.bias"} if config.state else set()
    )
    assert {key for key in added if not key.startswith("other_tokenizers.wrist.")} == tokens
    assert (name == "separate") == any(key.startswith("other_tokenizers.wrist.") for key in added)
    torch.manual_seed(3)
    TINY.build()
    after = torch.rand(1)
    torch.manual_seed(3)
    replace(TINY, cameras=("image",), state=None, tokenizers="separate").build()
    assert torch.rand(1) == after


# --- what each step sees ---


def test_identical_pictures_of_two_cameras_have_equal_tokens_in_a_shared_tokenizer_alone() -> None:
    image, embedding = torch.rand(2, 3, 1, 16, 16, 3).double(), torch.randn(2, 3, 512).double()
    values = torch.zeros(2, 3, 4).double(), torch.ones(2, 4, dtype=torch.bool)
    for config, is_equal in ((SHARED, True), (SEPARATE, False)):
        model = built(config).eval()
        tokens = model.step_tokens(image.expand(-1, -1, 2, -1, -1, -1), embedding, values)
        assert tokens.shape == (2, 3, 1 + 2 * 4, 16)
        assert torch.equal(tokens[:, :, 1:5], tokens[:, :, 5:9]) == is_equal
        torch.testing.assert_close(tokens[:, :, 1:5], model.image_tokens(image[:, :, 0], embedding))


def test_a_camera_that_is_not_read_changes_nothing_and_one_that_is_read_does() -> None:
    batch = wide(make_batch(SHARED, ENDS))
    one, both = built(TINY).eval(), built(SHARED).eval()
    with_main = {key: batch[key] for key in batch if "wrist" not in key and "state" not in key}
    assert torch.equal(one.predict(with_main), one.predict(batch))
    permuted = batch | {"frames_wrist": batch["frames_wrist"].flip(0)}
    assert torch.equal(one.predict(permuted), one.predict(batch))
    assert (both.predict(permuted) - both.predict(batch)).abs().max() > 1e-6
    swapped = {"frame_index": batch["frame_index"], "frames": batch["frames"]}
    swapped = {f"{key}_wrist": value for key, value in swapped.items()} | {
        "frames": batch["frames_wrist"],
        "frame_index": batch["frame_index_wrist"],
    }
    assert (both.predict(batch | swapped) - both.predict(batch)).abs().max() > 1e-6  # the places tell them apart


def test_two_cameras_show_the_same_crop_of_one_frame_differently_and_the_main_one_as_ever() -> None:
    from rt_models.vision.image_inputs import Preparation, prepare

    frames = make_batch(SHARED, [2])
    frames |= {"frames_wrist": frames["frames"]}
    preparation = Preparation(config=TINY.input, pixels=TINY.build().tokenizer.pixels(torch.float32), augment=True)
    main, both, wrist = (prepare(frames, preparation, roles) for roles in (("image",), ("image", "wrist"), ("wrist",)))
    assert torch.equal(both.x_NCHW[:3], main.x_NCHW) and torch.equal(both.key_N[:3], main.key_N)
    assert torch.equal(both.x_NCHW[3:], wrist.x_NCHW) and torch.equal(both.key_N[3:], wrist.key_N)
    assert not torch.equal(main.x_NCHW, wrist.x_NCHW) and not set(main.key_N.tolist()) & set(wrist.key_N.tolist())


# --- absent inputs ---


@pytest.mark.parametrize("num_frames", [2, 0])
def test_a_first_camera_may_have_fewer_frames_than_the_main_one(num_frames: int) -> None:
    """Rows of the main camera's frames lie beyond the first one's: a GPU would read past them."""
    from rt_models.vision.image_inputs import Preparation, prepare

    config = replace(SHARED, cameras=("wrist", "image"))
    batch = make_batch(config, [1, 8], without=(1,) if num_frames else (0, 1))
    batch |= {"frames_wrist": batch["frames_wrist"][:num_frames]}
    preparation = Preparation(config=TINY.input, pixels=TINY.build().tokenizer.pixels(torch.float32), augment=True)
    unplanned = prepare(batch, preparation, config.cameras)
    planned = plan_images(batch, crops=True, capacities=(12,), cameras=config.cameras)
    images = prepare(planned, preparation, config.cameras)
    real = len(unplanned.x_NCHW)
    assert images.num_real is not None and int(images.num_real) == real
    assert torch.equal(images.x_NCHW[:real], unplanned.x_NCHW) and torch.equal(images.key_N[:real], unplanned.key_N)


def test_the_learned_token_of_a_camera_that_is_not_there_is_trained_and_its_picture_not_seen() -> None:
    for config in (SHARED, SEPARATE):
        batch = make_batch(config, ENDS, without=(1, 2))
        _, found = step_of(config, batch)
        assert found["robot_tokens.absent_camera_wrist"].abs().max() > 1e-6
        assert found["robot_tokens.absent_state"].abs().max() > 1e-6
        _, without = step_of(config, make_batch(config, ENDS))
        assert not without["robot_tokens.absent_camera_wrist"].any()  # in the graph, and not seen
        assert not without["robot_tokens.absent_state"][:3].any() and without["robot_tokens.absent_state"][3].any()


@pytest.mark.parametrize("statistics", ["synchronised", "per_rank", "frozen"])
def test_a_batch_without_any_picture_of_a_camera_trains_every_parameter_and_moves_no_average(statistics: Any) -> None:
    from rt_models.blocks.batch_norm import BatchNormConfig

    backbone = replace(TINY.backbone, batch_norm=BatchNormConfig(statistics=statistics))
    config = replace(SEPARATE, backbone=backbone)
    batch = make_batch(config, ENDS, without=range(4))
    empty = batch | {"frames_wrist": batch["frames_wrist"][:0]}
    for each in (
        batch,
        empty,
        plan_images(plan_images(batch, crops=True, capacities=(12,)), crops=True, capacities=(5,), cameras=("wrist",)),
    ):
        loss, found = step_of(config, each)
        averages = {name: value for name, value in built(config).named_buffers() if "running" in name}
        assert torch.isfinite(loss) and all(torch.isfinite(value).all() for value in found.values())
        wrist = [name for name, _ in config.build().named_parameters() if "wrist" in name]
        assert wrist and all(name in found for name in wrist)
        for name, value in averages.items():
            assert torch.equal(found[name], value) == ("wrist" in name or statistics == "frozen"), name


# --- fixed shapes ---


@KINDS
def test_padding_changes_neither_loss_gradient_nor_averages(name: str) -> None:
    config = CONFIGS[name]
    config = replace(config, backbone=replace(config.backbone, stochastic_depth=0.5))
    for batch in (make_batch(config, ENDS), make_batch(config, [2, 3, 4, 5], crop_keys=[7] * 4, without=[1])):
        if "frames_wrist" in batch:  # as the reader pads it
            room = torch.zeros(30 - len(batch["frames_wrist"]), *batch["frames_wrist"].shape[1:], dtype=torch.uint8)
            batch["frames_wrist"] = torch.cat([batch["frames_wrist"], room])
        alone, planned = step_of(config, batch), batch
        for cameras in config.cameras_encoded_together():
            planned = plan_images(planned, crops=True, capacities=(30,), cameras=cameras)
        assert built(config).replayable(planned) and not built(config).replayable(batch)
        padded = step_of(config, planned)
        torch.testing.assert_close(padded[0], alone[0], rtol=1e-11, atol=1e-12)
        close(padded[1], alone[1], rtol=1e-9, atol=1e-11)


def test_a_shared_tokenizer_sees_one_size_for_all_cameras_together() -> None:
    seen: set[int] = set()
    model = built(SHARED).train()
    for part in model.tokenizer.modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(lambda _, inputs, __: seen.add(len(inputs[0])))
    for ends, without in (([0, 4, 5, 6], ()), ([0, 1, 2, 3], (1, 2)), ([8] * 4, range(4))):
        batch = make_batch(SHARED, ends, without=list(without))
        model.loss(plan_images(wide(batch), crops=True, capacities=(26,), cameras=SHARED.cameras))
    assert seen == {26}


# --- ranks ---


@pytest.mark.parametrize("config", [SHARED, SEPARATE])
def test_the_mean_of_two_halves_is_the_whole_where_statistics_are_stored(config: RT1Config) -> None:
    from rt_models.blocks.batch_norm import BatchNormConfig

    noisy = replace(STATE, noise=0.3, dropout=0.5)
    frozen = replace(config.backbone, batch_norm=BatchNormConfig(statistics="frozen"), stochastic_depth=0.5)
    config = replace(config, backbone=frozen, state=noisy)
    batch = make_batch(config, ENDS, without=(2, 3))  # the second half has no picture of the wrist
    whole = step_of(config, batch)
    halves = [step_of(config, rows_of(batch, rows)) for rows in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close((halves[0][0] + halves[1][0]) / 2, whole[0])
    mean = {name: (halves[0][1][name] + halves[1][1][name]) / 2 for name in whole[1]}
    close(mean, whole[1], rtol=1e-9, atol=1e-11)


# --- the state ---


def test_noise_and_dropout_are_the_windows_own_and_in_training_alone() -> None:
    noisy = replace(SHARED, state=replace(STATE, noise=0.5))
    model, calm, batch = built(noisy), built(SHARED), wide(make_batch(SHARED, ENDS))
    assert torch.equal(model.eval().predict(batch), calm.eval().predict(batch))
    assert model.train().loss(batch) == model.loss(batch) and model.loss(batch) != calm.train().loss(batch)

    from rt_models.robot_tokens import augmented_state, normal

    many = {
        key: torch.arange(4000) * scale for key, scale in (("crop_key", 1), ("store", 0), ("episode", 0), ("step", 3))
    }
    many |= {"state": torch.ones(4000, 2, 3), "state_mask": torch.tensor([True, True, False]).expand(4000, -1)}
    many |= {"step_mask": torch.tensor([False, True]).expand(4000, -1)}
    values, mask = augmented_state(many, StateInput(noise=0.5, dropout=0.25), augment=True)
    assert mask.any(1).double().mean().item() == pytest.approx(0.75, abs=0.03) and not mask[:, 2].any()
    kept = values[mask.any(1)]
    assert not values[~mask.any(1)].any() and (kept[:, 0, :2] == 1).all() and not kept[..., 2].any()
    assert kept[:, 1, :2].mean().item() == pytest.approx(1, abs=0.03)
    assert kept[:, 1, :2].std().item() == pytest.approx(0.5, abs=0.03)
    drawn = normal(torch.arange(9), 3)
    assert torch.equal(normal(torch.arange(4, 9), 3), drawn[4:]) and len(drawn.unique()) == 27


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"state": None}, "'state' is missing"),
        ({"frame_index_wrist": None}, "'frame_index_wrist' is missing"),
        ({"state": torch.zeros(4, 3, 5)}, r"expected float \(4, 3, 4\), got float32 \(4, 3, 5\)"),
        ({"state": torch.full((4, 3, 4), torch.nan)}, r"batch\['state'\]: expected finite"),
        ({"frame_index_wrist": torch.full((4, 3), 9)}, r"frame_index_wrist'\]: expected a row of the 9 frames_wrist"),
        ({"frames_wrist": torch.zeros(9, 4, 4, 4, dtype=torch.uint8)}, "frames_wrist"),
    ],
)
def test_a_batch_that_lacks_what_the_model_reads_is_refused(changes: dict[str, Tensor | None], words: str) -> None:
    batch = make_batch(SHARED, ENDS) | changes
    with pytest.raises(ValueError, match=words):
        built(SHARED).float().loss({key: value for key, value in batch.items() if value is not None})


def test_a_state_without_names_and_odd_cameras_are_refused() -> None:
    with pytest.raises(ValueError, match=r"state.names is empty"):
        replace(TINY, state=StateInput()).build()
    with pytest.raises(ValueError, match="cameras must be different roles"):
        replace(TINY, cameras=("image", "image"))
    with pytest.raises(ValueError, match="tokenizers must be one of shared, separate"):
        replace(TINY, tokenizers="own")  # type: ignore[arg-type]


# --- at work ---


def dataset(**changes: Any) -> DatasetContract:
    spec = rt1_action_spec()
    side = DatasetContract(
        name="a",
        version="1",
        control_hz=3.0,
        action_mask=(True,) * 11,
        units=tuple(d.unit for d in spec.dimensions),
        statistics=ZEROS,
        transform=unscaled(11),
        state=state_side("y", "x", "gripper"),
    )
    return replace(side, **changes)


@torch.no_grad()
@pytest.mark.parametrize("name", ["shared", "separate"])
@pytest.mark.parametrize("lacks", [False, True])
def test_each_step_of_the_policy_is_that_of_the_whole_window(
    name: str, lacks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, random = built(CONFIGS[name]).eval(), np.random.default_rng(0)
    side = dataset(without_cameras=("wrist",), state=None) if lacks else dataset()
    image, wrist = (random.integers(0, 256, (6, *size, 3), dtype=np.uint8) for size in ((20, 24), (18, 16)))
    states, embedding = random.uniform(-2, 6, (6, 3)), random.standard_normal(512).astype(np.float32) / 5
    seen: list[Tensor] = []

    def watched(logits: Tensor, spec: Any) -> Tensor:
        seen.append(logits[0])
        return choose_tokens(logits, spec)

    monkeypatch.setattr("rt_models.control.rt1_policy.choose_tokens", watched)
    policy = RT1Policy(model, dataset=side)
    for end in range(6):
        sent = {"image": image[end]} if lacks else {"gripper": wrist[end], "image": image[end]}  # an alias of wrist
        felt = dict(zip(("y", "x", "gripper"), states[end], strict=True))
        policy.act(sent, embedding, None if lacks else felt)
        step = torch.arange(end - 2, end + 1)[None]
        real = step >= 0
        state = torch.zeros(1, 3, 4).double()
        if side.state is not None:
            of_steps = torch.from_numpy(side.state.normalised(states)).double()[step.clamp(min=0)]
            state[..., [1, 0, 2]] = of_steps * real[..., None]  # the model's order is x, y, gripper, elbow
        batch = {
            "frames": torch.from_numpy(image),
            "frame_index": torch.where(real, step, -1),
            "frames_wrist": torch.from_numpy(wrist),
            "frame_index_wrist": torch.full_like(step, -1) if lacks else torch.where(real, step, -1),
            "step_mask": real,
            "embedding": torch.from_numpy(embedding).double().expand(1, 3, -1),
            "state": state,
            "state_mask": torch.tensor([[not lacks] * 3 + [False]]),
            **{key: torch.tensor([end]) for key in ("crop_key", "store", "episode", "step")},
        }
        torch.testing.assert_close(seen[-1], model.predict(batch)[0, -1], rtol=0, atol=1e-8)


def test_robots_of_several_data_sets_act_together_as_alone() -> None:
    model, random = built(SHARED).eval(), np.random.default_rng(0)
    whole, bare = dataset(), dataset(without_cameras=("wrist",), state=None)
    maker = RT1Policy(model)
    groups = [[maker.for_dataset(side) for side in (whole, bare, whole)] for _ in range(2)]
    vector = random.standard_normal(512).astype(np.float32)
    for _ in range(3):
        image, wrist = (random.integers(0, 256, (20, 24 + place, 3), dtype=np.uint8) for place in (0, 1))
        frames = [{"image": image, "wrist": wrist}, image, {"image": wrist, "wrist": image}]
        states = [[0.0, 1.0, 2.0], None, {"x": 1.0, "y": 0.5, "gripper": -2.0}]
        together = act_together(groups[0], frames, [vector] * 3, states)
        for policy, frame, state, action in zip(groups[1], frames, states, together, strict=True):
            np.testing.assert_array_equal(policy.act(frame, vector, state).tokens, action.tokens)


@pytest.mark.parametrize(
    ("frame", "state", "words"),
    [
        ("image alone", [0.0] * 3, "reads the cameras image, wrist: give a picture of each"),
        ({"image"}, [0.0] * 3, "camera wrist is missing: this policy reads image, wrist, and got image"),
        ({"image", "wrist"}, None, r"state: it is missing, and this policy reads y \[m\], x \[m\], gripper \[m\]"),
        ({"image", "wrist"}, {"x": 1.0, "y": 1.0}, "state lacks gripper"),
        ({"image", "wrist"}, [0.0, float("nan"), 0.0], "state x is not finite"),
        ({"image", "wrist"}, [0.0] * 4, "state has the shape"),
    ],
)
def test_a_robot_that_does_not_send_what_is_read_is_told_what(frame: Any, state: Any, words: str) -> None:
    policy, picture = RT1Policy(built(SHARED).eval(), dataset=dataset()), np.zeros((20, 24, 3), np.uint8)
    sent = picture if frame == "image alone" else dict.fromkeys(frame, picture)
    with pytest.raises(ValueError, match=words):
        policy.act(sent, np.zeros(512, np.float32), state)
    with pytest.raises(ValueError, match=r"frame of camera wrist: expected uint8 \(H, W, 3\), got float32"):
        policy.act({"image": picture, "wrist": picture.astype(np.float32)}, np.zeros(512, np.float32), [0.0] * 3)
