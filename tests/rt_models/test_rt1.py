"""RT-1 whole: sizes, the loss, padding, shared frames, the independence from the number of ranks, and its options."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rt_models.blocks.batch_norm import BatchNormConfig
from rt_models.rt1 import RT1, ComputeConfig, RT1Config
from rt_models.vision.efficientnet import EfficientNetConfig
from rt_models.vision.token_learner import TokenLearner
from rt_models.vision.vit import ViTConfig
from tests.support.ranks import fork_ranks
from tests.support.rt1_windows import make_batch, stirred

TINY = RT1Config.tiny()
assert isinstance(TINY.backbone, EfficientNetConfig)
FROZEN = replace(TINY, backbone=replace(TINY.backbone, batch_norm=BatchNormConfig(statistics="frozen")))
VIT = replace(TINY, backbone=ViTConfig(patch_size=4, width=16, num_layers=2, num_heads=2, hidden=32))
TF_MASK = replace(TINY, transformer=replace(TINY.transformer, mask="tf", feed_forward="linear_bias"))
ONE_HOT = replace(TF_MASK, previous_actions="one_hot")


def images(config: RT1Config, batch: int = 2) -> tuple[Tensor, Tensor]:
    size = config.input.image_size
    image = torch.rand(batch, config.num_steps, size, size, config.num_channels(), dtype=torch.float64)
    return image, torch.randn(batch, config.num_steps, 512, dtype=torch.float64) / 20


def gradients(model: RT1, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for name, p, g in zip(names, parameters, found, strict=True)}


def one(batch: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """The batch of one window; frames stay whole, as unused rows do no harm."""
    return {name: value if name == "frames" else value[row : row + 1] for name, value in batch.items()}


# --- sizes ---


@pytest.mark.parametrize(
    ("preset", "parameters", "tokenizer", "learner"),
    [
        ("rt1", 35_252_128 - 131_584, 15_744_160, 34_376),  # without the release's dead action embedding
        ("rt1_jax", 39_310_752, 15_744_160, 34_376),
        ("rt1x", 56_896_809, 15_748_905, 39_121),
    ],
)
def test_presets_have_exactly_the_published_numbers_of_parameters(
    preset: str, parameters: int, tokenizer: int, learner: int
) -> None:
    with torch.device("meta"):
        model = getattr(RT1Config, preset)().build()

    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    assert (count(model), count(model.tokenizer), count(model.tokenizer.learner)) == (parameters, tokenizer, learner)


def test_the_jax_release_with_linear_feed_forward_has_its_published_size() -> None:
    config = RT1Config.rt1_jax()
    with torch.device("meta"):
        model = replace(config, transformer=replace(config.transformer, feed_forward="linear")).build()
    assert sum(parameter.numel() for parameter in model.parameters()) == 35_116_448


@pytest.mark.parametrize("config", [TINY, TF_MASK, VIT])
def test_forward_gives_tokens_and_logits_of_the_actions_only(config: RT1Config) -> None:
    model, (image, embedding) = config.build().double().eval(), images(config)
    assert model.image_tokens(image, embedding).shape == (2, 3, 4, 16)
    assert model(image, embedding).shape == (2, 3, 11, 256)


def test_without_token_learner_tokens_are_positions_row_by_row() -> None:
    config = replace(TINY, token_learner=False, num_image_tokens=16)
    model, (image, embedding) = config.build().double().eval(), images(config)
    changed = image.clone()
    changed[:, :, :4, -4:] = 1 - changed[:, :, :4, -4:]  # the corner of the first row and the last column
    moved = (model.image_tokens(changed, embedding) - model.image_tokens(image, embedding)).abs().mean(dim=(0, 1, 3))
    assert int(moved.argmax()) == 3  # W-major order would give 12


def test_token_learner_is_its_formula_on_features_so_flat_that_eps_matters() -> None:
    learner = stirred(TokenLearner(6, 3)).double()
    x = 1e-3 * torch.randn(2, 9, 6, dtype=torch.float64)
    normal = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    hidden = learner.hidden(normal * learner.norm.weight + learner.norm.bias)
    tanh_gelu = hidden / 2 * (1 + torch.tanh((2 / math.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)))
    weights = learner.scores(tanh_gelu).exp()
    weights = weights / weights.sum(dim=1, keepdim=True)
    expected = torch.stack([(weights[:, :, token, None] * x).sum(dim=1) for token in range(3)], dim=1)
    torch.testing.assert_close(learner(x), expected, rtol=1e-12, atol=1e-15)


# --- loss ---


def test_an_untrained_model_is_nearly_uniform() -> None:
    loss = TINY.build().loss(make_batch(TINY, [4, 5, 6]))
    assert 0.9 * math.log(256) < loss.item() < 1.4 * math.log(256)


def test_the_loss_is_the_stated_mean() -> None:
    model, batch = stirred(TINY.build()).eval(), make_batch(TINY, [0, 5, 8])
    from rt_models.action_tokens import encode

    logs, target = model.predict(batch).log_softmax(-1), encode(batch["action"], model.spec)
    total = 0.0
    for window in range(3):
        trained = [(t, a) for t in range(3) for a in range(9) if batch["loss_mask"][window, t]]
        total -= sum(logs[window, t, a, target[window, t, a]].item() for t, a in trained) / (3 * 9)
    assert model.loss(batch).item() == pytest.approx(total / 3, rel=1e-5)


@pytest.mark.parametrize("masked", ["padding", "terminal", "absent dimension"])
def test_what_is_masked_is_not_trained_on(masked: str) -> None:
    model, batch = stirred(TINY.build()).eval(), make_batch(TINY, [1, 8])
    before = model.loss(batch)
    place = {"padding": (0, 0, 1), "terminal": (1, 2, 1), "absent dimension": (1, 1, 10)}[masked]
    batch["action"] = batch["action"].clone()
    batch["action"][place] = -0.77
    assert model.loss(batch) == before
    batch["action"][1, 1, 1] = -0.77  # and what is not masked is
    assert model.loss(batch) != before


def test_loss_on_the_last_step_only() -> None:
    config = replace(TINY, loss_on="last")
    every, last = stirred(TINY.build()).eval(), config.build().eval()
    last.load_state_dict(every.state_dict())
    batch = make_batch(TINY, [4, 5])
    only_last = batch | {"loss_mask": batch["loss_mask"] & torch.tensor([False, False, True])}
    torch.testing.assert_close(last.loss(batch), 3 * every.loss(only_last))
    batch["action"][:, 0] = 0.5
    torch.testing.assert_close(last.loss(batch), 3 * every.loss(only_last))


def test_it_learns_a_handful_of_windows_with_crops() -> None:
    model = TINY.build().train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    batch = make_batch(TINY, [2, 4, 6])
    for step in range(60):
        batch["crop_key"] = torch.arange(3) + 3 * step
        loss = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1.5


# --- padding ---


@pytest.mark.parametrize("config", [TINY, TF_MASK, ONE_HOT])
def test_what_padding_holds_reaches_no_real_step(config: RT1Config) -> None:
    model, batch = stirred(config.build()).double().eval(), make_batch(config, [0, 1])
    logits = model.predict(batch)
    real = batch["step_mask"]
    batch["embedding"] = batch["embedding"] + (~real)[..., None]
    batch["action"] = batch["action"] + (~real)[..., None]
    torch.testing.assert_close(model.predict(batch)[real], logits[real], rtol=0, atol=0)


def test_a_window_of_padding_alone_adds_nothing() -> None:
    model = stirred(FROZEN.build()).double().train()
    with_empty, alone = make_batch(FROZEN, [4, -1]), make_batch(FROZEN, [4])
    torch.testing.assert_close(2 * model.loss(with_empty), model.loss(alone))
    ours, theirs = gradients(model, 2 * model.loss(with_empty)), gradients(model, model.loss(alone))
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], msg=name)


def test_padding_does_not_enter_the_batch_statistics() -> None:
    model = TINY.build().train()
    padded, frames = make_batch(TINY, [0]), make_batch(TINY, [0])["frames"][:1]
    model.loss(padded)
    alone = RT1Config.tiny().build().train()
    alone.load_state_dict(TINY.build().state_dict() | dict(model.named_parameters()))
    from rt_models.vision.image_inputs import Preparation, prepare

    prepared = prepare(
        padded, Preparation(config=TINY.input, pixels=alone.tokenizer.pixels(torch.float32), augment=True)
    )
    assert len(prepared.x_NCHW) == len(frames) == 1
    alone.tokenizer(prepared.x_NCHW, prepared.embedding_ND, prepared.key_N)
    torch.testing.assert_close(
        alone.tokenizer.backbone.stem_norm.running_mean, model.tokenizer.backbone.stem_norm.running_mean
    )


def test_a_full_window_is_what_forward_computes() -> None:
    model, batch = stirred(TINY.build()).double().eval(), make_batch(TINY, [4, 6], frame_size=(16, 16))
    image = batch["frames"][batch["frame_index"]].double() / 255
    torch.testing.assert_close(model.predict(batch), model(image, batch["embedding"].double()))
    torch.testing.assert_close(model.predict(batch, "last"), model.predict(batch)[:, -1:])


# --- shared frames and ranks ---


@pytest.mark.parametrize("config", [FROZEN, VIT, replace(FROZEN, transformer=TF_MASK.transformer)])
def test_a_segment_with_shared_frames_equals_its_windows_apart(config: RT1Config) -> None:
    if isinstance(config.backbone, EfficientNetConfig):
        config = replace(config, backbone=replace(config.backbone, stochastic_depth=0.5))
    model = stirred(config.build()).double().train()
    segment = make_batch(config, [0, 1, 2, 3, 4, 5], crop_keys=[9] * 6)
    shared, apart = model.loss(segment), torch.stack([model.loss(one(segment, row)) for row in range(6)]).mean()
    assert abs(shared.item() - apart.item()) < 1e-8
    ours, theirs = gradients(model, shared), gradients(model, apart)
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) < 1e-8
    assert max(gradient.abs().max().item() for gradient in ours.values()) > 1e-3


WORLD = replace(TINY, backbone=replace(TINY.backbone, stochastic_depth=0.5))
ENDS = [0, 3, 5, 8]  # the first windows have fewer frames than the others


def rank_gradients(config: RT1Config, rows: slice) -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    model = config.build().double().train()
    batch = make_batch(config, ENDS)
    mine = {name: value if name == "frames" else value[rows] for name, value in batch.items()}
    loss = model.loss(mine)
    found = gradients(model, loss) | {"loss": loss}
    found |= {name: value for name, value in model.named_buffers() if "running" in name}
    return {name: value.detach().numpy() for name, value in found.items()}


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    np.savez(f"{folder}/{rank}.npz", **rank_gradients(WORLD, slice(2 * rank, 2 * rank + 2)))
    dist.destroy_process_group()


def test_two_ranks_with_synchronised_statistics_are_one_in_loss_and_gradient(tmp_path: Path) -> None:
    fork_ranks(rank_main, 2, (str(tmp_path),))
    whole = rank_gradients(WORLD, slice(None))
    first, second = (dict(np.load(tmp_path / f"{rank}.npz")) for rank in range(2))
    for name, value in whole.items():
        np.testing.assert_allclose((first[name] + second[name]) / 2, value, atol=1e-10, err_msg=name)


# --- configurations ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "num_steps must be a whole number and at least 1, got 0"),
        ({"bins": 2.5}, "bins must be a whole number"),
        ({"loss_on": "first"}, "loss_on must be one of all, last, got 'first'"),
        ({"token_learner": False}, "num_image_tokens must be 16"),
        ({"previous_actions": "one_hot"}, "needs transformer.mask tf"),
        ({"bins": 1}, "bins = 1"),
        ({"backbone": ViTConfig(patch_size=5)}, "16 is not a multiple of backbone.patch_size 5"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)  # type: ignore[arg-type]


# --- options ---


def test_previous_actions_are_seen_by_later_steps_but_the_present_one_is_not() -> None:
    model, (image, embedding) = stirred(ONE_HOT.build()).double().eval(), images(ONE_HOT)
    tokens = torch.randint(0, 3, (2, 3, 11))
    logits = model(image, embedding, tokens)
    changed = tokens.clone()
    changed[:, -1] = 2 - changed[:, -1]
    torch.testing.assert_close(model(image, embedding, changed), logits, rtol=0, atol=0)
    changed[:, 0] = 2 - changed[:, 0]
    assert (model(image, embedding, changed) - logits)[:, -1].abs().max() > 1e-6


def test_the_instruction_reaches_the_model_through_film_only() -> None:
    image, embedding = images(TINY)
    for config, hears in ((TINY, True), (replace(TINY, conditioning="none"), False)):
        model = stirred(config.build()).double().eval()
        assert bool((model(image, embedding) != model(image, embedding + 1)).any()) == hears


def test_an_object_mask_is_cropped_with_the_frame_and_read_raw() -> None:
    config = replace(TINY, image_channels="rgb+mask")
    model, plain = config.build().double().eval(), TINY.build().double().eval()
    own = {
        name: value[:, :3] if name == "tokenizer.backbone.stem.weight" else value
        for name, value in model.state_dict().items()
    }
    plain.load_state_dict(own)
    image, embedding = images(config)
    torch.testing.assert_close(model(image, embedding), plain(image[..., :3], embedding))
    batch = make_batch(config, [3, 4])
    model = stirred(model)
    marked = batch | {"object_mask": 255 - batch["object_mask"]}
    assert model.predict(batch).isfinite().all() and (model.predict(batch) != model.predict(marked)).any()
    torch.testing.assert_close(plain.predict(batch), plain.predict(marked), rtol=0, atol=0)


def test_the_value_of_a_mark_scales_the_mask_and_nothing_else() -> None:
    config = replace(TINY, image_channels="rgb+mask")
    plain = stirred(config.build()).double().eval()
    loud = replace(config, input=replace(config.input, mask_value=8.0)).build().double().eval()
    own = plain.state_dict()
    loud.load_state_dict(own)
    batch = make_batch(config, [3, 4])
    assert (loud.predict(batch) != plain.predict(batch)).any()
    stem = own["tokenizer.backbone.stem.weight"].clone()
    stem[:, 3] /= 8
    loud.load_state_dict(own | {"tokenizer.backbone.stem.weight": stem})
    torch.testing.assert_close(loud.predict(batch), plain.predict(batch))
    with pytest.raises(ValueError, match=r"input.mask_value must be finite and above 0, got 0"):
        replace(config.input, mask_value=0.0)


COMPUTE = {
    "contiguous": (ComputeConfig(memory_format="contiguous"), 1e-5),
    "recomputed": (ComputeConfig(activation_checkpointing="blocks"), 1e-6),
    "selective": (ComputeConfig(activation_checkpointing="selective"), 1e-6),
    "bf16": (ComputeConfig(precision="bf16"), 5e-2),
}


@pytest.mark.parametrize("name", COMPUTE)
@pytest.mark.parametrize("config", [WORLD, VIT], ids=["efficientnet", "vit"])
def test_how_it_is_computed_does_not_change_the_loss_or_its_gradient(config: RT1Config, name: str) -> None:
    compute, tolerance = COMPUTE[name]
    plain = stirred(config.build()).train()
    other = replace(config, compute=compute).build().train()
    other.load_state_dict(plain.state_dict())
    batch = make_batch(config, [1, 4, 6])
    losses = plain.loss(batch), other.loss(batch)
    assert losses[1].dtype == torch.float32
    torch.testing.assert_close(losses[1], losses[0], rtol=tolerance, atol=tolerance)
    first, second = (
        torch.cat([gradient.flatten() for gradient in gradients(model, loss).values()])
        for model, loss in zip((plain, other), losses, strict=True)
    )
    assert (second - first).norm() <= 4 * tolerance * first.norm()


def test_selective_checkpointing_and_compilation_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"compile inductor does not go with .* selective, .* set one of them to off"):
        ComputeConfig(compile="inductor", activation_checkpointing="selective")


def test_checkpointing_holds_fewer_activations() -> None:
    def held_bytes(compute: ComputeConfig) -> int:
        total = 0

        def pack(value: Tensor) -> Tensor:
            nonlocal total
            total += value.numel() * value.element_size()
            return value

        tokenizer = replace(RT1Config.small(), compute=compute).build().train().tokenizer
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            tokenizer(torch.rand(8, 3, 64, 64), torch.randn(8, 512))
        return total

    assert held_bytes(COMPUTE["recomputed"][0]) < 0.5 * held_bytes(ComputeConfig())


@pytest.mark.slow
@pytest.mark.parametrize("config", [TINY, FROZEN, VIT], ids=["norm", "frozen", "vit"])
def test_compiled_by_inductor_it_computes_the_same(config: RT1Config) -> None:
    plain = stirred(config.build()).train()
    compiled = replace(config, compute=ComputeConfig(compile="inductor")).build().train()
    compiled.load_state_dict(plain.state_dict())  # the same names: a checkpoint does not know
    batch = make_batch(config, [3, 5])
    losses = plain.loss(batch), compiled.loss(batch)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-4)
    ours, theirs = gradients(plain, losses[0]), gradients(compiled, losses[1])
    for name, gradient in ours.items():
        torch.testing.assert_close(theirs[name], gradient, rtol=1e-3, atol=1e-4, msg=name)
