"""The tokenizer of an RT-2 that starts from nothing: byte-pair merges learnt from the run's own texts.

Every text can be spelled, because all 256 bytes are tokens; every integer of a range is one token, because actions are
integers (PaLI-X). It is a few kilobytes and travels inside the model's config, so that whoever has the config can read
and write. Ids: padding, begin, end; bytes; merges in the order learnt; integers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from rt_models.language.action_vocabulary import PlainTokenizer

SPECIAL = ("<pad>", "<bos>", "<eos>")
_BYTES = 256


@dataclass(frozen=True, kw_only=True)
class BytePairConfig:
    """Byte-level byte-pair encoding. Without merges every byte is a token."""

    merges: tuple[str, ...] = ()
    """Pairs of tokens that become one, "a b", the first learnt first; `learnt` finds them."""
    first_integer: int = 0
    """The lowest integer that is one token."""
    num_integers: int = 256
    """So many integers, from `first_integer`, are one token each."""

    def num_tokens(self) -> int:
        return len(SPECIAL) + _BYTES + len(self.merges) + self.num_integers

    def learnt(self, texts: Iterable[str], *, vocab_size: int) -> BytePairConfig:
        """With merges learnt from `texts`, as many as a vocabulary of `vocab_size` has room for.

        The same texts in the same order give the same merges. Raises ValueError if bytes and integers do not fit.
        """
        from tokenizers import models, trainers

        room = vocab_size - replace(self, merges=()).num_tokens()
        if room < 0:
            raise ValueError(
                f"a vocabulary of {vocab_size} tokens has no room for {_BYTES} bytes and {self.num_integers} integers: "
                f"raise model.vocab_size by {-room}"
            )
        tokenizer = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=_BYTES + room, initial_alphabet=_alphabet(), show_progress=False, min_frequency=2
        )
        tokenizer.train_from_iterator(texts, trainer)
        return replace(self, merges=tuple(_merges(tokenizer)))

    def build(self) -> PlainTokenizer:
        from tokenizers import AddedToken, models

        pairs = [(pair.split(" ")[0], pair.split(" ")[1]) for pair in self.merges]
        tokens = [*SPECIAL, *_alphabet(), *(left + right for left, right in pairs)]
        vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
        tokenizer = _byte_level(models.BPE(vocab=vocabulary, merges=pairs))
        tokenizer.add_special_tokens(list(SPECIAL))
        integers = range(self.first_integer, self.first_integer + self.num_integers)
        tokenizer.add_tokens([AddedToken(str(n), single_word=True, lstrip=True, normalized=False) for n in integers])
        return PlainTokenizer(tokenizer)


def _byte_level(model: Any) -> Any:
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _alphabet() -> list[str]:
    """The characters that stand for the 256 bytes, in order."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _merges(tokenizer: Any) -> list[str]:
    import json

    return [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
