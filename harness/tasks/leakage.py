"""How much of an evaluation split was seen in training."""

import re
from collections.abc import Iterable

NGRAM = 8


def overlap(train: Iterable[str], evaluation: list[str], n: int = NGRAM) -> dict[str, float]:
    """Shares of evaluation texts that occur in train: whole, and as any run of `n` words.

    Case, punctuation and spacing do not count. Texts of fewer than `n` words have no n-gram and count as not seen.
    """
    seen: set[str] = set()
    grams: set[tuple[str, ...]] = set()
    for text in train:
        words = _words(text)
        seen.add(" ".join(words))
        grams.update(_grams(words, n))
    texts = [_words(text) for text in evaluation]
    exact = sum(" ".join(words) in seen for words in texts)
    partial = sum(any(gram in grams for gram in _grams(words, n)) for words in texts)
    return {"exact": exact / len(texts), f"{n}-gram": partial / len(texts)}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _grams(words: list[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(n)), strict=False)
