"""Training tokens/s of RT-2 on a vision-language model, against Hugging Face `Trainer` on the same model and samples.

A small PaliGemma with random weights is saved to a folder; every side loads it and trains all of it in float32 with
AdamW and gradient clipping, on the same global batches. Sides:

- trainer: `transformers.Trainer` with a collator that pads a micro-batch to its longest row, as its examples do
- ours, same rows: `TorchEngine` and RT2VLM on exactly the trainer's micro-batches
- ours: the same samples, ordered by length within the global batch before it is cut, as the loader does

Counted are real tokens, patches included; the share of padding is printed. Timed is from the first optimizer step's
beginning to the last one's end; what happens before and after belongs to nobody.
"""

from __future__ import annotations

import argparse
import logging
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import parser, positive, print_json, ratio, start
from torch import Tensor

from cluster.context import LocalContext
from cluster.engine import TorchEngineConfig
from pipelines.config.optimizer import AdamWConfig
from rt_models.language.action_vocabulary import IntegerTokens
from rt_models.language.prompts import RT2TextConfig, TextExample
from rt_models.rt2_vlm import RT2VLMConfig

IMAGE_SIZE, PATCH_SIZE = 112, 14
PROMPT_WORDS = "Q : what action should the robot take to ? A is in picture the"
WORDS = [f"word{number}" for number in range(2000)]
LEARNING_RATE = 1e-4


def main() -> None:
    arguments = _arguments()
    start(arguments)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), arguments.vocabulary)
        config = RT2VLMConfig(path=folder, text=RT2TextConfig(vocabulary=IntegerTokens()))
        samples = _samples(config, arguments)
        steps = [samples[n :: arguments.steps] for n in range(arguments.steps)]
        micro = arguments.micro_batch
        sides: dict[str, Callable[[], float]] = {
            "trainer": lambda: train_with_trainer(config, steps, micro),
            "ours, same rows": lambda: train_with_engine(config, steps, micro, by_length=False),
            "ours": lambda: train_with_engine(config, steps, micro, by_length=True),
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(arguments.rounds):
            for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
                seconds[name].append(sides[name]())
    print_json("rt2_training", arguments, _report(seconds, samples, steps, arguments))


def save_model(folder: Path, vocabulary: int, *, width: int = 256, layers: int = 6) -> None:
    """A PaliGemma of random weights, and a tokenizer of words and integers."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = ["<pad>", "<bos>", "<eos>", "<unk>", "<image>"]
    tokens = dict.fromkeys([*special, *map(str, range(256)), *PROMPT_WORDS.split(), *WORDS])
    words = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.add_special_tokens(special)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    vision = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 3}
    text = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": 4}
    picture = {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, "vision_use_head": False}
    ids = {"vocab_size": vocabulary, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", **picture, **vision},
        text_config={"model_type": "gemma", "num_key_value_heads": 1, "head_dim": 64, **ids, **text},
        image_token_id=4,
        projection_dim=width,
    )
    transformers.PaliGemmaForConditionalGeneration(config).save_pretrained(folder)


def train_with_engine(config: RT2VLMConfig, steps: list[list[Any]], micro: int, *, by_length: bool) -> float:
    """Seconds of all steps."""
    text = config.build_text()
    accumulation = len(steps[0]) // micro
    engine = TorchEngineConfig(clip_norm=1.0).build(LocalContext("cpu"), micro_batch=micro, accumulation=accumulation)
    engine.build(config.build, AdamWConfig(lr=LEARNING_RATE).build).train()
    began = time.perf_counter()
    for samples in steps:
        ordered = sorted(samples, key=lambda sample: len(sample[0].ids)) if by_length else samples
        for first in range(0, len(ordered), micro):
            piece = ordered[first : first + micro]
            batch = text.collate([example for example, _ in piece])
            batch["frames"] = torch.stack([frame for _, frame in piece])
            batch["image_index"] = torch.arange(len(piece))[:, None]
            engine.backward(engine.forward(batch))
            engine.step()
    seconds = time.perf_counter() - began
    engine.close()
    return seconds


def train_with_trainer(config: RT2VLMConfig, steps: list[list[Any]], micro: int) -> float:
    """Seconds of all steps, from the trainer's own callbacks."""
    import transformers

    model = config.build().vlm
    image_ids = [model.config.image_token_id] * (IMAGE_SIZE // PATCH_SIZE) ** 2
    clock = _Clock()
    with tempfile.TemporaryDirectory() as scratch:
        arguments = transformers.TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=len(steps[0]) // micro,
            num_train_epochs=1,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            optim="adamw_torch",
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            train_sampling_strategy="sequential",
        )
        trainer = transformers.Trainer(
            model=model,
            args=arguments,
            train_dataset=[sample for samples in steps for sample in samples],  # type: ignore[arg-type]
            data_collator=lambda piece: collate_for_trainer(piece, image_ids),
            callbacks=[clock.callback()],
        )
        trainer.train()
    return clock.ended - clock.began


def collate_for_trainer(piece: list[tuple[TextExample, Tensor]], image_ids: list[int]) -> dict[str, Tensor]:
    """input_ids, labels, attention_mask, token_type_ids and pixel_values, padded to the longest row."""
    longest = max(len(image_ids) + len(example.ids) for example, _ in piece)
    shape = (len(piece), longest)
    batch = {
        "input_ids": torch.zeros(shape, dtype=torch.int64),
        "labels": torch.full(shape, -100),
        "attention_mask": torch.zeros(shape, dtype=torch.int64),
        "token_type_ids": torch.ones(shape, dtype=torch.int64),
    }
    for row, (example, _) in enumerate(piece):
        ids = torch.tensor([*image_ids, *example.ids])
        target = torch.tensor([*[False] * len(image_ids), *example.is_target])
        batch["input_ids"][row, : len(ids)] = ids
        batch["labels"][row, : len(ids)] = torch.where(target, ids, -100)
        batch["attention_mask"][row, : len(ids)] = 1
        batch["token_type_ids"][row, : int(target.to(torch.uint8).argmax())] = 0
    pixels = torch.stack([frame for _, frame in piece]).permute(0, 3, 1, 2)
    return batch | {"pixel_values": pixels.float() / 127.5 - 1}


class _Clock:
    """When the first step began and the last one ended."""

    began = 0.0
    ended = 0.0

    def callback(self) -> Any:
        import transformers

        clock = self

        class Watch(transformers.TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                clock.began = clock.began or time.perf_counter()

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                clock.ended = time.perf_counter()

        return Watch()


def _samples(config: RT2VLMConfig, arguments: argparse.Namespace) -> list[tuple[TextExample, Tensor]]:
    """Half robots, half web; instructions of 3 to 15 words, questions of 4 to 12, answers of 1 to 20."""
    text, rng = config.build_text(), random.Random(0)
    low, high = (torch.from_numpy(bound) for bound in text.spec.bounds())
    present = torch.ones(text.spec.size, dtype=torch.bool).numpy()
    samples = []
    for number in range(arguments.steps * arguments.global_batch):
        if number % 2 == 0:
            action = low + (high - low) * torch.rand(text.spec.size)
            example = text.robot(" ".join(rng.choices(WORDS, k=rng.randint(3, 15))), action.numpy(), present)
        else:
            question, answer = (" ".join(rng.choices(WORDS, k=rng.randint(*k))) for k in ((4, 12), (1, 20)))
            example = text.web(f"{question} ?", answer)
        samples.append((example, torch.randint(256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8)))
    rng.shuffle(samples)
    return samples


def _report(
    seconds: dict[str, list[float]], samples: list[Any], steps: list[list[Any]], arguments: argparse.Namespace
) -> dict[str, Any]:
    patches = (IMAGE_SIZE // PATCH_SIZE) ** 2
    tokens = sum(patches + len(example.ids) for example, _ in samples)
    results: dict[str, Any] = {}
    print(f"\n{len(samples)} samples, {tokens} real tokens, {arguments.rounds} rounds")
    for name, times in seconds.items():
        padding = _padding(steps, arguments.micro_batch, by_length=name == "ours")
        gain = ratio(seconds["trainer"], times)
        rates = sorted(tokens / each for each in times)
        print(f"  {name:16s} {rates[len(rates) // 2]:8.0f} tokens/s, padding {padding:.1%}, {gain} times the trainer")
        results[name] = {"tokens_per_s": rates, "padding": round(padding, 4), "ratio": gain.to_json()}
    return results


def _padding(steps: list[list[Any]], micro: int, *, by_length: bool) -> float:
    """Share of the computed positions that hold nothing."""
    patches, real, computed = (IMAGE_SIZE // PATCH_SIZE) ** 2, 0, 0
    for samples in steps:
        lengths = [patches + len(example.ids) for example, _ in samples]
        lengths = sorted(lengths) if by_length else lengths
        for first in range(0, len(lengths), micro):
            piece = lengths[first : first + micro]
            real, computed = real + sum(piece), computed + max(piece) * len(piece)
    return 1 - real / computed


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, rounds=5)
    made.add_argument("--steps", type=positive, default=2, help="optimizer steps a round (default: 2)")
    made.add_argument("--global-batch", type=positive, default=32, help="samples an optimizer step (default: 32)")
    made.add_argument("--micro-batch", type=positive, default=8, help="samples a forward pass (default: 8)")
    made.add_argument("--vocabulary", type=positive, default=32_000, help="tokens of the model (default: 32000)")
    return made.parse_args()


if __name__ == "__main__":
    main()
