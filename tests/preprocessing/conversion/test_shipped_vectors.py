"""An encoder that computes what episodes also ship must give the same vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorflow_datasets.core import features as tfds

from preprocessing.conversion.embeddings import USE_ENCODER
from preprocessing.conversion.multilingual_encoder import MULTILINGUAL_ENCODER
from preprocessing.convert import ConvertConfig, convert
from preprocessing.store.episode_store import EpisodeStore
from tests.support.tiny_rlds import bridge_episode, bridge_features, write_dataset


class Namesake:
    """An encoder that calls itself USE and gives the vectors of `tiny_rlds.bridge_episode`, turned by `angle`."""

    id = USE_ENCODER

    def __init__(self, angle: float) -> None:
        self._angle = angle

    def require(self) -> None: ...

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        shipped = np.stack([np.random.default_rng(len(text)).normal(size=512) for text in texts])
        other = np.random.default_rng(0).normal(size=512)
        aside = other - shipped * (shipped @ other / (shipped**2).sum(axis=1))[:, None]
        length = np.linalg.norm(shipped, axis=1, keepdims=True) / np.linalg.norm(aside, axis=1, keepdims=True)
        return (np.cos(self._angle) * shipped + np.sin(self._angle) * aside * length).astype(np.float32)


def test_an_encoder_must_agree_with_the_vectors_that_its_namesake_shipped(
    make_bridge: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, config = str(make_bridge([2, 3, 2, 2])), ConvertConfig(workers=0, encoder="use")
    near, far = np.arccos(0.9991), np.arccos(0.9989)
    monkeypatch.setattr("preprocessing.convert.load_encoder", lambda *_, **__: Namesake(near))
    assert convert(source, str(tmp_path / "near"), config).encoder == USE_ENCODER
    monkeypatch.setattr("preprocessing.convert.load_encoder", lambda *_, **__: Namesake(far))
    with pytest.raises(ValueError, match=r"another vector than the episodes ship \(cosine 0.9989, at least 0.999"):
        convert(source, str(tmp_path / "far"), config)
    assert not (tmp_path / "far").exists()


def with_vectors(folder: Path, feature: Any, vector: Any) -> str:
    steps = {**dict(bridge_features()["steps"].feature.items()), "language_embedding": feature}
    features = {"steps": tfds.Dataset(steps), "episode_metadata": bridge_features()["episode_metadata"]}
    episode = bridge_episode(np.random.default_rng(0), 3)
    for step in episode["steps"]:
        step["language_embedding"] = vector
    return str(write_dataset(folder, "bridge_dataset", tfds.FeaturesDict(features), [[episode]]))


@pytest.mark.parametrize(
    ("feature", "vector", "words"),
    [
        (tfds.Tensor(shape=(384,), dtype=np.float32), np.ones(384, np.float32), "vectors of 384 values where a store"),
        (tfds.Tensor(shape=(768,), dtype=np.float32), np.ones(768, np.float32), "vectors of 768 values where a store"),
        (tfds.Text(), "none", "holds no vectors of one length"),
    ],
)
def test_vectors_of_another_width_are_called_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, feature: Any, vector: Any, words: str
) -> None:
    source = with_vectors(tmp_path / "source", feature, vector)
    with pytest.raises(ValueError, match=f"'language_embedding' .*{words}.*: leave out --encoder dataset"):
        convert(source, str(tmp_path / "out"), ConvertConfig(workers=0, encoder="dataset"))
    assert not (tmp_path / "out").exists()
    assert convert(source, str(tmp_path / "out"), ConvertConfig(workers=0)).encoder == MULTILINGUAL_ENCODER
    assert words in caplog.text


@pytest.mark.parametrize(("dtype", "shape"), [(np.float64, (512,)), (np.float16, (512,)), (np.float32, (1, 512))])
def test_vectors_of_any_number_are_kept(tmp_path: Path, dtype: Any, shape: tuple[int, ...]) -> None:
    vector = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    source = with_vectors(tmp_path / "source", tfds.Tensor(shape=shape, dtype=dtype), vector.astype(dtype))
    store = EpisodeStore.open(convert(source, str(tmp_path / "out"), ConvertConfig(workers=0)).store)
    np.testing.assert_array_equal(store.embeddings, [vector.ravel()])
