"""A row's own options, which its answer is one of."""

from typing import Any

from harness.config.errors import ConfigError
from harness.tasks.files import as_text
from harness.training.batches import Row

# By the likelihood of an option as a whole, and by its mean per token, which does not favor short ones.
CHOICE_SCORES = ("accuracy", "accuracy_normalized")


def choose(row: Row, choices: str, answer: str | None) -> None:
    """Write a row's options as texts, and its answer as one of them.

    An answer is an option's label where it can be. Else a whole number beside options that are all texts is a place;
    any other answer is an option's text where it can be, and else, written in digits, a place.

    Args:
        choices: The column of the options: a list, or ARC's object of `text` and `label`.
        answer: The column of the answer; null where it is made of several.

    Raises:
        ConfigError: A whole number beside texts is one of them and no place: smaller ones of its column would be read
            as places.
    """
    given = row[choices]
    options, labels = listed(given)
    if options is None:
        return
    row[choices] = options
    if answer is None:
        return
    value = row[answer]
    told = as_text(value).strip()
    as_digits = told.isascii() and told.isdecimal() and int(told) < len(options)
    if told in labels:
        row[answer] = options[labels.index(told)]
    elif isinstance(value, int) and not isinstance(value, bool) and _are_texts(given):
        if as_digits:
            row[answer] = options[value]
        elif told in options:
            raise ConfigError(
                f"{answer}={value}: beside options that are texts a whole number is a place, and {choices}={options} "
                f"has 0 to {len(options) - 1}; write an answer that is a text as text"
            )
    elif told not in options and as_digits:
        row[answer] = options[int(told)]


def _are_texts(given: Any) -> bool:
    return all(isinstance(one, str) for one in (given["text"] if isinstance(given, dict) else given))


def listed(given: Any) -> tuple[list[str] | None, list[str]]:
    """Options as texts, null for what is no list of them; and their labels, where they have some."""
    labels: list[str] = []
    if isinstance(given, dict) and isinstance(given.get("text"), list):
        given, labels = given["text"], [as_text(label).strip() for label in given.get("label") or []]
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
