"""RT-2 on a laptop: one small model learns six robot tasks and easy-VQA together, beside one that learns robots alone.

    python benchmarks/rt2_cofinetuning.py EASY_VQA [--folder runs/rt2] [--steps N]

EASY_VQA is the unpacked data folder of easy-VQA (github.com/vzhou842/easy-VQA, `easy_vqa/data`, MIT), or its .tar.gz.
Both models are the recipe `rt2_tiny` with the same number of robot steps seen. Everything goes through the commands
that a user types. Exits with 1 unless the co-trained model beats the lazy policies and answers 80 % of the test
questions, and falls to the question-only level where images are shuffled.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

SAMPLE = Path(__file__).resolve().parents[1] / "examples/metaworld_sample/1.0.0"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("easy_vqa", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("runs/rt2"))
    parser.add_argument("--steps", type=int, default=0, help="optimizer steps of the co-trained model; 0: the recipe's")
    given, extra = parser.parse_known_args()
    stores = preprocess(unpacked(given.easy_vqa, given.folder), given.folder / "stores")
    from pipelines.catalogue import load_recipe

    steps = given.steps or load_recipe("rt2_tiny").loop.steps
    both = [stores["robot_train"], stores["web_train"]]
    held_out = [stores["robot_val"], stores["web_test"]]
    minutes = train(given.folder / "co_trained", steps, both, extra)
    train(given.folder / "robot_only", steps // 2, both[:1], [*extra, "--co-fine-tuning.robot-share", "1"])
    scores = {name: evaluate(given.folder / name, held_out) for name in ("co_trained", "robot_only")}
    print(table(scores))
    print(f"co-trained in {minutes:.1f} minutes")
    return int(not holds(scores["co_trained"]))


def unpacked(source: Path, folder: Path) -> Path:
    if source.is_dir():
        return source
    target = folder / "easy_vqa"
    if not (target / "test" / "questions.json").exists():
        with tarfile.open(source) as tar:
            tar.extractall(target, filter="data")
    return target


def preprocess(easy_vqa: Path, out: Path) -> dict[str, str]:
    robot = {f"robot_{s}": rtp("preprocess", SAMPLE, out, "--split", s, "--encoder", "hash") for s in ("train", "val")}
    web = {
        f"web_{s}": rtp("preprocess", easy_vqa, out, "--format", "easy_vqa", "--dataset", "easy_vqa", "--split", s)
        for s in ("train", "test")
    }
    return {name: summary["store"] for name, summary in (robot | web).items()}


def train(output: Path, steps: int, stores: list[str], extra: list[str]) -> float:
    """Minutes that it took, start of the workers included."""
    began = time.monotonic()
    rtp("train", "rt2_tiny", "--data", *stores, "--output", output, "--loop.steps", steps, *extra)
    return (time.monotonic() - began) / 60


def evaluate(run: Path, stores: list[str]) -> dict[str, Any]:
    robot, web = rtp("evaluate", run, "--data", *stores)["evaluations"]
    return {"robot": robot, "web": web}


def rtp(*words: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "pipelines", *map(str, words), "--json"]
    print("$ rtp", *words, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(scores: dict[str, dict[str, Any]]) -> str:
    rows = [("", *scores)]
    rows.append(("held-out action tokens", *(percent(s["robot"]["token_accuracy"]) for s in scores.values())))
    for name in next(iter(scores.values()))["robot"]["lazy"]:
        rows.append((f"  above {name}", *(percent(s["robot"]["margin"][name]) for s in scores.values())))
    rows.append(("VQA test accuracy", *(percent(s["web"]["vqa_accuracy"]) for s in scores.values())))
    for name in next(iter(scores.values()))["web"]["lazy"]:
        rows.append((f"  {name}", *(percent(s["web"]["lazy"][name]) for s in scores.values())))
    shuffled = (s["web"]["perturbed"]["shuffled_images"]["vqa_accuracy"] for s in scores.values())
    rows.append(("  shuffled images", *map(percent, shuffled)))
    return "\n".join("  ".join(f"{cell:<28}" for cell in row).rstrip() for row in rows)


def percent(interval: dict[str, float]) -> str:
    return f"{100 * interval['mean']:.1f} % [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def holds(scores: dict[str, Any]) -> bool:
    """The claims: see the top."""
    robot, web = scores["robot"], scores["web"]
    shuffled = web["perturbed"]["shuffled_images"]["vqa_accuracy"]["mean"]
    return (
        all(margin["low"] > 0 for margin in robot["margin"].values())
        and web["vqa_accuracy"]["mean"] >= 0.80
        and shuffled <= web["lazy"]["question_only"]["high"]
    )


if __name__ == "__main__":
    sys.exit(main())
