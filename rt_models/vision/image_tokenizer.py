"""RT-1's image tokenizer: FiLM EfficientNet, projection, TokenLearner (arXiv 2212.06817, section 5.1).

Axes: B windows, T steps, M cameras, N images, C channels, HW pixels, P positions of the feature map, K tokens of an
image, D width.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from rt_models.blocks.linear import LecunConv1x1
from rt_models.compute_config import ComputeConfig
from rt_models.vision.efficientnet import DepthwiseConv, EfficientNetConfig, Film
from rt_models.vision.image_inputs import Images, Pixels
from rt_models.vision.token_learner import TokenLearner
from rt_models.vision.vit import ViTConfig

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageTokenizer(nn.Module):
    """float (N, C, H, W) normalised images (`pixels`) and (N, D) embeddings -> (N, K, D) tokens.

    `embedding_width` 0: the instruction does not reach it. `num_tokens` None: without TokenLearner. `mask_value`: what
    1.0 in a fourth channel becomes.
    """

    def __init__(
        self,
        backbone: EfficientNetConfig | ViTConfig,
        *,
        num_channels: int,
        mask_value: float = 1.0,
        image_size: int,
        embedding_width: int,
        width: int,
        num_tokens: int | None,
        compute: ComputeConfig,
    ) -> None:
        super().__init__()
        self.num_channels, self.mask_value = num_channels, mask_value
        last = compute.memory_format == "channels_last"
        self.memory_format = torch.channels_last if last else torch.contiguous_format
        self.backbone = backbone.build(
            in_channels=num_channels,
            image_size=image_size,
            embedding_width=embedding_width,
            checkpointing=compute.activation_checkpointing,
        )
        for part in self.backbone.modules():
            if isinstance(part, DepthwiseConv):
                part.kernels = compute.depthwise
        self.projection = LecunConv1x1(backbone.out_channels(), width)
        self.film = Film(width, embedding_width) if embedding_width else None
        self.learner = None if num_tokens is None else TokenLearner(width, num_tokens)

    def pixels(self, wide: torch.dtype, dtype: torch.dtype | None = None) -> Pixels:
        """What `forward` expects of its images; `dtype` of the weights if it is not given."""
        return Pixels(
            mean=(*IMAGENET_MEAN, 0.0)[: self.num_channels],
            std=(*IMAGENET_STD, 1 / self.mask_value)[: self.num_channels],
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

    def encoded(self, images: Images) -> tuple[Tensor, Tensor]:
        """(tokens (B, T, M, K, D) of the M cameras that `images` are of, bool (B, T, M) whether a step has a picture).

        Raises ValueError if there is no image.
        """
        if not len(images.x_NCHW):
            raise ValueError("batch: no window has a real step, so there is nothing to compute")
        embedding_ND = images.embedding_ND.to(self.projection.weight.dtype)
        tokens_NKD = self(images.x_NCHW, embedding_ND, images.key_N, images.num_real)
        # Padding has no image: it takes the row of zeros appended here, which place -1 points at.
        with_zeros = torch.cat([tokens_NKD, tokens_NKD.new_zeros(1, *tokens_NKD.shape[1:])])
        place_BTM = images.place if images.place.dim() == 3 else images.place[..., None]
        return with_zeros[place_BTM], place_BTM >= 0

    def of_steps(self, image_BTHWC: Tensor, embedding_BTD: Tensor) -> Tensor:
        """float (B, T, K, D) tokens of images in [0, 1], one a step."""
        image_NHWC = image_BTHWC.flatten(0, 1)
        key_N = torch.randint(2**62, (len(image_NHWC),), device=image_NHWC.device) if self.training else None
        x_NCHW = self.pixels(image_NHWC.dtype).normalise(image_NHWC)
        return self(x_NCHW, embedding_BTD.flatten(0, 1), key_N).unflatten(0, image_BTHWC.shape[:2])
