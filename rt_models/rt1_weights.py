"""Weights made elsewhere: the official JAX RT-1 and RT-1-X (flax trees), and ImageNet EfficientNet-B3 (state dicts).

One table says which of their leaves is which of ours and how its axes turn; theirs are named in
google-deepmind/open_x_embodiment 9eeb68b9 `models/rt1.py`. Every leaf on both sides must be used exactly once; what is
left over or missing is an error that lists it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from rt_models.action_space import rt1_action_spec
from rt_models.blocks.transformer import TransformerConfig
from rt_models.rt1 import RT1, RT1Config
from rt_models.vision.efficientnet import EfficientNet, EfficientNetConfig

_BACKBONE = "image_tokenizer/EfficientNetWithFilm_0"
_LEARNER = "image_tokenizer/TokenLearnerModuleV11_0"
_BLOCKS = "params/Transformer_0/TransformerBlock_"
_LISTED = 8  # names shown of a list of leaves in an error


@dataclass(frozen=True, kw_only=True)
class _Leaf:
    """One of our state dict's entries, the foreign leaf it comes from, and the change of axes."""

    ours: str
    theirs: str
    turned: Callable[[np.ndarray], np.ndarray] = np.asarray
    shape: tuple[int, ...] | None = None
    """Of the foreign leaf, where ours would not betray another: heads and their width are one axis here."""


# --- flax ---


def from_flax(variables: Mapping[str, object], *, world_vector_limit: float | None = None) -> RT1:
    """An RT1 in evaluation mode with the weights of a flax variables tree: nested, or flat with keys such as
    "params/a/kernel" or ("params", "a", "kernel").

    The configuration follows from the shapes; a flax tree means SAME padding and the JAX mask, except where it embeds
    previous actions, which only image tokens of later steps see: the TensorFlow mask.
    `world_vector_limit` is not in the tree: by default 2 for 512 bins (RT-1-X), else 1. Raises ValueError for leaves
    that are missing, left over, of another shape or not finite.
    """
    if not isinstance(variables, Mapping):
        raise ValueError(
            f"flax tree: expected a mapping with 'params' and 'batch_stats', got {type(variables).__name__}"
        )
    leaves = dict(_flat(variables))
    config = flax_config(leaves, world_vector_limit=world_vector_limit)
    with torch.device("meta"):
        model = config.build()
    table = list(_flax_leaves(config))
    _require_equal({leaf.theirs for leaf in table}, set(leaves), "flax tree")
    state = {leaf.ours: _turned(leaf, leaves[leaf.theirs]) for leaf in table}
    _require_shapes(model.state_dict(), state, {leaf.ours: leaf.theirs for leaf in table})
    broken = [leaf.theirs for leaf in table if not state[leaf.ours].isfinite().all()]
    if broken:
        raise ValueError(f"flax tree: NaN or infinity in {_listed(broken)}")
    model.load_state_dict(state, assign=True)
    return model.eval()


def flax_config(leaves: Mapping[str, ArrayLike], *, world_vector_limit: float | None = None) -> RT1Config:
    """The configuration that a flat flax tree's shapes imply."""

    def shape(path: str, axes: int = 2) -> tuple[int, ...]:
        if path not in leaves:
            raise ValueError(f"flax tree: {path} is missing; is this a tree of RT-1 with 'params' and 'batch_stats'?")
        dimensions = tuple(np.shape(leaves[path]))
        if len(dimensions) != axes:
            raise ValueError(f"flax tree: {path} has shape {dimensions}, an RT-1's has {axes} axes")
        return dimensions

    block = f"{_BLOCKS}0"
    width, heads, key_size = shape(f"{block}/MultiHeadDotProductAttention_0/query/kernel", axes=3)
    positions = shape("params/Transformer_0/Dense_1/kernel")[0]
    bins = shape("params/Transformer_0/Dense_2/kernel")[1]
    learner = any(path.startswith(f"params/{_LEARNER}/") for path in leaves)
    one_hot = "params/Dense_0/kernel" in leaves
    backbone = EfficientNetConfig()
    tokens = shape(f"params/{_LEARNER}/token_masking/Dense_1/bias", axes=1)[0] if learner else backbone.grid(300) ** 2
    step_size = tokens + rt1_action_spec().size
    if positions % step_size:
        raise ValueError(f"flax tree: {positions} positions are not a whole number of steps of {step_size} tokens")
    return RT1Config(
        backbone=backbone,
        transformer=TransformerConfig(
            num_layers=len({path.split("/")[2] for path in leaves if path.startswith(_BLOCKS)}),
            num_heads=heads,
            key_size=key_size,
            width=width,
            hidden=shape(f"{block}/Dense_0/kernel")[1],
            feed_forward="swiglu" if f"{block}/Dense_1/kernel" in leaves else "linear",
            mask="tf" if one_hot else "jax",
        ),
        num_steps=positions // step_size,
        num_image_tokens=tokens,
        token_learner=learner,
        feature_width=shape("params/image_tokenizer/Conv_0/kernel", axes=4)[-1],
        previous_actions="one_hot" if one_hot else "zeros",
        bins=bins,
        world_vector_limit=(2.0 if bins == 512 else 1.0) if world_vector_limit is None else world_vector_limit,
    )


def _flax_leaves(config: RT1Config) -> Iterator[_Leaf]:
    assert isinstance(config.backbone, EfficientNetConfig)
    yield from _flax_backbone(config.backbone)
    yield _Leaf(ours="tokenizer.projection.weight", theirs="params/image_tokenizer/Conv_0/kernel", turned=_conv)
    yield from _film("tokenizer.film", "image_tokenizer/FilmConditioning_0")
    if config.token_learner:
        yield from _norm("tokenizer.learner.norm", f"{_LEARNER}/LayerNorm_0")
        yield from _dense("tokenizer.learner.hidden", f"{_LEARNER}/token_masking/Dense_0")
        yield from _dense("tokenizer.learner.scores", f"{_LEARNER}/token_masking/Dense_1")
    if config.previous_actions == "one_hot":
        yield from _table("action_embedding", "Dense_0")
    yield from _dense("transformer.token_projection", "Transformer_0/Dense_0")
    yield from _table("transformer.position", "Transformer_0/Dense_1")
    yield from _dense("transformer.output", "Transformer_0/Dense_2")
    for number in range(config.transformer.num_layers):
        yield from _flax_layer(config.transformer, number)


def _flax_backbone(config: EfficientNetConfig) -> Iterator[_Leaf]:
    ours = "tokenizer.backbone"
    yield _Leaf(ours=f"{ours}.stem.weight", theirs=f"params/{_BACKBONE}/Stem_0/conv2d/kernel", turned=_conv)
    yield from _batch_norm(f"{ours}.stem_norm", f"{_BACKBONE}/Stem_0/batch_normalization")
    expansions = [stage.expansion for stage in config.stages for _ in range(stage.num_blocks)]
    for number, expansion in enumerate(expansions):
        yield from _flax_mbconv(f"{ours}.blocks.{number}.mbconv", f"{_BACKBONE}/MBConvBlock_{number}", expansion)
        yield from _film(f"{ours}.blocks.{number}.film", f"{_BACKBONE}/FilmConditioning_{number}")
    yield _Leaf(ours=f"{ours}.head.weight", theirs=f"params/{_BACKBONE}/Head_0/conv2d/kernel", turned=_conv)
    yield from _batch_norm(f"{ours}.head_norm", f"{_BACKBONE}/Head_0/batch_normalization")


def _flax_mbconv(ours: str, theirs: str, expansion: int) -> Iterator[_Leaf]:
    norms = ["depthwise_norm", "project_norm"]  # numbered in the order of creation
    if expansion > 1:
        norms = ["expand_norm", *norms]
        yield _Leaf(ours=f"{ours}.expand.weight", theirs=f"params/{theirs}/expand_conv2d_0/kernel", turned=_conv)
    for number, norm in enumerate(norms):
        yield from _batch_norm(f"{ours}.{norm}", f"{theirs}/batch_normalization_{number}")
    depthwise = f"params/{theirs}/depthwise_conv2d/depthwise_kernel"
    yield _Leaf(ours=f"{ours}.depthwise.weight", theirs=depthwise, turned=_depthwise)
    yield _Leaf(ours=f"{ours}.project.weight", theirs=f"params/{theirs}/project_conv2d_0/kernel", turned=_conv)
    for gate in ("reduce", "expand"):
        conv = f"params/{theirs}/SqueezeExcite_0/{gate}_conv2d_0"
        yield _Leaf(ours=f"{ours}.gate.{gate}.weight", theirs=f"{conv}/kernel", turned=_conv)
        yield _Leaf(ours=f"{ours}.gate.{gate}.bias", theirs=f"{conv}/bias")


def _flax_layer(config: TransformerConfig, number: int) -> Iterator[_Leaf]:
    ours, theirs = f"transformer.blocks.{number}", f"Transformer_0/TransformerBlock_{number}"
    yield from _norm(f"{ours}.attention_norm", f"{theirs}/LayerNorm_0")
    yield from _norm(f"{ours}.feed_forward_norm", f"{theirs}/LayerNorm_1")
    heads = (config.num_heads, config.key_size)
    width = (config.width,)
    for part in ("query", "key", "value", "out"):
        path = f"params/{theirs}/MultiHeadDotProductAttention_0/{part}"
        weight = f"{ours}.attention.{part}"
        turned, inputs, outputs = (_heads_out, heads, width) if part == "out" else (_heads_in, width, heads)
        yield _Leaf(ours=f"{weight}.weight", theirs=f"{path}/kernel", turned=turned, shape=inputs + outputs)
        yield _Leaf(ours=f"{weight}.bias", theirs=f"{path}/bias", turned=np.ravel, shape=outputs)
    dense = ("swish", "gate", "out") if config.feed_forward == "swiglu" else ("out",)
    for place, name in enumerate(dense):
        kernel = f"params/{theirs}/Dense_{place}/kernel"
        yield _Leaf(ours=f"{ours}.feed_forward.{name}.weight", theirs=kernel, turned=np.transpose)


def _batch_norm(ours: str, theirs: str) -> Iterator[_Leaf]:
    yield from _norm(ours, theirs)
    yield _Leaf(ours=f"{ours}.running_mean", theirs=f"batch_stats/{theirs}/mean")
    yield _Leaf(ours=f"{ours}.running_var", theirs=f"batch_stats/{theirs}/var")


def _norm(ours: str, theirs: str) -> Iterator[_Leaf]:
    yield _Leaf(ours=f"{ours}.weight", theirs=f"params/{theirs}/scale")
    yield _Leaf(ours=f"{ours}.bias", theirs=f"params/{theirs}/bias")


def _dense(ours: str, theirs: str) -> Iterator[_Leaf]:
    yield _Leaf(ours=f"{ours}.weight", theirs=f"params/{theirs}/kernel", turned=np.transpose)
    yield _Leaf(ours=f"{ours}.bias", theirs=f"params/{theirs}/bias")


def _table(ours: str, theirs: str) -> Iterator[_Leaf]:
    yield _Leaf(ours=f"{ours}.weight", theirs=f"params/{theirs}/kernel")
    yield _Leaf(ours=f"{ours}.bias", theirs=f"params/{theirs}/bias")


def _film(ours: str, theirs: str) -> Iterator[_Leaf]:
    yield from _dense(f"{ours}.add", f"{theirs}/Dense_0")
    yield from _dense(f"{ours}.mult", f"{theirs}/Dense_1")


def _turned(leaf: _Leaf, value: ArrayLike) -> Tensor:
    """float32 in our axes. Raises ValueError naming the leaf."""
    if leaf.shape is not None and np.shape(value) != leaf.shape:
        raise ValueError(
            f"flax tree: {leaf.theirs} has shape {np.shape(value)}, by the others it should be {leaf.shape}"
        )
    try:
        return torch.tensor(leaf.turned(np.asarray(value, np.float32)))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"flax tree: {leaf.theirs}, a {type(value).__name__} of shape {np.shape(value)}, is no such weight: {error}"
        ) from error


def _conv(kernel_HWIO: np.ndarray) -> np.ndarray:
    return kernel_HWIO.transpose(3, 2, 0, 1)


def _depthwise(kernel_HWC1: np.ndarray) -> np.ndarray:
    return kernel_HWC1.transpose(2, 3, 0, 1)


def _heads_in(kernel: np.ndarray) -> np.ndarray:
    """(in, heads, key) -> (heads * key, in)"""
    return kernel.reshape(kernel.shape[0], -1).T


def _heads_out(kernel: np.ndarray) -> np.ndarray:
    """(heads, key, out) -> (out, heads * key)"""
    return kernel.reshape(-1, kernel.shape[-1]).T


def _flat(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = "/".join(key) if isinstance(key, tuple) else key
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


# --- ImageNet EfficientNet-B3 ---


def load_imagenet(backbone: EfficientNet, state_dict: Mapping[str, Tensor], config: EfficientNetConfig) -> None:
    """Copy a torchvision or timm `efficientnet_b3` state dict into the backbone; FiLM and a mask channel stay at zero.

    The classifier is left out. torchvision's and timm's own weights were trained with padding "torch" and BatchNorm
    eps 1e-5, timm's `tf_` ones with "same" and 1e-3: a `config` with another rule starts from features that are
    shifted by up to a pixel at every strided convolution. Fine-tuning mends that; exact features need the same rule.
    """
    theirs = {name: value for name, value in state_dict.items() if "classifier" not in name}
    theirs = {name: value for name, value in theirs.items() if not name.endswith("num_batches_tracked")}
    names = dict(_torchvision_names(config) if "features.0.0.weight" in theirs else _timm_names(config))
    own = backbone.state_dict()
    table = {ours: source for prefix, source in names.items() for ours, source in _tensors(own, prefix, source)}
    _require_equal(set(table.values()), set(theirs), "EfficientNet-B3 state dict")
    state = {ours: theirs[source] for ours, source in table.items()}
    state["stem.weight"] = _with_zero_channels(state["stem.weight"], own["stem.weight"].shape[1])
    _require_shapes(own, state, table)
    backbone.load_state_dict(own | state)


def _tensors(own: Mapping[str, Tensor], prefix: str, source: str) -> Iterator[tuple[str, str]]:
    for name in own:
        if name.startswith(prefix + "."):
            yield name, source + name[len(prefix) :]


def _with_zero_channels(weight_OIHW: Tensor, in_channels: int) -> Tensor:
    zeros = weight_OIHW.new_zeros(len(weight_OIHW), max(0, in_channels - 3), *weight_OIHW.shape[2:])
    return torch.cat([weight_OIHW, zeros], dim=1)


def _torchvision_names(config: EfficientNetConfig) -> Iterator[tuple[str, str]]:
    """(our module, torchvision's module)"""
    yield from (("stem", "features.0.0"), ("stem_norm", "features.0.1"))
    for number, (stage, place, expansion) in enumerate(_places(config)):
        parts = ["expand"] * (expansion > 1) + ["depthwise", "gate", "project"]
        for layer, part in enumerate(parts):
            ours, theirs = f"blocks.{number}.mbconv", f"features.{stage + 1}.{place}.block.{layer}"
            if part == "gate":
                yield from ((f"{ours}.gate.reduce", f"{theirs}.fc1"), (f"{ours}.gate.expand", f"{theirs}.fc2"))
            else:
                yield from ((f"{ours}.{part}", f"{theirs}.0"), (f"{ours}.{part}_norm", f"{theirs}.1"))
    last = len(config.stages) + 1
    yield from (("head", f"features.{last}.0"), ("head_norm", f"features.{last}.1"))


def _timm_names(config: EfficientNetConfig) -> Iterator[tuple[str, str]]:
    """(our module, timm's module)"""
    yield from (("stem", "conv_stem"), ("stem_norm", "bn1"), ("head", "conv_head"), ("head_norm", "bn2"))
    for number, (stage, place, expansion) in enumerate(_places(config)):
        ours, theirs = f"blocks.{number}.mbconv", f"blocks.{stage}.{place}"
        yield from (
            (f"{ours}.gate.reduce", f"{theirs}.se.conv_reduce"),
            (f"{ours}.gate.expand", f"{theirs}.se.conv_expand"),
        )
        parts = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
        if expansion == 1:
            parts = {"depthwise": "conv_dw", "project": "conv_pw"}
        for layer, (part, name) in enumerate(parts.items(), start=1):
            yield from ((f"{ours}.{part}", f"{theirs}.{name}"), (f"{ours}.{part}_norm", f"{theirs}.bn{layer}"))


def _places(config: EfficientNetConfig) -> Iterator[tuple[int, int, int]]:
    """(stage, block within it, expansion) of each block."""
    for number, stage in enumerate(config.stages):
        for place in range(stage.num_blocks):
            yield number, place, stage.expansion


# --- errors ---


def _require_equal(expected: set[str], got: set[str], where: str) -> None:
    missing, left_over = sorted(expected - got), sorted(got - expected)
    if missing or left_over:
        raise ValueError(f"{where}: missing leaves: {_listed(missing)}; left over: {_listed(left_over)}")


def _require_shapes(own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: Mapping[str, str]) -> None:
    wrong = [
        f"{source[name]} {tuple(value.shape)} where the model has {tuple(own[name].shape)}"
        for name, value in state.items()
        if value.shape != own[name].shape
    ]
    if wrong:
        raise ValueError(f"shapes differ (turned to torch's axes): {_listed(wrong)}")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more if names else "none"
