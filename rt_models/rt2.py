"""RT-2 from scratch: pictures and text in, text out, and actions are text (arXiv 2307.15818; PaLM-E, 2303.03378).

Read in the order a row travels: config -> vision encoder, whose patch embeddings take their place before the tokens ->
decoder -> loss on answers. `RT2()` builds the default; `RT2Config.tiny()` learns in minutes on two CPU cores. A
pretrained vision-language model with the same methods is in rt2_vlm.py, decoding in rt2_decoding.py.

A batch is a dict of tensors, `rt_models.spec.rt2_batch_fields`. The model reads frames, image_index (of each camera),
tokens and token_mask; for a loss also answer_mask and, if it is there, prompt_length (else an answer begins at its
first target); and with a robot_crop is_robot and crop_key, which say what frames are cropped in training, and how.

Axes: B rows, I image places, N pictures, P patches, L tokens, S positions of a row (patches and tokens), R answered
positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from rt_models.action_space import ActionSpec
from rt_models.blocks.activation_checkpointing import ActivationCheckpointing
from rt_models.blocks.compiled import Compile, compile_blocks, require_compilable
from rt_models.blocks.linear import LecunLinear
from rt_models.camera_roles import MAIN_CAMERA, require_cameras
from rt_models.config_checks import require_choices, require_sizes
from rt_models.input_checks import require_rows
from rt_models.language.action_vocabulary import PlainTokenizer
from rt_models.language.answer_loss import AnswerModel, RowLosses, Targets, gathered, packing_order
from rt_models.language.byte_pairs import BytePairConfig
from rt_models.language.decoder import DecoderConfig, KeyValueCache
from rt_models.language.prompts import FIELDS, RT2Text, RT2TextConfig
from rt_models.robot_inputs import StateInput
from rt_models.vision.rt2_image_inputs import PictureConfig, normalised, pictures
from rt_models.vision.vit import ViTConfig


@dataclass(frozen=True, kw_only=True)
class RT2Config:
    """A complete RT-2 from scratch. The defaults are the sizes of `RT2()`."""

    picture: PictureConfig = field(default_factory=PictureConfig)
    vision: ViTConfig = field(
        default_factory=lambda: ViTConfig(patch_size=32, width=512, num_layers=6, num_heads=8, hidden=2048)
    )
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    text: RT2TextConfig = field(default_factory=RT2TextConfig)
    tokenizer: BytePairConfig = field(default_factory=BytePairConfig)
    vocab_size: int = 20_000
    """Rows of the token embedding; at least the tokens of tokenizer and action vocabulary."""
    max_tokens: int = 1024
    """Longest prompt with its answer of eight fields; patches do not count. Longer answers and a state have room
    beside it."""
    prefix: Literal["causal", "image", "prompt"] = "causal"
    """What sees all of itself: nothing, a row's patches, or its patches and prompt."""
    activation_checkpointing: ActivationCheckpointing = "off"
    """What a block keeps for the backward pass: everything; "selective": what its convolutions, matrix products and
    attention return, so that only cheap operations run again; "blocks": its inputs, so that all of it runs again."""
    compile: Compile = "off"
    """torch.compile with this backend, block by block: those of the vision encoder once, those of the decoder once, and
    its last, which computes the answers alone, once more. The steps of decoding run as they are. Not with zero.stage 3,
    nor with selective checkpointing."""
    cameras: tuple[str, ...] = (MAIN_CAMERA,)
    """Cameras that it reads, by role, in the order of their pictures: image, wrist, left, right and so on."""
    state: StateInput | None = None
    """The robot's state as text before the prompt; None: it reads none."""

    def __post_init__(self) -> None:
        require_sizes(self, "vocab_size", "max_tokens")
        require_choices(self)
        require_compilable(self.compile, self.activation_checkpointing)
        require_cameras(self.cameras)
        self.num_patches()

    @staticmethod
    def tiny() -> RT2Config:
        """Two million parameters, 64-pixel pictures: learns shapes, colours and six robot tasks on two CPU cores."""
        return RT2Config(
            picture=PictureConfig(image_size=64, robot_crop="pad"),
            vision=ViTConfig(patch_size=8, width=128, num_layers=2, num_heads=4, hidden=384, stem="convolutions"),
            decoder=DecoderConfig(width=192, num_layers=4, num_heads=6, num_key_value_heads=2, hidden=512),
            text=RT2TextConfig(fields=(*FIELDS[:4], FIELDS[-1])),
            vocab_size=1024,
            max_tokens=64,
            prefix="prompt",
        )

    def action_spec(self) -> ActionSpec:
        return self.text.spec()

    def build_tokenizer(self) -> PlainTokenizer:
        return self.tokenizer.build()

    def build_text(self) -> RT2Text:
        """What turns texts and actions into this model's tokens and back."""
        tokenizer = self.build_tokenizer()
        return self.text.build(tokenizer, max_tokens=self.max_tokens, cameras=self.cameras, state=self.state)

    def longest_row(self) -> int:
        """Tokens of the longest prompt with its answer."""
        return self.text.longest_row(self.max_tokens, self.state)

    def num_patches(self) -> int:
        """Positions that one picture takes in a row."""
        return self.vision.grid(self.picture.image_size) ** 2

    def build(self) -> RT2:
        """The model with fresh parameters, drawn from torch's global generator."""
        return RT2(self)


class TokenEmbedding(nn.Embedding):
    """Rows of unit variance, the scale of a normalised patch."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)


class RT2(AnswerModel):
    """`RT2Config.build()` makes one. `spec` is its action space."""

    config: RT2Config

    def __init__(self, config: RT2Config | None = None) -> None:
        super().__init__()
        self.config = config = config or RT2Config()
        self.spec = config.action_spec()
        self.vision = config.vision.build(
            in_channels=3,
            image_size=config.picture.image_size,
            embedding_width=0,
            checkpointing=config.activation_checkpointing,
        )
        self.projection = LecunLinear(config.vision.out_channels(), config.decoder.width)
        self.embedding = TokenEmbedding(config.vocab_size, config.decoder.width)
        self.decoder = config.decoder.build(checkpointing=config.activation_checkpointing)
        self.output = LecunLinear(config.decoder.width, config.vocab_size, bias=False)
        if config.compile != "off":
            compile_blocks(self.vision.blocks, config.compile, varying={0: (0,), 1: (0,)})
            compile_blocks(self.decoder.blocks, config.compile, varying={0: (0, 1), 1: (0, 1), 2: (0, 2, 3), 3: (0, 1)})

    @property
    def dtype(self) -> torch.dtype:
        return self.output.weight.dtype

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    def forward(self, image: Tensor | None, caption_BL: Tensor) -> Tensor:
        """float (B, L, V): logits of the token after each token of `caption_BL`, int64 with L up to the longest row.

        `image` float (B, 3, size, size), or (B, I, 3, size, size) for several pictures a row, or None. Pictures lie in
        [0, 1]; any other finite value is taken too and cut far outside.
        """
        batch, length = self._checked_caption(caption_BL)
        if image is None:
            image = torch.zeros(batch, 0, 3, 1, 1, device=caption_BL.device)
        image_BICHW = self._checked_image(image, batch)
        place_BI = torch.arange(batch * image_BICHW.shape[1], device=caption_BL.device).view(batch, -1)
        row = self._row(image_BICHW.flatten(0, 1), place_BI, caption_BL, torch.ones_like(caption_BL, dtype=torch.bool))
        rows_BR = row.first_token_B[:, None] + torch.arange(length, device=caption_BL.device)
        return self.output(self.decoder(row.content_BSD, self._prefix(row, row.first_token_B), rows_BR))

    # --- training ---

    def row_losses(self, batch: Mapping[str, Tensor]) -> RowLosses:
        """The losses of answers, row by row; `loss(batch)` is their mean."""
        row, targets = self._batch_row(batch, augment=self.training), Targets.of(batch)
        rows_BR = (row.first_token_B[:, None] + targets.place_BR - 1).clamp(min=0)
        prefix_B = self._prefix(row, row.first_token_B + targets.prompt_B)
        output_BRD = self.decoder(row.content_BSD, prefix_B, rows_BR)
        return targets.losses(self.output(targets.chosen(output_BRD)), batch["tokens"])

    # --- decoding: the prompt once, then token by token ---

    def start(self, batch: Mapping[str, Tensor], *, max_new_tokens: int) -> tuple[Tensor, KeyValueCache]:
        """(float (B, V) logits of the token after each row's prompt, a cache with room for `max_new_tokens` tokens)."""
        row = self._batch_row(batch, augment=False)
        config = self.config.decoder
        cache = KeyValueCache(config, row.length_B, row.content_BSD.shape[1] + max_new_tokens, row.content_BSD.dtype)
        rows_BR = (row.length_B - 1)[:, None]
        output_B1D = self.decoder(row.content_BSD, self._prefix(row, row.length_B), rows_BR, cache)
        return self.output(output_B1D)[:, 0], cache

    def advance(self, tokens_B: Tensor, cache: KeyValueCache, active_B: Tensor) -> Tensor:
        """float (B, V) logits once `tokens_B` stand at the rows' ends; rows that are not active stay as they are."""
        return self.output(self.decoder.advance(self.embedding(tokens_B)[:, None], cache, active_B))[:, 0]

    # --- inner ---

    def _batch_row(self, batch: Mapping[str, Tensor], *, augment: bool) -> _Row:
        config = self.config
        limits = {"max_tokens": config.longest_row(), "vocab_size": config.vocab_size}
        require_rows(batch, **limits, cameras=config.cameras)
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        image_NCHW, place_BI = pictures(batch, config.picture, augment=augment, dtype=dtype, cameras=config.cameras)
        is_fixed = "num_images" in batch  # one of few lengths, with the padding
        return self._row(image_NCHW, place_BI, batch["tokens"], batch["token_mask"], cut=not is_fixed)

    def _row(
        self, image_NCHW: Tensor, place_BI: Tensor, tokens_BL: Tensor, mask_BL: Tensor, *, cut: bool = True
    ) -> _Row:
        """Patches of each row's pictures, then its tokens, with no gap where a picture is missing."""
        patches_NPD = self._patches(image_NCHW)
        empty_1PD = patches_NPD.new_zeros(1, *patches_NPD.shape[1:])  # what place -1 points at
        embedded_BLD = self.embedding(tokens_BL)
        # In the embedding's precision: under autocast the residual stream stays in float32.
        image_BSD = torch.cat([patches_NPD, empty_1PD])[place_BI].flatten(1, 2).to(embedded_BLD.dtype)
        content_BSD = torch.cat([image_BSD, embedded_BLD], dim=1)
        num_patches = self.config.num_patches()
        first_token_B, length_B = (place_BI >= 0).sum(dim=1) * num_patches, mask_BL.sum(dim=1)
        row = _Row(content_BSD=content_BSD, first_token_B=first_token_B, length_B=first_token_B + length_B)
        if cut and bool((place_BI >= 0).all()):  # on a GPU this question waits for the device
            return row
        real_BS = torch.cat([(place_BI >= 0).repeat_interleave(num_patches, dim=1), mask_BL], dim=1)
        packed_BSD = gathered(content_BSD, packing_order(real_BS, cut=cut))
        return _Row(content_BSD=packed_BSD, first_token_B=first_token_B, length_B=row.length_B)

    def _patches(self, image_NCHW: Tensor) -> Tensor:
        """float (N, P, D). Without any picture a black one is encoded, so that every rank uses every parameter."""
        if not len(image_NCHW):
            image_NCHW = image_NCHW.new_zeros(1, 3, *2 * (self.config.picture.image_size,))
        features = self.vision(normalised(image_NCHW, self.dtype), image_NCHW.new_zeros(len(image_NCHW), 0))
        return self.projection(rearrange(features, "n d h w -> n (h w) d"))

    def _prefix(self, row: _Row, prompt_end_B: Tensor) -> Tensor | None:
        ends = {"causal": None, "image": row.first_token_B, "prompt": prompt_end_B}
        return ends[self.config.prefix]

    def _checked_caption(self, caption_BL: Tensor) -> tuple[int, int]:
        limit, vocab_size = self.config.longest_row(), self.config.vocab_size
        fits = isinstance(caption_BL, Tensor) and caption_BL.dim() == 2 and caption_BL.dtype == torch.int64
        if not fits or not 0 < caption_BL.shape[1] <= limit:
            raise ValueError(f"caption: expected int64 (B, L) with 1 to {limit} tokens, got {_described(caption_BL)}")
        low, high = (0, 0)
        if caption_BL.device.type == "cpu" and caption_BL.numel():
            low, high = (int(bound) for bound in caption_BL.aminmax())
        if low < 0 or high >= vocab_size:
            raise ValueError(f"caption: expected ids from 0 to {vocab_size - 1}, got {low} to {high}")
        return caption_BL.shape[0], caption_BL.shape[1]

    def _checked_image(self, image: Tensor, batch: int) -> Tensor:
        """(B, I, 3, size, size)"""
        size = self.config.picture.image_size
        fits = isinstance(image, Tensor) and image.is_floating_point() and image.dim() in (4, 5) and len(image) == batch
        if not fits or (image.numel() and tuple(image.shape[-3:]) != (3, size, size)):
            raise ValueError(
                f"image: expected float RGB ({batch}, 3, {size}, {size}) or ({batch}, I, 3, {size}, {size}) in [0, 1], "
                f"got {_described(image)}"
            )
        if image.device.type == "cpu" and not bool(torch.isfinite(image).all()):
            raise ValueError("image: expected finite values, got NaN or infinity")
        return image[:, None] if image.dim() == 4 else image


def _described(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


@dataclass(frozen=True, kw_only=True)
class _Row:
    """Rows ready for the decoder, padded at the right."""

    content_BSD: Tensor
    first_token_B: Tensor
    """int64: position of the first token, after the patches."""
    length_B: Tensor
    """int64: real positions."""
