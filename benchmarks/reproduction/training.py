"""Training at full size: PaliGemma-3B with LoRA on one GPU, and two GPUs against one under ZeRO 1 to 3."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reproduction.data import FRACTAL, GCS, above_lazy, evaluated, interval, training_store
from reproduction.lab import Check, Lab, Need, Stage, expect, is_there, noted

from pipelines.training.run_files import METRICS, read_metrics
from rt_models.language.model_source import is_on_hub

RELATIVE = 1e-3
"""Between the losses of a step on one GPU and on two; two CPU ranks differ from one by less than 1e-4."""
OPENVLA_LORA = "OpenVLA fine-tunes with LoRA of rank 32 at 5e-4 (arXiv 2406.09246, its finetune.py)"
IN_PROCESS = ("--launch", "InProcess", "--engine", "TorchEngineConfig")


@dataclass(frozen=True, kw_only=True)
class Size:
    """What differs between a lab's machine and a trial of the script on CPUs."""

    vlm: tuple[object, ...]
    vlm_batch: tuple[int, int]
    recipe: str
    windows: int
    workers: tuple[object, ...]
    learning_rate: str


LAB = Size(
    vlm=("--model.dtype", "bfloat16", "--model.tuning.rank", 32, "--engine.precision", "bf16"),
    vlm_batch=(64, 16),
    recipe="rt1_fractal",
    windows=32,
    workers=("--launch.use-gpu",),
    learning_rate="5e-4",
)
TOY = Size(
    vlm=("--model.tuning.rank", 2, "--engine.precision", "fp32", "--model.text.vocabulary", "AddedTokens"),
    vlm_batch=(8, 4),
    recipe="rt1_tiny",
    windows=8,
    workers=(),
    learning_rate="1e-3",
)


def size_of(lab: Lab) -> Size:
    return TOY if lab.settings.toy else LAB


def losses(lab: Lab, run: str) -> list[float]:
    return [line["loss"] for line in read_metrics(lab.path(f"{run}/{METRICS}")) if "loss" in line]


# --- PaliGemma ---


def _paligemma(lab: Lab) -> list[Check]:
    size, run, steps = size_of(lab), lab.path("runs/paligemma"), lab.settings.vlm_steps
    batch, micro_batch = size.vlm_batch
    words: list[object] = ["train", "rt2_paligemma_3b", "--model.path", lab.settings.vlm, "--model.tuning", "LoRA"]
    words += [*size.vlm, *IN_PROCESS, "--data", training_store(lab), "--output", run, "--resume"]
    words += ["--co-fine-tuning.robot-share", 1, "--optimizer.lr", size.learning_rate, "--loop.steps", steps]
    words += ["--schedule.warmup-steps", steps // 10, "--loop.global-batch", batch, "--loop.micro-batch", micro_batch]
    lab.rtp("train-paligemma", *words, "--loop.log-every", 1, "--loop.checkpoint-every", max(1, steps // 4))
    loss = losses(lab, "runs/paligemma")
    tenth = max(1, len(loss) // 10)
    first, last = statistics.fmean(loss[:tenth]), statistics.fmean(loss[-tenth:])
    scores = evaluated(lab, "evaluate-paligemma", run)
    decoding: Mapping[str, Any] = scores.get("decoding") or {}
    peak = max((line.get("memory_gb", 0.0) for line in read_metrics(lab.path(f"runs/paligemma/{METRICS}"))), default=0)
    is_full_size = not lab.settings.toy
    return [
        expect("optimizer steps", str(steps), len(loss), len(loss) == steps),
        noted("learning rate", size.learning_rate, OPENVLA_LORA),
        expect(
            "loss, first and last tenth", "it falls", f"{first:.3f}, {last:.3f}", last < first, applies=is_full_size
        ),
        noted(f"token accuracy, {scores['episodes']} held-out episodes", interval(scores["token_accuracy"])),
        *above_lazy(scores, applies=is_full_size),
        noted("probability on valid action tokens", decoding.get("valid_token_mass", "not measured")),
        noted("memory, GB", f"{peak:.1f}"),
    ]


# --- ZeRO ---


def _trained(lab: Lab, name: str, workers: int, *engine: object) -> list[float]:
    """The losses of one run; every update has two micro-batches of the same samples, however many ranks share them."""
    size = size_of(lab)
    batch = size.windows
    words: list[object] = ["train", size.recipe, "--data", training_store(lab), "--output", lab.path(f"runs/{name}")]
    words += ["--loop.steps", lab.settings.zero_steps, "--loop.global-batch", batch, "--resume"]
    words += ["--loop.micro-batch", batch // 2 // workers, "--loop.log-every", 1, "--loop.checkpoint-every", 10_000]
    lab.rtp(f"train-{name}", *words, *engine, "--engine.precision", "fp32")
    return losses(lab, f"runs/{name}")


def _zero(lab: Lab) -> list[Check]:
    one = _trained(lab, "one", 1, *IN_PROCESS)
    distributed = ["--launch", "RayLaunch", "--launch.num-workers", 2, *size_of(lab).workers]
    checks = [noted("losses on one, first and last", f"{one[0]:.6f}, {one[-1]:.6f}")]
    for stage in (1, 2, 3):
        two = _trained(
            lab, f"zero-{stage}", 2, *distributed, "--engine", "DeepSpeedEngineConfig", "--engine.zero.stage", stage
        )
        apart = farthest(one, two)
        found = f"{apart:.1e} at most over {len(two)} of {len(one)} steps"
        same = len(one) == len(two) and apart <= RELATIVE
        checks.append(expect(f"ZeRO {stage} on two against one, losses apart", f"at most {RELATIVE}", found, same))
    return checks


def farthest(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest relative difference of two lists of losses, step by step."""
    return max((abs(a - b) / abs(a) for a, b in zip(one, other, strict=False)), default=float("inf"))


def _has_gpus(count: int) -> Need:
    names = {1: "one GPU of 40 GB or more", 2: "two GPUs that NCCL connects"}
    return Need(what=names[count], is_there=lambda lab: lab.settings.toy or lab.gpus >= count)


STAGES = (
    Stage(
        name="paligemma",
        question="PaliGemma-3B fine-tuned with LoRA on the slice: does it learn, and predict held-out actions better "
        "than a policy that looks at nothing?",
        needs=(
            FRACTAL,
            GCS,
            Need(
                what="--vlm with a PaliGemma, or hub:OWNER/MODEL",
                is_there=lambda lab: is_on_hub(lab.settings.vlm) or is_there(lab.settings.vlm),
            ),
            Need(what="the extra vlm", is_there=lambda lab: importlib.util.find_spec("peft") is not None),
            _has_gpus(1),
        ),
        run=_paligemma,
    ),
    Stage(
        name="zero",
        question="Do two GPUs over NCCL train as one does, under ZeRO 1, 2 and 3?",
        needs=(FRACTAL, GCS, _has_gpus(2)),
        run=_zero,
    ),
)
