"""One action of RT-2: picture and prompt once and then a token at a time, against the whole row for every token.

Both sides choose greedily among the valid tokens of each place, from the same weights; the uncached side gives the
model every token so far, picture included, and has it answer the last. That both say the same is checked before they
are timed. `allowed` is the ratio of the operations counted by rt_models/cost/rt2_flops.py.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from measure import in_turn, parser, positive, print_json, ratio, start
from torch import Tensor
from torch.nn.functional import pad

from rt_models.cost.rt2_flops import cost
from rt_models.language.generation import predict_actions
from rt_models.rt2 import RT2, RT2Config

PRESETS = {"tiny": RT2Config.tiny, "default": RT2Config}
INSTRUCTION = "pick up the green rice chip bag from the middle drawer and place it on the counter"


class Uncached:
    """A language model that keeps the row so far instead of keys and values."""

    def __init__(self, model: RT2) -> None:
        self._model, self.vocab_size = model, model.vocab_size

    def start(self, batch: Mapping[str, Tensor], *, max_new_tokens: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self._model.start(batch, max_new_tokens=0)[0], dict(batch)

    def advance(self, tokens_B: Tensor, cache: dict[str, Tensor], active_B: Tensor) -> Tensor:
        length_B = cache["token_mask"].sum(dim=1)
        rows = torch.arange(len(tokens_B))
        cache["tokens"], cache["token_mask"] = pad(cache["tokens"], (0, 1)), pad(cache["token_mask"], (0, 1))
        cache["tokens"][rows, length_B], cache["token_mask"][rows, length_B] = tokens_B, active_B
        return self._model.start(cache, max_new_tokens=0)[0]


def main() -> None:
    arguments = _arguments()
    start(arguments)
    results = {f"{p} x{b}": compare(p, b, arguments) for p in arguments.presets for b in arguments.robots}
    print_json("rt2_decoding", arguments, results)


def compare(preset: str, num_robots: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both sides for so many robots at once, printed and returned."""
    # Under a prompt prefix a longer row is another row: only a causal one can be computed without a cache.
    config = replace(PRESETS[preset](), prefix="causal")
    prompt = config.text.robot_prompt.format(instruction=INSTRUCTION)
    config = replace(config, tokenizer=config.tokenizer.learnt([prompt] * 2, vocab_size=config.vocab_size))
    model, text = config.build().eval(), config.build_text()
    batch = _prompts(config, num_robots)
    sides = {name: partial(predict_actions, m, batch, text) for name, m in _models(model).items()}
    said = {name: side().bins_BA for name, side in sides.items()}
    if not torch.equal(said["cached"], said["uncached"]):
        raise SystemExit("cached and uncached decoding chose different actions")
    seconds = in_turn(sides, arguments.rounds)
    median_ms = {name: 1e3 * statistics.median(times) for name, times in seconds.items()}
    measured, operations, length = ratio(seconds["uncached"], seconds["cached"]), cost(config), batch["tokens"].shape[1]
    allowed = operations.action_flops(length, cached=False) / operations.action_flops(length)
    print(
        f"\n{preset}: {num_robots} robots, {config.num_patches()} patches, prompt of {length} tokens, "
        f"{len(config.text.fields)} action tokens, {arguments.rounds} rounds\n"
        f"  cached   {median_ms['cached']:8.1f} ms\n  uncached {median_ms['uncached']:8.1f} ms: "
        f"{measured} times cached, {allowed:.2f} allowed",
        flush=True,
    )
    return {"median_ms": median_ms, "ratio": measured.to_json(), "allowed": round(allowed, 3), "seconds": seconds}


def _models(model: RT2) -> dict[str, Any]:
    return {"cached": model, "uncached": Uncached(model)}


def _prompts(config: RT2Config, num_robots: int) -> dict[str, Tensor]:
    text, size = config.build_text(), config.picture.image_size
    return text.collate_prompts([text.robot_prompt(INSTRUCTION)] * num_robots) | {
        "frames": torch.randint(256, (num_robots, size, size, 3), dtype=torch.uint8),
        "image_index": torch.arange(num_robots)[:, None],
    }


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, rounds=15)
    made.add_argument("--presets", nargs="+", choices=sorted(PRESETS), default=["tiny", "default"])
    made.add_argument("--robots", nargs="+", type=positive, default=[1, 8], help="batch sizes (default: 1 8)")
    return made.parse_args()


if __name__ == "__main__":
    main()
