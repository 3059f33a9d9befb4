"""A smaller RT-2 than `tiny()`, rows of robots and of the web for it, and tokenizers made on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rt_models.language.decoder import DecoderConfig
from rt_models.language.prompts import FIELDS, RT2Text, RT2TextConfig, TextExample
from rt_models.rt2 import RT2Config
from rt_models.vision.rt2_image_inputs import PictureConfig
from rt_models.vision.vit import ViTConfig

WORDS = "Q : what action should the robot take to pick up push close a red blue can cup drawer ? A is in picture yes no"
INSTRUCTIONS = ("pick up the red can", "close the drawer", "push a blue cup")

MINIMAL = replace(
    RT2Config.tiny(),
    picture=PictureConfig(image_size=16),
    vision=ViTConfig(patch_size=8, width=16, num_layers=1, num_heads=2, hidden=32),
    decoder=DecoderConfig(width=32, num_layers=2, num_heads=4, num_key_value_heads=2, hidden=48),
    text=RT2TextConfig(fields=FIELDS),
    max_tokens=128,
)
"""Four patches a picture; milliseconds a step."""


def word_tokenizer(words: str = WORDS, *, integers: int = 256, extra: Sequence[str] = ()) -> Any:
    """A `tokenizers.Tokenizer` with one token for each word and integer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = ["<pad>", "<bos>", "<eos>", "<unk>", "<image>"]
    vocabulary = dict.fromkeys([*special, *extra, *words.split(), *map(str, range(integers))])
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(list(extra))
    return tokenizer


def bins_of(text: RT2Text, ids: Sequence[int]) -> list[int]:
    """The bins of the action tokens that stand before the end token."""
    answer = ids[: list(ids).index(text.tokenizer.eos_id)] if text.tokenizer.eos_id in ids else ids
    return [list(text.action_ids).index(number) for number in answer[-len(text.field_dims) :]]


def examples(text: RT2Text, *, seed: int = 0) -> list[TextExample]:
    """Two robots, one of them without rotation; a question; a caption."""
    generator = torch.Generator().manual_seed(seed)
    low, high = (torch.from_numpy(bound) for bound in text.spec.bounds())
    actions = low + (high - low) * torch.rand(2, text.spec.size, generator=generator)
    present = torch.ones(2, text.spec.size, dtype=torch.bool)
    present[1, 4:7] = False
    return [
        text.robot(INSTRUCTIONS[0], actions[0].numpy(), present[0].numpy()),
        text.robot(INSTRUCTIONS[1], actions[1].numpy(), present[1].numpy()),
        text.web("is a red can in the picture?", "yes"),
        text.web("", "a red can in a drawer"),
    ]


def make_batch(text: RT2Text, *, seed: int = 0) -> dict[str, Tensor]:
    """The four examples: one picture, two pictures, one shared with the first row, none."""
    generator = torch.Generator().manual_seed(seed)
    return text.collate(examples(text, seed=seed)) | {
        "frames": torch.randint(0, 256, (3, 20, 24, 3), dtype=torch.uint8, generator=generator),
        "image_index": torch.tensor([[0, -1], [1, 2], [0, -1], [-1, -1]]),
        "is_robot": torch.tensor([True, True, False, False]),
        "crop_key": torch.tensor([5, 6, 7, 8]),
    }


def row_of(batch: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """One row alone, without its padding and empty image places."""
    length = int(batch["token_mask"][row].sum())
    places = batch["image_index"][row]
    alone = {key: batch[key][row : row + 1, :length] for key in ("tokens", "token_mask", "answer_mask")}
    return alone | {
        "frames": batch["frames"],
        "image_index": places[places >= 0][None],
        "is_robot": batch["is_robot"][row : row + 1],
        "crop_key": batch["crop_key"][row : row + 1],
        "prompt_length": batch["prompt_length"][row : row + 1],
    }


def prompts_of(text: RT2Text, instructions: Sequence[str], *, seed: int = 0) -> dict[str, Tensor]:
    """Robot prompts, a picture each, but none for every third."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(len(instructions))
    return text.collate_prompts([text.robot_prompt(instruction) for instruction in instructions]) | {
        "frames": torch.randint(0, 256, (len(instructions), 16, 16, 3), dtype=torch.uint8, generator=generator),
        "image_index": torch.where(index % 3 == 2, -1, index)[:, None],
    }
