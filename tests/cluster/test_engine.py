"""The engines: one curve whatever the engine, stage or number of ranks; saved and continued bit for bit."""

from __future__ import annotations

import gc
import math
import tempfile
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.background import BackgroundSaver
from cluster.context import LocalContext, WorkerContext
from cluster.engine import DeepSpeedEngineConfig, TorchEngineConfig
from cluster.engine_base import set_tf32
from cluster.shards import each_weight
from cluster.storage import CheckpointFolder
from cluster.zero import STAGES, ZeroConfig, state_bytes
from tests.support.ranks import WIDTH, Net, optimizer_of, run_ranks, train

CONFIGS: dict[str, Any] = {
    "torch": TorchEngineConfig(clip_norm=0.5, ema_decay=0.8),
    **{
        f"zero-{s}": DeepSpeedEngineConfig(
            zero=ZeroConfig(stage=s, persist_elements=1, bucket_elements=10), clip_norm=0.5, ema_decay=0.8
        )
        for s in STAGES
    },
}
UPDATES, SAVED_AT, LEG = 30, 4, 4
SAVED, LAST = f"step-{SAVED_AT:08d}", f"step-{UPDATES:08d}"
GROWN = "grown"  # continued by two ranks from a checkpoint of one


def built(config: Any, context: WorkerContext) -> Any:
    engine = config.build(context, micro_batch=4, accumulation=16 // 4 // context.world_size)
    torch.manual_seed(context.rank)  # every rank draws other weights: rank 0's count
    engine.build(Net, optimizer_of)
    return engine


def trained(name: str, context: WorkerContext, root: Path) -> dict[str, Any]:
    """Train with a checkpoint published on the way, by another thread; then continue from it with a new engine."""
    engine, folder = built(CONFIGS[name], context), CheckpointFolder(root / name)
    saver = BackgroundSaver(folder, context)
    curve = train(engine, range(SAVED_AT))
    saver.save(SAVED_AT, engine.snapshot(), {}, 2)
    curve += train(engine, range(SAVED_AT, UPDATES))
    saver.close()
    folder.save(UPDATES, engine.save, context, {}, 2)
    with engine.evaluate_mode(averaged=True) as model:
        averaged = model.predict(torch.ones(1, WIDTH)).tolist()
    state = engine.consolidated_state_dict()  # after that: the weights are themselves again
    with engine.evaluate_mode() as model:
        prediction = model.predict(torch.ones(1, WIDTH)).tolist()
    engine.close()
    resumed, checkpoint = built(CONFIGS[name], context), folder.at(SAVED_AT)
    assert checkpoint is not None
    resumed.load(folder.fetch(checkpoint, root))
    seen = resumed._model.seen.item()
    again = train(resumed, range(SAVED_AT, UPDATES))
    result = {"curve": curve, "state": state, "prediction": prediction, "seen": seen, "resumed": again}
    result["averaged_prediction"] = averaged
    result["resumed_state"] = resumed.consolidated_state_dict()
    resumed.close()
    return result


def continued(
    name: str, context: WorkerContext, folder: Path, start: int = SAVED_AT, into: Path | None = None
) -> list[list[float]]:
    """The curve of some more updates from the checkpoint in `folder`, and their end saved to `into`."""
    engine = built(CONFIGS[name], context)
    engine.load(folder)
    curve = train(engine, range(start, start + LEG))
    if into is not None:
        into.mkdir(parents=True, exist_ok=True)
        context.barrier()
        engine.save(into)
    engine.close()
    return curve


def all_trained(context: WorkerContext, root: Path, saved_by_one: Path) -> dict[str, Any]:
    return {
        name: {
            **trained(name, context, root),
            "from_one_rank": continued(name, context, saved_by_one, into=root / name / GROWN),
        }
        for name in CONFIGS
    }


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("one_rank")
    return {
        **trained("torch", LocalContext("cpu"), root),
        "saved": root / "torch" / SAVED,
        "last": root / "torch" / LAST,
    }


@pytest.fixture(scope="module")
def saved_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two_ranks")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory, reference: Any, saved_by_two: Path) -> Any:
    return run_ranks(all_trained, 2, tmp_path_factory.mktemp("results"), saved_by_two, reference["saved"])


@pytest.mark.parametrize("name", CONFIGS)
def test_two_ranks_train_as_one(name: str, reference: Any, two_ranks: Any) -> None:
    curve = torch.tensor(two_ranks[0][name]["curve"])
    torch.testing.assert_close(curve, torch.tensor(reference["curve"]), rtol=1e-4, atol=0)
    assert (curve[:, 1] > 0.5).any() and curve[-1, 0] < curve[0, 0]  # clipping was at work, and learning
    assert two_ranks[0][name]["curve"] == two_ranks[1][name]["curve"]


@pytest.mark.parametrize("name", list(CONFIGS)[1:])
def test_one_rank_trains_as_plain_torch(name: str, reference: Any, tmp_path: Path) -> None:
    curve = torch.tensor(trained(name, LocalContext("cpu"), tmp_path)["curve"])
    torch.testing.assert_close(curve, torch.tensor(reference["curve"]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_resumed_continues_bit_for_bit(name: str, two_ranks: Any) -> None:
    for rank in two_ranks:
        assert rank[name]["resumed"] == rank[name]["curve"][SAVED_AT:]
    first = two_ranks[0][name]
    assert all(torch.equal(first["state"][key], value) for key, value in first["resumed_state"].items())
    assert two_ranks[1][name]["seen"] != first["seen"]  # each rank its own buffers


@pytest.mark.parametrize("name", CONFIGS)
def test_consolidated_state_is_the_bare_model(name: str, two_ranks: Any) -> None:
    state, prediction = two_ranks[0][name]["state"], two_ranks[0][name]["prediction"]
    model = Net()
    model.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(model.predict(torch.ones(1, WIDTH)), torch.tensor(prediction))
    assert two_ranks[1][name]["state"] is None and two_ranks[1][name]["prediction"] == prediction


@pytest.mark.parametrize("name", CONFIGS)
def test_gradient_that_is_not_finite_changes_nothing(name: str) -> None:
    engine = built(CONFIGS[name], LocalContext("cpu"))
    train(engine, range(2))
    before = engine.consolidated_state_dict()
    for poison in (0.0, 0.0, math.nan, 0.0):
        batch = {"x": torch.ones(4, WIDTH), "y": torch.full((4, WIDTH), poison)}
        engine.backward(engine.forward(batch))
        norm = engine.step()
    assert norm is not None and not math.isfinite(norm)
    after = engine.consolidated_state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before if key != "seen")
    assert all(math.isfinite(value) for update in train(engine, range(2, 4)) for value in update)
    engine.close()


def test_a_fused_optimizer_decides_on_the_device_whether_it_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, of a CPU's fused Adam: weights, optimizer and average after a poisoned first and third update are
    those of a training that looks at each norm."""

    def trained(fused: bool) -> dict[str, Any]:
        def factory(model: torch.nn.Module) -> torch.optim.Optimizer:
            return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, fused=fused)

        engine = TorchEngineConfig(clip_norm=0.5, ema_decay=0.8).build(
            LocalContext("cpu"), micro_batch=4, accumulation=1
        )
        torch.manual_seed(0)
        model, norms = engine.build(Net, factory), []
        if fused:
            monkeypatch.setattr(math, "isfinite", lambda _: pytest.fail("the host looked at a norm"))
        for poison in (math.nan, 0.0, math.inf, 1.0, 0.5):
            engine.backward(engine.forward({"x": torch.ones(4, WIDTH), "y": torch.full((4, WIDTH), poison)}))
            norms.append(engine.step())
        monkeypatch.undo()
        state = {name: engine._optimizer.state[p] for name, p in model.named_parameters() if p.requires_grad}
        return {"norms": torch.stack(norms), "state": state, "weights": model.state_dict()}  # type: ignore[arg-type]

    theirs, ours = trained(fused=False), trained(fused=True)
    torch.testing.assert_close(ours["norms"], theirs["norms"], equal_nan=True)
    torch.testing.assert_close(ours["weights"], theirs["weights"])
    torch.testing.assert_close(ours["state"], theirs["state"])
    assert all(float(state["step"]) == 3 for state in ours["state"].values())


@pytest.mark.parametrize(("tf32", "name"), [(True, "tf32"), (False, "ieee")])
def test_float32_on_a_gpu_is_what_was_asked_for(tf32: bool, name: str) -> None:
    backends: Any = torch.backends
    parts: Any = (backends, backends.cuda.matmul, backends.cudnn.conv)
    before = backends.fp32_precision
    try:
        set_tf32(tf32)
        assert [part.fp32_precision for part in parts] == [name] * 3
        backends.fp32_precision = "tf32" if name == "ieee" else "ieee"  # as a scoring in the same process chooses
        assert name not in [part.fp32_precision for part in parts]
    finally:
        backends.fp32_precision = before
    assert not TorchEngineConfig().tf32


def test_zero_3_leaves_nothing_behind_in_torch() -> None:
    before = torch.nn.functional.linear
    engine = built(CONFIGS["zero-3"], LocalContext("cpu"))
    train(engine, range(1))
    assert torch.nn.functional.linear is not before  # DeepSpeed's, which rounds differently
    engine.close()
    assert torch.nn.functional.linear is before


@pytest.mark.parametrize("name", ["torch", "zero-1"])
def test_an_engine_that_lived_through_an_import_can_be_found_as_garbage(name: str) -> None:
    engine = built(CONFIGS[name], LocalContext("cpu"))
    engine.itself, held = engine, weakref.ref(engine)
    gc.freeze()  # as cluster/quick_imports.py does after MLflow's modules
    engine.close()
    del engine
    assert gc.collect() > 0 and held() is None


@pytest.mark.parametrize("name", CONFIGS)
def test_snapshot_is_not_moved_by_training(name: str, tmp_path: Path) -> None:
    engine, folders = built(CONFIGS[name], LocalContext("cpu")), (tmp_path / "now", tmp_path / "later")
    for folder in folders:
        folder.mkdir()
    train(engine, range(2))
    engine.save(folders[0])
    write = engine.snapshot()
    train(engine, range(2, 4))
    write(folders[1])
    now, later = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders)
    assert now == later and len(now) == 3
    engine.close()


def test_average_follows_the_weights() -> None:
    engine = built(CONFIGS["torch"], LocalContext("cpu"))
    expected: dict[str, torch.Tensor] = {}
    for update in range(5):
        train(engine, range(update, update + 1))
        weights: dict[str, torch.Tensor] = engine.consolidated_state_dict()
        expected = {key: expected.get(key, value) * 0.8 + value * 0.2 for key, value in weights.items()}
    with tempfile.TemporaryDirectory() as folder:
        engine.save(Path(folder))
        average = dict(each_weight(Path(folder), averaged=True))
    torch.testing.assert_close(average["body.0.weight"], expected["body.0.weight"])
    assert torch.equal(average["frozen.weight"], weights["frozen.weight"])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.usefixtures("two_ranks")
def test_average_is_the_same_for_every_engine(name: str, saved_by_two: Path, reference: Any) -> None:
    one, two = (dict(each_weight(f, averaged=True)) for f in (reference["last"], saved_by_two / name / LAST))
    two["seen"] = one["seen"]  # a rank's own
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-4)
    assert not torch.equal(two["scale"], dict(each_weight(saved_by_two / name / LAST))["scale"])


@pytest.mark.parametrize("name", CONFIGS)
def test_evaluated_with_averaged_weights(name: str, two_ranks: Any, saved_by_two: Path) -> None:
    model = Net()
    model.load_state_dict(dict(each_weight(saved_by_two / name / LAST, averaged=True)))
    with torch.no_grad():
        expected = model.predict(torch.ones(1, WIDTH))
    for rank in two_ranks:
        torch.testing.assert_close(torch.tensor(rank[name]["averaged_prediction"]), expected)
    assert two_ranks[0][name]["averaged_prediction"] != two_ranks[0][name]["prediction"]


@pytest.mark.parametrize("zero", [None, 1, 3])
def test_bf16_learns_with_weights_in_fp32(zero: Any) -> None:
    where = TorchEngineConfig(precision="bf16")
    engine = built(
        where if zero is None else DeepSpeedEngineConfig(zero=ZeroConfig(stage=zero), precision="bf16"),
        LocalContext("cpu"),
    )
    seen: list[torch.dtype] = []
    engine._model.body[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    curve = train(engine, range(10))
    assert curve[-1][0] < curve[0][0] and set(seen) == {torch.bfloat16}
    assert {value.dtype for value in engine.consolidated_state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("saved", CONFIGS)
@pytest.mark.usefixtures("two_ranks")
def test_any_engine_continues_any_checkpoint(name: str, saved: str, reference: Any, saved_by_two: Path) -> None:
    """From two ranks to one, from every engine and stage to every other."""
    curve = torch.tensor(continued(name, LocalContext("cpu"), saved_by_two / saved / SAVED))
    expected = torch.tensor(reference["curve"][SAVED_AT : SAVED_AT + 4])
    torch.testing.assert_close(curve, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_one_rank_continues_as_two(name: str, reference: Any, two_ranks: Any) -> None:
    curve = torch.tensor(two_ranks[0][name]["from_one_rank"])
    expected = torch.tensor(reference["curve"][SAVED_AT : SAVED_AT + LEG])
    torch.testing.assert_close(curve, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.usefixtures("two_ranks")
def test_one_rank_then_two_then_one_train_as_one(name: str, reference: Any, saved_by_two: Path) -> None:
    start = SAVED_AT + LEG
    curve = torch.tensor(continued(name, LocalContext("cpu"), saved_by_two / name / GROWN, start))
    expected = torch.tensor(reference["curve"][start : start + LEG])
    torch.testing.assert_close(curve, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.usefixtures("two_ranks")
def test_weights_are_read_without_an_engine(name: str, saved_by_two: Path) -> None:
    weights = dict(each_weight(saved_by_two / name / SAVED))
    model = Net()
    model.load_state_dict(weights)
    engine = built(CONFIGS[name], LocalContext("cpu"))
    engine.load(saved_by_two / name / SAVED)
    state = engine.consolidated_state_dict()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    engine = built(CONFIGS["torch"], LocalContext("cpu"))
    engine.save(tmp_path)
    other = CONFIGS["torch"].build(LocalContext("cpu"), micro_batch=4, accumulation=1)
    other.build(OtherNet, optimizer_of)
    with pytest.raises(
        ValueError, match=r"another model: 1 tensors differ, such as scale, \(8,\) there and \(1,\) here"
    ):
        other.load(tmp_path)
    with pytest.raises(ValueError, match="holds no training state"):
        other.load(tmp_path / "absent")
    (tmp_path / "shard-00000-of-00001.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks elements 0 to 8 of weight of scale"):
        engine.load(tmp_path)


OFFLOADED: tuple[ZeroConfig, ...] = (
    ZeroConfig(stage=1, offload_optimizer="cpu"),
    ZeroConfig(stage=2, offload_optimizer="cpu"),
    ZeroConfig(stage=3, offload_parameters="cpu"),
    ZeroConfig(stage=3, offload_optimizer="cpu", offload_parameters="cpu"),
)


@pytest.mark.parametrize("zero", OFFLOADED, ids=lambda zero: f"{zero.stage}-{zero.offload_optimizer}")
def test_offloaded_state_trains_and_resumes_as_without(zero: ZeroConfig, reference: Any, tmp_path: Path) -> None:
    config = DeepSpeedEngineConfig(zero=zero, clip_norm=0.5, ema_decay=0.8)
    engine = built(config, LocalContext("cpu"))
    curve = train(engine, range(SAVED_AT))
    engine.save(tmp_path)
    curve += train(engine, range(SAVED_AT, 2 * SAVED_AT))
    torch.testing.assert_close(torch.tensor(curve), torch.tensor(reference["curve"][: 2 * SAVED_AT]), rtol=1e-5, atol=0)
    resumed = built(config, LocalContext("cpu"))
    resumed.load(tmp_path)
    assert train(resumed, range(SAVED_AT, 2 * SAVED_AT)) == curve[SAVED_AT:]


class OtherNet(Net):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="fp16"):
        TorchEngineConfig(precision="fp16").build(LocalContext("cpu"), micro_batch=1, accumulation=1)  # pyright: ignore
    with pytest.raises(ValueError, match="clip_norm"):
        DeepSpeedEngineConfig(clip_norm=0)
    with pytest.raises(ValueError, match=r"offload_parameters needs zero\.stage 3"):
        ZeroConfig(stage=2, offload_parameters="cpu")
    with pytest.raises(ValueError, match=r"offload_optimizer needs zero\.stage 1, 2 or 3, got 0"):
        ZeroConfig(stage=0, offload_optimizer="cpu")


@settings(deadline=None)
@given(parameters=st.integers(1, 10**12), ranks=st.integers(1, 10**4), ema=st.booleans())
def test_a_higher_stage_never_holds_more(parameters: int, ranks: int, ema: bool) -> None:
    totals = [sum(state_bytes(stage, parameters, ranks, ema=ema).values()) for stage in STAGES]
    assert totals[1] >= totals[2] >= totals[3]
    assert (
        ranks < 2 or totals[0] >= totals[1] - 4 * parameters
    )  # the copy of the weights, where there is little to share
    everything = state_bytes(0, parameters, ranks, ema=ema)
    assert sum(everything.values()) == (16 + 4 * ema) * parameters


def test_what_is_frozen_costs_its_weights_only() -> None:
    assert state_bytes(2, 100, 2, num_frozen=60) == {"parameters": 400, "gradients": 80, "optimizer": 240}
