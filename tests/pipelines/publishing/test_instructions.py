"""What an RT-1 reads for known texts, for new ones, and where no encoder knows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.publishing import instructions
from pipelines.publishing.instructions import INSTRUCTIONS, Instructions
from preprocessing.conversion.embeddings import HashEncoder

TEXTS = ("open the drawer", "close the drawer", "turn the faucet on", "press the button")
KNOWN = dict(zip(TEXTS, HashEncoder().encode(TEXTS), strict=True))


def test_a_table_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    Instructions("hash-512", KNOWN).write(tmp_path)
    read = Instructions.read(tmp_path, "hash-512")
    assert list(read.vectors) == list(TEXTS)
    for text in TEXTS:
        np.testing.assert_array_equal(read.vector(text), KNOWN[text])


def test_a_table_of_another_encoder_is_refused_and_an_older_one_read(tmp_path: Path) -> None:
    Instructions("use", KNOWN).write(tmp_path)
    with pytest.raises(ValueError, match="holds vectors of use, the model was trained with those of hash-512"):
        Instructions.read(tmp_path, "hash-512")
    np.savez(tmp_path / INSTRUCTIONS, texts=np.array(TEXTS), embeddings=np.stack([*KNOWN.values()]))
    assert Instructions.read(tmp_path, "hash-512").vectors.keys() == KNOWN.keys()
    assert Instructions.read(tmp_path / "nowhere", "hash-512").vectors == {}
    whole = (tmp_path / INSTRUCTIONS).read_bytes()
    for damaged in (b"PK", b"", whole[:100], whole[:-30]):
        (tmp_path / INSTRUCTIONS).write_bytes(damaged)
        with pytest.raises(ValueError, match="is no instruction table"):
            Instructions.read(tmp_path, "hash-512")


def test_an_unknown_text_under_hash_is_an_error_that_lists_the_nearest() -> None:
    words = r"'open a drawer' is not one of the 4 .* hash-512 .*, such as 'open the drawer', 'close the drawer', "
    with pytest.raises(ValueError, match=words):
        Instructions("hash-512", KNOWN).vector("open a drawer")
    with pytest.raises(ValueError, match=r"is not one of the 0 .*send a known instruction, or train"):
        Instructions("hash-512", {}).vector("open a drawer")


def test_other_encoders_read_what_was_never_seen_or_say_what_they_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def embed(encoder: str, texts: list[str]) -> np.ndarray:
        asked.append((encoder, *texts))
        if "sing" in texts:
            raise ValueError("the `use` encoder needs TensorFlow")
        return np.ones((1, 512), np.float32)

    monkeypatch.setattr(instructions, "embed_texts", embed)
    table = Instructions("universal-sentence-encoder-large/5", KNOWN)
    np.testing.assert_array_equal(table.vector("open a drawer"), table.vector("open a drawer"))
    assert asked == [("universal-sentence-encoder-large/5", "open a drawer")]
    np.testing.assert_array_equal(table.vector(TEXTS[0]), KNOWN[TEXTS[0]])
    with pytest.raises(ValueError, match=r"'sing' is not one of the 4 .*needs TensorFlow.*or an embedding"):
        table.vector("sing")
