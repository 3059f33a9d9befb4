"""What robots did, written as RLDS while they are served: read back, trained on, and never in a robot's way."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.cli import main
from pipelines.serving.recording.config import RecordingConfig
from pipelines.serving.recording.episode_writer import EpisodeWriter
from pipelines.serving.recording.messages import EpisodeEnd, LayoutTold, RecordedStep, RobotLayout
from pipelines.serving.recording.recorder import Recorder
from pipelines.serving.service import PolicyService, ServiceConfig
from preprocessing.convert import ConvertConfig, convert
from preprocessing.rlds import open_dataset
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.images import decode_image
from rt_models.action_space import ActionSpace, SpaceDimension
from rt_models.spec import Contract, DimensionMeaning
from tests.support.policy_clients import HarnessRobot, OpenpiRobot, post
from tests.support.policy_server import running, untrained


def test_what_robots_did_becomes_a_store_that_is_trained_on(
    opened: EpisodeStore, frames: list[bytes], tmp_path: Path
) -> None:
    one, other = opened.instruction_texts[:2]
    trained = untrained(opened)
    config = ServiceConfig(recording=RecordingConfig(record=str(tmp_path / "recorded")))
    with running(trained, config) as server, OpenpiRobot(server.websocket) as robot:
        first = [robot.infer({"image": frame, "prompt": one}) for frame in frames[:5]]
        robot.infer({"image": frames[0], "prompt": other, "stateless": True})  # of no episode
        second = [robot.infer({"image": decode_image(frame), "prompt": other}) for frame in frames[:4]]
        post(f"{server.address}/act", {"robot": "arm-1", "image": "!", "instruction": one})
    folder = tmp_path / "recorded/metaworld_sample/1.0.0"
    episodes = list(open_dataset(str(folder)).episodes("train"))
    assert [each.num_steps for each in episodes] == [5, 4]  # type: ignore[union-attr]
    asked = {"split": "train", "workers": 0}
    store = EpisodeStore.open(
        convert(str(folder), str(tmp_path / "stores"), ConvertConfig(**asked, dataset=str(folder / "spec.yaml"))).store
    )
    rows = store.read_rows(0, 0, ["image", "action"]).to_pydict()
    assert rows["image"] == frames[:5]
    np.testing.assert_array_equal(np.nan_to_num(rows["action"]), np.concatenate([a["actions"] for a in first]))
    rows = store.read_rows(1, 0, ["action"]).to_pydict()
    np.testing.assert_array_equal(np.nan_to_num(rows["action"]), np.concatenate([a["actions"] for a in second]))
    assert sorted(store.instruction_texts) == sorted([one, other])
    trained.contract.require_readable(store.contract, where="what was recorded")
    train = ["train", "rt1_tiny", "--data", store.root, "--output", str(tmp_path / "run"), "--loop.steps", "2"]
    assert main([*train, "--loop.global-batch", "4", "--loop.micro-batch", "4"]) == 0


@pytest.fixture
def layout(opened: EpisodeStore) -> RobotLayout:
    contract: Contract = opened.contract
    return RobotLayout(
        space=contract.action,
        side=contract.datasets[0],
        cameras=(("image", 8, 8),),
        encoder="",
        num_tokens=contract.action.size,
    )


def step(number: int, *, episode: int = 0, **fields: Any) -> RecordedStep:
    step = RecordedStep(
        episode=episode,
        robot="arm-1",
        layout=0,
        number=number,
        frames={"image": np.full((8, 8, 3), number, np.uint8)},
        instruction="press it",
        embedding=None,
        values_A=(1.0, *[0.5] * 10),
        tokens_T=np.arange(11),
        contract="c",
        model="m",
    )
    return replace(step, **fields)


def written(folder: Path, layout: RobotLayout, messages: list[Any], **config: Any) -> list[int]:
    """Steps of each published episode."""
    writer = EpisodeWriter(RecordingConfig(record=str(folder), **config))
    for message in (LayoutTold(number=0, layout=layout), *messages):
        writer.take(message)
    writer.finish_all()
    found = open_dataset(str(folder / layout.side.name / "1.0.0"))
    return [each.num_steps for each in found.episodes("train")] if found.splits else []  # type: ignore[union-attr]


def test_an_episode_with_a_gap_is_left_out(tmp_path: Path, layout: RobotLayout) -> None:
    whole = [step(0), step(1), EpisodeEnd(episode=0, steps=2)]
    gap = [step(0, episode=1), step(2, episode=1), step(3, episode=1), EpisodeEnd(episode=1, steps=4)]
    cut = [step(0, episode=2), EpisodeEnd(episode=2, steps=2)]
    headless = [step(1, episode=3), EpisodeEnd(episode=3, steps=2)]
    damaged = [step(0, episode=4, tokens_T=np.arange(3)), EpisodeEnd(episode=4, steps=1)]
    goes_on = [step(0, episode=5)]
    assert written(tmp_path, layout, [*gap, *whole, *cut, *headless, *damaged, *goes_on]) == [2, 1]
    assert not [file for file in tmp_path.rglob("*") if "partial" in file.name]


def test_an_episode_says_whether_it_was_solved_and_how_often_the_robot_acted(
    tmp_path: Path, layout: RobotLayout, caplog: pytest.LogCaptureFixture
) -> None:
    """`layout` is of 10 Hz."""
    told: list[Any] = []
    for number, (said, ended, every_s) in enumerate(
        [([None, False, True], None, 0.1), ([False] * 3, None, 0.5), ([None] * 3, False, 0.1), ([None] * 3, None, 0.1)]
    ):
        seen = [said[0]] * 4 + said[1:]
        told += [
            step(n, episode=number, success=each, told_hz=10.0 * (number == 0), arrived=100 + every_s * n)
            for n, each in enumerate(seen)
        ]
        told.append(EpisodeEnd(episode=number, steps=6, success=ended))
    assert written(tmp_path, layout, told) == [6] * 4
    folder = tmp_path / layout.side.name / "1.0.0"
    episodes: list[Any] = list(open_dataset(str(folder)).episodes("train"))
    found = [{name: each.metadata[f"episode_metadata/{name}"] for name in RATES} for each in episodes]
    assert [each["success"] for each in found] == [1, 0, 0, -1]
    assert [each["told_hz"] for each in found] == [10, 0, 0, 0]
    np.testing.assert_allclose([each["measured_hz"] for each in found], [10, 2, 10, 10], rtol=1e-5)
    assert [[bool(mark) for mark in each.steps["is_terminal"]][-2:] for each in episodes][:2] == [
        [False, True],
        [False] * 2,
    ]
    (slow,) = [record for record in caplog.records if "at another rate" in record.message]
    assert (slow.measured_hz, slow.control_hz) == (2.0, 10.0)  # type: ignore[attr-defined]
    config = ConvertConfig(split="train", workers=0, encoder="hash", dataset=str(folder / "spec.yaml"))
    store = EpisodeStore.open(convert(str(folder), str(tmp_path / "stores"), config).store)
    assert store.manifest.flag_names == ("failure", "unknown_success")
    flags = [store.read_rows(number, 0, ["flags"])["flags"][0].as_py() for number in range(4)]
    assert flags == [0, 1, 1, 2]


RATES = ("success", "told_hz", "measured_hz")


def test_what_a_client_says_of_success_reaches_the_episode(
    opened: EpisodeStore, frames: list[bytes], text: str, tmp_path: Path
) -> None:
    config = ServiceConfig(recording=RecordingConfig(record=str(tmp_path)))
    with running(untrained(opened), config) as server:
        with OpenpiRobot(server.websocket) as robot:
            for success in (None, True):
                robot.infer({"image": frames[0], "prompt": text, "success": success, "control_hz": 10.0})
            with pytest.raises(RuntimeError, match="success must be true or false"):
                robot.infer({"image": frames[0], "prompt": text, "success": "yes"})
        with HarnessRobot(server.websocket + "/vla") as robot:
            seen = {"images": {"a": frames[0]}, "task_description": text}
            robot.send("episode_start", {"task": {"name": "a"}})
            robot.ask("observation", seen)
            robot.send("episode_end", {"metrics": {"success": False}, "steps": 1})
            robot.send("episode_start", {"task": {"name": "a"}})
            robot.ask("observation", seen)
            robot.send("episode_end", {"metrics": {"return": 2.0}})
    episodes: list[Any] = list(open_dataset(str(tmp_path / "metaworld_sample/1.0.0")).episodes("train"))
    said = sorted((each.num_steps, int(each.metadata["episode_metadata/success"])) for each in episodes)
    assert said == [(1, -1), (1, 0), (2, 1)]
    assert max(float(each.metadata["episode_metadata/told_hz"]) for each in episodes) == 10


def test_a_long_episode_is_cut_and_goes_on(
    tmp_path: Path, layout: RobotLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.serving.recording.episode_writer.MOST_STEPS", 3)
    assert written(tmp_path, layout, [*map(step, range(7)), EpisodeEnd(episode=0, steps=7)]) == [3, 3, 1]


def test_recording_stops_at_its_size(tmp_path: Path, layout: RobotLayout, caplog: pytest.LogCaptureFixture) -> None:
    messages = [m for n in range(20) for m in (step(0, episode=n), EpisodeEnd(episode=n, steps=1))]
    kept = written(tmp_path, layout, messages, record_gib=4000 / 2**30)
    assert 1 < len(kept) < 20 and caplog.text.count("recording has stopped") == 1
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.tfrecord-*")) < 6000


def test_steps_of_another_form_get_a_folder_of_their_own(tmp_path: Path, layout: RobotLayout) -> None:
    assert written(tmp_path, layout, [step(0)]) == [1]
    assert written(tmp_path, layout, [step(0), EpisodeEnd(episode=0, steps=1)]) == [1, 1]  # the same: it goes on
    written(tmp_path, replace(layout, cameras=(("image", 16, 8),)), [])
    written(tmp_path, replace(layout, side=replace(layout.side, control_hz=3.0)), [])
    assert sorted(each.name for each in (tmp_path / layout.side.name).iterdir()) == ["1.0.0", "1.0.1", "1.0.2"]


def test_each_camera_is_kept_under_its_role(tmp_path: Path, layout: RobotLayout) -> None:
    both = replace(layout, cameras=(("image", 8, 8), ("wrist", 4, 6)))
    frames = {"image": np.zeros((8, 8, 3), np.uint8), "wrist": np.full((4, 6, 3), 200, np.uint8)}
    assert written(tmp_path, both, [step(number, frames=frames) for number in range(2)]) == [2]
    folder = tmp_path / layout.side.name / "1.0.0"
    config = ConvertConfig(
        split="train", workers=0, encoder="hash", dataset=str(folder / "spec.yaml"), cameras=("image", "wrist")
    )
    store = EpisodeStore.open(convert(str(folder), str(tmp_path / "stores"), config).store)
    rows = store.read_rows(0, 0, ["image", "image_wrist"]).to_pydict()
    assert [decode_image(frame).shape for frame in rows["image_wrist"]] == [(4, 6, 3)] * 2


def test_a_robot_of_joints_keeps_what_its_numbers_mean(tmp_path: Path, layout: RobotLayout) -> None:
    dimensions = (SpaceDimension(name="joint_0"), SpaceDimension(name="mode", classes=("go", "stop")))
    space = ActionSpace(name="two", dimensions=dimensions).spec()
    meanings = (DimensionMeaning(kind="absolute", frame="base"), DimensionMeaning())
    side = replace(layout.side, action_mask=(True, True), units=("rad", "class"), meanings=meanings)
    joints = replace(layout, space=space, side=side)
    steps = [step(number, values_A=(0.5, 1.0)) for number in range(2)]
    assert written(tmp_path, joints, steps) == [2]
    folder = tmp_path / layout.side.name / "1.0.0"
    config = ConvertConfig(split="train", workers=0, encoder="hash", dataset=str(folder / "spec.yaml"))
    contract = EpisodeStore.open(convert(str(folder), str(tmp_path / "stores"), config).store).contract
    (read,) = contract.datasets
    assert contract.action.same_space(space) and read.units == side.units and read.kinds == side.kinds


def test_a_server_never_waits_for_its_recording(
    opened: EpisodeStore, frames: list[bytes], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer takes nothing: the queue fills, robots are answered as before, and the loss is counted."""
    monkeypatch.setattr("pipelines.serving.recording.recorder._QUEUED", 4)
    with running(untrained(opened)) as server, OpenpiRobot(server.websocket) as robot:
        recorder = server.service._recorder = Recorder(RecordingConfig(record=str(tmp_path)))
        for _ in range(10):
            robot.infer({"image": frames[0], "prompt": text})
        assert recorder.lost == 10 - 3  # the first three, after what they hold
        assert "rtp_lost_steps 7.0" in server.service.metrics.text().decode()
        server.service._recorder = None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"record_gib": 0}, "--record-gib 0: give a number above 0"),
        ({"record_jpeg_quality": 0}, "--record-jpeg-quality 0: give a number from 1 to 100"),
        ({"record": "s3://bucket/x"}, "give a folder of this machine"),
    ],
)
def test_what_cannot_be_recorded_into_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RecordingConfig(**settings)


def test_a_killed_server_leaves_whole_episodes(tmp_path: Path, layout: RobotLayout) -> None:
    """The writer's pipe closes when the server is gone: what was open is published, nothing half."""
    from pipelines.serving.recording.episode_writer import write_episodes

    context = multiprocessing.get_context("spawn")
    heard, told = context.Pipe(duplex=False)
    process = context.Process(target=write_episodes, args=(heard, RecordingConfig(record=str(tmp_path))))
    process.start()
    heard.close()
    for message in (LayoutTold(number=0, layout=layout), step(0), step(1)):
        told.send(message)
    told.close()
    began = time.monotonic()
    process.join(60)
    assert process.exitcode == 0 and time.monotonic() - began < 60
    (episode,) = open_dataset(str(tmp_path / layout.side.name / "1.0.0")).episodes("train")
    assert episode.num_steps == 2  # type: ignore[union-attr]


def test_a_model_that_cannot_be_warmed_up_leaves_no_process_behind(
    opened: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that nobody ends would keep the server from ending."""
    service = PolicyService(untrained(opened), ServiceConfig(recording=RecordingConfig(record=str(tmp_path))))

    def fail(model: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(service, "warm_up", fail)
    before = multiprocessing.active_children()
    with pytest.raises(RuntimeError, match="no memory"):
        asyncio.run(service.start())
    assert multiprocessing.active_children() == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"--record .*file cannot be made .*: give another folder"):
        RecordingConfig(record=str(tmp_path / "file")).folder()
