"""Two cameras and a state from the store to the action: trained, evaluated, resumed, loaded and acted with."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipelines.catalogue import load_recipe
from pipelines.cli import main
from pipelines.config.experiment import Experiment
from pipelines.families.models import family_of
from pipelines.publishing.inference import InferenceModel
from pipelines.publishing.mlflow_model import example, signature, write_policy
from pipelines.publishing.mlflow_policy import MlflowPolicy
from pipelines.publishing.policy import LoadedPolicy, load_policy
from pipelines.publishing.trained_model import load_trained, with_instructions
from pipelines.serving.adapters.own import Own
from pipelines.serving.greeting import greeting
from pipelines.serving.limits import Limits
from pipelines.serving.recording.config import RecordingConfig
from pipelines.serving.recording.messages import LayoutTold, RecordedStep
from pipelines.serving.recording.recorder import Recorder
from pipelines.serving.refusal import Refusal
from pipelines.serving.request_format import ServedPolicy
from pipelines.serving.service import PolicyService, ServiceConfig
from pipelines.training.data import open_reader, resolved, training_contract
from preprocessing.store.episode_store import EpisodeStore
from rt_models.spec import ContractMismatch, StateInput, check_batch
from tests.support import two_cameras

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, EpisodeStore]:
    folder = tmp_path_factory.mktemp("two_cameras")
    whole = two_cameras.store(folder / "whole")
    bare = two_cameras.store(folder / "bare", name="bare", hand=None, state=False, shards=((5, 6),))
    return {"whole": whole, "bare": bare}


def experiment(**changes: Any) -> Experiment:
    recipe = load_recipe("rt1_tiny")
    changes.setdefault("cameras", ("image", "wrist"))
    changes.setdefault("state", StateInput())
    return replace(recipe, model=replace(recipe.model, **changes))


@pytest.mark.parametrize("tokenizers", ["shared", "separate"])
def test_what_the_loader_reads_is_what_the_model_takes(stores: dict[str, EpisodeStore], tokenizers: str) -> None:
    both = [stores["whole"], stores["bare"]]
    run = resolved(experiment(tokenizers=tokenizers), both)
    contract = training_contract(run, both)
    assert run.model.state.names == ("state/x", "state/y", "state/z", "state/opening")
    assert contract.datasets[1].without_cameras == ("wrist",) and contract.datasets[1].state is None
    assert contract.num_steps == 3 and contract.recipe("wrist").height == 8
    reader = open_reader(run, both, contract, is_training=True)
    rows = np.array([0, 3, 12, reader.store_rows[0], reader.store_rows[0] + 7])
    batch = reader.read(rows, rows)
    check_batch(batch, action_size=11, cameras=("image", "wrist"), state_size=4)
    assert batch["state_mask"].any(1).tolist() == [True] * 3 + [False] * 2
    assert np.isfinite(float(run.model.build().loss(batch).detach()))
    family = family_of(run.model)
    together = tokenizers == "shared"
    size = reader.size(rows, rows, crops=True)
    wide = reader.read(rows, rows, rows, capacity=size)
    planned = family.planned(run.model, wide, size, is_training=True)
    check_batch(planned, action_size=11, cameras=("image", "wrist"), state_size=4, together=together)
    cost = family.batch_cost(run.model)
    assert cost.frames(batch) == (size if together else int(planned["num_images"] + planned["num_images_wrist"]))


def test_a_model_that_reads_neither_has_the_contract_it_always_had(stores: dict[str, EpisodeStore]) -> None:
    plain = experiment(cameras=("image",), state=None)
    contract = training_contract(resolved(plain, [stores["whole"]]), [stores["whole"]])
    data = contract.to_json()
    assert data.pop("num_steps") == 3 and not {"cameras", "state", "stride"} & set(data)
    assert replace(contract, num_steps=0).to_json() == data


def test_stores_that_lack_what_is_read_are_refused(stores: dict[str, EpisodeStore], tmp_path: Path) -> None:
    alone = experiment()
    with pytest.raises(ValueError, match="no store has a state"):
        resolved(alone, [stores["bare"]])
    with pytest.raises(ContractMismatch, match="reads camera wrist, and no store has it"):
        training_contract(experiment(state=None), [stores["bare"]])
    left_out = two_cameras.store(tmp_path / "left", cameras=("image",))
    with pytest.raises(ValueError, match="--cameras image hand"):
        training_contract(resolved(alone, [left_out]), [left_out])
    contract = training_contract(resolved(alone, [stores["whole"]]), [stores["whole"]])
    other = two_cameras.store(tmp_path / "other", hand_size=(10, 8))
    with pytest.raises(ContractMismatch, match=r"camera wrist: the model has 8x8 .* has 10x8"):
        open_reader(resolved(alone, [stores["whole"]]), [other], contract)


@pytest.fixture(scope="module")
def run(stores: dict[str, EpisodeStore], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run") / "out"
    config = output.parent / "settings.yaml"
    config.write_text("model:\n  cameras: [image, wrist]\n  state: {noise: 0.1, dropout: 0.2}\n")
    flags = ["--loop.steps", "2", "--loop.global_batch", "8", "--loop.micro_batch", "4", "--loop.log_every", "1"]
    words = ["rt1_tiny", "--config", str(config), "--data", stores["whole"].root, "--output", str(output)]
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(output.parent)
        assert main(["train", *words, *flags]) == 0
    return output


def test_a_trained_policy_acts_with_its_cameras_and_state(run: Path, stores: dict[str, EpisodeStore]) -> None:
    policy = load_policy(run)
    assert policy.cameras == ("image", "wrist") and policy.dataset.state is not None
    table = stores["whole"].read_episode(0, 0, ["image", "image_hand", "proprio"])
    image, wrist = table["image"][0].as_py(), table["image_hand"][0].as_py()
    state = dict(zip(policy.dataset.state.names, table["proprio"][0].as_py(), strict=True))
    first = policy.act({"image": image, "hand": wrist}, "lift it", state)
    policy.reset()
    assert policy.act({"image": image, "wrist": wrist}, "lift it", list(state.values())) == first
    for frames, felt, words in (
        ({"image": image}, state, "camera wrist is missing"),
        (image, state, "give a picture of each"),
        ({"image": image, "wrist": b"x"}, state, "camera wrist: image cannot be decoded"),
        ({"image": image, "wrist": wrist}, None, r"state: it is missing, and this policy reads state/x \[m\]"),
        ({"image": image, "wrist": wrist}, {**state, "state/x": float("nan")}, "state state/x is not finite"),
    ):
        with pytest.raises(ValueError, match=words):
            policy.act(frames, "lift it", felt)


def test_another_rate_is_refused_or_scales_what_is_a_displacement(run: Path) -> None:
    def acted(policy: LoadedPolicy) -> Any:
        picture = np.full((16, 24, 3), 90, np.uint8)
        return policy.act({"image": picture, "wrist": picture[:8, :8]}, "lift it", [0.0, 0.1, 0.2, 1.0])

    with pytest.raises(ValueError, match="acts 10 times a second, and the policy learned from two_cameras at 5 Hz"):
        load_policy(run, control_hz=10)
    with pytest.raises(ValueError, match="above 0, got nan"):
        load_policy(run, control_hz=float("nan"), other_rate="scale")
    as_trained, twice = (
        acted(load_policy(run, control_hz=5.01)),
        acted(load_policy(run, control_hz=10, other_rate="scale")),
    )
    for name, value in as_trained.values.items():
        factor = 0.5 if name.startswith("world_vector") else 1.0
        assert twice.values[name] == pytest.approx(value * factor), name
    assert as_trained.values["world_vector_x"]


def test_evaluation_shows_what_a_state_that_stands_still_costs(
    run: Path, stores: dict[str, EpisodeStore], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), "--data", stores["whole"].root, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out.splitlines()[-1])["evaluations"]
    assert set(found["perturbed"]) == {"blank_images", "swapped_instructions", "frozen_state"}


PATIENT = Limits(late_ms=120_000)  # on a busy machine


def served(run: Path, observations: Sequence[dict[str, Any]], **config: Any) -> list[Any]:
    """What a server of the run answers to each observation, an Answer or a Refusal, and last its greeting."""

    async def started() -> list[Any]:
        trained, adapter = with_instructions(load_trained(str(run))), Own()
        service = PolicyService(trained, ServiceConfig(limits=PATIENT, **config))
        await service.start()
        robot = service.sessions.named("arm")
        try:
            asked = [service.ask(robot, partial(adapter.question, each)) for each in observations]
            answers = [(await asyncio.gather(one, return_exceptions=True))[0] for one in asked]
            return [*answers, greeting(service.model, adapter, None, "here")]
        finally:
            await service.stop()

    return asyncio.run(started())


def test_a_server_takes_cameras_and_state_in_the_words_of_several_clients(run: Path) -> None:
    picture = np.full((16, 24, 3), 90, np.uint8)
    state = [0.0, 0.1, 0.2, 1.0]
    by_name = dict(zip((f"state/{name}" for name in two_cameras.STATE), state, strict=True))
    told = {"prompt": "lift it", "reset": True}
    *answers, hello = served(
        run,
        [
            {"image": picture, "image_wrist": picture, "state": state, **told},
            {"observation/image": picture, "observation/wrist_image": picture, "observation/state": by_name, **told},
            {"images": {"cam_high": picture, "cam_wrist": picture}, "state": np.array(state), **told},
            {"observation.images.image": picture, "observation.images.hand": picture, "state": state, **told},
        ],
    )
    assert not isinstance(answers[0], Refusal), answers[0]
    first = answers[0].action.values
    assert all(answer.action.values == first for answer in answers)
    assert [image["camera"] for image in hello["images"]] == ["image", "wrist"]
    assert hello["state"][3] == {"name": "state/opening", "unit": "openness"} and hello["frames"] == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_wrist": None}, "camera wrist is missing: this policy reads image, wrist"),
        ({"image_wrist": "x"}, "camera wrist: image is a text that is not base64"),
        ({"state": None}, "state: it is missing, and this policy reads state/x"),
        ({"state": {"state/x": 1.0}}, "state lacks state/y"),
        ({"state": [0.0, 0.0, 0.0, float("inf")]}, "state state/opening is not finite"),
        ({"state": [0.0] * 5}, "state has the shape"),
        ({"control_hz": 10}, "acts 10 times a second, and the policy learned from two_cameras at 5 Hz"),
        ({"control_hz": "often"}, "control_hz must be a number"),
        ({"state_units": ["m", "m", "mm", "openness"]}, "state/z is in mm on the robot and in m in the policy"),
        ({"action_names": ["world_vector_x"]}, "has 1 values and the policy's 11"),
    ],
)
def test_a_server_refuses_a_robot_by_the_name_of_what_is_wrong(run: Path, changes: dict[str, Any], words: str) -> None:
    picture = np.full((16, 24, 3), 90, np.uint8)
    whole = {"image": picture, "image_wrist": picture, "state": [0.0] * 4, "prompt": "lift it", "control_hz": 5}
    right, wrong, _ = served(run, [whole, {**whole, **changes}])
    assert not isinstance(right, Refusal), right
    assert right.action.frames_seen == 1 and isinstance(wrong, Refusal) and words in str(wrong)


def test_what_a_server_records_has_each_camera_under_its_role(
    run: Path, stores: dict[str, EpisodeStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(Recorder, "_put", lambda _, message: told.append(message) is None)
    for process in ("start", "close"):
        monkeypatch.setattr(Recorder, process, lambda _: None)
    wrist = stores["whole"].read_episode(0, 0, ["image_hand"])["image_hand"][0].as_py()
    picture = np.full((16, 24, 3), 90, np.uint8)
    sent = {"image": picture, "image_wrist": wrist, "state": [0.0] * 4, "prompt": "lift it"}
    answer, _ = served(run, [sent], recording=RecordingConfig(record=str(tmp_path)))
    assert not isinstance(answer, Refusal), answer
    (layout,) = [each.layout for each in told if isinstance(each, LayoutTold)]
    (step,) = [each for each in told if isinstance(each, RecordedStep)]
    assert layout.cameras == (("image", 16, 24), ("wrist", 8, 8))
    assert step.frames["wrist"] == wrist and np.array_equal(step.frames["image"], picture)


def test_a_server_scales_displacements_where_it_is_told_to(run: Path) -> None:
    picture = np.full((16, 24, 3), 90, np.uint8)
    whole = {"image": picture, "image_wrist": picture, "state": [0.0] * 4, "prompt": "lift it", "reset": True}
    slow, fast, _ = served(run, [whole, {**whole, "control_hz": 10}], other_rate="scale")
    assert fast.action.values["world_vector_x"] == pytest.approx(slow.action.values["world_vector_x"] / 2)
    closes = "gripper_closedness_action"
    assert fast.action.values[closes] == slow.action.values[closes]


def test_the_registered_model_has_columns_for_what_it_reads(run: Path, tmp_path: Path) -> None:
    trained = with_instructions(load_trained(str(run)))
    columns = {column.name: column.required for column in signature(trained).inputs}
    assert columns["image_wrist"] and columns["state"]
    policy = MlflowPolicy()
    policy.load_context(SimpleNamespace(artifacts={"policy": str(write_policy(trained, tmp_path))}))
    table = example(trained).assign(instruction="lift it")
    answer = policy.predict(None, table, {"control_hz": "5"})
    assert np.isfinite(answer["world_vector_x"][0])
    shown = replace(ServedPolicy.of(InferenceModel(trained)), instructions=("lift it",)).request()
    answer = policy.predict(None, pd.DataFrame(shown["dataframe_records"]), {})
    assert np.isfinite(answer["world_vector_x"][0])
    for dropped, words in (("image_wrist", "camera wrist is missing"), ("state", "state: it is missing")):
        with pytest.raises(ValueError, match=words):
            policy.predict(None, table.drop(columns=dropped), {})
    with pytest.raises(ValueError, match="acts 9 times a second"):
        policy.predict(None, table, {"control_hz": "9"})
