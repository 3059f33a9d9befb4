"""What differs between families of vision-language models: where their parts are and how a picture stands in a row.

PaliGemma, SmolVLM (and Idefics3), Qwen2-VL. Another family is another small class in `FAMILIES`.

Axes: B rows, S positions of a row, N pictures, P patches of a picture, D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from rt_models.vision.vit import ViTConfig

VlmModel: TypeAlias = Any
"""A model of transformers, whose parts bear other names in each kind."""
VlmConfig: TypeAlias = Any
"""Its configuration in transformers."""
PretrainedTokenizer: TypeAlias = Any
"""Its tokenizer in transformers."""


class Family:
    """One kind of vision-language model. The defaults are those with a SigLIP encoder."""

    language = "language_model"
    """Name of the language model inside."""
    first_position = 0
    """Position of a row's first token."""
    sees_whole_prefix = False
    """Whether picture and prompt see all of each other; else all is causal."""

    def vision(self, vlm: VlmModel) -> nn.Module:
        raise NotImplementedError

    def language_layers(self, vlm: VlmModel) -> Iterable[nn.Module]:
        return getattr(vlm.model, self.language).layers

    def vision_layers(self, vlm: VlmModel) -> Iterable[nn.Module]:
        """Those that torch.compile can trace."""
        encoder: Any = self.vision(vlm).encoder
        return encoder.layers

    def image_size(self, config: VlmConfig) -> int:
        """Rows and columns of a picture."""
        return config.vision_config.image_size

    def num_patches(self, config: VlmConfig) -> int:
        """Of a picture, as the language model sees it."""
        raise NotImplementedError

    def image_ids(self, config: VlmConfig, tokenizer: PretrainedTokenizer) -> list[int]:
        """The tokens of one picture in a row; those equal to the image token take its patches."""
        return [config.image_token_id] * self.num_patches(config)

    def patches(self, vlm: VlmModel, image_NCHW: Tensor) -> Tensor:
        """float (N, P, D) from normalised pictures."""
        raise NotImplementedError

    def positions(self, config: VlmConfig, place_BS: Tensor, pictures_B: Tensor) -> Tensor:
        """The position ids of places counted from the beginning of rows with so many pictures first."""
        return place_BS + self.first_position

    def encoder(self, config: VlmConfig) -> tuple[ViTConfig, int]:
        """(sizes of the vision encoder, multiply-adds of what else one picture goes through)."""
        vision, width = config.vision_config, config.get_text_config().hidden_size
        sizes = ViTConfig(
            patch_size=vision.patch_size,
            width=vision.hidden_size,
            num_layers=vision.num_hidden_layers,
            num_heads=vision.num_attention_heads,
            hidden=vision.intermediate_size,
        )
        return sizes, sizes.grid(vision.image_size) ** 2 * vision.hidden_size * width


class PaliGemma(Family):
    """SigLIP and Gemma; picture and prompt see all of each other (arXiv 2407.07726)."""

    first_position, sees_whole_prefix = 1, True

    def vision(self, vlm: VlmModel) -> nn.Module:
        return vlm.model.vision_tower

    def num_patches(self, config: VlmConfig) -> int:
        return (config.vision_config.image_size // config.vision_config.patch_size) ** 2

    def patches(self, vlm: VlmModel, image_NCHW: Tensor) -> Tensor:
        return vlm.model.get_image_features(image_NCHW).pooler_output


class SmolVLM(Family):
    """SigLIP and a Llama, SmolVLM and Idefics3; a picture is one tile between marks, and all is causal."""

    language = "text_model"

    def vision(self, vlm: VlmModel) -> nn.Module:
        return vlm.model.vision_model

    def num_patches(self, config: VlmConfig) -> int:
        vision = config.vision_config
        return (vision.image_size // vision.patch_size) ** 2 // config.scale_factor**2

    def image_ids(self, config: VlmConfig, tokenizer: PretrainedTokenizer) -> list[int]:
        around, whole = (
            [number] if number is not None and number != tokenizer.unk_token_id else []
            for number in map(tokenizer.convert_tokens_to_ids, ("<fake_token_around_image>", "<global-img>"))
        )
        return [*around, *whole, *super().image_ids(config, tokenizer), *around]

    def patches(self, vlm: VlmModel, image_NCHW: Tensor) -> Tensor:
        # transformers' own `get_image_features` looks for blank images and wholly masked patches, and the host would
        # wait for the device: here every picture and every patch of it is real.
        encoder, patch = vlm.model.vision_model, vlm.config.vision_config.patch_size
        grid = tuple(side // patch for side in image_NCHW.shape[2:])
        real_Nhw = image_NCHW.new_ones(len(image_NCHW), *grid, dtype=torch.bool)
        hidden_NSD = encoder.embeddings(pixel_values=image_NCHW, patch_attention_mask=real_Nhw)
        hidden_NSD = encoder.encoder(inputs_embeds=hidden_NSD).last_hidden_state
        return vlm.model.connector(encoder.post_layernorm(hidden_NSD))


class Qwen2VL(Family):
    """A ViT whose patches are merged, and Qwen2 with positions of three axes; all is causal (arXiv 2409.12191)."""

    size = 224  # the encoder takes any; 224 pixels are 64 places in a row
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's, of [0, 1]

    def vision(self, vlm: VlmModel) -> nn.Module:
        return vlm.model.visual

    def vision_layers(self, vlm: VlmModel) -> Iterable[nn.Module]:
        return ()  # its attention takes the pictures' lengths from a tensor, which a graph cannot

    def image_size(self, config: VlmConfig) -> int:
        return self.size

    def num_patches(self, config: VlmConfig) -> int:
        return self._side(config) ** 2

    def image_ids(self, config: VlmConfig, tokenizer: PretrainedTokenizer) -> list[int]:
        return [config.vision_start_token_id, *super().image_ids(config, tokenizer), config.vision_end_token_id]

    def patches(self, vlm: VlmModel, image_NCHW: Tensor) -> Tensor:
        vision, side = vlm.config.vision_config, self.size // vlm.config.vision_config.patch_size
        merge, patch = vision.spatial_merge_size, vision.patch_size
        channels = [
            (channel * 0.5 + 0.5 - mean) / std
            for channel, mean, std in zip(image_NCHW.unbind(1), self.mean, self.std, strict=True)
        ]
        pixels = repeat(
            torch.stack(channels, dim=1),
            "n c (h a p) (w b q) -> (n h w a b) (c t p q)",
            **{"a": merge, "b": merge, "p": patch, "q": patch, "t": vision.temporal_patch_size},
        )
        # Sizes and lengths stay on the host, where transformers asks for them; what is computed with does not.
        sizes_N3 = torch.tensor([[1, side, side]], device="cpu").expand(len(image_NCHW), -1)
        ends = torch.arange(0, (len(image_NCHW) + 1) * side**2, side**2, dtype=torch.int32, device="cpu")
        place = torch.arange(side, device=pixels.device)
        rows, columns = torch.meshgrid(place, place, indexing="ij")
        place_P2 = rearrange([rows, columns], "two (h a) (w b) -> (h w a b) two", a=merge, b=merge)
        place_S2 = place_P2.repeat(len(image_NCHW), 1)
        encoded = vlm.model.visual(pixels, grid_thw=sizes_N3, position_ids=place_S2, cu_seqlens=ends)
        return rearrange(encoded.pooler_output, "(n p) d -> n p d", n=len(image_NCHW))

    def positions(self, config: VlmConfig, place_BS: Tensor, pictures_B: Tensor) -> Tensor:
        """int64 (3, B, S): time, row and column. A picture of side m takes m positions, and its marks one each."""
        side = self._side(config)
        picture_BS = torch.minimum(place_BS // (side**2 + 2), pictures_B[:, None])
        inside_BS, first_BS = place_BS - picture_BS * (side**2 + 2), picture_BS * (side + 2)
        is_text_BS, patch_BS = picture_BS == pictures_B[:, None], inside_BS - 1
        is_patch_BS = ~is_text_BS & (patch_BS >= 0) & (patch_BS < side**2)
        alone_BS = first_BS + torch.where(is_text_BS | (inside_BS == 0), inside_BS, side + 1)
        axes = (torch.zeros_like(patch_BS), patch_BS // side, patch_BS % side)
        return torch.stack([torch.where(is_patch_BS, first_BS + 1 + axis_BS, alone_BS) for axis_BS in axes])

    def encoder(self, config: VlmConfig) -> tuple[ViTConfig, int]:
        vision = config.vision_config
        merged = vision.embed_dim * vision.spatial_merge_size**2
        sizes = ViTConfig(
            patch_size=vision.patch_size,
            width=vision.embed_dim,
            num_layers=vision.depth,
            num_heads=vision.num_heads,
            hidden=vision.embed_dim * vision.mlp_ratio,
        )
        again = 3 * self.size**2 * vision.embed_dim * (vision.temporal_patch_size - 1)  # a picture is a film of two
        return sizes, self.num_patches(config) * merged * (merged + vision.hidden_size) + again

    def _side(self, config: VlmConfig) -> int:
        """Rows and columns of merged patches."""
        return self.size // (config.vision_config.patch_size * config.vision_config.spatial_merge_size)


FAMILIES: dict[str, Family] = {
    "paligemma": PaliGemma(),
    "smolvlm": SmolVLM(),
    "idefics3": SmolVLM(),
    "qwen2_vl": Qwen2VL(),
}
