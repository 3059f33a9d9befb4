"""ZeRO-3 on a pretrained model: created in pieces, and two ranks lose what one loses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra vlm")

from cluster.context import LocalContext
from cluster.engine import DeepSpeedEngineConfig, TorchEngineConfig
from cluster.shards import each_weight
from cluster.zero import ZeroConfig
from pipelines.config.optimizer import AdamWConfig
from rt_models.language.action_vocabulary import AddedTokens
from rt_models.language.generation import predict_actions
from rt_models.rt2_vlm import LoRA, RT2VLMConfig
from tests.support.ranks import run_ranks
from tests.support.rt2_folders import save_paligemma
from tests.support.rt2_rows import INSTRUCTIONS, make_batch, prompts_of, row_of

STEPS, ROWS = 4, 4
ZERO_3 = DeepSpeedEngineConfig(zero=ZeroConfig(stage=3, persist_elements=0))


def train(context: Any, config: RT2VLMConfig, engine_config: Any, folder: str = "") -> dict[str, Any]:
    """Mean losses of a few steps on the same four rows, the actions afterwards, and what this rank held when built.

    The state is saved to `folder`, if one is given.
    """
    text, held = config.build_text(), []

    def create() -> torch.nn.Module:
        model = config.build()
        generator = torch.Generator().manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_A" in name:  # how many numbers were drawn before them depends on the stage
                torch.nn.init.normal_(parameter, std=0.1, generator=generator)
        held.append(sum(getattr(p, "ds_tensor", p).numel() for p in model.parameters()))
        return model

    engine = engine_config.build(context, micro_batch=1, accumulation=ROWS // context.world_size)
    engine.build(create, AdamWConfig(lr=1e-2, weight_decay=0.1).build).train()
    losses = []
    for _ in range(STEPS):
        step = []
        for row in range(context.rank, ROWS, context.world_size):
            loss = engine.forward(row_of(make_batch(text), row))
            engine.backward(loss)
            engine.step()
            step.append(float(loss.detach()))
        losses.append(sum(sum(values) for values in context.gather(step)) / ROWS)
    if folder:
        engine.save(Path(folder))
    with engine.evaluate_mode() as model:
        bins = predict_actions(model, prompts_of(text, INSTRUCTIONS), text).bins_BA.tolist()
    engine.close()
    return {"losses": losses, "bins": bins, "held": held[0]}


LORA_STAGES = (2, 3)


def train_each(context: Any, runs: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [train(context, *run) for run in runs]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RT2VLMConfig:
    torch.manual_seed(0)  # the same weights each time: with some of them rounding errors grow beyond the tolerances
    return RT2VLMConfig.paligemma(str(save_paligemma(tmp_path_factory.mktemp("paligemma") / "model")))


@pytest.fixture(scope="module")
def lora(config: RT2VLMConfig) -> RT2VLMConfig:
    return replace(config, tuning=LoRA(rank=2), text=replace(config.text, vocabulary=AddedTokens()))


@pytest.fixture(scope="module")
def lora_alone(lora: RT2VLMConfig) -> dict[str, Any]:
    return train(LocalContext("cpu"), lora, TorchEngineConfig())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks save with LoRA under each stage lies in folders of this one."""
    folder = tmp_path_factory.mktemp("saved")
    for stage in LORA_STAGES:
        (folder / str(stage)).mkdir()
    return folder


@pytest.fixture(scope="module")
def on_two(
    config: RT2VLMConfig, lora: RT2VLMConfig, saved: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Any]]]:
    """Of each rank: ZeRO-3 on the whole model, and LoRA under both stages. The same two processes do all of it."""
    runs: dict[str, tuple[Any, ...]] = {"zero-3": (config, ZERO_3)}
    for stage in LORA_STAGES:
        engine = DeepSpeedEngineConfig(zero=ZeroConfig(stage=stage, persist_elements=0))  # type: ignore[arg-type]
        runs[f"lora-{stage}"] = (lora, engine, str(saved / str(stage)))
    ranks = run_ranks(train_each, 2, tmp_path_factory.mktemp("ranks"), list(runs.values()))
    return {name: [rank[number] for rank in ranks] for number, name in enumerate(runs)}


def test_two_ranks_of_zero_3_lose_what_one_loses_and_hold_half(config: RT2VLMConfig, on_two: Any) -> None:
    alone = train(LocalContext("cpu"), config, TorchEngineConfig())
    assert alone["losses"][-1] < alone["losses"][0]
    for rank in on_two["zero-3"]:
        torch.testing.assert_close(rank["losses"], alone["losses"], rtol=1e-5, atol=1e-5)
        assert rank["bins"] == alone["bins"]
        assert rank["held"] == pytest.approx(alone["held"] / 2, rel=0.01)  # never the whole model, not even at first


def test_zero_3_with_selective_checkpointing_loses_the_same(config: RT2VLMConfig) -> None:
    plain = train(LocalContext("cpu"), config, ZERO_3)
    selective = train(LocalContext("cpu"), replace(config, activation_checkpointing="selective"), ZERO_3)
    torch.testing.assert_close(selective["losses"], plain["losses"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("stage", LORA_STAGES)
def test_loras_new_rows_are_trained_and_saved_under_zero_as_alone(
    stage: int, lora: RT2VLMConfig, lora_alone: Any, on_two: Any, saved: Path
) -> None:
    """Tied rows, half of them on each rank; the state that two ranks leave is one model's."""
    for rank in on_two[f"lora-{stage}"]:
        torch.testing.assert_close(rank["losses"], lora_alone["losses"], rtol=1e-5, atol=1e-5)
        assert rank["bins"] == lora_alone["bins"]
    model = lora.build()
    model.load_state_dict(dict(each_weight(saved / str(stage))))
    assert model.vlm.get_input_embeddings().new_rows.abs().max() > 1e-3
    text = lora.build_text()
    assert predict_actions(model.eval(), prompts_of(text, INSTRUCTIONS), text).bins_BA.tolist() == lora_alone["bins"]
