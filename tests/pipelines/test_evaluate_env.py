"""`rtp evaluate --env`: a policy moved through Meta-World by the command, and what the command leaves."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import simplejpeg

from pipelines.cli import main
from pipelines.evaluation import closed_loop_setup
from pipelines.evaluation.actors import PolicyActor
from pipelines.evaluation.closed_loop import Episode
from pipelines.evaluation.closed_loop_config import ClosedLoopConfig
from pipelines.publishing.inference import InferenceModel
from pipelines.publishing.trained_model import load_trained
from preprocessing.simulation.environment import Observation
from preprocessing.simulation.metaworld_environment import MetaWorldConfig
from preprocessing.store.episode_store import EpisodeStore
from tests.support.html_tags import read_page
from tests.support.untrained import write_untrained

PICTURE = simplejpeg.encode_jpeg(np.zeros((96, 96, 3), np.uint8))
ENV = ["--env", "metaworld:button-press,drawer-close", "--episodes", "1", "--bootstrap-samples", "50"]


@pytest.fixture(scope="module")
def bundle(store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of the sample."""
    return write_untrained(store, tmp_path_factory.mktemp("models") / "untrained")


@pytest.fixture(autouse=True)
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_a_policy_acts_beside_baselines_and_leaves_a_report_videos_and_a_page(
    drawing: None, bundle: Path, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baselines = ["--baselines", "replay", "expert"]
    words = [*ENV, *baselines, "--data", store, "--video", "videos", "--html", "page.html", "--output", "report.json"]
    assert main(["evaluate", str(bundle), *words, "--json"]) == 0
    printed = capsys.readouterr().out
    account = json.loads(printed.splitlines()[-1])
    assert "under 1 seeds, 2000000 to 2000000; at most 62 steps at 10 Hz" in printed
    assert account["closed_loop"] == json.loads(Path("report.json").read_text())["closed_loop"]
    actors: dict[str, Any] = account["closed_loop"]["actors"]
    assert list(actors) == ["policy", "replay", "expert"]
    assert all(success["episodes"] == 1 for report in actors.values() for success in report["tasks"].values())
    assert actors["expert"]["tasks"]["button-press-v3"]["successes"] == 1
    assert actors["policy"]["tasks"]["button-press-v3"]["errors"] == 0
    files = sorted(Path("videos").iterdir())
    assert [file.name.rsplit("-2000000-")[0] for file in files] == ["button-press-v3", "drawer-close-v3"]
    with av.open(str(files[0])) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        shown = sum(1 for _ in video.decode(stream))
    (first,) = [e for e in actors["policy"]["episodes"] if e["task"] == "button-press-v3"]
    assert shown == first["steps"] + 1
    page = read_page(Path("page.html").read_text())
    assert sum(link.startswith("data:video/mp4;base64,") for link in page.links) == 2
    assert not list((bundle / "evaluations").glob("unfinished*"))


class Heard(Exception):
    """The policy has been told its instruction."""


def test_a_shuffled_embedding_has_the_same_numbers_in_an_order_of_the_seed(bundle: Path, store: str) -> None:
    trained = load_trained(str(bundle))
    model = InferenceModel(trained)
    dataset, told = trained.contract.dataset(), list[np.ndarray]()

    def hear(policies: object, frames: object, instructions: list[np.ndarray], states: object) -> None:
        told.extend(instructions)
        raise Heard

    (text, *_) = EpisodeStore.open(store).instruction_texts
    environment = MetaWorldConfig(task="drawer-close-v3", camera=None, control_hz=10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "act", hear)
        for seed, shuffles in ((1, False), (1, True), (1, True), (2, True)):
            actor = PolicyActor(model, dataset, shuffle_embeddings=shuffles)
            actor.begin(Episode(environment=environment, seed=seed, instruction=text))
            with pytest.raises(Heard):
                actor.act(Observation(frame=PICTURE, state_S=np.zeros(4, np.float32)))
    plain, first, again, other = told
    assert (plain == model.instruction(text)).all() and (first == again).all()
    assert (first != plain).any() and (first != other).any()
    assert (np.sort(first) == np.sort(plain)).all() and (np.sort(other) == np.sort(plain)).all()


def test_a_policy_that_reads_text_has_no_embedding_to_shuffle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_loop_setup, "family_of", lambda _: SimpleNamespace(instruction="text"))
    config = ClosedLoopConfig(env="metaworld:door-lock", shuffle_embeddings=True)
    with pytest.raises(ValueError, match=r"reads instructions as text, .*: leave out --shuffle-embeddings"):
        closed_loop_setup.prepare(str(bundle), config, episodes=1, seed=0)


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--env", "metaworld:button-pres"], "Meta-World has no task 'button-pres': did you mean button-press-v3?"),
        (["--env", "libero:all"], "there is no simulator 'libero'"),
        (["--env", "metaworld"], "--env names a simulator and tasks"),
        (["--env", "metaworld:door-lock", "--episodes", "0"], "--episodes must be 1 or more"),
        (["--env", "metaworld:door-lock", "--swap-instructions", "--baselines"], "need two tasks or more"),
        (["--video", "videos", "--data", "somewhere"], "--video belongs to episodes in a simulator"),
        (["--swap-instructions", "--data", "somewhere"], "--swap-instructions belongs to episodes in a simulator"),
        (["--shuffle-embeddings", "--data", "somewhere"], "--shuffle-embeddings belongs to episodes in a simulator"),
        (["--env", "metaworld:door-lock", "--batch", "3"], "--batch belongs to scores on stores"),
        (["--env", "metaworld:door-lock", "--workers", "-1"], "--workers must be 0 or more"),
        ([], "give --data STORE, or --env SIMULATOR:TASK"),
    ],
)
def test_one_sentence_for_a_mistake(
    bundle: Path, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["evaluate", str(bundle), *words]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []
