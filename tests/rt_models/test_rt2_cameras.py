"""RT-2 with several cameras and a state: the order of pictures, what prompts say, the policy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rt_models.control.rt2_policy import RT2Policy, act_together
from rt_models.cost.rt2_flops import cost
from rt_models.language.prompts import RT2Text
from rt_models.rt2 import RT2
from rt_models.spec import StateInput, check_rt2_batch
from rt_models.vision.rt2_image_inputs import pictures
from tests.rt_models.test_rt1_cameras import dataset
from tests.support.rt1_windows import stirred
from tests.support.rt2_rows import MINIMAL, make_batch

STATE = StateInput(names=("x", "y", "gripper", "elbow"))
TWO = replace(MINIMAL, cameras=("image", "wrist"), state=STATE, text=replace(MINIMAL.text, frames=2))
TEXT = TWO.build_text()
HERE, NAN = np.array([0.0, -1.0, 1.0, np.nan], np.float32), np.full(4, np.nan, np.float32)


def two_cameras(text: RT2Text) -> dict[str, Tensor]:
    """The rows of `make_batch`, of which the first, third and fourth have pictures of the wrist too."""
    batch, generator = make_batch(text), torch.Generator().manual_seed(9)
    wrist = torch.randint(0, 256, (2, 12, 10, 3), dtype=torch.uint8, generator=generator)
    return batch | {"frames_wrist": wrist, "image_index_wrist": torch.tensor([[0, 1], [-1, -1], [-1, 0], [-1, 1]])}


# --- pictures ---


def test_pictures_stand_oldest_step_first_and_then_in_the_order_of_the_cameras() -> None:
    batch = two_cameras(TEXT)
    image, place = pictures(batch, TWO.picture, augment=False, dtype=torch.float64, cameras=("image", "wrist"))
    assert len(image) == 5 and place.tolist() == [[0, 3, -1, 4], [1, -1, 2, -1], [0, -1, -1, 3], [-1, -1, -1, 4]]
    other = pictures(batch, TWO.picture, augment=False, dtype=torch.float64, cameras=("wrist", "image"))
    assert torch.equal(other[0][other[1][0, 0]], image[3])
    alone = pictures(batch, TWO.picture, augment=False, dtype=torch.float64)
    assert torch.equal(alone[0], image[:3]) and torch.equal(alone[1], batch["image_index"])


def test_each_camera_is_cropped_by_keys_of_its_own_and_the_main_one_as_ever() -> None:
    batch = two_cameras(TEXT)
    batch |= {"frames_wrist": batch["frames"], "image_index_wrist": batch["image_index"]}
    config = replace(TWO.picture, robot_crop="pad")
    for fixed in (batch, batch | {"num_images": torch.tensor([3], dtype=torch.int32)}):
        main, both = (
            pictures(fixed, config, augment=True, dtype=torch.float64, cameras=roles)
            for roles in (("image",), ("image", "wrist"))
        )
        for step in range(2):
            real = main[1][:, step] >= 0
            ours, theirs = both[0][both[1][:, 2 * step]][real], main[0][main[1][:, step]][real]
            assert torch.equal(ours, theirs)
            wrist = both[0][both[1][:, 2 * step + 1]][real]
            is_robot = batch["is_robot"][real]
            assert torch.equal(wrist[~is_robot], ours[~is_robot]) and not torch.equal(wrist[is_robot], ours[is_robot])


@torch.no_grad()
def test_a_row_alone_and_beside_others_has_the_same_loss_whatever_it_lacks() -> None:
    torch.manual_seed(0)
    model, batch = stirred(RT2(TWO)).double().eval(), two_cameras(TEXT)
    model.loss(batch)
    whole = model.row_losses_B
    assert whole is not None
    for row in range(4):
        alone = {key: value if key.startswith("frames") else value[row : row + 1] for key, value in batch.items()}
        model.loss(alone)
        torch.testing.assert_close(model.row_losses_B, whole[row : row + 1], rtol=1e-9, atol=1e-12)
    changed = batch | {"frames_wrist": 255 - batch["frames_wrist"]}
    model.loss(changed)
    assert ((model.row_losses_B - whole).abs() > 1e-9).tolist() == [True, False, True, True]  # type: ignore[operator]
    empty = batch | {"frames_wrist": batch["frames_wrist"][:0], "image_index_wrist": torch.full((4, 2), -1)}
    model.loss(empty)
    torch.testing.assert_close(model.row_losses_B[1], whole[1], rtol=1e-9, atol=1e-12)  # type: ignore[index]


def test_a_model_without_them_has_the_parameters_and_the_prompts_that_it_always_had() -> None:
    counts = [sum(p.numel() for p in RT2(config).parameters()) for config in (MINIMAL, TWO)]
    assert counts[0] == counts[1]
    plain = MINIMAL.build_text()
    assert plain.robot_prompt("close the drawer", state=HERE) == plain.robot_prompt("close the drawer")
    assert plain.max_tokens == MINIMAL.longest_row() == MINIMAL.max_tokens
    assert cost(replace(TWO, text=MINIMAL.text)).action_flops(9) > cost(MINIMAL).action_flops(9)


# --- prompts ---


def test_a_state_is_said_in_bins_before_the_prompt_and_one_that_is_not_there_is_left_out() -> None:
    prompt = TEXT.robot_prompt("close the drawer")
    said = TEXT.robot_prompt("close the drawer", state=HERE)
    start = said.index(TEXT.action_ids[128])
    assert said[start : start + 3] == tuple(TEXT.action_ids[place] for place in (128, 0, 255))  # 0, -1 and 1
    assert TEXT.decode(said).startswith("State: 128 0 255 none. Q: what action should")
    assert TEXT.decode(said).endswith(TEXT.decode(prompt).removeprefix("<bos>").strip())
    assert TEXT.robot_prompt("close the drawer", state=NAN) == prompt
    far = TEXT.robot_prompt("close the drawer", state=np.array([9.0, -9.0, 0.0, 0.0], np.float32))
    assert TEXT.decode(far).startswith("State: 255 0 128 128 .")
    assert len(said) < TEXT.max_tokens
    example = TEXT.robot("close the drawer", np.zeros(11, np.float32), np.ones(11, bool), state=HERE)
    assert example.ids[: example.prompt_length] == said


def test_noise_and_dropout_are_each_sample_s_own() -> None:
    noisy = replace(TWO, state=replace(STATE, noise=0.5, dropout=0.25)).build_text()
    drawn = np.stack([noisy.perturbed(HERE, key=key) for key in range(2000)])
    np.testing.assert_array_equal(drawn[7], noisy.perturbed(HERE, key=7))
    there = ~np.isnan(drawn[:, 0])
    assert there.mean() == pytest.approx(0.75, abs=0.03) and np.isnan(drawn[:, 3]).all()
    np.testing.assert_allclose(drawn[there, :3].std(axis=0), 0.5, atol=0.03)
    np.testing.assert_array_equal(TEXT.perturbed(HERE, key=3), HERE)


def test_a_prompt_may_name_the_cameras_that_a_row_has() -> None:
    named = replace(TWO.text, robot_prompt="Q: {cameras}: what action should the robot take to {instruction}? A:")
    text = replace(TWO, text=named).build_text()
    assert "Q: image, wrist: what" in text.decode(text.robot_prompt("close the drawer"))
    assert "Q: image: what" in text.decode(text.robot_prompt("close the drawer", cameras=("image",)))
    with pytest.raises(ValueError, match=r"must hold {question} and no other braces"):
        replace(TWO.text, question_prompt="{cameras} {question}")


# --- at work ---


class Watched:
    """A language model that keeps the batches it is asked with."""

    def __init__(self, model: RT2) -> None:
        self.model, self.seen = model, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def start(self, batch: dict[str, Tensor], **settings: Any) -> Any:
        self.seen.append(batch)
        return self.model.start(batch, **settings)


def test_the_policy_shows_what_training_showed() -> None:
    torch.manual_seed(0)
    watched, random = Watched(stirred(RT2(TWO)).eval()), np.random.default_rng(0)
    policy = RT2Policy(watched, TEXT, dataset=dataset())  # type: ignore[arg-type]
    frames = [
        {"image": random.integers(0, 256, (20, 24, 3), dtype=np.uint8), "hand": np.full((8, 8, 3), step, np.uint8)}
        for step in range(3)
    ]
    for step, sent in enumerate(frames):
        policy.act(sent, "close the drawer", {"x": 2.0, "y": 2.0 + step, "gripper": -2.0})
    batch = watched.seen[-1]
    assert batch["image_index"].tolist() == batch["image_index_wrist"].tolist() == [[0, 1]]
    assert torch.equal(batch["frames"][1], torch.from_numpy(frames[2]["image"]))
    assert batch["frames_wrist"][:, 0, 0, 0].tolist() == [1, 2]
    state = np.array([0.0, 0.5, -1.0, np.nan], np.float32)  # between -2 and 6
    assert batch["tokens"][0].tolist() == list(TEXT.robot_prompt("close the drawer", state=state))


def test_robots_of_several_data_sets_act_together_as_alone() -> None:
    torch.manual_seed(0)
    model, random = stirred(RT2(TWO)).eval(), np.random.default_rng(0)
    sides = (dataset(), dataset(without_cameras=("wrist",), state=None))
    groups = [[RT2Policy(model, TEXT, dataset=side) for side in sides] for _ in range(2)]
    for _ in range(2):
        image, wrist = (random.integers(0, 256, (20, size, 3), dtype=np.uint8) for size in (24, 20))
        frames, states = [{"image": image, "wrist": wrist}, image], [[0.0, 1.0, 2.0], None]
        together = act_together(groups[0], frames, ["close the drawer", "push a blue cup"], states)
        for policy, frame, told, state, action in zip(
            groups[1], frames, ["close the drawer", "push a blue cup"], states, together, strict=True
        ):
            np.testing.assert_array_equal(policy.act(frame, told, state).tokens, action.tokens)
    policy = groups[0][0]
    with pytest.raises(ValueError, match="camera wrist is missing"):
        policy.act({"image": image}, "push a blue cup", [0.0] * 3)
    with pytest.raises(ValueError, match="state: it is missing"):
        policy.act({"image": image, "wrist": wrist}, "push a blue cup")
    with pytest.raises(ValueError, match=r"frame of camera wrist: .* reset"):
        policy.act({"image": image, "wrist": wrist[:9]}, "close the drawer", [0.0] * 3)


def test_a_batch_of_rows_with_two_cameras_is_checked() -> None:
    batch = two_cameras(TEXT)
    count = len(batch["tokens"])
    numbers = {key: torch.zeros(count, dtype=torch.int64) for key in ("sample_id", "store")}
    robot = {"episode": torch.tensor([0, 0, -1, -1]), "step": torch.tensor([0, 1, -1, -1])}
    actions = {"action": torch.zeros(count, 11), "action_mask": torch.ones(count, 11, dtype=torch.bool)}
    whole = batch | numbers | robot | actions
    check_rt2_batch(whole, action_size=11, cameras=("image", "wrist"))
    with pytest.raises(ValueError, match="image_index_wrist"):
        check_rt2_batch(
            whole | {"image_index_wrist": torch.full((4, 2), 2)}, action_size=11, cameras=("image", "wrist")
        )
    model = RT2(TWO)
    for wrong, words in (
        ({"image_index_wrist": torch.full((4, 2), 2)}, r"image_index_wrist'\]: expected rows of the 2 frames"),
        ({"image_index_wrist": torch.full((4, 1), -1)}, "image_index_wrist"),
        ({"frames_wrist": torch.zeros(1, 4, 4, 1, dtype=torch.uint8)}, "frames_wrist"),
    ):
        with pytest.raises(ValueError, match=words):
            model.loss(batch | wrong)
