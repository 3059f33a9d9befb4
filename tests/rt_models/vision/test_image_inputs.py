"""The input stage: the official crop, resize, and which frames are prepared once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rt_models.rt1 import RT1Config
from rt_models.vision.image_inputs import InputConfig, Pixels, Preparation, borders, pad_crop, prepare, resize
from tests.support.rt1_windows import make_batch

CONFIG = RT1Config.tiny()
PIXELS = Pixels(
    mean=(0.0,) * 3, std=(1.0,) * 3, wide=torch.float32, dtype=torch.float32, memory_format=torch.contiguous_format
)
"""As they are, from 0 to 1."""


@pytest.mark.parametrize(
    ("height", "expected"), [(256, (20, 50)), (512, (40, 100)), (128, (10, 25)), (64, (5, 13)), (32, (3, 6))]
)
def test_borders_are_the_official_ones_and_in_proportion_elsewhere(height: int, expected: tuple[int, int]) -> None:
    assert borders(height) == expected


def cut(frame_HWC: Tensor, row: int, column: int) -> Tensor:
    """Pad with black and cut out the frame's size at an offset, as the official code does."""
    height, width = frame_HWC.shape[:2]
    rows, columns = borders(height)
    padded = F.pad(frame_HWC, (0, 0, columns, columns, rows, rows))
    return padded[row : row + height, column : column + width]


@given(key=st.integers(-(2**63), 2**63 - 1), seed=st.integers(0, 5))
def test_a_crop_is_one_of_the_official_cuts(key: int, seed: int) -> None:
    frame = torch.randint(1, 256, (26, 32, 3), dtype=torch.uint8)
    cropped = pad_crop(frame[None], torch.tensor([key]), seed=seed)[0]
    rows, columns = borders(26)
    cuts = [cut(frame, row, column) for row in range(2 * rows + 1) for column in range(2 * columns + 1)]
    assert sum(torch.equal(cropped, candidate) for candidate in cuts) == 1


@pytest.mark.parametrize("axis", [0, 1])
def test_all_offsets_occur_ends_included(axis: int) -> None:
    border, places, centre = borders(26)[axis], torch.arange(26), 13
    frame = ((places == centre) * 255).to(torch.uint8).view((26, 1, 1) if axis == 0 else (1, 26, 1)).expand(26, 26, 1)
    cropped = pad_crop(frame.expand(400, -1, -1, -1), torch.arange(400), seed=0)
    found = cropped[..., 0].amax(dim=2 - axis).argmax(dim=1)
    assert {int(place) for place in found} == set(range(centre - border, centre + border + 1))


def test_a_crop_depends_on_its_key_not_on_its_place() -> None:
    frames = torch.randint(0, 256, (4, 26, 32, 3), dtype=torch.uint8)
    keys, order = torch.tensor([3, 3, 9, 12]), torch.tensor([2, 3, 0, 1])
    cropped = pad_crop(frames, keys, seed=1)
    assert torch.equal(pad_crop(frames[order], keys[order], seed=1), cropped[order])
    assert not torch.equal(pad_crop(frames, keys, seed=2), cropped)
    same = pad_crop(frames[:1].expand(2, -1, -1, -1), keys[:2], seed=1)
    assert torch.equal(same[0], same[1])


def test_resize_is_bilinear_without_antialias_and_with_half_pixel_centres() -> None:
    row = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]).view(1, 1, 8, 1).expand(1, 8, 8, 1)
    # Quarter size: output pixel i sits at 4 i + 1.5 and mixes two neighbours; antialiasing would mix eight.
    torch.testing.assert_close(resize(row, 2)[0, 0, :, 0], torch.tensor([1.5, 5.5]))
    spike = torch.zeros(1, 8, 8, 1)
    spike[0, :, 0] = 1
    assert resize(spike, 2).abs().max() == 0


def images_of(batch: dict[str, Tensor], **kwargs: object) -> Tensor:
    """float (B, T, H, W, C) in [0, 1]: the images put in their places, black where there is none."""
    config = kwargs.pop("config", CONFIG.input)
    images = prepare(batch, Preparation(config=config, pixels=PIXELS, **kwargs))  # type: ignore[arg-type]
    image_NHWC = images.x_NCHW.permute(0, 2, 3, 1)
    return torch.cat([image_NHWC, torch.zeros(1, *image_NHWC.shape[1:])])[images.place]


def test_without_augmentation_every_step_gets_its_own_frame_resized() -> None:
    batch = make_batch(CONFIG, [0, 4, 5])
    placed = images_of(batch, augment=False)
    for window, step in [(0, 2), (1, 0), (1, 2), (2, 1)]:
        frame = batch["frames"][batch["frame_index"][window, step]].float() / 255
        torch.testing.assert_close(placed[window, step], resize(frame[None], 16)[0])
    assert placed[0, :2].abs().max() == 0


@pytest.mark.parametrize("augment", [False, True])
def test_an_object_mask_goes_with_its_frame(augment: bool) -> None:
    batch = make_batch(CONFIG, [0, 4, 5], frame_size=(64, 64))
    batch["object_mask"] = batch["frames"][..., 0].clone()  # what the red channel then shows too, at the frame's size
    pixels, config = replace(PIXELS, mean=(0.0,) * 4, std=(1.0,) * 4), replace(CONFIG.input, image_size=64)
    images = prepare(batch, Preparation(config=config, pixels=pixels, augment=augment, object_mask=True)).x_NCHW
    assert images.shape[1] == 4 and images.std() > 0.1
    shown = (images[:, 0] > 0).flatten(1)
    torch.testing.assert_close(images[:, 3].flatten(1)[shown], images[:, 0].flatten(1)[shown])


def test_frames_are_prepared_once_when_shared_and_apart_under_different_crops() -> None:
    ends, config = [2, 3, 4, 5], replace(CONFIG.input, image_size=12)
    segment, windows = make_batch(CONFIG, ends, crop_keys=[7] * 4), make_batch(CONFIG, ends)
    count = [
        len(prepare(batch, Preparation(config=config, pixels=PIXELS, augment=augment)).x_NCHW)
        for batch, augment in ((segment, True), (windows, True), (windows, False))
    ]
    assert count == [6, 12, 6]  # T + k - 1; T k; no crop to tell them apart
    torch.testing.assert_close(
        images_of(segment, augment=True, config=config)[:, -1],
        torch.cat(
            [
                images_of(
                    {k: v if k == "frames" else v[i : i + 1] for k, v in segment.items()}, augment=True, config=config
                )[:, -1]
                for i in range(4)
            ]
        ),
    )


def test_a_frame_under_two_instructions_is_two_images() -> None:
    batch = make_batch(CONFIG, [4, 4])
    assert len(prepare(batch, Preparation(config=CONFIG.input, pixels=PIXELS, augment=False)).x_NCHW) == 3
    batch["embedding"] = batch["embedding"].clone()
    batch["embedding"][1, :, 0] += 1
    images = prepare(batch, Preparation(config=CONFIG.input, pixels=PIXELS, augment=False))
    assert len(images.x_NCHW) == 6
    torch.testing.assert_close(images.embedding_ND[images.place], batch["embedding"])


def test_keys_name_the_same_image_alike_in_any_batch() -> None:
    whole = make_batch(CONFIG, [3, 4, 5], crop_keys=[7, 7, 8])
    part = {name: value if name == "frames" else value[1:] for name, value in whole.items()}

    def keys(batch: dict[str, Tensor]) -> Tensor:
        images = prepare(batch, Preparation(config=CONFIG.input, pixels=PIXELS, augment=True))
        return images.key_N[images.place]

    assert torch.equal(keys(whole)[1:], keys(part))
    assert len(keys(whole).unique()) == 4 + 3
    other = whole | {"episode": whole["episode"] + 1}
    assert not (keys(other) == keys(whole)).any()


def test_other_stores_steps_and_crops_have_other_keys() -> None:
    batch = make_batch(CONFIG, [3, 4, 5], crop_keys=[7, 7, 8])

    def keys(changed: dict[str, Tensor]) -> Tensor:
        images = prepare(batch | changed, Preparation(config=CONFIG.input, pixels=PIXELS, augment=True))
        return images.key_N[images.place]

    for name in ("store", "step", "crop_key"):
        assert not (keys({name: batch[name] + 100}) == keys({})).any()


def test_an_image_needs_a_pixel() -> None:
    assert InputConfig(image_size=1).image_size == 1
    with pytest.raises(ValueError, match="image_size must be at least 1 pixel, got 0"):
        InputConfig(image_size=0)
