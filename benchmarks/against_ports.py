"""RT-1 here against two PyTorch ports of it, where checkouts are given: a training window and a control step.

All run under the same autocast, or under none. What differs by a port's own design (model, image size, what a step
includes) stays as published and is printed. Training is forward and backward, without an optimizer; every side is in
training mode for it and in evaluation mode for control steps.

`--packages` is a folder with what the ports import and this project does not have: see benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import in_turn, parser, positive, print_json, ratio, start
from ports import NUM_STEPS, Contender, robotic_transformer_pytorch, rt1_pytorch
from torch import nn
from workload import PRESETS, batch, frames

from rt_models.control.rt1_policy import RT1Policy
from rt_models.spec import EMBEDDING_WIDTH

Autocast = Callable[[], AbstractContextManager[Any]]
CONTROL_STEPS = 5  # a turn; a robot's policy steps again and again, with nobody else's weights in the caches between


def main() -> None:
    arguments = _arguments()
    sys.path += [str(arguments.packages)] if arguments.packages else []
    start(arguments)
    autocast = partial(torch.autocast, "cpu", torch.bfloat16) if arguments.precision == "bf16" else nullcontext
    contenders = _contenders(arguments)
    for name, contender in contenders.items():
        size = sum(parameter.numel() for parameter in contender.model.parameters())
        print(f"{name}: {size:,} parameters; {contender.about}", flush=True)
    control = {name: partial(_control, each.model, each.control, autocast) for name, each in contenders.items()}
    acted = in_turn(control, arguments.control_rounds)  # first: a robot's process has no heap that training left behind
    train = {name: partial(_train, each.model, each.loss, autocast) for name, each in contenders.items()}
    plain_windows: int = arguments.batch
    windows = dict.fromkeys(train, plain_windows)
    mine, shared = ours(arguments.preset, 1, arguments.segment), f"ours, segments of {arguments.segment}"
    train[shared], windows[shared] = partial(_train, mine.model, mine.loss, autocast), arguments.segment
    taken = in_turn(train, arguments.rounds)
    per_window = {name: [each / windows[name] for each in seconds] for name, seconds in taken.items()}
    results = {
        "train": _report(f"forward and backward, a window (plain batch {arguments.batch})", per_window),
        "control": _report(
            "control step", {name: [each / CONTROL_STEPS for each in seconds] for name, seconds in acted.items()}
        ),
    }
    about = {name: contender.about for name, contender in contenders.items()}
    print_json("against_ports", arguments, {"about": about, **results})


def ours(preset: str, num_segments: int, windows_per_segment: int) -> Contender:
    """`RT1.loss` and `RT1Policy.act`."""
    model = PRESETS[preset]().build()
    windows = batch(preset, num_segments=num_segments, windows_per_segment=windows_per_segment)
    policy, frame_HWC, embedding_D = RT1Policy(model), frames(preset, 1)[0], torch.randn(EMBEDDING_WIDTH)
    return Contender(
        model=model,
        about=f"{preset}; uint8 256x320 frames, crop and resize to 300x300; the control step keeps past image tokens",
        loss=partial(model.loss, windows),
        control=partial(policy.act, frame_HWC, embedding_D),
    )


def _contenders(arguments: argparse.Namespace) -> dict[str, Contender]:
    made = {"ours": ours(arguments.preset, arguments.batch, 1)}
    if arguments.rt1_pytorch:
        made["rt1-pytorch"] = rt1_pytorch(arguments.rt1_pytorch, arguments.batch)
    if arguments.robotic_transformer_pytorch:
        checkout = arguments.robotic_transformer_pytorch
        made["robotic-transformer-pytorch"] = robotic_transformer_pytorch(checkout, arguments.batch)
    return made


def _train(model: nn.Module, loss: Callable[[], torch.Tensor], autocast: Autocast) -> None:
    model.train().zero_grad(set_to_none=True)
    with autocast():
        value = loss()
    value.backward()


@torch.no_grad()
def _control(model: nn.Module, control: Callable[[], object], autocast: Autocast) -> None:
    model.eval()
    for _ in range(CONTROL_STEPS):
        with autocast():
            control()


def _report(title: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Print and return each side's median and, of a port, how many times as long as ours it takes."""
    print(f"\n{title}")
    mine = [name for name in seconds if name.startswith("ours")]
    report: dict[str, Any] = {}
    for name, times in seconds.items():
        against = {} if name in mine else {own: ratio(times, seconds[own]) for own in mine}
        listed = "".join(f"; {measured} times {own}" for own, measured in against.items())
        print(f"  {name:27} {1e3 * statistics.median(times):9.1f} ms{listed}", flush=True)
        report[name] = {"seconds": times, "times": {own: measured.to_json() for own, measured in against.items()}}
    return report


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, rounds=5)
    made.add_argument("--rt1-pytorch", type=Path, help="checkout of Rohan138/rt1-pytorch at 492c4e3")
    made.add_argument("--robotic-transformer-pytorch", type=Path, help="checkout of lucidrains' port")
    made.add_argument("--packages", type=Path, help="folder of what the ports import")
    made.add_argument("--preset", choices=["rt1_jax", "rt1"], default="rt1_jax", help="ours (default: rt1_jax)")
    made.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="bf16: autocast (default: fp32)")
    made.add_argument("--batch", type=positive, default=1, help="plain windows a training step (default: 1)")
    made.add_argument("--segment", type=positive, default=12, help="windows of our shared-frame side (default: 12)")
    made.add_argument("--control-rounds", type=positive, default=10, help="rounds of control steps (default: 10)")
    arguments = made.parse_args()
    if not (arguments.rt1_pytorch or arguments.robotic_transformer_pytorch):
        made.error("give the checkout of at least one port")
    for checkout in (arguments.rt1_pytorch, arguments.robotic_transformer_pytorch, arguments.packages):
        if checkout and not checkout.is_dir():
            made.error(f"{checkout} is not a folder")
    assert PRESETS[arguments.preset]().num_steps == NUM_STEPS
    return arguments


if __name__ == "__main__":
    main()
