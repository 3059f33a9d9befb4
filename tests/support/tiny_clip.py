"""A CLIP and a SigLIP of a few thousand random weights in transformers' form, saved as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ("<pad>", "<eos>", "<unk>", "the", "good", "bad", "copy", "other")
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
IMAGE = {"height": 16, "width": 16}


def save_dual_encoder(folder: Path, kind: str) -> Path:
    """`kind` is "clip" or "siglip"."""
    torch.manual_seed(0)
    text: dict[str, Any] = {**SIZES, "vocab_size": len(WORDS), "max_position_embeddings": 8}
    text |= {"eos_token_id": 1, "pad_token_id": 0, "bos_token_id": 2}
    vision = {**SIZES, "image_size": 16, "patch_size": 8}
    if kind == "clip":
        config: Any = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
        model: Any = transformers.CLIPModel(config)
        processor: Any = transformers.CLIPImageProcessor(size=IMAGE, crop_size=IMAGE)
    else:
        config = transformers.SiglipConfig(text_config={**text, "projection_size": 16}, vision_config=vision)
        model, processor = transformers.SiglipModel(config), transformers.SiglipImageProcessor(size=IMAGE)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    tokenizer_of(WORDS).save_pretrained(folder)
    return folder


def tokenizer_of(vocabulary: tuple[str, ...]) -> transformers.PreTrainedTokenizerFast:
    """One token a word, an end token after the last; the first three are padding, end and unknown."""
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    words.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
