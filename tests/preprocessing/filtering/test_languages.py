"""Languages by letters and common words."""

from __future__ import annotations

import numpy as np
import pytest

from preprocessing.filtering.languages import language_of, spoken


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("A man is riding a horse on the beach", "en"),
        ("What color is the car?", "en"),
        ("Ein Mann reitet auf einem Pferd am Strand", "de"),
        ("Un homme est assis dans la rue avec des enfants", "fr"),
        ("Un hombre con una camisa roja y los perros", "es"),
        ("Um homem com uma camisa não é o mesmo", "pt"),
        ("Een man zit op het strand met zijn hond", "nl"),
        ("Человек на лошади", "ru"),
        ("Людина їде на коні", "uk"),
        ("海辺で馬に乗る男", "ja"),
        ("一个男人在海滩上骑马", "zh"),
        ("해변에서 말을 타는 남자", "ko"),
        ("رجل يركب حصانا", "ar"),
        ("red", "en"),
        ("IMG_2041.JPG", "und"),
        ("", "und"),
    ],
)
def test_what_a_caption_is_written_in(text: str, code: str) -> None:
    assert language_of(text) == code


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        (("en",), ["en", "EN", "en-US", "en_GB"]),
        (("EN-us",), ["en-US"]),
        (("zh", "und"), ["zh-Hant", "und"]),
        (("e",), []),
    ],
)
def test_a_language_is_asked_for_in_any_case_and_takes_its_regions_along(
    asked: tuple[str, ...], taken: list[str]
) -> None:
    given = np.array(["en", "EN", "en-US", "en_GB", "zh-Hant", "und", "eng"], object)
    assert given[spoken(given, asked)].tolist() == taken
