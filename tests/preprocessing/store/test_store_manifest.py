"""Manifests as records: the same bytes again, and a sentence that names the place of what is missing or mistyped."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preprocessing.convert import ConvertConfig, convert
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.web_store import WebStore
from preprocessing.web.convert_web import WebConvertConfig, convert_web
from tests.support.tiny_web import write_vqav2


@pytest.fixture
def store(make_bridge: Callable[..., Path], tmp_path: Path) -> EpisodeStore:
    return EpisodeStore.open(
        convert(str(make_bridge([9, 3], [4])), str(tmp_path / "out"), ConvertConfig(workers=0)).store
    )


@pytest.fixture
def web_store(tmp_path: Path) -> WebStore:
    write_vqav2(tmp_path)
    summary = convert_web(str(tmp_path), str(tmp_path / "out"), WebConvertConfig(format="vqav2", workers=0))
    return WebStore.open(summary.store)


def test_a_manifest_is_written_as_it_was_read(store: EpisodeStore, web_store: WebStore) -> None:
    for root, manifest in ((store.root, store.manifest), (web_store.root, web_store.manifest)):
        assert manifest.to_bytes() == Path(root, "manifest.json").read_bytes()


def test_what_a_store_holds(store: EpisodeStore, web_store: WebStore) -> None:
    assert (store.name, store.num_steps, store.num_episodes) == ("bridge_dataset", 16, 3)
    assert store.dataset is store.contract.datasets[0]
    for opened in (store, web_store):
        assert opened.num_bytes == sum(Path(shard.path).stat().st_size for shard in opened.shards)


def test_keys_of_later_versions_are_ignored_and_those_of_older_ones_may_lack(web_store: WebStore) -> None:
    changed(web_store.root, lambda m: (m.update(later=[1]), m.pop("duplicates"), m["shards"][0].pop("duplicates")))
    assert WebStore.open(web_store.root).manifest.duplicates == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.pop("counts"), "no 'counts'"),
        (lambda m: m["counts"].update(steps="16"), 'counts.steps is "16", not a whole number'),
        (lambda m: m["counts"].update(steps=True), "counts.steps is true, not a whole number"),
        (
            lambda m: m["shards"][1].update(episode_lengths=[4, None]),
            "episode_lengths[1] is null, not a whole",
        ),
        (lambda m: m.update(flag_names="first"), 'flag_names is "first", not a list'),
        (lambda m: m["proprio"].pop("units"), "no 'proprio.units'"),
        (lambda m: m["statistics"]["hardly_vary"].update(x=1), "statistics.hardly_vary.x is 1, not a text"),
        (lambda m: m.update(contract=[]), "contract is [], not an object"),
        (lambda m: m["source_fields"].update(action=7), "source_fields.action is 7, not an object"),
    ],
)
def test_what_is_missing_or_mistyped_is_named(
    store: EpisodeStore, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    path = changed(store.root, change)
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        EpisodeStore.open(store.root)
    assert str(refused.value).startswith(f"{path} is not as it was written")


def changed(root: str, change: Callable[[dict[str, Any]], object]) -> Path:
    path = Path(root, "manifest.json")
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    return path
