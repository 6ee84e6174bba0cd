"""Leakage: the share of an evaluation split that was seen in training."""

from collections.abc import Iterable

from harness.training.text_metrics import words

NGRAM = 8


def overlap(train: Iterable[str], evaluation: list[str], n: int = NGRAM) -> dict[str, float]:
    """Shares of evaluation texts that occur in train: whole, and as any run of `n` words.

    Case, punctuation and spacing do not count. Texts of fewer than `n` words have no n-gram and count as not seen.
    """
    seen: set[str] = set()
    grams: set[tuple[str, ...]] = set()
    for text in train:
        found = words(text)
        seen.add(" ".join(found))
        grams.update(_grams(found, n))
    texts = [words(text) for text in evaluation]
    exact = sum(" ".join(found) in seen for found in texts)
    partial = sum(any(gram in grams for gram in _grams(found, n)) for found in texts)
    return {"exact": exact / len(texts), f"{n}-gram": partial / len(texts)}


def _grams(found: list[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(found[start:] for start in range(n)), strict=False)
