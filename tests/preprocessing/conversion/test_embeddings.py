"""Encoders: determinism, the contract of `embed_texts`, a real SavedModel in a TensorFlow of its own process."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.conversion.embeddings import (
    HASH_ENCODER,
    USE_ENCODER,
    HashEncoder,
    SentenceTransformersEncoder,
    UseEncoder,
    embed_texts,
    load_encoder,
)


def needs_tensorflow() -> None:
    """Skip without it; importing it here would bring it into the process of every later test."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("TensorFlow is not installed (the extra `use`)")


@given(st.lists(st.text(max_size=20), max_size=5))
def test_hash_vectors_have_length_one_or_are_zero(texts: list[str]) -> None:
    vectors = embed_texts("hash", texts)
    assert vectors.shape == (len(texts), 512) and vectors.dtype == np.float32
    lengths = np.linalg.norm(vectors, axis=1)
    assert np.all(np.isclose(lengths, 1, atol=1e-5) | (lengths == 0))
    assert all(length == 0 for text, length in zip(texts, lengths, strict=True) if not text.strip())


def test_hash_vectors_never_change() -> None:
    # Stores and registered models carry these vectors: a change needs another encoder id.
    vector = embed_texts(HASH_ENCODER, ["open the drawer"])[0]
    assert np.flatnonzero(vector)[:4].tolist() == [30, 48, 75, 81]


def test_sentences_that_share_words_are_near() -> None:
    a, b, c = embed_texts("hash", ["open the top drawer", "open the bottom drawer", "pick a green can"])
    assert a @ b > 0.5 > abs(a @ c)


def test_order_and_repetition_do_not_matter() -> None:
    texts = ["b", "a", "", "b"]
    vectors = embed_texts(HashEncoder(), texts)
    np.testing.assert_array_equal(vectors[0], vectors[3])
    np.testing.assert_array_equal(vectors[1], embed_texts("hash", ["a"])[0])
    assert not vectors[2].any()


def test_names_and_ids_find_the_same_encoder() -> None:
    assert load_encoder("hash") == load_encoder(HASH_ENCODER)
    assert load_encoder("use") == load_encoder(USE_ENCODER)
    model = load_encoder("sentence-transformers:some/model")
    assert model == load_encoder(model.id) == SentenceTransformersEncoder(model="some/model")
    with pytest.raises(ValueError, match="no instruction encoder 'bert': choose one of dataset, use-multilingual, use"):
        load_encoder("bert")


def test_missing_parts_are_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'rt-pipelines\[use\]'"):
        UseEncoder(model=str(tmp_path)).require()
    with pytest.raises(ValueError, match="pip install sentence-transformers"):
        SentenceTransformersEncoder(model="m").require()
    monkeypatch.undo()
    needs_tensorflow()
    with pytest.raises(FileNotFoundError, match=r"holds no saved_model.pb: give --use-model"):
        UseEncoder(model=str(tmp_path)).require()


def test_a_wrong_width_is_refused() -> None:
    class Narrow(HashEncoder):
        def encode(self, texts):
            return np.zeros((len(texts), 100), np.float32)

    with pytest.raises(ValueError, match=r"gave vectors \(1, 100\)"):
        embed_texts(Narrow(), ["x"])


_EMBED = """
    import sys, tarfile
    from pathlib import Path
    import numpy as np
    from preprocessing.conversion.embeddings import UseEncoder, embed_texts
    assert "tensorflow" not in sys.modules
    import tensorflow as tf
    class Model(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def __call__(self, texts):
            return tf.repeat(tf.cast(tf.strings.length(texts), tf.float32)[:, None], 512, axis=1)
    folder, archive = Path(sys.argv[1], "model"), Path(sys.argv[1], "model.tar.gz")
    tf.saved_model.save(Model(), str(folder))
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=".")
    for model in (folder, archive, archive.as_uri()):
        vectors = embed_texts(UseEncoder(model=str(model)), ["four", "", "sixsix"])
        assert vectors[:, 0].tolist() == [4, 0, 6], vectors
    archive.unlink()
    embed_texts(UseEncoder(model=archive.as_uri()), ["downloaded once, kept in the cache"])
"""


def test_a_saved_model_from_a_folder_an_archive_and_a_url(tmp_path: Path) -> None:
    needs_tensorflow()
    repository = Path(__file__).resolve().parents[3]
    environment = {"TFHUB_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(repository), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", textwrap.dedent(_EMBED), str(tmp_path)]
    subprocess.run(command, env=environment, check=True)
