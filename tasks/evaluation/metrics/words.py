"""Text → the tokens that metrics count: words in scripts with spaces between words, characters in others."""

import functools
import unicodedata
from typing import Any

import regex

_SCRIPTS = (
    "Han Hiragana Katakana Bopomofo Yi Tangut Nushu Khitan_Small_Script Thai Lao Khmer Myanmar Tai_Le New_Tai_Lue "
    "Tai_Tham Tai_Viet Ahom Balinese Javanese"
)
"""Scripts without spaces between words. Korean has spaces; Tibetan marks the end of every syllable."""
_SPACELESS = "".join(rf"\p{{scx={script}}}" for script in _SCRIPTS.split())
_LETTER = r"[\p{L}\p{Nd}\p{Nl}]"  # without ² and ½, which are no tokens of `rouge_score`
_TOKEN = regex.compile(rf"[{_LETTER}&&[{_SPACELESS}]]\p{{M}}*|(?:[{_LETTER}--[{_SPACELESS}]]\p{{M}}*)+", regex.V1)
_PIECE = regex.compile(rf"{_TOKEN.pattern}|[^\s\p{{M}}]", regex.V1)
_INVISIBLE = regex.compile(r"[\p{Default_Ignorable_Code_Point}\u20e3\u0640]")
"""Joiners, soft hyphens, direction marks, the mark that turns a digit into an emoji, the line that stretches Arabic."""
_FORMS = regex.compile(r"[\ufb00-\ufdff\ufe70-\uffef\U0001d400-\U0001d7ff]+")
"""Ligatures, Arabic presentation forms, letters of full and half width, bold and italic letters of mathematics."""


def words(text: str) -> list[str]:
    """Tokens without regard to case, typography (full width, ligatures) or punctuation.

    A character keeps its combining marks. In ASCII, a token is a run of letters and digits.

    >>> words("Überprüft am 3. März: 会议改到3点")
    ['überprüft', 'am', '3', 'märz', '会', '议', '改', '到', '3', '点']
    """
    return _TOKEN.findall(_folded(text))


def has_words(text: str) -> bool:
    return _TOKEN.search(_folded(text)) is not None


def pieces(text: str) -> list[str]:
    """`words` and every other sign, so that punctuation and emoji are tokens too."""
    return _PIECE.findall(_folded(text))


def stems(text: str) -> list[str]:
    """`words`, with English words of more than three letters reduced to their stems as in `rouge_score`."""
    return [stem for word in words(text) if (stem := _stem(word))]


def _folded(text: str) -> str:
    if text.isascii():
        return text.lower()
    text = _INVISIBLE.sub("", text.replace("\u200b", " "))  # zero-width space
    text = _FORMS.sub(lambda found: unicodedata.normalize("NFKC", found[0]), unicodedata.normalize("NFC", text))
    text = text.replace("İ", "i").casefold().replace("ı", "i")  # both are an i whose case Unicode does not fold
    return unicodedata.normalize("NFC", text)


@functools.lru_cache(1 << 16)
def _stem(word: str) -> str:
    return str(_porter().stem(word)) if len(word) > 3 and word.isascii() else word


@functools.cache
def _porter() -> Any:
    from nltk.stem.porter import PorterStemmer  # the import takes most of a second

    return PorterStemmer()
