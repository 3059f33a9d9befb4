"""Which token stands for which action bin: RT-2's action vocabularies (arXiv 2307.15818, section 3.2).

PaLI-X has one token for each integer, and bin i is the token of "i". PaLM-E has not: there the 256 least frequent
tokens are overwritten. Tokens that a tokenizer holds in reserve, or that are added after its last, serve too.

Every vocabulary has one token for each bin and one bin for each token, so that text decodes to what was encoded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np


class Tokenizer(Protocol):
    """What RT-2 asks of a tokenizer; the two classes below give it to those of two libraries."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        ...

    @property
    def pad_id(self) -> int: ...

    @property
    def bos_id(self) -> int | None: ...

    @property
    def eos_id(self) -> int: ...

    @property
    def unk_id(self) -> int | None:
        """What stands for text that it has no token for."""
        ...

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that are no text (padding, end, image places), the unknown one among them."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text, no special token added."""
        ...

    def decode(self, ids: list[int]) -> str:
        """The text of ids, special tokens left out."""
        ...


class PlainTokenizer:
    """A tokenizer of the `tokenizers` library, e.g. `tokenizers.Tokenizer.from_str(json)`."""

    def __init__(self, tokenizer: Any, *, pad: str = "<pad>", bos: str | None = "<bos>", eos: str = "<eos>") -> None:
        self._tokenizer = tokenizer
        self.pad_id, self.eos_id = self._named(pad), self._named(eos)
        self.bos_id = None if bos is None else self._named(bos)
        unknown = getattr(tokenizer.model, "unk_token", None)
        self.unk_id = None if unknown is None else tokenizer.token_to_id(unknown)
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(number for number, token in added.items() if token.special)
        self.vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def to_json(self) -> str:
        """The whole tokenizer, for `tokenizers.Tokenizer.from_str`."""
        return self._tokenizer.to_str()

    def _named(self, token: str) -> int:
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise ValueError(f"the tokenizer has no token {token!r}: train it with that special token, or name its own")
        return token_id


class TransformersTokenizer:
    """A tokenizer of transformers, as its `AutoTokenizer` loads it."""

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end token, and an answer must end: set its eos_token")
        self._tokenizer = tokenizer
        self.eos_id, self.bos_id, self.unk_id = tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.special_ids = frozenset(tokenizer.all_special_ids)
        self.vocab_size = 1 + max(tokenizer.get_vocab().values())

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


# --- Vocabularies: build() gives the token id of every bin, in order. is_new: a pretrained model has yet to learn what
# these tokens mean ---


@dataclass(frozen=True, kw_only=True)
class IntegerTokens:
    """Bin i is the one token of the integer `first` + i (PaLI-X; -10 for Language-Table)."""

    first: int = 0
    """The integer of bin 0."""

    is_new: ClassVar[bool] = False

    def build(self, tokenizer: Tokenizer, bins: int) -> tuple[int, ...]:
        return _single_tokens(tokenizer, [str(self.first + number) for number in range(bins)])


@dataclass(frozen=True, kw_only=True)
class ReservedTokens:
    """Bin i is a token that the tokenizer already holds under this name, e.g. PaliGemma's "<loc0000>"."""

    pattern: str = "<loc{:04d}>"
    """Name of the token of a bin, with a place for its number."""

    is_new: ClassVar[bool] = False

    def build(self, tokenizer: Tokenizer, bins: int) -> tuple[int, ...]:
        return _single_tokens(tokenizer, [self.pattern.format(number) for number in range(bins)])


@dataclass(frozen=True, kw_only=True)
class AddedTokens:
    """New tokens after the tokenizer's last; the model's vocabulary must have room for them."""

    is_new: ClassVar[bool] = True

    def build(self, tokenizer: Tokenizer, bins: int) -> tuple[int, ...]:
        return tuple(range(tokenizer.vocab_size, tokenizer.vocab_size + bins))


@dataclass(frozen=True, kw_only=True)
class LeastFrequentTokens:
    """Overwrites the least frequent tokens (PaLM-E): those counted on a corpus, else the tokenizer's last.

    A tokenizer ranks its tokens by frequency, or nearly, so its last ones are the rarest. The first bin takes the
    lowest id. Special tokens are left alone.
    """

    frequency: Literal["rank", "corpus"] = "rank"
    """Whose: "corpus": of the texts that the run trains on (rtp train counts them), or of those given to `counted`."""
    ids: tuple[int, ...] = ()
    """What was counted in a corpus, in order."""

    is_new: ClassVar[bool] = True

    @staticmethod
    def counted(tokenizer: Tokenizer, texts: Iterable[str], *, bins: int = 256) -> LeastFrequentTokens:
        """The tokens least frequent in `texts`; among equals those of the higher rank."""
        counts_V = np.zeros(tokenizer.vocab_size, np.int64)
        for text in texts:
            np.add.at(counts_V, tokenizer.encode(text), 1)
        free = _free_ids(tokenizer, bins)
        rarest_first = free[np.lexsort((-free, counts_V[free]))]
        ids = tuple(int(number) for number in np.sort(rarest_first[:bins]))
        return LeastFrequentTokens(frequency="corpus", ids=ids)

    def build(self, tokenizer: Tokenizer, bins: int) -> tuple[int, ...]:
        if self.frequency == "corpus" and not self.ids:
            raise ValueError("action vocabulary: frequency corpus needs the corpus: give --data, or ids from `counted`")
        if not self.ids:
            return tuple(int(number) for number in _free_ids(tokenizer, bins)[-bins:])
        if len(set(self.ids)) != bins or not 0 <= min(self.ids) <= max(self.ids) < tokenizer.vocab_size:
            raise ValueError(
                f"action vocabulary: {bins} different ids below {tokenizer.vocab_size} are needed, "
                f"{len(set(self.ids))} were chosen: count again with this tokenizer"
            )
        return self.ids


ActionVocabulary = IntegerTokens | ReservedTokens | AddedTokens | LeastFrequentTokens


def _single_tokens(tokenizer: Tokenizer, words: list[str]) -> tuple[int, ...]:
    ids = []
    for word in words:
        encoded = tokenizer.encode(word)
        if len(encoded) != 1 or encoded[0] in ids or encoded[0] == tokenizer.unk_id:
            raise ValueError(
                f"action vocabulary: this tokenizer has no token of its own for {word!r}, and {len(words)} bins need "
                f"{words[0]!r} to {words[-1]!r}: use LeastFrequentTokens or AddedTokens, or a tokenizer that has them "
                f"(first_integer and num_integers of an RT-2 from scratch)"
            )
        ids += encoded
    return tuple(ids)


def _free_ids(tokenizer: Tokenizer, bins: int) -> np.ndarray:
    """int64: every id that is no special token, in order."""
    special = [*tokenizer.special_ids, tokenizer.pad_id, tokenizer.eos_id]
    special += [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    free = np.setdiff1d(np.arange(tokenizer.vocab_size), special)
    if len(free) <= bins:
        raise ValueError(
            f"action vocabulary: {bins} bins do not fit into the {len(free)} tokens of this tokenizer: use AddedTokens"
        )
    return free
