"""Summaries in the micro world: passages of events and opinions, each with one exact shorter form.

A passage tells of two or three events, in either voice, with their places, and of an opinion or two that have nothing
to do with them. Its summary tells what happened, in the order of the passage: who did what to whom, in the active
voice, without places. What did not happen is left out, and so are the opinions.

    in the yard , the baker was taught by the poet . the film was very good . the clerk never phoned the nurse .
    the poet taught the baker .

All splits use the same words for events, and no passage is in two of them.
"""

import hashlib
import json
import zlib
from random import Random
from typing import Any

from harness.tasks import micro_text as text
from harness.tasks import micro_words as words
from harness.tasks.micro_words import third

SPLITS = words.SPLITS
MOST_ROWS = 100_000


def generate(split: str, rows: int, seed: int = 0) -> list[dict[str, Any]]:
    """Returns rows of `document`, `summary` and `idx`; no document occurs twice, and none in two splits.

    Args:
        split: train, development or validation.
        rows: Number of rows.
        seed: Another seed gives other rows of the same kind.

    Raises:
        ValueError: The split is not one of those, or `rows` is negative or more than `MOST_ROWS`.
    """
    words.check_rows("summarize/micro", split, rows, MOST_ROWS)
    rng = Random(f"summaries {split} {seed}")
    made: list[dict[str, Any]] = []
    seen: set[str] = set()
    while len(made) < rows:
        document, summary = _draw(rng, split)
        # The checksum gives every possible document to one split.
        if document not in seen and zlib.crc32(document.encode()) % 3 == SPLITS.index(split):
            seen.add(document)
            made.append({"document": document, "summary": summary, "idx": len(made)})
    return made


def fingerprint() -> str:
    """Returns a SHA-256 of a fixed sample of all rows that this file writes."""
    digest = hashlib.sha256()
    for split in SPLITS:
        digest.update(json.dumps(generate(split, 300)).encode())
    return digest.hexdigest()


def _draw(rng: Random, split: str) -> tuple[str, str]:
    lexicon = {1: third(words.PRAISE, split), 0: third(words.BLAME, split)}
    events = [_event(rng) for _ in range(rng.choice((2, 3)))]
    if not any(event.happened for event in events):
        events[0] = events[0]._replace(happened=True)
    told = [(event, rng.randrange(2)) for event in events]
    sentences = [
        text.tell(event, verb, rng.randrange(2), rng.random() < 0.5, rng.random() < 0.5) for event, verb in told
    ]
    for _ in range(rng.choice((1, 1, 2))):
        aside = text.judgment(rng, rng.randrange(2), rng.choice(words.WORKS), lexicon)
        sentences.insert(rng.randrange(len(sentences) + 1), aside)
    happened = [f"the {event.actor} {event.verb[verb]} the {event.patient}" for event, verb in told if event.happened]
    return " . ".join(sentences) + " .", " and ".join(happened) + " ."


def _event(rng: Random) -> text.Event:
    event = text.draw_event(rng, True, words.PERSON_VERBS, words.PLACES, words.THINGS)
    return event._replace(happened=rng.random() < 0.6)
