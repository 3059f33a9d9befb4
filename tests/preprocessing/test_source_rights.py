"""Licence and citation, from what a dataset's files say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from preprocessing.convert import ConvertConfig, convert
from preprocessing.source_rights import rights_of
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.store_manifest import Rights
from tests.support.tiny_rlds import bridge_episode, bridge_features, write_dataset


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
