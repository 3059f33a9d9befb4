"""Robots whose states have other names train together once it is declared which values are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.cli import main
from pipelines.publishing.policy import load_policy
from preprocessing.convert import ConvertConfig, convert
from preprocessing.store.episode_store import EpisodeStore
from tests.support import two_cameras

OTHERS = "state/x = state/ee_x; state/y = state/ee_y; state/z = state/ee_z; state/opening = state/jaw"


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of a robot, and of one that records the same values in another order under other names."""
    folder = tmp_path_factory.mktemp("states")
    first = two_cameras.store(folder / "first").root
    source = two_cameras.source(folder / "source", name="other", seed=1)
    spec = two_cameras.spec(folder / "other.yaml", name="other")
    names = "".join(f"  - {name}\n" for name in two_cameras.STATE)
    others = "".join(f"  - {name}\n" for name in ("ee_y", "jaw", "ee_x", "ee_z"))
    units = "  - m\n  - openness\n  - m\n  - m\n"
    text = spec.read_text().replace(names, others).replace("  - m\n  - m\n  - m\n  - openness\n", units)
    spec.write_text(text)
    config = ConvertConfig(dataset=str(spec), encoder="hash", workers=0, cameras=("image", "hand"))
    return [first, EpisodeStore.open(convert(str(source), str(folder / "out"), config).store).root]


def train(stores: list[str], folder: Path, settings: str) -> int:
    (folder / "settings.yaml").write_text(settings)
    words = ["rt1_tiny", "--config", str(folder / "settings.yaml"), "--data", *stores, "--output", str(folder / "run")]
    return main(["train", *words, "--loop.steps", "2", "--loop.global-batch", "8", "--loop.micro-batch", "4"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("model: {state: {}}", "the states of two_cameras and other differ: other has state/ee_y, which two_cameras"),
        ("model: {state: {}}\nmixture: {states: {other: 'state/x = state/ee_x'}}", "other has state/ee_y"),
        ("model: {state: {}}\nmixture: {states: {other: 'x = elbow'}}", "states of other: there is no elbow"),
        ("model: {state: {}}\nmixture: {states: {another: 'x = y'}}", "mixture.states names 'another', and the stores"),
        ("mixture: {states: {other: 'x = y'}}", "the model reads none: set model.state"),
        (f"model: {{state: {{}}}}\nmixture: {{states: {{other: '{OTHERS}; a = state/jaw'}}}}", "or one have two"),
    ],
)
def test_what_is_not_declared_is_one_sentence(
    stores: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: str, words: str
) -> None:
    assert train(stores, tmp_path, settings) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not (tmp_path / "run").exists()


def test_each_robot_sends_its_own_names_and_the_model_reads_common_ones(
    stores: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(stores, tmp_path, f"model: {{state: {{}}}}\nmixture: {{states: {{other: '{OTHERS}'}}}}") == 0
    first, other = (load_policy(tmp_path / "run", dataset=name) for name in ("two_cameras", "other"))
    assert first.contract.state == tuple(f"state/{name}" for name in two_cameras.STATE)
    picture, felt = np.full((16, 24, 3), 90, np.uint8), {"state/ee_x": 0.1, "state/ee_y": 0.2, "state/ee_z": 0.3}
    assert np.isfinite(list(other.act(picture, "lift it", felt | {"state/jaw": 1.0}).values.values())).all()
    assert np.isfinite(list(other.act(picture, "lift it", [0.1, 0.2, 0.3, 1.0]).values.values())).all()
    with pytest.raises(ValueError, match="state lacks state/ee_x: send state/ee_x"):
        other.act(picture, "lift it", {"state/x": 0.0})
    for root in stores:
        assert main(["evaluate", str(tmp_path / "run"), "--data", root, "--bootstrap-samples", "20"]) == 0
        assert main(["replay", str(tmp_path / "run"), "--data", root, "--episodes", "1"]) == 0


def test_a_selection_of_names_needs_no_map(stores: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(stores, tmp_path, "model: {state: {names: [state/x, state/jaw]}}") == 0
    sides = {side.name: side.state for side in load_policy(tmp_path / "run", dataset="other").contract.datasets}
    assert [side.names for side in sides.values() if side] == [("state/x",), ("state/jaw",)]
