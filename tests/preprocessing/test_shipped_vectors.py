"""An encoder that computes what episodes also ship must give the same vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from preprocessing.convert import ConvertConfig, convert
from preprocessing.embeddings import USE_ENCODER


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
