from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_models.language.action_vocabulary import IntegerTokens
from rt_models.language.byte_pairs import BytePairConfig

TEXTS = ["Q: is there a red shape? A: yes", "Q: what action should the robot take to open the drawer? A:"] * 20
LEARNT = BytePairConfig().learnt(TEXTS, vocab_size=600)
TOKENIZER = LEARNT.build()


def test_learning_is_repeatable_and_shortens() -> None:
    assert BytePairConfig().learnt(TEXTS, vocab_size=600) == LEARNT
    bytes_only = BytePairConfig().build()
    assert len(TOKENIZER.encode(TEXTS[0])) < len(bytes_only.encode(TEXTS[0])) / 2
    assert TOKENIZER.vocab_size <= 600


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="0123456789<")))
def test_every_text_can_be_spelled(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(st.integers(0, 255), st.sampled_from(["{}", " {}", "move {} blocks", "({})"]))
def test_an_integer_is_one_token_wherever_it_stands(number: int, where: str) -> None:
    (token,) = TOKENIZER.encode(str(number))
    assert TOKENIZER.encode(where.format(number)).count(token) == 1


def test_the_integers_are_the_action_vocabulary() -> None:
    ids = IntegerTokens().build(TOKENIZER, 256)
    assert len(set(ids)) == 256 and max(ids) < TOKENIZER.vocab_size
    signed = BytePairConfig(first_integer=-10, num_integers=21).build()
    assert len(set(IntegerTokens(first=-10).build(signed, 21))) == 21


def test_a_vocabulary_without_room() -> None:
    with pytest.raises(ValueError, match=r"512 tokens has no room for 256 bytes and 256 integers: raise .* by 3"):
        BytePairConfig().learnt(TEXTS, vocab_size=512)


def test_an_integer_inside_a_word_is_no_action() -> None:
    (token,) = TOKENIZER.encode("217")
    assert token not in TOKENIZER.encode("a217b") and token not in TOKENIZER.encode("2175")
