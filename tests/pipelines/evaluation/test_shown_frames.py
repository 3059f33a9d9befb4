"""A policy sees the simulator's frames as its training data were drawn: the contract carries it from `rtp simulate`."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipelines.evaluation.closed_loop_config import ClosedLoopConfig
from pipelines.evaluation.closed_loop_run import ClosedLoop
from pipelines.evaluation.closed_loop_setup import prepare
from pipelines.evaluation.shown_frames import remarks_on_limits, shown_frames
from preprocessing.conversion.simulated_source import simulated_source_of
from preprocessing.convert import ConvertConfig, convert
from preprocessing.simulation.metaworld_environment import MetaWorldConfig
from preprocessing.simulation.metaworld_rollout import VIEWS
from preprocessing.store.episode_store import EpisodeStore
from rt_models.spec import ImageRecipe, SimulatedSource
from tests.support.command_line import SAMPLE
from tests.support.untrained import write_untrained

DRAWN = SimulatedSource(
    simulator="metaworld", view="top", height=96, width=96, jpeg_quality=40, control_hz=10, max_steps=62
)
ASKED = ClosedLoopConfig(env="metaworld:door-lock", baselines=())
IMAGE = ImageRecipe(camera="image", height=96, width=96)


@pytest.fixture(scope="module")
def drawn_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Episodes whose folder says that they were drawn from above."""
    folder = tmp_path_factory.mktemp("drawn")
    source = folder / "metaworld_sample/1.0.0"
    shutil.copytree(SAMPLE, source)
    (source / "metadata.json").write_text(json.dumps({"simulation": asdict(DRAWN)}))
    return convert(str(source), str(folder), ConvertConfig(split="val", encoder="hash", workers=0, limit=6)).store


def prepared(store: str, folder: Path, config: ClosedLoopConfig) -> ClosedLoop:
    return prepare(str(write_untrained(store, folder / "model")), config, episodes=1, seed=0)


def test_view_and_jpeg_quality_travel_from_the_source_to_the_simulator(drawn_store: str, tmp_path: Path) -> None:
    loop = prepared(drawn_store, tmp_path, ASKED)
    (environment,) = loop.environments
    assert isinstance(environment, MetaWorldConfig) and environment.camera is not None
    assert (environment.camera.view, environment.camera.jpeg_quality) == (VIEWS["top"], 40)
    assert loop.frames is not None and loop.frames.remarks == ()


def test_another_view_than_the_training_data_s_is_named(
    drawn_store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        loop = prepared(drawn_store, tmp_path, replace(ASKED, view="front"))
    (environment,) = loop.environments
    assert isinstance(environment, MetaWorldConfig) and environment.camera is not None
    assert (environment.camera.view, environment.camera.jpeg_quality) == (VIEWS["front"], 40)
    assert "the training data have view top, and the policy is shown front" in caplog.text


def test_the_record_changes_neither_the_contract_s_id_nor_the_rest_of_the_store(drawn_store: str, store: str) -> None:
    with_record, without = EpisodeStore.open(drawn_store), EpisodeStore.open(store)
    assert with_record.dataset.simulated == DRAWN and without.dataset.simulated is None
    assert replace(with_record.contract, datasets=without.contract.datasets).id == without.contract.id
    assert "simulated" not in Path(store, "manifest.json").read_text()


def test_data_that_do_not_say_how_they_were_drawn_are_named() -> None:
    frames = shown_frames(ASKED, IMAGE, None)
    assert (frames.view, frames.jpeg_quality) == ("side", 85)
    assert "do not say how their frames were drawn: --view side, --jpeg-quality 85 are assumed" in frames.remarks[0]
    assert not shown_frames(replace(ASKED, view="side", jpeg_quality=85), IMAGE, None).remarks


def test_frames_that_were_resized_and_other_limits_are_named() -> None:
    (remark,) = shown_frames(ASKED, replace(IMAGE, height=48), DRAWN).remarks
    assert "drawn at 96x96 and resized to 48x96" in remark
    limit = MetaWorldConfig(task="door-lock-v3", camera=None, control_hz=10)
    assert remarks_on_limits(DRAWN, [limit]) == ()
    assert "62 steps at most, and 40 in" in remarks_on_limits(replace(DRAWN, max_steps=40), [limit])[0]


def test_a_view_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="view below, unknown here: give --view, one of side, front, top"):
        shown_frames(ASKED, IMAGE, replace(DRAWN, view="below"))


@pytest.mark.parametrize("text", ["{", "[1]", '{"simulation": 3}', '{"simulation": {"view": "side"}}', "{}"])
def test_metadata_of_another_form_cost_no_conversion(text: str, tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text(text)
    assert simulated_source_of(str(tmp_path)) is None
