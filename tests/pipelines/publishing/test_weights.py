"""A trained model lies on its device from the first, and its weights come one at a time."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra vlm")

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.publishing import weights
from pipelines.publishing.folder import WEIGHTS, read_bundle
from pipelines.publishing.trained_model import load_trained
from pipelines.publishing.weights import each_tensor, fill, without_weights
from rt_models.language.action_vocabulary import AddedTokens
from rt_models.rt1 import RT1, RT1Config
from rt_models.rt2 import RT2Config
from rt_models.rt2_vlm import LoRA, RT2VLMConfig
from tests.support.rt2_folders import save_paligemma
from tests.support.untrained import write_untrained

META = torch.device("meta")  # here in a GPU's place: a device that is not the CPU


@pytest.fixture(scope="module")
def bundle(store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_untrained(store, tmp_path_factory.mktemp("untrained") / "bundle")


def tensors(model: torch.nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def test_a_model_is_made_on_its_device_and_nothing_is_drawn(tmp_path: Path) -> None:
    pretrained = RT2VLMConfig.paligemma(str(save_paligemma(tmp_path / "model")), tuning=LoRA(rank=2))
    pretrained = replace(pretrained, text=replace(pretrained.text, vocabulary=AddedTokens()))
    for config in (RT1Config.tiny(), RT2Config.tiny(), pretrained):
        before = torch.get_rng_state()
        model = without_weights(config, META)
        assert torch.equal(torch.get_rng_state(), before)
        assert {tensor.device for tensor in tensors(model)} == {META}
        assert not model.training


def test_a_model_is_read_onto_its_device(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def open_here(path: Path, framework: str, device: str) -> object:
        asked.append(device)
        return safe_open(path, framework, device="cpu")  # it knows no meta device

    monkeypatch.setattr(weights, "safe_open", open_here)
    for read in (read_bundle(bundle, META), load_trained(str(bundle), device=META)):
        assert {tensor.device for tensor in tensors(read.model)} == {META}
    assert asked == ["meta", "meta"]
    assert {tensor.device.type for tensor in tensors(read_bundle(bundle).model)} == {"cpu"}


def test_one_tensor_is_held_at_a_time(bundle: Path) -> None:
    held: list[weakref.ref[Tensor]] = []

    def watched() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in each_tensor(bundle / WEIGHTS, None):
            assert not held or held[-1]() is None
            held.append(weakref.ref(tensor))
            yield name, tensor
            del tensor

    model = read_bundle(bundle).model
    fill(model, watched())
    assert len(held) == len(model.state_dict())


def test_weights_of_another_model_are_refused_by_name(bundle: Path) -> None:
    model = read_bundle(bundle).model
    assert isinstance(model, RT1)
    first, *others = model.state_dict().items()
    with pytest.raises(KeyError, match=first[0]):
        fill(model, iter(others))
    with pytest.raises(KeyError, match="surplus"):
        fill(model, [first, *others, ("surplus", torch.zeros(1))])
    with pytest.raises(KeyError, match=first[0]):
        fill(model, [(first[0], torch.zeros(1, 2, 3)), *others])


def test_weights_that_no_model_can_act_with_are_refused_by_name(bundle: Path, tmp_path: Path) -> None:
    model = read_bundle(bundle).model
    (name, first), *others = model.state_dict().items()
    for value, words in ((first * torch.nan, "holds NaN or infinity"), (first.to(torch.int8), "is torch.int8")):
        with pytest.raises(ValueError, match=f"{name} {words}"):
            fill(model, [(name, value), *others])
    shutil.copytree(bundle, tmp_path / "bundle")
    save_file({**load_file(bundle / WEIGHTS), name: first * torch.nan}, tmp_path / "bundle" / WEIGHTS)
    with pytest.raises(ValueError, match=f"{WEIGHTS}: {name} holds NaN"):
        load_trained(str(tmp_path / "bundle"))
