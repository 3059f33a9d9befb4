"""The summary adds up, and the page is whole, self-contained and escaped."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.reports import episode_view, store_page
from pipelines.reports.episode_view import Timeline
from preprocessing.audit import frames as audit_frames
from preprocessing.convert import ConvertConfig, convert
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.summary import summary, text
from tests.support.html_tags import Tags, read_page


@pytest.fixture
def store(make_bridge: Callable[..., Path], tmp_path: Path) -> EpisodeStore:
    source = make_bridge([5, 30], [6], [140])
    file = next(source.glob("*-00001-of-*"))
    file.write_bytes(file.read_bytes()[:-3])
    convert(str(source), str(tmp_path / "out"), ConvertConfig(workers=0))
    return EpisodeStore.open(str(tmp_path / "out"))


def test_the_summary_adds_up(store: EpisodeStore) -> None:
    found = summary(store)
    assert found["counts"] == {"episodes_in": 4, "episodes_out": 3, "quarantined": 1, "steps": 175}
    assert sum(found["instructions"].values()) == 175
    assert found["episode_steps"] == {"min": 5, "median": 30, "max": 140}
    assert sum(found["quarantine"].values()) == 1
    assert set(found["dimensions"]) | set(found["dimensions_lacking"]) == set(store.contract.action.names)
    assert found["dimensions"]["world_vector_x"]["unit"] == "m"
    assert "quarantined 1; 175 steps" in text(found)


def test_the_page_is_self_contained(store: EpisodeStore) -> None:
    found = summary(store)
    found["dataset"] = found["notes"] = "<script>"
    found["instructions"] = {"<script>": 175}
    page = store_page.page(store, found, episodes=2)
    tags = read_page(page)
    assert tags.count["script"] == 1 and page.count("<script>") == 1
    assert page.count("&lt;script&gt;") == 4  # title, heading, notes and instruction of the data
    assert tags.links and all(link.startswith("data:image/jpeg;base64,") for link in tags.links)
    assert tags.count["section"] == 2
    assert tags.count["svg"] == 7 + 1 + 2  # a histogram a dimension, episode lengths, curves of two episodes
    assert "the file ends inside a record" in page


def test_film_strips_draw_no_more_than_there_is(store: EpisodeStore) -> None:
    tags = Tags()
    page = store_page.film_strips(store, limit=50)
    tags.feed(page)
    strips = re.findall(r'<div class="strip">(.*?)</div>', page)
    assert tags.count["section"] == 3 and [strip.count("<img") for strip in strips] == [5, 10, 10]


def test_an_episode_plays_all_its_frames_or_evenly_spread_ones(store: EpisodeStore) -> None:
    page = store_page.film_strips(store, limit=50)
    screens = re.findall(r'<div class="screen">(.*?)</div>', page)
    played = [[int(step) for step in steps.split(",")] for steps in re.findall(r'data-steps="([^"]*)"', page)]
    assert [len(steps) for steps in played] == [screen.count("<img") for screen in screens] == [5, 30, 47]
    assert played[0] == list(range(5)) and played[2] == list(range(0, 140, 3))
    assert page.count('class="cursor"') == 3, "one on the curves of each"
    assert re.findall(r'data-interval="(\d+)"', page) == ["200", "200", "600"]  # 5 Hz


@given(st.integers(1, 2000))
def test_curves_stand_below_the_pictures_of_their_steps(length: int) -> None:
    timeline = Timeline(length=length)
    pictures, places = timeline.pictures(), timeline.places(np.arange(length))
    assert len(pictures) <= 10 and (np.diff(places) > 0).all() and places[0] > 0 and places[-1] < 1
    cells = (places * len(pictures)).astype(int)  # the picture that a point stands below
    assert (cells[pictures] == np.arange(len(pictures))).all()
    assert (cells == np.arange(length) // timeline.stride).all()


def test_a_frame_that_cannot_be_drawn_is_named(store: EpisodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(encoded: bytes) -> tuple[int, int]:
        raise ValueError("no picture")

    monkeypatch.setattr(episode_view, "image_size", damaged)
    with pytest.raises(ValueError, match=r"step 0 of episode 0 of .*shard-00000.*no picture"):
        store_page.film_strips(store, limit=1)


def test_a_damaged_frame_is_named_by_page_and_audit(store: EpisodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(encoded: bytes) -> None:
        raise ValueError("cut")

    monkeypatch.setattr("pipelines.reports.episode_view.image_size", broken)
    monkeypatch.setattr("preprocessing.audit.frames.decode_image", broken)
    named = r"the frame at step 0 of episode 0 of .*shard-00000-of-.* cannot be decoded \(cut\): delete the store"
    with pytest.raises(ValueError, match=named):
        store_page.film_strips(store)
    with pytest.raises(ValueError, match=named):
        audit_frames.colours(store, "image", None)


def test_episodes_are_read_across_row_groups(store: EpisodeStore) -> None:
    table = store.read_episode(2, 0, ["step"])
    assert table["step"].to_pylist() == list(range(140))
    assert store.read_episode(0, 1, ["episode", "step"]).to_pydict() == {"episode": [1] * 30, "step": list(range(30))}
