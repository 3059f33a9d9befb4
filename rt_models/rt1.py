"""RT-1: frames and an instruction in, logits of the next action's tokens out (arXiv 2212.06817).

Read in the order a window travels: config -> image tokenizer (FiLM EfficientNet, projection, TokenLearner) ->
transformer -> loss. `RT1Config.rt1()` is the TensorFlow release, `.rt1_jax()` and `.rt1x()` are the JAX ones.

Axes: B windows, T steps, N images, HWC pixels, D embedding or token width, K image tokens, A actions, V bins, P places.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from rt_models.action_space import RT1_SPACE, ActionSpace, ActionSpec
from rt_models.action_tokens import encode
from rt_models.blocks.batch_norm import BatchNormConfig
from rt_models.blocks.linear import LecunConv1x1
from rt_models.blocks.sequence import Layout, OutputSteps
from rt_models.blocks.transformer import OneHotLinear, TransformerConfig
from rt_models.compute_config import ComputeConfig as ComputeConfig
from rt_models.config_checks import require_choices, require_sizes
from rt_models.input_checks import (
    LABELS,
    require_action_tokens,
    require_batch,
    require_embeddings,
    require_frames,
    require_image_tokens,
    require_images,
    require_step_mask,
)
from rt_models.robot_model import RobotModel
from rt_models.spec import EMBEDDING_WIDTH
from rt_models.vision.efficientnet import EfficientNetConfig, Film, Stage
from rt_models.vision.image_inputs import PLAN, InputConfig, Pixels, prepare, resize
from rt_models.vision.token_learner import TokenLearner
from rt_models.vision.vit import ViTConfig

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class RT1Config:
    """A complete RT-1. The field defaults are those of `rt1()`."""

    backbone: EfficientNetConfig | ViTConfig = field(default_factory=lambda: EfficientNetConfig(padding="tf_fixed"))
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    input: InputConfig = field(default_factory=InputConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    num_steps: int = 6
    """Frames of history, the present one included."""
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

    def __post_init__(self) -> None:
        require_sizes(self, "num_steps", "num_image_tokens", "feature_width", "bins")
        require_choices(self)
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
        stages = (
            Stage(expansion=1, kernel=3, stride=2, channels=24, num_blocks=1),
            Stage(expansion=4, kernel=5, stride=2, channels=48, num_blocks=2),
            Stage(expansion=4, kernel=3, stride=1, channels=64, num_blocks=2),
        )
        return RT1Config(
            backbone=EfficientNetConfig(
                stem_channels=16,
                stages=stages,
                head_channels=192,
                stochastic_depth=0.0,
                batch_norm=BatchNormConfig(momentum=0.9),
            ),
            transformer=TransformerConfig(
                num_layers=3,
                num_heads=4,
                key_size=32,
                width=128,
                hidden=128,
                feed_forward="swiglu",
                mask="jax",
                dropout=0.0,
            ),
            input=InputConfig(image_size=64),
            feature_width=128,
        )

    @staticmethod
    def tiny() -> RT1Config:
        """The whole architecture in milliseconds, for tests."""
        stages = (
            Stage(expansion=1, kernel=3, stride=1, channels=8, num_blocks=1),
            Stage(expansion=2, kernel=5, stride=2, channels=8, num_blocks=2),
        )
        return RT1Config(
            backbone=EfficientNetConfig(stem_channels=8, stages=stages, head_channels=16, stochastic_depth=0.0),
            transformer=TransformerConfig(
                num_layers=2,
                num_heads=2,
                key_size=8,
                width=16,
                hidden=16,
                feed_forward="swiglu",
                mask="jax",
                dropout=0.0,
            ),
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

    def layout(self) -> Layout:
        return Layout(
            num_steps=self.num_steps, num_image_tokens=self.num_image_tokens, num_action_tokens=self.action_spec().size
        )

    def build(self) -> RT1:
        """The model with fresh parameters, drawn from torch's global generator."""
        model = RT1(self)
        model.compile_parts()
        return model


class ImageTokenizer(nn.Module):
    """float (N, C, H, W) normalised images (`pixels`) and (N, D) embeddings -> (N, K, D) tokens."""

    def __init__(self, config: RT1Config) -> None:
        super().__init__()
        self.num_channels = channels = config.num_channels()
        last = config.compute.memory_format == "channels_last"
        self.memory_format = torch.channels_last if last else torch.contiguous_format
        embedding_width = EMBEDDING_WIDTH if config.conditioning == "film" else 0
        self.backbone = config.backbone.build(
            in_channels=channels,
            image_size=config.input.image_size,
            embedding_width=embedding_width,
            checkpoint_blocks=config.compute.activation_checkpointing == "blocks",
        )
        self.projection = LecunConv1x1(config.backbone.out_channels(), config.feature_width)
        self.film = Film(config.feature_width, embedding_width) if embedding_width else None
        self.learner = TokenLearner(config.feature_width, config.num_image_tokens) if config.token_learner else None

    def pixels(self, wide: torch.dtype, dtype: torch.dtype | None = None) -> Pixels:
        """What `forward` expects of its images; `dtype` of the weights if it is not given."""
        return Pixels(
            mean=(*IMAGENET_MEAN, 0.0)[: self.num_channels],
            std=(*IMAGENET_STD, 1.0)[: self.num_channels],
            wide=wide,
            dtype=dtype or self.projection.weight.dtype,
            memory_format=self.memory_format,
        )

    def forward(
        self, x_NCHW: Tensor, embedding_ND: Tensor, key_N: Tensor | None = None, num_real: Tensor | None = None
    ) -> Tensor:
        """`key_N` int64 keys what is random in training; the first `num_real` images are real, the others pad."""
        x_NCHW = self.projection(self.backbone(x_NCHW, embedding_ND, key_N, num_real))
        if self.film is not None:
            x_NCHW = self.film(x_NCHW, embedding_ND)
        x_NPD = rearrange(x_NCHW, "n d h w -> n (h w) d")
        return x_NPD if self.learner is None else self.learner(x_NPD)


class RT1(RobotModel):
    """`RT1Config.build()` makes one. `spec` is its action space."""

    config: RT1Config

    def __init__(self, config: RT1Config) -> None:
        super().__init__()
        self.config, self.spec = config, config.action_spec()
        self.tokenizer = ImageTokenizer(config)
        self.transformer = config.transformer.build(config.layout(), in_width=config.feature_width, bins=config.bins)
        one_hot = config.previous_actions == "one_hot"
        self.action_embedding = OneHotLinear(config.bins, config.feature_width) if one_hot else None
        self.check_inputs = False
        """Also look for values out of range off the CPU, where it makes every forward wait for the device."""

    def compile_parts(self) -> None:
        """torch.compile as `config.compute` says; a copy of a compiled model is not compiled."""
        if self.config.compute.compile != "off":
            self.tokenizer.compile(backend=self.config.compute.compile)
            self.transformer.compile(backend=self.config.compute.compile)

    def replayable(self, batch: Mapping[str, Tensor]) -> bool:
        compute = self.config.compute
        return PLAN[0] in batch and compute.activation_checkpointing == compute.compile == "off"

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.output.weight.dtype

    def forward(self, image_BTHWC: Tensor, embedding_BTD: Tensor, action_tokens_BTA: Tensor | None = None) -> Tensor:
        """float (B, T, A, V) logits of the actions of all steps.

        `image_BTHWC` float in [0, 1] at model resolution, not cropped; `embedding_BTD` float (B, T, 512);
        `action_tokens_BTA` int64, needed where `previous_actions` is "one_hot" (the last step's are not looked at).
        Raises ValueError for another shape, dtype or range.
        """
        return self.action_logits(
            self._image_tokens(image_BTHWC, embedding_BTD, self.config.num_steps), action_tokens_BTA
        )

    def image_tokens(self, image_BTHWC: Tensor, embedding_BTD: Tensor) -> Tensor:
        """float (B, T, K, D) tokens of each frame, for any T; no frame's tokens depend on another (in evaluation)."""
        return self._image_tokens(image_BTHWC, embedding_BTD, "T")

    def _image_tokens(self, image_BTHWC: Tensor, embedding_BTD: Tensor, steps: int | str) -> Tensor:
        size, channels = self.config.input.image_size, self.config.num_channels()
        check = self._checks_values()
        require_images(image_BTHWC, steps=steps, size=size, channels=channels, check_values=check)
        leading = tuple(image_BTHWC.shape[:2])
        require_embeddings(embedding_BTD, leading=leading, check_values=check)
        image_NHWC = image_BTHWC.flatten(0, 1).to(self._pixel_dtype())
        key_N = torch.randint(2**62, (len(image_NHWC),), device=image_NHWC.device) if self.training else None
        with self._autocast(image_NHWC.device):
            x_NCHW = self.tokenizer.pixels(image_NHWC.dtype).normalise(image_NHWC)
            tokens_NKD = self.tokenizer(x_NCHW, embedding_BTD.flatten(0, 1).to(self.dtype), key_N)
        return tokens_NKD.unflatten(0, leading)

    def action_logits(
        self,
        tokens_BTKD: Tensor,
        action_tokens_BTA: Tensor | None = None,
        step_mask_BT: Tensor | None = None,
        output_steps: OutputSteps = "all",
    ) -> Tensor:
        """float (B, T, A, V) logits, or (B, 1, A, V) of the last step, from image tokens; the transformer alone.

        Steps where `step_mask_BT` is False are padding: no real step's logits depend on what they hold.
        """
        config = self.config
        require_image_tokens(tokens_BTKD, window=(config.num_steps, config.num_image_tokens, config.feature_width))
        if step_mask_BT is not None:
            require_step_mask(step_mask_BT, shape=(len(tokens_BTKD), config.num_steps))
        if self.action_embedding is not None:
            shape = (len(tokens_BTKD), config.num_steps, self.spec.size)
            require_action_tokens(action_tokens_BTA, shape=shape, bins=config.bins, check_values=self._checks_values())
        with self._autocast(tokens_BTKD.device):
            contents = self._action_contents(action_tokens_BTA)
            return self.transformer(tokens_BTKD, contents, step_mask_BT, output_steps)

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Scalar cross-entropy of a batch of `rt_models.spec.BATCH`; crops in training mode only.

        Each window counts sum over (t, a) of its masked cross-entropies / (trained steps T x dimensions it has); the
        loss is the mean over windows. The denominators do not depend on how many steps are padding, so every step
        weighs the same and the mean of equal-sized rank batches is the loss of the whole batch.
        """
        logits_BTAV = self._batch_logits(batch, augment=self.training, output_steps=self.config.loss_on, also=LABELS)
        trained_steps = logits_BTAV.shape[1]
        target_BTA = encode(batch["action"][:, -trained_steps:], self.spec)
        wide = logits_BTAV if logits_BTAV.dtype == torch.float64 else logits_BTAV.float()
        ce_BTA = F.cross_entropy(wide.permute(0, 3, 1, 2), target_BTA, reduction="none")
        weight_BTA = batch["loss_mask"][:, -trained_steps:, None] & batch["action_mask"][:, None, :]
        dims_B = batch["action_mask"].sum(dim=1).clamp(min=1)
        loss_B = (ce_BTA * weight_BTA).sum(dim=(1, 2)) / (trained_steps * dims_B)
        self.row_losses_B = loss_B.detach()
        return loss_B.mean()

    def predict(self, batch: Mapping[str, Tensor], output_steps: OutputSteps = "all") -> Tensor:
        """float (B, T, A, V) logits of a batch of `rt_models.spec.BATCH`, not cropped; padding's mean nothing."""
        seen = ("action",) if self.action_embedding is not None else ()
        return self._batch_logits(batch, augment=False, output_steps=output_steps, also=seen)

    def encode_frames(self, frames_NHWC: Tensor, embedding_ND: Tensor) -> Tensor:
        """float (N, K, D) tokens of uint8 frames of any size, without crop; the image half of a control step."""
        require_frames(frames_NHWC, channels=self.config.num_channels())
        image_NHWC = resize(frames_NHWC.to(self._pixel_dtype()) / 255, self.config.input.image_size)
        return self.image_tokens(image_NHWC[:, None], embedding_ND[:, None])[:, 0]

    def _batch_logits(
        self, batch: Mapping[str, Tensor], *, augment: bool, output_steps: OutputSteps, also: tuple[str, ...]
    ) -> Tensor:
        config = self.config
        masked = config.image_channels == "rgb+mask"
        require_batch(
            batch,
            num_steps=config.num_steps,
            num_actions=self.spec.size,
            also=(*also, "object_mask") if masked else also,
            check_values=self._checks_values(),
        )
        in_bf16 = config.compute.precision == "bf16" and batch["frames"].is_cuda
        pixels = self.tokenizer.pixels(self._pixel_dtype(), torch.bfloat16 if in_bf16 else None)
        images = prepare(batch, config.input, pixels, augment=augment, object_mask=masked)
        if not len(images.x_NCHW):
            raise ValueError("batch: no window has a real step, so there is nothing to compute")
        with self._autocast(images.x_NCHW.device):
            embedding_ND = images.embedding_ND.to(self.dtype)
            tokens_NKD = self.tokenizer(images.x_NCHW, embedding_ND, images.key_N, images.num_real)
        # Padding has no image: it takes the row of zeros appended here, which place -1 points at.
        with_zeros = torch.cat([tokens_NKD, tokens_NKD.new_zeros(1, *tokens_NKD.shape[1:])])
        tokens_BTKD = with_zeros[images.place_BT]
        action_tokens = encode(batch["action"], self.spec) if self.action_embedding is not None else None
        return self.action_logits(tokens_BTKD, action_tokens, batch["step_mask"], output_steps)

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

    def _pixel_dtype(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        # Nothing for "as_is": a disabled autocast here would turn off one that the caller has around the model.
        return torch.autocast(device.type, torch.bfloat16) if self.config.compute.precision == "bf16" else nullcontext()
