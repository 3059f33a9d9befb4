"""Cameras and state of a contract: JSON, ids, what is refused; how a store's columns become a model's state."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from preprocessing.store.statistics import Moments
from rt_models.spec import (
    ActionStatistics,
    Contract,
    ContractMismatch,
    ImageRecipe,
    StateColumns,
    StateInput,
    StateSide,
    StoreInputs,
    batch_fields,
    check_batch,
    merge_contracts,
    require_cameras,
    union_of_states,
)
from tests.rt_models.test_spec import ZEROS, contract

WRIST = ImageRecipe(camera="wrist", height=64, width=64)


def state(*names: str, unit: str = "m", low: float = -2.0, high: float = 6.0) -> StateSide:
    ends = {"minimum": low, "maximum": high, "q01": low, "q99": high, "mean": 0.0, "std": 1.0}
    statistics = ActionStatistics(count=9, **{row: (value,) * len(names) for row, value in ends.items()})
    return StateSide.measured(names, (unit,) * len(names), statistics)


BOTH = StoreInputs(cameras=(WRIST,), state=state("x", "y", "gripper"))


def two_sided() -> Contract:
    merged = merge_contracts([contract(ZEROS), contract(ZEROS, name="b")])
    return merged.reading(("image", "wrist"), ("y", "x"), [BOTH, StoreInputs()])


def test_what_is_not_read_leaves_no_trace_and_what_is_read_changes_the_id() -> None:
    plain, read = contract(ZEROS), two_sided()
    assert plain.reading(("image",), (), [BOTH]) == plain
    assert "state" not in plain.to_json() and "without_cameras" not in plain.to_json()["datasets"][0]
    merged = merge_contracts([contract(ZEROS), contract(ZEROS, name="b")])
    ids = {merged.id, read.id, merged.reading(("image", "wrist"), (), [BOTH, StoreInputs()]).id}
    assert len(ids) == 3
    assert Contract.from_json(read.to_json()) == read
    assert read.datasets[1].without_cameras == ("wrist",) and read.datasets[1].state is None
    assert read.datasets[0].state == state("y", "x") and read.recipe("wrist") == WRIST


def test_history_stands_in_the_contract_outside_its_id() -> None:
    plain = contract(ZEROS)
    said = replace(plain, num_steps=6, stride=2)
    assert said.id == plain.id and said == plain and "num_steps" not in plain.to_json()
    assert (read := Contract.from_json(said.to_json())).num_steps == 6 and read.stride == 2


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (
            StoreInputs(state=BOTH.state),
            "camera wrist: the model has 64x64 of camera wrist, as recorded, there has none",
        ),
        (replace(BOTH, cameras=(replace(WRIST, height=96),)), "there has 96x64 of camera wrist"),
        (replace(BOTH, state=None), r"state: the model has y \[m\], x \[m\], there has none"),
        (replace(BOTH, state=state("x", "gripper")), r"state: the model has y \[m\], x \[m\], there has x \[m\]"),
        (replace(BOTH, state=state("x", "y", unit="cm")), r"there has y \[cm\], x \[cm\]"),
        (replace(BOTH, state=state("q")), r"there has none of it, only q \[m\]"),
    ],
)
def test_a_store_without_what_the_model_reads_is_refused_by_name(inputs: StoreInputs, words: str) -> None:
    two_sided().require_readable(contract(ZEROS), where="there", inputs=BOTH)
    with pytest.raises(ContractMismatch, match=words):
        two_sided().require_readable(contract(ZEROS), where="there", inputs=inputs)
    two_sided().require_readable(contract(ZEROS, name="b"), where="there", inputs=StoreInputs())


def test_another_rate_is_refused() -> None:
    faster = contract(ZEROS)
    faster = replace(faster, datasets=(replace(faster.datasets[0], control_hz=10.0),))
    with pytest.raises(ContractMismatch, match=r"rate: the model has .* Hz, there has 10 Hz"):
        contract(ZEROS).require_readable(faster, where="there")


def test_cameras_that_cannot_be_read_together_are_refused() -> None:
    merged = merge_contracts([contract(ZEROS), contract(ZEROS, name="b")])
    wide = StoreInputs(cameras=(replace(WRIST, width=80),))
    with pytest.raises(ContractMismatch, match=r"camera wrist is 64x64 .* in a and 64x80"):
        merged.reading(("image", "wrist"), (), [BOTH, wide])
    with pytest.raises(ContractMismatch, match="camera left, and no store has it"):
        merged.reading(("image", "left"), (), [BOTH, wide])
    for wrong in ((), ("image", "image"), ("Wrist",), ("left-wrist",)):
        with pytest.raises(ValueError, match="cameras must be different roles"):
            require_cameras(wrong)
    with pytest.raises(ValueError, match="hand is another name of wrist: write wrist"):
        require_cameras(("image", "hand"))


def test_a_state_is_normalised_by_its_own_quantiles_limited_and_placed_by_name() -> None:
    columns = StateColumns(names=("x", "y", "z"), sides=(state("z", "x"), None))
    assert columns.mask().tolist() == [[True, False, True], [False] * 3]
    recorded = np.array([[2.0, 9.0, -2.0], [1e6, 9.0, 6.0]])  # z, unread, x
    np.testing.assert_allclose(columns.values(0, ("z", "unread", "x"), recorded), [[-1, 0, 0], [1, 0, 5]])
    assert not columns.values(1, ("z", "unread", "x"), recorded).any()
    constant = StateSide.measured(("x",), ("m",), _constant(3.0))
    np.testing.assert_allclose(constant.normalised(np.array([3.0])), [0])
    ticks = 4e6 + 50 * np.random.default_rng(0).standard_normal((5000, 1)).astype(np.float32)
    counted = StateSide.measured(("x",), ("ticks",), Moments.of(ticks).statistics()).normalised(ticks)
    assert np.quantile(counted, [0.01, 0.99]) == pytest.approx([-1, 1], abs=0.05)
    with pytest.raises(ValueError, match="state x is not finite"):
        columns.values(0, ("z", "unread", "x"), np.array([[0, 0, np.nan]]))
    assert columns.values(0, ("z", "unread", "x"), np.array([[0, np.nan, 0]])).shape == (1, 3)  # what is not read


def _constant(value: float) -> ActionStatistics:
    rows = ("mean", "minimum", "maximum", "q01", "q99")
    return ActionStatistics(count=9, std=(0.0,), **dict.fromkeys(rows, (value,)))


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ({"x": 1.0}, r"state lacks y: send x \[m\], y \[m\]"),
        ({"x": 1.0, "y": 0.0, "elbow": 2.0}, "state has elbow, which is not read"),
        ([1.0], r"state has the shape \(1,\): send x \[m\], y \[m\]"),
        ([1.0, float("nan")], "state y is not finite"),
        ("far", "state must be numbers"),
        (None, "state has the shape"),
    ],
)
def test_a_robot_s_state_is_refused_by_the_name_of_what_is_wrong(sent: object, words: str) -> None:
    side = state("x", "y")
    np.testing.assert_array_equal(side.read({"y": 6.0, "x": -2.0}), side.read([-2.0, 6.0]))
    with pytest.raises(ValueError, match=words):
        side.read(sent)


def test_states_join_by_name_and_one_name_has_one_unit() -> None:
    sides = {"a": state("x", "y"), "b": None, "c": state("y", "q")}
    assert union_of_states({**sides, "c": state("y", "x")}, ()) == ("x", "y")
    assert union_of_states(sides, ("q", "x")) == ("q", "x")
    with pytest.raises(ValueError, match="the states of a and c differ: c has q, which a does not have; name those"):
        union_of_states(sides, ())
    with pytest.raises(ValueError, match="the states of a and c differ: a has x, which c does not have"):
        union_of_states({**sides, "c": state("y")}, ())
    with pytest.raises(ValueError, match="state y is in m in a and in cm in c"):
        union_of_states({**sides, "c": state("y", unit="cm")}, ())
    assert union_of_states({**sides, "c": state("y", unit="cm")}, ("x",)) == ("x",)
    with pytest.raises(ValueError, match="reads the state elbow, and they have x, y, q"):
        union_of_states(sides, ("elbow",))
    with pytest.raises(ValueError, match="no store has a state"):
        union_of_states({"b": None}, ())
    for wrong in ({"noise": -1.0}, {"dropout": 1.5}, {"names": ("x", "x")}):
        with pytest.raises(ValueError, match="state"):
            StateInput(**wrong)


def test_values_that_a_data_set_calls_otherwise_are_declared() -> None:
    side = state("hand/a", "hand/b", "c").renamed("x = hand/b; c = hand/a; d = c")
    assert side.names == ("c", "x", "d") and side.recorded_names == ("hand/a", "hand/b", "c")
    chosen = side.chosen(("d", "x"))
    assert chosen.names == ("d", "x") and chosen.described() == "c [m], hand/b [m]"
    np.testing.assert_array_equal(chosen.read({"hand/b": 6.0, "c": -2.0}), [-1.0, 1.0])
    columns = StateColumns(names=("x", "d", "other"), sides=(chosen,))
    recorded_NK = np.array([[9.0, 6.0, -2.0]])
    np.testing.assert_array_equal(columns.values(0, ("hand/a", "hand/b", "c"), recorded_NK), [[1.0, -1.0, 0.0]])
    for wrong, words in (
        ("", "does not read"),
        ("x", "does not read"),
        ("x = ", "does not read"),
        ("x = elbow", "there is no elbow: the state has x, y"),
        ("y = x", "two values cannot be y"),
        ("a = x; b = x", "or one have two names"),
    ):
        with pytest.raises(ValueError, match=words):
            state("x", "y").renamed(wrong)
    with_side = replace(two_sided(), datasets=(replace(two_sided().datasets[0], state=chosen),))
    assert Contract.from_json(with_side.to_json()) == with_side
    assert "own_names" not in two_sided().to_json()["datasets"][0]["state"]


def test_a_batch_of_two_cameras_is_checked_camera_by_camera() -> None:
    assert set(batch_fields(("image", "wrist"), state=True)) - set(batch_fields()) == {
        "frames_wrist",
        "frame_index_wrist",
        "state",
        "state_mask",
    }
    assert batch_fields(("image", "wrist"))["image_place"].axes == "BTM"
    apart = batch_fields(("image", "wrist"), together=False)
    assert apart["image_place"].axes == "BT" and "num_images_wrist" in apart
    assert "frames" not in batch_fields(("wrist",))


def test_check_batch_knows_each_camera_s_sizes() -> None:
    real = np.array([[False, True], [True, True]])
    batch = {
        "frames": np.zeros((3, 8, 9, 3), np.uint8),
        "frame_index": np.where(real, [[0, 0], [1, 2]], -1),
        "frames_wrist": np.zeros((1, 4, 4, 3), np.uint8),
        "frame_index_wrist": np.array([[-1, 0], [-1, -1]]),
        "step_mask": real,
        "loss_mask": real,
        "embedding": np.zeros((2, 2, 512), np.float32),
        "action": np.zeros((2, 2, 11), np.float32),
        "action_mask": np.ones((2, 11), bool),
        "state": np.zeros((2, 2, 4), np.float32),
        "state_mask": np.array([[True] * 4, [False] * 4]),
        **{key: np.zeros(2, np.int64) for key in ("sample_id", "crop_key", "store", "episode", "step")},
    }
    arguments = {"action_size": 11, "cameras": ("image", "wrist"), "state_size": 4}
    check_batch(batch, **arguments)
    for key, value in (
        ("frame_index_wrist", np.array([[0, 0], [-1, -1]])),  # on padding
        ("frame_index_wrist", np.array([[-1, 1], [-1, -1]])),  # beyond its frames
        ("frame_index_wrist", np.array([[-1, 0], [-1, 0]])),  # at some steps only
        ("state", np.ones((2, 2, 4), np.float32)),
        ("state", np.full((2, 2, 4), np.nan, np.float32)),
        ("state_mask", np.ones((2, 3), bool)),
    ):
        with pytest.raises(ValueError, match=key):
            check_batch({**batch, key: value}, **arguments)
