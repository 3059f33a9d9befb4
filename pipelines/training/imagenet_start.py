"""`--init imagenet:FILE`: the EfficientNet of an RT-1, of each of its cameras where they have their own, starts from
ImageNet weights, all else is fresh (arXiv 2212.06817, section 5.1).

FILE is a state dict of torchvision's or timm's `efficientnet_b3` (.pth, .pt or .safetensors) that the user has fetched.
"""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipelines.families.models import Model, ModelConfig
from pipelines.publishing.weights import is_finite
from rt_models.rt1_weights import load_imagenet
from rt_models.vision.efficientnet import EfficientNetConfig

IMAGENET = "imagenet:"


def require_imagenet_usable(source: str, config: ModelConfig) -> None:
    """Raise FileNotFoundError or ValueError unless the weights of `source` fit the model's backbone, name by name."""
    backbone = getattr(config, "backbone", None)
    if not isinstance(backbone, EfficientNetConfig):
        raise ValueError(
            f"--init {source}: ImageNet weights are of an EfficientNet, which {type(config).__name__} does not have "
            f"here: leave --init out, or choose an RT-1 recipe with model.backbone EfficientNetConfig"
        )
    with torch.random.fork_rng(devices=[]):
        model = config.build()
    load_into_backbone(model, source)


def load_into_backbone(model: Model, source: str) -> None:
    """Copy the weights of `source` into the backbone, that of each camera where they have their own. Raises as
    `require_imagenet_usable` does."""
    path = source.removeprefix(IMAGENET)
    state = _state_dict(Path(path))
    try:
        for tokenizer, _ in model.cameras_of_tokenizers():  # type: ignore[union-attr]
            load_imagenet(tokenizer.backbone, state, model.config.backbone)  # type: ignore[union-attr,arg-type]
    except ValueError as error:
        raise ValueError(
            f"{path} does not fit model.backbone ({error}): give an efficientnet_b3 of torchvision or timm, and a "
            f"model with its sizes"
        ) from error


def _state_dict(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"--init {IMAGENET}{path}: there is no such file; fetch an efficientnet_b3 state dict")
    try:
        is_safetensors = path.suffix == ".safetensors"
        state: object = load_file(path) if is_safetensors else torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # torch's own words advise to run what the file holds
        raise ValueError(
            f"{path} cannot be read as weights (it is damaged, or holds code beside tensors, which is never run): give "
            f"a state dict alone"
        ) from error
    except Exception as error:  # reading what is no pickle raises whatever its bytes lead to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be read as weights ({reason}): give a state dict alone") from error
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict: save model.state_dict() of efficientnet_b3")
    broken = [name for name, value in state.items() if not is_finite(value)]
    if broken:
        raise ValueError(f"{path} is damaged: {broken[0]} holds NaN or infinity; fetch it again")
    return state
