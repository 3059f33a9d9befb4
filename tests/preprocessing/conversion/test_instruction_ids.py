"""Ids of a shard's instructions, where the steps of an episode are alike and where they are not."""

from __future__ import annotations

import numpy as np
import pytest

from preprocessing.conversion.shard_conversion import _Instructions
from preprocessing.store.episode_store import instruction_id

VECTOR = np.arange(512, dtype=np.float32)
NEGATIVE_ZERO = np.where(np.arange(512) == 0, np.float32(-0.0), VECTOR)


@pytest.mark.parametrize("texts", [["a", "a", "a"], ["a", "b", "a"]])
@pytest.mark.parametrize("last", [VECTOR, VECTOR + 1, NEGATIVE_ZERO])
def test_every_step_has_the_id_of_its_text_and_the_bytes_of_its_vector(texts: list[str], last: np.ndarray) -> None:
    vectors = np.stack([VECTOR, VECTOR, last])
    known = _Instructions()
    found = known.ids(texts, vectors)
    expected = [instruction_id(text, vector.tobytes()) for text, vector in zip(texts, vectors, strict=True)]
    assert found.dtype == np.int64 and found.tolist() == expected
    assert known.table()["id"].to_pylist() == sorted(set(expected))
    assert _Instructions().ids(texts, None).tolist() == [instruction_id(text) for text in texts]
