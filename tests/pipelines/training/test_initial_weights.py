from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from cluster.context import LocalContext
from cluster.engine import DeepSpeedEngineConfig, TorchEngineConfig
from cluster.manifest import Manifest
from cluster.storage import Checkpoint
from cluster.zero import ZeroConfig
from pipelines.catalogue import load_recipe
from pipelines.config.experiment import Experiment
from pipelines.config.serialization import to_plain
from pipelines.publishing.folder import TrainedModel
from pipelines.publishing.trained_model import Description, load_trained
from pipelines.publishing.training_stores import StoreReference, references_json
from pipelines.training.co_fine_tuning import CoFineTuningConfig, plans_fingerprint
from pipelines.training.initial_weights import (
    _require_same_model,
    freeze,
    model_factory,
    require_same_run,
    require_trainable,
)
from preprocessing.store.episode_store import EpisodeStore
from rt_models.blocks.batch_norm import BatchNorm
from rt_models.language.action_vocabulary import AddedTokens, LeastFrequentTokens, ReservedTokens
from rt_models.rt1 import ComputeConfig, RT1Config
from rt_models.rt2_vlm import FrozenVision, FullTuning, LoRA, RT2VLMConfig
from rt_models.spec import StateInput
from tests.rt_models.test_spec import ZEROS, contract
from tests.support.rt2_rows import make_batch
from tests.support.untrained import write_untrained


def test_parts_are_frozen_by_the_beginning_of_their_names() -> None:
    model = model_factory(replace(load_recipe("rt1_tiny"), freeze=("tokenizer.backbone", "transformer.output")), None)()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        n for n, _ in model.named_parameters() if n.startswith(("tokenizer.backbone", "transformer.output"))
    }
    assert frozen


@pytest.mark.parametrize(
    ("beginnings", "words"),
    [(["tokenizr"], "did you mean 'tokenizer'"), (["tokenizer", "transformer"], "leaves nothing to train")],
)
def test_freezing_nothing_or_all_is_refused(beginnings: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        freeze(RT1Config.tiny().build(), beginnings)


@pytest.mark.parametrize(
    ("beginning", "stands_still"), [("tokenizer.", True), ("tokenizer.backbone", True), ("tokenizer.projection", False)]
)
def test_the_averages_of_a_frozen_part_stand_still(beginning: str, stands_still: bool) -> None:
    """A frozen tokenizer whose BatchNorm followed the new robot's frames would be another tokenizer in the end."""
    model = model_factory(replace(load_recipe("rt1_tiny"), freeze=(beginning,)), None)().train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}
    assert before
    backbone = model.tokenizer.backbone  # type: ignore[union-attr]
    x_NCHW, embedding_ND = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(4, 512)
    first, again = (backbone(x_NCHW, embedding_ND, torch.arange(4)) for _ in range(2))  # type: ignore[operator]
    same = {name: torch.equal(buffer, before[name]) for name, buffer in model.named_buffers() if name in before}
    assert set(same.values()) == {stands_still}
    assert torch.equal(first, again)
    assert stands_still == torch.equal(first, backbone.eval()(x_NCHW, embedding_ND))  # type: ignore[operator]


def test_an_average_goes_on_where_only_some_of_its_norm_is_frozen() -> None:
    model = RT1Config.tiny().build()
    norms = {name: part for name, part in model.named_modules() if isinstance(part, BatchNorm)}
    name, norm = next(iter(norms.items()))
    freeze(model, [f"{name}.weight"])
    assert norm.config.statistics != "frozen"
    freeze(model, [f"{name}."])
    assert [part.config.statistics == "frozen" for part in norms.values()] == [True] + [False] * (len(norms) - 1)


def test_no_name_freezes_no_part() -> None:
    model = nn.Linear(1, 1)
    freeze(model, [])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_fine_tuning_may_lean_less_on_the_same_state() -> None:
    recipe, state = load_recipe("rt1_tiny"), StateInput(names=("x", "y"))

    def reading(state: StateInput) -> Experiment:
        return replace(recipe, model=replace(recipe.model, state=state))  # type: ignore[call-arg]

    theirs = Description(model=reading(state).model, contract=contract(ZEROS))
    _require_same_model(theirs, "there", reading(replace(state, noise=0.1, dropout=0.2)))
    with pytest.raises(ValueError, match=r"such as model\.state\.names"):
        _require_same_model(theirs, "there", reading(replace(state, names=("y", "x"))))


def test_a_resumed_run_may_change_what_does_not_change_the_run(store: str) -> None:
    experiment, contract = load_recipe("rt1_tiny"), EpisodeStore.open(store).contract
    found = checkpoint_of(EpisodeStore.open(store), experiment)
    free = replace(
        experiment,
        loop=replace(experiment.loop, steps=999, log_every=7, micro_batch=4, patience=3),
        optimizer=replace(experiment.optimizer, lr=1.0),
    )
    require_same_run(found, contract, free)
    assert isinstance(experiment.model, RT1Config)
    compute = replace(experiment.model.compute, activation_checkpointing="blocks")  # after a lack of memory
    require_same_run(found, contract, replace(free, model=replace(experiment.model, compute=compute)))
    for changed, words in (
        (replace(experiment, loop=replace(experiment.loop, seed=1)), "loop.seed was 0 and is now 1"),
        (replace(experiment, freeze=("tokenizer.",)), r"freeze was \[\] and is now \['tokenizer.'\]"),
        (replace(experiment, model=replace(experiment.model, num_steps=2)), "model.num_steps was 3 and is now 2"),
    ):
        with pytest.raises(ValueError, match=words):
            require_same_run(found, contract, changed)
    with pytest.raises(ValueError, match="was trained under contract"):
        require_same_run(found, replace(contract, encoder="another"), experiment)


def checkpoint_of(store: EpisodeStore, experiment: Experiment, **metadata: Any) -> Checkpoint:
    plain, contract = to_plain(experiment), store.contract.to_json()
    metadata = {"contract": contract, "experiment": plain, "position": {"sample": 0}, **metadata}
    return Checkpoint(path="run/checkpoints/step-1", manifest=Manifest(step=1, metadata=metadata, files=()))


def test_a_resumed_run_reads_the_same_records_in_the_same_order(
    store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Web data are in no contract: other pictures, or the same in another order, would be trained on in silence."""
    robot, experiment = EpisodeStore.open(store), load_recipe("rt1_tiny")
    first = StoreReference.of(robot, "run")
    web = [replace(first, dataset=f"{name}/1.0.0/train", source=name) for name in ("colours", "shapes")]
    before = references_json([first, *web])
    found = checkpoint_of(robot, experiment, **before)
    moved = [replace(each, path=f"/elsewhere{each.path}") for each in (first, *web)]
    require_same_run(found, robot.contract, experiment, moved)
    for now, says in (
        (
            [first, *web[::-1]],
            "colours/1.0.0/train, shapes/1.0.0/train, in this order, and these are .*shapes.*colours",
        ),
        (
            [first, web[0]],
            "in this order, and these are .*colours/1.0.0/train: give the stores of that run in that order",
        ),
        ([first, web[0], replace(web[1], source="another")], "in this order, and these hold other records: give the"),
    ):
        with pytest.raises(ValueError, match=says):
            require_same_run(found, robot.contract, experiment, now)
    assert not caplog.records
    require_same_run(checkpoint_of(robot, experiment, stores=[store]), robot.contract, experiment, [first, *web])
    assert "whether these are the same is not checked" in caplog.text  # older than the record of stores


def test_a_resumed_run_says_the_same_plans_wherever_they_lie(store: str, tmp_path: Path) -> None:
    robot, recipe = EpisodeStore.open(store), load_recipe("rt2_tiny")

    def planned(name: str, plans: dict[str, str]) -> Experiment:
        (tmp_path / name).write_text(json.dumps(plans))
        mix = CoFineTuningConfig(plans=str(tmp_path / name))
        return replace(recipe, co_fine_tuning=mix)

    then = planned("then.json", {"open it": "find it", "close it": "push"})
    known = {"plans": plans_fingerprint(then.co_fine_tuning), "stores": []}
    found = checkpoint_of(robot, then, **known)
    moved = planned("moved.json", {"close it": "push", "open it": "find it"})
    require_same_run(found, robot.contract, moved)
    for other in (planned("other.json", {"open it": "look for it", "close it": "push"}), recipe):
        with pytest.raises(ValueError, match=r"co_fine_tuning.plans says something else than then: give the plans"):
            require_same_run(found, robot.contract, other)
    with pytest.raises(ValueError, match=r"co_fine_tuning.plan_share was 0.5 and is now 0.1: leave it"):
        few = replace(moved.co_fine_tuning or CoFineTuningConfig(), plan_share=0.1)
        require_same_run(found, robot.contract, replace(moved, co_fine_tuning=few))
    with pytest.raises(ValueError, match=r"co_fine_tuning.plans was .*then.json and is now .*moved.json"):
        require_same_run(checkpoint_of(robot, then, stores=[]), robot.contract, moved)  # older than the record of plans


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("transformers", reason="needs the extra vlm")
    from tests.support.rt2_folders import save_paligemma

    return str(save_paligemma(tmp_path_factory.mktemp("model")))


EMBEDDINGS = "vlm.model.language_model.embed_tokens"


@pytest.mark.parametrize(
    ("vocabulary", "tuning", "frozen", "works"),
    [
        (AddedTokens(), LoRA(rank=2), (), True),
        (AddedTokens(), LoRA(rank=2, embeddings="trained"), (), True),
        (AddedTokens(), LoRA(rank=2, embeddings="frozen"), (), False),
        (AddedTokens(), LoRA(rank=2), (EMBEDDINGS,), False),
        (AddedTokens(), FullTuning(), (EMBEDDINGS,), False),
        (AddedTokens(), FullTuning(), ("vlm.model.vision_tower",), True),
        (AddedTokens(), FrozenVision(), (), True),
        (LeastFrequentTokens(), LoRA(rank=2), (EMBEDDINGS,), True),  # frozen too, yet no two are alike
        (LeastFrequentTokens(), FullTuning(), (EMBEDDINGS,), True),
        (ReservedTokens(), LoRA(rank=2, embeddings="frozen"), (), True),
        (ReservedTokens(), FullTuning(), (EMBEDDINGS,), True),
    ],
)
def test_added_tokens_that_nothing_trains_are_refused(
    folder: str, vocabulary: Any, tuning: Any, frozen: tuple[str, ...], works: bool
) -> None:
    model = RT2VLMConfig.paligemma(folder, tuning=tuning)
    model = replace(model, text=replace(model.text, vocabulary=vocabulary))
    experiment = replace(load_recipe("rt2_paligemma_3b"), model=model, freeze=frozen)
    if works:
        require_trainable(experiment, is_new=True)
    else:
        words = (
            r"embed_tokens\S+ holds the new tokens of model.text.vocabulary AddedTokens and is not trained.* leave it"
        )
        with pytest.raises(ValueError, match=words):
            require_trainable(experiment, is_new=True)
        require_trainable(experiment, is_new=False)  # another run's weights may have learnt them


def test_compiled_blocks_do_not_go_with_weights_in_pieces() -> None:
    recipe = load_recipe("rt1_tiny")
    recipe = replace(recipe, model=replace(recipe.model, compute=ComputeConfig(compile="inductor")))
    for stage in (2, 3):
        experiment = replace(recipe, engine=DeepSpeedEngineConfig(zero=ZeroConfig(stage=stage)))
        with pytest.raises(ValueError, match=r"zero\.stage 3 .* set compile to off") if stage == 3 else nullcontext():
            require_trainable(experiment, is_new=True)


# --- weights that are read ---


def test_a_run_that_is_resumed_reads_no_pretrained_weights_and_draws_none(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    load = RT2VLMConfig._load

    def watched(config: RT2VLMConfig, kind: str, **settings: Any) -> Any:
        read.append(kind)
        return load(config, kind, **settings)

    monkeypatch.setattr(RT2VLMConfig, "_load", watched)
    model = RT2VLMConfig.paligemma(folder, tuning=LoRA(rank=2))
    model = replace(model, text=replace(model.text, vocabulary=AddedTokens()))
    experiment, before = replace(load_recipe("rt2_paligemma_3b"), model=model), torch.get_rng_state()
    resumed = model_factory(experiment, None, resumed=True)()
    assert "AutoModelForImageTextToText" not in read and torch.equal(torch.get_rng_state(), before)
    fresh = model_factory(experiment, None)()
    assert "AutoModelForImageTextToText" in read and not torch.equal(torch.get_rng_state(), before)
    resumed.load_state_dict(fresh.state_dict())
    for one, other in zip(resumed.buffers(), fresh.buffers(), strict=True):
        assert torch.equal(one, other)


def test_pretrained_weights_are_read_onto_the_device_and_adapters_drawn_on_the_cpu(folder: str) -> None:
    model, states = RT2VLMConfig.paligemma(folder, tuning=LoRA(rank=2)), []
    for device in (torch.device("cpu"), torch.device("meta")):
        torch.manual_seed(0)
        assert {parameter.device for parameter in model.build(device).parameters()} == {device}
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_the_weights_of_init_are_read_on_the_cpu_beside_the_model_on_its_device(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(write_untrained(store, tmp_path / "source"))
    read: list[TrainedModel] = []

    def watched(*given: Any, **settings: Any) -> TrainedModel:
        read.append(load_trained(*given, **settings))
        return read[-1]

    monkeypatch.setattr("pipelines.training.initial_weights.load_trained", watched)
    monkeypatch.setattr("pipelines.training.initial_weights.family_of", lambda config: family)
    family, given = SimpleNamespace(built=lambda config, device: given.append(device) or config.build()), []
    model = model_factory(load_recipe("rt1_tiny"), source, device=torch.device("meta"))()
    assert given == [torch.device("meta")]
    assert {parameter.device.type for parameter in read[0].model.parameters()} == {"cpu"}
    for one, other in zip(model.parameters(), read[0].model.parameters(), strict=True):
        assert torch.equal(one, other)


# --- weights in bf16 ---


@pytest.mark.parametrize("tuning", [LoRA(rank=2, embeddings="trained"), FullTuning(), FrozenVision()])
def test_what_is_trained_is_float32_and_moves(folder: str, tuning: Any) -> None:
    """Of a learning rate that bf16 weights would mostly round away."""
    model = RT2VLMConfig.paligemma(folder, tuning=tuning, dtype="bfloat16")
    experiment = replace(load_recipe("rt2_paligemma_3b"), model=model, engine=TorchEngineConfig(precision="bf16"))
    engine = experiment.engine.build(LocalContext("cpu"), micro_batch=3, accumulation=1)
    torch.manual_seed(0)
    built = engine.build(model_factory(experiment, None), lambda m: torch.optim.Adam(trained_of(m), lr=1e-5))
    engine.set_learning_rate(1e-5)
    frozen = {p.dtype for p in built.parameters() if not p.requires_grad}
    assert {p.dtype for p in trained_of(built)} == {torch.float32} and frozen <= {torch.bfloat16}
    before = [p.detach().clone() for p in trained_of(built)]
    for _ in range(2):
        engine.forward_backward(make_batch(model.build_text()))
        norm = engine.step()
    assert norm is not None and norm.isfinite()
    moved = sum(int((p != old).sum()) for p, old in zip(trained_of(built), before, strict=True))
    assert moved > 0.5 * sum(p.numel() for p in trained_of(built))


def trained_of(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def test_frozen_bf16_beside_float32_needs_autocast(folder: str) -> None:
    model = RT2VLMConfig.paligemma(folder, tuning=LoRA(rank=2), dtype="bfloat16")
    experiment = replace(load_recipe("rt2_paligemma_3b"), model=model, engine=TorchEngineConfig())
    with pytest.raises(ValueError, match=r"computed under autocast: set engine\.precision bf16"):
        require_trainable(experiment, is_new=True)
