"""The card of a store: YAML that the hub reads, what the manifest knows, and no path of this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from preprocessing.convert import ConvertConfig, convert
from preprocessing.store.card import UNKNOWN, dataset_card, hub_licence, words, write_card
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.store_manifest import Rights
from tests.support.tiny_rlds import bridge_episode, bridge_features, write_dataset

CITATION = "@article{bridge, title={A | title with ``` and <tags>}}\nsecond line"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    folder = tmp_path_factory.mktemp("card")
    episodes = [[bridge_episode(np.random.default_rng(0), 3)]]
    source = write_dataset(folder / "source", "bridge_dataset", bridge_features(), episodes)
    config = ConvertConfig(encoder="hash", workers=0)
    return EpisodeStore.open(convert(str(source), str(folder / "stores"), config).store)


def with_rights(store: EpisodeStore, rights: Rights | None) -> EpisodeStore:
    return replace(store, manifest=replace(store.manifest, rights=rights))


def head(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---\n")[1])


def test_it_states_contract_units_account_and_rights(store: EpisodeStore) -> None:
    card = dataset_card(with_rights(store, Rights(licence="CC BY 4.0", citation=CITATION, source="https://a.b")))
    found = head(card)
    assert found["license"] == "cc-by-4.0" and found["task_categories"] == ["robotics"]
    assert found["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "shard-*.parquet"}]}
    ]
    for text in (store.manifest.contract_id, "1 episodes, 3 steps", "| world_vector_x | m |", "5 Hz", "https://a.b"):
        assert text in card, text
    fenced = card.split("```\n")[1]
    assert fenced == CITATION.replace("```", "'''") + "\n" and card.count("```") == 2
    assert str(Path(store.root).parents[3]) not in card


@pytest.mark.parametrize(("split", "name"), [("val", "val"), ("train[:1000]", "train"), ("[:3]", "train")])
def test_the_split_has_its_name_on_the_hub(store: EpisodeStore, split: str, name: str) -> None:
    (found,) = head(dataset_card(replace(store, manifest=replace(store.manifest, split=split))))["configs"]  # type: ignore[misc]
    assert found["data_files"][0]["split"] == name


def test_what_the_source_does_not_say_is_unknown(store: EpisodeStore) -> None:
    card = dataset_card(with_rights(store, None))
    assert "license" not in head(card) and card.count(UNKNOWN) == 3
    assert "license" not in head(dataset_card(with_rights(store, Rights(licence="ask the authors"))))


def test_it_lies_beside_the_manifest_and_harms_no_reader(store: EpisodeStore) -> None:
    path = Path(write_card(store))
    assert path == Path(store.root, "README.md") and path.read_text() == dataset_card(store)
    EpisodeStore.open(store.root).verify()


@pytest.mark.parametrize(
    ("given", "found"), [("Apache-2.0", "apache-2.0"), (" MIT\n", "mit"), ("", ""), ("see: the [page]", "")]
)
def test_only_the_hub_s_own_identifiers_enter_the_head(given: str, found: str) -> None:
    assert hub_licence(given) == found


def test_texts_of_others_stay_in_their_cell() -> None:
    assert words("a | b\n<img src=x> `c`") == "a \\| b &lt;img src=x> 'c'"
