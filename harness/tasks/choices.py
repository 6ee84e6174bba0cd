"""A row's own options, which its answer is one of."""

from harness.tasks.files import as_text
from harness.training.batches import Row


def choose(row: Row, choices: str, answer: str | None) -> None:
    """Write a row's options as texts, and its answer as one of them.

    Args:
        choices: The column of the options: a list, or ARC's object of `text` and `label`.
        answer: The column of the answer, which may hold the option's place or label; null where it is made of several.
    """
    given = row[choices]
    labels: list[str] = []
    if isinstance(given, dict) and isinstance(given.get("text"), list):
        given, labels = given["text"], [as_text(label) for label in given.get("label", [])]
    if not isinstance(given, list):
        return
    row[choices] = options = [as_text(one) for one in given]
    if answer is None or (told := as_text(row[answer]).strip()) in options:
        return
    if told in labels:
        row[answer] = options[labels.index(told)]
    elif told.isdigit() and int(told) < len(options):
        row[answer] = options[int(told)]
