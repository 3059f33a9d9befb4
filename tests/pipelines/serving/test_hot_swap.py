"""A model that takes another's place under load: no connection ends, and no action comes of a mixture of the two."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipelines.publishing.folder import TrainedModel
from pipelines.publishing.inference import InferenceModel
from pipelines.serving.hot_swap import AliasFollower, require_same_meaning
from pipelines.serving.limits import Limits
from pipelines.serving.service import PolicyService, ServiceConfig
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.images import decode_image
from rt_models.action_space import ActionSpace, SpaceDimension
from rt_models.spec import Contract, ImageRecipe, OwnSide, StoreInputs
from tests.rt_models.test_robot_inputs import state
from tests.support.policy_clients import OpenpiRobot, get
from tests.support.policy_server import running, untrained


class Registry:
    """An alias that moves, and the models of its versions."""

    def __init__(self, *versions: TrainedModel) -> None:
        self.models = {model.source: model for model in versions}
        self.alias = versions[0].source

    def followed_by(self, service: PolicyService) -> AliasFollower:
        return AliasFollower(
            service=service, version_of=lambda: self.alias, load=lambda uri: self.models[uri], every_s=0.05
        )


def version(opened: EpisodeStore, number: int) -> TrainedModel:
    return replace(untrained(opened, seed=number), source=f"models:/arm/{number}")


def moved(url: str, registry: Registry, uri: str) -> None:
    registry.alias = uri
    ends = time.monotonic() + 60
    while get(f"{url}/describe")[1]["model"] != uri:
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_an_alias_that_moves_under_load_mixes_nothing(opened: EpisodeStore, frames: list[bytes], text: str) -> None:
    one, two = version(opened, 1), version(opened, 2)
    registry, stop = Registry(one, two), threading.Event()
    pixels = [decode_image(frame) for frame in frames]

    def robot(url: str) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = []
        with OpenpiRobot(url) as client:
            while not stop.is_set():
                answers.append(client.infer({"image": pixels[len(answers) % 6], "prompt": text}))
        return answers

    unhurried = ServiceConfig(limits=Limits(max_rate_hz=1e6))  # on a fast machine a robot asks 100 times a second
    with running(one, unhurried, follow=registry.followed_by) as server, ThreadPoolExecutor(4) as threads:
        robots = [threads.submit(robot, server.websocket) for _ in range(4)]
        time.sleep(0.5)
        moved(server.address, registry, two.source)
        time.sleep(0.5)
        stop.set()
        answered = [each.result(60) for each in robots]
    for answers in answered:
        models = [answer["model"] for answer in answers]
        assert models == sorted(models) and set(models) == {one.source, two.source}
        for source, trained in (("models:/arm/1", version(opened, 1)), ("models:/arm/2", version(opened, 2))):
            model = InferenceModel(trained)
            policy, told = model.episode(model.contract.datasets[0]), model.instruction(text)
            for place, answer in enumerate(answers):
                if answer["model"] == source:
                    (action,) = model.act([policy], [pixels[place % 6]], [told])
                    np.testing.assert_array_equal(answer["tokens"][0], action.tokens)
                    assert answer["frames_seen"] == action.frames_seen


def test_a_version_that_means_something_else_is_not_served(
    opened: EpisodeStore, frames: list[bytes], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    one, two, three = version(opened, 1), version(opened, 2), version(opened, 3)
    (side,) = two.contract.datasets
    faster = replace(two, contract=replace(two.contract, datasets=(replace(side, control_hz=30.0),)))
    registry = Registry(one, faster, three)
    with running(one, follow=registry.followed_by) as server, OpenpiRobot(server.websocket) as robot:
        registry.alias = faster.source
        seen = {"image": decode_image(frames[0]), "prompt": text}
        ends = time.monotonic() + 60
        while "not served" not in caplog.text:
            assert time.monotonic() < ends
            assert robot.infer(seen)["model"] == one.source
        assert "control rate of metaworld_sample differ: 10.0 is served, the new model has 30.0" in caplog.text
        moved(server.address, registry, three.source)
        assert robot.infer(seen)["model"] == three.source


def test_a_version_that_cannot_be_loaded_yet_is_tried_again(
    opened: EpisodeStore, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = version(opened, 1), version(opened, 2)
    registry, tries = Registry(one, two), 0

    def load(uri: str) -> TrainedModel:
        nonlocal tries
        tries += 1
        if tries <= 4:
            raise ConnectionError("the registry's storage does not answer")
        return registry.models[uri]

    def follower(service: PolicyService) -> AliasFollower:
        return AliasFollower(service=service, version_of=lambda: registry.alias, load=load, every_s=0.02)

    with running(one, follow=follower) as server:
        moved(server.address, registry, two.source)
        time.sleep(0.2)
    assert tries == 5  # once it is served it is not read again
    assert caplog.text.count("the new version is not served, the old one goes on") == 1


def test_what_a_robot_was_told_must_stay_true(opened: EpisodeStore) -> None:
    contract = untrained(opened).contract
    (side,) = contract.datasets
    both = StoreInputs(cameras=(ImageRecipe(camera="wrist", height=8, width=8),), state=state("x", "y"))
    require_same_meaning(contract, contract)
    require_same_meaning(contract, replace(contract, encoder="another"))
    for other, words in (
        (replace(contract, datasets=(replace(side, name="other"),)), "was not trained on metaworld_sample"),
        (replace(contract, datasets=(side, replace(side, name="other"))), "several data sets"),
        (
            replace(contract, datasets=(replace(side, units=("x",) * len(side.units)),)),
            "units of metaworld_sample differ",
        ),
        (replace(contract, action=replace(contract.action, gripper="none")), "gripper convention differ"),
        (replace(contract, datasets=(side.declared(gripper="relative", spec=""),)), "gripper of metaworld_sample diff"),
        (contract.reading(("image", "wrist"), (), [both]), "reads camera wrist, which robots of metaworld_sample need"),
        (contract.reading(("image",), ("x",), [both]), "state of metaworld_sample differ: none is served"),
    ):
        with pytest.raises(ValueError, match=words):
            require_same_meaning(contract, other)
    whole = contract.reading(("image", "wrist"), ("x", "y"), [both])
    for fewer in (contract, contract.reading(("image",), ("x", "y"), [both])):
        require_same_meaning(whole, fewer)  # what robots send beside that is not looked at
    with pytest.raises(ValueError, match="state of metaworld_sample differ"):
        require_same_meaning(whole, contract.reading(("image",), ("x",), [both]))


def test_a_mapped_robot_s_own_gripper_and_classes_must_stay_true(opened: EpisodeStore) -> None:
    contract = untrained(opened).contract
    (side,) = contract.datasets
    dimension = SpaceDimension(name="mode", classes=("go", "stop"))
    gripper = SpaceDimension(name="gripper")
    own = ActionSpace(name="own", dimensions=(dimension, gripper), gripper="1 is open, 0 is closed")
    swapped = replace(own, dimensions=(replace(dimension, classes=("stop", "go")), gripper))

    def served(space: ActionSpace) -> Contract:
        mapped = replace(side, own=OwnSide(action=space.spec(), dataset=side, map=()))
        return replace(contract, datasets=(mapped,))

    require_same_meaning(served(own), served(own))
    for other, words in (
        (replace(own, gripper="1 is closed, 0 is open"), "gripper convention of metaworld_sample differ"),
        (swapped, "classes of metaworld_sample differ"),
    ):
        with pytest.raises(ValueError, match=words):
            require_same_meaning(served(own), served(other))
