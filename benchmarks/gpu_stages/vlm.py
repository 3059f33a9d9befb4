"""Stages `vlm` and `vlm_reading`: RT-2 on a PaliGemma of 3 billion parameters, sizes as published, weights random.

Nothing is fetched: the configuration is written here, and a tokenizer with a token for each word in the place of the
published one.
"""

from __future__ import annotations

import logging
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu_stages.rt1_step import moved
from gpu_stages.settings import Line, Settings, Skipped
from gpu_stages.timing import device, free_memory, median_seconds, on_gpu, peak_gb, seconds
from torch import Tensor, nn
from workload import Batch

from cluster.context import LocalContext
from cluster.engine import TorchEngineConfig
from pipelines.config.optimizer import AdamWConfig
from rt_models.cost.rt2_flops import VLMCost, vlm_cost
from rt_models.language.answer_loss import plan_answers
from rt_models.rt2_vlm import LoRA, RT2VLMConfig

VERBS, THINGS = ("pick", "place", "move", "push", "open", "close"), ("can", "cup", "drawer", "sponge", "apple", "bowl")
PROMPT = "Q : what action should the robot take to ? A near the into on top of and then slowly from left right"
SIGLIP = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
GEMMA = {
    **{"hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18, "num_attention_heads": 8},
    **{"num_key_value_heads": 1, "head_dim": 256, "vocab_size": 257216},
}
TOY_SIGLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TOY_GEMMA = {**TOY_SIGLIP, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 2048}


def vlm(settings: Settings) -> Iterator[Line]:
    """Optimizer steps (forward, backward, clip, fused AdamW; bf16 autocast, one micro-batch) of the whole model and of
    LoRA. Utilisation: operations that real tokens and pictures need by count (rt_models/cost), over the card's peak."""
    with tempfile.TemporaryDirectory() as folder:
        save_paligemma(Path(folder), toy=settings.toy)
        whole = RT2VLMConfig.paligemma(folder, weights="random")
        lora = replace(whole, tuning=LoRA(), dtype="bfloat16" if on_gpu() else "float32")
        for case, config in (("full", whole), ("lora", lora)):
            yield {"case": case, **trained(config, settings)}
            free_memory()


def trained(config: RT2VLMConfig, settings: Settings) -> Line:
    rows, steps = (4, 2) if settings.toy else (16, 10)
    made = a_batch(config, rows)
    engine = TorchEngineConfig(precision="bf16" if on_gpu() else "fp32").build(
        LocalContext(device()), micro_batch=rows, accumulation=1
    )
    took: list[float] = []

    def build() -> nn.Module:
        model: Any = None

        def on_device() -> None:
            nonlocal model
            with torch.device(device()):  # its first values are drawn there
                model = config.build()

        took.append(seconds(on_device))
        for parameter in model.parameters():  # what is trained is float32, as in rtp train
            parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
        return model

    engine.build(build, AdamWConfig(lr=1e-5).build).train()  # type: ignore[attr-defined]
    engine.set_learning_rate(1e-5)
    batch = moved(made)

    def step() -> None:
        engine.forward_backward(batch)
        engine.step()

    first = seconds(step)
    step_s = median_seconds(step, steps)
    counted = vlm_cost(config)
    flops = real_flops(counted, made)
    line = {"parameters": counted.parameters, "built_s": took[0], "rows": rows, **_tokens(counted, made)}
    line |= {"first_s": first, "step_s": step_s, "samples_per_s": rows / step_s, "gb": peak_gb()}
    line |= {"tokens_per_s": line["real_tokens"] / step_s, "tflop": flops / 1e12}
    line |= {"utilisation": flops / step_s / peak_flops() if on_gpu() else None}
    engine.close()
    return line


def peak_flops() -> float:
    from pipelines.training import speed

    return speed.peak_flops(device(), "bf16")


def _tokens(counted: VLMCost, made: Batch) -> Line:
    """Of pictures and texts; places: with what pads the rows."""
    pictures = counted.image_positions * made["image_index"].numel()
    return {
        "real_tokens": pictures + int(made["token_mask"].sum()),
        "places": pictures + made["token_mask"].numel(),
    }


def real_flops(counted: VLMCost, made: Batch) -> float:
    """Of each row at its own length, and of each picture once."""
    keys = ("tokens", "token_mask", "answer_mask", "image_index")
    rows = range(len(made["tokens"]))
    alone = [{key: made[key][row : row + 1] for key in keys} for row in rows]
    pictures = len(made["frames"])
    return sum(counted.training_flops(row, pictures=0) for row in alone) + pictures * counted.picture_flops


def a_batch(config: RT2VLMConfig, rows: int) -> Batch:
    """Robots' steps with instructions of 3 to 12 words, a picture each, planned on the host."""
    text, drawn = config.build_text(), random.Random(0)
    low, high = (torch.from_numpy(bound) for bound in text.spec.bounds())
    present = torch.ones(text.spec.size, dtype=torch.bool).numpy()
    torch.manual_seed(0)
    examples = []
    for _ in range(rows):
        middle = drawn.choices(PROMPT.split()[12:], k=drawn.randint(1, 10))
        words = " ".join([drawn.choice(VERBS), *middle, drawn.choice(THINGS)])
        action = low + (high - low) * torch.rand(text.spec.size)
        examples.append(text.robot(words, action.numpy(), present))
    made: dict[str, Tensor] = {
        **text.collate(examples),
        "frames": torch.randint(256, (rows, 256, 320, 3), dtype=torch.uint8),
        "image_index": torch.arange(rows)[:, None],
        "is_robot": torch.ones(rows, dtype=torch.bool),
        "crop_key": torch.arange(rows),
        "num_images": torch.tensor([rows], dtype=torch.int32),
    }
    return plan_answers(made)


def save_paligemma(folder: Path, *, toy: bool) -> None:
    """What transformers needs to make one with random weights."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<image>"]
    places = [f"<loc{number:04d}>" for number in range(1024)]
    tokens = dict.fromkeys([*special, *places, *PROMPT.split(), *VERBS, *THINGS])
    words = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.add_special_tokens(special)
    words.add_tokens(places)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    picture = {"image_size": 28 if toy else 224, "patch_size": 14, "vision_use_head": False}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    text = TOY_GEMMA if toy else GEMMA
    transformers.PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", **picture, **(TOY_SIGLIP if toy else SIGLIP)},
        text_config={"model_type": "gemma", **ids, **text},
        image_token_id=4,
        projection_dim=text["hidden_size"],
        hidden_size=text["hidden_size"],
        vocab_size=text["vocab_size"],
    ).save_pretrained(folder)


# --- reading ---


def vlm_reading(settings: Settings) -> Iterator[Line]:
    """How long pretrained weights take to lie on the device in float32, read from a folder with one bf16 file, which
    is written first: it then lies in the page cache."""
    with tempfile.TemporaryDirectory() as folder:
        free = shutil.disk_usage(folder).free
        if free < 8e9 and not settings.toy:
            raise Skipped(f"8 GB of room below {folder}: {free / 1e9:.1f} GB are free")
        save_paligemma(Path(folder), toy=settings.toy)
        config = RT2VLMConfig.paligemma(folder, weights="random", dtype="bfloat16")
        with torch.device(device()):
            model = config.build()
        model.vlm.save_pretrained(folder)
        del model
        free_memory()
        size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
        config = replace(config, weights="pretrained", dtype="float32")
        for number in range(2):
            took = seconds(lambda: config.build(device()).to(device()))
            yield {"read": number + 1, "gigabytes": size / 1e9, "seconds": took, "gb": peak_gb()}
            free_memory()
