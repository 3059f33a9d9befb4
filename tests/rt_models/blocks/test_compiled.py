"""Compiled block by block, a model computes the same, with one graph for each shape and whatever the batch."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cluster.context import WorkerContext
from rt_models.blocks import compiled
from rt_models.blocks.compiled import compile_blocks, has_compiled
from rt_models.compute_config import ComputeConfig
from rt_models.rt1 import RT1Config
from rt_models.rt2 import RT2Config
from rt_models.vision.efficientnet import EfficientNetConfig, Stage
from rt_models.vision.image_plan import plan_images
from tests.support.compiled_graphs import count_graphs
from tests.support.ranks import run_ranks
from tests.support.rt1_windows import make_batch, stirred
from tests.support.rt2_rows import MINIMAL
from tests.support.rt2_rows import make_batch as make_rows

STAGES = (Stage(expansion=2, kernel=3, stride=2, channels=8, num_blocks=3),)
"""Two shapes of three blocks, whose rates of stochastic depth differ."""
NET = replace(EfficientNetConfig.tiny(), stages=STAGES, stochastic_depth=0.5)
TRANSFORMER = replace(RT1Config.tiny().transformer, num_layers=3)
CONFIG = replace(RT1Config.tiny(), backbone=NET, transformer=TRANSFORMER)
CAPACITIES = (20, 24, 30)


def step(model: nn.Module, batch: dict[str, Tensor]) -> list[Tensor]:
    """Loss and gradients."""
    model.zero_grad()
    loss = model.loss(batch)  # type: ignore[operator]
    loss.backward()
    return [loss.detach(), *(torch.zeros(()) if p.grad is None else p.grad for p in model.parameters())]


def pair(config: RT1Config | RT2Config) -> tuple[nn.Module, nn.Module]:
    """A model as it is, and compiled."""
    setting = {"compile": "aot_eager"}
    compute = {"compute": replace(config.compute, **setting)} if isinstance(config, RT1Config) else setting
    plain = stirred(config.build()).train()
    other = replace(config, **compute).build().train()
    other.load_state_dict(plain.state_dict())  # the same names: a checkpoint does not know
    assert has_compiled(other) and not has_compiled(plain)
    return plain, other


def same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("checkpointing", "backend"),
    [
        ("off", "eager"),  # traced, and run as it is
        pytest.param("off", "aot_eager", marks=pytest.mark.slow),
        pytest.param("blocks", "aot_eager", marks=pytest.mark.slow),
    ],
)
def test_an_rt1_is_one_graph_for_each_shape_over_all_capacities(
    checkpointing: Any, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = count_graphs(monkeypatch, backend)
    plain, other = pair(replace(CONFIG, compute=ComputeConfig(activation_checkpointing=checkpointing)))
    ends = ([4, 5, 6, 7, 3, 2], [5, 6, 7, 8, 2, 3, 4], [8, 1, 2, 3, 4])
    after_one = 0
    for capacity, last in zip(CAPACITIES, ends, strict=True):
        batch = plan_images(make_batch(CONFIG, last, crop_keys=[0] * len(last)), crops=True, capacities=(capacity,))
        same(step(plain, batch), step(other, batch))
        same(list(plain.buffers()), list(other.buffers()))  # running averages
        after_one = after_one or len(graphs)
    images = 2 if checkpointing == "off" else 4  # what is run again leaves the averages alone
    layers = 2  # all rows, and in the last layer those of the actions
    assert len(graphs) == after_one == images + layers
    plain.eval(), other.eval()
    with torch.no_grad():
        same([plain.predict(batch)], [other.predict(batch)])  # type: ignore[operator]


def _losses_of_ranks(context: WorkerContext) -> list[float]:
    torch.manual_seed(0)
    found = []
    for model in pair(CONFIG):
        for last in ([4, 5 + context.rank, 8], [3, 4 + context.rank]):
            batch = plan_images(make_batch(CONFIG, last), crops=True, capacities=(30,))
            loss, *gradients = step(model, batch)
            found += [float(loss), *(float(gradient.norm()) for gradient in gradients), *map(_sum, model.buffers())]
    return found


def _sum(buffer: Tensor) -> float:
    return float(buffer.sum())


@pytest.mark.slow
def test_statistics_of_several_ranks_are_in_the_graph(tmp_path: Path) -> None:
    for found in run_ranks(_losses_of_ranks, 2, tmp_path):
        plain, other = found[: len(found) // 2], found[len(found) // 2 :]
        assert other == pytest.approx(plain, rel=1e-4, abs=1e-6)


def test_an_rt2_is_one_graph_for_each_kind_of_layer_whatever_rows_come(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = count_graphs(monkeypatch, "eager")
    vision, decoder = replace(MINIMAL.vision, num_layers=2), replace(MINIMAL.decoder, num_layers=3)
    plain, other = pair(replace(MINIMAL, vision=vision, decoder=decoder))
    batch = make_rows(MINIMAL.build_text())
    for rows in (slice(0, 4), slice(0, 2), slice(1, 4)):
        some = {key: value if key == "frames" else value[rows] for key, value in batch.items()}
        same(step(plain, some), step(other, some))
    assert len(graphs) == 3  # of the encoder, of the decoder, and of its last layer, which computes the answers alone


def test_blocks_of_a_shape_share_a_program_and_a_copy_is_not_compiled() -> None:
    with torch.device("meta"):
        model = replace(RT1Config.rt1(), compute=ComputeConfig(compile="inductor")).build()
    programs = [block._compiled_call_impl.args[0] for block in model.tokenizer.backbone.blocks]  # type: ignore
    assert len(programs) == 26 and len(set(programs)) == 14
    assert len({block._compiled_call_impl.args[0] for block in model.transformer.blocks}) == 1  # type: ignore
    assert not has_compiled(copy.deepcopy(model))


def test_what_cannot_be_traced_is_an_error_and_never_runs_uncompiled() -> None:
    class Breaks(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            torch._dynamo.graph_break()
            return super().forward(input)

    block = Breaks(2, 2)
    compile_blocks([block], "aot_eager", {0: (0,)})
    with pytest.raises(torch._dynamo.exc.Unsupported):
        block(torch.ones(3, 2))


def test_more_graphs_than_a_shape_may_have_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_GRAPHS_OF_A_SHAPE", 2)
    block = nn.ReLU()
    compile_blocks([block], "eager", {})
    for size in (2, 3):
        block(torch.ones(size))
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        block(torch.ones(4))
    again = nn.ReLU()  # one that is compiled later has graphs of its own
    compile_blocks([again], "eager", {})
    again(torch.ones(4))
