"""RT-2 on pretrained models on a GPU: the weights and the loss of a CPU, steps that wait for nothing, less kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra vlm")

from rt_models.language.action_vocabulary import AddedTokens
from rt_models.language.answer_loss import plan_answers
from rt_models.rt1 import RT1Config
from rt_models.rt2_vlm import LoRA, RT2VLMConfig
from rt_models.vision.image_plan import plan_images
from tests.support import rt1_windows
from tests.support.rt2_folders import FAMILIES
from tests.support.rt2_rows import make_batch

CUDA = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.manual_seed(0)
    return {name: str(save(tmp_path_factory.mktemp(name))) for name, save in FAMILIES.items()}


def planned(config: RT2VLMConfig) -> dict[str, torch.Tensor]:
    batch = make_batch(config.build_text())
    return plan_answers(batch | {"num_images": torch.tensor([len(batch["frames"])], dtype=torch.int32)})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_device_starts_from_the_same_weights(family: str, folders: dict[str, str]) -> None:
    config = RT2VLMConfig.paligemma(folders[family], tuning=LoRA(rank=2))
    config = replace(config, text=replace(config.text, vocabulary=AddedTokens()))
    states = []
    for device in (torch.device("cpu"), CUDA):
        torch.manual_seed(0)
        model = config.build(device)
        assert next(model.vlm.parameters()).device == device
        states.append({name: value.cpu() for name, value in model.state_dict().items()})
    assert states[0].keys() == states[1].keys()
    assert [name for name, value in states[0].items() if not torch.equal(value, states[1][name])] == []


@pytest.mark.parametrize("checkpointing", ["off", "selective", "blocks"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_waits_for_nothing_and_loses_what_a_cpu_loses(
    family: str, checkpointing: Any, folders: dict[str, str]
) -> None:
    config = RT2VLMConfig.paligemma(folders[family], activation_checkpointing=checkpointing)
    expected = config.build().train().loss(planned(config))
    model = config.build(CUDA).to(CUDA).train()
    batch = {key: value.to(CUDA) for key, value in planned(config).items()}
    losses = []
    try:
        for number in range(4):
            if number == 2:  # constants are on the device
                torch.cuda.set_sync_debug_mode("error")
            loss = model.loss(batch)
            loss.backward()
            losses.append(loss.detach())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(torch.stack(losses).cpu(), expected.detach().expand(4), rtol=0, atol=1e-4)


def test_rt1_keeps_less_with_the_same_gradient() -> None:
    """With the Triton kernels between the products that are kept."""
    config, peaks, gradients = RT1Config.small(), {}, {}
    batch = plan_images(
        rt1_windows.make_batch(config, [0, 4, 5, 6, 7, 8], frame_size=(96, 96)), crops=True, capacities=(40,)
    )
    on_device = {key: value.to(CUDA) for key, value in batch.items()}
    for mode in ("off", "selective", "blocks"):
        compute: Any = replace(config.compute, activation_checkpointing=mode)
        torch.manual_seed(0)
        model = replace(config, compute=compute).build().to(CUDA).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        model.loss(on_device).backward()  # kernels are compiled
        model.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model.loss(on_device).backward()
        peaks[mode] = torch.cuda.max_memory_allocated() - before
        gradients[mode] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        if mode != "off":
            assert (gradients[mode] - gradients["off"]).norm() < 1e-3 * gradients[
                "off"
            ].norm()  # cuDNN adds in any order
        del model
    print(peaks)
    assert peaks["blocks"] < peaks["off"] and peaks["selective"] < peaks["off"]
