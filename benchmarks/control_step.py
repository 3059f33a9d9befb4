"""One control step: `RT1Policy.act`, which keeps the image tokens of past frames, against recomputing the whole window.

Both sides take one new uint8 frame, answer the last step only and choose constrained tokens; the recomputing side
encodes all T frames anew. That both say the same is a test (tests/rt_models/control/test_rt1_policy.py). `allowed` is
the ratio of the counted operations.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from typing import Any

import torch
from measure import in_turn, parser, print_json, ratio, start
from torch import Tensor
from workload import PRESETS, add_presets, frames

from rt_models.action_tokens import decode
from rt_models.control.constrained_decoding import choose_tokens
from rt_models.control.rt1_policy import RT1Policy
from rt_models.cost.rt1_flops import cost
from rt_models.rt1 import RT1
from rt_models.spec import EMBEDDING_WIDTH


def main() -> None:
    arguments = _arguments()
    start(arguments)
    results = {preset: compare(preset, arguments) for preset in arguments.presets}
    print_json("control_step", arguments, results)


def compare(preset: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both sides of one preset, printed and returned."""
    config = PRESETS[preset]()
    model = config.build().eval()
    frames_THWC, embedding_D = frames(preset, config.num_steps), torch.randn(EMBEDDING_WIDTH)
    policy = RT1Policy(model)
    for frame_HWC in frames_THWC:  # an episode under way: the history is full
        policy.act(frame_HWC, embedding_D)
    sides = {
        "cached": partial(policy.act, frames_THWC[-1], embedding_D),
        "recomputed": partial(recomputed_action, model, frames_THWC, embedding_D),
    }
    seconds = in_turn(sides, arguments.rounds)
    median_ms = {name: 1e3 * statistics.median(times) for name, times in seconds.items()}
    measured, operations = ratio(seconds["recomputed"], seconds["cached"]), cost(config)
    window_flops = config.num_steps * operations.frame_flops + operations.control_flops
    allowed = window_flops / operations.control_step_flops()
    print(
        f"\n{preset}: {config.num_steps} frames of history, {arguments.rounds} rounds\n"
        f"  cached     {median_ms['cached']:8.1f} ms\n  recomputed {median_ms['recomputed']:8.1f} ms: "
        f"{measured} times cached, {allowed:.2f} allowed",
        flush=True,
    )
    return {"median_ms": median_ms, "ratio": measured.to_json(), "allowed": round(allowed, 3), "seconds": seconds}


@torch.no_grad()
def recomputed_action(model: RT1, frames_THWC: Tensor, embedding_D: Tensor) -> Tensor:
    """float (A,) model values of the window's last step, nothing kept from the step before."""
    tokens_TKD = model.encode_frames(frames_THWC, embedding_D.expand(len(frames_THWC), -1))
    logits = model.action_logits(tokens_TKD[None], output_steps="last")
    return decode(choose_tokens(logits[0, 0], model.spec), model.spec)


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, rounds=20)
    add_presets(made, "small", "rt1_jax", "rt1")
    return made.parse_args()


if __name__ == "__main__":
    main()
