"""Drawn schemas and the released ones: what TFDS and TensorFlow read from a record is what this reader reads."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from tensorflow_datasets.core import features as tfds_features

from preprocessing.rlds import Episode, open_dataset
from preprocessing.tfds.features import flatten
from tests.support.command_line import REPOSITORY
from tests.support.tiny_rlds import fabricate, frame_record, released_schemas

DRAWN = 30
BY_HAND = ("kuka", "mt_opt")  # their zlib tensors of steps are more than TFDS can write
FEW = (*BY_HAND, "fractal20220817_data", "tidybot", "taco_play", "bc_z")
DTYPES = ("bool", "uint8", "int8", "uint16", "int32", "int64", "uint64", "float16", "float32", "float64")
LARGE = 1000  # as in write_with_tensorflow
SHARD = "drawn-train.tfrecord-00000-of-00001"

shapes = st.lists(st.integers(1, 3), max_size=2).map(tuple)
plain_tensors = st.builds(
    lambda dtype, shape: tfds_features.Tensor(shape=shape, dtype=np.dtype(dtype)), st.sampled_from(DTYPES), shapes
)
images = st.sampled_from(
    [
        tfds_features.Image(shape=(None, None, 3), encoding_format="png"),
        tfds_features.Image(shape=(4, 5, 1), dtype=np.uint16, encoding_format="png"),
        tfds_features.Image(shape=(4, 5, 1), dtype=np.float32),
    ]
)
leaves = st.one_of(
    plain_tensors,
    images,
    st.just(tfds_features.Text()),
    st.just(tfds_features.ClassLabel(num_classes=5)),
    st.sampled_from(DTYPES).map(lambda dtype: tfds_features.Scalar(dtype=np.dtype(dtype))),
    st.just(tfds_features.BBoxFeature()),
)
encoded = st.builds(
    lambda dtype, encoding, shape: tfds_features.Tensor(shape=shape, dtype=np.dtype(dtype), encoding=encoding),
    st.sampled_from(DTYPES),
    st.sampled_from(["zlib", "bytes"]),
    st.sampled_from([(2,), (2, 3), (None, 2), (None, None), ()]),
)
unknown = st.sampled_from(DTYPES).map(lambda dtype: tfds_features.Tensor(shape=(None, 2), dtype=np.dtype(dtype)))
names = st.sampled_from(["a", "b", "c/d", "e_f"])


def nested(of: st.SearchStrategy) -> st.SearchStrategy:
    """Leaves, sequences of them (also of sequences), and dictionaries.

    No sequences of declared length: inside of steps TFDS cannot read those that it writes.
    """
    return st.recursive(
        of,
        lambda inner: st.one_of(
            st.dictionaries(names, inner, min_size=1, max_size=3).map(tfds_features.FeaturesDict),
            st.dictionaries(names, inner, min_size=1, max_size=2).map(tfds_features.Sequence),
            st.builds(tfds_features.Sequence, plain_tensors | st.just(tfds_features.Text())),
        ),
        max_leaves=4,
    )


schemas = st.builds(
    lambda step, episode: tfds_features.FeaturesDict({"steps": tfds_features.Dataset(step), **episode}),
    st.dictionaries(names, nested(leaves), min_size=1, max_size=4).map(tfds_features.FeaturesDict),
    st.dictionaries(names, nested(leaves) | encoded | unknown, max_size=3),
)


def some(feature: Any, rng: np.random.Generator) -> Any:
    """A value that fits the feature; lengths differ from call to call."""
    if isinstance(feature, tfds_features.FeaturesDict):
        return {name: some(inner, rng) for name, inner in feature.items()}
    if isinstance(feature, tfds_features.Dataset):
        return [some(feature.feature, rng) for _ in range(rng.integers(1, 4))]
    if isinstance(feature, tfds_features.Sequence):
        return [some(feature.feature, rng) for _ in range(rng.integers(0, 4))]
    if isinstance(feature, tfds_features.Text):
        return ["", "öffne", "pick\0up"][rng.integers(3)]
    if isinstance(feature, tfds_features.ClassLabel):
        return int(rng.integers(5))
    if isinstance(feature, tfds_features.BBoxFeature):
        return tfds_features.BBox(0.0, 0.25, 0.5, 1.0)
    if isinstance(feature, tfds_features.Image):
        if feature.np_dtype == np.float32:  # depth: TFDS asks for numbers, and packs them into a PNG
            return rng.random([size or 4 for size in feature.shape], np.float32)
        return io.BytesIO(_png(feature, rng))
    shape = [rng.integers(1, 4) if size is None else size for size in feature.shape]
    if feature.np_dtype.kind == "O":
        return "text"
    return _numbers(feature.np_dtype, shape, rng)


def _numbers(dtype: np.dtype, shape: Any, rng: np.random.Generator) -> np.ndarray:
    if dtype.kind == "f":
        return rng.choice([0.0, -1.5, 3.25, 1000.0, np.inf], shape).astype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    bounds = np.iinfo(dtype)
    return np.array([bounds.min, 0, 7, bounds.max // 3, bounds.max], dtype)[rng.integers(5, size=shape)]


def _png(feature: Any, rng: np.random.Generator) -> bytes:
    height, width, channels = (size or 4 for size in feature.shape)
    mode = "I;16" if feature.np_dtype == np.uint16 else {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    pixels = rng.integers(0, 256, (height, width, 2 if mode == "I;16" else channels), np.uint8)
    out = io.BytesIO()
    Pillow.frombytes(mode, (width, height), pixels.tobytes()).save(out, "png")
    return out.getvalue()


def ours(folder: Path) -> list[Any]:
    """The episodes in the form that `write_with_tensorflow` leaves."""
    dataset, found = open_dataset(str(folder)), []
    for episode in dataset.episodes("train"):
        assert isinstance(episode, Episode), episode
        steps = [
            {path: _decoded(dataset.feature(path), column[step], 1) for path, column in episode.steps.items()}
            for step in range(episode.num_steps)
        ]
        metadata = {path: _decoded(dataset.features[path], value, 0) for path, value in episode.metadata.items()}
        found.append(metadata | {"steps": steps})
    return found


def _decoded(feature: Any, value: Any, depth: int) -> Any:
    if len(feature.outer) > depth:
        return [_decoded(feature, item, depth + 1) for item in value]
    if feature.kind == "image":
        pixels = np.asarray(Pillow.open(io.BytesIO(value)))
        pixels = np.ascontiguousarray(pixels).view(np.float32) if feature.dtype == "float32" else pixels
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        return pixels.tobytes() if pixels.size > LARGE else pixels.tolist()
    return _listed(value)


def _listed(value: Any) -> Any:
    if isinstance(value, list):
        return [_listed(item) for item in value]
    if isinstance(value, bytes):
        return value
    return value.tobytes() if np.size(value) > LARGE else np.asarray(value).tolist()


def flat(episode: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries by their joined keys, in the episode and in its steps."""
    found = {}
    for key, value in episode.items():
        if key == "steps":
            found[key] = [flat(step) for step in value]
        elif isinstance(value, dict):
            found |= {f"{key}/{inner}": item for inner, item in flat(value).items()}
        else:
            found[key] = value
    return found


def _frames(schema: dict[str, Any]) -> dict[str, list[bytes]]:
    """Three lossless frames of the declared size for every camera: JPEG decoders differ in their last bits."""
    cameras = {key.removeprefix("steps/"): leaf for key, leaf in flatten(schema).items() if leaf.kind == "image"}
    kinds = {path: tfds_features.Image(shape=leaf.shape, encoding_format="png") for path, leaf in cameras.items()}
    return {path: [_png(kind, np.random.default_rng(0))] * 3 for path, kind in kinds.items()}


def read_by_tensorflow(folders: list[Path]) -> None:
    script = REPOSITORY / "tests/support/write_with_tensorflow.py"
    command = [sys.executable, str(script), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2])
    assert done.returncode == 0, done.stderr[-3000:]


def require_same(folder: Path) -> None:
    expected = pickle.loads((folder / "expected.pickle").read_bytes())
    np.testing.assert_equal([flat(episode) for episode in ours(folder)], [flat(episode) for episode in expected])


def draw_datasets(root: Path) -> list[Path]:
    folders: list[Path] = []

    @settings(
        max_examples=DRAWN,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(schemas, st.integers(0, 2**32))
    def draw(features: Any, seed: int) -> None:
        folder, rng = root / str(len(folders)) / "1.0.0", np.random.default_rng(seed)
        folder.mkdir(parents=True)
        features.save_config(str(folder))
        (folder / "episodes.pickle").write_bytes(pickle.dumps([some(features, rng) for _ in range(2)]))
        folders.append(folder)

    draw()
    return folders


def released_datasets(root: Path, data_dir: Path, chosen: tuple[str, ...] | None) -> list[Path]:
    folders, schemas = [], released_schemas(data_dir)
    assert len(schemas) >= 25
    for name, schema in ((name, schemas[name]) for name in chosen or schemas):
        folder = root / name / "1.0.0"
        folder.mkdir(parents=True)
        (folder / "features.json").write_text(json.dumps(schema))
        if name in BY_HAND:
            (folder / SHARD).write_bytes(frame_record(fabricate(flatten(schema), _frames(schema))) * 2)
        else:
            features, rng = tfds_features.FeaturesDict.from_config(str(folder)), np.random.default_rng(0)
            (folder / "episodes.pickle").write_bytes(pickle.dumps([some(features, rng) for _ in range(2)]))
        folders.append(folder)
    return folders


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> dict[str, list[Path]]:
    """Drawn and released datasets that TensorFlow has read: one process, as it takes seconds to import."""
    root = tmp_path_factory.mktemp("datasets")
    found = {"drawn": draw_datasets(root), "few": released_datasets(root, data_dir, FEW)}
    read_by_tensorflow([folder for folders in found.values() for folder in folders])
    return found


@pytest.mark.parametrize("which", ["drawn", "few"])
def test_what_tensorflow_reads_is_what_we_read(which: str, read: dict[str, list[Path]]) -> None:
    """Of schemas that were never released, and of some of the released ones."""
    for folder in read[which]:
        require_same(folder)


@pytest.mark.slow
def test_all_released_schemas(tmp_path: Path, data_dir: Path) -> None:
    folders = released_datasets(tmp_path, data_dir, None)
    read_by_tensorflow(folders)
    for folder in folders:
        require_same(folder)
