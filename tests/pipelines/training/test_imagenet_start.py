"""`rtp train --init imagenet:FILE`: weights in, and what does not fit is refused before anything starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines.catalogue import load_recipe
from pipelines.cli import main
from pipelines.publishing.trained_model import load_trained
from pipelines.training.imagenet_start import load_into_backbone, require_imagenet_usable
from pipelines.training.initial_weights import located, model_factory
from rt_models.rt1 import RT1Config
from rt_models.vision.vit import ViTConfig
from tests.support.imagenet_nets import Timm, Torchvision
from tests.support.rt1_windows import stirred


def saved(folder: Path, kind: str) -> tuple[str, dict[str, torch.Tensor]]:
    """(the argument of --init, the state dict in that file)"""
    state = stirred(Torchvision() if kind == "torchvision.pth" else Timm()).state_dict()
    file = folder / kind
    torch.save(state, file) if file.suffix == ".pth" else save_file(state, file)
    return f"imagenet:{file}", state


@pytest.mark.parametrize(
    ("kind", "stem"), [("torchvision.pth", "features.0.0.weight"), ("timm.safetensors", "conv_stem.weight")]
)
def test_the_backbone_is_theirs_and_the_rest_is_fresh(kind: str, stem: str, tmp_path: Path) -> None:
    experiment, (source, state) = load_recipe("rt1_tiny"), saved(tmp_path, kind)
    torch.manual_seed(0)
    fresh = model_factory(experiment, None)().state_dict()
    torch.manual_seed(0)
    started = model_factory(experiment, source)().state_dict()
    assert torch.equal(started["tokenizer.backbone.stem.weight"], state[stem])
    assert torch.equal(started["transformer.output.weight"], fresh["transformer.output.weight"])
    films = [name for name in started if ".film." in name]
    assert films and all(torch.equal(started[name], fresh[name]) for name in films)


def test_each_camera_s_own_backbone_starts_from_them(tmp_path: Path) -> None:
    experiment, (source, state) = load_recipe("rt1_tiny"), saved(tmp_path, "timm.safetensors")
    two = replace(experiment.model, cameras=("image", "wrist"), tokenizers="separate")  # type: ignore[call-arg]
    started = model_factory(replace(experiment, model=two), source)().state_dict()
    for tokenizer in ("tokenizer", "other_tokenizers.wrist"):
        assert torch.equal(started[f"{tokenizer}.backbone.stem.weight"], state["conv_stem.weight"]), tokenizer


def test_rtp_train_starts_from_them(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, state = saved(tmp_path, "torchvision.pth")
    flags = ["--loop.steps", "1", "--optimizer.lr", "0", "--launch", "InProcess", "--engine", "TorchEngineConfig"]
    words = ["train", "rt1_tiny", "--data", store, "--output", "run", "--init", "imagenet:torchvision.pth"]
    assert main([*words, *flags]) == 0
    trained = load_trained(str(tmp_path / "run")).model.state_dict()
    assert torch.equal(trained["tokenizer.backbone.stem.weight"], state["features.0.0.weight"])


def test_a_model_without_an_efficientnet_is_told_the_remedy(tmp_path: Path) -> None:
    source, _ = saved(tmp_path, "torchvision.pth")
    tiny = load_recipe("rt1_tiny").model
    assert isinstance(tiny, RT1Config)
    vit = replace(tiny, backbone=ViTConfig(patch_size=8, width=16, num_layers=1, num_heads=2, hidden=16))
    for config, name in ((load_recipe("rt2_tiny").model, "RT2Config"), (vit, "RT1Config")):
        with pytest.raises(ValueError, match=rf"of an EfficientNet, which {name} does not have here: leave --init out"):
            require_imagenet_usable(source, config)


def test_other_sizes_are_refused_before_a_worker_starts(tmp_path: Path) -> None:
    source, _ = saved(tmp_path, "torchvision.pth")
    with pytest.raises(ValueError, match=r"torchvision\.pth does not fit model\.backbone .*: give an efficientnet_b3"):
        require_imagenet_usable(source, RT1Config())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("cut.safetensors", b"abc", r"cannot be read as weights .*: give a state dict alone"),
        ("cut.pth", b"abc", r"cannot be read as weights .*: give a state dict alone"),
        ("none.pth", None, r"there is no such file"),
    ],
)
def test_a_file_that_is_none_is_one_sentence(name: str, content: bytes | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        load_into_backbone(load_recipe("rt1_tiny").model.build(), f"imagenet:{tmp_path / name}")


@pytest.mark.parametrize("content", [Path("/x"), [1.0], {"epoch": 3}])
def test_a_file_with_code_or_without_tensors_is_not_run(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"cannot be read as weights|holds no state dict") as refused:
        load_into_backbone(load_recipe("rt1_tiny").model.build(), f"imagenet:{tmp_path / 'other.pth'}")
    assert "weights_only" not in str(refused.value)  # torch advises to turn that off


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    torch.save({"whole": torch.ones(2), "broken": torch.tensor([1.0, torch.nan])}, tmp_path / "nan.pth")
    with pytest.raises(ValueError, match=r"nan\.pth is damaged: broken holds NaN or infinity"):
        load_into_backbone(load_recipe("rt1_tiny").model.build(), f"imagenet:{tmp_path / 'nan.pth'}")


def test_a_path_is_made_absolute_behind_its_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert located("imagenet:b3.pth") == f"imagenet:{tmp_path}/b3.pth"
    assert located("runs/first") == f"{tmp_path}/runs/first"
    assert located("models:/arm/3") == "models:/arm/3"
