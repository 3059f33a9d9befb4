"""Recorded episodes over the wire: the tokens of `rtp evaluate`, and the cause where they are not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from pipelines.cli import main
from pipelines.evaluation.replay import Expectation, replay
from pipelines.publishing.folder import write_bundle
from pipelines.publishing.inference import InferenceModel
from pipelines.publishing.instructions import Instructions
from pipelines.serving.action_limits import ActionLimits
from pipelines.serving.client import PolicyClient
from pipelines.serving.limits import Limits
from pipelines.serving.service import ServiceConfig
from preprocessing.convert import ConvertConfig, convert
from preprocessing.store.episode_store import EpisodeStore
from rt_models.spec import Contract, StateInput
from tests.support import two_cameras
from tests.support.command_line import REPOSITORY
from tests.support.policy_server import RunningServer, running, untrained

UNHURRIED = Limits(max_rate_hz=1e6, late_ms=60_000)
EPISODES = 3


@pytest.fixture(scope="module")
def opened(store: str) -> EpisodeStore:
    return EpisodeStore.open(store)


@pytest.fixture(scope="module")
def expected(opened: EpisodeStore) -> Expectation:
    return Expectation(untrained(opened), opened)


@pytest.fixture(scope="module")
def server(opened: EpisodeStore) -> Iterator[RunningServer]:
    with running(untrained(opened), ServiceConfig(limits=UNHURRIED)) as started:
        yield started


@pytest.mark.parametrize(("recipe", "flags", "episodes"), [("rt1_tiny", (), 24), ("rt2_tiny", ("--episodes", "6"), 6)])
def test_a_served_model_says_what_was_predicted_to_the_last_bin(
    opened: EpisodeStore,
    store: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    recipe: str,
    flags: tuple[str, ...],
    episodes: int,
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_bundle(untrained(opened, recipe), folder)
    assert main(["replay", str(folder), "--data", store, "--json", *flags]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["agrees"] and report["same_tokens"] == report["tokens"] == report["steps"] * 11
    assert report["episodes"] == episodes and (report["steps"] == 254) == (not flags)


def test_real_episodes_whose_texts_have_vectors_of_their_own_agree_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shipped Bridge file: the vectors come with its episodes, and some episodes have no text."""
    source = REPOSITORY / "tests/data/bridge_dataset/1.0.0"
    store = convert(str(source), str(tmp_path / "stores"), ConvertConfig(split="train", workers=0)).store
    folder = tmp_path / "model"
    folder.mkdir()
    write_bundle(untrained(EpisodeStore.open(store)), folder)
    assert main(["replay", str(folder), "--data", store, "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["agrees"] and report["same_tokens"] == report["tokens"] > 0 and report["episodes"] == 25


def test_an_address_is_compared_with_the_model_that_is_named(
    server: RunningServer, opened: EpisodeStore, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_bundle(untrained(opened), folder)
    words = ["replay", server.websocket, "--data", store, "--episodes", "2"]
    assert main([*words, "--model", str(folder)]) == 0
    assert "(100.00%)" in capsys.readouterr().out
    assert main(words) == 2 and "Give --model" in capsys.readouterr().err
    assert main(["replay", str(folder), "--data", store, "--model", str(folder)]) == 2
    assert main(["replay", "ws://127.0.0.1:9", "--data", store, "--model", str(folder)]) == 2
    assert "no policy server answers" in capsys.readouterr().err


def cause(expected: Expectation, server: RunningServer) -> tuple[str, str]:
    with PolicyClient(server.websocket) as client:
        report = replay(expected, client, episodes=EPISODES)
    assert report.first_difference is not None and not report.agrees
    return report.first_difference.cause, report.first_difference.explanation


def test_other_weights_are_found(expected: Expectation, opened: EpisodeStore) -> None:
    with running(untrained(opened, seed=1), ServiceConfig(limits=UNHURRIED)) as other:
        kind, words = cause(expected, other)
    assert kind == "model" and "the same input gives other tokens in" in words


def test_another_instruction_vector_is_found(expected: Expectation, opened: EpisodeStore) -> None:
    trained = untrained(opened)
    swapped = dict(zip(opened.instruction_texts, opened.embeddings[::-1], strict=True))
    wrong = replace(trained, instructions=Instructions(trained.contract.encoder, swapped))
    with running(wrong, ServiceConfig(limits=UNHURRIED)) as other:
        assert cause(expected, other)[0] == "instruction"


def test_limits_are_found(expected: Expectation, opened: EpisodeStore) -> None:
    limits = ActionLimits(bounds={"world_vector_x": (0.9, 1.0)})
    with running(untrained(opened), ServiceConfig(limits=UNHURRIED, action_limits=limits)) as other:
        kind, words = cause(expected, other)
    assert kind == "limits" and "world_vector_x" in words


class Altering:
    """A client between the replay and the server that changes what is sent, or what comes back."""

    def __init__(self, client: PolicyClient, *, sent: Any = None, answered: Any = None) -> None:
        self._client, self._sent, self._answered = client, sent, answered
        self.metadata = client.metadata

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        sent = observation if self._sent is None else self._sent(dict(observation))
        answer = dict(self._client.infer(sent))
        return answer if self._answered is None else self._answered(answer)


def dark(observation: dict[str, Any]) -> dict[str, Any]:
    return observation | {"image": np.zeros((96, 96, 3), np.uint8)}


def forgetful(observation: dict[str, Any]) -> dict[str, Any]:
    return observation | {"reset": True}


def value_of(name: str, factor: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def altered(answer: dict[str, Any]) -> dict[str, Any]:
        actions = np.array(answer["actions"])
        actions[0, answer["action_names"].index(name)] *= factor
        return answer | {"actions": actions}

    return altered


@pytest.mark.parametrize(
    ("altering", "kind"),
    [
        ({"sent": dark}, "image"),
        ({"sent": forgetful}, "history"),
        ({"answered": value_of("world_vector_x", 35.0)}, "scaling"),
        ({"answered": value_of("gripper_closedness_action", -1.0)}, "gripper"),
        ({"answered": lambda answer: answer | {"contract": "another", "tokens": answer["tokens"] + 1}}, "contract"),
    ],
)
def test_the_first_difference_has_its_cause(
    expected: Expectation, server: RunningServer, altering: dict[str, Any], kind: str
) -> None:
    with PolicyClient(server.websocket) as client:
        report = replay(expected, cast(PolicyClient, Altering(client, **altering)), episodes=EPISODES)
    assert report.first_difference is not None and report.first_difference.cause == kind


def test_a_server_that_tells_no_tokens_is_named(expected: Expectation, server: RunningServer) -> None:
    with PolicyClient(server.websocket) as client:
        foreign = Altering(client, answered=lambda answer: {"actions": answer["actions"]})
        with pytest.raises(ValueError, match="tells no tokens"):
            replay(expected, cast(PolicyClient, foreign), episodes=1)


def other_wrist(observation: dict[str, Any]) -> dict[str, Any]:
    return observation | {"image_wrist": np.zeros((8, 8, 3), np.uint8)}


def other_state(observation: dict[str, Any]) -> dict[str, Any]:
    return observation | {"state": {name: value + 3.0 for name, value in observation["state"].items()}}


def test_of_several_cameras_and_a_state_each_is_sent_and_each_difference_has_its_cause(tmp_path: Path) -> None:
    opened = two_cameras.store(tmp_path)
    trained = untrained(opened, cameras=("image", "wrist"), state=StateInput(), stride=2)
    expected, config = Expectation(trained, opened), ServiceConfig(limits=UNHURRIED)
    with running(trained, config) as server, PolicyClient(server.websocket) as client:
        assert replay(expected, client, episodes=None).agrees and client.metadata["stride"] == 2
        for sent, kind, words in ((other_wrist, "image", "of camera wrist"), (other_state, "state", "another state")):
            report = replay(expected, cast(PolicyClient, Altering(client, sent=sent)), episodes=1)
            assert report.first_difference is not None and report.first_difference.cause == kind
            assert words in report.first_difference.explanation
    wrist_alone = untrained(opened, cameras=("wrist",))
    with running(wrist_alone, config) as server, PolicyClient(server.websocket) as client:
        assert replay(Expectation(wrist_alone, opened), client, episodes=None).agrees


def test_a_policy_acts_on_the_frames_that_its_contract_names(opened: EpisodeStore) -> None:
    plain, strided = untrained(opened), untrained(opened, stride=2)
    contract = strided.contract
    assert (contract.num_steps, contract.stride, contract.id) == (3, 2, plain.contract.id)
    assert "stride" not in plain.contract.to_json() and Contract.from_json(contract.to_json()).stride == 2
    for other in (replace(contract, stride=1), replace(contract, num_steps=4)):
        with pytest.raises(ValueError, match=r"untrained: by its contract .* by its settings on 3, 2 steps apart"):
            InferenceModel(replace(strided, contract=other))
    InferenceModel(replace(plain, contract=replace(plain.contract, num_steps=0)))  # of before
