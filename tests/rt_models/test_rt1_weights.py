"""Parity with the official JAX RT-1, every known pitfall noticed, and imports that refuse what they do not know."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rt_models.blocks.batch_norm import BatchNorm, BatchNormConfig
from rt_models.blocks.sequence import RowPlan, attention_mask
from rt_models.rt1 import RT1
from rt_models.rt1_weights import flax_config, from_flax
from rt_models.vision.efficientnet import Conv, Film
from tests.support.flax_files import nested

TOKENS_WITHIN, LOGITS_WITHIN = 1e-5, 1e-4


@dataclass(frozen=True)
class Golden:
    """The imported model, the flax leaves, the inputs, and what the official code computed from them."""

    model: RT1
    leaves: dict[str, np.ndarray]
    image: Tensor
    embedding: Tensor
    tokens: Tensor
    logits: Tensor
    tree: ModuleType


@pytest.fixture(scope="module")
def golden(data_dir: Path) -> Golden:
    tree = load_module(data_dir / "golden" / "rt1_tree.py")
    config, leaves, expected = tree.load("rt1_swiglu")
    model = from_flax(leaves)
    image, embedding = map(torch.from_numpy, tree.inputs(config["batch"], config["steps"], config["seed"]))
    tokens = torch.from_numpy(expected["image_tokens"])
    steps = torch.from_numpy(expected["logits"]).unflatten(1, (config["steps"], -1))
    return Golden(model, leaves, image, embedding, tokens, steps[:, :, 7:-1], tree)


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def token_error(golden: Golden, model: RT1) -> float:
    """On the first frame: no frame's tokens depend on another's."""
    found = model.image_tokens(golden.image[:, :1], golden.embedding[:, :1])
    return float((found - golden.tokens[:, :1]).abs().max())


@torch.no_grad()
def logit_error(golden: Golden, model: RT1) -> float:
    """From the official image tokens: the transformer's part alone."""
    return float((model.action_logits(golden.tokens) - golden.logits).abs().max())


# --- parity ---


@torch.no_grad()
def test_tokens_and_logits_are_those_of_the_official_model(golden: Golden) -> None:
    tokens = golden.model.image_tokens(golden.image, golden.embedding)
    logits = golden.model(golden.image, golden.embedding)
    assert float((tokens - golden.tokens).abs().max()) < TOKENS_WITHIN
    assert float((logits - golden.logits).abs().max()) < LOGITS_WITHIN
    assert float(golden.logits.std()) > 2  # not a vacuous comparison


def each(kind: type[nn.Module], change: Callable[[Any], None]) -> Callable[[RT1], None]:
    def spoil(model: RT1) -> None:
        for module in model.modules():
            if isinstance(module, kind):
                change(module)

    return spoil


def swap_film(film: Film) -> None:
    film.add, film.mult = film.mult, film.add


def transpose_depthwise(conv: Conv) -> None:
    if conv.groups > 1:
        conv.weight.data = conv.weight.data.transpose(2, 3).contiguous()


def padding_rule(rule: str) -> Callable[[RT1], None]:
    return each(Conv, lambda conv: setattr(conv, "rule", rule))


TOKENIZER_PITFALLS: dict[str, Callable[[RT1], None]] = {
    "BatchNorm eps 1e-5": each(BatchNorm, lambda norm: setattr(norm, "config", BatchNormConfig(eps=1e-5))),
    "torchvision padding": padding_rule("torch"),
    "TensorFlow's fixed padding": padding_rule("tf_fixed"),
    "FiLM add and mult swapped": each(Film, swap_film),
    "depthwise kernel transposed": each(Conv, transpose_depthwise),
}


@pytest.mark.parametrize("pitfall", TOKENIZER_PITFALLS)
def test_parity_notices_a_mistake_in_the_tokenizer(golden: Golden, pitfall: str) -> None:
    model = copy.deepcopy(golden.model)
    TOKENIZER_PITFALLS[pitfall](model)
    assert token_error(golden, model) > TOKENS_WITHIN


def film_without_one(film: Film, x: Tensor, embedding: Tensor) -> Tensor:
    return x * film.mult(embedding)[:, :, None, None] + film.add(embedding)[:, :, None, None]


def softmax_over_tokens(scores: Tensor, dim: int) -> Tensor:
    return torch.softmax(scores, dim=2)


def erf_gelu(x: Tensor, approximate: str) -> Tensor:
    return x / 2 * (1 + torch.erf(x / 2**0.5))


PATCHES: dict[str, Any] = {
    "erf GELU": lambda: mock.patch.object(F, "gelu", erf_gelu),
    "hard swish": lambda: mock.patch.object(F, "silu", F.hardswish),
    "FiLM gamma for 1 + gamma": lambda: mock.patch.object(Film, "forward", film_without_one),
    "no ImageNet mean": lambda: mock.patch("rt_models.vision.image_tokenizer.IMAGENET_MEAN", (0.0,) * 3),
    "no ImageNet std": lambda: mock.patch("rt_models.vision.image_tokenizer.IMAGENET_STD", (1.0,) * 3),
    "TokenLearner softmax over tokens": lambda: mock.patch.object(Tensor, "softmax", softmax_over_tokens),
}


@pytest.mark.parametrize("pitfall", PATCHES)
def test_parity_notices_a_wrong_function(golden: Golden, pitfall: str) -> None:
    with PATCHES[pitfall]():
        assert token_error(golden, golden.model) > TOKENS_WITHIN


def with_mask(model: RT1, mask: np.ndarray) -> None:
    """Let the model attend by any mask: the TensorFlow plan computes every position but the unread last one."""
    plan = RowPlan(model.config.layout(), "tf", "all")
    rows, keys = plan.rows_R.numpy(), plan.rows_R[plan.keys_S].numpy()
    plan.mask_RS = torch.from_numpy(mask[np.ix_(rows, keys)])
    model.transformer.plan_all = plan


def tf_mask(model: RT1) -> None:
    with_mask(model, attention_mask(model.config.layout(), "tf"))


def causal_mask(model: RT1) -> None:
    size = model.config.layout().size
    with_mask(model, np.tril(np.ones((size, size), bool)))


def no_scale(model: RT1) -> None:
    for block in model.transformer.blocks:
        for parameter in block.attention.query.parameters():
            parameter.data *= 128**0.5


def no_position_bias(model: RT1) -> None:
    model.transformer.position.bias.data.zero_()


def gate_and_swish_swapped(model: RT1) -> None:
    for block in model.transformer.blocks:
        block.feed_forward.gate, block.feed_forward.swish = block.feed_forward.swish, block.feed_forward.gate


TRANSFORMER_PITFALLS: dict[str, Callable[[RT1], None]] = {
    "TensorFlow mask": tf_mask,
    "plain causal mask": causal_mask,
    "LayerNorm eps 1e-5": each(nn.LayerNorm, lambda norm: setattr(norm, "eps", 1e-5)),
    "attention without its scale": no_scale,
    "no bias beside the position table": no_position_bias,
    "swish on the gate": gate_and_swish_swapped,
}


@pytest.mark.parametrize("pitfall", TRANSFORMER_PITFALLS)
def test_parity_notices_a_mistake_in_the_transformer(golden: Golden, pitfall: str) -> None:
    assert logit_error(golden, golden.model) < LOGITS_WITHIN
    model = copy.deepcopy(golden.model)
    TRANSFORMER_PITFALLS[pitfall](model)
    assert logit_error(golden, model) > LOGITS_WITHIN


# --- other trees ---


def reshaped(golden: Golden, changes: dict[str, tuple[int, ...] | None]) -> dict[str, np.ndarray]:
    """A tree whose leaves under a path have another shape, drawn as the golden tree's are; None leaves them out."""
    leaves = dict(golden.leaves)
    for ending, shape in changes.items():
        for path in [path for path in leaves if path.endswith(ending)]:
            del leaves[path]
            if shape is not None:
                leaves[path] = golden.tree.leaf(path, shape, 3)
    return leaves


def test_a_nested_tree_is_the_same_model(golden: Golden) -> None:
    model = from_flax(nested(golden.leaves))
    assert model.config == golden.model.config
    for name, value in golden.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_a_tree_flattened_to_tuples_of_any_float_is_the_same_model(golden: Golden) -> None:
    halves = {tuple(path.split("/")): value.astype(np.float16) for path, value in golden.leaves.items()}
    state = from_flax(halves).state_dict()
    for name, value in golden.model.state_dict().items():
        assert state[name].dtype == torch.float32 and torch.equal(state[name], value.half().float()), name


def test_a_linear_tree_is_recognised(golden: Golden) -> None:
    linear = {
        path: value
        for path, value in golden.leaves.items()
        if "TransformerBlock_" not in path or not path.endswith(("/Dense_1/kernel", "/Dense_2/kernel"))
    }
    model = from_flax(linear)
    assert model.config.transformer.feed_forward == "linear" and not model.training
    block = golden.leaves["params/Transformer_0/TransformerBlock_3/Dense_0/kernel"]
    np.testing.assert_array_equal(model.transformer.blocks[3].feed_forward.out.weight.detach(), block.T)


def test_an_rt1x_tree_is_recognised_from_its_shapes(golden: Golden) -> None:
    attention = {f"{part}/kernel": (512, 8, 256) for part in ("query", "key", "value")}
    attention |= {f"{part}/bias": (8, 256) for part in ("query", "key", "value")}
    leaves = reshaped(
        golden,
        attention
        | {
            "MultiHeadDotProductAttention_0/out/kernel": (8, 256, 512),
            "token_masking/Dense_1/kernel": (64, 81),
            "token_masking/Dense_1/bias": (81,),
            "Transformer_0/Dense_1/kernel": (15 * 92, 512),
            "Transformer_0/Dense_2/kernel": (512, 512),
            "Transformer_0/Dense_2/bias": (512,),
        },
    )
    model = from_flax(leaves)
    config = model.config
    assert (config.num_steps, config.num_image_tokens, config.bins, config.world_vector_limit) == (15, 81, 512, 2.0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 56_896_809
    assert from_flax(leaves, world_vector_limit=1.75).spec.bounds()[1][1] == 1.75
    with pytest.raises(ValueError, match=r"world_vector_x: needs finite low < high, got \[-0.0, 0.0\]"):
        from_flax(leaves, world_vector_limit=0.0)


def test_a_tree_with_previous_actions_gets_the_mask_that_lets_images_see_them(golden: Golden) -> None:
    leaves = golden.leaves | {
        "params/Dense_0/kernel": np.random.randn(256, 512).astype(np.float32),
        "params/Dense_0/bias": np.zeros(512, np.float32),
    }
    config = flax_config(leaves)
    assert (config.previous_actions, config.transformer.mask) == ("one_hot", "tf")
    assert torch.equal(from_flax(leaves).action_embedding.weight, torch.from_numpy(leaves["params/Dense_0/kernel"]))


def test_missing_and_left_over_leaves_are_listed(golden: Golden) -> None:
    leaves = dict(golden.leaves)
    value = leaves.pop("params/image_tokenizer/Conv_0/kernel")
    with pytest.raises(ValueError, match="params/image_tokenizer/Conv_0/kernel is missing"):
        from_flax(leaves)
    leaves["params/image_tokenizer/Conv_0/kernel"] = value
    del leaves["batch_stats/image_tokenizer/EfficientNetWithFilm_0/Stem_0/batch_normalization/var"]
    leaves["params/classifier/kernel"] = value
    with pytest.raises(ValueError, match=r"missing leaves: batch_stats/.*Stem_0.*/var; left over: params/classifier"):
        from_flax(leaves)


def test_a_leaf_of_another_shape_is_named(golden: Golden) -> None:
    with pytest.raises(ValueError, match=r"TransformerBlock_5/LayerNorm_0/scale \(511,\) where the model has \(512,\)"):
        from_flax(reshaped(golden, {"TransformerBlock_5/LayerNorm_0/scale": (511,)}))


ATTENTION = "params/Transformer_0/TransformerBlock_2/MultiHeadDotProductAttention_0"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (f"{ATTENTION}/key/kernel", np.zeros((512, 4, 256)), r"\(512, 4, 256\), by the others .* \(512, 8, 128\)"),
        (f"{ATTENTION}/value/bias", np.zeros((128, 8)), r"has shape \(128, 8\), by the others .* \(8, 128\)"),
        (f"{ATTENTION}/out/kernel", np.zeros((128, 8, 512)), r"out/kernel has shape \(128, 8, 512\)"),
        ("params/Transformer_0/Dense_2/kernel", np.zeros(512), r"has shape \(512,\), an RT-1's has 2 axes"),
        ("params/image_tokenizer/EfficientNetWithFilm_0/Stem_0/conv2d/kernel", np.zeros((3, 3)), r"Stem_0.* \(3, 3\)"),
        ("params/image_tokenizer/FilmConditioning_0/Dense_0/bias", "lost", "FilmConditioning_0/Dense_0/bias, a str"),
        (
            "params/Transformer_0/Dense_0/bias",
            np.full(512, np.nan),
            "NaN or infinity in params/Transformer_0/Dense_0/b",
        ),
        ("params/Transformer_0/Dense_0/bias", None, "Dense_0/bias"),
    ],
)
def test_a_leaf_that_is_no_such_weight_is_named(golden: Golden, path: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_flax(golden.leaves | {path: value})


def test_what_is_no_tree_is_refused(golden: Golden) -> None:
    with pytest.raises(ValueError, match="expected a mapping with 'params' and 'batch_stats', got list"):
        from_flax([golden.leaves])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is missing; is this a tree of RT-1 with 'params' and 'batch_stats'"):
        from_flax(nested(golden.leaves)["params"])


def test_a_position_table_that_is_no_whole_number_of_steps_is_refused(golden: Golden) -> None:
    with pytest.raises(ValueError, match="40 positions are not a whole number of steps of 19 tokens"):
        from_flax(reshaped(golden, {"Transformer_0/Dense_1/kernel": (40, 512)}))
