r"""Metrics of generated text: a score of one prediction against its reference, of which the metric is the mean.

Exact match and token F1 are SQuAD's (Rajpurkar et al. 2016, arXiv 1606.05250; F1 of empty answers as in SQuAD 2.0,
Rajpurkar et al. 2018, arXiv 1806.03822). ROUGE-L, -1 and -2 are Lin 2004 ("ROUGE: A Package for Automatic
Evaluation of Summaries", sections 3 and 2). GSM8K's answer is that of Cobbe et al. 2021 (arXiv 2110.14168, section 2).

ROUGE is written out here: the package rouge_score would bring nltk, absl, six and their needs for a stemmer that is
not used, and the rest of it is one table. Values are the same on English text without stemming; letters outside of
a-z are part of a word here, which that package takes for spaces.

All of them read every script: texts are compared in Unicode's composed form (NFC), marks stay with their letters, and a
script that is written without spaces goes by character. SQuAD's normalization was made for English phrases: where it
would leave nothing ("A", "+") or take a number's sign or point away, it stops short of that here.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple

_ARTICLES = re.compile(r"(?<!\S)(a|an|the)(?!\S)")
_MINUS = str.maketrans({"\u2212": "-", "\u2010": "-", "\u2011": "-"})
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
# In ASCII, where no script and no mark asks for more: words between spaces, a fifth of the time or less.
_ASCII_WORDS = {code: " " for code in range(128) if not chr(code).isalnum()}
# Scripts that put no space between words.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
# A letter's marks, and the joiners that some scripts write within a word.
_MARKS = r"[\p{M}\u200c\u200d]*"
_PUNCTUATION = rf"[\p{{P}}{re.escape(string.punctuation)}]"
# What stays: the sign of a number, its point, and the signs that part C from C++ and C#, or a grade from another.
_MEANT = r"(?<![\w)])-(?=\.?\d)|(?<=\d)\.(?=\d)|(?<!\w)\.(?=\d)|(?<=\p{L}[+#]*)[+#]+(?!\w)|(?<=\b\p{L})-(?!\w)"
_CURRENCY = re.compile(r"[$€£¥₹]\s*")
ANSWER_MARK = "####"
# A minus behind a digit, a letter or a bracket subtracts; a comma is part of a number only where it parts thousands.
_NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")


class _Patterns(NamedTuple):
    words: Any
    characters: Any
    between_digits: Any
    other_punctuation: Any


@cache
def _patterns() -> _Patterns:
    # Python's own re knows neither scripts nor marks. Imported here: the command line's help would wait for it.
    import regex

    return _Patterns(
        words=regex.compile(rf"{_UNSPACED}{_MARKS}|(?:(?!{_UNSPACED})[\p{{L}}\p{{N}}]{_MARKS})+"),
        characters=regex.compile(rf"{_UNSPACED}{_MARKS}|(?:(?!{_UNSPACED})\S)+"),
        between_digits=regex.compile(rf"(?<=\d)(?!\.\d){_PUNCTUATION}+(?=\d)"),
        other_punctuation=regex.compile(rf"(?:{_MEANT})(*SKIP)(*FAIL)|{_PUNCTUATION}"),
    )


def normalized(text: str) -> str:
    """SQuAD's normalization: lower case, without punctuation, then without articles, then single spaces.

    A number keeps its sign and its point, and what would leave nothing of a text is not done to it, so that only a
    blank text is empty.
    """
    text = " ".join(unicodedata.normalize("NFC", text).lower().translate(_MINUS).split())
    text = _THOUSANDS.sub(lambda number: number.group().replace(",", ""), text)
    plain = " ".join(_patterns().other_punctuation.sub("", _patterns().between_digits.sub(" ", text)).split())
    return " ".join(_ARTICLES.sub(" ", plain).split()) or plain or text


def words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case; characters where a script has no spaces.

    Of a text that has neither letters nor digits, what its spaces part.
    """
    if text.isascii():
        text = text.lower()
        return text.translate(_ASCII_WORDS).split() or text.split()
    text = unicodedata.normalize("NFC", text).lower()
    return _patterns().words.findall(text) or text.split()


def exact_match(prediction: str, reference: str) -> float:
    """1 if both are the same text but for case, articles, punctuation and spacing (SQuAD), else 0."""
    return float(normalized(prediction) == normalized(reference))


def token_f1(prediction: str, reference: str) -> float:
    """Harmonic mean of precision and recall over normalized words, each as often as it occurs (SQuAD).

    Where either side is blank, it is 1 if both are and else 0.
    """
    predicted, true = (_patterns().characters.findall(normalized(text)) for text in (prediction, reference))
    shared = (Counter(predicted) & Counter(true)).total()
    return _harmonic_mean(shared, len(predicted), len(true))


def rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L: harmonic mean of precision and recall of the longest common subsequence of words (Lin 2004, beta 1).

    Words are runs of letters and digits, in lower case and not stemmed. Where either side is blank, it is 1 if both
    are and else 0.
    """
    predicted, true = words(prediction), words(reference)
    return _harmonic_mean(_common_subsequence(predicted, true), len(predicted), len(true))


def rouge_1(prediction: str, reference: str) -> float:
    """ROUGE-1: harmonic mean of precision and recall over words, each as often as it occurs (Lin 2004, section 2).

    Where either side is blank, it is 1 if both are and else 0; so is ROUGE-2.
    """
    return _rouge_n(prediction, reference, 1)


def rouge_2(prediction: str, reference: str) -> float:
    """ROUGE-2: the same over pairs of neighboring words, of which a text of one word has none: it scores 0."""
    return _rouge_n(prediction, reference, 2)


def _rouge_n(prediction: str, reference: str, n: int) -> float:
    read = [words(prediction), words(reference)]
    if not all(read):
        return float(read[0] == read[1])
    predicted, true = (Counter(zip(*(text[start:] for start in range(n)), strict=False)) for text in read)
    total = predicted.total() + true.total()
    return 2 * (predicted & true).total() / total if total else 0.0


def gsm8k_answer(prediction: str, reference: str) -> float:
    """1 if the final numbers are equal as numbers, else 0; also 0 where either side has none.

    The final number follows the first "####", commas and currency signs left out. A text without "####" is taken by
    its last number, so that an answer in another form counts as well: a model need not have learned the mark.
    """
    predicted, true = final_number(prediction), final_number(reference)
    return float(predicted is not None and predicted == true)


def final_number(text: str) -> Decimal | None:
    """The number right after the first "####", in a text without that mark the last one; null where there is none."""
    before, mark, after = _CURRENCY.sub("", text).partition(ANSWER_MARK)
    if mark:
        found = _NUMBER.match(after.lstrip())
        last = found.group() if found else None
    else:
        last = next(iter(_NUMBER.findall(before)[-1:]), None)
    return None if last is None else Decimal(last.replace(",", ""))


def _harmonic_mean(shared: int, predicted: int, true: int) -> float:
    """F1 by counts: of what is on both sides, in the prediction and in the reference."""
    if predicted == 0 or true == 0:
        return float(predicted == true)
    return 2 * shared / (predicted + true)


def _common_subsequence(left: list[str], right: list[str]) -> int:
    """Length of the longest common subsequence, in time left x right."""
    # Lengths for all of `left` so far and the first so many words of `right`.
    lengths = [0] * (len(right) + 1)
    for word in left:
        above = lengths
        lengths = [0]
        for place, other in enumerate(right):
            lengths.append(above[place] + 1 if word == other else max(above[place + 1], lengths[place]))
    return lengths[-1]


PER_ROW: dict[str, Callable[[str, str], float]] = {
    function.__name__: function for function in (exact_match, token_f1, rouge_l, gsm8k_answer, rouge_1, rouge_2)
}
