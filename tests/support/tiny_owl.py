"""An OWL-ViT of some ten thousand random weights in transformers' form, saved as a folder."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from tests.support.tiny_clip import SIZES, tokenizer_of

WORDS = ("<pad>", "<eos>", "<unk>", "An", "image", "of", "a", "cup", "sink")


def save_owl(folder: Path) -> Path:
    """Looks at 4x4 patches of 64x64 pixels."""
    torch.manual_seed(0)
    text = {**SIZES, "vocab_size": len(WORDS), "max_position_embeddings": 16, "pad_token_id": 0, "eos_token_id": 1}
    vision = {**SIZES, "image_size": 64, "patch_size": 16}
    config = transformers.OwlViTConfig(text_config={**text, "bos_token_id": 2}, vision_config=vision, projection_dim=16)
    transformers.OwlViTForObjectDetection(config).save_pretrained(folder)
    size = {"height": 64, "width": 64}
    transformers.OwlViTImageProcessor(size=size, do_center_crop=False).save_pretrained(folder)
    tokenizer_of(WORDS).save_pretrained(folder)
    return folder
