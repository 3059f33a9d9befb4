"""RT-2's texts: every bin of every vocabulary comes back, prompts read as published, bad ones are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rt_models.action_space import ARM, RT1_SPACE, ActionSpace, SpaceDimension
from rt_models.action_tokens import decode, encode
from rt_models.language.action_vocabulary import (
    AddedTokens,
    IntegerTokens,
    LeastFrequentTokens,
    PlainTokenizer,
    ReservedTokens,
    TransformersTokenizer,
)
from rt_models.language.byte_pairs import BytePairConfig
from rt_models.language.prompts import FIELDS, RT2Text, RT2TextConfig
from tests.support.rt2_rows import bins_of, word_tokenizer

PLACES = [f"<loc{number:04d}>" for number in range(1024)]
WORDS = PlainTokenizer(word_tokenizer(extra=PLACES))
BYTES = BytePairConfig().build()
CORPUS = ["pick up the red can", "is a red can in the picture ?", "0 1 2 3 4 5"]
VOCABULARIES = {
    "integers": IntegerTokens(),
    "reserved": ReservedTokens(),
    "added": AddedTokens(),
    "last": LeastFrequentTokens(),
    "counted": LeastFrequentTokens.counted(WORDS, CORPUS),
}


def text_of(vocabulary: str, **settings: object) -> RT2Text:
    config = RT2TextConfig(vocabulary=VOCABULARIES[vocabulary], **settings)  # type: ignore[arg-type]
    return config.build(WORDS, max_tokens=64)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_every_bin_has_its_own_token_and_comes_back(vocabulary: str) -> None:
    text = text_of(vocabulary)
    assert len(set(text.action_ids)) == 256
    assert not set(text.action_ids) & {WORDS.pad_id, WORDS.eos_id, WORDS.bos_id}
    assert max(text.action_ids) < text.vocab_size
    for bin_ in range(256):
        assert bins_of(text, [text.action_ids[bin_]] * 8) == [bin_] * 8
        assert text.decode([text.action_ids[bin_]]) == str(bin_)


@given(
    vocabulary=st.sampled_from(sorted(VOCABULARIES)),
    bins=st.lists(st.integers(0, 255), min_size=7, max_size=7),
    terminate=st.integers(0, 2),
)
@settings(deadline=None)
def test_an_action_comes_back_from_its_text(vocabulary: str, bins: list[int], terminate: int) -> None:
    text = text_of(vocabulary)
    bins_A = text.all_bins(torch.tensor([terminate, *bins]))
    values_A = text.values(bins_A)
    example = text.robot("pick up the red can", values_A.numpy(), np.ones(11, bool))
    assert bins_of(text, example.ids) == [terminate, *bins]
    assert text.decode(example.ids).endswith(" ".join(map(str, [terminate, *bins])))
    torch.testing.assert_close(text.values(text.all_bins(torch.tensor(bins_of(text, example.ids)))), values_A)


@given(st.lists(st.floats(-3, 3), min_size=11, max_size=11), st.sampled_from(["truncate", "centre"]))
@settings(deadline=None)
def test_fields_are_binned_as_the_spec_says(action: list[float], binning: str) -> None:
    text = text_of("integers", binning=binning)
    action_A = torch.tensor(action)
    bins_A = encode(action_A, text.spec)
    assert torch.equal(text.field_bins(action_A), bins_A[text.field_dims])
    assert torch.equal(text.all_bins(text.field_bins(action_A))[:8], bins_A[:8])
    torch.testing.assert_close(text.values(bins_A)[:8], decode(bins_A, text.spec)[:8])


def test_prompts_and_answers_read_as_published() -> None:
    text = RT2TextConfig().build(BYTES, max_tokens=256)
    assert text.tokenizer.decode(list(text.robot_prompt("pick up the can."))) == (
        "Q: what action should the robot take to pick up the can? A:"
    )
    assert text.spec.names[: len(FIELDS)] == FIELDS  # terminate, position, rotation, gripper
    values = text.values(text.all_bins(torch.tensor([1, 128, 91, 241, 5, 101, 127, 217])))
    example = text.robot("pick up the can", values.numpy(), np.ones(11, bool))
    assert text.decode(example.ids).endswith("A: 1 128 91 241 5 101 127 217")
    assert sum(example.is_target) == 9  # eight fields and the end
    planned = text.robot("I'm hungry", values.numpy(), np.ones(11, bool), plan="pick rxbar chocolate")
    assert text.decode(planned.ids) == (
        "Instruction: I'm hungry. Plan: pick rxbar chocolate. Action: 1 128 91 241 5 101 127 217"
    )
    web = text.web("what is it?", "a can")
    assert text.decode(web.ids) == "Q: what is it? A: a can"
    assert text.decode([n for n, target in zip(web.ids, web.is_target, strict=True) if target]) == "a can"


def test_language_table_is_two_integers() -> None:
    config = RT2TextConfig.language_table()
    tokenizer = BytePairConfig(first_integer=-10, num_integers=21).build()
    text = config.build(tokenizer, max_tokens=128)
    for x, y in [(-10, 10), (0, 3), (7, -1)]:
        action = np.zeros(11, np.float32)
        action[:3] = ARM, x / 100, y / 100
        example = text.robot("push the block", action, np.ones(11, bool))
        assert text.decode(example.ids).endswith(f"A: {x} {y}")
        back = text.values(text.all_bins(torch.tensor(bins_of(text, example.ids))))
        np.testing.assert_allclose(back.numpy(), action, atol=1e-6)


def test_a_missing_dimension_stands_as_its_neutral_value_and_is_no_target() -> None:
    """Bridge has no terminate: the arm moves on, and no step teaches the model to stop."""
    text = text_of("integers")
    mask = np.ones(11, bool)
    mask[[0, 4, 5, 6]] = False
    example = text.robot("pick up the red can", np.full(11, 0.7, np.float32), mask)
    zero, answer = encode(torch.zeros(11), text.spec), bins_of(text, example.ids)
    assert answer[0] == ARM == text.neutral(0)[0]
    assert answer[4:7] == zero[4:7].tolist() == [text.neutral(field)[0] for field in (4, 5, 6)]
    assert list(example.is_target[-9:]) == [False, True, True, True, False, False, False, True, True]


@pytest.mark.parametrize("lacks_terminate", [True, False])
def test_where_the_prompt_ends_does_not_depend_on_what_is_trained_on(lacks_terminate: bool) -> None:
    text, prompt = text_of("integers"), text_of("integers").robot_prompt("pick up the red can")
    example = text.robot("pick up the red can", np.zeros(11, np.float32), np.arange(11) >= lacks_terminate)
    web = text.web("is it red ?", "yes")
    batch = text.collate([example, web])
    assert batch["prompt_length"].tolist() == [len(prompt), len(text.web_prompt("is it red ?"))]
    assert batch["answer_mask"][:, : len(prompt) + 1].any(1).tolist() == [not lacks_terminate, True]


def test_fields_can_be_left_out() -> None:
    text = text_of("integers", fields=("terminate_episode", "gripper_closedness_action"))
    example = text.robot("pick up the red can", np.full(11, 1.0, np.float32), np.ones(11, bool))
    assert bins_of(text, example.ids) == [1, 255]
    assert text.values(text.all_bins(torch.tensor([1, 255])))[1:7].abs().sum() == 0
    without = text_of("integers", fields=("gripper_closedness_action",))
    said = without.all_bins(torch.tensor([255]))
    assert said[0] == without.values(said)[0] == ARM  # what is no field never ends an episode


def test_counting_takes_the_rarest_and_leaves_special_tokens() -> None:
    counted = LeastFrequentTokens.counted(WORDS, CORPUS, bins=1200)
    common = {number for text in CORPUS for number in WORDS.encode(text)}
    free = WORDS.vocab_size - 5
    assert len(counted.ids) == 1200
    assert not set(counted.ids) & common if free - len(common) >= 1200 else True
    assert not set(counted.ids) & WORDS.special_ids
    few = LeastFrequentTokens.counted(WORDS, CORPUS, bins=256)
    assert not set(few.ids) & common
    by_rank = LeastFrequentTokens().build(WORDS, 256)
    assert by_rank == tuple(range(WORDS.vocab_size - 256, WORDS.vocab_size))


def test_rows_are_padded_at_the_right() -> None:
    text = text_of("integers")
    examples = [text.web("is it red ?", "yes"), text.web("", "a red can in a drawer")]
    batch = text.collate(examples)
    for row, example in enumerate(examples):
        length = len(example.ids)
        assert batch["tokens"][row, :length].tolist() == list(example.ids)
        assert (batch["tokens"][row, length:] == WORDS.pad_id).all()
        assert batch["token_mask"][row].sum() == length and not batch["token_mask"][row, length:].any()
        assert batch["answer_mask"][row, :length].tolist() == list(example.is_target)
        assert not (batch["answer_mask"][row] & ~batch["token_mask"][row]).any()


def test_both_libraries_tokenizers_say_the_same() -> None:
    transformers = pytest.importorskip("transformers")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(extra=PLACES), pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    theirs = TransformersTokenizer(fast)
    for name in ("vocab_size", "pad_id", "bos_id", "eos_id"):
        assert getattr(theirs, name) == getattr(WORDS, name)
    for sentence in CORPUS:
        assert theirs.encode(sentence) == WORDS.encode(sentence)
        assert theirs.decode(theirs.encode(sentence)) == WORDS.decode(WORDS.encode(sentence))


# --- What is refused ---


@pytest.mark.parametrize(
    ("vocabulary", "tokenizer", "says"),
    [
        (IntegerTokens(), PlainTokenizer(word_tokenizer(integers=100)), "no token of its own for '100'"),
        (ReservedTokens(), PlainTokenizer(word_tokenizer()), "no token of its own for '<loc0000>'"),
        (LeastFrequentTokens(), PlainTokenizer(word_tokenizer(integers=0)), "256 bins do not fit"),
        (LeastFrequentTokens(ids=(1, 2, 3)), WORDS, "3 were chosen"),
    ],
)
def test_a_vocabulary_without_room_is_refused(vocabulary: object, tokenizer: PlainTokenizer, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RT2TextConfig(vocabulary=vocabulary).build(tokenizer, max_tokens=64)  # type: ignore[arg-type]


def test_texts_that_do_not_fit_are_refused() -> None:
    text = text_of("integers")
    with pytest.raises(ValueError, match="the context holds 64"):
        text.robot_prompt("pick up the can " * 40)
    with pytest.raises(ValueError, match="the context holds 64"):
        text.web("is it ?", "red " * 80)
    with pytest.raises(ValueError, match="instruction"):
        text.robot_prompt("  ")
    with pytest.raises(ValueError, match="answer"):
        text.web("is it ?", " ")
    for injected in ("pick <eos> it up", "look at the <image>"):
        with pytest.raises(ValueError, match="which is no text"):
            text.robot_prompt(injected)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="different dimensions"):
        RT2TextConfig(fields=("elbow",))
    with pytest.raises(ValueError, match="different dimensions"):
        replace(RT2TextConfig(), fields=(FIELDS[0], FIELDS[0]))


def test_a_tokenizer_must_be_able_to_end() -> None:
    with pytest.raises(ValueError, match="no token '</s>'"):
        PlainTokenizer(word_tokenizer(), eos="</s>")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"robot_prompt": "do it"}, r"text.robot_prompt must hold \{instruction\}"),
        ({"question_prompt": "Q: {question} {A}"}, r"and no other braces, got 'Q: \{question\} \{A\}'"),
        ({"action_mark": " "}, "text.action_mark is empty"),
        ({"frames": 0}, "text.frames must be a whole number and at least 1, got 0"),
        ({"binning": "round"}, "text.binning must be one of truncate, centre, got 'round'"),
    ],
)
def test_templates_without_their_place_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RT2TextConfig(**settings)


def test_the_fields_of_rt1_s_space_do_not_stand_for_a_larger_one() -> None:
    torso = SpaceDimension(name="torso")
    larger = ActionSpace(name="own", dimensions=(*RT1_SPACE.dimensions, torso), gripper=RT1_SPACE.gripper)
    assert RT2TextConfig().in_space(larger).said_fields() == larger.names
    chosen = RT2TextConfig(action_space=larger, fields=("torso",))
    assert chosen.in_space(larger).said_fields() == ("torso",)
    assert RT2TextConfig().in_space(None) == RT2TextConfig()
