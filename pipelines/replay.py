"""`rtp replay`: recorded episodes through a served policy, token by token what `rtp evaluate` predicts.

A robot that moves otherwise than the scores promise has often been shown another picture, history, instruction or scale
than in training. Here every recorded frame goes over the wire as a robot sends it, and the answers are compared with
what `rtp evaluate` predicts from the store. The first difference is shown with its cause.

Exit code 1 if anything differs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro

from pipelines.config.arguments import parse
from pipelines.config.compute import Compute
from pipelines.serving.access import TOKEN
from pipelines.terminal.commands import JsonSummary
from pipelines.terminal.progress_bar import counting

if TYPE_CHECKING:
    from pipelines.evaluation.replay import ReplayReport
    from pipelines.serving.client import PolicyClient


@dataclass(frozen=True, kw_only=True)
class ReplayArguments:
    """Flags of `rtp replay`."""

    served: tyro.conf.Positional[str]
    """A model, which is served on this machine for the purpose (as `rtp serve` takes it), or the address of a running
    server: ws://HOST:PORT or wss://HOST:PORT. A token is taken from RTP_SERVE_TOKEN."""
    data: str
    """Store of robot episodes that the policy was trained on, or of others of the same data set."""
    model: str | None = None
    """With an address: the model that is expected behind it."""
    split: str = "val"
    """Split of the store, where --data names a folder that holds several."""
    episodes: int | None = None
    """Replay the first episodes only; by default all."""
    compute: Annotated[Compute, tyro.conf.arg(name="")] = field(default_factory=Compute)

    def __post_init__(self) -> None:
        scheme, _, rest = self.served.partition("://")
        if scheme in ("http", "https"):
            raise ValueError(
                f"{self.served}: give the server's address as {'wss' if scheme == 'https' else 'ws'}://{rest}"
            )
        if self.is_address and self.model is None:
            raise ValueError(f"{self.served} answers, but what is right? Give --model, the model that is served there")
        if not self.is_address and self.model is not None:
            raise ValueError("--model belongs to an address such as ws://127.0.0.1:5001: leave it out")
        if self.episodes is not None and self.episodes < 1:
            raise ValueError(f"--episodes {self.episodes}: give a number above 0")

    @property
    def is_address(self) -> bool:
        return self.served.startswith(("ws://", "wss://"))


def main(arguments: list[str]) -> JsonSummary:
    """Replay, and say whether all is as predicted."""
    flags = parse(ReplayArguments, arguments, prog="rtp replay", description=__doc__ or "")
    flags.compute.resolved()  # a GPU that is not there is said before anything is read
    from pipelines.evaluation.replay import Expectation, replay  # torch: --help is at once
    from pipelines.publishing.trained_model import load_trained, with_instructions
    from preprocessing.store.episode_store import EpisodeStore

    store = EpisodeStore.open(flags.data, split=flags.split)
    trained = with_instructions(load_trained(flags.model or flags.served))  # on the CPU again when the other is served
    with flags.compute.at_work(trained.model):
        expected = Expectation(trained, store)
    lengths = [length for shard in store.shards for length in shard.episode_lengths]
    frames = sum(int(length) for length in lengths[: flags.episodes])
    with _connected(flags) as client, counting("replay", frames) as counted:
        report = replay(expected, client, episodes=flags.episodes, counted=counted)
    _show(report, flags.served)
    return {"served": flags.served, "store": store.root, **report.to_json(), "exit_code": 0 if report.agrees else 1}


@contextmanager
def _connected(flags: ReplayArguments) -> Iterator[PolicyClient]:
    """A robot of the server at the address, or of one that serves the model for the duration of the block."""
    from pipelines.publishing.trained_model import load_trained, with_instructions
    from pipelines.serving.client import PolicyClient
    from pipelines.serving.frontend import Frontend
    from pipelines.serving.limits import Limits
    from pipelines.serving.run import Listening, free_port, in_background
    from pipelines.serving.service import PolicyService, ServiceConfig

    if flags.is_address:
        with PolicyClient(flags.served, token=os.environ.get(TOKEN), reconnect_s=0) as client:
            yield client
        return
    unhurried = Limits(max_rate_hz=1e6, late_ms=60_000)  # nothing is late here: nobody moves
    service = PolicyService(
        with_instructions(load_trained(flags.served, device=flags.compute.resolved())),
        ServiceConfig(limits=unhurried, compute=flags.compute),
    )
    listening = Listening(port=free_port())
    with (
        in_background(Frontend(service=service), listening),
        PolicyClient(listening.url("ws"), reconnect_s=0) as client,
    ):
        yield client


def _show(report: ReplayReport, served: str) -> None:
    share = report.same_tokens / max(report.tokens, 1)
    print(f"{served}: {report.same_tokens} of {report.tokens} tokens as rtp evaluate predicts them ({share:.2%}),")
    print(f"in {report.steps} steps of {report.episodes} episodes")
    first = report.first_difference
    if first is not None:
        print(f"first difference: episode {first.episode}, step {first.step}: {first.cause}: {first.explanation}")
