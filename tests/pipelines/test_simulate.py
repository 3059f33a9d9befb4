"""Meta-World's experts on tape: what the recorded numbers mean, and that the dataset is what was recorded."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

from pipelines.cli import main
from pipelines.simulate import SAMPLE_TASKS, SimulateConfig, simulate
from preprocessing.conversion.simulated_source import simulated_source_of
from preprocessing.rlds import Episode, open_dataset
from preprocessing.simulation import metaworld_rollout as module
from preprocessing.simulation.metaworld_rlds import INSTRUCTIONS, Recording, dataset_features, rlds_episode
from preprocessing.simulation.metaworld_rollout import Camera, Rollout, load_simulator, roll_out
from preprocessing.tfds.writer import RldsWriter, SplitPlan

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLE = REPOSITORY / "examples/metaworld_sample/1.0.0"
TINY = SimulateConfig(tasks=("button-press-v3",), episodes=2, val_episodes=1, episodes_per_shard=1, image_size="32x40")


def recorded(task: str, *, seed: int = 0, control_hz: int = 10, camera: Camera | None = None) -> Recording:
    recording = roll_out(task, seed=seed, control_hz=control_hz, camera=camera)
    assert recording is not None, f"the expert of {task} failed under seed {seed}"
    return recording


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The shipped episodes as TensorFlow reads them."""
    return read_with_tensorflow(SAMPLE, tmp_path_factory.mktemp("read"), "train", "val")


def read_with_tensorflow(folder: Path, scratch: Path, *splits: str) -> dict[str, list[dict[str, Any]]]:
    script, out = REPOSITORY / "tests/support/read_with_tensorflow.py", scratch / "episodes.pickle"
    subprocess.run([sys.executable, str(script), str(folder), str(out), *splits], check=True, capture_output=True)
    return pickle.loads(out.read_bytes())


@pytest.fixture(scope="module")
def fresh() -> dict[str, Any]:
    """An episode recorded now, with noise for pictures."""
    recording, rng = recorded("assembly-v3"), np.random.default_rng(0)
    frames = [simplejpeg.encode_jpeg(rng.integers(0, 255, (8, 16, 3), dtype=np.uint8)) for _ in recording.state_TS]
    return rlds_episode(replace(recording, frames_T=frames), task="assembly-v3", seed=0, control_hz=10)


def column(episode: dict[str, Any], *path: str) -> np.ndarray:
    values = []
    for step in episode["steps"]:
        for name in path:
            step = step[name]
        values.append(step)
    return np.array(values)


# --- The simulator, without pictures ---


@pytest.mark.parametrize("task", SAMPLE_TASKS)
def test_the_recorded_actions_replayed_without_looking_solve_the_task(task: str) -> None:
    recording = recorded(task, seed=5)
    env, _, _ = module._make(task, 5)
    success = False
    for action in recording.action_TA[:-2]:
        for _ in range(8):
            success = env.step(action)[4]["success"] > 0 or success
    assert success
    np.testing.assert_allclose(env.data.body("hand").xpos, recording.state_TS[-2, :3], atol=0.03)


@pytest.mark.parametrize("control_hz", [40, 20, 10])
def test_a_lower_rate_sees_the_same_motion_and_sums_its_actions(control_hz: int) -> None:
    fine, coarse = recorded("assembly-v3", control_hz=80), recorded("assembly-v3", control_hz=control_hz)
    stride, moves = 80 // control_hz, (len(fine.state_TS) - 2) * control_hz // 80
    assert moves > 5
    np.testing.assert_array_equal(coarse.state_TS[: moves + 1], fine.state_TS[: moves * stride + 1 : stride])
    displacement_TA = fine.action_TA[: moves * stride] * fine.metres_per_action
    summed_TA = displacement_TA.reshape(moves, stride, 4).sum(axis=1)
    np.testing.assert_allclose(coarse.action_TA[:moves] * coarse.metres_per_action, summed_TA, atol=1e-12)


def test_world_vector_is_metres_the_hand_travels() -> None:
    recording = recorded("drawer-close-v3")
    commanded_m = recording.action_TA[:, :3].sum(axis=0) * recording.metres_per_action
    np.testing.assert_allclose(recording.state_TS[-1, :3] - recording.state_TS[0, :3], commanded_m, atol=0.03)
    assert np.abs(commanded_m).max() > 0.1


def test_plus_one_closes_the_gripper_and_minus_one_keeps_it_open() -> None:
    closing, opening = recorded("faucet-open-v3"), recorded("drawer-open-v3")
    assert set(closing.action_TA[:-1, 3]) == {1.0} and closing.state_TS[-1, 3] < 0.5 < closing.state_TS[0, 3]
    assert set(opening.action_TA[:-1, 3]) == {-1.0} and opening.state_TS[-1, 3] == 1.0


def test_an_episode_does_not_depend_on_those_before_it() -> None:
    first = recorded("assembly-v3", seed=1)
    recorded("assembly-v3", seed=2)
    again = recorded("assembly-v3", seed=1)
    np.testing.assert_array_equal(first.state_TS, again.state_TS)
    np.testing.assert_array_equal(first.action_TA, again.action_TA)


def test_other_seeds_are_other_scenes() -> None:
    assert len({recorded("assembly-v3", seed=seed).action_TA.tobytes() for seed in range(4)}) == 4


def test_an_expert_that_fails_gives_no_episode() -> None:
    assert roll_out("box-close-v3", seed=2, control_hz=10) is None


def test_every_task_has_an_instruction() -> None:
    load_simulator()
    from metaworld.policies import ENV_POLICY_MAP

    assert set(INSTRUCTIONS) == set(ENV_POLICY_MAP)
    assert len(set(INSTRUCTIONS.values())) == len(INSTRUCTIONS)


# --- As RLDS ---


def test_tensorflow_reads_an_episode_back_equal(fresh: dict[str, Any], tmp_path: Path) -> None:
    writer = RldsWriter(
        name="tiny", version="1.0.0", features=dataset_features(height=8, width=16), description="", license=""
    )
    folder = writer.write(tmp_path, {"train": SplitPlan(episodes=[fresh], num_episodes=1)})
    (found,) = read_with_tensorflow(folder, tmp_path, "train")["train"]
    assert_equal(found, fresh)


def assert_equal(found: Any, written: Any) -> None:
    if isinstance(written, dict):
        assert found.keys() == written.keys()
        for key in written:
            assert_equal(found[key], written[key])
    elif isinstance(written, list):
        assert len(found) == len(written)
        for one, other in zip(found, written, strict=True):
            assert_equal(one, other)
    else:
        expected = written.encode() if isinstance(written, str) else written
        np.testing.assert_array_equal(found, expected)
        assert np.shape(found) == np.shape(expected)


# --- The shipped sample ---


def test_the_sample_holds_all_tasks_in_every_shard_under_seeds_of_their_own(sample: dict[str, Any]) -> None:
    seeds = {split: {int(e["episode_metadata"]["seed"]) for e in episodes} for split, episodes in sample.items()}
    assert not seeds["train"] & seeds["val"]
    for split, each, shards in (("train", 12, 4), ("val", 4, 2)):
        tasks = [episode["episode_metadata"]["task"].decode() for episode in sample[split]]
        assert {task: tasks.count(task) for task in tasks} == dict.fromkeys(SAMPLE_TASKS, each)
        assert len(list(SAMPLE.glob(f"*-{split}.tfrecord-*-of-{shards:05d}"))) == shards
        assert all(set(part) == set(SAMPLE_TASKS) for part in np.array_split(tasks, shards))
    assert sum(path.stat().st_size for path in SAMPLE.iterdir()) < 6e6


def test_episodes_end_by_the_rule(sample: dict[str, Any], fresh: dict[str, Any]) -> None:
    for episode in [*sample["train"], *sample["val"], fresh]:
        last = len(episode["steps"]) - 1
        for name, where in (("is_first", [0]), ("is_last", [last]), ("is_terminal", [last]), ("reward", [last])):
            assert np.flatnonzero(column(episode, name)).tolist() == where, name
        assert np.flatnonzero(column(episode, "discount") == 0).tolist() == [last]
        mode = column(episode, "action", "terminate_episode")
        assert mode.sum(axis=1).tolist() == [1] * (last + 1)
        assert mode.argmax(axis=1).tolist() == [1] * (last - 1) + [0, 1]
        assert not column(episode, "action", "world_vector")[last - 1 :].any()
        assert not column(episode, "action", "metaworld_action")[last].any()


def test_canonical_and_own_action_agree(sample: dict[str, Any], fresh: dict[str, Any]) -> None:
    for episode in [*sample["val"], fresh]:
        metres_per_action = 0.01 * 80 / episode["episode_metadata"]["control_hz"]
        own = column(episode, "action", "metaworld_action")
        vector = column(episode, "action", "world_vector")
        np.testing.assert_allclose(vector, own[:, :3] * metres_per_action, atol=1e-7)
        np.testing.assert_array_equal(column(episode, "action", "gripper_closedness_action"), own[:, 3:])
        for name in ("rotation_delta", "base_displacement_vector", "base_displacement_vertical_rotation"):
            assert not column(episode, "action", name).any()


def test_the_sample_is_what_the_simulator_does(sample: dict[str, Any]) -> None:
    for episode in sample["val"][: len(SAMPLE_TASKS)]:
        about = episode["episode_metadata"]
        again = recorded(about["task"].decode(), seed=int(about["seed"]), control_hz=int(about["control_hz"]))
        np.testing.assert_allclose(column(episode, "observation", "state"), again.state_TS, atol=1e-4)
        np.testing.assert_allclose(column(episode, "action", "metaworld_action"), again.action_TA, atol=1e-3)


def test_only_the_instruction_tells_the_faucet_tasks_apart(sample: dict[str, Any]) -> None:
    first: dict[tuple[str, int], dict[str, Any]] = {}
    for episode in sample["train"] + sample["val"]:
        about = episode["episode_metadata"]
        first[about["task"].decode(), int(about["seed"])] = episode["steps"][0]
    pairs = [(step, first["faucet-close-v3", seed]) for (task, seed), step in first.items() if task == "faucet-open-v3"]
    assert len(pairs) == 16
    for opened, closed in pairs:
        assert opened["observation"]["image"] == closed["observation"]["image"]
        np.testing.assert_array_equal(opened["observation"]["state"], closed["observation"]["state"])
        texts = {step["observation"]["natural_language_instruction"] for step in (opened, closed)}
        assert texts == {b"turn the faucet on", b"turn the faucet off"}
        gap = opened["action"]["world_vector"] - closed["action"]["world_vector"]
        assert np.abs(gap).max() > 0.02, "the first actions hardly differ"
    assert len({opened["observation"]["image"] for opened, _ in pairs}) == 16


# --- Pictures ---


@pytest.mark.usefixtures("drawing")
def test_the_same_command_gives_the_same_bytes(tmp_path: Path) -> None:
    results = [simulate(tmp_path / name, TINY) for name in "ab"]
    a, b = ({path.name: path.read_bytes() for path in Path(result.dataset).iterdir()} for result in results)
    assert a == b and len(a) == 2 + 2 + 1 + 1
    seeds = [seed for split in ("train", "val") for seed in seeds_of(results[0].dataset, split)]
    assert len(set(seeds)) == 3
    assert results[0].episodes == {"train": 2, "val": 1}
    assert results[0].bytes == sum(map(len, a.values()))
    assert simulated_source_of(results[0].dataset) == TINY.simulated()


@pytest.mark.usefixtures("drawing")
def test_workers_write_the_same_bytes(tmp_path: Path) -> None:
    config = replace(TINY, tasks=("button-press-v3", "faucet-open-v3"))
    for name, workers in (("alone", 0), ("together", 2)):
        simulate(tmp_path / name, replace(config, workers=workers))
    alone, together = (sorted((tmp_path / name / TINY.name / "1.0.0").iterdir()) for name in ("alone", "together"))
    assert [file.name for file in alone] == [file.name for file in together]
    assert all(mine.read_bytes() == theirs.read_bytes() for mine, theirs in zip(alone, together, strict=True))


def test_noise_moves_the_arm_and_is_not_recorded() -> None:
    still = np.zeros(4)
    with closing(Rollout("button-press-v3", 3, None)) as rollout:
        for _ in range(3):
            rollout.act(lambda _: still, 8, np.array([0.5, 0.0, 0.0, 0.0]))
        assert np.array_equal(rollout.action_TA, np.zeros((3, 4)))
        moved_m = rollout.state_TS[-1][:3] - rollout.state_TS[0][:3]
    assert 0.03 < moved_m[0] < 0.12 and abs(moved_m[1]) < 0.02


def test_a_pushed_expert_comes_back_and_succeeds() -> None:
    first, again = (roll_out("button-press-v3", seed=3, control_hz=10, noise=0.3) for _ in range(2))
    clean = recorded("button-press-v3", seed=3)
    assert first is not None and again is not None
    np.testing.assert_array_equal(first.state_TS, again.state_TS)
    assert np.abs(first.state_TS[1] - clean.state_TS[1])[:3].max() > 0.001


@pytest.mark.usefixtures("drawing")
def test_a_failing_expert_is_counted_and_the_next_seed_taken(tmp_path: Path) -> None:
    config = replace(TINY, tasks=("box-close-v3",), seed=2, episodes=1, val_episodes=0)
    result = simulate(tmp_path, config)
    assert result.failed_experts == {"train": {"box-close-v3": 1}}
    assert seeds_of(result.dataset, "train") == [3]


def seeds_of(folder: str, split: str) -> list[int]:
    episodes = open_dataset(folder).episodes(split)
    return [int(episode.metadata["episode_metadata/seed"]) for episode in episodes if isinstance(episode, Episode)]


@pytest.mark.usefixtures("drawing")
@pytest.mark.parametrize("view", module.VIEWS)
def test_the_picture_is_upright_and_no_mirror_image(view: Any) -> None:
    """The cyan finger moves in the picture as the hand moves along the camera's right and up."""
    camera = replace(SimulateConfig(view=view, image_size="96x112").camera(), jpeg_quality=95)
    recording = recorded("assembly-v3", camera=camera)
    image_THWC = np.array([simplejpeg.decode_jpeg(frame) for frame in recording.frames_T], np.int64)
    assert image_THWC.shape == (len(recording.state_TS), 96, 112, 3)
    red_THW, green_THW, blue_THW = np.moveaxis(image_THWC, -1, 0)
    finger_THW = (np.minimum(green_THW, blue_THW) > 120) & (green_THW - red_THW > 60)
    seen_T = finger_THW.sum(axis=(1, 2)) > 2
    assert seen_T.sum() >= 8
    row_T, column_T = np.array([np.argwhere(finger_HW).mean(axis=0) for finger_HW in finger_THW[seen_T]]).T
    right, up = camera_axes(module.VIEWS[view])
    position_TS = recording.state_TS[seen_T, :3]
    assert np.corrcoef(position_TS @ right, column_T)[0, 1] > 0.95
    assert np.corrcoef(position_TS @ up, row_T)[0, 1] < -0.95


def camera_axes(view: module.View) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of the world that a camera without roll sees as right and up."""
    azimuth, elevation = np.radians([view.azimuth_deg, view.elevation_deg])
    horizontal = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
    right = np.array([np.sin(azimuth), -np.cos(azimuth), 0.0])
    return right, np.cross(right, np.cos(elevation) * horizontal + np.array([0.0, 0.0, np.sin(elevation)]))


@pytest.mark.usefixtures("drawing")
def test_a_wrist_camera_is_recorded_and_changes_nothing_else(tmp_path: Path) -> None:
    config = replace(TINY, episodes=1, val_episodes=0)
    both = replace(config, cameras=("image,wrist",), wrist_size="24x32")
    (alone,), (beside,) = (
        list(open_dataset(simulate(tmp_path / name, each).dataset).episodes("train"))
        for name, each in (("alone", config), ("both", both))
    )
    assert isinstance(alone, Episode) and isinstance(beside, Episode)
    hand = beside.steps.pop("observation/wrist_image")
    assert alone.steps.keys() == beside.steps.keys()
    for path, column in alone.steps.items():
        assert all(np.array_equal(mine, theirs) for mine, theirs in zip(column, beside.steps[path], strict=True)), path
    pictures = [simplejpeg.decode_jpeg(frame) for frame in hand]  # type: ignore[arg-type]
    assert {picture.shape for picture in pictures} == {(24, 32, 3)}
    assert len({picture.tobytes() for picture in pictures}) > len(pictures) // 2  # it moves with the hand


def test_the_sample_has_a_wrist_camera_whose_pictures_are_small(sample: dict[str, Any]) -> None:
    for episode in sample["val"]:
        assert column(episode, "observation", "wrist_image").shape[1:] == (64, 64, 3)


@pytest.mark.usefixtures("drawing")
def test_tasks_of_one_scene_start_from_the_same_pixels() -> None:
    camera = TINY.camera()
    opened, closed = (recorded(task, seed=9, camera=camera) for task in ("faucet-open-v3", "faucet-close-v3"))
    assert opened.frames_T[0] == closed.frames_T[0]
    assert opened.frames_T[1] != closed.frames_T[1]


# --- Mistakes ---


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tasks", "facet-open-v3"], ["no task 'facet-open-v3'", "did you mean faucet-open-v3?"]),
        (["--tasks", "reach-v3", "reach-v3"], ["--tasks needs one or more different tasks"]),
        (["--control-hz", "30"], ["--control-hz must divide the simulator's 80 Hz, got 30"]),
        (["--image-size", "96"], ["--image-size must be HEIGHTxWIDTH", "'96'"]),
        (["--episodes", "0"], ["--episodes must be from 1", "got 0"]),
        (["--cameras", "wrist"], ["--cameras must be image or image wrist, got wrist"]),
        (["--cameras", "image", "top"], ["--cameras must be image or image wrist, got image top"]),
        (["--wrist-size", "64"], ["--wrist-size must be HEIGHTxWIDTH", "'64'"]),
        (["--jpeg-quality", "101"], ["--jpeg-quality must be from 1 to 100"]),
        (["--name", "my/set"], ["--name must be letters", "'my/set'"]),
        (["--noise", "1.5"], ["--noise must be from 0 to 1, got 1.5"]),
        (["--seed", "400001"], ["--seed must be from 0 to 400000"]),
        (["--view", "behind"], ["--view", "behind"]),
    ],
)
def test_one_sentence_for_a_mistake(
    flags: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", str(tmp_path / "out"), *flags]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert all(word in line for word in words), line
    assert list(tmp_path.iterdir()) == []


def test_an_existing_dataset_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metaworld_sample/1.0.0").mkdir(parents=True)
    assert main(["simulate", str(tmp_path)]) == 2
    assert "metaworld_sample/1.0.0 exists: remove it or write somewhere else" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["metaworld_sample", "1.0.0"]


def test_without_metaworld_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "metaworld", None)
    with pytest.raises(ImportError, match=r"pip install 'rt-pipelines\[sim\]'"):
        load_simulator()


def test_without_opengl_the_remedy_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines", "simulate", str(tmp_path / "out"), "--tasks", "button-press-v3"]
    environment = os.environ | {"MUJOCO_GL": "disable", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2 and "libosmesa6" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("drawing")
def test_the_command_line_closes_with_its_account(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--tasks", "button-press-v3", "--episodes", "1", "--val-episodes", "0", "--image-size", "16x16", "--json"]
    assert main(["simulate", str(tmp_path), *flags]) == 0
    account = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert Path(account["dataset"]) == tmp_path / "metaworld_sample/1.0.0"
    assert account["episodes"] == {"train": 1} and account["steps"]["train"] > 5
