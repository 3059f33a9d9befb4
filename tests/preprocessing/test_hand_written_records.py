"""Records of kuka's and RT-1's released schemas, written by hand with every oddity, through the command itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tensorflow_datasets.proto import tf_example_pb2

from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.summary import quarantine
from preprocessing.tfds.features import Feature, flatten
from tests.support.tiny_rlds import fabricate, jpeg, released_schemas, write_records

REPOSITORY = Path(__file__).resolve().parents[2]
MOVES = np.array([[0.1, -0.2, 0.3], [0, 0, 0.5], [0.25, 0, 0]], np.float32)
FRAME = jpeg(np.random.default_rng(0), 8, 10)


def preprocessed(*words: object) -> dict[str, Any]:
    """The account that `rtp preprocess ... --json` prints, from a process of its own."""
    command = [sys.executable, "-m", "pipelines", "preprocess", *map(str, words), "--workers", "0", "--json"]
    variables = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def changed(record: bytes, key: str, change: Callable[[Any], object]) -> bytes:
    """The record with the Feature `key` changed in place."""
    message = tf_example_pb2.Example.FromString(record)
    change(message.features.feature[key])
    return message.SerializeToString()


def as_integers(feature: Any) -> None:
    feature.int64_list.value.extend(range(9))  # a oneof: the floats are gone


def cut_short(feature: Any) -> None:
    feature.bytes_list.value[1] = feature.bytes_list.value[1][:-4]


def odd_records(features: Mapping[str, Feature]) -> list[tuple[str, bytes]]:
    """(what is to be said of it, record); nothing is to be said of those that come through."""

    def make(num_steps: int = 3, **given: Any) -> bytes:
        columns = {"action/world_vector": MOVES[:num_steps], "observation/image": [FRAME] * num_steps}
        return fabricate(
            features, {**columns, **{key.replace("__", "/"): value for key, value in given.items()}}, num_steps
        )

    broken = MOVES.copy()
    broken[1, 2] = np.nan
    move, turn, image = (
        f"steps/{key}" for key in ("action/world_vector", "action/rotation_delta", "observation/image")
    )
    records = [
        ("", make(observation__orientation_box=np.full((3, 2, 3), np.inf))),
        ("", make(observation__natural_language_instruction=[b""] * 3)),
        ("", make(1)),
        ("the episode has no steps", make(0)),
        ("action/world_vector of step 1 is not finite", make(action__world_vector=broken)),
        ("action/rotation_delta missing from every step", changed(make(), turn, lambda feature: feature.Clear())),
        ("observation/image missing from every step", changed(make(), image, lambda feature: feature.Clear())),
        ("the columns disagree on the number of steps", make(action__world_vector=MOVES[:2])),
        ("holds values that are not finite", make(observation__natural_language_embedding=np.full((3, 512), np.inf))),
        ("is a list of int64, expected float32", changed(make(), move, as_integers)),
        ("JPEG", changed(make(), image, cut_short)),
    ]
    packed = [key for key in features if key.endswith("base_pose_tool_reached") and features[key].encoding == "zlib"]
    return records + [("a compressed tensor is cut short", changed(make(), key, cut_short)) for key in packed]


@pytest.mark.parametrize(("name", "count"), [("kuka", 12), ("fractal20220817_data", 11)])
def test_what_can_be_read_comes_through_and_the_rest_is_named(
    name: str, count: int, data_dir: Path, tmp_path: Path
) -> None:
    schema = released_schemas(data_dir)[name]
    records = odd_records(flatten(schema))
    source = write_records(tmp_path / "source", name, schema, [record for _, record in records])
    account = preprocessed(source, tmp_path / "out")
    assert (account["episodes_in"], account["episodes_out"], account["quarantined"]) == (count, 3, count - 3)

    store = EpisodeStore.open(account["store"])
    table = pq.read_table(store.shards[0].path)
    assert table["record"].to_pylist() == [0, 0, 0, 1, 1, 1, 2]
    np.testing.assert_array_equal(np.array(table["action"].to_pylist())[:, 1:4], [*MOVES, *MOVES, MOVES[0]])
    assert set(store.instruction_texts) == {"", "move the arm"}
    said = {line["record"]: line["reason"] for line in quarantine(store)}
    for record, (words, _) in enumerate(records):
        assert words in said.get(record, ""), (record, said.get(record))
    assert len(said) == count - 3
