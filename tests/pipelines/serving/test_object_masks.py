"""Policies that read object masks at work: a robot says with an episode's first frame where its object is."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipelines.publishing.folder import write_bundle
from pipelines.publishing.inference import InferenceModel
from pipelines.publishing.mlflow_model import example, signature, write_policy
from pipelines.publishing.mlflow_policy import MlflowPolicy
from pipelines.publishing.object_detection import ObjectDetection
from pipelines.publishing.objects_meant import MarkReader, ObjectsMeant
from pipelines.publishing.policy import load_policy
from pipelines.serving.client import PolicyClient
from pipelines.serving.limits import Limits
from pipelines.serving.request_format import OBJECTS, ServedPolicy
from pipelines.serving.run import Listening
from pipelines.serving.service import PolicyService, ServiceConfig
from pipelines.serving.start_up import announcement
from preprocessing.masks.owl import Detection, OwlDetector
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.images import decode_image
from rt_models.control.rt1_policy import RT1Policy
from rt_models.object_marks import ObjectMarks
from rt_models.spec import ImageRecipe
from tests.support.masked_policy import VERBS, masked
from tests.support.policy_clients import post
from tests.support.policy_server import RunningServer, running, untrained

BOX, OTHER = [4, 10, 12, 20], [30, 40, 34, 44]
VERB = VERBS[0]
Tokens = list[list[int]]


@pytest.fixture(scope="module")
def server(opened: EpisodeStore) -> Iterator[RunningServer]:
    with running(masked(opened), ServiceConfig(limits=Limits(max_rate_hz=1e6, late_ms=60_000))) as started:
        yield started


@pytest.fixture(scope="module")
def tokens_for(opened: EpisodeStore, frames: list[bytes]) -> Callable[[list[float]], Tokens]:
    """The tokens of three frames, by a policy that is given the mask as a fourth channel."""
    trained = masked(opened)
    policy = RT1Policy(trained.model, dataset=trained.contract.dataset())  # type: ignore[arg-type]

    def act(box: list[float]) -> Tokens:
        policy.reset()
        answers = []
        for frame in map(decode_image, frames[:3]):
            height, width = frame.shape[:2]
            mask = np.zeros((1, height, width), np.uint8)
            ObjectMarks(first=((box[0] + box[2]) / 2 / width, (box[1] + box[3]) / 2 / height)).draw(mask)
            four = np.concatenate([frame, mask[0, ..., None]], axis=-1)
            answers.append(policy.act(four, trained.instructions.vectors[VERB]).tokens.tolist())
        return answers

    return act


def test_a_robot_says_once_an_episode_where_its_object_is(
    server: RunningServer, frames: list[bytes], tokens_for: Callable[[list[float]], Tokens]
) -> None:
    assert tokens_for(BOX) != tokens_for(OTHER)  # or marks do not matter, and nothing is compared
    with PolicyClient(server.websocket) as client:
        assert client.metadata["objects"] == list(OBJECTS)

        def infer(frame: bytes, **said: Any) -> Any:
            answer = client.infer({"image": frame, "prompt": VERB, **said})
            return np.asarray(answer["tokens"])[0].tolist(), answer["frames_seen"]

        with pytest.raises(ValueError, match="object_box: it is missing: a mark tells this policy which object"):
            infer(frames[0])
        said: list[dict[str, Any]] = [{"object_box": BOX}, {}, {}]
        first = [infer(frame, **fields) for frame, fields in zip(frames, said, strict=False)]
        assert [tokens for tokens, _ in first] == tokens_for(BOX) and [seen for _, seen in first] == [1, 2, 3]
        again = [infer(frame, **fields) for frame, fields in zip(frames, [{"object_box": OTHER}, {}, {}], strict=False)]
        assert [tokens for tokens, _ in again] == tokens_for(OTHER) and [seen for _, seen in again] == [1, 2, 3]
        with pytest.raises(ValueError, match=r"object_box: it is missing.*another instruction begins one"):
            client.infer({"image": frames[0], "prompt": VERBS[1]})
        with pytest.raises(ValueError, match=r"object_box: it is missing.*\"field\": \"object_box\""):
            infer(frames[0], reset=True)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"object_box": [1, 2, 3]}, r"object_box: must be corners \[x0, y0, x1, y1\] or a pixel"),
        ({"object_box": "left"}, "object_box: must be corners"),
        ({"object_box": [9000, 0, 9001, 1]}, "object_box: box .* lies outside of the frame"),
        ({"object_box": [5, 5, 1, 1]}, "object_box: box .* has no corners x0 <= x1"),
        ({"object_box": [0, 0, 1, float("nan")]}, "object_box"),
        ({"second_object_box": BOX}, "object_box: it is missing, and second_object_box is of a second object"),
        ({"object_box": BOX, "second_object_box": [1]}, "second_object_box: must be corners"),
        ({"object_name": "cup"}, "object_name: nothing here looks for objects by name: send object_box, or start"),
        ({"object_box": BOX, "object_name": "cup"}, "object_name: object_box says already where the object is"),
    ],
)
def test_what_is_no_place_of_an_object_is_named(
    server: RunningServer, frames: list[bytes], fields: dict[str, Any], words: str
) -> None:
    with PolicyClient(server.websocket) as client, pytest.raises(ValueError, match=words):
        client.infer({"image": frames[0], "prompt": VERB, "stateless": True, **fields})


def test_http_and_python_mark_the_same_pixel(
    server: RunningServer,
    opened: EpisodeStore,
    frames: list[bytes],
    tokens_for: Callable[[list[float]], Tokens],
    tmp_path: Path,
) -> None:
    row = {"image": base64.b64encode(frames[0]).decode(), "instruction": VERB, "stateless": True, "object_box": BOX}
    status, told = post(f"{server.address}/act", row)
    assert status == 200 and told["tokens"][0] == tokens_for(BOX)[0]
    twice = decode_image(frames[0]).repeat(2, axis=0).repeat(2, axis=1)  # boxes are of the frame that is sent
    status, larger = post(f"{server.address}/act", row | {"image": twice.tolist(), "object_box": [2 * s for s in BOX]})
    assert status == 200 and larger["tokens"][0] == told["tokens"][0]
    status, told = post(f"{server.address}/invocations", {"dataframe_records": [row]})
    write_bundle(masked(opened), tmp_path)
    policy = load_policy(tmp_path)
    action = policy.act(frames[0], VERB, object_box=BOX)
    assert {name: told["predictions"][0][name] for name in action.values} == dict(action.values)
    assert policy.act(frames[1], VERB).frames_seen == 2
    with pytest.raises(ValueError, match="object_box: it is missing"):
        load_policy(tmp_path).act(frames[0], VERB)
    with pytest.raises(ValueError, match="'pick up the cup' is not one of the 2 that this policy was trained on"):
        policy.act(frames[0], "pick up the cup", object_box=BOX)
    status, answered = post(f"{server.address}/invocations", dict(ServedPolicy.of(server.service.model).request()))
    assert status == 200 and answered["predictions"][0]["frames_seen"] == 1


def test_a_registered_model_refuses_a_call_as_a_whole(
    opened: EpisodeStore, frames: list[bytes], tmp_path: Path
) -> None:
    trained = masked(opened)
    inputs = signature(trained).inputs.input_names()
    assert "object_box" in inputs and "second_object_box" in inputs
    policy = MlflowPolicy()
    policy.load_context(SimpleNamespace(artifacts={"policy": str(write_policy(trained, tmp_path))}))

    def seen(*rows: dict[str, Any]) -> list[int]:
        asked = [
            {"image": frame, "instruction": VERB, "robot": "a", **row} for frame, row in zip(frames, rows, strict=False)
        ]
        return policy.predict(None, pd.DataFrame(asked))["frames_seen"].tolist()

    assert policy.predict(None, example(trained))["frames_seen"].tolist() == [1]
    assert seen({"object_box": BOX}, {}) == [1, 2]
    with pytest.raises(ValueError, match="row 1: object_box: it is missing"):
        seen({}, {"robot": "b"})
    with pytest.raises(ValueError, match="row 0: object_box: it is missing"):
        seen({"reset": True})
    with pytest.raises(ValueError, match="row 0: object_name: nothing here looks for objects by name"):
        seen({"object_name": "cup"})
    assert seen({}) == [3]  # neither call has moved a history


def test_a_policy_without_masks_is_told_no_objects(opened: EpisodeStore, frames: list[bytes], text: str) -> None:
    model = InferenceModel(untrained(opened))
    dataset = opened.contract.dataset()
    with pytest.raises(ValueError, match="object_box: this policy reads no object masks: leave it out"):
        model.marks(ObjectsMeant(object_box=BOX), frames[0], model.frames(frames[0], dataset), dataset)
    with pytest.raises(ValueError, match="reads no object masks: leave out --detector owlvit:here"):
        InferenceModel(untrained(opened), detection=ObjectDetection(detector="owlvit:here"))


def test_objects_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def detect(detector: OwlDetector, frame_HWC: np.ndarray, names: list[str]) -> list[Detection]:
        asked.append(names)
        return [Detection(centre=(0.25, 0.5), score=0.6), Detection(centre=(1.0, 0.0), score=0.2)][: len(names)]

    monkeypatch.setattr(OwlDetector, "detect", detect)
    recipe, frame = ImageRecipe(camera="image", height=40, width=60), np.zeros((40, 60, 3), np.uint8)
    reader = MarkReader(recipe=recipe, detector=OwlDetector(folder="here"), threshold=0.1)
    both = ObjectsMeant(object_name="red can", second_object_name="apple")
    assert reader.marks(both, frame, frame) == ObjectMarks(first=(0.25, 0.5), second=(1.0, 0.0))
    mixed = ObjectsMeant(object_box=[0, 0, 60, 40], second_object_name="apple")
    assert reader.marks(mixed, frame, frame) == ObjectMarks(first=(0.5, 0.5), second=(0.25, 0.5))
    assert asked == [["red can", "apple"], ["apple"]]
    strict = MarkReader(recipe=recipe, detector=OwlDetector(folder="here"), threshold=0.5)
    with pytest.raises(ValueError, match=r"second_object_name: no apple is found in the frame \(score 0.20"):
        strict.marks(both, frame, frame)
    for name in (" ", 3, "x" * 300):
        with pytest.raises(ValueError, match="object_name: must be a text of at most 200 letters"):
            reader.marks(ObjectsMeant(object_name=name), frame, frame)
    for wrong in ("owlvit:", "yolo:x"):
        with pytest.raises(ValueError, match="is not owlvit:PATH"):
            ObjectDetection(detector=wrong)


def test_a_model_that_reads_masks_takes_no_place_of_one_that_does_not(opened: EpisodeStore) -> None:
    plain, marked = untrained(opened), masked(opened)
    for served, other, says in (
        (plain, marked, "the new model needs object_box"),
        (marked, plain, "the new model takes no object_box"),
    ):
        service = PolicyService(served, ServiceConfig())
        with pytest.raises(ValueError, match=says):
            asyncio.run(service.swap(other))
        assert service.source == served.source


def test_the_printed_client_sends_a_box(server: RunningServer) -> None:
    assert '"object_box": [6, 6, 10, 10]' in announcement(server.frontend, Listening(), "runs/first")
