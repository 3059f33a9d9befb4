"""Vision-language models of a few thousand parameters in transformers' form, saved as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from tests.support.rt2_rows import word_tokenizer

PLACES = [f"<loc{number:04d}>" for number in range(256)]
TILE = ["<fake_token_around_image>", "<global-img>"]
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
}


def save_paligemma(folder: Path, **text: Any) -> Path:
    """SigLIP and Gemma: 4 patches a picture."""
    size = _save_tokenizer(folder)
    config = transformers.PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", "patch_size": 14, "vision_use_head": False, **VISION},
        text_config={"model_type": "gemma", "vocab_size": size, **TEXT, **text},
        image_token_id=4,
        projection_dim=TEXT["hidden_size"],
    )
    transformers.PaliGemmaForConditionalGeneration(config).save_pretrained(folder)
    return folder


def save_smolvlm(folder: Path) -> Path:
    """SigLIP and Llama: 4 patches a picture, between marks."""
    size = _save_tokenizer(folder)
    config = transformers.SmolVLMConfig(
        vision_config={"patch_size": 7, **VISION},
        text_config={"model_type": "llama", "vocab_size": size, **TEXT},
        image_token_id=4,
        scale_factor=2,
        pad_token_id=0,
    )
    transformers.SmolVLMForConditionalGeneration(config).save_pretrained(folder)
    return folder


def save_qwen2_vl(folder: Path) -> Path:
    """A ViT with merged patches and Qwen2: 4 places a picture, between marks."""
    size = _save_tokenizer(folder)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2]}
    config = transformers.Qwen2VLConfig(
        vision_config={
            **{"depth": 2, "embed_dim": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 56, "spatial_merge_size": 2},
            "hidden_size": TEXT["hidden_size"],
        },
        text_config={"vocab_size": size, **TEXT, "rope_parameters": rope},
        image_token_id=4,
        vision_start_token_id=size - 2,
        vision_end_token_id=size - 1,
    )
    transformers.Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    return folder


FAMILIES = {"paligemma": save_paligemma, "smolvlm": save_smolvlm, "qwen2_vl": save_qwen2_vl}


def _save_tokenizer(folder: Path) -> int:
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(extra=[*PLACES, *TILE], integers=0),
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    )
    tokenizer.save_pretrained(folder)
    return len(tokenizer)
