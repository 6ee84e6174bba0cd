"""A row's own options, which its answer is one of."""

from typing import Any

from harness.tasks.files import as_text
from harness.training.batches import Row

# By the likelihood of an option as a whole, and by its mean per token, which does not favor short ones.
CHOICE_SCORES = ("accuracy", "accuracy_normalized")


def choose(row: Row, choices: str, answer: str | None) -> None:
    """Write a row's options as texts, and its answer as one of them.

    Args:
        choices: The column of the options: a list, or ARC's object of `text` and `label`.
        answer: The column of the answer, which may hold the option's place or label; null where it is made of several.
    """
    options, labels = listed(row[choices])
    if options is None:
        return
    row[choices] = options
    if answer is None or (told := as_text(row[answer]).strip()) in options:
        return
    if told in labels:
        row[answer] = options[labels.index(told)]
    elif told.isdigit() and int(told) < len(options):
        row[answer] = options[int(told)]


def listed(given: Any) -> tuple[list[str] | None, list[str]]:
    """Options as texts, null for what is no list of them; and their labels, where they have some."""
    labels: list[str] = []
    if isinstance(given, dict) and isinstance(given.get("text"), list):
        given, labels = given["text"], [as_text(label) for label in given.get("label", [])]
    return ([as_text(one) for one in given] if isinstance(given, list) else None), labels


def likeliest(options: list[list[str]], likelihoods: list[list[tuple[float, int]]]) -> dict[str, list[str]]:
    """The likeliest option of each row: name of the score -> options.

    Args:
        options: Of each row.
        likelihoods: Log-probability of each of them, and its tokens.
    """
    chosen: dict[str, list[str]] = {name: [] for name in CHOICE_SCORES}
    for of_row, found in zip(options, likelihoods, strict=True):
        for name, divide in zip(CHOICE_SCORES, (False, True), strict=True):
            values = [total / tokens if divide else total for total, tokens in found]
            chosen[name].append(of_row[values.index(max(values))])
    return chosen
