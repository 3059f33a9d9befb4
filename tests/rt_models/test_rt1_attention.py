"""Where an RT-1 looks: the maps are those that it computes with."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from einops import rearrange

from rt_models.blocks.transformer import Attention
from rt_models.rt1 import RT1Config
from rt_models.rt1_attention import TOKEN_LEARNER, attention_weights, frame_attention
from rt_models.spec import StateInput
from tests.support.rt1_windows import make_batch

TINY = RT1Config.tiny()
SIDE = TINY.backbone.grid(TINY.input.image_size)
STATE = StateInput(names=("x", "y"))


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, token_learner=False, num_image_tokens=SIDE**2),
        replace(TINY, cameras=("image", "wrist"), state=STATE),
        replace(TINY, cameras=("image", "wrist"), tokenizers="separate"),
    ],
)
def test_every_map_is_a_share_of_the_frame(config: RT1Config) -> None:
    torch.manual_seed(0)
    model = config.build().eval()
    maps = frame_attention(model, make_batch(config, [0, 3, 5]))
    names = [f"layer {number}" for number in (1, 2)]
    assert list(maps) == ([TOKEN_LEARNER] if config.token_learner else []) + names
    for each in maps.values():
        assert each.shape == (3, SIDE, SIDE) and (each >= 0).all()
        torch.testing.assert_close(each.sum(dim=(1, 2)), torch.ones(3))


def test_the_weights_are_those_that_the_attention_computes_with() -> None:
    torch.manual_seed(0)
    attention = TINY.transformer.build(TINY.layout(), in_width=16, bins=4).blocks[0].get_submodule("attention").eval()
    assert isinstance(attention, Attention)
    queries, keys = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    mask = torch.rand(2, 1, 5, 7) < 0.6
    mask[..., 0] = True
    value = rearrange(attention.value(keys), "b n (h k) -> b h n k", h=attention.num_heads)
    weighted = attention_weights(attention, queries, keys, mask) @ value
    out = attention.out(rearrange(weighted, "b h n k -> b n (h k)"))
    torch.testing.assert_close(out, attention(queries, keys, mask))


def test_a_token_learner_that_takes_one_position_shows_it() -> None:
    """TokenLearner's scores are made to follow one feature, and one position of one frame has it."""
    model = TINY.build().eval()
    learner = model.tokenizer.learner
    assert learner is not None
    place = 1

    def one_position(module: torch.nn.Module, inputs: object, scores_NPK: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores_NPK, -50.0)
        forced[:, place] = 50.0
        return forced

    with_hook = learner.scores.register_forward_hook(one_position)
    maps = frame_attention(model, make_batch(TINY, [4]))
    with_hook.remove()
    for each in maps.values():
        assert each.flatten(1).argmax(dim=1).item() == place and each.max() > 0.999


def test_the_frame_of_each_window_is_its_last() -> None:
    """Two windows of one batch that share frames have the maps of each window alone."""
    torch.manual_seed(0)
    model = TINY.build().eval()
    together = frame_attention(model, make_batch(TINY, [2, 4]))
    for number, end in enumerate((2, 4)):
        alone = frame_attention(model, make_batch(TINY, [end]))
        for name, each in alone.items():
            torch.testing.assert_close(together[name][number], each[0], rtol=1e-4, atol=1e-5)
