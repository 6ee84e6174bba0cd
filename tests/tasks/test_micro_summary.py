"""Each passage of the micro world has one right summary, which can be read off its words again."""

import re

import pytest

from harness.tasks import micro_words as words
from harness.tasks.micro_summary import SPLITS, fingerprint, generate

VERBS = {verb for pair in words.PERSON_VERBS for verb in pair}
ACTIVE = re.compile(r"the (\w+) (\w+) the (\w+)")
PASSIVE = re.compile(r"the (\w+) was (\w+) by the (\w+)")


def summary_of(document: str) -> str:
    """Read the document sentence by sentence: events in the active voice, without places, those that happened."""
    told = []
    for sentence in document.removesuffix(" .").split(" . "):
        clause = re.sub(r"^in the \w+ , | in the \w+$", "", sentence)
        if found := PASSIVE.fullmatch(clause):
            patient, verb, actor = found.groups()
        elif found := ACTIVE.fullmatch(clause):
            actor, verb, patient = found.groups()
        else:
            continue
        if verb in VERBS:
            told.append(f"the {actor} {verb} the {patient}")
    return " and ".join(told) + " ."


@pytest.mark.parametrize("split", SPLITS)
def test_the_summary_follows_from_the_document(split: str) -> None:
    """A reader that knows nothing of how it was made comes to the same."""
    rows = generate(split, 500)
    assert [summary_of(row["document"]) for row in rows] == [row["summary"] for row in rows]
    assert all(len(row["summary"]) < len(row["document"]) / 1.2 for row in rows)


def test_no_document_is_in_two_splits_or_twice() -> None:
    """Whatever the seeds."""
    documents = [row["document"] for split in SPLITS for seed in (0, 1) for row in generate(split, 300, seed)]
    by_split = {split: {row["document"] for row in generate(split, 1000)} for split in SPLITS}
    assert all(len(found) == 1000 for found in by_split.values())
    assert not by_split["train"] & by_split["validation"]
    assert len(set(documents)) > 0.99 * len(documents)


def test_the_same_seed_writes_the_same_rows() -> None:
    """And another one others."""
    assert generate("train", 50) == generate("train", 50)
    assert generate("train", 50) != generate("train", 50, seed=1)
    assert fingerprint() == fingerprint()


def test_a_wrong_split_or_number_is_refused() -> None:
    """With what is allowed."""
    with pytest.raises(ValueError, match="allowed: train, development, validation"):
        generate("test", 1)
    with pytest.raises(ValueError, match="allowed: 0 to"):
        generate("train", -1)
