"""RT-1: frames, an instruction and maybe a state in, logits of the next action's tokens out (arXiv 2212.06817).

Read in the order a window travels: config -> image tokenizer of one camera or more -> with the state, tokens of each
step (robot_tokens.py) -> transformer -> loss. `RT1Config.rt1()` is the TensorFlow release, `.rt1_jax()` and
`.rt1x()` are the JAX ones.

Axes: B windows, T steps, M cameras, N images, HWC pixels, D embedding or token width, K tokens of an image, P values of
the state, J tokens of a step before its actions, A actions, V bins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from rt_models.action_space import RT1_SPACE, ActionSpace, ActionSpec
from rt_models.action_tokens import encode
from rt_models.blocks.compiled import compile_blocks
from rt_models.blocks.sequence import Layout, OutputSteps
from rt_models.blocks.transformer import OneHotLinear, TransformerConfig
from rt_models.camera_roles import MAIN_CAMERA, require_cameras
from rt_models.compute_config import ComputeConfig as ComputeConfig
from rt_models.config_checks import require_choices, require_sizes
from rt_models.input_checks import (
    LABELS,
    require_action_tokens,
    require_batch,
    require_cameras_axis,
    require_embeddings,
    require_frames,
    require_images,
    require_state,
    require_step_mask,
    require_step_tokens,
)
from rt_models.robot_inputs import StateInput
from rt_models.robot_model import RobotModel
from rt_models.robot_tokens import RobotTokens, augmented_state
from rt_models.spec import EMBEDDING_WIDTH
from rt_models.vision.efficientnet import EfficientNetConfig
from rt_models.vision.image_inputs import InputConfig, Preparation, plan_keys, prepare, still_images
from rt_models.vision.image_tokenizer import ImageTokenizer
from rt_models.vision.vit import ViTConfig
from rt_models.window_loss import window_losses

State: TypeAlias = tuple[Tensor, Tensor]
"""float (B, T, P) normalised values, bool (B, P) True: the robot has the value."""


@dataclass(frozen=True, kw_only=True)
class RT1Config:
    """A complete RT-1. The field defaults are those of `rt1()`."""

    backbone: EfficientNetConfig | ViTConfig = field(default_factory=lambda: EfficientNetConfig(padding="tf_fixed"))
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    input: InputConfig = field(default_factory=InputConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    num_steps: int = 6
    """Frames of history, the present one included."""
    stride: int = 1
    """Control steps from one frame of the history to the next."""
    num_image_tokens: int = 8
    """Tokens per frame; without TokenLearner the number of positions of the feature map."""
    token_learner: bool = True
    """Learn num_image_tokens tokens per frame instead of one for each position of the feature map."""
    feature_width: int = 512
    """Width of an image token before the transformer."""
    conditioning: Literal["film", "none"] = "film"
    """Whether the instruction reaches the backbone. "none" ignores the instruction (ablation)."""
    image_channels: Literal["rgb", "rgb+mask"] = "rgb"
    """"rgb+mask": a fourth channel in [0, 1] marks the objects meant (MOO, arXiv 2303.00905): batch["object_mask"]."""
    previous_actions: Literal["zeros", "one_hot"] = "zeros"
    """What action positions hold: nothing, or the tokens of the actions of earlier steps."""
    loss_on: Literal["all", "last"] = "all"
    """Steps of a window that are trained on."""
    bins: int = 256
    """Bins that each continuous dimension is cut into."""
    world_vector_limit: float = 1.0
    """Bound of the arm's model-space displacement per step: 1 for RT-1, 2 for RT-1-X; of RT-1's space alone."""
    binning: Literal["truncate", "centre"] = "truncate"
    """Which value a bin stands for: "truncate" as the official code, "centre" without its half-bin bias."""
    action_space: ActionSpace | None = None
    """The space it acts in; None is RT-1's own of eleven dimensions. rtp train sets that of the stores."""
    cameras: tuple[str, ...] = (MAIN_CAMERA,)
    """Cameras that it reads, by role, in the order of their tokens: image, wrist, left, right and so on."""
    tokenizers: Literal["shared", "separate"] = "shared"
    """Whether one image tokenizer sees all cameras, or each camera has its own."""
    state: StateInput | None = None
    """The robot's state as a token of each step; None: it reads none."""

    def __post_init__(self) -> None:
        require_sizes(self, "num_steps", "stride", "num_image_tokens", "feature_width", "bins")
        require_choices(self)
        require_cameras(self.cameras)
        positions = self.backbone.grid(self.input.image_size) ** 2
        if not self.token_learner and self.num_image_tokens != positions:
            raise ValueError(
                f"without TokenLearner every position is a token: num_image_tokens must be {positions} "
                f"at image_size {self.input.image_size}, got {self.num_image_tokens}"
            )
        if self.previous_actions == "one_hot" and self.transformer.mask == "jax":
            raise ValueError("previous_actions one_hot needs transformer.mask tf: under the jax mask nobody sees them")
        self.action_spec()

    @staticmethod
    def rt1() -> RT1Config:
        """The TensorFlow release: 9x9 positions, linear feed-forward with bias, its mask."""
        return RT1Config()

    @staticmethod
    def rt1_jax() -> RT1Config:
        """RT-1 in JAX: 10x10 positions, SwiGLU, a mask under which no action position is seen."""
        transformer = TransformerConfig(feed_forward="swiglu", mask="jax")
        return RT1Config(backbone=EfficientNetConfig(), transformer=transformer)

    @staticmethod
    def rt1x() -> RT1Config:
        """RT-1-X: 15 frames of 81 tokens, 512 bins, heads of 256, world vector up to 2."""
        return RT1Config(
            backbone=EfficientNetConfig(),
            transformer=TransformerConfig(feed_forward="swiglu", mask="jax", key_size=256),
            num_steps=15,
            num_image_tokens=81,
            bins=512,
            world_vector_limit=2.0,
        )

    @staticmethod
    def small() -> RT1Config:
        """A million parameters and images of 64 pixels: learns a thousand frames in minutes on two CPU cores."""
        return RT1Config(
            backbone=EfficientNetConfig.small(),
            transformer=TransformerConfig.small(),
            input=InputConfig(image_size=64),
            feature_width=128,
        )

    @staticmethod
    def tiny() -> RT1Config:
        """The whole architecture in milliseconds, for tests."""
        return RT1Config(
            backbone=EfficientNetConfig.tiny(),
            transformer=TransformerConfig.tiny(),
            input=InputConfig(image_size=16),
            num_steps=3,
            num_image_tokens=4,
            feature_width=16,
        )

    def action_spec(self) -> ActionSpec:
        space = self.action_space or RT1_SPACE
        return space.spec(bins=self.bins, world_vector_limit=self.world_vector_limit, binning=self.binning)

    def num_channels(self) -> int:
        return 4 if self.image_channels == "rgb+mask" else 3

    def state_size(self) -> int:
        """Values of the state; 0 without one."""
        return 0 if self.state is None else len(self.state.names)

    def num_input_tokens(self) -> int:
        """Tokens of a step before its actions."""
        return len(self.cameras) * self.num_image_tokens + (self.state is not None)

    def layout(self) -> Layout:
        return Layout(
            num_steps=self.num_steps,
            num_input_tokens=self.num_input_tokens(),
            num_action_tokens=self.action_spec().size,
        )

    def cameras_encoded_together(self) -> list[tuple[str, ...]]:
        """The cameras of each image tokenizer."""
        return [self.cameras] if self.tokenizers == "shared" else [(role,) for role in self.cameras]

    def build_tokenizer(self) -> ImageTokenizer:
        """With fresh parameters."""
        return ImageTokenizer(
            self.backbone,
            num_channels=self.num_channels(),
            mask_value=self.input.mask_value,
            image_size=self.input.image_size,
            embedding_width=EMBEDDING_WIDTH if self.conditioning == "film" else 0,
            width=self.feature_width,
            num_tokens=self.num_image_tokens if self.token_learner else None,
            compute=self.compute,
        )

    def build(self) -> RT1:
        """The model with fresh parameters, drawn from torch's global generator."""
        model = RT1(self)
        model.compile_parts()
        return model


class RT1(RobotModel):
    """`RT1Config.build()` makes one. `spec` is its action space."""

    config: RT1Config

    def __init__(self, config: RT1Config) -> None:
        super().__init__()
        self.config, self.spec = config, config.action_spec()
        if config.state is not None and not config.state.names:
            raise ValueError("state.names is empty: name the values of the state, as rtp train reads them from stores")
        self.tokenizer = config.build_tokenizer()
        self.transformer = config.transformer.build(config.layout(), in_width=config.feature_width, bins=config.bins)
        one_hot = config.previous_actions == "one_hot"
        self.action_embedding = OneHotLinear(config.bins, config.feature_width) if one_hot else None
        others = config.cameras[1:] if config.tokenizers == "separate" else ()
        self.other_tokenizers = nn.ModuleDict({role: config.build_tokenizer() for role in others}) if others else None
        """Those of the cameras after the first, where each has its own."""
        is_plain = config.cameras == (MAIN_CAMERA,) and config.state is None
        sizes = (config.num_image_tokens, config.state_size(), config.feature_width)
        self.robot_tokens = None if is_plain else RobotTokens(config.cameras, *sizes)
        self.check_inputs = False
        """Also look for values out of range off the CPU, where it makes every forward wait for the device."""

    def compile_parts(self) -> None:
        """torch.compile as `config.compute` says; a copy of a compiled model is not compiled."""
        if (backend := self.config.compute.compile) != "off":
            images = [block for tokenizer, _ in self.cameras_of_tokenizers() for block in tokenizer.backbone.blocks]
            compile_blocks(images, backend, varying={0: (0,), 1: (0,), 2: (0,)})
            compile_blocks(self.transformer.blocks, backend, varying={0: (0,), 2: (0,)})

    def replayable(self, batch: Mapping[str, Tensor]) -> bool:
        compute = self.config.compute
        is_planned = all(plan_keys(cameras)[0] in batch for cameras in self.config.cameras_encoded_together())
        return is_planned and compute.activation_checkpointing == compute.compile == "off"

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.output.weight.dtype

    def forward(
        self,
        image_BTHWC: Tensor,
        embedding_BTD: Tensor,
        action_tokens_BTA: Tensor | None = None,
        state: State | None = None,
    ) -> Tensor:
        """float (B, T, A, V) logits of the actions of all steps.

        `image_BTHWC` float in [0, 1] at model resolution, not cropped, of several cameras (B, T, M, H, W, C);
        `embedding_BTD` float (B, T, 512); `action_tokens_BTA` int64, needed where `previous_actions` is "one_hot" (the
        last step's are not looked at). Raises ValueError for another shape, dtype or range.
        """
        tokens_BTJD = self.step_tokens(image_BTHWC, embedding_BTD, state, steps=self.config.num_steps)
        return self.action_logits(tokens_BTJD, action_tokens_BTA)

    def step_tokens(
        self,
        image_BTHWC: Tensor,
        embedding_BTD: Tensor,
        state: State | None = None,
        present_BTM: Tensor | None = None,
        steps: int | str = "T",
    ) -> Tensor:
        """float (B, T, J, D) tokens of each step before its actions, for any T; no step's depend on another's (in
        evaluation). Images as in `forward`; `present_BTM` bool: False where the robot has no such camera."""
        if self.robot_tokens is None:
            frames = image_BTHWC, embedding_BTD
            return self.image_tokens(*frames) if steps == "T" else self.image_tokens(*frames, steps=steps)
        config, parts = self.config, []
        require_cameras_axis(image_BTHWC, num_cameras=len(config.cameras))
        image_BTMHWC = image_BTHWC if len(config.cameras) > 1 else image_BTHWC[:, :, None]
        for tokenizer, roles in self.cameras_of_tokenizers():
            places = [config.cameras.index(role) for role in roles]
            flat = image_BTMHWC[:, :, places].flatten(1, 2), embedding_BTD.repeat_interleave(len(roles), dim=1)
            tokens = self.image_tokens(*flat, tokenizer, steps if steps == "T" else int(steps) * len(roles))
            parts.append(tokens.unflatten(1, (-1, len(roles))))
        tokens_BTMKD = torch.cat(parts, dim=2)
        if config.state is not None:
            shape = (*tokens_BTMKD.shape[:2], config.state_size())
            require_state(state, shape=shape, check_values=self._checks_values())
        with self._autocast(tokens_BTMKD.device):
            return self.robot_tokens(tokens_BTMKD, present_BTM, state)

    def image_tokens(
        self,
        image_BTHWC: Tensor,
        embedding_BTD: Tensor,
        tokenizer: ImageTokenizer | None = None,
        steps: int | str = "T",
    ) -> Tensor:
        """float (B, T, K, D) tokens of each frame of a camera, the first unless `tokenizer` is another's, for any T; no
        frame's tokens depend on another (in evaluation)."""
        size, channels, check = self.config.input.image_size, self.config.num_channels(), self._checks_values()
        require_images(image_BTHWC, steps=steps, size=size, channels=channels, check_values=check)
        require_embeddings(embedding_BTD, leading=tuple(image_BTHWC.shape[:2]), check_values=check)
        tokenizer, wide_BTHWC = tokenizer or self.tokenizer, image_BTHWC.to(self._wide_dtype())
        with self._autocast(image_BTHWC.device):
            return tokenizer.of_steps(wide_BTHWC, embedding_BTD.to(self._wide_dtype()))

    def cameras_of_tokenizers(self) -> list[tuple[ImageTokenizer, tuple[str, ...]]]:
        """Each tokenizer with the cameras that it encodes, in the order of the cameras."""
        others: Iterable[nn.Module] = [] if self.other_tokenizers is None else self.other_tokenizers.values()
        tokenizers = [self.tokenizer, *(cast(ImageTokenizer, tokenizer) for tokenizer in others)]
        return list(zip(tokenizers, self.config.cameras_encoded_together(), strict=True))

    def action_logits(
        self,
        tokens_BTJD: Tensor,
        action_tokens_BTA: Tensor | None = None,
        step_mask_BT: Tensor | None = None,
        output_steps: OutputSteps = "all",
    ) -> Tensor:
        """float (B, T, A, V) logits, or (B, 1, A, V) of the last step, from `step_tokens`; the transformer alone. No
        real step's logits depend on steps where `step_mask_BT` is False: they are padding."""
        config = self.config
        require_step_tokens(tokens_BTJD, window=(config.num_steps, config.num_input_tokens(), config.feature_width))
        if step_mask_BT is not None:
            require_step_mask(step_mask_BT, shape=(len(tokens_BTJD), config.num_steps))
        if self.action_embedding is not None:
            shape = (len(tokens_BTJD), config.num_steps, self.spec.size)
            require_action_tokens(action_tokens_BTA, shape=shape, bins=config.bins, check_values=self._checks_values())
        with self._autocast(tokens_BTJD.device):
            return self.transformer(tokens_BTJD, self._action_contents(action_tokens_BTA), step_mask_BT, output_steps)

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Scalar cross-entropy of a batch of `rt_models.spec.BATCH`; crops in training mode only.

        It is the mean of `window_losses`, so the mean of equal-sized rank batches is the loss of the whole batch.
        """
        logits_BTAV = self._batch_logits(batch, augment=self.training, output_steps=self.config.loss_on, also=LABELS)
        loss_B = window_losses(logits_BTAV, batch, self.spec)
        self.row_losses_B = loss_B.detach()
        return loss_B.mean()

    def predict(self, batch: Mapping[str, Tensor], output_steps: OutputSteps = "all") -> Tensor:
        """float (B, T, A, V) logits of a batch of `rt_models.spec.BATCH`, not cropped; padding's mean nothing."""
        seen = ("action",) if self.action_embedding is not None else ()
        return self._batch_logits(batch, augment=False, output_steps=output_steps, also=seen)

    def encode_frames(self, frames_NHWC: Tensor, embedding_ND: Tensor) -> Tensor:
        """float (N, K, D) tokens of uint8 frames of any size, without crop; the image half of a control step."""
        require_frames(frames_NHWC, channels=self.config.num_channels())
        image_NHWC = still_images(frames_NHWC, self.config.input.image_size, self._wide_dtype())
        return self.image_tokens(image_NHWC[:, None], embedding_ND[:, None])[:, 0]

    def _batch_logits(
        self, batch: Mapping[str, Tensor], *, augment: bool, output_steps: OutputSteps, also: tuple[str, ...]
    ) -> Tensor:
        config, masked = self.config, self.config.image_channels == "rgb+mask"
        require_batch(
            batch,
            num_steps=config.num_steps,
            num_actions=self.spec.size,
            also=(*also, "object_mask") if masked else also,
            check_values=self._checks_values(),
            cameras=config.cameras,
            state_size=config.state_size(),
        )
        in_bf16 = config.compute.precision == "bf16" and batch["step_mask"].is_cuda
        preparation = Preparation(
            config=config.input,
            pixels=self.tokenizer.pixels(self._wide_dtype(), torch.bfloat16 if in_bf16 else None),
            augment=augment,
            object_mask=masked,
            stride=config.stride,
        )
        images = [(each, prepare(batch, preparation, roles)) for each, roles in self.cameras_of_tokenizers()]
        with self._autocast(batch["step_mask"].device):
            encoded = [tokenizer.encoded(its_images) for tokenizer, its_images in images]
            tokens, present = (torch.cat(parts, dim=2) for parts in zip(*encoded, strict=True))
            if self.robot_tokens is None:
                tokens_BTJD = tokens.squeeze(2)
            else:
                felt = config.state
                state = None if felt is None else augmented_state(batch, felt, augment=augment, stride=config.stride)
                tokens_BTJD = self.robot_tokens(tokens, present, state)
        action_tokens = encode(batch["action"], self.spec) if self.action_embedding is not None else None
        return self.action_logits(tokens_BTJD, action_tokens, batch["step_mask"], output_steps)

    def _action_contents(self, action_tokens_BTA: Tensor | None) -> Tensor | None:
        """The contents of action positions: the actions' embeddings, token 0's at the last step.

        As google-deepmind/open_x_embodiment 9eeb68b9 `models/rt1.py` has it.
        """
        if self.action_embedding is None:
            return None
        assert action_tokens_BTA is not None
        tokens_BTA = action_tokens_BTA.clone()
        tokens_BTA[:, -1] = 0
        return self.action_embedding(tokens_BTA)

    def _checks_values(self) -> bool:
        return self.check_inputs or self.transformer.output.weight.device.type == "cpu"

    def _wide_dtype(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        # Nothing for "as_is": a disabled autocast here would turn off one that the caller has around the model.
        return torch.autocast(device.type, torch.bfloat16) if self.config.compute.precision == "bf16" else nullcontext()
