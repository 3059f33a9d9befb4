"""The language of a caption, by its letters and its commonest words: ISO 639-1 codes, "und" where neither says it.

No model and no download: good enough to count a set and to leave whole languages out, not to tell near ones (Danish
and Norwegian) apart by three words. A set that records its languages should be read with them (`rtp preprocess
--language FIELD`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

UNDETERMINED = "und"

_SCRIPTS = (  # first and last letter, language; the first that covers most letters counts
    ("\u0370", "\u03ff", "el"),
    ("\u0400", "\u04ff", "ru"),
    ("\u0530", "\u058f", "hy"),
    ("\u0590", "\u05ff", "he"),
    ("\u0600", "\u06ff", "ar"),
    ("\u0900", "\u097f", "hi"),
    ("\u0980", "\u09ff", "bn"),
    ("\u0b80", "\u0bff", "ta"),
    ("\u0c00", "\u0c7f", "te"),
    ("\u0e00", "\u0e7f", "th"),
    ("\u10a0", "\u10ff", "ka"),
    ("\u3040", "\u30ff", "ja"),
    ("\u4e00", "\u9fff", "zh"),
    ("\uac00", "\ud7af", "ko"),
)
_LETTERS_OF_ONE = (("іїєґ", "uk"), ("پچگژ", "fa"), ("ٹڈڑے", "ur"))  # letters that the script's commonest language lacks

_WORDS = {
    "en": "the of and to in is on with for at by from this that are it an his her its you how what which who when "
    "where there does do has have be was while near over under next two three red blue green",
    "de": "der die das und ist auf mit ein eine einen einem einer im den dem von zu für nicht auch sich wie was wo",
    "fr": "le la les et est sur avec un une des du dans pour au aux qui que ce cette il elle sont deux rouge",
    "es": "el la los las y es en con un una del por para al que se su como más está son dos rojo sobre",
    "it": "il lo la gli le e è con un una del della di per nel nella che si su sono due rosso sul",
    "pt": "o a os as e é em com um uma do da dos das por para no na que se seu não dois vermelho sobre",
    "nl": "de het een en is op met van in voor te niet dat deze aan bij zijn wordt twee rood",
    "pl": "i w na z do jest się nie że o po od dla jak ten ta to są przy dwa oraz",
    "sv": "och är på med en ett i av för som det den att inte till två röd",
    "da": "og er på med en et i af for som det den at ikke til to rød",
    "fi": "ja on ei se että joka ovat kuin mutta tai hän kaksi punainen",
    "cs": "a je na s v se z do že to jako pro od jsou při dva nebo",
    "tr": "ve bir bu da de için ile çok olarak olan üzerinde iki kırmızı var",
    "id": "dan di yang dengan untuk ini itu dari pada adalah seorang sebuah ke tidak dua merah",
    "vi": "và của là một trên với trong có cho người những các được không hai màu",
    "ro": "și este pe cu un o în din de la pentru nu care sunt doi",
    "hu": "a az és egy van nem hogy is meg két piros",
}
_LANGUAGES_OF: dict[str, list[str]] = {}
for _code, _text in _WORDS.items():
    for _word in _text.split():
        _LANGUAGES_OF.setdefault(_word, []).append(_code)


def spoken(language_N: np.ndarray, asked: Sequence[str]) -> np.ndarray:
    """bool (N,): whether a language is one of those asked for. Case and _ for - do not matter; en is en-US and en-GB
    too, and en-US is itself alone (RFC 4647's basic filtering)."""
    wanted = tuple(_tag(language) for language in asked)
    given, place_N = np.unique(language_N.astype(str), return_inverse=True)
    is_wanted = [any(f"{_tag(language)}-".startswith(f"{each}-") for each in wanted) for language in given]
    return np.array(is_wanted, bool)[place_N]


def _tag(language: str) -> str:
    return language.strip().replace("_", "-").casefold()


def language_of(text: str) -> str:
    """The code of the language that most of the letters or of the common words are of; "und" for none or several."""
    letters = [letter for letter in text.lower() if letter.isalpha()]
    if not letters:
        return UNDETERMINED
    written = Counter(_script(letter) for letter in letters)
    if written["ja"] and written["zh"]:  # kana among Chinese characters
        return "ja"
    code, count = written.most_common(1)[0]
    if code is not None and 2 * count > len(letters):
        return next(
            (other for signs, other in _LETTERS_OF_ONE if _is_of(code, other) and set(signs) & set(letters)), code
        )
    return _by_words(text)


def _script(letter: str) -> str | None:
    return next((code for first, last, code in _SCRIPTS if first <= letter <= last), None)


def _is_of(code: str, other: str) -> bool:
    return (code == "ru") == (other == "uk")


def _by_words(text: str) -> str:
    votes: Counter[str] = Counter()
    for word in re.findall(r"[^\W\d_]+", text.lower()):
        languages = _LANGUAGES_OF.get(word, ())
        for code in languages:
            votes[code] += 12 // len(languages)  # a word of one language says more than one of three
    best = votes.most_common(2)
    if not best or (len(best) == 2 and best[0][1] == best[1][1]):
        return UNDETERMINED
    return best[0][0]
