"""What an RT-1 reads for an instruction: the vector it was trained on, or for a new text the contract encoder's."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from preprocessing.conversion.embeddings import HASH_ENCODER, HashEncoder, embed_texts
from preprocessing.store.episode_store import EpisodeStore

INSTRUCTIONS = "instructions.npz"
_NEAR = 3  # known instructions that an error names


class Instructions:
    """The instruction table of a model's training stores, and the encoder with id `encoder` for other texts."""

    def __init__(self, encoder: str, vectors: Mapping[str, np.ndarray]) -> None:
        self.encoder, self.vectors = encoder, dict(vectors)
        self._encoded = lru_cache(1024)(self._encode)

    @staticmethod
    def of_stores(encoder: str, stores: Sequence[EpisodeStore]) -> Instructions:
        vectors: dict[str, np.ndarray] = {}
        for store in stores:
            vectors |= dict(zip(store.instruction_texts, store.embeddings, strict=True))
        return Instructions(encoder, vectors)

    @staticmethod
    def read(folder: Path, encoder: str) -> Instructions:
        """The table that `write` left in `folder`; an empty one where there is none. Raises ValueError for another
        encoder's and for what is no table."""
        path = folder / INSTRUCTIONS
        if not path.is_file():
            return Instructions(encoder, {})
        try:
            with np.load(path, allow_pickle=False) as table:
                recorded = str(table["encoder"]) if "encoder" in table else encoder
                vectors = dict(zip(table["texts"].tolist(), table["embeddings"], strict=True))
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is no instruction table ({error}): export the model again") from error
        if recorded != encoder:
            raise ValueError(f"{path} holds vectors of {recorded}, the model was trained with those of {encoder}")
        return Instructions(encoder, vectors)

    def write(self, folder: Path) -> None:
        texts, vectors = np.array(list(self.vectors), dtype=str), np.stack([*self.vectors.values()])
        np.savez(folder / INSTRUCTIONS, encoder=np.array(self.encoder), texts=texts, embeddings=vectors)

    def vector(self, text: str) -> np.ndarray:
        """float32 (512,). Raises ValueError for an unknown text that the encoder cannot embed."""
        return self.vectors[text] if text in self.vectors else self._encoded(text)

    def _encode(self, text: str) -> np.ndarray:
        unknown = f"instruction {text!r} is not one of the {len(self.vectors)} that this policy was trained on"
        if self.encoder == HASH_ENCODER:
            raise ValueError(
                f"{unknown}, and its encoder {HASH_ENCODER} hashes words and knows no meaning: send a known "
                f"instruction{self._near(text)}, or train on a store made with --encoder use-multilingual"
            )
        try:
            return embed_texts(self.encoder, [text])[0]
        except (ValueError, OSError, ImportError) as error:
            raise ValueError(
                f"{unknown}, and its encoder {self.encoder} cannot run here ({error}): send a known instruction, or an "
                f"embedding"
            ) from error

    def _near(self, text: str) -> str:
        """Known instructions that share most with `text`: their vectors are hashes of words and letters."""
        if not self.vectors:
            return ""
        likeness = np.stack([*self.vectors.values()]) @ HashEncoder().encode([text])[0]
        texts = list(self.vectors)
        return ", such as " + ", ".join(repr(texts[place]) for place in np.argsort(-likeness, kind="stable")[:_NEAR])
