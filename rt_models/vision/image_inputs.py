"""From a batch's uint8 frames to the images the model sees: gather, pad-crop, resize, all on the model's device.

The crop is the official one (google-research/robotics_transformer 4569641b `film_efficientnet/preprocessors.py:60-88`):
black borders, then a random cut of the frame's own size, so the picture moves by up to the border. Borders are 20 rows
and 50 columns for frames of 256 rows, 40 and 100 for 512; other heights have borders in proportion to their height,
rounded to whole pixels. One offset per distinct `crop_key`, a function of the key alone. Frames that windows share
under one crop are prepared (and encoded) once.

Several cameras are prepared together where one tokenizer sees them all, each from frames of its own size.

Axes: B windows, T steps, M cameras (or steps that have a frame), F frames of the batch, N distinct images, HW pixels,
C colours, D embedding.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rt_models.blocks.keyed_random import integers, mix
from rt_models.blocks.triton_kernels import kernel_module, runs_kernels
from rt_models.camera_roles import MAIN_CAMERA, frames_key, index_key, of_role
from rt_models.config_checks import require_choices
from rt_models.vision.object_mask import drawn

PLAN = ("image_frame", "image_step", "image_place", "num_images")
"""Keys of a batch whose images were found on the host (`image_plan.py`): int64 (N,) row of `frames` of each image;
int64 (N,) a step it stands at, counted through (B, T); int64 (B, T) the image of each step, -1 on padding; int32 (1,)
how many of the N are real. Of M cameras together steps and places are counted through (B, T, M), and the row is one of
the camera's own frames."""
_ROWS, _COLUMNS = 1, 2  # streams of random numbers
_BLOCK = 512  # pixels of an image that a program of the kernel computes


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """How frames become images."""

    image_size: int = 300
    """Rows and columns of the image the model sees; frames are squashed to it."""
    crop: Literal["pad", "none"] = "pad"
    """Random crop in training: the official pad-and-crop, or none. Evaluation never crops."""
    crop_seed: int = 0
    """Seed of the random crops."""
    mask_value: float = 1.0
    """Of a model with an object mask: what a mark of 1.0 is to the network, whose RGB pixels have a spread of 1. One
    pixel of 1.0 in a whole image is little: trained from scratch on few episodes, a model with the image's side here,
    such as 32, learns to look at marks where one with 1 learns its scenes by heart (benchmarks/object_masks.py)."""

    def __post_init__(self) -> None:
        require_choices(self, "input.")
        if self.image_size < 1:
            raise ValueError(f"input.image_size must be at least 1 pixel, got {self.image_size}")
        if not (math.isfinite(self.mask_value) and self.mask_value > 0):
            raise ValueError(f"input.mask_value must be finite and above 0, got {self.mask_value}")


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """How uint8 pixels become the network's input: (pixel / 255 - mean) / std by channel, computed in `wide`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    wide: torch.dtype
    dtype: torch.dtype
    memory_format: torch.memory_format

    def normalise(self, image_NHWC: Tensor) -> Tensor:
        """(N, C, H, W) of images in [0, 1]. Cast after: bf16 would keep seven bits of a pixel."""
        mean_C, std_C = self.constants(image_NHWC.device)
        x_NHWC = ((image_NHWC - mean_C) / std_C).to(self.dtype)
        return x_NHWC.permute(0, 3, 1, 2).contiguous(memory_format=self.memory_format)

    def constants(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return _on_device(self.mean, self.wide, device), _on_device(self.std, self.wide, device)


@functools.cache  # a copy from the host would make every step wait for the device
def _on_device(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=dtype, device=device)


@dataclass(frozen=True, kw_only=True)
class Images:
    """The N distinct images of a batch and where they stand in its windows."""

    x_NCHW: Tensor
    """float, normalised, at model resolution."""
    embedding_ND: Tensor
    key_N: Tensor
    """int64: names the image by crop, store, episode, step and camera, the same on any rank and in any batch."""
    place: Tensor
    """int64 (B, T), of several cameras (B, T, M): row of `x_NCHW` of each step; -1 on padding and without a picture."""
    num_real: Tensor | None
    """int32 (1,): so many of the images, the first, are real, the others pad; None: all are."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How the frames of a batch become images: all that is the same for every camera."""

    config: InputConfig
    pixels: Pixels
    augment: bool
    """Whether images are cropped, where the config says so."""
    object_mask: bool = False
    """Whether the batch's mask is a fourth channel, drawn where the crop moves it; 0 for other cameras."""
    stride: int = 1
    """Control steps from one frame of a window to the next."""


def prepare(batch: Mapping[str, Tensor], preparation: Preparation, cameras: Sequence[str] = (MAIN_CAMERA,)) -> Images:
    """The images that these cameras, together, have in a batch of `rt_models.spec.batch_fields`."""
    keys = plan_keys(cameras)
    if keys[0] in batch:  # found on the host: nothing here waits for the device
        frame_N, step_N, place, num_real = (batch[key] for key in keys)
        camera_N, step_N = step_N % len(cameras), step_N // len(cameras)
        with_frames = [each for each in enumerate(cameras) if len(batch[frames_key(each[1])])] or [(0, cameras[0])]
        first, role = with_frames[0]
        its_N = frame_N if len(cameras) == 1 else frame_N * (camera_N == first)  # not rows of other cameras' frames
        x_NCHW, key_N = _images(batch, role, its_N, step_N, preparation)
        for number, role in with_frames[1:]:
            is_its_N = camera_N == number
            its_x, its_key = _images(batch, role, frame_N * is_its_N, step_N, preparation)
            x_NCHW = torch.where(is_its_N[:, None, None, None], its_x, x_NCHW)
            key_N = torch.where(is_its_N, its_key, key_N)
    else:
        frame_N, step_N, place, counts = images_of(batch, cameras, crops=preparation.augment)
        step_N, num_real = step_N // len(cameras), None
        found = [
            _images(batch, role, frames, steps, preparation)
            for role, frames, steps in zip(cameras, frame_N.split(counts), step_N.split(counts), strict=True)
        ]
        x_NCHW, key_N = found[0] if len(found) == 1 else [torch.cat(parts) for parts in zip(*found, strict=True)]
    if not len(x_NCHW) and MAIN_CAMERA not in cameras:  # one that does not count: its tokenizer has a gradient then
        x_NCHW, key_N, step_N = (torch.cat([x, x.new_zeros(1, *x.shape[1:])]) for x in (x_NCHW, key_N, step_N))
        num_real = torch.zeros(1, dtype=torch.int32, device=x_NCHW.device)
    return Images(
        x_NCHW=x_NCHW,
        embedding_ND=batch["embedding"].flatten(0, 1)[step_N],
        key_N=key_N,
        place=place,
        num_real=num_real,
    )


def plan_keys(cameras: Sequence[str]) -> tuple[str, ...]:
    """The keys of the images of these cameras together."""
    return PLAN if len(cameras) > 1 else tuple(of_role(key, cameras[0]) for key in PLAN)


def images_of(
    batch: Mapping[str, Tensor], cameras: Sequence[str], *, crops: bool
) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """(row of its camera's frames of each distinct image (N,), a step it stands at (N,), the image of each step, how
    many images each camera has): one camera's images after another's, steps and places as `PLAN` says."""
    parts = [distinct_images(batch, crops=crops, role=role) for role in cameras]
    counts = [len(first_N) for _, _, first_N, _ in parts]
    frames = [frame_M[first_N] for frame_M, _, first_N, _ in parts]
    steps = [step_M[first_N] * len(cameras) + number for number, (_, step_M, first_N, _) in enumerate(parts)]
    if len(cameras) == 1:
        return frames[0], steps[0], parts[0][3], counts
    offsets = [sum(counts[:number]) for number in range(len(cameras))]
    places = [place.where(place < 0, place + offset) for (*_, place), offset in zip(parts, offsets, strict=True)]
    return torch.cat(frames), torch.cat(steps), torch.stack(places, dim=-1), counts


def _images(
    batch: Mapping[str, Tensor], role: str, frame_N: Tensor, step_N: Tensor, preparation: Preparation
) -> tuple[Tensor, Tensor]:
    """(normalised images, their keys) of these rows of one camera's frames; `step_N` counts through (B, T)."""
    config, pixels, frames_FHWC = preparation.config, preparation.pixels, batch[frames_key(role)]
    crop_N = of_camera(batch["crop_key"][step_N // batch["step_mask"].shape[1]], role)
    key_N = mix(crop_N, of_camera(_frame_keys(batch, preparation.stride).flatten()[step_N], role))
    offset_key_N = crop_N if preparation.augment and config.crop == "pad" else None
    masked, last = preparation.object_mask, pixels.memory_format == torch.channels_last
    if runs_kernels(frame_N.device) and not masked and last:
        return _by_kernel(frames_FHWC, frame_N, offset_key_N, config, pixels), key_N
    frames_NHWC = frames_FHWC[frame_N]
    if offset_key_N is not None:
        frames_NHWC = pad_crop(frames_NHWC, offset_key_N, seed=config.crop_seed)
    image_NHWC = resize(frames_NHWC.to(pixels.wide) / 255, config.image_size)
    if masked:
        mask_NHW = batch["object_mask"][frame_N] if role == MAIN_CAMERA else torch.zeros_like(frames_NHWC[..., 0])
        drawn_NHW = _drawn_mask(mask_NHW, offset_key_N, config, pixels.wide)
        image_NHWC = torch.cat([image_NHWC, drawn_NHW[..., None]], dim=-1)
    return pixels.normalise(image_NHWC), key_N


def of_camera(key_N: Tensor, role: str) -> Tensor:
    """The keys of what is random, each camera's its own; the main one's are those of a model with one camera."""
    return key_N if role == MAIN_CAMERA else mix(key_N, _role_number(role))


@functools.cache
def _role_number(role: str) -> int:
    return int.from_bytes(hashlib.sha256(role.encode()).digest()[:7], "little")


def _drawn_mask(mask_NHW: Tensor, key_N: Tensor | None, config: InputConfig, dtype: torch.dtype) -> Tensor:
    if key_N is None:
        return drawn(mask_NHW, config.image_size, dtype=dtype)
    down_N, right_N = crop_offsets(mask_NHW.shape[1], key_N, seed=config.crop_seed)
    return drawn(mask_NHW, config.image_size, dtype=dtype, down_N=down_N, right_N=right_N)


def still_images(frame_NHWC: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """float (N, size, size, C) in [0, 1] of uint8 frames that are not cropped; a fourth channel is an object mask."""
    image_NHWC = resize(frame_NHWC[..., :3].to(dtype) / 255, size)
    if frame_NHWC.shape[-1] == 3:
        return image_NHWC
    return torch.cat([image_NHWC, drawn(frame_NHWC[..., 3], size, dtype=dtype)[..., None]], dim=-1)


def _by_kernel(
    frames_FHWC: Tensor, frame_N: Tensor, key_N: Tensor | None, config: InputConfig, pixels: Pixels
) -> Tensor:
    still_N = torch.zeros_like(frame_N)
    height = frames_FHWC.shape[1]
    down_N, right_N = (still_N, still_N) if key_N is None else crop_offsets(height, key_N, seed=config.crop_seed)
    mean_C, std_C = pixels.constants(frame_N.device)
    constants = {"mean_C": mean_C, "std_C": std_C, "dtype": pixels.dtype}
    return frames_to_images(frames_FHWC, frame_N, down_N, right_N, size=config.image_size, **constants)


def frames_to_images(
    frames_FHWC: Tensor,
    frame_N: Tensor,
    down_N: Tensor,
    right_N: Tensor,
    *,
    size: int,
    mean_C: Tensor,
    std_C: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """float (N, 3, size, size) in channels_last: frames `frame_N` of uint8 (F, H, W, 3), moved by (down, right) pixels,
    resized bilinearly, divided by 255 and normalised, by a Triton kernel."""
    height, width = frames_FHWC.shape[1:3]
    shape, device = (len(frame_N), 3, size, size), frames_FHWC.device
    out = torch.empty(shape, dtype=dtype, device=device, memory_format=torch.channels_last)
    kernel = _kernels(device).frames_to_images[(len(frame_N), -(-(size * size) // _BLOCK))]
    given = (frames_FHWC.contiguous(), out, frame_N, down_N, right_N, mean_C, std_C)
    kernel(*given, height, width, size, height / size, width / size, BLOCK=_BLOCK)
    return out


@kernel_module
def _kernels() -> Any:
    from rt_models.vision import image_kernels

    return image_kernels


def distinct_images(
    batch: Mapping[str, Tensor], *, crops: bool, role: str = MAIN_CAMERA
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(frame of each step that has one (M,), its place among all steps (M,), for each distinct image the first of those
    that show it (N,), the image of each step (B, T) with -1 where there is none), int64, of one camera.

    An image is a frame with an instruction and, with `crops`, the crop of its window.
    """
    index_BT = batch[index_key(role)]
    step_M = (index_BT.flatten() >= 0).nonzero().flatten()  # once: on a GPU every look at data waits for the device
    frame_M, embedding_MD = index_BT.flatten()[step_M], batch["embedding"].flatten(0, 1)[step_M]
    crop_M = batch["crop_key"][step_M // index_BT.shape[1]]
    first_N, place_M = distinct(mix(frame_M, _fingerprint(embedding_MD), crop_M if crops else 0))
    place_BT = torch.full_like(index_BT.flatten(), -1).scatter(0, step_M, place_M).view_as(index_BT)
    return frame_M, step_M, first_N, place_BT


def borders(height: int) -> tuple[int, int]:
    """(rows, columns) of black border on each side of a frame of `height` rows."""
    return (20 * height + 128) // 256, (50 * height + 128) // 256


def pad_crop(frames_NHWC: Tensor, key_N: Tensor, *, seed: int) -> Tensor:
    """uint8 (N, H, W, C): each frame moved by its key's offset, black where it has left."""
    height, width = frames_NHWC.shape[1:3]
    rows, columns = borders(height)
    down_N, right_N = crop_offsets(height, key_N, seed=seed)
    padded_NHWC = F.pad(frames_NHWC, (0, 0, columns, columns, rows, rows))
    crops_NRSHWC = padded_NHWC.unfold(1, height, 1).unfold(2, width, 1).movedim(3, -1)  # views, by their first pixel
    return crops_NRSHWC[torch.arange(len(key_N), device=key_N.device), down_N + rows, right_N + columns]


def crop_offsets(height: int, key_N: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """int64 (N,): rows and columns by which frames of `height` rows move under these crop keys."""
    border_rows, border_columns = borders(height)
    down_N = integers(2 * border_rows + 1, key_N, seed, _ROWS) - border_rows
    return down_N, integers(2 * border_columns + 1, key_N, seed, _COLUMNS) - border_columns


def resize(image_NHWC: Tensor, size: int) -> Tensor:
    """float (N, size, size, C): bilinear, not antialiased, aspect ratio not kept, as in both official codes."""
    if image_NHWC.shape[1:3] == (size, size):
        return image_NHWC
    image_NCHW = image_NHWC.permute(0, 3, 1, 2)
    resized_NCHW = F.interpolate(image_NCHW, size=(size, size), mode="bilinear", align_corners=False)
    return resized_NCHW.permute(0, 2, 3, 1)


def _frame_keys(batch: Mapping[str, Tensor], stride: int) -> Tensor:
    """int64 (B, T): names each frame by store, episode and step; windows end at batch["step"]."""
    num_steps, end_B = batch["step_mask"].shape[1], batch["step"]
    step_BT = end_B[:, None] + stride * torch.arange(1 - num_steps, 1, device=end_B.device)
    return mix(batch["store"][:, None], batch["episode"][:, None], step_BT)


def _fingerprint(embedding_MD: Tensor) -> Tensor:
    """int64 (M,): equal for equal embeddings, as good as surely different for different ones."""
    bits_MD = embedding_MD.float().contiguous().view(torch.int32).long()
    weights_D = mix(torch.arange(bits_MD.shape[1], device=bits_MD.device))
    return (bits_MD * weights_D).sum(dim=1)


def distinct(identity_M: Tensor) -> tuple[Tensor, Tensor]:
    """(index of the first of each distinct value (N,), place of each value among them (M,)), in order of value."""
    values_N, place_M = torch.unique(identity_M, return_inverse=True)
    order_M = torch.arange(len(identity_M), device=identity_M.device)
    first_N = torch.full_like(values_N, len(identity_M)).scatter_reduce(0, place_M, order_M, "amin")
    return first_N, place_M
