"""Licence and citation, from what a dataset's files say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from preprocessing.convert import ConvertConfig, convert
from preprocessing.filtering.filter_config import FilterConfig
from preprocessing.filtering.filter_store import filter_store
from preprocessing.source_rights import rights_of
from preprocessing.store.card import dataset_card
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.store_manifest import Rights
from preprocessing.store.web_store import WebStore
from preprocessing.web.convert_web import WebConvertConfig, convert_web
from tests.support.tiny_rlds import bridge_episode, bridge_features, write_dataset
from tests.support.tiny_web import png, put


def test_they_travel_from_the_dataset_into_the_manifest(tmp_path: Path) -> None:
    episodes = [[bridge_episode(np.random.default_rng(0), 3)]]
    source = write_dataset(tmp_path / "source", "bridge_dataset", bridge_features(), episodes)
    path = source / "dataset_info.json"
    info = json.loads(path.read_text()) | {
        "citation": "@article{walke2023}",
        "redistributionInfo": {"license": "CC BY 4.0"},
        "location": {"urls": ["https://example.org/bridge"]},
    }
    path.write_text(json.dumps(info))
    store = convert(str(source), str(tmp_path / "out"), ConvertConfig(encoder="hash", workers=0)).store
    expected = Rights(licence="CC BY 4.0", citation="@article{walke2023}", source="https://example.org/bridge")
    assert EpisodeStore.open(store).manifest.rights == expected


def test_those_of_image_text_data_travel_through_a_filter_into_the_card(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"image": f"{n}.png", "caption": f"the {n}"}) + "\n" for n in range(2))
    put(tmp_path / "in", {"a.jsonl": lines.encode(), "0.png": png(0), "1.png": png(1)}, images=())
    (tmp_path / "in/README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    made = convert_web(str(tmp_path / "in"), str(tmp_path / "stores"), WebConvertConfig(format="jsonl", workers=0))
    config = FilterConfig(scorer="none", workers=0)
    kept = WebStore.open(filter_store(made.store, str(tmp_path / "kept"), config).store)
    assert kept.manifest.rights == Rights(licence="cc-by-4.0")
    card = dataset_card(kept)
    assert "license: cc-by-4.0" in card and "2 in = 2 out + 0 quarantined + 0 duplicates + 0 filtered" in card
    (tmp_path / "in/README.md").unlink()
    plain = convert_web(str(tmp_path / "in"), str(tmp_path / "plain"), WebConvertConfig(format="jsonl", workers=0))
    assert "rights" not in json.loads(Path(plain.store, "manifest.json").read_text())


@pytest.mark.parametrize(
    ("name", "text", "licence"),
    [
        ("README.md", "---\nlicense: apache-2.0\ntags: [x]\n---\n# A set", "apache-2.0"),
        ("README.md", "license: this is no head", None),
        ("dataset_info.json", '{"redistributionInfo": null, "citation": 3}', None),
        ("dataset_info.json", "[]", None),
        ("dataset_info.json", "{", None),
    ],
)
def test_what_says_nothing_is_none(tmp_path: Path, name: str, text: str, licence: str | None) -> None:
    (tmp_path / name).write_text(text)
    found = rights_of(str(tmp_path))
    assert found == (None if licence is None else Rights(licence=licence))
